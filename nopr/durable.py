"""Files that are written whole or not at all. Imports the standard library alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write(path: Path, data: bytes, *, sync_name: bool = True) -> Path:
    """Writes a file to a temporary name beside it, synced, and renames it into place.

    Args:
      path: Path of the file; missing folders are created.
      data: Contents.
      sync_name: Whether the name must survive a power loss as soon as this returns, where folders
        can be synced.

    Returns:
      The path.

    Raises:
      OSError: If it cannot be written, as on a full disk; what was there is untouched.
    """
    aside = path.with_name(f".{secrets.token_hex(8)}.tmp")
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
    if sync_name and os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return path
