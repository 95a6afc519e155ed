"""Two devices, or two processes, sweep tiny nets in half the time of one.

21-parameter nets are trained on 1,792 datasets from 64 initializations: `sweeps.run` in blocks of
1,792 lanes, each too small to use more than a core, and 8 chunks. Every row is one process or two
on the same two cores; all are started and compiled beforehand and timed in turns. *Devices*: one
process on both cores with 1 or 2 virtual CPU devices, its thread pool fixed at 2 (NPROC).
*Processes*: one on one core against two on a core each, connected through `nopr.processes` on the
loopback; and two that are not connected and do half each, which shows what the two cores allow. One
and two must give the same bits. Goal: 2 processes at 90% of perfect scaling where two cores allow
it.

A second table has 8 seeds of 784-300-100-10 on random images, one seed per block. Their matrix
products use both cores from one device, so that only the processes, bound to a core each, can
scale. About a minute.

    python -m experiments.benchmarks.sweeps_scale
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
WORK = {  # arguments of `_sweep_worker`: name, blocks, steps
    "tiny nets, 64 x 1,792 trainings of 500 steps": ("cube", 64, 500),
    "784-300-100-10, 8 trainings of 100 steps": ("images", 8, 100),
}
REPEATS = 5
LIMIT_SECONDS = 300  # for a table, after which its processes are ended
FLAG = "--xla_force_host_platform_device_count"


class Arm(NamedTuple):
    """One way to spread a sweep.

    Attributes:
      processes: Arguments of each of its processes.
      devices: Number of virtual devices of each process.
      threads: Size of XLA's thread pool in each.
      reference: Arm of one process or device that it is compared with.
      whole: Whether each process ends with the results of all cases.
    """

    processes: Sequence[Sequence[str]]
    devices: int
    threads: int
    reference: str
    whole: bool = True


class Worker(NamedTuple):
    """A process of an arm, and the file of its stderr."""

    process: Any
    errors: IO[str]


class Row(NamedTuple):
    """The answers of an arm, one per repeat.

    Attributes:
      seconds: Wall time of its slower process.
      processor_seconds: Processor time of its processes together; if it does not fill `seconds`,
        something else ran on these cores.
      results: Digests of the results.
    """

    seconds: list[float]
    processor_seconds: list[float]
    results: set[str]


def main(
    *,
    work: Mapping[str, tuple[str, int, int]] = WORK,
    repeats: int = REPEATS,
) -> None:
    """Prints the tables.

    Args:
      work: Work, blocks and steps for `_sweep_worker`, by title of the table.
      repeats: Timed sweeps of each arm, after one that compiles.
    """
    cores = _two_cores()
    for title, (name, blocks, steps) in work.items():
        words = ["--work", name, "--blocks", str(blocks), "--steps", str(steps)]
        arms = make_arms(cores)
        rows = ask_in_turns(arms, words, repeats)
        check_same_bits(arms, rows)
        print(title)
        _print_table(arms, rows)
    print(f"medians of {repeats}, in turns; one and two gave the same bits")
    print("goal: 2 processes with tiny nets at 90% of perfect, where two cores allow it")


def _two_cores() -> list[int]:
    """Two cores to run on; none if a process cannot be bound to one."""
    if not hasattr(os, "sched_setaffinity"):
        print("a process cannot be bound to a core here, so one process may use them all")
        return []
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) == 1:
        print("there is only one core, so two processes cannot be faster")
    return cores


def make_arms(cores: Sequence[int]) -> dict[str, Arm]:
    """The ways to run the work that are compared."""

    def on(*chosen: int) -> list[str]:
        return ["--cores", *map(str, chosen)] if cores else []

    both, first, last = on(*cores), on(*cores[:1]), on(*cores[-1:])
    second = [*last, "--index", "1"]
    port = ["--coordinator", f"127.0.0.1:{_free_port()}"]
    alone = "1 process, 1 core"
    return {
        "1 device": Arm([both], 1, 2, "1 device"),
        "2 devices": Arm([[*both, "--devices", "2"]], 2, 2, "1 device"),
        alone: Arm([first], 1, 1, alone),
        "2 processes, a core each": Arm([[*first, *port], [*second, *port]], 1, 1, alone),
        "2 not connected, half each": Arm(
            [[*first, "--half"], [*second, "--half"]], 1, 1, alone, whole=False
        ),
    }


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def ask_in_turns(arms: Mapping[str, Arm], words: Sequence[str], repeats: int) -> dict[str, Row]:
    """Times every arm `repeats` times, in turns, so that noise meets all alike."""
    rows = {name: Row([], [], set()) for name in arms}
    with contextlib.ExitStack() as stack:
        started = {
            name: [stack.enter_context(_worker(arm, [*words, *more])) for more in arm.processes]
            for name, arm in arms.items()
        }
        stack.callback(lambda: [w.process.stdin.close() for ws in started.values() for w in ws])
        for workers in started.values():
            _ = [_answer(worker) for worker in workers]  # once they have compiled
        for _ in range(repeats):
            for name, workers in started.items():
                for worker in workers:
                    worker.process.stdin.write("again\n")
                    worker.process.stdin.flush()
                found = [_answer(worker) for worker in workers]
                rows[name].seconds.append(max(answer["seconds"] for answer in found))
                used = sum(answer["processor_seconds"] for answer in found)
                rows[name].processor_seconds.append(used)
                rows[name].results.update(answer["sha256"] for answer in found)
    return rows


@contextlib.contextmanager
def _worker(arm: Arm, words: Sequence[str]) -> Iterator[Worker]:
    """A process that answers; it ends after its input, and at the latest after LIMIT_SECONDS."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}={arm.devices}".strip()
    settings = {"JAX_PLATFORMS": "cpu", "NPROC": str(arm.threads), "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "experiments.benchmarks._sweep_worker", *words]
    with tempfile.TemporaryFile("w+") as errors:
        process: Any = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        timer = threading.Timer(LIMIT_SECONDS, process.kill)
        timer.start()
        try:
            yield Worker(process, errors)
            process.wait()  # the input of all is closed; connected ones end together
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()


def _answer(worker: Worker) -> dict[str, Any]:
    for line in worker.process.stdout:
        if line.startswith("{"):  # libraries may print there as well
            return json.loads(line)
    status = worker.process.wait()
    worker.errors.seek(0)
    last = (worker.errors.read().strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(f"A process of the benchmark ended with exit status {status}: {last}")


def check_same_bits(arms: Mapping[str, Arm], rows: Mapping[str, Row]) -> None:
    """Raises RuntimeError if the bits of an arm differ from those of its reference."""
    for name, arm in arms.items():
        found = rows[name].results | rows[arm.reference].results
        if arm.whole and len(found) > 1:
            raise RuntimeError(f"{name!r} and {arm.reference!r} gave other bits: {sorted(found)}.")


def _print_table(arms: Mapping[str, Arm], rows: Mapping[str, Row]) -> None:
    print(f"{'':28}{'min s':>8}{'median s':>10}{'speedup':>9}{'of perfect':>12}{'processor s':>13}")
    for name, row in rows.items():
        # Each is divided by the time beside it, so that a slow moment hits both.
        ones = rows[arms[name].reference].seconds
        speedup = statistics.median(one / mine for one, mine in zip(ones, row.seconds, strict=True))
        perfect = f"{speedup / 2:.0%}" if arms[name].reference != name else ""
        print(
            f"{name:28}{min(row.seconds):8.3f}{statistics.median(row.seconds):10.3f}"
            f"{speedup:9.2f}{perfect:>12}{statistics.median(row.processor_seconds):13.3f}"
        )


if __name__ == "__main__":
    main()
