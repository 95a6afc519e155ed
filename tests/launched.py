"""Experiments launched as by a user: in another process, with its own JAX."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DATED = {"LOCK", "DONE", "environment.json"}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def start(words):
    """Starts a launch."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.launch", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(words):
    """Launches and waits for the end."""
    process = start(words)
    out, err = process.communicate(timeout=500)
    return Ended(process.returncode, out, err)


def kill_when(pattern, folder, words, *, number=signal.SIGKILL):
    """Launches, and stops it by a signal as soon as a file like `pattern` exists in `folder`."""
    process = start(words)
    try:
        limit = time.monotonic() + 500
        while process.poll() is None and time.monotonic() < limit:
            if any(folder.glob(pattern)):
                process.send_signal(number)
                process.wait(timeout=60)
                break
            time.sleep(0.005)
    finally:
        process.kill()
        out, err = process.communicate()
    expected = -number if number == signal.SIGKILL else 128 + number
    assert process.returncode == expected, (out, err)
    assert not (folder / "DONE").exists()
    return Ended(process.returncode, out, err)


def contents(folder):
    """The bytes of all that a run leaves, except what depends on the time and the process."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in DATED
    }
