"""Stop signals as exceptions in the main thread, and an end within seconds in any case.

Python drops an exception that a signal handler raises in a callback of the garbage collector (JAX
has one) or in a `__del__`; it is then raised again. A main thread that does not react, as in a long
call to JAX, is not waited for.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

_AGAIN_SECONDS = 0.01
_GRACE_SECONDS = 20.0


class Terminated(BaseException):
    """SIGTERM was received."""


_KINDS = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}
_received: list[type[BaseException]] = []


def listen(unheard: Callable[[], Any] | None = None) -> None:
    """Makes SIGTERM raise `Terminated`, and SIGINT, unless ignored, KeyboardInterrupt.

    Args:
      unheard: Function called in a thread if the program still runs 20 seconds after a signal; it
        then exits with the signal's status.
    """
    signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGALRM, _on_signal)
    sys.unraisablehook = _on_unraisable
    if unheard is not None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reader, unheard), daemon=True).start()


def ignore() -> None:
    """Ignores both signals; for the end, when everything is written."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in _KINDS:
        signal.signal(number, signal.SIG_IGN)


def status(stop: BaseException) -> int:
    """The exit status of a program that ends because of `stop`."""
    return 128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)


def _on_signal(number: int, frame: types.FrameType | None) -> None:
    del frame
    if number in _KINDS:
        _received.append(_KINDS[signal.Signals(number)])
    raise _received[-1]


def _on_unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Raises a stop that was dropped again; hides the errors of what it left half built."""
    if not _received:
        sys.__unraisablehook__(lost)
    elif issubclass(lost.exc_type, _received[-1]):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _watch(reader: int, unheard: Callable[[], Any]) -> None:
    number = 0
    while number not in _KINDS:
        number = os.read(reader, 1)[0]
    time.sleep(_GRACE_SECONDS)
    unheard()
    os._exit(128 + number)
