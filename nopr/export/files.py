"""Files that are written whole or not at all, and the errors of those that cannot be read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from nopr import durable
from nopr.export.coding import DamageError
from nopr.typing import shown

_AGAIN = "Copy it again, or save it anew."


def checked_path(path: Any) -> Path:
    """The path of a file.

    Raises:
      ValueError: If it is none.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"`path` must be the path of a file, got {shown(path)}. Give its name.")
    return Path(text)


def write(path: Path, data: bytes) -> Path:
    """Writes a file: to a temporary name beside it, synced, then renamed into place.

    Raises:
      OSError: If it cannot be written, as on a full disk; what was there is untouched.
    """
    try:
        return durable.write(path, data)
    except OSError as error:
        reason = f"{error.strerror}; it was not written, and what was there is unchanged"
        raise type(error)(error.errno, reason, str(path)) from error


@contextlib.contextmanager
def explained(path: Path, what: str) -> Generator[None, None, None]:
    """Turns a `DamageError` into a ValueError of one line that names the file.

    Args:
      path: The file that is read.
      what: What it must be.
    """
    try:
        yield
    except DamageError as error:
        raise ValueError(f"{must(path, what)}, which is damaged: {error}. {_AGAIN}") from None


def must(path: Path, what: str) -> str:
    """How the error of a file begins."""
    return f"`path` must be {what}, got {str(path)!r}"
