import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr import records, sweeps


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


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float8_e4m3fn, jnp.float16, jnp.float32, jnp.complex64]
)
def test_nan_is_seen_in_every_dtype_that_has_it(dtype):
    values = np.array([1, np.nan, 2], np.float32).astype(dtype)
    assert sweeps.run(lambda case: case, values).failures == [1]


def test_nan_in_the_imaginary_part_alone_is_seen():
    values = np.array([1, complex(1, np.nan), complex(1, np.inf)], np.complex64)
    assert sweeps.run(lambda case: case, values).failures == [1, 2]


def test_integers_are_always_finite():
    assert sweeps.run(lambda case: case, np.arange(3)).failures == []


def test_finished_blocks_are_taken_from_the_store():
    shelf = Shelf()
    sweeps.run(square, CASES, block=3, store=shelf)
    assert list(shelf) == [
        "chunk-00000000-00000003",
        "chunk-00000003-00000006",
        "chunk-00000006-00000007",
    ]
    del shelf["chunk-00000003-00000006"]
    shelf["chunk-00000000-00000003"]["leaf_1"] = np.full(3, 77, np.float32)
    swept = sweeps.run(square, CASES, block=3, store=shelf)
    np.testing.assert_array_equal(swept.values["value"], [77, 77, 77, 0, 1, 4, 9])
    assert len(shelf) == 3


SEAL = ("function", "shared", "block", "batching", "cases")
BLOCK = "chunk-00000000-00000003"


def _counted():
    """`square`, and a list that grows by one with every block that is computed."""
    calls = []

    def counted(case):
        jax.debug.callback(lambda: calls.append(1))
        return square(case)

    return counted, calls


def _without_a_leaf(block):
    del block["leaf_1"]


def _with_one_leaf_more(block):
    block["leaf_2"] = np.zeros(3)


def _with_fewer_cases(block):
    block["leaf_1"] = block["leaf_1"][:2]


def _of_another_shape(block):
    block["leaf_1"] = np.zeros((3, 2), np.float32)


def _of_another_dtype(block):
    block["leaf_1"] = block["leaf_1"].astype(np.float64)


def _without_its_digest(block):
    del block["cases"]


@pytest.mark.parametrize(
    "change",
    [
        _without_a_leaf,
        _with_one_leaf_more,
        _with_fewer_cases,
        _of_another_shape,
        _of_another_dtype,
        _without_its_digest,
    ],
)
def test_a_stored_block_that_does_not_fit_is_computed_again(change):
    shelf, (counted, calls) = Shelf(), _counted()
    sweeps.run(counted, CASES, block=3, store=shelf)
    jax.effects_barrier()
    calls.clear()
    sweeps.run(counted, CASES, block=3, store=shelf)
    jax.effects_barrier()
    assert calls == []
    change(shelf[BLOCK])
    swept = sweeps.run(counted, CASES, block=3, store=shelf)
    jax.effects_barrier()
    assert calls == [1]
    np.testing.assert_array_equal(swept.values["value"], CASES["x"] ** 2)
    assert swept.values["value"].dtype == np.float32
    assert set(shelf[BLOCK]) == {*SEAL, "leaf_0", "leaf_1"}


def test_stored_blocks_of_other_cases_are_computed_again():
    shelf = Shelf()
    sweeps.run(square, CASES, block=3, store=shelf)
    other = {"x": CASES["x"].copy()}
    other["x"][4] = 9
    shelf[BLOCK]["leaf_1"] = np.full(3, 77, np.float32)
    swept = sweeps.run(square, other, block=3, store=shelf)
    np.testing.assert_array_equal(swept.values["value"], [77, 77, 77, 0, 81, 4, 9])


def test_stored_blocks_of_other_typed_keys_are_computed_again():
    shelf = Shelf()
    for seed in (0, 1):
        keys = jax.random.split(jax.random.key(seed), 3)
        swept = sweeps.run(jax.random.normal, keys, block=2, store=shelf)
        expected = jax.vmap(jax.random.normal)(keys)
        np.testing.assert_allclose(swept.values, expected, rtol=1e-6)


def test_blocks_go_to_the_records_of_a_run_and_come_back(tmp_path):
    store = records.Store(tmp_path, context={})
    counted, calls = _counted()
    for _ in range(2):
        swept = sweeps.run(counted, CASES, store=store)
        np.testing.assert_array_equal(swept.values["value"], CASES["x"] ** 2)
    jax.effects_barrier()
    assert calls == [1]


def test_an_interrupted_sweep_ends_with_the_bytes_of_an_uninterrupted_one():
    shelf = Shelf()

    def stop_early(status):
        if status.done >= 4:
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
        progress=told.append,
    )
    assert [status[:4] for status in told] == [(3, 7, 3, 0), (6, 7, 4, 0), (7, 7, 4, 0)]


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
