"""Printing that never fails."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def say(line: str) -> None:
    """Prints one line to stderr at once."""
    print(line, file=sys.stderr, flush=True)


def guard_streams() -> None:
    """Makes printing never fail.

    Characters that the terminal cannot encode are escaped; output to a pipe that nobody reads, a
    full disk or a closed stream is dropped.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file opened would take its place
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = guarded(1, sys.stdout), guarded(2, sys.stderr)


def guarded(descriptor: int, like: Any = None) -> io.TextIOWrapper:
    """A text stream to a file descriptor that drops what cannot be written."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Dropping(descriptor, "wb", closefd=False)),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


class _Dropping(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written
