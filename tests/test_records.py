"""Run directories: files are whole, belong to one config, and are not computed twice."""

import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr import sweeps
from nopr.lab import records
from nopr.lab.records import context
from nopr.lab.records.files import explained

CONFIG = {"data": {"name": "digits", "classes": (1, 2)}, "rate": 0.1}


class Curve(NamedTuple):
    steps: np.ndarray
    loss: jax.Array


@pytest.fixture
def said():
    return []


@pytest.fixture
def opened(tmp_path, said):
    def opened(config=CONFIG, workdir="run", **options):
        options = {"experiment": "light", "say": said.append, **options}
        return records.open_run(tmp_path / workdir, config=config, **options)

    return opened


def _never():
    raise AssertionError("computed again")


# --- Names -------------------------------------------------------------------------------------


def test_the_digest_depends_on_every_value_but_not_on_the_order_of_keys():
    shuffled = {"rate": 0.1, "data": {"classes": [1, 2], "name": "digits"}}
    assert records.digest(CONFIG) == records.digest(shuffled)
    assert records.digest(CONFIG) != records.digest({**CONFIG, "rate": 0.2})
    assert records.digest({"n": 1}) != records.digest({"n": "1"})


def test_a_run_is_named_by_experiment_variant_and_digest():
    tail = records.digest(CONFIG)
    assert records.run_name("quickstart", "", CONFIG) == f"quickstart-{tail}"
    assert records.run_name("light", "a/b c", CONFIG) == f"light-a_b_c-{tail}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object, b"x"])
def test_a_config_value_that_is_not_plain_is_refused_with_its_key(value):
    with pytest.raises(ValueError, match=r"got .* at 'data\.name'"):
        records.digest({"data": {"name": value}})


# --- Stages ------------------------------------------------------------------------------------

VALUES = {
    "curve": Curve(np.arange(3), jnp.array([0.5, np.nan, -0.0])),
    "layer_0/kernel": {"50%": np.zeros((0, 2), bool), "name": "Erdős", "n": 3},
    "complex": np.array([1 + 2j]),
    "names": ["a", "bcd"],
    "value": np.float32(0.1),
}


def _assert_values(found):
    assert found["curve"]["loss"].dtype == np.float32
    np.testing.assert_array_equal(found["curve"]["steps"], [0, 1, 2])
    np.testing.assert_array_equal(found["curve"]["loss"], [0.5, np.nan, -0.0])
    assert np.signbit(found["curve"]["loss"][2])
    assert found["layer_0/kernel"]["50%"].shape == (0, 2)
    assert found["layer_0/kernel"]["name"] == "Erdős"
    assert found["layer_0/kernel"]["n"] == 3
    assert found["complex"] == 1 + 2j
    assert list(found["names"]) == ["a", "bcd"]
    assert found["value"] == np.float32(0.1)
    assert isinstance(found["value"], np.float32)


def test_a_stage_is_computed_once_and_read_back_the_same(opened):
    with opened() as run:
        _assert_values(run.stage("a/b", lambda: VALUES))
    with opened() as run:
        _assert_values(run.stage("a/b", _never))


def test_the_same_values_give_the_same_bytes(opened, tmp_path):
    for workdir in ("one", "two"):
        with opened(workdir=workdir) as run:
            run.stage("a", lambda: VALUES)
    for name in ("a.npz", "a.json"):
        one, two = (tmp_path / folder / "stages" / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _remove])
def test_a_damaged_stage_is_reported_and_computed_again(opened, said, damage):
    with opened() as run:
        run.stage("a", lambda: {"x": np.arange(99)})
    damage(run.directory / "stages" / "a.npz")
    said.clear()
    with opened() as run:
        assert run.stage("a", lambda: {"x": 7})["x"] == 7
    assert "a.npz is damaged" in said[0]


def test_a_stage_without_its_seal_is_unfinished_and_computed_again(opened):
    with opened() as run:
        run.stage("a", lambda: {"x": 1})
        (run.directory / "stages" / "a.json").unlink()
        assert run.stage("a", lambda: {"x": 2})["x"] == 2


def test_a_damaged_seal_is_reported_and_the_stage_computed_again(opened, said):
    with opened() as run:
        run.stage("a", lambda: {"x": 1})
        _truncate(run.directory / "stages" / "a.json")
        _truncate(run.directory / "stages" / "a.json")
        assert run.stage("a", lambda: {"x": 2})["x"] == 2
    assert any("damaged" in line for line in said)


def test_a_stage_of_other_code_is_reported_and_computed_again(opened, said, tmp_path):
    code = tmp_path / "code.py"
    code.write_text("x = 1\n")
    with opened() as run:
        run.stage("a", lambda: {"x": 1}, code="v1")
        assert run.stage("a", _never, code="v1")["x"] == 1
        said.clear()
        assert run.stage("a", lambda: {"x": 2}, code="v2")["x"] == 2
    assert "out of date: code ('v1' there, 'v2' here)" in said[0]
    said.clear()
    with opened(sources=[code]) as run:
        assert run.stage("a", lambda: {"x": 3}, code="v2")["x"] == 3
    assert "out of date: source (" in said[0]


SETTINGS = [
    ("default_prng_impl", lambda: jax.default_prng_impl("rbg")),
    ("threefry_partitionable", lambda: jax.threefry_partitionable(False)),
    ("default_matmul_precision", lambda: jax.default_matmul_precision("highest")),
    ("x64", lambda: jax.enable_x64(True)),
]


@pytest.mark.parametrize(("name", "setting"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_a_run_under_other_settings_reports_it_and_computes_again(opened, said, name, setting):
    with opened() as run:
        run.stage("a", lambda: {"x": 1})
        run.metric(0, "train", "loss", 1)
    with setting(), opened() as run:
        facts = json.loads((run.directory / "environment.json").read_bytes())
        assert facts[name] == context.settings()[name]
        assert _rows(run) == []
        assert run.stage("a", lambda: {"x": 2})["x"] == 2
    assert any(f"out of date: {name} (" in line for line in said)


@pytest.mark.parametrize(("name", "setting"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_settings_changed_within_a_run_count_for_its_stages(opened, said, name, setting):
    with opened() as run:
        run.stage("a", lambda: {"x": 1})
        folder = run.checkpoints("b")
        with setting():
            assert run.stage("a", lambda: {"x": 2})["x"] == 2
            assert run.stage("a", _never)["x"] == 2
            assert run.checkpoints("b") != folder
    assert any(f"out of date: {name} (" in line for line in said)


def test_results_do_not_stand_for_one_another(opened, said):
    """Neither two stages nor the chunks of two sweeps can be mistaken for each other."""
    with opened() as run:
        for name in ("a", "b"):
            run.stage(name, lambda name=name: {"x": name})
            run.store(name).put("0000", {"x": name})
        for one, two in (("a", "b"), ("a/0000", "b/0000")):
            for kind in ("npz", "json"):
                first, second = (run.directory / f"stages/{name}.{kind}" for name in (one, two))
                swapped = second.read_bytes(), first.read_bytes()
                first.write_bytes(swapped[0])
                second.write_bytes(swapped[1])
        assert run.store("a").get("0000") is None
        assert run.stage("a", lambda: {"x": "anew"})["x"] == "anew"
    assert sum("is not used" in line for line in said) == 2


def test_keys_come_back_as_they_are_or_are_refused(tmp_path):
    store = records.Store(tmp_path, context={"shape": (2, 3), "count": {1: "a"}})
    values = {"x": 1, "x.npy": 2, "y%dtype=int4": 3, "z/w": {"%2F": 4, "%00": 5, "\0": 6}}
    store.put("a", values)
    again = records.Store(tmp_path, context={"shape": (2, 3), "count": {1: "a"}}).get("a")
    assert again == values
    with pytest.raises(ValueError, match=r"names that differ as text, got \[1, '1'\] at 'a'"):
        store.put("b", {"a": {1: 2, "1": 3}})


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "uint4"])
def test_the_small_dtypes_of_jax_come_back(tmp_path, dtype):
    store = records.Store(tmp_path, context={})
    values = jnp.arange(6, dtype=dtype).reshape(2, 3)
    store.put("a", {"x": values, "scalar": values[1, 2]})
    found = store.get("a")
    assert found["x"].dtype == found["scalar"].dtype == values.dtype
    np.testing.assert_array_equal(found["x"], np.asarray(values))
    assert float(found["scalar"]) == 5


@pytest.mark.parametrize("dtype", ["int4", "uint4", "float4_e2m1fn"])
def test_cases_of_half_a_byte_are_refused_before_anything_is_computed(dtype):
    with pytest.raises(ValueError, match=f"whole bytes, got {dtype}. Convert it to int8"):
        sweeps.run(jnp.abs, jnp.zeros(4, dtype), block=2)


def test_a_store_keeps_chunks_apart_by_name(opened):
    with opened() as run:
        one, two = run.store("sweep"), run.store("other")
        assert one.get("0000") is None
        one.put("0000", {"bits": np.arange(3)})
        np.testing.assert_array_equal(one.get("0000")["bits"], [0, 1, 2])
        assert two.get("0000") is None


@pytest.mark.parametrize(
    "value",
    [None, object(), jax.random.key(0), np.ma.masked_less(np.arange(3), 1), [[1], [2, 3]]],
    ids=["None", "object", "key", "masked", "ragged"],
)
def test_what_cannot_be_stored_is_refused_with_its_name(opened, value):
    with opened() as run, pytest.raises(ValueError, match="at 'a/b'"):
        run.stage("s", lambda: {"a": {"b": value}})


def test_nan_is_an_error_where_a_stage_must_be_finite(opened):
    with opened() as run:
        with pytest.raises(ValueError, match=r"'s' has 1 of 3 values .* at 'curve/loss'"):
            run.stage("s", lambda: VALUES, finite=True)
        with pytest.raises(ValueError, match=r"has 1 of 2 values .* at 'x'"):
            run.stage("s", lambda: {"x": jnp.array([1, jnp.nan], jnp.bfloat16)}, finite=True)
        assert run.stage("s", lambda: {"x": 1, "name": "a"}, finite=True)["x"] == 1


@pytest.mark.parametrize("name", ["", "../up", "a//b", "/root", "a b", "."])
def test_a_stage_name_that_is_not_a_file_name_is_refused(opened, name):
    with opened() as run, pytest.raises(ValueError, match="`name` must be"):
        run.stage(name, dict)


# --- Metrics -----------------------------------------------------------------------------------


def _rows(run):
    return [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


def test_a_metric_written_again_replaces_the_first(opened):
    with opened() as run:
        run.metric(0, "train", "loss", np.float32(0.5))
        run.metric(1, "train", "loss", float("nan"))
    with opened() as run:
        run.metric(0, "train", "loss", 0.5)
        run.metric(0, "train", "loss", 0.25)
        run.metric(0, "test", "loss", jnp.ones(()))
    assert [{**row, "seal": ""} for row in _rows(run)] == [
        {"step": 0, "split": "train", "name": "loss", "value": 0.25, "seal": ""},
        {"step": 1, "split": "train", "name": "loss", "value": None, "seal": ""},
        {"step": 0, "split": "test", "name": "loss", "value": 1.0, "seal": ""},
    ]


@pytest.mark.parametrize("cut", [1, 9])
def test_a_torn_last_line_is_dropped_and_reported(opened, said, cut):
    with opened() as run:
        for step in range(3):
            run.metric(step, "train", "loss", step)
    path = run.directory / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with opened() as run:
        assert any("dropped 1 line(s) that were cut off or altered" in line for line in said)
        run.metric(2, "train", "loss", 2)
    assert [row["step"] for row in _rows(run)] == [0, 1, 2]


@pytest.mark.parametrize("old", [b'"value": 1.0', b'"split": "train"', b'"step": 1'])
def test_a_line_that_was_altered_is_dropped_and_reported(opened, said, old):
    with opened() as run:
        for step in range(3):
            run.metric(step, "train", "loss", float(step))
    path = run.directory / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(old, old.replace(b"1", b"7").replace(b"rain", b"est"))
    path.write_bytes(b"".join(lines))
    with opened() as run:
        assert any("dropped 1 line" in line for line in said)
        assert [row["step"] for row in _rows(run)] == [0, 2]
        run.metric(1, "train", "loss", 1.0)
        run.finish({"x": 1})
    path.write_bytes(path.read_bytes().replace(b"loss", b"lost"))
    with opened() as run:
        assert not run.finished
    assert any("metrics.jsonl is damaged" in line for line in said)


def test_metrics_of_other_code_are_dropped(opened, tmp_path):
    code = tmp_path / "code.py"
    code.write_text("x = 1\n")
    with opened() as run:
        run.metric(0, "train", "loss", 1)
    with opened(sources=[code]) as run:
        assert _rows(run) == []


# --- The end -----------------------------------------------------------------------------------


def test_a_finished_run_is_known_with_its_summary_and_table(opened, capsys):
    with opened() as run:
        assert not run.finished
        run.show_table("a  b\n1  2")
        run.finish({"bits": np.float64(1.5), "count": jnp.int32(3), "note": "n/a"})
        assert run.finished
    assert capsys.readouterr().out == "a  b\n1  2\n"
    with opened() as run:
        assert run.finished
        assert not run.outdated
        assert run.summary == {"bits": 1.5, "count": 3, "note": "n/a"}
        assert run.table == "a  b\n1  2"
        for late in (lambda: run.stage("a", _never), lambda: run.metric(0, "test", "x", 1)):
            with pytest.raises(records.RunError, match="is finished and accepts no more results"):
                late()


def test_what_an_experiment_returned_is_kept_as_it_was(opened):
    found = {("a", 0.5): [1, (2.5, None)], "1": {}, 1: np.arange(3), "s": np.float32(0.5)}
    with opened() as run:
        assert repr(run.keep(found)) == repr(found)
        run.finish({})
    with opened(reopen=True) as run:
        assert repr(run.kept()) == repr(found)
        for other in (print, {"x": {1}}, {run: 1}, [float("nan")], jax.random.key(0)):
            assert run.keep(other) is None
    with opened(reopen=True) as run:
        assert run.kept() is None


def test_a_run_finished_by_other_code_is_finished_but_outdated(opened, tmp_path):
    (tmp_path / "code.py").write_text("x = 1\n")
    with opened() as run:
        run.finish({"bits": 1.5})
    with opened(sources=[tmp_path / "code.py"]) as run:
        assert run.finished
        assert run.outdated
        assert run.table == "bits  1.5"


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _remove])
def test_a_damaged_summary_is_reported_and_the_run_not_finished(opened, said, damage):
    with opened() as run:
        run.finish({"bits": 1.5})
    damage(run.directory / "summary.json")
    with opened() as run:
        assert not run.finished
        assert not (run.directory / "DONE").exists()
    assert "summary.json is damaged" in said[-1]


@pytest.mark.parametrize("value", [float("nan"), np.inf, None, True, [1], np.ones(2)], ids=repr)
def test_a_summary_holds_only_finite_numbers_and_strings(opened, value):
    with opened() as run:
        with pytest.raises(ValueError, match="at 'bad'"):
            run.finish({"good": 1, "bad": value})
        assert not (run.directory / "summary.json").exists()


def test_the_environment_records_what_it_ran_on(opened):
    with opened() as run:
        facts = json.loads((run.directory / "environment.json").read_bytes())
    assert facts["jax"] == jax.__version__
    assert facts["source"] == records.source_digest()
    assert facts["devices"] == [device.device_kind for device in jax.devices()]


# --- Directories that cannot be used -----------------------------------------------------------


def test_two_runs_in_one_directory_are_refused(opened):
    with opened(), pytest.raises(records.RunError, match=f"in use .*process {os.getpid()}"):
        opened().__enter__()
    with opened():
        pass


def test_a_run_of_another_config_is_refused_with_the_keys(opened):
    with opened() as run:
        run.stage("first", lambda: {"value": 1.0})
    other = {"data": {"name": "mnist", "classes": (1, 2)}, "rate": 0.1}
    with pytest.raises(records.RunError, match=r"data\.name \('digits' there, 'mnist' here\)\. "):
        opened(other).__enter__()
    with pytest.raises(records.RunError, match=r"experiment \('light' there, 'heavy' here\)"):
        opened(experiment="heavy").__enter__()


def test_a_folder_of_other_files_is_refused_and_untouched(opened, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "summary.json").write_text("mine")
    with pytest.raises(records.RunError, match=r"files that belong to no run \('summary.json'\)"):
        opened().__enter__()
    with pytest.raises(records.RunError, match="files that belong to no run"):
        records.set_aside(folder)
    assert [path.name for path in folder.iterdir()] == ["summary.json"]


def test_a_file_in_the_way_is_refused_and_untouched(opened, tmp_path):
    (tmp_path / "run").write_text("mine")
    for workdir in ("run", "run/below"):
        with pytest.raises(records.RunError, match=r"Cannot write .*run.*Choose another"):
            opened(workdir=workdir).__enter__()
    assert (tmp_path / "run").read_text() == "mine"


@contextlib.contextmanager
def _not_root():
    """Root may write anywhere, so the process becomes nobody for a while."""
    before = os.geteuid()
    if before == 0:
        try:
            os.seteuid(65534)
        except PermissionError:
            pytest.skip("runs as a root that cannot become another user")
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_read_only_directory_is_refused(said):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        for name in (".", "run"):
            with _not_root(), pytest.raises(records.RunError, match="Permission denied"):
                records.open_run(Path(folder, name), config=CONFIG, experiment="light").__enter__()
        assert os.listdir(folder) == []
        os.chmod(folder, 0o755)


def _move_before_it_is_locked(monkeypatch, directory, target):
    lock, moved = fcntl.flock, []

    def lock_late(file, operation):
        if not moved:
            moved.append(os.rename(directory, target))
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)


def test_a_run_that_is_set_aside_while_another_opens_it_is_held_by_one(
    opened, tmp_path, monkeypatch
):
    """The second holds a lock on a file that was renamed meanwhile."""
    with opened():
        pass
    _move_before_it_is_locked(monkeypatch, tmp_path / "run", tmp_path / "aside")
    with opened() as run:
        assert (run.directory / "LOCK").read_text() == f"{os.getpid()}\n"
        with pytest.raises(records.RunError, match="in use"):
            opened().__enter__()


def test_a_run_that_another_sets_aside_meanwhile_is_set_aside_once(opened, tmp_path, monkeypatch):
    with opened() as run:
        run.finish({"x": 1})
    _move_before_it_is_locked(monkeypatch, tmp_path / "run", tmp_path / "run.previous-1")
    assert records.set_aside(tmp_path / "run") is None
    assert [path.name for path in tmp_path.glob("run.previous-*")] == ["run.previous-1"]
    assert (tmp_path / "run.previous-1/DONE").exists()


def test_checkpoints_of_other_settings_are_reported(opened, said):
    with opened() as run:
        (run.checkpoints("a")).mkdir(parents=True)
        assert not said
        with jax.enable_x64(True):
            run.checkpoints("a")
    assert said == ["a: the checkpoints of other code, settings or threads are not used."]


def test_a_run_is_set_aside_under_a_new_name(opened, tmp_path):
    for expected in ("run.previous-1", "run.previous-2"):
        with opened() as run:
            run.finish({"x": 1})
        assert records.set_aside(tmp_path / "run") == tmp_path / expected
        assert (tmp_path / expected / "DONE").exists()
    assert records.set_aside(tmp_path / "run") is None
    with opened(), pytest.raises(records.RunError, match="in use"):
        records.set_aside(tmp_path / "run")


# --- Files -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _no_file_larger_than(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, action)


def test_a_write_that_fails_halfway_leaves_what_was_there(tmp_path):
    path = records.write_text(tmp_path / "a.txt", "whole")
    with _no_file_larger_than(1000), pytest.raises(records.RunError, match="Cannot write"):
        records.write_text(path, "x" * 5000)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_metric_that_does_not_fit_leaves_no_half_line(opened):
    with opened() as run:
        run.metric(0, "train", "loss", 0)
        path = run.directory / "metrics.jsonl"
        whole = path.read_bytes()
        with (
            _no_file_larger_than(2 * len(whole) - 5),
            pytest.raises(records.RunError, match="Cannot write"),
        ):
            run.metric(1, "train", "loss", 1)
        assert path.read_bytes() == whole
        run.metric(1, "train", "loss", 1)
        assert [row["step"] for row in _rows(run)] == [0, 1]


def test_a_seal_with_any_other_byte_is_damaged(opened, said):
    with opened() as run:
        run.stage("a", lambda: {"x": 1})
        seal = run.directory / "stages/a.json"
        whole = seal.read_bytes()
        for other in (whole[:-1], whole + b" ", whole.replace(b"\n", b"\r\n", 1)):
            said.clear()
            seal.write_bytes(other)
            assert run.stage("a", lambda: {"x": 2})["x"] == 2
            assert seal.read_bytes() != other
            assert any("is damaged" in line for line in said)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_reported_in_one_line(tmp_path):
    with (
        pytest.raises(records.RunError, match=r"disk is full: .* Free some space") as caught,
        explained(tmp_path / "a.npz"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_half_written_files_of_a_killed_run_are_removed(opened):
    with opened() as run:
        half = run.directory / "stages" / ".a.npz.1.tmp"
        half.parent.mkdir()
        half.write_text("half")
    with opened():
        assert not half.exists()


def test_csv_holds_every_digit(tmp_path):
    rows = [
        {"name": "a,b", "x": np.float64(0.1), "n": jnp.int32(3)},
        {"name": "c", "x": None, "n": 4},
    ]
    path = records.write_csv(tmp_path / "figures" / "a.csv", rows)
    assert path.read_text() == 'name,x,n\n"a,b",0.1,3\nc,,4\n'
    with pytest.raises(ValueError, match=r"share their keys .* at 1"):
        records.write_csv(path, [{"a": 1}, {"b": 1}])
    with pytest.raises(ValueError, match="`rows` must not be empty"):
        records.write_csv(path, [])


def test_a_run_that_was_refused_before_any_result_does_not_hold_its_folder(opened):
    with pytest.raises(ValueError, match="refused"), opened() as run:
        run.stage("first", lambda: (_ for _ in ()).throw(ValueError("refused")))
    other = {**CONFIG, "rate": 0.3}
    with opened(other) as run:
        run.stage("first", lambda: {"value": 1.0})
    with pytest.raises(records.RunError, match="set it aside with --rerun"), opened():
        pass
    assert json.loads((run.directory / "config.json").read_text())["config"]["rate"] == 0.3


def test_a_name_that_is_no_text_is_refused(tmp_path, unchecked):
    with pytest.raises(ValueError, match=r"`name` must be made of letters, .* got nan"):
        records.Store(tmp_path, {}).get(float("nan"))


def test_an_array_in_the_context_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"`context` must hold plain .* at 'a'\.$"):
        records.Store(tmp_path, {"a": np.eye(3)})


def test_numbers_among_text_are_refused_and_do_not_become_text(tmp_path):
    store = records.Store(tmp_path, {})
    store.put("good", {"a": ["x", "yy"]})
    assert store.get("good")["a"].tolist() == ["x", "yy"]
    with pytest.raises(
        ValueError, match=r"must be arrays, numbers and strings, got list .* at 'a'"
    ):
        store.put("bad", {"a": [1, "b"]})
