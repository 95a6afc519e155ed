"""A run of two processes, one of which is lost, stopped or different."""

from __future__ import annotations

import signal
import socket
import time

from campaign import launches
from campaign.launches import Row, expect

LOST = 75
PATIENCE = 5  # seconds
_SLACK = 25.0  # seconds over the patience, on a busy machine
_LOST_LINE = (
    "error: Another process of this run was lost; what is done is in {}. "
    "The same command on every host resumes from there."
)
_ALONE_LINE = (
    "error: The other processes did not join within {} seconds. Start the same command on every "
    "host, with the address of process 0 and a --process of its own."
)


def begin(job, directory, *, patience=PATIENCE, only=(0, 1), variables=({}, {})):
    """Starts the two processes of a run, or one of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--patience={patience}"]
    return [
        launches.start(
            job.folder,
            directory,
            *(*common, f"--process={i}", *variables[i].get("words", ())),
            **{name: value for name, value in variables[i].items() if name != "words"},
        )
        for i in only
    ]


def together(job, directory, **options):
    """A run of both from start to end."""
    pair = begin(job, directory, **options)
    with launches.stopping(*pair):
        return [launches.finish(process) for process in pair]


def killed(job, tries, rng):
    """SIGKILL of either process at random moments."""
    return _series(job, tries, rng, "SIGKILL of one of two processes", _kill)


def stopped(job, tries, rng):
    """SIGTERM to one of two processes."""
    return _series(job, tries, rng, "SIGTERM to one of two processes", _terminate)


def silent(job, tries, rng):
    """One of two processes is stopped (SIGSTOP): it is silent and does not end."""
    return _series(job, tries, rng, "one of two processes falls silent (SIGSTOP)", _silence)


def _series(job, tries, rng, name, strike):
    """Strikes one of two again and again until the run is done, then starts over."""
    phases, runs, longest, directory = [], 0, 0.0, job.new()
    while len(phases) < tries:
        pair = begin(job, directory)
        with launches.stopping(*pair):
            _wait_for_moment(job, pair, directory, rng)
            index = rng.randrange(2)
            struck, other = pair[index], pair[1 - index]
            alive = struck.poll() is None and other.poll() is None
            if alive:
                struck_at = time.monotonic()
                finish_struck = strike(struck)
                ended = launches.finish(other)
                took = time.monotonic() - struck_at
                expect(finish_struck(ended), "done by one alone", ended, directory)
            done = [launches.finish(process) for process in pair if alive is False]
        if done:
            ended = done[0]
        elif ended.code == LOST:
            said = _LOST_LINE.format(directory)
            expect(_is_only(ended, said), f"not reported: {said}", ended, directory)
            expect(took < PATIENCE + _SLACK, f"it took {took:.1f} s", ended)
            phases.append(launches.phase(directory))
            longest = max(longest, took)
        else:
            expect(ended.code == 0, "neither lost nor done", ended, directory)
        if (directory / "DONE").exists() and all(one.code == 0 for one in done):
            launches.check_same(job, directory, ended)
            launches.clear(directory)
            directory, runs = job.new(), runs + 1
    both = together(job, directory)
    for ended in both:
        expect(ended.code == 0 and not ended.lines, "both did not resume", ended, directory)
    launches.check_same(job, directory, both[0])
    launches.clear(directory)
    return Row(
        name,
        tries,
        f"{tries} times the other ended with one line and exit status {LOST}, the slowest after "
        f"{longest:.1f} s (patience {PATIENCE} s; {launches.counted(phases)}); {runs + 1} runs "
        "resumed to the bytes of one process",
    )


def _is_only(ended, said):
    """Whether one line was printed; where JAX aborted, it names its log as well."""
    return len(ended.lines) == 1 and ended.lines[0].startswith(said)


def _kill(process):
    process.kill()

    def finish(other):
        del other
        ended = launches.finish(process)
        expect(ended.code == -signal.SIGKILL, "not killed", ended)
        return True

    return finish


def _terminate(process):
    process.send_signal(signal.SIGTERM)

    def finish(other):
        ended = launches.finish(process)
        expect(ended.code in (0, 143, LOST), "the exit status of the one that was signaled", ended)
        expect(len(ended.lines) == (ended.code != 0), "not one line", ended)
        return ended.code or not other.code  # it came too late for both, or for none

    return finish


def _silence(process):
    process.send_signal(signal.SIGSTOP)

    def finish(other):
        del other
        process.kill()
        launches.finish(process)
        return True

    return finish


def _wait_for_moment(job, pair, directory, rng):
    """A moment after both have found each other; before, they wait ten times as long."""
    limit = time.monotonic() + launches.TIMEOUT
    while not _noted(directory, pair[0]) and pair[0].poll() is None:
        expect(time.monotonic() < limit, "the two did not find each other", None, directory)
        time.sleep(0.005)
    launches.wait_for_moment(job, pair[0], directory, rng, anywhere=0)


def _noted(directory, process):
    """Whether the first process holds the directory in this launch: then both are there."""
    try:
        return (directory / "LOCK").read_text().strip() == str(process.pid)
    except OSError:
        return False


# --- Others ------------------------------------------------------------------------------------


def both_stopped(job, tries, rng):
    """SIGTERM to both at once, as a scheduler does."""
    codes, longest, directory = [], 0.0, job.new()
    for _ in range(tries):
        pair = begin(job, directory)
        with launches.stopping(*pair):
            _wait_for_moment(job, pair, directory, rng)
            sent = time.monotonic()
            for process in pair:
                process.send_signal(signal.SIGTERM)
            both = [launches.finish(process) for process in pair]
        longest = max(longest, time.monotonic() - sent)
        for ended in both:
            right = {143: launches.stopped_line(directory), LOST: _LOST_LINE.format(directory)}
            expect(ended.code in (0, *right), "the exit status", ended, directory)
            if ended.code:
                expect(_is_only(ended, right[ended.code]), "not one line", ended, directory)
            codes.append(ended.code)
        if (directory / "DONE").exists():
            launches.check_same(job, directory, both[0])
            launches.clear(directory)
            directory = job.new()
    for ended in together(job, directory):
        expect(ended.code == 0, "not resumed", ended, directory)
    launches.check_same(job, directory)
    launches.clear(directory)
    counts = ", ".join(f"{codes.count(code)} with {code}" for code in sorted(set(codes)))
    return Row(
        "SIGTERM to both processes",
        tries,
        f"all ended with one line within {longest:.1f} s (exit statuses: {counts}); "
        "the same bytes at the end",
    )


def alone(job, tries, rng):
    """A process whose peer never joins."""
    longest = 0.0
    for index in range(tries):
        directory = job.new()
        (process,) = begin(job, directory, patience=1, only=[index % 2])
        started = time.monotonic()
        with launches.stopping(process):
            ended = launches.finish(process)
        longest = max(longest, time.monotonic() - started)
        line = _ALONE_LINE.format(10)
        expect(
            ended.code == LOST and ended.lines == [line], f"not reported: {line}", ended, directory
        )
        expect(not directory.exists(), "something was written", ended, directory)
        launches.clear(directory)
    return Row(
        "the other process never comes",
        tries,
        f"{tries} ended with one line and exit status {LOST} (patience 1 s, so 10 s to come up; "
        f"the slowest took {longest:.1f} s from its start)",
    )


def different(job, tries, rng):
    """Two processes that do not run the same: another NPROC, another config."""
    longest = 0.0
    scratch = job.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    for index in range(tries):
        directory = job.new()
        started = time.monotonic()
        pair, what = [
            ([{"NPROC": 2}, {"NPROC": 3}], "machine.threads"),
            ([{"words": ["--config.rate=0.1"]}, {"words": ["--config.rate=0.2"]}], "config.rate"),
        ][index % 2]
        both = together(job, directory, variables=[{"TMPDIR": scratch, **one} for one in pair])
        longest = max(longest, time.monotonic() - started)
        for ended in both:
            said = len(ended.lines) == 1 and what in ended.lines[0]
            expect(said and ended.code == 1, "not refused with one line", ended, directory)
        expect(not any(directory.glob("stages/**/*")), "it was begun", both[0], directory)
        expect(not any(scratch.iterdir()), "temporary files were left", both[0], scratch)
        launches.clear(directory)
    return Row(
        "two processes that do not run the same (NPROC, config)",
        tries,
        f"{tries} times both refused with one line and exit status 1, within {longest:.1f} s from "
        "their start",
    )
