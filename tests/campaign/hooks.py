"""Hooks that the environment sets inside the job: a disk that fills up, a clock set back.

CAMPAIGN_FILL=PLACE   fills the disk of the run directory when the job comes to PLACE
CAMPAIGN_LEAVE=PAGES  but for so many pages of 4096 bytes
CAMPAIGN_CLOCK=PLACE  sets the clock of the process back by a day there
CAMPAIGN_TALK=1       a progress line after every chunk
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sys
import time

from nopr.lab import progress

BALLAST = "ballast"
DAY = 86400
PAGE = 4096


def begin():
    """Sets up what holds from the start."""
    if os.environ.get("CAMPAIGN_TALK"):
        progress.LINE_SECONDS = 0.0


def at(place, directory):
    """Runs the hook of a place when the job reaches it."""
    if os.environ.get("CAMPAIGN_FILL") == place:
        fill(directory.parent / BALLAST, leave=int(os.environ.get("CAMPAIGN_LEAVE", "0")))
    if os.environ.get("CAMPAIGN_CLOCK") == place:
        set_back()


def fill(path, *, leave=0):
    """Leaves no page free on the disk of a file, or some."""
    size = 1 << 16
    with open(path, "ab", buffering=0) as file:
        while size:
            try:
                size = size if file.write(b"\0" * size) == size else size // 2
            except OSError:
                size //= 2
    os.truncate(path, max(0, path.stat().st_size // PAGE - leave) * PAGE)


def set_back():
    """Sets all Python clocks of the date back by a day, but not those of intervals."""
    real, real_ns = time.time, time.time_ns

    class Yesterday(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) - dt.timedelta(days=1)

    time.time = lambda: real() - DAY
    time.time_ns = lambda: real_ns() - DAY * 10**9
    before = dt.datetime
    for module in list(sys.modules.values()):
        with contextlib.suppress(Exception):
            if vars(module).get("datetime") is before:
                module.datetime = Yesterday
            if vars(module).get("time") is real:
                module.time = time.time
