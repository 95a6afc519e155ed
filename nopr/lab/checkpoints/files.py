"""One checkpoint on the disk: written whole, verified, read. The only importer of orbax."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from nopr.lab.checkpoints import leaves
from nopr.lab.checkpoints.leaves import Stored

_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_CODE = re.compile(r"os_error_code='(\d+)'|OS error (\d+)")


class CheckpointError(OSError):
    """A checkpoint cannot be written. The message is one line and says what to do."""


def steps(directory: str | Path) -> tuple[int, ...]:
    """The steps that have a checkpoint, ascending, whole or not."""
    directory = Path(directory)
    if not directory.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit()))


def commit(
    directory: Path,
    step: int,
    rows: list[dict[str, Any]],
    stored: list[Stored],
    *,
    keep: int,
    stale: frozenset[int] = frozenset(),
) -> Path:
    """Writes the checkpoint of `step`, then removes the `stale` and all but the newest `keep`.

    Raises:
      CheckpointError: If it cannot be written; nothing of it is left, the others are untouched.
    """
    with _explained(directory, step):
        directory.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(directory)
        aside, final = directory / f".{step}.new.tmp", directory / str(step)
        try:
            _write(aside, step, rows, stored)
            _replace(aside, final)
            _sync(directory)
        except BaseException:
            _discard(aside)
            raise
        gone = stale - {step}
        older = [there for there in steps(directory) if there not in gone]
        _remove(directory, {*older[:-keep], *gone} - {step})
    return final


def tidy(directory: Path, *, newest: int, keep: int) -> None:
    """Removes what a killed process left: half-written checkpoints, and more than `keep`."""
    older = [there for there in steps(directory) if there <= newest]
    with contextlib.suppress(OSError):  # whoever writes next is told
        _remove(directory, set(older[:-keep]))


def verified(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The manifest of a whole checkpoint; of a damaged one None, and what is wrong."""
    try:
        text = (folder / _MANIFEST).read_bytes().decode()
        manifest = json.loads(text)
        whole = text == _text(manifest) and manifest.pop("digest") == _digest(manifest)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        whole, manifest = False, {}
    if not whole:
        return None, f"{_MANIFEST} is missing or altered"
    for name, digest in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return None, f"{name} is missing"
        if _sha256(path) != digest:
            return None, f"{name} is altered"
    return manifest, ""


def read(folder: Path, manifest: dict[str, Any], target: PyTree) -> PyTree:
    """The tree of a whole checkpoint, as `target` has it.

    Raises:
      ValueError: If it is of another tree; names the leaf.
    """
    leaves.check_rows(manifest["leaves"], target, name=str(folder))
    stored = manifest["stored"]
    like = {
        str(index): jax.ShapeDtypeStruct(row["shape"], np.dtype(row["dtype"]))
        for index, row in enumerate(stored)
    }
    with _checkpointer() as checkpointer:
        found = checkpointer.restore(folder / _ARRAYS, args=ocp.args.StandardRestore(like))
    values = [found[str(index)] for index in range(len(stored))]
    return leaves.as_target(values, [row["generator"] for row in stored], target)


def _checkpointer() -> ocp.Checkpointer:
    """Of this process alone, which waits for no other."""
    alone = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=alone, active_processes={alone})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _write(folder: Path, step: int, rows: list[dict[str, Any]], stored: list[Stored]) -> None:
    """Writes arrays and manifest, and makes every file durable."""
    folder.mkdir()
    with _without_the_log_of_orbax(), _without_echoes(), _checkpointer() as checkpointer:
        arrays = {str(index): array for index, (array, _) in enumerate(stored)}
        checkpointer.save(folder / _ARRAYS, args=ocp.args.StandardSave(arrays))
    files = sorted(path for path in (folder / _ARRAYS).rglob("*") if path.is_file())
    body = {
        "step": int(step),
        "leaves": rows,
        "stored": [
            {"shape": list(array.shape), "dtype": array.dtype.name, "generator": generator}
            for array, generator in stored
        ],
        "files": {path.relative_to(folder).as_posix(): _sha256(path) for path in files},
    }
    manifest = folder / _MANIFEST
    manifest.write_text(_text({"digest": _digest(body), **body}))
    for path in (*files, manifest, *{file.parent for file in files}, folder):
        _sync(path)


def _replace(aside: Path, final: Path) -> None:
    """Renames a folder into place; one that was there comes back if that fails."""
    old = final.with_name(f".{final.name}.old.tmp")
    if final.exists():
        os.rename(final, old)
    try:
        os.rename(aside, final)
    finally:
        if old.exists() and not final.exists():
            os.rename(old, final)


@contextlib.contextmanager
def _explained(directory: Path, step: int) -> Generator[None, None, None]:
    """Turns whatever goes wrong in writing into a CheckpointError of one line."""
    try:
        yield
    except Exception as error:
        code = _code(error)
        what = (
            f"the checkpoint of step {step} was not written to {str(directory)!r}, "
            "and those before it are unchanged."
        )
        if code in (errno.ENOSPC, errno.EDQUOT):
            line = f"The disk is full: {what} Free some space and run the same command again."
        elif code is not None:
            line = f"{os.strerror(code)}: {what} Choose a folder that can be written."
        else:
            line = f"{type(error).__name__} ({' '.join(str(error).split())}): {what}"
        raise CheckpointError(line) from error


def _code(error: Exception) -> int | None:
    """The number of an error of the system, which orbax gives in the text of another."""
    if isinstance(error, OSError):
        return error.errno
    found = _CODE.search(str(error))
    return int(found[1] or found[2]) if found else None


@contextlib.contextmanager
def _without_the_log_of_orbax() -> Generator[None, None, None]:
    """Drops the traceback that orbax logs of an error which it raises as well."""
    log = logging.getLogger("absl")
    before = f"{os.sep}orbax{os.sep}"

    def is_not_of_orbax(record: logging.LogRecord) -> bool:
        return before not in record.pathname

    log.addFilter(is_not_of_orbax)
    try:
        yield
    finally:
        log.removeFilter(is_not_of_orbax)


@contextlib.contextmanager
def _without_echoes() -> Generator[None, None, None]:
    """Drops what follows an error: orbax ends its loop, and the other arrays still call it.

    They do so from threads of tensorstore, at any time after the error; so the hook stays then.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    yield
    if sys.unraisablehook is hook:
        sys.unraisablehook = before


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1) + "\n"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(folder: Path) -> None:
    """Removes a folder that threads of tensorstore may still write to, after an error."""
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def _remove(directory: Path, gone: set[int]) -> None:
    for step in gone:
        # One that is only half removed would read as damaged.
        os.rename(directory / str(step), directory / f".{step}.old.tmp")
    _remove_unfinished(directory)


def _remove_unfinished(directory: Path) -> None:
    for left in directory.glob(".*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
