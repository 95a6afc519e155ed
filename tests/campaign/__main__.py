"""Runs the campaign and prints its table.

python -m campaign [flags], with `tests` on the path, from the root of the repository

  --tries=N     SIGKILLs; 50 by default, and a share of it of everything else
  --seed=S      of the random moments, files and bytes; 0 by default
  --only=A,B    some faults alone
  --page=FILE   writes the page with the table there
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from campaign import clocks, damage, disks, launches, pairs, stops

_VERSIONS = ("jax", "jaxlib", "numpy", "optax")


class Fault(NamedTuple):
    """A fault, and its number of tries for 50 tries of SIGKILL."""

    attempt: Callable[[Any, int, random.Random], launches.Row]
    tries: int


FAULTS = {
    "killed": Fault(stops.killed, 50),
    "terminated": Fault(stops.stopped, 12),
    "interrupted": Fault(stops.interrupted, 8),
    "doubled": Fault(stops.doubled, 6),
    "full": Fault(disks.full, 15),
    "bounded": Fault(disks.bounded, 6),
    "read_only": Fault(disks.read_only, 3),
    "chunk": Fault(damage.chunk, 8),
    "stage": Fault(damage.stage, 4),
    "checkpoint": Fault(damage.checkpoint, 8),
    "summary": Fault(damage.summary, 4),
    "configuration": Fault(damage.configuration, 6),
    "foreign": Fault(damage.foreign, 6),
    "tomorrow": Fault(clocks.files_of_tomorrow, 2),
    "set_back": Fault(clocks.set_back, 4),
    "pair_killed": Fault(pairs.killed, 12),
    "pair_terminated": Fault(pairs.stopped, 6),
    "pair_both_terminated": Fault(pairs.both_stopped, 4),
    "pair_silent": Fault(pairs.silent, 4),
    "pair_alone": Fault(pairs.alone, 2),
    "pair_different": Fault(pairs.different, 4),
}
_PAGE = """# The fault campaign

A small but real job (a stage, a sweep of 20 stored chunks, iterative pruning with 12 checkpoints
written in the background, metrics, a table, a file of a library that knows nothing of runs, a
summary) is hit by every fault below, at random moments and in random bytes. The bytes of
everything that it leaves, checkpoints included, are compared with those of an undisturbed run. Exit
statuses and the lines on stderr are checked as well. The campaign fails if a byte differs, if
something is not reported, or if a report takes more than one line.

    {command}

{words}

{table}

Not tried: a loss of power, network file systems, a disk that becomes read-only under a running
launch, hosts on a real network (the two processes are on the loopback).

`tests/test_faults.py` runs the same with one to three tries of each fault. `tests/campaign/` is the
code.
"""


def main(argv):
    """Runs the requested faults; the table goes to stdout, progress to stderr."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args(argv)
    if asked.tries < 1 or not set(asked.only.split(",")) <= set(FAULTS):
        parser.error(f"--tries is at least 1, and --only takes of {', '.join(FAULTS)}")
    # The campaign handles SIGTERM, so that nothing that it started is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nopr-faults-") as folder:
        job = launches.prepare(Path(folder))
        _say(f"the job without a fault: {job.seconds:.1f} s")
        rows = [_attempt(job, name, asked) for name in asked.only.split(",")]
    minutes = (time.monotonic() - started) / 60
    print(table(rows))
    if asked.page:
        command = f"python -m campaign --tries={asked.tries} --seed={asked.seed}"
        words = f"{_machine()} The job alone takes {job.seconds:.1f} s, all took {minutes:.1f} min."
        command = f"make faults          # PYTHONPATH=tests {command}"
        asked.page.write_text(
            _PAGE.format(command=command, words=textwrap.fill(words, 100), table=table(rows))
        )
    return 0


def _attempt(job, name, asked):
    tries = max(1, round(FAULTS[name].tries * asked.tries / 50))
    started = time.monotonic()
    row = FAULTS[name].attempt(job, tries, random.Random(f"{asked.seed} {name}"))
    _say(f"{name}: {row.tries} tries in {time.monotonic() - started:.0f} s: {row.outcome}")
    return row


def table(rows):
    """The rows as Markdown."""
    lines = ["| fault | tries | outcome |", "| --- | ---: | --- |"]
    lines += [f"| {row.fault} | {row.tries} | {row.outcome} |" for row in rows]
    return "\n".join(lines)


def _machine():
    """Commit, versions, date and machine, in a sentence or two."""
    commit = "no commit"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        changes = " with changes" if _git("status", "--porcelain") else ""
        commit = f"commit {_git('rev-parse', '--short=10', 'HEAD')}{changes}"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    return (
        f"Run on {datetime.now(UTC):%Y-%m-%d}, {commit}, Python {platform.python_version()}, "
        f"{versions}; {platform.system()} {platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} CPU cores, NPROC=2."
    )


def _git(*words):
    command = ["git", "-C", str(launches.ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _say(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
