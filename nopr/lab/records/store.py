"""Named results on disk, each with its SHA-256 and what it depends on."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nopr.lab.records.context import canonical, differences
from nopr.lab.records.files import explained, write_bytes, write_text

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")


def to_stderr(line: str) -> None:
    """Prints one line for the person at the terminal, at once."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Store:
    """Named results on disk, each valid only as long as its bytes and its context are the same.

    A result is a nested dict (or NamedTuple) of arrays, numbers and strings. It is read back as a
    nested dict of NumPy arrays, with NumPy scalars for what had no dimensions.

    Attributes:
      directory: Where the files are: `name.npz`, and `name.json` with its SHA-256 and context.
      context: What the results depend on besides their name: plain values, for they are compared.
      say: Called with one line where a file is damaged or out of date.
    """

    directory: Path
    context: Mapping[str, Any]
    say: Callable[[str], Any] = to_stderr

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        canonical(self.context, name="context")

    def get(self, name: str) -> dict[str, Any] | None:
        """The result under `name`, or None if it is missing, damaged or out of date."""
        path, seal = self._paths(name)
        if not seal.exists():
            return None
        try:
            text = seal.read_bytes().decode()
            found = json.loads(text)
            data = path.read_bytes()
            intact = (text, found["sha256"]) == (_text(found), hashlib.sha256(data).hexdigest())
            context = dict(found["context"])
        except (OSError, ValueError, KeyError, TypeError):
            intact, data, context = False, b"", {}
        if not intact:
            self.say(f"{path} is damaged (its SHA-256 is another); computing it again.")
            return None
        if context != self.context:
            changes = differences(context, self.context)
            self.say(f"{path} is out of date: {changes}; computing it again.")
            return None
        return unpacked(data)

    def put(self, name: str, values: Mapping[str, Any] | tuple) -> None:
        """Writes a result, for `get` to find.

        Raises:
          ValueError: If a value is neither array, number nor string; names it.
          RunError: If it cannot be written; an earlier result is then gone or whole.
        """
        path, seal = self._paths(name)
        data = packed(values)
        with explained(seal):
            seal.unlink(missing_ok=True)
        write_bytes(path, data, sync_name=False)  # the seal's comes later, in the same folder
        facts = {"sha256": hashlib.sha256(data).hexdigest(), "context": dict(self.context)}
        write_text(seal, _text(facts))

    def _paths(self, name: str) -> tuple[Path, Path]:
        if not _NAME.fullmatch(name):
            raise ValueError(f"`name` must be made of letters, digits and _.-/, got {name!r}.")
        return self.directory / f"{name}.npz", self.directory / f"{name}.json"


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2) + "\n"


def packed(values: Any) -> bytes:
    """An npz file; the same values give the same bytes (the dates inside are fixed)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, array in _arrays(values, ()):
            name = "/".join(part.replace("%", "%25").replace("/", "%2F") for part in path)
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def _arrays(values: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    values = values._asdict() if hasattr(values, "_asdict") else values
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _arrays(value, (*path, str(key)))
        return
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind not in "biufcSU" or not path:
        raise ValueError(
            f"A result must be arrays, numbers and strings, got {type(values).__name__} "
            f"of dtype {getattr(values, 'dtype', array.dtype)} at {'/'.join(path)!r}. Convert it."
        )
    yield path, array


def unpacked(data: bytes) -> dict[str, Any]:
    """The nested dict in the bytes that `packed` made."""
    tree: dict[str, Any] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        for name in archive.files:
            *path, last = (p.replace("%2F", "/").replace("%25", "%") for p in name.split("/"))
            branch = tree
            for part in path:
                branch = branch.setdefault(part, {})
            branch[last] = archive[name][()]
    return tree
