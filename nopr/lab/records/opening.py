"""Opening a run directory: for one program at a time, and for one config."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nopr import processes
from nopr.lab import terminal
from nopr.lab.records.context import canonical, differences
from nopr.lab.records.files import RunError, explained, read_json, write_text
from nopr.lab.records.run import Member, Run


@contextlib.contextmanager
def open_run(
    workdir: str | Path,
    *,
    config: Mapping[str, Any],
    experiment: str,
    variant: str = "",
    sources: Sequence[str | Path] = (),
    reopen: bool = False,
    say: Callable[[str], Any] = terminal.say,
) -> Generator[Run, None, None]:
    """Opens a run directory for this program alone, to start or resume a run.

    With several processes, process 0 holds the directory and writes everything in it except the
    stored chunks of sweeps, which each process keeps under the same path, on its own disk or on a
    shared one. The others get a run that looks the same and leaves nothing else behind.

    Args:
      workdir: Run directory; created if missing.
      config: Nested plain dict, such as `ConfigDict.to_dict()`.
      experiment: Name of the experiment.
      variant: Variant of the config, for readers only.
      sources: Files whose code computes the results; their imports count too. Without any, all of
        nopr counts, and nothing else.
      reopen: Whether a finished run accepts results again, such as a new figure.
      say: Function that reports one line to the user.

    Yields:
      The run; if it is `finished`, nothing remains to be done.

    Raises:
      RunError: If the directory cannot be written, is in use by a live run, or holds something
        else: a run of another config (the message names the keys) or files that belong to no run;
        or if the processes do not run the same config on the same code, versions and kind of
        machine.
      processes.Lost: If another process did not answer.
    """
    directory = Path(workdir)
    asked = {"experiment": experiment, "config": json.loads(canonical(config))}
    options = {"config": asked["config"], "sources": sources, "reopen": reopen, "say": say}
    with contextlib.ExitStack() as held:
        if processes.index() == 0:
            with _refusal_shared():
                held.enter_context(_locked(directory))
                _settle_config(directory, asked, variant)
                run = Run(directory, **options)
            processes.share(json.dumps([run.finished, run.outdated, run.source]).encode())
        else:
            scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="nopr-")))
            state = json.loads(processes.share(None))
            if isinstance(state, str):
                raise RunError(f"Process 0 cannot run: {state}")
            run = Member(scratch, directory / "stages", state, **options)
        if not run.finished:
            _check_members({**asked, "machine": run.context})
        yield run


def set_aside(workdir: str | Path) -> Path | None:
    """Renames a run directory that is not in use to `<name>.previous-<n>`; None if there is none.

    Raises:
      RunError: If it is in use, or cannot be renamed.
    """
    directory = Path(workdir)
    if not _names(directory):
        return None
    with _locked(directory), explained(directory):
        if _names(directory) == {"LOCK"}:
            return None  # another has set it aside meanwhile
        names = (directory.with_name(f"{directory.name}.previous-{n}") for n in itertools.count(1))
        target = next(path for path in names if not path.exists())
        os.rename(directory, target)
    return target


def _names(directory: Path) -> set[str]:
    """The names in a directory; none if it is gone or is a file."""
    try:
        return set(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return set()


@contextlib.contextmanager
def _refusal_shared() -> Generator[None, None, None]:
    """Shares the reason why process 0 cannot run with the other processes, so that none waits."""
    try:
        yield
    except (RunError, ValueError) as error:
        processes.share(json.dumps(str(error)).encode())
        raise


def _check_members(mine: Mapping[str, Any]) -> None:
    """Checks that all processes have the same config and would compute the same bits."""
    everyone = [json.loads(data) for data in processes.gather(json.dumps(mine).encode())]
    for index, theirs in enumerate(everyone):
        names = (f"in process {index}", "in process 0")
        changes = differences(theirs, everyone[0], names=names)
        if changes:
            pool = " NPROC sets `threads`." if "machine.threads" in changes else ""
            raise RunError(
                f"Process {index} does not run what process 0 runs: {changes}. Start the same "
                f"command with the same code and versions everywhere.{pool}"
            )


@contextlib.contextmanager
def _locked(directory: Path) -> Generator[None, None, None]:
    """Holds the kernel's lock on the directory, which ends with the process, however it ends."""
    path = directory / "LOCK"
    while True:
        with explained(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _check_ours(directory)
            lock = open(path, "ab+", buffering=0)  # noqa: SIM115
        with lock:
            _lock(lock, directory)
            # The directory may have been set aside in between, and the file with it.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                yield
                return


def _lock(lock: io.FileIO, directory: Path) -> None:
    with explained(directory):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip() or "unknown"
            raise RunError(
                f"{str(directory)!r} is in use by another run (process {holder}). "
                "Wait until it ends, or choose another work directory."
            ) from None
        lock.truncate(0)
        with contextlib.suppress(OSError):  # the lock holds without it, on a full disk
            lock.write(f"{os.getpid()}\n".encode())


def _check_ours(directory: Path) -> None:
    names = {path.name for path in directory.iterdir() if path.suffix != ".tmp"} - {"LOCK"}
    if names and "config.json" not in names:
        raise RunError(
            f"{str(directory)!r} holds files that belong to no run ({min(names)!r}). "
            "Choose another work directory, or an empty one."
        )


def _settle_config(directory: Path, asked: dict[str, Any], variant: str) -> None:
    path = directory / "config.json"
    _check_ours(directory)
    if not path.exists():
        write_text(path, json.dumps({**asked, "variant": variant}, indent=2) + "\n")
    there = read_json(path)
    if there is None or not {"experiment", "config"} <= set(there):
        raise RunError(f"{str(path)!r} cannot be read. Choose another work directory.")
    changes = differences({key: there[key] for key in asked}, asked)
    if changes and not _has_results(directory):
        # A run without results does not claim the folder.
        write_text(path, json.dumps({**asked, "variant": variant}, indent=2) + "\n")
    elif changes:
        raise RunError(
            f"{str(directory)!r} holds a run of another config: {changes}. "
            "Choose another work directory, or set it aside with --rerun."
        )


def _has_results(directory: Path) -> bool:
    """Whether anything was computed: a stage, a checkpoint, or all of it."""
    if (directory / "DONE").exists():
        return True
    folders = (directory / "stages", directory / "checkpoints")
    return any(path.is_file() for folder in folders for path in folder.rglob("*"))
