"""Files that were altered since they were written, and files of another run."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

from campaign import launches
from campaign.launches import Row, expect


def copied(job):
    """A copy of the run that was killed half-way, to be resumed from where the copy is."""
    directory = job.new()
    shutil.copytree(job.folder / "half", directory)
    return directory


def truncated(path, rng):
    """Cuts a file somewhere; half of the time to nothing or by its last byte."""
    size = path.stat().st_size
    keep = rng.choice([0, size - 1, rng.randrange(size), rng.randrange(size)])
    with open(path, "r+b") as file:
        file.truncate(keep)
    return f"cut to {keep} of {size} bytes"


def flipped(path, rng):
    """Flips a bit somewhere in a file."""
    data = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} of {len(data)} flipped"


WAYS = {"truncated": truncated, "bit-flipped": flipped}


def _tried(job, tries, rng, choose, said):
    """Damages a file of a half-done run and resumes it; returns the row's counts."""
    for _ in range(tries):
        directory = copied(job)
        path, way = choose(directory)
        what = f"{path.relative_to(directory)}: {WAYS[way](path, rng)}"
        ended = launches.run(job, directory)
        expect(ended.code == 0, f"{what}: not survived", ended, directory)
        known = len(ended.lines) == 1 and said(directory, path, ended.lines[0])
        expect(known, f"{what}: not reported in one line that names it", ended)
        launches.check_same(job, directory, ended)
        launches.clear(directory)


def _of_a_result(directory, path, line):
    result = re.escape(str(path.with_suffix(".npz")))
    damaged = rf"{result} is damaged \(it does not match its seal\); it is not used\."
    altered = rf"{result} is out of date: .+; it is not used\."
    return re.fullmatch(damaged if path.suffix == ".npz" else f"{damaged}|{altered}", line)


_of_a_checkpoint = _of_a_result


def chunk(job, tries, rng):
    """A chunk of a sweep: its data or its seal."""
    return _rows(job, tries, rng, "chunk", "stages/nets/*.*", _of_a_result, "computed again")


def stage(job, tries, rng):
    """A stage: its data or its seal."""
    return _rows(job, tries, rng, "stage", "stages/data.*", _of_a_result, "computed again")


def checkpoint(job, tries, rng):
    """The newest checkpoint: its arrays or its seal."""
    said = _of_a_checkpoint
    return _rows(job, tries, rng, "checkpoint", "checkpoints/*/7.*", said, "the one before used")


def _rows(job, tries, rng, name, pattern, said, remedy):
    ways, kinds = Counter(), Counter()

    def choose(directory):
        found = sorted(path for path in directory.glob(pattern) if path.is_file())
        expect(len(found) > 1, f"no {pattern}", None, directory)
        kind = rng.choice(sorted({_kind(path) for path in found}))
        path = rng.choice([path for path in found if _kind(path) == kind])
        way = "truncated" if sum(ways.values()) % 2 == 0 else "bit-flipped"
        ways[way] += 1
        kinds[kind] += 1
        return path, way

    _tried(job, tries, rng, choose, said)
    counts = ", ".join(f"{way} {count}" for way, count in sorted(ways.items()))
    files = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    return Row(
        f"damaged {name}",
        tries,
        f"{tries} reported in one line with the file's name, {remedy}, the same bytes at the end "
        f"({counts}; {files})",
    )


def _kind(path):
    return "data" if path.suffix == ".npz" else "seal"


def summary(job, tries, rng):
    """The summary of a finished run."""
    directory = job.new()
    shutil.copytree(job.folder / "whole", directory)
    for index in range(tries):
        way = list(WAYS)[index % 2]
        what = WAYS[way](directory / "summary.json", rng)
        said = [f"{directory / 'summary.json'} is damaged; making it again."]
        ended = launches.run(job, directory)
        expect(ended.lines == said, f"summary.json {what}: not reported: {said}", ended)
        launches.check_whole(job, directory, ended, said)
    launches.clear(directory)
    return Row(
        "summary.json damaged after the end",
        tries,
        f"{tries} reported and made again, the same bytes",
    )


def configuration(job, tries, rng):
    """config.json: no damage can be repaired, so it is refused, or is harmless."""
    outcomes = Counter()
    for index in range(tries):
        directory = copied(job)
        way = list(WAYS)[index % 2]
        what = WAYS[way](directory / "config.json", rng)
        before = launches.contents(directory)
        ended = launches.run(job, directory)
        if ended.code == 0:  # The variant, which is for readers only.
            outcomes["harmless, and resumed"] += 1
            found = launches.contents(directory) | {"config.json": job.whole["config.json"]}
            expect(found == job.whole, f"config.json {what}: other bytes", ended)
        else:
            one = len(ended.lines) == 1 and "config" in ended.lines[0]
            expect(ended.code == 1 and one, f"config.json {what}: not refused", ended)
            expect(launches.contents(directory) == before, "something changed", ended)
            outcomes["refused with one line"] += 1
        launches.clear(directory)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    return Row("damaged config.json", tries, f"{counts}; nothing changed")


# --- Files of another run ----------------------------------------------------------------------


def foreign(job, tries, rng):
    """A chunk of another config, of other code, or of other cases in the place of one."""
    others = {"config": _other_config, "code": _other_code, "cases": lambda job: None}
    for index in range(tries):
        directory = copied(job)
        names = sorted(path.stem for path in (directory / "stages/nets").glob("*.npz"))
        name, other = rng.sample(names, 2)
        kind = ("config", "code", "cases")[index % 3]
        source = (others[kind](job) or directory) / "stages/nets"
        taken = other if kind == "cases" else name
        for suffix in (".npz", ".json"):
            shutil.copyfile(source / f"{taken}{suffix}", directory / f"stages/nets/{name}{suffix}")
        ended = launches.run(job, directory)
        path = directory / f"stages/nets/{name}.npz"
        said = {
            "config": f"{path} is out of date: config.rate (0.2 there, 0.1 here); it is not used.",
            "code": rf"{path} is out of date: source \('\w+' there, '\w+' here\); it is not used\.",
            "cases": f"{path} is damaged (it does not match its seal); it is not used.",
        }[kind]
        line = said if kind == "code" else re.escape(said)
        known = len(ended.lines) == 1 and re.fullmatch(line, ended.lines[0])
        expect(known, f"a chunk of other {kind} was not reported", ended)
        expect(ended.code == 0, "not survived", ended)
        launches.check_same(job, directory, ended)
        launches.clear(directory)
    return Row(
        "a chunk of another config, of other code, of other cases",
        tries,
        f"{tries} reported with what differs, computed again, the same bytes",
    )


def _other_config(job):
    return _other(job, "other_config", "--config.rate=0.2")


def _other_code(job):
    tests = job.folder / "other_tests"
    if not tests.exists():
        shutil.copytree(launches.TESTS / "campaign", tests / "campaign")
        with open(tests / "campaign/run.py", "a") as file:
            file.write("VERSION = 2\n")
    return _other(job, "other_code", path=tests)


def _other(job, name, *words, path: Path | None = None):
    directory = job.folder / name
    if not (directory / "DONE").exists():
        ended = launches.run(job, directory, *words, path=path)
        expect(ended.code == 0 and not ended.lines, f"the run of {name}", ended)
    return directory
