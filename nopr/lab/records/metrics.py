"""metrics.jsonl: one line for each (step, split, name), each sealed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nopr.lab.records.files import explained, write_bytes


class Metrics:
    """Appends lines to metrics.jsonl; writing the same (step, split, name) again replaces it."""

    def __init__(self, path: Path, say: Callable[[str], Any]):
        self._path = path
        self._lines: dict[tuple[Any, ...], bytes] = {}
        broken = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            key = _key(line)
            if key is None:
                broken += 1
            else:
                self._lines[key] = line
        if broken:
            say(f"{path}: dropped {broken} line(s) that were cut off or altered.")
            self._rewrite()

    def add(self, step: int, split: str, name: str, value: float | None) -> None:
        """Records one value; None if it is not finite."""
        key, line = (step, split, name), _sealed(step, split, name, value)
        before = self._lines.get(key)
        if before is None:
            self._append(line)
        self._lines[key] = line
        if before not in (None, line):
            self._rewrite()

    def clear(self) -> None:
        """Drops every line."""
        if self._lines:
            self._lines = {}
            self._rewrite()

    def _append(self, line: bytes) -> None:
        """Appends a whole line or nothing: on a full disk its first bytes may still fit."""
        with explained(self._path), open(self._path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                while line:
                    line = line[file.write(line) :]
            except BaseException:
                file.truncate(size)
                raise

    def _rewrite(self) -> None:
        write_bytes(self._path, b"".join(self._lines.values()))


def _sealed(step: Any, split: Any, name: Any, value: Any) -> bytes:
    row = {"step": step, "split": split, "name": name, "value": value}
    seal = hashlib.sha256(json.dumps(row, allow_nan=False).encode()).hexdigest()[:8]
    return (json.dumps({**row, "seal": seal}) + "\n").encode()


def _key(line: bytes) -> tuple[Any, ...] | None:
    """The key of a whole line; None for one that is torn or altered."""
    try:
        found = json.loads(line)
        key = (found["step"], found["split"], found["name"])
        return key if line == _sealed(*key, found["value"]) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
