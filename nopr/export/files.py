"""Files that are written whole or not at all, and the errors of those that cannot be read."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

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
    aside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        reason = f"{error.strerror}; it was not written, and what was there is unchanged"
        raise type(error)(error.errno, reason, str(path)) from error
    return path


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


def _sync(folder: Path) -> None:
    """Makes a name survive a power loss, where folders can be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
