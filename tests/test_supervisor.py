"""What a child of several processes says is passed on; a loss is not told by JAX's logs."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nopr.lab.supervisor import LOST, Sieve

ROOT = Path(__file__).resolve().parents[1]
POLLED = (
    b"E1121 00:21:56.095788   30200 coordination_service_agent.cc:289] Polled an error from "
    b"coordination service (this can be an error from this or another task).\n"
)
FATAL = (
    b"F1121 00:27:35.173721   32239 client.h:80] Terminating process because the JAX distributed "
    b"service detected fatal errors.\nRPC: /xla.coordination.CoordinationService/RegisterTask\n"
)
LOGS = POLLED + FATAL


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_text_passes_and_logs_of_a_loss_are_kept_back(size):
    said = b"stage: done in 1.0 s\n 40%|####      | 4/10\rEpoch 5\nE flat\nF1\n"
    sieve, shown = Sieve(), b""
    for start in range(0, len(said + POLLED + FATAL), size):
        shown += sieve.feed((said + POLLED + FATAL)[start : start + size], now=0.0)
    assert shown == said
    assert sieve.kept == POLLED + FATAL


def test_a_log_in_the_middle_of_a_line_is_kept_back_too():
    sieve = Sieve()
    assert sieve.feed(b"half a line" + POLLED, now=0.0) == b"half a line"
    assert sieve.kept == POLLED


def test_other_logs_pass():
    other = b"W1121 00:21:56.095788   30200 cpu_client.cc:12] Something else.\n"
    sieve = Sieve()
    assert sieve.feed(other, now=0.0) == other
    assert sieve.kept == b""


def test_logs_are_shown_after_all_when_the_child_goes_on():
    sieve = Sieve()
    assert sieve.feed(POLLED, now=0.0) == b""
    assert sieve.feed(b"more\n", now=5.0) == b""
    assert sieve.feed(b"on\n", now=11.0) == POLLED + b"more\n" + b"on\n"
    assert sieve.kept == b""


def _supervised(work, *, kill=""):
    """Runs the body of a function under `supervise` in a process of its own."""
    code = f"""
import os, signal, sys, threading, time
from experiments import supervisor
supervisor._GRACE_SECONDS = 1.0
def work():
{textwrap.indent(textwrap.dedent(work), "    ")}
{kill}
ended = supervisor.supervise(work)
print(*ended)
"""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=True
    )


# After a second, as from the terminal or a scheduler.
TERM = """
if os.fork() == 0:
    time.sleep(1.0)
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("work", "ended", "said"),
    [
        ("print('hello', file=sys.stderr)\nreturn 0", b"0 False True 0", b"hello\n"),
        ("return 3", b"3 False True 0", b""),
        ("return supervisor.LOST", b"75 False True 0", b""),
        ("os.kill(os.getpid(), signal.SIGKILL)", b"137 False True 9", b""),
        (f"os.write(2, {POLLED!r})\nos.abort()", b"75 False True 0", b""),
        (f"os.write(2, {FATAL!r})\nos.abort()", b"75 False False 0", b""),
        ("os.write(2, b'assert\\n')\nos.abort()", b"134 False True 6", b"assert\n"),
        (
            f"os.write(2, {LOGS!r} + b'error: a\\n')\nreturn 1",
            b"1 False True 0",
            b"error: a\n",
        ),
    ],
)
def test_how_work_ends(work, ended, said):
    done = _supervised(work)
    assert done.stdout.strip() == ended
    assert done.stderr == said
    assert LOST == 75


def test_an_exception_shows_its_traceback_and_ends_with_1():
    done = _supervised("raise KeyError('lost')")
    assert done.stdout.strip() == b"1 False True 0"
    assert done.stderr.splitlines()[-1] == b"KeyError: 'lost'"


def test_a_signal_is_passed_on_and_the_work_may_end_by_itself():
    work = """
    def stop(number, frame):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, stop)
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        return 143
    """
    assert _supervised(work, kill=TERM).stdout.strip() == b"143 False True 0"


def test_work_that_does_not_heed_a_signal_is_killed_in_time():
    work = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(30)
    """
    assert _supervised(work, kill=TERM).stdout.strip() == b"143 True True 0"


def test_the_child_ends_with_its_parent(tmp_path):
    alive = tmp_path / "pid"
    work = f"""
    open({str(alive)!r}, "w").write(str(os.getpid()))
    time.sleep(0.5)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)
    """
    with pytest.raises(subprocess.CalledProcessError):
        _supervised(work)
    process, limit = Path(f"/proc/{alive.read_text()}"), time.monotonic() + 10
    while process.exists() and ") Z " not in (process / "stat").read_text():
        assert time.monotonic() < limit
        time.sleep(0.02)
