"""A clock that is set back."""

from __future__ import annotations

import os
import re
import time

from campaign import damage, hooks, launches
from campaign.launches import Row, expect

_PROGRESS = re.compile(r"nets: (\d+) of 80 nets(?:, [\d.e+]+ a second, (\d+):(\d\d):(\d\d) left)?")


def files_of_tomorrow(job, tries, rng):
    """The clock was a day ahead when the first half of a run was written."""
    for index in range(tries):
        directory = damage.copied(job)
        tomorrow = time.time() + hooks.DAY
        for path in directory.rglob("*"):
            when = tomorrow - (rng.uniform(0, 3600) if index % 2 else 0)
            os.utime(path, (when, when))
        launches.check_whole(job, directory, launches.run(job, directory))
        launches.clear(directory)
    return Row(
        "files dated a day ahead", tries, f"{tries} half-done runs resumed to the same bytes"
    )


def set_back(job, tries, rng):
    """The clock of the process is set back by a day in the middle of the run."""
    places = ["nets:0", "nets:40", "long:0", "long:5", "metrics:10", "summary"]
    lines = 0
    for _ in range(tries):
        directory = job.new()
        place = rng.choice(places)
        ended = launches.run(job, directory, CAMPAIGN_CLOCK=place, CAMPAIGN_TALK=1)
        shown = [line for line in ended.lines if line.startswith("nets: ")]
        for line in shown:
            found = _PROGRESS.fullmatch(line)
            sane = found and (found[2] is None or (found[2] == "0" and int(found[3]) < 10))
            expect(sane, f"progress is nonsense: {line}", ended)
        done = [int(_PROGRESS.fullmatch(line)[1]) for line in shown]
        expect(done == sorted(done) and done[-1] == 80, "progress went back", ended)
        launches.check_whole(job, directory, ended, shown)
        launches.clear(directory)
        lines += len(shown)
    return Row(
        "the clock is set back by a day in the middle",
        tries,
        f"{tries} runs left the same bytes; their {lines} lines of progress gave sane rates and "
        "times",
    )
