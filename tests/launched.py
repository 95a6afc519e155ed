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


def start(words, *, cache):
    """Starts a launch; `cache` keeps compiled programs, as compiling is most of a tiny run."""
    quick = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.launch", *words],
        cwd=ROOT,
        env={**os.environ, **quick},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(words, *, cache):
    """Launches and waits for the end."""
    process = start(words, cache=cache)
    out, err = process.communicate(timeout=500)
    return Ended(process.returncode, out, err)


def kill_when(pattern, folder, words, *, cache, number=signal.SIGKILL):
    """Launches, and stops it by a signal as soon as a file like `pattern` exists in `folder`."""
    process = start(words, cache=cache)
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
