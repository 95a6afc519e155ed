import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr import sweeps


class Shelf(dict):
    """A store in memory that counts what it is asked to keep."""

    def put(self, name, arrays):
        self[name] = dict(arrays)


def square(case):
    return {"value": case["x"] ** 2, "sign": case["x"] > 0}


CASES = {"x": np.arange(-3.0, 4.0, dtype=np.float32)}


@pytest.mark.parametrize("block", [None, 1, 2, 3, 7, 100])
def test_results_come_in_case_order_whatever_the_block(block):
    swept = sweeps.run(square, CASES, block=block)
    np.testing.assert_array_equal(swept.values["value"], CASES["x"] ** 2)
    np.testing.assert_array_equal(swept.values["sign"], CASES["x"] > 0)
    assert swept.failures == []


def test_every_block_is_the_same_compiled_program():
    traces = []

    def traced(case):
        traces.append(1)
        return case["x"]

    sweeps.run(traced, CASES, block=3)
    assert len(traces) == 1


def test_a_second_sweep_of_the_same_function_compiles_nothing():
    traces = []

    def traced(case):
        traces.append(1)
        return case["x"]

    for _ in range(2):
        sweeps.run(traced, CASES, block=3)
    assert len(traces) == 1


def test_shared_arrays_reach_every_case_unbatched():
    table = np.arange(10.0, dtype=np.float32)
    swept = sweeps.run(lambda case, table: table @ table * case["x"], CASES, shared=table, block=3)
    np.testing.assert_allclose(swept.values, 285 * CASES["x"], rtol=1e-6)


def test_typed_keys_are_cases_like_any_other():
    keys = jax.random.split(jax.random.key(0), 5)
    swept = sweeps.run(jax.random.normal, keys, block=2)
    np.testing.assert_allclose(swept.values, jax.vmap(jax.random.normal)(keys), rtol=1e-6)


def test_cases_that_are_not_finite_are_reported_and_the_others_kept():
    swept = sweeps.run(lambda case: jnp.log(case["x"]), CASES, block=2)
    assert swept.failures == [0, 1, 2, 3]
    np.testing.assert_allclose(swept.values[4:], np.log([1, 2, 3]), rtol=1e-6)


def test_finished_blocks_are_taken_from_the_store():
    shelf = Shelf()
    sweeps.run(square, CASES, block=3, store=shelf)
    assert list(shelf) == [
        "block-00000000-00000003",
        "block-00000003-00000006",
        "block-00000006-00000007",
    ]
    del shelf["block-00000003-00000006"]
    shelf["block-00000000-00000003"]["leaf_1"] = np.full(3, 77, np.float32)
    swept = sweeps.run(square, CASES, block=3, store=shelf)
    np.testing.assert_array_equal(swept.values["value"], [77, 77, 77, 0, 1, 4, 9])
    assert len(shelf) == 3


def test_an_interrupted_sweep_ends_with_the_bytes_of_an_uninterrupted_one():
    shelf = Shelf()

    def stop_early(done, total, failures):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweeps.run(square, CASES, block=2, store=shelf, progress=stop_early)
    assert len(shelf) == 2
    resumed = sweeps.run(square, CASES, block=2, store=shelf)
    whole = sweeps.run(square, CASES, block=2)
    jax.tree.map(np.testing.assert_array_equal, resumed.values, whole.values)


def test_progress_counts_cases_and_failures():
    told = []
    sweeps.run(
        lambda case: jnp.log(case["x"]),
        CASES,
        block=3,
        progress=lambda *numbers: told.append(numbers),
    )
    assert told == [(3, 7, 3), (6, 7, 4), (7, 7, 4)]


@pytest.mark.parametrize(
    ("cases", "block", "match"),
    [
        ({}, None, "at least one case, got none"),
        ({"x": np.zeros((0, 2))}, None, "at least one case, got none"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, None, r"axis of 3, got shape \(4,\) at 'b'"),
        (CASES, 0, "`block` must be at least 1, got 0"),
    ],
)
def test_bad_cases_are_refused(cases, block, match):
    with pytest.raises(ValueError, match=match):
        sweeps.run(square, cases, block=block)
