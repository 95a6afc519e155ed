"""A launch that is killed or stopped, and two in one directory."""

from __future__ import annotations

import signal
import time

from campaign import launches
from campaign.launches import Row, expect


def killed(job, tries, rng):
    """SIGKILL at random moments; the same command resumes until it is killed again or done."""
    phases, halves, runs = [], 0, 0
    directory = job.new()
    while len(phases) < tries:
        with launches.stopping(launches.start(job.folder, directory)) as process:
            launches.wait_for_moment(job, process, directory, rng)
            began = launches.holds(process, directory)
            process.send_signal(signal.SIGKILL)
            ended = launches.finish(process)
        if ended.code == -signal.SIGKILL:
            phases.append(launches.phase(directory) if began else "start-up")
            halves += launches.torn(directory)
            if phases[-1] != "end":
                continue
            launches.check_same(job, directory, ended)
        else:
            launches.check_whole(job, directory, ended)
        launches.clear(directory)
        directory, runs = job.new(), runs + 1
    _end(job, directory)
    return Row(
        "SIGKILL at random moments",
        tries,
        f"{tries} survived: {runs + 1} runs resumed to the same bytes (killed in: "
        f"{launches.counted(phases)}; a half-written file was left {halves} times)",
    )


def stopped(job, tries, rng, *, number=signal.SIGTERM):
    """A stop signal at random moments, reported in one line; the run is then resumed."""
    code, name = 128 + number, signal.Signals(number).name
    phases, early, runs, longest = [], 0, 0, 0.0
    directory = job.new()
    while len(phases) + early < tries:
        with launches.stopping(launches.start(job.folder, directory)) as process:
            launches.wait_for_moment(job, process, directory, rng)
            sent = time.monotonic()
            begun = launches.holds(process, directory)
            process.send_signal(number)
            ended = launches.finish(process)
        if ended.code == code:
            longest = max(longest, time.monotonic() - sent)
            said = [launches.stopped_line(directory)]
            expect(ended.lines == said, f"{name} was not reported: {said}", ended, directory)
            phases.append(launches.phase(directory))
            expect(not launches.torn(directory), "half-written files were left", ended, directory)
        elif ended.code == -number and not begun:
            early += 1  # before Python saw the signal
        else:
            launches.check_whole(job, directory, ended)
            launches.clear(directory)
            directory, runs = job.new(), runs + 1
    _end(job, directory)
    before = f"; {early} came before the program had begun and ended it at once" if early else ""
    return Row(
        f"{name} at random moments",
        tries,
        f"{len(phases)} stopped, exit status {code} and one line on how to resume, within "
        f"{longest:.1f} s ({launches.counted(phases)}){before}; {runs + 1} runs resumed to the "
        "same bytes",
    )


def interrupted(job, tries, rng):
    """Ctrl-C."""
    return stopped(job, tries, rng, number=signal.SIGINT)


def doubled(job, tries, rng):
    """A second launch in the directory of a live one, also at the same moment."""
    for index in range(tries):
        directory = job.new()
        first = launches.start(job.folder, directory)
        with launches.stopping(first):
            if index % 3 < 2:
                launches.wait_for_moment(job, first, directory, rng)
                launches.wait_for(first, directory, "LOCK")
            second = launches.start(job.folder, directory)
            with launches.stopping(second):
                ended = [launches.finish(second), launches.finish(first)]
        pids = {0: second.pid, 1: first.pid}
        done = [i for i in (0, 1) if ended[i].code == 0]
        expect(done, "none of the two ended", ended[0], directory)
        if len(done) == 1:
            refused = ended[1 - done[0]]
            expect(refused.code == 1, "the second was not refused", refused, directory)
            said = f"error: {str(directory)!r} is in use by another run (process {pids[done[0]]}). "
            expect(
                refused.lines == [f"{said}Wait until it ends, or choose another work directory."],
                "not reported",
                refused,
            )
        else:  # The first had just ended: the second reported it.
            expect("Nothing was run" in ended[0].out, "run twice", ended[0], directory)
        launches.check_whole(job, directory, ended[done[-1]])
        launches.clear(directory)
    return Row(
        "two launches in one directory",
        tries,
        f"{tries} times the second was refused with one line, and the first left the same bytes",
    )


def _end(job, directory):
    """Resumes to the end without a fault."""
    ended = launches.run(job, directory)
    expect(ended.code == 0, "it did not resume to the end", ended, directory)
    expect(not ended.lines, "something else was printed", ended, directory)
    launches.check_same(job, directory, ended)
    launches.clear(directory)
