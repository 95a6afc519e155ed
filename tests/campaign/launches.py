"""Launches of the job, and checks of what they leave."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nopr.lab.records import Store

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
DATED = {"LOCK", "DONE", "environment.json"}
TIMEOUT = 300
_HALF_AT = "checkpoints/*/7.json"  # of 12 checkpoints, of which 2 are kept

# `python -m experiments.launch`, even if the campaign was started with interrupts ignored, as a
# shell script does for its background jobs; and with a limit on file sizes, if one is set.
_PROGRAM = """
import os, resource, runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
if "CAMPAIGN_FSIZE" in os.environ:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["CAMPAIGN_FSIZE"]),) * 2)
runpy.run_module("experiments.launch", run_name="__main__", alter_sys=True)
"""
_QUIET = re.compile(
    r"\w+: done before, taken from \S+|\w+: done in [\d.]+ s"
    r"|\S+metrics\.jsonl: dropped 1 line\(s\) that were cut off or altered\."
)
_STOPPED = "Stopped; what is done is in {}. The same command resumes from there."


class Row(NamedTuple):
    """A row of the table."""

    fault: str
    tries: int
    outcome: str


class Ended(NamedTuple):
    """How a launch ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self):
        """What it printed on stderr, except the lines of every run that resumes."""
        return [line for line in self.err.splitlines() if not _QUIET.fullmatch(line)]


class Failure(AssertionError):
    """Something was lost, wrong, or not reported."""


@dataclass(frozen=True)
class Job:
    """The job, with what an uninterrupted run of it leaves."""

    folder: Path
    """Scratch, for run directories and the cache of compiled programs. `half` is a run that was
    killed in its long part, `whole` one without a fault."""
    whole: dict[str, bytes]
    """The contents of the uninterrupted run."""
    seconds: float
    """How long it took, with programs compiled before."""

    def new(self):
        """A run directory that is not there yet."""
        number = len(list(self.folder.glob("run-*")))
        while (self.folder / f"run-{number}").exists():
            number += 1
        (self.folder / f"run-{number}").mkdir()
        return self.folder / f"run-{number}" / "run"


def prepare(folder):
    """Runs the job twice: half of it, which also compiles, and the whole, which is timed."""
    folder.mkdir(parents=True)
    half, whole = folder / "half", folder / "whole"
    process = start(folder, half, CAMPAIGN_SEGMENT_SECONDS=0.3)
    with stopping(process):
        wait_for(process, half, _HALF_AT)
        process.kill()
        ended = finish(process)
    expect(phase(half) == "checkpoints", "not killed in its long part", ended, half)
    started = time.monotonic()
    ended = finish(start(folder, whole))
    seconds = time.monotonic() - started
    expect(ended.code == 0 and not ended.lines, "the run without a fault", ended)
    files = contents(whole)
    expect(len(files) > 40, f"too few files: {sorted(files)}", ended)
    return Job(folder, files, seconds)


def start(folder, directory, *words, prefix=(), path=None, **variables):
    """Starts a launch of the job; `prefix` is a command that runs another."""
    quick = {  # unless the test suite has set them
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    env = {
        "PYTHONPATH": os.pathsep.join([str(path or TESTS), str(ROOT)]),
        "NPROC": "2",
        "TMPDIR": str(folder),  # a launch that is killed leaves its temporary files
        **{name: str(value) for name, value in variables.items()},
    }
    config = f"--config={(path or TESTS) / 'campaign' / 'config.py'}"
    command = [sys.executable, "-c", _PROGRAM, config, f"--workdir={directory}", *words]
    return subprocess.Popen(
        [*prefix, *command],
        cwd=ROOT,
        env={**quick, **os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, *, timeout=TIMEOUT):
    """Waits for the end of a launch."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise Failure(f"no end within {timeout} s\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)


def run(job, directory, *words, **options):
    """A launch from start to end."""
    with stopping(start(job.folder, directory, *words, **options)) as process:
        return finish(process)


@contextlib.contextmanager
def stopping(*processes):
    """Nothing that was started outlives its test."""
    try:
        yield processes[0] if len(processes) == 1 else processes
    finally:
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                process.kill()
            with contextlib.suppress(ValueError):
                process.communicate()


def expect(holds, what, ended=None, directory=None):
    """Raises a Failure with all details where something does not hold."""
    if holds:
        return
    details = [what]
    if ended is not None:
        details += [f"exit status {ended.code}", "--- stdout", ended.out, "--- stderr", ended.err]
    if directory is not None:
        files = (path for path in Path(directory).rglob("*") if path.parent.name != "d")
        details += ["--- files", *sorted(map(str, files))]
    raise Failure("\n".join(details))


# --- What is left ------------------------------------------------------------------------------


def contents(directory):
    """The bytes of all that a run leaves, except what depends on the time and the process."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in DATED
    }


def check_whole(job, directory, ended, said=()):
    """Checks that a launch ended well, printed no more than it should, and left the same bytes."""
    expect(ended.code == 0, "it did not resume to the end", ended, directory)
    expect(ended.lines == list(said), f"expected: {list(said)}", ended, directory)
    check_same(job, directory, ended)


def check_same(job, directory, ended=None):
    """Checks that a run directory holds what the uninterrupted one does."""
    found = contents(directory)
    differ = [
        f"{name}: {_brief(found.get(name))} instead of {_brief(job.whole.get(name))}"
        for name in sorted({*found, *job.whole})
        if found.get(name) != job.whole.get(name)
    ]
    expect(not differ, "other bytes than the uninterrupted run:\n" + "\n".join(differ), ended)
    expect((directory / "DONE").exists(), "no DONE", ended, directory)


def check_part(job, directory, ended=None):
    """Checks that nothing wrong was written: all that is there is of the uninterrupted run."""
    found = contents(directory) if directory.exists() else {}
    for name, data in found.items():
        if name in ("metrics.jsonl", "figures/page.html"):  # one is appended to, one is not ours
            right = job.whole[name].startswith(data)
        elif name.startswith("checkpoints/"):
            right = _is_whole_or_half(directory / name)
        else:
            right = data == job.whole.get(name)
        expect(right, f"{name} is wrong: {_brief(data)}", ended, directory)
    return found


def _is_whole_or_half(path):
    """Whether a checkpoint is whole, or a seal is missing that would have come next."""
    store = Store(path.parent, context={}, say=lambda line: None)
    return not path.with_suffix(".json").exists() or store.get(path.stem) is not None


def check_kept(before, after, ended=None):
    """Checks that what was there is still there."""
    gone = [name for name, data in before.items() if after.get(name) != data]
    expect(not gone, f"was there, and is gone or altered: {gone}", ended)


def stopped_line(directory):
    """The line of a stopped launch."""
    return _STOPPED.format(directory)


def clear(directory):
    """Removes a run directory that is done with."""
    shutil.rmtree(directory.parent, ignore_errors=True)


def _brief(data):
    return "nothing" if data is None else f"{len(data)} bytes {data[:60]!r}"


# --- Moments -----------------------------------------------------------------------------------

PHASES = ("start-up", "stage", "sweep", "checkpoints", "results", "end")


def phase(directory):
    """How far a run got, according to its files."""
    if (directory / "DONE").exists():
        return "end"
    if (directory / "stages/long.json").exists():
        return "results"
    if any(directory.glob("checkpoints/*/*")):
        return "checkpoints"
    if any(directory.glob("stages/nets/*.json")):
        return "sweep"
    return "stage" if (directory / "environment.json").exists() else "start-up"


def torn(directory):
    """Whether something half-written was left."""
    return any(directory.rglob(".*.tmp"))


def holds(process, directory):
    """Whether a launch has got far enough to hold its directory."""
    try:
        return (directory / "LOCK").read_text().strip() == str(process.pid)
    except OSError:
        return False


def wait_for_moment(job, process, directory, rng, *, anywhere=0.5):
    """Waits until a random moment of the life of a launch, or its end.

    Half of the moments are uniform over the time of a whole run; the others follow some file by at
    most 60 ms, so that the later parts have their share.
    """
    if rng.random() < anywhere:
        until = time.monotonic() + rng.uniform(0, job.seconds)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        return
    pattern = _missing(directory, rng)
    wait_for(process, directory, pattern)
    if not pattern.startswith(_LAST):
        time.sleep(rng.uniform(0, 0.06))


def wait_for(process, directory, pattern):
    """Waits until a file exists in a run directory, or the launch has ended."""
    limit = time.monotonic() + TIMEOUT
    while process.poll() is None and not any(directory.glob(pattern)):
        expect(time.monotonic() < limit, f"{pattern} did not appear", None, directory)
        time.sleep(0.002)


_LAST = ("figures", "summary", "table", "metrics", "DONE")  # a millisecond from one to the next


def _missing(directory, rng):
    """A file that will come, of a random part of those that are left."""
    there = [path.stem for path in directory.glob("checkpoints/*/*.json")]
    step = max(map(int, there), default=0)
    parts = [
        ["config.json", "environment.json"],
        ["stages/data.npz", "stages/data.json"],
        [f"stages/nets/chunk-{i:08d}-*.json" for i in range(0, 80, 4)],
        [f"checkpoints/*/{i}.json" for i in range(step + 1, 13)],
        [f"checkpoints/*/{i}.npz" for i in range(step + 1, 13)],
        ["stages/long.npz", "stages/long.json", "metrics.jsonl", "table.txt"],
        ["figures/page.html", "summary.json", "DONE"],
    ]
    left = [[name for name in part if not any(directory.glob(name))] for part in parts]
    return rng.choice(rng.choice([part for part in left if part] or [["DONE"]]))


def counted(phases):
    """Such as `start-up 3, sweep 9`."""
    found = Counter(phases)
    return ", ".join(f"{name} {found[name]}" for name in PHASES if found[name])
