r"""The layout of the packed file.

```
5 bytes     b"\x93nopr"
1 byte      version, 1
16 bytes    first half of the SHA-256 of everything else
            number of leaves, then of each in leaf order:
              length of what its path shares with the one before; length and bytes of the rest
              8 times the number of dimensions, plus what it has: 1 a mask, 2 values, 4 a mask
              that is deflated
              each dimension
              with values: index of their dtype in `DTYPES`
              with a mask: number kept; if deflated: length of its data
            the code of all masks that are not deflated, by `coding.encode`
            the data of each deflated mask: its bits, the first lowest, by zlib
            the values of each leaf: those kept, or all if it has no mask; little-endian
```

Numbers are in base 128 with the lowest digit first, and 128 added to all but the last.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from nopr.budgets import MOST
from nopr.export import files
from nopr.export.coding import DamageError

WHAT = "a packed file of nopr"
MAGIC, VERSION = b"\x93nopr", 1
DIGEST_BYTES = 16
MOST_TEXT = 2**24  # bytes of all paths: each can be as long as the one before for one byte

_MASK, _VALUES, _DEFLATED = 1, 2, 4  # what a leaf has
_KINDS = (_MASK, _VALUES, _MASK | _VALUES, _MASK | _DEFLATED, _MASK | _VALUES | _DEFLATED)

DTYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)
"""The dtypes of values, by name."""


class Leaf(NamedTuple):
    """What a file says of a leaf before its contents.

    Attributes:
      path: Path.
      shape: Shape.
      dtype: Name of the dtype of its values; None if it has none.
      kept: Number of weights kept; None if it has no mask.
      deflated: Length of its deflated mask in bytes; None if the mask is coded.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str | None
    kept: int | None
    deflated: int | None

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def value_bytes(self) -> int:
        """Length of the values."""
        count = self.size if self.kept is None else self.kept
        return 0 if self.dtype is None else count * jnp.dtype(self.dtype).itemsize


# --- Writing ------------------------------------------------------------------------------------


def written(header: Sequence[Leaf], contents: Sequence[bytes]) -> bytes:
    """The whole file.

    Args:
      header: What it says of its leaves.
      contents: What follows: the code, each deflated mask, the values of each leaf.
    """
    body = b"".join([_header(header), *contents])
    start = MAGIC + bytes([VERSION])
    return start + _digest(start + body) + body


def _header(header: Sequence[Leaf]) -> bytes:
    data, before = bytearray(_number(len(header))), b""
    for leaf in header:
        text = leaf.path.encode()
        pairs = enumerate(zip(before, text, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(before), len(text)))
        data += _number(shared) + _number(len(text) - shared) + text[shared:]
        dtype = None if leaf.dtype is None else DTYPES.index(leaf.dtype)
        has = [n is not None for n in (leaf.kept, dtype, leaf.deflated)]
        numbers = [8 * len(leaf.shape) + sum(1 << i for i, each in enumerate(has) if each)]
        numbers += [*leaf.shape, *(n for n in (dtype, leaf.kept, leaf.deflated) if n is not None)]
        data += b"".join(map(_number, numbers))
        before = text
    return bytes(data)


def _number(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


# --- Reading ------------------------------------------------------------------------------------


class Sections(NamedTuple):
    """What follows the header.

    Attributes:
      code: The code of the masks.
      deflated: Each deflated mask, by path.
      values: The values of each leaf, empty where it has none.
    """

    code: bytes
    deflated: dict[str, bytes]
    values: list[bytes]


class _Reader:
    """Numbers and bytes from data, one after another."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def take(self, count: int) -> bytes:
        found = self.data[self.place : self.place + count]
        if len(found) < count:
            raise DamageError("it ends too early")
        self.place += count
        return found

    def number(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            digit = self.take(1)[0]
            value |= (digit & 127) << shift
            if digit < 128:
                return value
        raise DamageError("it has a number that is too large")


def read(path: Path) -> tuple[list[Leaf], Sections]:
    """What a file says of its leaves, checked, and the rest of its contents.

    Raises:
      DamageError: If it is not whole, or its claims are impossible.
      ValueError: If it is another kind of file, or of a later version.
    """
    with open(path, "rb") as file:
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise ValueError(
                f"{files.must(path, WHAT)}, which begins with {magic!r}. Give a file of "
                "`export.save_masks` or `export.save_pruned`."
            )
        data = magic + file.read()
    start, end = len(MAGIC) + 1, len(MAGIC) + 1 + DIGEST_BYTES
    if _digest(data[:start] + data[end:]) != data[start:end]:
        raise DamageError("its contents do not match its SHA-256")
    if data[start - 1] != VERSION:
        raise ValueError(
            f"{files.must(path, f'{WHAT}, version {VERSION}')} of version {data[start - 1]}. "
            "Update nopr."
        )
    reader = _Reader(data[end:])
    header = list(_leaves(reader))
    check_sizes(header)
    if all(leaf.kept is None for leaf in header):
        raise DamageError("it has no mask")
    deflated = [leaf for leaf in header if leaf.deflated is not None]
    lengths = [leaf.deflated or 0 for leaf in deflated], [leaf.value_bytes for leaf in header]
    rest = len(reader.data) - reader.place - sum(map(sum, lengths))
    if rest < 0:
        raise DamageError("its lengths do not add up")
    code = reader.take(rest)
    short = {leaf.path: reader.take(leaf.deflated or 0) for leaf in deflated}
    return header, Sections(code, short, [reader.take(length) for length in lengths[1]])


def _leaves(reader: _Reader) -> Iterator[Leaf]:
    text, seen, characters = b"", set(), 0
    for _ in range(reader.number()):
        shared = reader.number()
        if shared > len(text):
            raise DamageError("a path shares more than there is")
        text = text[:shared] + reader.take(reader.number())
        characters += len(text)
        if characters > MOST_TEXT:
            raise DamageError(f"its paths have more than {MOST_TEXT:,} bytes")
        try:
            path = text.decode()
        except UnicodeDecodeError:
            raise DamageError("a path is not text") from None
        if path in seen:
            raise DamageError(f"it has two leaves at {path!r}")
        seen.add(path)
        sides, kind = divmod(reader.number(), 8)
        if kind not in _KINDS or sides > 64:
            raise DamageError(f"the leaf at {path!r} is of an unknown kind")
        shape = tuple(reader.number() for _ in range(sides))
        code = reader.number() if kind & _VALUES else None
        if code is not None and code >= len(DTYPES):
            raise DamageError(f"the values at {path!r} are of an unknown dtype")
        kept = reader.number() if kind & _MASK else None
        deflated = reader.number() if kind & _DEFLATED else None
        yield Leaf(path, shape, None if code is None else DTYPES[code], kept, deflated)


def check_sizes(header: Sequence[Leaf]) -> None:
    """Checks the claims of a file, or of one to be written, before arrays are made of them.

    Raises:
      DamageError: If it has more weights or text than a file can, or keeps more than there are.
    """
    total = 0
    for leaf in header:
        total += math.prod(max(side, 1) for side in leaf.shape)  # also where another side is 0
        if total > MOST:
            raise DamageError(f"there are more than {MOST:,} weights, at {leaf.path!r}")
        if (leaf.kept or 0) > leaf.size:
            raise DamageError(f"it keeps {leaf.kept} of {leaf.size} weights at {leaf.path!r}")
    if sum(len(leaf.path.encode()) for leaf in header) > MOST_TEXT:
        raise DamageError(f"the paths have more than {MOST_TEXT:,} bytes")
