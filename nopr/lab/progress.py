"""Progress at the terminal: work done, rate, time left and failures."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator
from typing import Any

from tqdm import tqdm

from nopr import processes
from nopr.typing import Progress, Status

LINE_SECONDS = 30.0  # between lines, without a terminal to draw a bar on


def bar(**options: Any) -> tqdm:
    """A tqdm bar that only process 0 draws, and only on a terminal."""
    return tqdm(disable=None if processes.index() == 0 else True, **options)


@contextlib.contextmanager
def shown(description: str, *, unit: str) -> Generator[Progress]:
    """Shows the progress of a sweep or run in process 0, for the share of that process.

    On a terminal it is a bar, elsewhere a line every half minute. Cases read from the store count
    as done, but not in the rate.
    """
    if processes.count() > 1:
        description = f"{description} (process 0 of {processes.count()})"
    if processes.index() > 0:
        yield lambda status: None
    elif not sys.stderr.isatty():
        yield _Lines(description, unit)
    else:
        with bar(desc=description, unit=unit) as drawn:
            yield lambda status: _draw(drawn, status)


def line(description: str, status: Status, *, unit: str) -> str:
    """One line, such as `finetuning: 120 of 400 runs, 3.2 a second, 0:01:27 left`."""
    words = [f"{description}: {status.done} of {status.total} {unit}s"]
    if status.per_second > 0:
        left = max(0, round(status.seconds_left))
        words.append(f"{status.per_second:.3g} a second")
        words.append(f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
    if status.failures:
        words.append(f"{status.failures} not finite")
    return ", ".join(words)


class _Lines:
    def __init__(self, description: str, unit: str):
        self._description, self._unit, self._shown = description, unit, time.monotonic()

    def __call__(self, status: Status) -> None:
        if time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            print(line(self._description, status, unit=self._unit), file=sys.stderr, flush=True)


def _draw(shown: tqdm, status: Status) -> None:
    shown.total, shown.initial, shown.n = status.total, status.loaded, status.done
    if status.failures:
        shown.set_postfix_str(f"{status.failures} not finite", refresh=False)
    shown.refresh()
