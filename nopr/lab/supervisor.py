"""Runs the work of one process of several in a child, and ends it well when another is lost.

When a process dies, JAX ends the others from C++, with pages of logs and an abort. That is bounded
in time and cannot be caught from within; so the work runs in a child, and the parent, which has no
thread and no JAX, passes on what the child says, keeps back what JAX logs of the loss, and says it
in one line. It is for POSIX, where a process can fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

LOST = 75  # the exit status of `work` and of `supervise` when another process was lost

_GRACE_SECONDS = 20.0  # from a signal to the end of the child, which may be inside a long call
_HOLD_SECONDS = 10.0  # how long logs of a loss are kept back before they are shown after all
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOSS = re.compile(
    rb"[WEF]\d{4} [\d:. ]+(coordination_service\w*\.cc|preemption_sync_manager\.cc|client\.h):"
)
_NOISE = re.compile(
    rb"^(?:[IWEF]\d{4} [\d:. ]+\w+\.(?:cc|h):|Additional GRPC error|:\w+:Error received|RPC: )"
    rb"[^\n]*\n?",
    re.MULTILINE,
)
_LOG = re.compile(rb"[WEF](\d{0,4}$|\d{4} [^\n]*$)")


class Ended(NamedTuple):
    """How the work ended."""

    code: int
    """Its exit status; `LOST` where JAX ended it because another process was lost."""
    late: bool
    """Whether it was killed, for it did not come to its end after a signal."""
    came: bool
    """False where the other processes did not come at all."""
    killed_by: int = 0
    """The signal that ended it from outside or from a crash; 0 for an end of its own."""


def supervise(work: Callable[[], int]) -> Ended:
    """Runs `work` in a child process, passing signals on to it, and returns how it ended.

    Args:
      work: Does the work and returns the exit status. It runs in a fork, so nothing that has
        threads, JAX above all, may have been started before.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(writer, 2)
        os.close(writer)
        _work_and_exit(work, parent)
    os.close(writer)
    return _watch(child, reader)


def _work_and_exit(work: Callable[[], int], parent: int) -> NoReturn:
    try:
        os.setpgid(0, 0)  # so that Ctrl-C reaches it once, through the parent
        _end_with(parent)
        code = work()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # No handlers at exit: JAX's would wait for the others, who may wait for this one.
    os._exit(code)


def _end_with(parent: int) -> None:
    """Makes this process end when its parent does, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    else:
        threading.Thread(target=_poll_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _poll_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _watch(child: int, reader: int) -> Ended:
    deadline = float("inf")

    def pass_on(number: int, frame: Any) -> None:
        nonlocal deadline
        del frame
        deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    sieve, status, late = Sieve(), None, False
    heard = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        while True:
            ready = select.select([reader], [], [], 0.2)[0]
            data = os.read(reader, 1 << 16) if ready else b""
            _write(sieve.feed(data, time.monotonic()))
            if status is None:
                ended, found = os.waitpid(child, os.WNOHANG)
                status = os.waitstatus_to_exitcode(found) if ended else None
            if status is not None and not data:
                break
            if time.monotonic() > deadline:
                deadline, late = float("inf"), True
                os.kill(child, signal.SIGKILL)
    finally:
        os.close(reader)
        for number, handler in before.items():
            signal.signal(number, handler)
    return _judged(status, sieve, late)


def _judged(status: int, sieve: Sieve, late: bool) -> Ended:
    if status == LOST or (status == -signal.SIGABRT and sieve.kept):
        return Ended(LOST, late=False, came=b"RegisterTask" not in sieve.kept)
    # What ended in order has said so itself; that JAX saw the others leave as well is no news.
    ordered = status >= 0 or late
    _write((_NOISE.sub(b"", sieve.kept) if ordered else sieve.kept) + sieve.tail)
    if late and status == -signal.SIGKILL:
        return Ended(128 + signal.SIGTERM, late=True, came=True)
    if status >= 0:
        return Ended(status, late=False, came=True)
    return Ended(128 - status, late=False, came=True, killed_by=-status)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(2, data) :]


class Sieve:
    """Passes on what a child writes to stderr, but keeps back what JAX logs of a lost process.

    Attributes:
      kept: What was kept back, from the first such line on.
      tail: The begin of a line that may become one.
    """

    def __init__(self) -> None:
        self.kept, self.tail, self._since = b"", b"", 0.0

    def feed(self, data: bytes, now: float) -> bytes:
        """Takes what was written and returns what may be shown; `now` in seconds."""
        if self.kept and now - self._since > _HOLD_SECONDS:
            shown, self.kept = self.kept, b""  # the child goes on, so it was no loss
            return shown + data
        if self.kept:
            self.kept += data
            return b""
        text = self.tail + data
        found = _LOSS.search(text)
        if found:
            self.kept, self.tail, self._since = text[found.start() :], b"", now
            return text[: found.start()]
        # A log line that is not whole yet may become one of a loss.
        start = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        self.tail = text[start:] if _LOG.match(text[start:]) else b""
        return text[: len(text) - len(self.tail)]
