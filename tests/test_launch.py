"""The launcher: bad commands cost one line and no time; runs are shown, stopped and shared."""

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nopr import data
from nopr.lab import launch, records, steps

ROOT = Path(__file__).resolve().parents[1]

EXPERIMENT = """
import os, time
import numpy as np

def check(config):
    if config.stages < 1:
        raise ValueError(f"`stages` must be at least 1, got {config.stages}. Give another.")

def run(config, run):
    if config.data.name != "digits":
        raise FileNotFoundError(f"The dataset {config.data.name!r} was looked for\\nin /nowhere.")
    if config.rate < 0:
        raise TypeError("a mistake in the code")
    if config.rate > 1e200:
        int(config.rate * config.rate)
    for _ in range(config.words):
        print("Erd\u0151s")
    total = 0.0
    for index in range(config.stages):
        def compute():
            if os.environ.get("PAUSE_IN") == str(index):
                open("paused", "w").close()
                time.sleep(60)
            return {"x": np.random.default_rng(index).normal(size=100)}
        x = run.stage(f"stage_{index}", compute)["x"]
        run.metric(index, "train", "mean", x.mean())
        total += x.sum()
    run.show_table("total\\n" + str(total) + "\\nErd\u0151s" * bool(config.words))
    return {"total": total, "rate": config.rate}
"""

CONFIG = """
from ml_collections import ConfigDict

def get_config(variant=""):
    if variant not in ("", "long"):
        raise ValueError(f"`variant` must be long, got {variant!r}.")
    return ConfigDict({
        "stages": 5 if variant else 3, "rate": 0.5, "quiet": False, "words": 0,
        "data": {"name": "digits"}, "pairs": ((0, 0.5),),
    })
"""


PLAIN = """from ml_collections import ConfigDict
def get_config(): return ConfigDict({"n": 1})
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a light experiment, its config, and some that are wrong."""
    folder = tmp_path_factory.mktemp("place")
    files = {
        "light/run.py": EXPERIMENT,
        "light/config.py": CONFIG,
        "plain.py": f"{PLAIN}def run(config, run): return {{}}\n",
        "runless.py": PLAIN,
        "torn.py": "def get_config(:\n",
        "empty.py": "",
        "raises.py": "1 / 0\n",
        "dict.py": "def get_config(): return {'a': 1}\n",
        "exits.py": "import sys\nsys.exit(0)\n",
        "numbered.py": PLAIN.replace('"n"', "1") + "def run(config, run): return {}\n",
        "other/notes.txt": "mine",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")
    return place


# `python -m experiments.launch`, even if the suite was started with interrupts ignored, as a shell
# script does for its background jobs.
HEARS_INTERRUPTS = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("experiments.launch", run_name="__main__", alter_sys=True)
"""


def _start(place, *words, **variables):
    path = os.pathsep.join([str(ROOT), str(place)])
    return subprocess.Popen(
        [sys.executable, "-c", HEARS_INTERRUPTS, "--config=light/config.py", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(place, *words):
    process = _start(place, *words)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@contextlib.contextmanager
def _paused(place, *words):
    """A launch that waits in the middle of its second stage."""
    flag = place / "paused"
    flag.unlink(missing_ok=True)
    process = _start(place, *words, PAUSE_IN="1")
    try:
        limit = time.monotonic() + 60
        while not flag.exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        assert flag.exists(), process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def _contents(folder):
    """The bytes of all that a run leaves, except what depends on the time and the process."""
    dated = {"LOCK", "DONE", "environment.json"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in dated]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- Bad commands ------------------------------------------------------------------------------

GOOD = "--config=light/config.py"
BAD = {
    "no config": ([], "--config is missing"),
    "no such file": (
        ["--config=lite.py"],
        "config file 'lite.py'. Did you mean light/config.py?",
    ),
    "not python": (["--config=torn.py"], "'torn.py' is not Python"),
    "no get_config": (["--config=empty.py"], "no function `get_config`"),
    "text": (["--config=other/notes.txt"], "must be a Python file"),
    "bad variant": (["--config=light/config.py:lung"], "`variant` must be long, got 'lung'"),
    "no variants": (["--config=plain.py:long"], "has no variants, got 'long'"),
    "unknown key": ([GOOD, "--config.stagse=3"], "no config key 'stagse'. Did you mean 'stages'?"),
    "unknown inner key": ([GOOD, "--config.data.nme=a"], "Did you mean 'data.name'?"),
    "unknown negated key": ([GOOD, "--noconfig.quite"], "Did you mean 'quiet'?"),
    "no key": ([GOOD, "--config.=3"], "There is no config key ''. Known: data.name"),
    "hopeless key": ([GOOD, "--config.zzz=3"], "Known: data.name, pairs, quiet, rate"),
    "a section": ([GOOD, "--config.data={'nam': 1}"], "Did you mean 'data.name'?"),
    "below a value": ([GOOD, "--config.stages.x=3"], "no config key 'stages.x'"),
    "not an integer": ([GOOD, "--config.stages=0.5"], "--config.stages=0.5: invalid literal"),
    "not a number": ([GOOD, "--config.rate=fast"], "--config.rate=fast: could not convert"),
    "not a bool": ([GOOD, "--config.quiet=7"], "--config.quiet=7: Non-boolean argument"),
    "not finite": ([GOOD, "--config.rate=nan"], "got nan at 'rate'"),
    "no value": ([GOOD, "--config.stages"], "Missing value for flag"),
    "unknown flag": ([GOOD, "--workdri=x"], "Unknown command line flag 'workdri'. Did you mean"),
    "a word": ([GOOD, "fast"], "'fast' is not a flag"),
    "no run": (["--config=runless.py"], "'runless.py' has no function `run`, and there is no 'run"),
    "a config that raises": (["--config=raises.py"], "'raises.py' is refused: ZeroDivisionError"),
    "a config that exits": (["--config=exits.py"], "'exits.py' is refused: SystemExit: 0"),
    "keys that are numbers": (["--config=numbered.py"], "config of 'numbered.py' must be strings"),
    "no config at all": (["--config=dict.py"], "must return a ConfigDict, got dict"),
    "refused by check": ([GOOD, "--config.stages=0"], "`stages` must be at least 1, got 0."),
    "rerun refused by check": ([GOOD, "--config.stages=0", "--workdir=other", "--rerun"], "got 0."),
    "file in the way": ([GOOD, "--workdir=plain.py"], "Cannot write 'plain.py': File exists"),
    "no such place": ([GOOD, "--workdir=/proc/runs/x"], "Cannot write '/proc/runs/x'"),
    "files of no run": ([GOOD, "--workdir=other"], "files that belong to no run ('notes.txt')"),
    "rerun of no run": ([GOOD, "--workdir=other", "--rerun"], "holds files that belong to no run"),
    "half an address": (
        [GOOD, "--processes=2", "--process=0"],
        "--coordinator, --processes and --process go together; on Slurm and TPU --distributed",
    ),
    "process beyond": (
        [GOOD, "--coordinator=localhost:1", "--processes=2", "--process=2"],
        "--process must be from 0 to 1, got 2.",
    ),
    "no processes": (
        [GOOD, "--coordinator=localhost:1", "--processes=0", "--process=0"],
        "--processes must be from 1 to 65,536, got 0.",
    ),
    "no port": (
        [GOOD, "--coordinator=localhost", "--processes=2", "--process=0"],
        "--coordinator must read like HOST:PORT, got 'localhost'.",
    ),
    "no patience": (
        [GOOD, "--distributed", "--patience=0"],
        "--patience must be from 1 to 1,000,000, got 0.",
    ),
    "endless patience": (
        [GOOD, "--distributed", "--patience=9999999999"],
        "--patience must be from 1 to 1,000,000, got 9999999999.",
    ),
    "too many processes": (
        [GOOD, "--coordinator=localhost:1", "--processes=9999999999", "--process=0"],
        "--processes must be from 1 to 65,536, got 9999999999.",
    ),
    "a huge port": (
        [GOOD, "--coordinator=localhost:99999", "--processes=2", "--process=0"],
        "--coordinator must read like HOST:PORT, got 'localhost:99999'.",
    ),
    "no text": (
        [GOOD, "--workdir=bad\udcff"],
        "must be text in UTF-8, got '--workdir=bad\\udcff'",
    ),
    "too large": ([GOOD, f"--config.stages={2**63}"], "--config.stages must fit into 64 bits, got"),
    "too large within": (
        [GOOD, f"--config.pairs=(({2**63}, 1.0),)"],
        "--config.pairs must fit into",
    ),
    "an overflow": ([GOOD, "--config.rate=1e300"], "cannot convert float infinity to integer"),
    "missing data": ([GOOD, "--config.data.name=mnist"], "'mnist' was looked for in /nowhere."),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_a_bad_command_costs_one_line_and_changes_nothing(here, capsys, words, message):
    kept = {path: path.read_bytes() for path in here.glob("*.py")}
    assert launch.main(["launch", *words]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert (here / "other" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (here / "other").iterdir()] == ["notes.txt"]
    assert {path: path.read_bytes() for path in here.glob("*.py")} == kept


def test_a_refused_setting_exits_as_a_command_that_cannot_be_carried_out(here, capsys):
    assert launch.main(["launch", GOOD, "--workdir=runs/good"]) == 0
    for words in ([], ["--workdir=runs/good"]):
        assert launch.main(["launch", GOOD, "--config.stages=0", *words]) == 2
        assert "`stages` must be at least 1, got 0." in capsys.readouterr().err
    assert launch.main(["launch", GOOD, "--config.stages=abc"]) == 2
    assert "--config.stages=abc: invalid literal" in capsys.readouterr().err


def test_experiments_are_listed_as_config_takes_them(here, capsys):
    assert launch.main(["launch"]) == 2
    message = capsys.readouterr().err
    assert "light/config.py, " in message
    assert "plain.py" in message


def test_a_bad_flag_is_told_before_jax_is_imported(place):
    code = (
        "import sys; from nopr.lab import launch;"
        "code = launch.main(['launch', '--config=light/config.py', '--config.stagse=3']);"
        "sys.exit(code if 'jax' not in sys.modules else 99)"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert time.perf_counter() - started < 10  # 0.25 s alone on the machine.


def test_a_mistake_in_the_code_shows_where_it_is(here):
    with pytest.raises(TypeError, match="a mistake in the code"):
        launch.main(["launch", GOOD, "--config.rate=-1"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "division by zero (ZeroDivisionError in own.py, line 5; --traceback"),
        ("pass", "`run` in 'own.py' must return its results, got None."),
    ],
)
def test_an_error_in_ones_own_run_names_its_line(here, capsys, body, message):
    (here / "own.py").write_text(f"{PLAIN}\ndef run(config, run):\n    {body}\n")
    assert launch.main(["launch", "--config=own.py", "--workdir=runs/own"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_place_of_an_error_is_shown_when_asked(here):
    with pytest.raises(FileNotFoundError, match="looked for"):
        launch.main(["launch", GOOD, "--config.data.name=mnist", "--traceback"])


@pytest.mark.parametrize("given", ["\u00b2", "0", "-1", "100000", "two", " 2"])
def test_an_invalid_thread_pool_size_is_refused(here, capsys, monkeypatch, given):
    monkeypatch.setenv("NPROC", given)
    assert launch.main(["launch", GOOD, "--workdir=runs/pool"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"`NPROC` must be a number of threads from 1 to 4096, got {given!r}. Set it" in line


def test_no_home_directory_is_needed(here, capsys, monkeypatch):
    """As in a container whose user has no passwd entry."""

    def nobody(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert data.load("digits").classes == 10
    assert launch.main(["launch", GOOD, "--workdir=~/x"]) == 2
    assert "--workdir=~/x has no known home directory. Set HOME" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(here / "home"))
    assert launch.main(["launch", GOOD, "--workdir=~/x"]) == 0
    assert (here / "home/x/DONE").exists()


# --- Runs --------------------------------------------------------------------------------------


def test_an_interrupted_run_names_how_to_resume(place):
    with _paused(place, "--workdir=runs/stopped") as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        "Stopped; what is done is in runs/stopped. The same command resumes from there."
    )
    assert "Traceback" not in err


def test_a_finished_run_is_shown_and_not_run_again_unless_asked(here, capsys):
    words = ["launch", "--config=light/config.py:long"]
    assert launch.main(words) == 0
    first = capsys.readouterr().out
    (directory,) = Path("runs").glob("light-long-*")
    assert first.splitlines()[0] == f"light: writing to {directory}"
    assert first.splitlines()[1] == "total"

    (directory / "report.html").write_text("<html>")
    summary = (directory / "summary.json").read_bytes()
    assert launch.main(words) == 0
    again = capsys.readouterr()
    assert again.out.splitlines()[:2] == first.splitlines()[1:3]
    assert f"light is finished: {directory}/report.html" in again.out
    assert again.err == ""

    assert launch.main([*words, "--rerun"]) == 0
    anew = capsys.readouterr()
    assert f"The previous run is now in {directory}.previous-1" in anew.out
    assert "done before" not in anew.err
    assert (directory / "summary.json").read_bytes() == summary
    assert Path(f"{directory}.previous-1", "DONE").exists()


@pytest.mark.parametrize("streams", [">&- 2>&-", ">/dev/full 2>/dev/full", "| head -1"])
def test_failing_to_print_does_not_prevent_a_run_from_finishing(place, streams):
    name = f"runs/streams{len(streams)}"
    command = f"{sys.executable} -m experiments.launch {GOOD} --workdir={name} --config.words=9999"
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for _ in ("run", "shown"):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{command} {streams}"],
            cwd=place,
            env={**os.environ, **ascii_only, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done
        assert "Traceback" not in done.stderr
        assert (place / name / "DONE").exists()


def test_a_work_directory_of_another_config_is_refused(here, capsys):
    assert launch.main(["launch", GOOD, "--workdir=runs/mine"]) == 0
    before = _contents(here / "runs/mine")
    capsys.readouterr()
    assert launch.main(["launch", GOOD, "--workdir=runs/mine", "--config.rate=1"]) == 1
    error = capsys.readouterr().err
    assert "another config: config.rate (0.5 there, 1.0 here)" in error
    assert len(error.splitlines()) == 1
    assert _contents(here / "runs/mine") == before


@pytest.mark.parametrize("before", [7, True])
def test_a_resumed_run_keeps_its_thread_pool(here, monkeypatch, before):
    command = ["launch", "--config=plain.py", f"--workdir={here / 'runs/pool'}"]
    assert launch.main(command) == 0
    (here / "runs/pool/DONE").unlink()
    facts = here / "runs/pool/environment.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "threads": before}))
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    after = 7 if before == 7 else records.threads()
    assert launch.main(command) == 0
    assert os.environ["NPROC"] == str(after)
    assert json.loads(facts.read_text())["threads"] == after


# --- Two processes -----------------------------------------------------------------------------


def _by_flags(port, index):
    return [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={index}"], {}


def _by_slurm(port, index):
    """What `srun --ntasks=2` sets; JAX takes its port from the number of the job."""
    del port
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    return ["--distributed"], {**job, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}


def _two(place, by, *words, more=((), ())):
    """Launches two processes, waits for both, and returns how they ended."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = []
    for index in range(2):
        flags, variables = by(port, index)
        words_here = [*words, *flags, *more[index], "--patience=10"]
        started.append(_start(place, *words_here, NPROC="2", **variables))
    said = [process.communicate(timeout=120) for process in started]
    return [(process.returncode, *each) for process, each in zip(started, said, strict=True)]


def test_two_processes_leave_what_one_does(place):
    whole = _start(place, "--workdir=runs/one", NPROC="2")
    assert whole.communicate(timeout=60)
    assert whole.returncode == 0
    first, second = _two(place, _by_slurm, "--workdir=runs/two")
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert _contents(place / "runs/one") == _contents(place / "runs/two")
    assert "total" in first[1]
    assert "total" not in second[1]
    assert second[2] == ""

    again = _two(place, _by_flags, "--workdir=runs/two")
    assert [code for code, *_ in again] == [0, 0]
    assert "Nothing was run" in again[0][1]


def test_processes_of_another_config_are_refused_by_all(place):
    more = ((), ("--config.rate=1",))
    for code, _, err in _two(place, _by_flags, "--workdir=runs/differ", more=more):
        assert code == 1
        (line,) = (line for line in err.splitlines() if line.startswith("error"))
        assert "Process 1 does not run what process 0 runs: config.rate (1.0 in process 1, " in line


def test_why_process_0_cannot_run_is_reported_by_all(place):
    first, second = _two(place, _by_flags, "--workdir=other")
    assert (first[0], second[0]) == (1, 1)
    reason = "'other' holds files that belong to no run ('notes.txt'). Choose another work"
    assert first[2].startswith(f"error: {reason}")
    assert second[2].startswith(f"error: Process 0 cannot run: {reason}")
    assert [path.name for path in (place / "other").iterdir()] == ["notes.txt"]


# --- Lengths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "expected"), [("10ep", 70), ("0.5ep", 4), ("500it", 500), (" 1 ep ", 7)]
)
def test_lengths_read_as_gradient_steps(length, expected):
    assert steps.iterations(length, steps_per_epoch=7) == expected


def test_lengths_read_as_whole_epochs():
    assert steps.epochs("10ep") == 10
    assert steps.epochs("21it", steps_per_epoch=7) == 3
    with pytest.raises(
        ValueError, match=r"`length` must be a whole number of epochs, got '20it' at 7 steps per"
    ):
        steps.epochs("20it", steps_per_epoch=7)
    with pytest.raises(
        ValueError, match=r"`rewind` must be a whole number of epochs, got '0\.5ep'"
    ):
        steps.epochs("0.5ep", name="rewind")
    with pytest.raises(ValueError, match="`length` must be in epochs, such as '10ep', got '20it'"):
        steps.epochs("20it")


@pytest.mark.parametrize("length", ["", "10", "ep", "-1ep", "1.5it", "10ep 5it", "10 epochs"])
def test_a_length_that_reads_otherwise_is_refused(length):
    with pytest.raises(ValueError, match="must read like '10ep' or '500it'"):
        steps.iterations(length, steps_per_epoch=7)


def test_steps_of_an_epoch_count_the_last_partial_batch():
    assert steps.per_epoch(100, batch_size=30) == 4
    assert steps.per_epoch(100, batch_size=30, remainder=False) == 3
    assert steps.per_epoch(100, batch_size=None) == 1
    with pytest.raises(ValueError, match=r"`batch_size` must be in \[1, 100\], got 101"):
        steps.per_epoch(100, batch_size=101)
