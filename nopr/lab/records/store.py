"""Named results on disk, each with its SHA-256 and what it depends on."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from nopr.lab import terminal
from nopr.lab.records.context import canonical, differences
from nopr.lab.records.files import explained, read_json, write_bytes

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
_ESCAPES = {ord(letter): quote(letter, safe="") for letter in "%/\0"}  # a 0 would end the name
_EXTENDED = "%dtype="  # precedes a dtype unknown to NumPy's files; keys have no bare %


@dataclass(frozen=True)
class Store:
    """Named results on disk, each valid only while its bytes and its context are unchanged.

    A result is a nested dict (or NamedTuple) of arrays, numbers and strings. It is read back as a
    nested dict of NumPy arrays, with NumPy scalars for what had no dimensions.

    Attributes:
      directory: Folder of the files: `name.npz`, and `name.json` with its seal: SHA-256, name and
        context.
      context: Plain values that the results depend on besides their name, compared as JSON.
      say: Function that reports, in one line, a file that is damaged or out of date.
    """

    directory: Path
    context: Mapping[str, Any]
    say: Callable[[str], Any] = terminal.say

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        object.__setattr__(self, "context", json.loads(canonical(self.context, name="context")))

    def get(self, name: str) -> dict[str, Any] | None:
        """The result under `name`, or None if it is missing, damaged or out of date."""
        path, seal = self._paths(name)
        if not seal.exists():
            return None
        found = read_json(seal) or {}
        try:
            data = path.read_bytes()
            intact = seal.read_bytes() == _text(found)
        except OSError:
            data, intact = b"", False
        mine = {"sha256": hashlib.sha256(data).hexdigest(), "name": name}
        if not intact or {key: found.get(key) for key in mine} != mine:
            self.say(f"{path} is damaged (it does not match its seal); it is not used.")
            return None
        if found.get("context") != self.context:
            changes = differences(found.get("context") or {}, self.context)
            self.say(f"{path} is out of date: {changes}; it is not used.")
            return None
        return unpacked(data)

    def put(self, name: str, values: Mapping[str, Any] | tuple) -> None:
        """Writes a result, for `get` to find.

        Raises:
          ValueError: If a value is not an array, number or string; names it.
          RunError: If it cannot be written; an earlier result is then removed or whole.
        """
        path, seal = self._paths(name)
        data = packed(values)
        with explained(seal):
            seal.unlink(missing_ok=True)
        write_bytes(path, data, sync_name=False)  # synced with the seal, in the same folder
        sha256 = hashlib.sha256(data).hexdigest()
        write_bytes(seal, _text({"sha256": sha256, "name": name, "context": self.context}))

    def names(self) -> list[str]:
        """The names in the directory itself that have a result, whole or not."""
        files = (*self.directory.glob("*.json"), *self.directory.glob("*.npz"))
        return sorted({path.stem for path in files if path.is_file()})

    def remove(self, name: str) -> None:
        """Removes a result, its seal first."""
        for path in reversed(self._paths(name)):
            with explained(path):
                path.unlink(missing_ok=True)

    def _paths(self, name: str) -> tuple[Path, Path]:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"`name` must be made of letters, digits and _.-/, got {name!r}.")
        return self.directory / f"{name}.npz", self.directory / f"{name}.json"


def _text(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, indent=2) + "\n").encode()


def packed(values: Any) -> bytes:
    """An npz file; the same values give the same bytes (the dates inside are fixed).

    Raises:
      ValueError: If a value is not an array, number or string, or two share a name; names it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, array in _arrays(values, ()):
            name = "/".join(part.translate(_ESCAPES) for part in path)
            extended = _is_extended(array.dtype)
            name += f"{_EXTENDED}{array.dtype.name}" if extended else ""
            plain = array.view(f"u{array.dtype.itemsize}") if extended else array
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, plain, allow_pickle=False)
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, Any]:
    """The nested dict in the bytes that `packed` made."""
    tree: dict[str, Any] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.namelist():
            name, _, dtype = entry.removesuffix(".npy").partition(_EXTENDED)
            with archive.open(entry) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            *path, last = map(unquote, name.split("/"))
            branch = tree
            for part in path:
                branch = branch.setdefault(part, {})
            branch[last] = (_as_extended(array, dtype) if dtype else array)[()]
    return tree


def _arrays(values: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    values = values._asdict() if hasattr(values, "_asdict") else values
    if isinstance(values, Mapping):
        names = [str(key) for key in values]
        if len(set(names)) < len(names):
            raise ValueError(
                f"A result must have names that differ as text, got {list(values)} at "
                f"{'/'.join(path)!r}. Rename one."
            )
        for name, value in zip(names, values.values(), strict=True):
            yield from _arrays(value, (*path, name))
        return
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind in "SU" and isinstance(values, list | tuple):
        plain = np.asarray(values, object)  # `array` has the numbers among text as text
        array = array if all(isinstance(each, str | bytes) for each in plain.flat) else plain
    known = array.dtype.kind in "biufcSU" or _is_extended(array.dtype)
    if not known or not path or isinstance(values, np.ma.MaskedArray):
        raise ValueError(
            f"A result must be arrays, numbers and strings, got {type(values).__name__} "
            f"of dtype {getattr(values, 'dtype', array.dtype)} at {'/'.join(path)!r}. Convert it."
        )
    yield path, array


def _is_extended(dtype: np.dtype) -> bool:
    """Whether it is one of JAX's own, such as bfloat16, float8 or int4."""
    return dtype.type.__module__.partition(".")[0] == "ml_dtypes"


def _as_extended(array: np.ndarray, name: str) -> np.ndarray:
    import jax.numpy as jnp  # late, so that the launcher starts without it

    return array.view(np.dtype(getattr(jnp, name)))
