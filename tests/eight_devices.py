"""Sweeps on eight virtual devices; `test_sweeps_scale` runs this in a process that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from nopr import finetune, networks, sweeps
from nopr.data import synthetic

NETWORK = networks.mlp((4, 1), inputs=3)
TRAIN = finetune.gradient_descent(
    finetune.squared_error(NETWORK.apply), steps=20, learning_rate=0.05
)
CUBE = synthetic.cube()
N = 37
CASES = {
    "key": jax.random.split(jax.random.key(0), N),
    "data": jax.tree.map(lambda leaf: leaf[:N], CUBE.datasets),
}
BLOCKS = (4, 6)


def job(case):
    trained = TRAIN(NETWORK.init(case["key"]), None, case["data"])
    return {"params": trained.params, "odd": jnp.tanh(jnp.exp(trained.history.loss[-1]))}


def mesh(devices):
    return Mesh(np.array(jax.devices()[:devices]), ("runs",))


def bits(swept):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(swept.values)]


@pytest.fixture(scope="module", params=["vmap", "lanes"])
def batching(request):
    return request.param


@pytest.fixture(scope="module")
def reference(batching):
    return {
        block: sweeps.run(job, CASES, block=block, mesh=mesh(1), batching=batching)
        for block in BLOCKS
    }


def test_there_are_eight_devices_and_a_sweep_takes_them_all():
    assert len(jax.devices()) == 8
    used = []
    swept = sweeps.run(lambda case: case["x"] * 2, {"x": np.arange(16.0)}, progress=used.append)
    np.testing.assert_array_equal(swept.values, np.arange(16.0) * 2)
    assert used[-1].done == 16


@settings(max_examples=6)
@given(
    block=st.sampled_from(BLOCKS),
    chunk=st.one_of(st.none(), st.integers(1, 40)),
    devices=st.sampled_from([1, 2, 3, 8]),
    again=st.sampled_from([1, 2, 3, 8]),
    seed=st.one_of(st.none(), st.integers(0, 99)),
    cut=st.integers(0, N),
)
def test_bits_depend_on_the_block_alone(
    batching, reference, block, chunk, devices, again, seed, cut
):
    order = np.arange(N) if seed is None else np.random.default_rng(seed).permutation(N)
    cases = jax.tree.map(lambda leaf: leaf[order], CASES)
    shelf = {}

    class Shelf:
        get = shelf.get
        put = staticmethod(shelf.__setitem__)

    def interrupt(status):
        if status.done >= cut:
            raise KeyboardInterrupt

    options = {"block": block, "chunk": chunk, "batching": batching, "store": Shelf()}
    with pytest.raises(KeyboardInterrupt):
        sweeps.run(job, cases, mesh=mesh(devices), progress=interrupt, **options)
    swept = sweeps.run(job, cases, mesh=mesh(again), **options)
    back = np.argsort(order)
    values = jax.tree.map(lambda leaf: leaf[back], swept.values)
    assert bits(swept._replace(values=values)) == bits(reference[block])


def test_at_another_block_results_agree_to_rounding(reference):
    small, large = (reference[block].values for block in BLOCKS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), small, large)


def test_an_axis_besides_runs_gets_copies(reference, batching):
    two = Mesh(np.array(jax.devices()).reshape(4, 2), ("runs", "batch"))
    swept = sweeps.run(job, CASES, block=4, mesh=two, batching=batching)
    assert bits(swept) == bits(reference[4])


def test_every_device_gets_a_block_of_its_own():
    where = []

    def job(case):
        jax.debug.callback(lambda: where.append(1))
        return case

    sweeps.run(job, np.arange(32.0), block=4)
    jax.effects_barrier()
    assert len(where) == 8


def test_typed_keys_and_shared_arrays_reach_all_devices():
    keys = jax.random.split(jax.random.key(3, impl="threefry2x32"), 20)
    shared = {"table": np.arange(5.0, dtype=np.float32), "key": jax.random.key(7)}

    def draw(key, shared):
        return jax.random.normal(key) + shared["table"].sum() + jax.random.uniform(shared["key"])

    one = sweeps.run(draw, keys, shared=shared, block=2, mesh=mesh(1))
    all_ = sweeps.run(draw, keys, shared=shared, block=2)
    np.testing.assert_array_equal(one.values, all_.values)
    np.testing.assert_allclose(one.values, [draw(key, shared) for key in keys], rtol=1e-6)


def test_constants_on_one_device_reach_the_others():
    table = jax.device_put(jnp.arange(3.0), jax.devices()[1])
    swept = sweeps.run(lambda case: case * table, np.arange(8.0))
    np.testing.assert_array_equal(swept.values, np.arange(8.0)[:, None] * np.arange(3.0))


def test_the_block_that_was_settled_first_holds_on_other_devices():
    shelf = {}

    class Shelf:
        get = shelf.get
        put = staticmethod(shelf.__setitem__)

    cases = np.linspace(0, 1, 256)
    first = sweeps.run(jnp.sin, cases, store=Shelf(), mesh=mesh(2))
    chunks = {name for name in shelf if name.startswith("chunk")}
    assert int(shelf["plan"]["block"]) == 16
    again = sweeps.run(jnp.sin, cases, store=Shelf(), mesh=mesh(8))
    assert {name for name in shelf if name.startswith("chunk")} == chunks
    np.testing.assert_array_equal(first.values, again.values)
