"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nopr import durable


class RunError(RuntimeError):
    """A run directory or file cannot be used. The message is one line with the remedy."""


def write_bytes(path: str | Path, data: bytes, *, sync_name: bool = True) -> Path:
    """Writes a file whole or not at all: to a temporary file, synced, then renamed into place.

    Args:
      path: Path of the file; missing folders are created.
      data: Contents.
      sync_name: Whether the name must survive a power loss as soon as this returns.

    Returns:
      The path.

    Raises:
      RunError: If it cannot be written, as on a full disk; what was there is untouched.
    """
    path = Path(path)
    with explained(path):
        return durable.write(path, data, sync_name=sync_name)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file as UTF-8, whole or not at all; see `write_bytes`."""
    return write_bytes(path, text.encode())


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as CSV under a header of their keys, whole or not at all.

    Args:
      path: Path of the file.
      rows: Rows, at least one, all with the keys of the first. NumPy scalars are written with
        every digit, and None as an empty cell.

    Returns:
      The path.

    Raises:
      ValueError: If there are no rows, or one has other keys than the first.
      RunError: If it cannot be written.
    """
    if not rows:
        raise ValueError(f"`rows` must not be empty; {str(path)!r} would have no header.")
    header = list(rows[0])
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for index, row in enumerate(rows):
        if set(row) != set(header):
            raise ValueError(f"`rows` must share their keys {header}, got {list(row)} at {index}.")
        writer.writerow([plain_scalar(row[key]) for key in header])
    return write_text(path, text.getvalue())


def read_json(path: str | Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if it cannot be read."""
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@contextlib.contextmanager
def explained(path: Path) -> Generator[None, None, None]:
    """Turns an OSError into a RunError of one line that names `path` and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"The disk is full: {str(path)!r} was not written, and what was there is "
                "unchanged. Free some space and run the same command again."
            ) from error
        reason = error.strerror or error
        raise RunError(f"Cannot write {str(path)!r}: {reason}. Choose another place.") from error


def plain_scalar(value: Any) -> Any:
    """The Python number in a NumPy or JAX scalar; anything else unchanged."""
    return value.item() if hasattr(value, "item") else value
