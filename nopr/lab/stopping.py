"""Stop signals as exceptions in the main thread that no callback can swallow.

Python drops an exception that a signal handler raises where nothing can catch it: in a callback of
the garbage collector (JAX has one) or in a `__del__`. The run would then continue as if it had not
been stopped. So in such places the exception is postponed for a moment, and one that was lost is
raised again. If the main thread does not return to Python, as in a long call to JAX, the program
exits without it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

_SWALLOWING = ("_xla_gc_callback", "__del__")
_AWAY_SECONDS = 0.01
_AGAIN_SECONDS = 1.0
_GRACE_SECONDS = 20.0


class Terminated(BaseException):
    """SIGTERM was received."""


class _Interrupted(KeyboardInterrupt):
    """SIGINT was received; unlike its base class, it supports weak references."""


_KINDS = {signal.SIGTERM: Terminated, signal.SIGINT: _Interrupted}


class _Last:
    """The exception type of the newest signal, and the exception that it raised."""

    kind: type[BaseException] = Terminated
    stop: Any = None  # a weak reference; None if postponed
    heard = False  # whether the main thread has seen a signal


def listen(unheard: Callable[[], Any] | None = None) -> None:
    """Makes SIGTERM raise `Terminated`, and SIGINT, unless ignored, KeyboardInterrupt.

    Args:
      unheard: Function called in a thread if the main thread has not handled a signal within 20
        seconds; the program then exits with the signal's status.
    """
    signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGALRM, _on_alarm)
    if unheard is not None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reader, unheard), daemon=True).start()


def ignore() -> None:
    """Ignores both signals; for the end, when everything is written."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def status(stop: BaseException) -> int:
    """The exit status of a program that ends because of `stop`."""
    return 128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)


def _watch(reader: int, unheard: Callable[[], Any]) -> None:
    number = 0
    while number not in _KINDS:
        number = os.read(reader, 1)[0]
    time.sleep(_GRACE_SECONDS)
    if not _Last.heard:
        unheard()
        os._exit(128 + number)


def _on_signal(number: int, frame: types.FrameType | None) -> None:
    _Last.kind, _Last.heard = _KINDS[signal.Signals(number)], True
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
        del stop  # its own traceback would keep it alive


def _would_be_swallowed(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in _SWALLOWING:
            return True
        frame = frame.f_back
    return False
