"""Runs on one device and over meshes in double precision, for test_data_parallel.py.

`python tests/data_parallel.py OUT` uses eight devices of the CPU; with a port and an index it is
one of two processes with two devices each. Results go to OUT, an npz of `run|leaf`.
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nopr import finetune

N = 37
RUNS = [
    ("momentum", 5, 8),
    ("momentum", 8, 3),
    ("momentum", None, 8),
    ("noisy", 8, 8),
]
"""Kind, batch size and devices; sizes that the devices divide, do not divide, or exceed."""
LINEAR = [(5, 8), (8, 3), (None, 8)]
EPOCHS = 2
RATE = 0.02
KEY = 3


def problem():
    """Params, masks and data of a small classifier, with examples so different that each counts."""
    rng = np.random.default_rng(7)
    params = {"a": rng.normal(size=(6, 11)), "b": rng.normal(size=(11, 4)), "c": np.zeros(4)}
    masks = {"a": rng.random((6, 11)) < 0.5, "b": rng.random((11, 4)) < 0.5, "c": None}
    inputs = rng.normal(size=(N, 6)) * rng.uniform(0.5, 2, (N, 1))
    return params, masks, (inputs, rng.integers(0, 4, N).astype(np.int32))


PARAMS, MASKS, DATA = problem()
IDS = np.arange(N, dtype=np.int32)


def apply(params, inputs):
    return jnp.tanh(inputs @ params["a"]) @ params["b"] + params["c"]


LOSS = finetune.cross_entropy(apply)
STEP_LOSS = finetune.stateless(LOSS)
SGD, ADAM = optax.sgd(0.1), optax.adam(0.05)


def monitor(params):
    return {"right": finetune.evaluate(apply, params, DATA, batch_size=10).accuracy * N}


def momentum(size, mesh):
    """Masks, momentum, a rate that changes, the best epoch by a monitor."""
    steps = finetune.steps_per_epoch(N, batch_size=size)
    rates = finetune.epoch_rates({0: 0.3, 1: 0.1}, steps_per_epoch=steps)
    train = finetune.trainer(
        LOSS,
        optax.sgd(rates, momentum=0.9),
        epochs=EPOCHS,
        batch_size=size,
        monitor=monitor,
        best_by="right",
        mesh=mesh,
    )
    return train(PARAMS, MASKS, DATA, key=jax.random.key(KEY))


def noisy_loss(params, state, batch, key):
    """Batch normalization over the whole batch, dropout, and a record of the examples seen."""
    mean, place, seen = state
    inputs, labels, ids = batch
    hidden = jnp.tanh(inputs @ params["a"])
    now = hidden.mean(0)
    hidden = (hidden - now) / jnp.sqrt(hidden.var(0) + 0.1)
    hidden = hidden * jax.random.bernoulli(key, 0.8, hidden.shape) / 0.8
    logits = hidden @ params["b"] + params["c"]
    cost = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    seen = jax.lax.dynamic_update_slice(seen, ids, (place,))
    return cost, (0.9 * mean + 0.1 * now, place + len(ids), seen)


def noisy(size, mesh):
    state = (jnp.zeros(11), jnp.zeros((), jnp.int32), jnp.zeros(EPOCHS * N, jnp.int32))
    carry = finetune.start(PARAMS, None, tx=ADAM, state=state, key=jax.random.key(KEY))
    options = {"step_loss": noisy_loss, "tx": ADAM, "batch_size": size, "mesh": mesh}
    return finetune.advance(carry, (*DATA, IDS), epochs=EPOCHS, **options)


def linear_loss(params, state, batch, key):
    """Least squares of a linear model, and a record of the examples seen."""
    del key
    place, seen = state
    inputs, labels, ids = batch
    seen = jax.lax.dynamic_update_slice(seen, ids, (place,))
    error = inputs @ params["a"] - labels[:, None]
    return jnp.sum(error**2) / len(ids), (place + len(ids), seen)


def linear(size, mesh):
    state = (jnp.zeros((), jnp.int32), jnp.zeros(N, jnp.int32))
    options = {"epochs": 1, "batch_size": size, "stateful": True, "state": state, "mesh": mesh}
    train = finetune.trainer(linear_loss, optax.sgd(RATE), **options)
    return train({"a": PARAMS["a"]}, None, (*DATA, IDS), key=jax.random.key(KEY))


def train(mesh=None, *, loss=LOSS, tx=SGD, size=8, epochs=2, data=DATA, key=KEY):
    run = finetune.trainer(loss, tx, epochs=epochs, batch_size=size, mesh=mesh)
    key = jax.random.key(key) if isinstance(key, int) else key
    return run(PARAMS, MASKS, data, key=key)


def descent(mesh, loss=LOSS):
    return finetune.gradient_descent(loss, steps=4, tx=ADAM, mesh=mesh)(PARAMS, MASKS, DATA)


def compiled(mesh):
    """Programs as run by one device of the mesh: {name: text}."""
    carry = finetune.start(PARAMS, MASKS, tx=SGD, key=jax.random.key(KEY))
    options = {"step_loss": STEP_LOSS, "tx": SGD, "epochs": 1, "mesh": mesh}
    descend = finetune.gradient_descent(LOSS, steps=1, tx=SGD, mesh=mesh)
    programs = {
        f"{size} of {N}": lambda data, size=size: finetune.advance(
            carry, data, batch_size=size, **options
        )
        for size in (24, 20, None)
    }
    programs["descent"] = lambda data: descend(PARAMS, MASKS, data)
    programs["evaluation"] = lambda data: finetune.evaluate(
        apply, PARAMS, data, batch_size=20, mesh=mesh
    )[:2]
    return {name: jax.jit(f).lower(DATA).compile().as_text() for name, f in programs.items()}


def evaluation(size, mesh):
    found = finetune.evaluate(apply, PARAMS, DATA, batch_size=size, mesh=mesh)
    right = np.rint(float(found.accuracy) * found.count).astype(int)
    return {"loss": found.loss, "right": right, "count": np.array(found.count)}


def broken(mesh):
    params = jax.tree.map(lambda leaf: leaf * np.nan, PARAMS)
    found = finetune.evaluate(apply, params, DATA, mesh=mesh)
    return {"accuracy": found.accuracy, "loss": found.loss}


def resumed(mesh):
    """One call of two epochs, and two of one with the carry through the host in between."""
    options = {"step_loss": STEP_LOSS, "tx": ADAM, "batch_size": 8, "mesh": mesh}
    first = finetune.start(PARAMS, MASKS, tx=ADAM, key=jax.random.key(KEY))
    whole = finetune.advance(first, DATA, epochs=2, **options)
    carry = finetune.advance(first, DATA, epochs=1, **options).carry
    arrays = jax.tree.map(np.asarray, carry._replace(key=jax.random.key_data(carry.key)))
    carry = arrays._replace(key=jax.random.wrap_key_data(arrays.key))
    return whole.carry, finetune.advance(carry, DATA, epochs=1, **options).carry


FEWER = jax.tree.map(lambda leaf: leaf[:36], DATA)
"""A number divisible by four devices."""


def split_already(mesh):
    def put(leaf):
        sharding = NamedSharding(mesh, P("batch"))
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, FEWER)


def sorting(params, batch):
    """The gradient of a sort scatters by uint32, which XLA cannot split unevenly."""
    outputs = apply(params, batch[0])
    return LOSS(params, batch) + jnp.mean(jnp.sort(outputs, axis=1) * jnp.arange(4.0))


def seeds(mesh):
    """Seeds over `runs` and batches over `batch`: by vmap, by `shard_map`, and one by one."""
    keys = jax.random.split(jax.random.key(KEY), 4)
    over = jax.device_put(keys, NamedSharding(mesh, P("runs")))
    vmapped = jax.jit(jax.vmap(lambda key: train(mesh, key=key).params))(over)
    assert vmapped["a"].sharding.spec == P("runs"), vmapped["a"].sharding
    mapped = jax.shard_map(
        jax.vmap(lambda key, data: train(mesh, key=key, data=data).params, (0, None)),
        mesh=mesh,
        in_specs=(P("runs"), P()),
        out_specs=P("runs"),
        axis_names={"runs"},
        check_vma=False,
    )
    alone = [train(key=key).params for key in keys]
    return (
        jax.tree.map(np.asarray, vmapped),
        jax.tree.map(np.asarray, jax.jit(mapped)(over, DATA)),
        jax.tree.map(lambda *leaves: np.stack(leaves), *alone),
    )


class Notes(dict):
    """Results: `run|leaf` to array; results from devices are whole on each of them."""

    def add(self, run, tree):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if isinstance(leaf, jax.Array):
                assert leaf.is_fully_replicated, (run, path)
                if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    continue
            self[f"{run}|{jax.tree_util.keystr(path)}"] = np.asarray(leaf)


def in_two_processes(notes, index):
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    notes.add("momentum|mesh", momentum(8, mesh))
    notes.add("noisy|mesh", noisy(8, mesh))
    common(notes, mesh)
    try:
        train(mesh, key=index)
    except ValueError as error:
        notes.add("refusal", {"message": np.array(str(error))})


def common(notes, mesh):
    notes.add("descent|mesh", descent(mesh))
    notes.add("evaluate-10|mesh", evaluation(10, mesh))
    notes.add("broken|mesh", broken(mesh))
    for name, carry in zip(("one", "mesh"), resumed(mesh), strict=True):
        notes.add(f"resumed|{name}", carry)
    split = split_already(mesh)
    notes.add("split-8|mesh", train(mesh, data=split))
    notes.add("split-all|mesh", train(mesh, size=None, data=split))


def with_eight_devices(notes):
    devices = np.array(jax.devices())
    kinds = {"momentum": momentum, "noisy": noisy}
    for kind, size in dict.fromkeys(run[:2] for run in RUNS):
        notes.add(f"{kind}|{size}|one", kinds[kind](size, None))
    for kind, size, count in RUNS:
        mesh = Mesh(devices[:count], ("batch",))
        notes.add(f"{kind}|{size}|{count}", kinds[kind](size, mesh))
    for size, count in LINEAR:
        notes.add(f"linear|{size}|{count}", linear(size, Mesh(devices[:count], ("batch",))))
    for name, text in compiled(Mesh(devices, ("batch",))).items():
        notes.add(f"compiled|{name}", {"text": np.array(text)})

    four = Mesh(devices[:4], ("batch",))
    common(notes, four)
    notes.add("descent|one", descent(None))
    notes.add("evaluate-10|one", evaluation(10, None))
    notes.add("evaluate-1000|one", evaluation(1000, None))
    notes.add("evaluate-1000|mesh", evaluation(1000, four))
    notes.add("split-8|one", train(data=FEWER))
    notes.add("split-all|one", train(size=None, data=FEWER))

    six = Mesh(devices[:6].reshape(2, 3), ("runs", "batch"))
    vmapped, mapped, alone = seeds(six)
    for name, params in (("vmapped", vmapped), ("mapped", mapped), ("seeds", alone)):
        notes.add(name, params)
    for name, mesh in (("one", None), ("mesh", Mesh(devices[:3], ("batch",)))):
        notes.add(f"sorting|{name}", train(mesh, loss=sorting))
        notes.add(f"sorting-descent|{name}", descent(mesh, loss=sorting))
    inputs = DATA[0].copy()
    inputs[5] = np.nan
    notes.add("poisoned|mesh", train(six, data=(inputs, DATA[1])))
    explicit = jax.make_mesh((2, 4), ("runs", "batch"))
    notes.add("trained", train())
    notes.add("explicit", train(explicit))
    with jax.set_mesh(explicit):
        notes.add("set", train(explicit))


def main():
    out, *rest = sys.argv[1:]
    notes = Notes()
    if rest:
        port, index = map(int, rest)
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=120)
        in_two_processes(notes, index)
    else:
        with_eight_devices(notes)
    np.savez(out, **notes)


if __name__ == "__main__":
    devices = 8 if len(sys.argv) == 2 else 2
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    main()
