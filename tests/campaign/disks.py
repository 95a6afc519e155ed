"""A disk that is full or read-only."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from campaign import hooks, launches
from campaign.launches import Row, expect

_PAGE = hooks.PAGE
_AMPLE = 64 << 20
_FULL = re.compile(
    r"error: The disk is full: .+ unchanged\. "
    r"Free some space and run the same command again\."
)
_TOO_LARGE = re.compile(r"error: (Cannot write '.+': |\[Errno 27\] )?File too large.*")
_READ_ONLY = re.compile(r"error: Cannot write '.+': Read-only file system\. Choose another place\.")
_DENIED = re.compile(r"error: Cannot write '.+': Permission denied\. Choose another place\.")


class Disk:
    """A small disk of its own: a tmpfs in a mount namespace, gone when its holder ends.

    Attributes:
      prefix: The command that runs another where the disk is mounted.
      inside: The mount point, as seen there.
      seen: The same, as seen from here.
    """

    def __init__(self, place):
        self.inside = Path(place)
        self.inside.mkdir(parents=True, exist_ok=True)
        script = (
            f"mount -t tmpfs -o size={_AMPLE} none '{self.inside}' && echo up && exec sleep 9999"
        )
        self._holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._holder.stdout.readline() != "up\n":
            error = self._holder.communicate()[1]
            raise OSError(f"No mount namespace here: {error.strip()}")
        pid = self._holder.pid
        self.prefix = ("nsenter", "-t", str(pid), "-U", "-m", "--preserve-credentials")
        self.seen = Path(f"/proc/{pid}/root{self.inside}")

    def remount(self, options):
        """Changes the size or the mode."""
        command = [*self.prefix, "mount", "-o", f"remount,{options}", str(self.inside)]
        subprocess.run(command, check=True, capture_output=True)

    def close(self):
        """Ends the disk and all that is on it."""
        self._holder.kill()
        self._holder.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def can_mount(job):
    """Whether a disk can be mounted here."""
    try:
        with Disk(job.folder / "disk"):
            return True
    except OSError:
        return False


# --- Full --------------------------------------------------------------------------------------

_PLACES = ["nets:0", "nets:32", "nets:76", "long:0", "long:4", "long:11", "metrics", "metrics:10"]
_PLACES += ["metrics:60", "table", "page", "summary"]


def full(job, tries, rng):
    """A disk that is full from the start, or fills up in the middle of the run."""
    if not can_mount(job):
        return Row("full disk", 0, "not possible here: no mount namespace; see the next row")
    struck = Counter()
    places = [*rng.sample(_PLACES, len(_PLACES)) * math.ceil(tries / len(_PLACES))]
    for index in range(tries):
        with Disk(job.folder / "disk") as disk:
            if index % 3 == 2:
                ended = _full_from_the_start(job, disk, rng)
            else:
                place, leave = places.pop(), rng.choice([0, 0, 0, 1, 1, 2, 3])
                ended = _fills_up(job, disk, place, leave)
            struck[_struck(ended)] += 1
            _freed(job, disk, ended)
    parts = ", ".join(f"{name} {count}" for name, count in sorted(struck.items()))
    return Row(
        "full disk (tmpfs)",
        tries,
        f"{tries} refused with one line and exit status 1, what was there unchanged; space freed, "
        f"all resumed to the same bytes (struck: {parts})",
    )


def _full_from_the_start(job, disk, rng):
    """Not room for all: some pages, or some files."""
    needed = sum(math.ceil(len(data) / _PAGE) for data in job.whole.values())
    while True:
        if rng.random() < 0.7:
            disk.remount(f"size={rng.randrange(1, needed + 20) * _PAGE}")
        else:
            disk.remount(f"nr_inodes={rng.randrange(2, len(job.whole) + 20)}")
        ended = launches.run(job, disk.inside / "run", prefix=disk.prefix)
        if ended.code:
            return ended
        shutil.rmtree(disk.seen / "run")
        disk.remount(f"size={_AMPLE},nr_inodes=100000")


def _fills_up(job, disk, place, leave):
    options = {"CAMPAIGN_FILL": place, "CAMPAIGN_LEAVE": leave}
    while True:
        ended = launches.run(job, disk.inside / "run", prefix=disk.prefix, **options)
        if ended.code:
            return ended
        # There was just enough room for the rest: a page less.
        options["CAMPAIGN_LEAVE"] = int(options["CAMPAIGN_LEAVE"]) - 1
        shutil.rmtree(disk.seen / "run")
        (disk.seen / hooks.BALLAST).unlink()


def _freed(job, disk, ended):
    directory = disk.seen / "run"
    expect(ended.code == 1, "the exit status", ended, directory)
    one = len(ended.lines) == 1 and _FULL.fullmatch(ended.lines[0])
    expect(one, "not one clear line", ended, directory)
    before = launches.check_part(job, directory, ended)
    expect(not launches.torn(directory), "half-written files were left", ended, directory)
    # Full still: refused again, and nothing changes.
    ended = launches.run(job, disk.inside / "run", prefix=disk.prefix)
    expect(ended.code == 1, "the exit status when full still", ended, directory)
    launches.check_kept(before, launches.check_part(job, directory, ended), ended)
    (disk.seen / hooks.BALLAST).unlink(missing_ok=True)
    disk.remount(f"size={_AMPLE},nr_inodes=100000")
    ended = launches.run(job, disk.inside / "run", prefix=disk.prefix)
    launches.check_whole(job, directory, ended)


def _struck(ended):
    """The part of the run in which the disk was full."""
    line = " ".join(ended.lines)
    if "the checkpoint of step" in line or "/checkpoints" in line:
        return "checkpoint"
    for name, part in (("/stages/nets", "chunk"), ("/stages/", "stage")):
        if name in line:
            return part
    found = re.search(r"'[^']*/([\w.]+)'", line)
    return found[1] if found else "a file of another library"


# --- A bound on the size of files ---------------------------------------------------------------


def bounded(job, tries, rng):
    """RLIMIT_FSIZE, for where no disk can be mounted: a write ends with EFBIG in its middle."""
    sizes = sorted({len(data) for data in job.whole.values()} | {5700, 8700})
    before = {}
    directory = job.new()
    struck = Counter()
    for size in sorted(rng.sample(sizes[:-1], min(tries, len(sizes) - 1))):
        limit = size - 1 if size == sizes[0] else size - rng.choice([0, 1, size // 2])
        ended = launches.run(job, directory, CAMPAIGN_FSIZE=max(limit, 1))
        one = len(ended.lines) == 1 and _TOO_LARGE.fullmatch(ended.lines[0])
        expect(ended.code == 1 and one, "not refused with one line", ended, directory)
        after = launches.check_part(job, directory, ended)
        launches.check_kept(before, after, ended)
        expect(not launches.torn(directory), "half-written files were left", ended, directory)
        before = after
        struck[_struck(ended)] += 1
    launches.check_whole(job, directory, launches.run(job, directory))
    launches.clear(directory)
    parts = ", ".join(f"{name} {count}" for name, count in sorted(struck.items()))
    count = sum(struck.values())
    return Row(
        "files bounded in size (RLIMIT_FSIZE)",
        count,
        f"{count} refused with one line and exit status 1; without the bound to the same bytes "
        f"(struck: {parts})",
    )


# --- Read-only ---------------------------------------------------------------------------------


def read_only(job, tries, rng):
    """A read-only directory: before the first launch, or between two."""
    mounted = can_mount(job)
    if not mounted and os.geteuid() == 0:
        return Row("read-only directory", 0, "not possible here: root, and no mount namespace")
    for index in range(tries):
        with _place(job, mounted) as (directory, seen, prefix, lock):
            if index % 3 == 1:
                process = launches.start(job.folder, directory, prefix=prefix)
                with launches.stopping(process):
                    launches.wait_for_moment(job, process, seen, rng)
                    process.kill()
                    launches.finish(process)
            elif index % 3 == 2:
                launches.check_whole(job, seen, launches.run(job, directory, prefix=prefix))
            before = _all(seen)
            with lock():
                ended = launches.run(job, directory, prefix=prefix)
                line = (_READ_ONLY if mounted else _DENIED).fullmatch("".join(ended.lines))
                expect(ended.code == 1 and line, "not refused with one line", ended, seen)
                expect(_all(seen) == before, "something changed", ended, seen)
            launches.check_same(job, seen, launches.run(job, directory, prefix=prefix))
    kind = "tmpfs remounted" if mounted else "chmod"
    return Row(
        f"read-only directory ({kind})",
        tries,
        f"{tries} refused with one line and exit status 1, nothing changed (new, half-done and "
        "finished runs in turn); writable again, all to the same bytes",
    )


@contextlib.contextmanager
def _place(job, mounted):
    if mounted:
        with Disk(job.folder / "disk") as disk:

            @contextlib.contextmanager
            def lock():
                disk.remount("ro")
                yield
                disk.remount("rw")

            yield disk.inside / "run", disk.seen / "run", disk.prefix, lock
        return
    directory = job.new()

    @contextlib.contextmanager
    def lock():
        folders = [directory.parent, *(path for path in directory.parent.rglob("*"))]
        modes = {path: path.stat().st_mode for path in folders}
        for path in folders:
            path.chmod(modes[path] & ~0o222)
        yield
        for path in folders:
            path.chmod(modes[path])

    yield directory, directory, (), lock
    launches.clear(directory)


def _all(directory):
    """Every byte, and the half-written files and folders."""
    found = sorted(directory.rglob("*"))
    return {path: path.read_bytes() if path.is_file() else None for path in found}
