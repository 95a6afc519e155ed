import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr import processes, sweeps
from nopr.lab import progress, records
from nopr.sweeps import memory, plans, programs
from nopr.typing import Status


class Shelf(dict):
    """A store in memory that counts its `put`s."""

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
    assert [name for name in shelf if name != "plan"] == [
        "chunk-00000000-00000003",
        "chunk-00000003-00000006",
        "chunk-00000006-00000007",
    ]
    del shelf["chunk-00000003-00000006"]
    shelf["chunk-00000000-00000003"]["leaf_1"] = np.full(3, 77, np.float32)
    swept = sweeps.run(square, CASES, block=3, store=shelf)
    np.testing.assert_array_equal(swept.values["value"], [77, 77, 77, 0, 1, 4, 9])
    assert len(shelf) == 4


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
    assert len(shelf) == 3
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
        ({}, None, "`cases` must have at least one array, got none"),
        ({"x": np.zeros((0, 2))}, None, r"at least one case, got shape \(0, 2\) at 'x'"),
        ({"k": jax.random.key(0)}, None, r"leading axis .*, got shape \(\) at 'k'.* split a key"),
        ({"x": np.array(["a", "b"])}, None, "has an array of dtype <U1 at 'x'"),
        (
            {"a": np.zeros(3), "b": np.zeros(4)},
            None,
            "got 4 cases at 'b' and 3 at 'a'",
        ),
        (CASES, 0, "`block` must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_cases_are_refused(cases, block, match):
    with pytest.raises(ValueError, match=match):
        sweeps.run(square, cases, block=block)


# --- Sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cases", "block", "chunk", "expected"),
    [
        (10, 4, None, (4, 4)),
        (10, 4, 1, (4, 4)),
        (10, 4, 5, (4, 8)),
        (10, 4, 99, (4, 12)),
        (10, 99, None, (10, 10)),
        (1000, 1, None, (1, 10)),
        (100_000, 8, None, (8, 1000)),
    ],
)
def test_a_chunk_is_a_whole_number_of_blocks(cases, block, chunk, expected):
    found = plans.plan(cases, block=block, chunk=chunk)
    assert found == expected
    chunks = found.chunks(cases)
    assert len(chunks) <= 100
    assert [i for part in chunks for i in part] == list(range(cases))
    blocks = [block for part in chunks for block in found.blocks(part)]
    assert [i for part in blocks for i in part] == list(range(cases))
    assert {len(part) for part in blocks[:-1]} <= {found.block}


@pytest.mark.parametrize(
    ("cases", "devices", "stored", "expected"),
    [
        (1792, 1, False, 1792),
        (1792, 8, False, 224),
        (1792, 1, True, 224),
        (9, 2, False, 5),
        (8, 1, True, 8),
        (40, 1, True, 8),
    ],
)
def test_without_a_block_there_is_one_round_or_some_that_are_kept(cases, devices, stored, expected):
    assert plans.largest_block(cases, devices=devices, stored=stored) == expected


def test_the_block_shrinks_until_it_fits():
    asked = []

    def needed(block):
        asked.append(block)
        return 1000 + 10 * block

    assert plans.fitting_block(50, memory_bytes=2000, needed=needed) == 50
    assert asked == [50]
    fitting = plans.fitting_block(5000, memory_bytes=2000, needed=needed)
    assert 50 < fitting <= 100
    assert len(asked) < 8  # each is a compilation
    with pytest.raises(ValueError, match=r"One case takes 1,010 bytes, more than the 1,005 of"):
        plans.fitting_block(5000, memory_bytes=1005, needed=needed)


def _wide(case):
    return jnp.sum(jnp.outer(case["x"], jnp.arange(1000.0)) ** 2, axis=0)


def test_memory_bounds_the_block_and_results_stay():
    cases = {"x": np.ones((64, 3), np.float32)}
    calls = []

    def counted(case):
        jax.debug.callback(lambda: calls.append(1))
        return _wide(case)

    whole = sweeps.run(counted, cases)
    jax.effects_barrier()
    assert calls == [1]
    calls.clear()
    bounded = sweeps.run(counted, cases, memory_bytes=100_000)
    jax.effects_barrier()
    assert 3 <= len(calls) <= 32  # results alone take 4,000 bytes a case
    np.testing.assert_allclose(bounded.values, whole.values, rtol=1e-6)


def test_a_case_that_does_not_fit_is_refused_with_both_sizes():
    cases = {"x": np.ones((4, 3), np.float32)}
    with pytest.raises(ValueError, match=r"One case takes [\d,]+ bytes, more than the 1,000 of"):
        sweeps.run(_wide, cases, memory_bytes=1000)


def test_free_memory_is_measured():
    assert 2**24 < memory.free_bytes(programs.runs_mesh(None)) < 2**44


def test_settled_sizes_hold_when_the_sweep_resumes():
    shelf, cases = Shelf(), {"x": np.linspace(-1, 1, 100, dtype=np.float32)}
    sweeps.run(square, cases, store=shelf)
    assert (shelf["plan"]["block"], shelf["plan"]["chunk"]) == (13, 13)
    shelf["plan"].update(block=20, chunk=40)
    names = set(shelf)
    sweeps.run(square, cases, store=shelf, say=lambda line: None)
    assert set(shelf) - names == {
        "chunk-00000000-00000040",
        "chunk-00000040-00000080",
        "chunk-00000080-00000100",
    }


@pytest.mark.parametrize("broken", [{"block": 0}, {"chunk": 30}, {"cases": 7}, {"function": "x"}])
def test_impossible_settled_sizes_are_settled_again(broken):
    shelf, cases = Shelf(), {"x": np.linspace(-1, 1, 100, dtype=np.float32)}
    sweeps.run(square, cases, store=shelf)
    settled = dict(shelf["plan"])
    shelf["plan"].update(broken)
    sweeps.run(square, cases, store=shelf)
    assert shelf["plan"] == settled


# --- What a chunk was computed from ------------------------------------------------------------


def test_a_chunk_of_another_block_function_or_shared_is_reported_and_computed_again():
    shelf, said = Shelf(), []
    table = np.arange(4.0, dtype=np.float32)

    def run(function=lambda case, table: case["x"] * table.sum(), table=table, **options):
        options = {"block": 2, "chunk": 4, **options}
        return sweeps.run(
            function, CASES, shared=table, store=shelf, say=said.append, **options
        ).values

    run()
    assert said == []
    np.testing.assert_array_equal(run(block=4), 6 * CASES["x"])
    assert said.pop(0) == (
        "The stored chunks have blocks of 2 in chunks of 4, not of 4 in 4; "
        "computing the missing ones."
    )
    assert said.pop() == (
        "The stored chunk-00000000-00000004 and 1 more are for another block (2 stored, 4 here); "
        "computing again."
    )
    np.testing.assert_array_equal(run(block=4, table=table + 1), 10 * CASES["x"])
    assert "for another `shared`" in said.pop()
    other = run(lambda case, table: case["x"] + table.sum(), block=4, table=table + 1)
    np.testing.assert_array_equal(other, CASES["x"] + 10)
    assert "for another `function`" in said.pop()
    assert said == []


def test_batching_is_in_the_seal():
    shelf, said = Shelf(), []
    for batching in ("vmap", "lanes"):
        sweeps.run(square, CASES, batching=batching, store=shelf, say=said.append)
    (line,) = said
    assert "for another batching (vmap stored, lanes-" in line


def test_functions_that_call_python_code_are_refused_with_a_store():
    def scaled(by):
        like = jax.ShapeDtypeStruct((), np.float32)
        return lambda case: jax.pure_callback(
            lambda x: np.float32(x * by), like, case["x"], vmap_method="sequential"
        )

    shelf = Shelf()
    with pytest.raises(ValueError, match=r"calls Python .*pure_callback.* without `store`"):
        sweeps.run(scaled(2), CASES, store=shelf)
    assert not shelf
    found = sweeps.run(scaled(3), CASES)
    np.testing.assert_array_equal(found.values, 3 * CASES["x"])


# --- What goes wrong ---------------------------------------------------------------------------


def test_the_finite_values_are_those_of_the_other_cases():
    swept = sweeps.run(lambda case: {"log": jnp.log(case["x"]), "x": case["x"]}, CASES, block=2)
    np.testing.assert_array_equal(swept.finite_values["x"], [1, 2, 3])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"chunk": 0, "block": 2}, "`chunk` must be a whole number of at least 1, got 0"),
        ({"chunk": -1}, "`chunk` must be a whole number of at least 1, got -1"),
        ({"block": True}, "`block` must be a whole number of at least 1, got True"),
        (
            {"mesh": jax.sharding.Mesh(np.array(jax.devices()), ("batch",))},
            r"`mesh` must have an axis 'runs', got axes \['batch'\]",
        ),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        sweeps.run(square, CASES, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batching": "map"}, r"`batching` must be one of 'vmap', 'lanes', got 'map'"),
        ({"block": 2.5}, "`block` must be a whole number of at least 1, got 2.5"),
        ({"chunk": "4"}, "`chunk` must be a whole number of at least 1, got '4'"),
        ({"mesh": [1]}, "`mesh` must be a jax.sharding.Mesh, got list"),
        ({"store": "runs"}, "`store` must have `get` and `put`, as `records.Store` has, got str"),
    ],
)
def test_options_of_another_type_are_refused(options, match, unchecked):
    with pytest.raises(ValueError, match=match):
        sweeps.run(square, CASES, **options)


@pytest.mark.parametrize("send", [processes.share, processes.gather])
def test_messages_too_long_to_send_between_processes_are_refused(send, monkeypatch):
    class Long(bytes):
        def __len__(self):
            return 2**31

    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ValueError, match=r"less than 2 GiB, got 2,147,483,648 bytes.*`chunk`"):
        send(Long())


def test_typed_keys_are_refused_as_results():
    with pytest.raises(ValueError, match=r"must return arrays, got typed keys at 'k'"):
        sweeps.run(lambda key: {"k": key}, jax.random.split(jax.random.key(0), 3))


def test_a_block_other_than_the_stored_one_is_reported():
    shelf, said = Shelf(), []
    sweeps.run(square, CASES, block=2, store=shelf, say=said.append)
    sweeps.run(square, CASES, block=3, store=shelf, say=said.append)
    sweeps.run(square, CASES, store=shelf, say=said.append)
    assert said[0] == (
        "The stored chunks have blocks of 2 in chunks of 2, not of 3 in 3; "
        "computing the missing ones."
    )
    assert len(said) == 2  # and the last chunk, whose name is the same, is of another block
    assert int(shelf["plan"]["block"]) == 3


def test_an_error_of_the_store_comes_through_and_what_was_kept_stays():
    class Full(Shelf):
        def put(self, name, arrays):
            if len(self) == 3:
                raise records.RunError("The disk is full")
            super().put(name, arrays)

    shelf = Full()
    with pytest.raises(records.RunError, match="The disk is full"):
        sweeps.run(square, CASES, block=2, store=shelf)
    assert len(shelf) == 3


# --- Progress ----------------------------------------------------------------------------------


def test_what_came_from_the_store_does_not_count_in_the_rate():
    shelf, told = Shelf(), []
    sweeps.run(square, CASES, block=2, store=shelf)
    del shelf["chunk-00000002-00000004"]
    sweeps.run(square, CASES, block=2, store=shelf, progress=told.append)
    assert [(status.done, status.loaded) for status in told] == [(5, 5), (7, 5)]
    assert told[0].per_second == 0
    assert told[0].seconds_left == float("inf")
    assert told[1].per_second == pytest.approx(2 / told[1].seconds)
    assert told[1].seconds_left == 0


def test_progress_reads_as_a_line_where_there_is_no_terminal(capsys, monkeypatch):
    status = Status(done=120, total=400, failures=2, loaded=20, seconds=50.0)
    line = progress.line("finetuning", status, unit="run")
    assert line == "finetuning: 120 of 400 runs, 2 a second, 0:02:20 left, 2 not finite"
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.shown("squares", unit="case") as show:
        sweeps.run(square, CASES, block=4, progress=show)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "squares: 4 of 7 cases",
        "squares: 7 of 7 cases",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sweeps.run(3, CASES), "`function` must be a function"),
        (lambda: sweeps.run(lambda: 3, CASES), "`function` must take \\(case\\), got"),
        (lambda: sweeps.run(square, CASES, shared="x"), "`function` must take \\(case, shared\\)"),
        (
            lambda: sweeps.run(lambda case, shared: case, CASES, shared="x"),
            "`shared` must be an array",
        ),
        (
            lambda: sweeps.run(square, {"x": np.ma.masked_array([1.0, 2.0], [0, 1])}),
            "a masked array",
        ),
        (lambda: sweeps.vmap_lanes(0), "`function` must be a function"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_name(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_block_of_a_small_integer_type_does_not_wrap(unchecked):
    swept = sweeps.run(square, {"x": np.arange(300.0, dtype=np.float32)}, block=np.uint8(200))
    np.testing.assert_allclose(swept.values["value"], np.arange(300.0) ** 2)
