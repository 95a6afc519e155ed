"""Training and evaluation over a `batch` axis agree with one device."""

import fcntl
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import data_parallel as script
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from nopr import finetune

ROOT = Path(__file__).resolve().parents[1]


def _start(*words):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "tests/data_parallel.py", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait(*processes):
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-5000:]


def _run(folder, processes):
    """The script's results in one process or in two; it runs only once."""
    paths = [folder / f"{index}-of-{processes}.npz" for index in range(processes)]
    with open(folder / f"{processes}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(path.exists() for path in paths):
            if processes == 1:
                _wait(_start(paths[0]))
            else:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
                _wait(*(_start(path, port, index) for index, path in enumerate(paths)))
    return [_read(path) for path in paths]


def _read(path):
    """{run: {leaf: array}}."""
    found = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            run, _, leaf = name.rpartition("|")
            found.setdefault(run, {})[leaf] = arrays[name]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all workers of xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="module")
def eight(folder):
    """Results of one process with eight devices."""
    return _run(folder, 1)[0]


@pytest.fixture(scope="module")
def two(folder):
    """Results of two processes with two devices each."""
    return _run(folder, 2)


def _same(run, other):
    """Equal to 1e-11, in double precision; counts, flags and recorded examples to the bit."""
    assert run.keys() == other.keys()
    for leaf, value in run.items():
        if value.dtype.kind == "f" and "right" not in leaf:
            np.testing.assert_allclose(value, other[leaf], rtol=1e-11, atol=1e-13, err_msg=leaf)
        else:
            np.testing.assert_array_equal(value, other[leaf], err_msg=leaf)


@pytest.mark.parametrize(("kind", "size", "devices"), script.RUNS)
def test_a_run_over_a_mesh_is_that_of_one_device(kind, size, devices, eight):
    run = eight[f"{kind}|{size}|{devices}"]
    _same(run, eight[f"{kind}|{size}|one"])
    if kind == "momentum":
        for name in ("a", "b"):
            trained = run[f".params['{name}']"]
            np.testing.assert_array_equal(trained[~script.MASKS[name]], 0)
            assert np.mean(trained != script.PARAMS[name]) > 0.9


@pytest.mark.parametrize(("size", "devices"), script.LINEAR)
def test_no_example_is_dropped_or_counted_twice(size, devices, eight):
    """The slow twin is in NumPy, over the batches that the run recorded."""
    run = eight[f"linear|{size}|{devices}"]
    order = run[".state[1]"]
    np.testing.assert_array_equal(np.sort(order), script.IDS)
    inputs, labels = script.DATA
    weights, losses = script.PARAMS["a"], []
    for first in range(0, script.N, size or script.N):
        rows = order[first : first + (size or script.N)]
        error = inputs[rows] @ weights - labels[rows, None]
        losses.append(np.sum(error**2))
        weights = weights - script.RATE * 2 * inputs[rows].T @ error / len(rows)
    np.testing.assert_allclose(run[".params['a']"], weights, rtol=1e-12)
    np.testing.assert_allclose(run[".history.loss"], [np.sum(losses) / script.N], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("24 of 37", {3, 2}),  # 24 / 8 and 13 / 8
        ("20 of 37", {3}),  # 20 / 8 and 17 / 8
        ("None of 37", {5}),
        ("descent", {5}),
        ("evaluation", {3}),
    ],
)
def test_each_device_computes_its_share_and_the_shares_are_summed(name, shares, eight):
    lines = str(eight[f"compiled|{name}"]["['text']"]).splitlines()
    products = [line for line in lines if " dot(" in line]
    forward = [re.match(r".* = f64\[(\d+),11\]", line) for line in products]
    # 4 by 11 is the gradient of the last kernel, transposed.
    assert {int(found[1]) for found in forward if found} - {4} == shares
    assert any(" all-reduce(" in line for line in lines)
    gathered = [line for line in lines if " all-gather(" in line]
    assert all("= s32[" in line for line in gathered)  # indices, no activations


@pytest.mark.parametrize(
    "run",
    [
        "descent",
        "evaluate-10",
        "evaluate-1000",
        "split-8",
        "split-all",
        "sorting",
        "sorting-descent",
    ],
)
def test_what_else_runs_over_a_mesh_finds_what_one_device_finds(run, eight):
    _same(eight[f"{run}|mesh"], eight[f"{run}|one"])


def test_a_network_that_broke_down_is_evaluated_as_such(eight, two):
    for found in (eight, *two):
        assert found["broken|mesh"]["['accuracy']"] == 0
        assert np.isnan(found["broken|mesh"]["['loss']"])


def test_a_nan_among_the_examples_is_flagged(eight):
    assert not eight["poisoned|mesh"][".finite"]
    assert eight["trained"][".finite"]


def test_a_run_resumes_bit_for_bit_from_a_carry_that_went_through_the_host(eight, two):
    for found in (eight, *two):
        for leaf, value in found["resumed|mesh"].items():
            np.testing.assert_array_equal(value, found["resumed|one"][leaf], err_msg=leaf)


@pytest.mark.parametrize("how", ["vmapped", "mapped"])
def test_seeds_run_over_one_axis_and_batches_over_the_other(how, eight):
    _same(eight[how], eight["seeds"])


@pytest.mark.parametrize("how", ["explicit", "set"])
def test_a_mesh_of_explicit_axes_serves_too(how, eight):
    _same(eight[how], eight["trained"])


def test_two_processes_find_the_same_bits(two):
    for run, leaves in two[0].items():
        for leaf, value in leaves.items():
            np.testing.assert_array_equal(value, two[1][run][leaf], err_msg=f"{run} {leaf}")


@pytest.mark.parametrize(
    ("run", "one"),
    [
        ("momentum|mesh", "momentum|8|one"),
        ("noisy|mesh", "noisy|8|one"),
        ("descent|mesh", "descent|one"),
        ("evaluate-10|mesh", "evaluate-10|one"),
        ("split-8|mesh", "split-8|one"),
        ("split-all|mesh", "split-all|one"),
        ("resumed|mesh", "resumed|one"),
    ],
)
def test_two_processes_find_what_one_finds(run, one, two, eight):
    _same(two[0][run], eight[one])


def test_processes_that_bring_different_keys_are_refused(two):
    for found in two:
        message = str(found["refusal"]["['message']"])
        assert "those of process 1 differ from those of process 0" in message


def test_a_mesh_of_one_device_changes_no_bit():
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    one = script.train()
    with jax.set_mesh(mesh):
        run = script.train(mesh)
    jax.tree.map(np.testing.assert_array_equal, one._replace(key=0), run._replace(key=0))
    found = finetune.evaluate(script.apply, run.params, script.DATA, mesh=mesh)
    np.testing.assert_array_equal(found, finetune.evaluate(script.apply, one.params, script.DATA))


def test_a_carry_fed_back_is_not_traced_again_and_resumes_without_the_mesh():
    traces = []

    def step_loss(params, state, batch, key):
        traces.append(1)
        return script.STEP_LOSS(params, state, batch, key)

    options = {"step_loss": step_loss, "tx": script.SGD, "epochs": 1, "batch_size": None}
    carry = finetune.start(script.PARAMS, script.MASKS, tx=script.SGD, key=jax.random.key(0))
    counts = []
    for _ in range(2):
        mesh = Mesh(jax.devices()[:1], ("batch",))
        carry = finetune.advance(carry, script.DATA, mesh=mesh, **options).carry
        counts.append(len(traces))
    assert counts[0] == counts[1]
    carry = finetune.advance(carry, script.DATA, **options).carry
    assert int(carry.epoch) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda mesh: finetune.trainer(script.LOSS, script.SGD, epochs=1, batch_size=4, mesh=mesh),
        lambda mesh: finetune.gradient_descent(script.LOSS, steps=1, tx=script.SGD, mesh=mesh),
        lambda mesh: finetune.evaluate(script.apply, script.PARAMS, script.DATA, mesh=mesh),
        lambda mesh: finetune.advance(
            finetune.start(script.PARAMS, None, tx=script.SGD, key=jax.random.key(0)),
            script.DATA,
            step_loss=script.STEP_LOSS,
            tx=script.SGD,
            epochs=1,
            batch_size=4,
            mesh=mesh,
        ),
    ],
    ids=["trainer", "gradient_descent", "evaluate", "advance"],
)
def test_a_mesh_without_a_batch_axis_is_refused(call):
    with pytest.raises(ValueError, match=r"an axis 'batch', got axes \['runs', 'model'\]"):
        call(Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("runs", "model")))


def test_a_shard_map_that_takes_the_batch_axis_is_refused():
    mesh = Mesh(jax.devices()[:1], ("batch",))
    mapped = jax.shard_map(
        lambda data: script.train(mesh, data=data).params,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
    )
    with pytest.raises(ValueError, match=r"must leave the axis 'batch' to the compiler, got .*Man"):
        mapped(script.DATA)
