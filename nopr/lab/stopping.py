"""Signals to stop as exceptions in the main thread, that no callback can swallow.

Python drops an exception that a signal handler raises where there is nobody to catch it: in a
callback of the garbage collector (JAX has one) or in a `__del__`. The run would then go on as if it
had not been told to stop. So such places are left alone for a moment, and where what was raised is
gone without having come to the end of the run, it is raised again.
"""

from __future__ import annotations

import signal
import types
import weakref
from typing import Any

_SWALLOWING = ("_xla_gc_callback", "__del__")
_AWAY_SECONDS = 0.01
_AGAIN_SECONDS = 1.0


class Terminated(BaseException):
    """SIGTERM came."""


class _Interrupted(KeyboardInterrupt):
    """SIGINT came; unlike its base, it can be referred to weakly."""


_KINDS = {signal.SIGTERM: Terminated, signal.SIGINT: _Interrupted}


class _Last:
    """What the newest signal was to raise, and what it raised."""

    kind: type[BaseException] = Terminated
    stop: Any = None  # a weak reference; None where it was put off


def listen() -> None:
    """From now on SIGTERM raises `Terminated`, and SIGINT, unless ignored, KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGALRM, _on_alarm)


def ignore() -> None:
    """From now on neither does anything; for the end, when all is done and said."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def status(stop: BaseException) -> int:
    """The exit status of a program that ends because of it."""
    return 128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)


def _on_signal(number: int, frame: types.FrameType | None) -> None:
    _Last.kind = _KINDS[signal.Signals(number)]
    _stop(frame)


def _on_alarm(number: int, frame: types.FrameType | None) -> None:
    del number
    if _Last.stop is None or _Last.stop() is None:
        _stop(frame)
    else:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _stop(frame: types.FrameType | None) -> None:
    if _would_be_swallowed(frame):
        _Last.stop = None
        signal.setitimer(signal.ITIMER_REAL, _AWAY_SECONDS)
        return
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
    stop = _Last.kind()
    _Last.stop = weakref.ref(stop)
    try:
        raise stop
    finally:
        del stop  # or it would live on in its own traceback


def _would_be_swallowed(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in _SWALLOWING:
            return True
        frame = frame.f_back
    return False
