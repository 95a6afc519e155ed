"""How a sweep is cut: blocks that fix the last bits, and chunks of whole blocks that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

_MOST_CHUNKS = 100  # a kill loses about 1% of the work, and files cost little beside it
_LEAST_KEPT = 8  # rounds that a sweep with a store has, unless blocks would be very small
_SMALL = 8


class Plan(NamedTuple):
    """The sizes that are settled once for a sweep, in cases."""

    block: int
    """Cases in one vmapped call on one device."""
    chunk: int
    """Cases that are stored together: a whole number of blocks."""

    def chunks(self, cases: int) -> list[range]:
        """The cases of each chunk."""
        return [range(i, min(i + self.chunk, cases)) for i in range(0, cases, self.chunk)]

    def blocks(self, chunk: range) -> Iterator[range]:
        """The cases of each block of a chunk; the last one may be smaller."""
        for start in range(chunk.start, chunk.stop, self.block):
            yield range(start, min(start + self.block, chunk.stop))


def plan(cases: int, *, block: int, chunk: int | None) -> Plan:
    """Settles the chunk for a block.

    Args:
      cases: How many there are.
      block: Cases in one vmapped call; more than there are is all of them.
      chunk: Cases stored together, rounded up to whole blocks; by default so many that there are
        at most 100 chunks.
    """
    block = min(block, cases)
    blocks = -(-cases // block)
    per_chunk = -(-blocks // _MOST_CHUNKS) if chunk is None else -(-chunk // block)
    return Plan(block, block * min(per_chunk, blocks))


def check_sizes(**sizes: Any) -> None:
    """Checks that each option is a whole number of at least 1, or None.

    Raises:
      ValueError: If one is anything else; names it.
    """
    for name, size in sizes.items():
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise ValueError(f"`{name}` must be a whole number, got {size!r}.")
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")


def largest_block(cases: int, *, devices: int, stored: bool) -> int:
    """The block that memory does not bound: one round over all devices, or some where it is kept.

    Args:
      cases: How many there are.
      devices: How many there are, in all processes.
      stored: Whether chunks are kept; then a kill should not lose everything.
    """
    once = -(-cases // devices)
    return once if not stored else max(min(once, _SMALL), -(-once // _LEAST_KEPT))


def fitting_block(block: int, *, memory_bytes: int, needed: Callable[[int], int]) -> int:
    """The largest block, at most this one, that fits the memory.

    Args:
      block: The block that one would like.
      memory_bytes: What there is on each device.
      needed: What a block takes, in bytes; it compiles the program, so it is asked seldom.

    Raises:
      ValueError: If not even one case fits.
    """
    while (bytes_ := needed(block)) > memory_bytes:
        if block == 1:
            raise ValueError(
                f"One case takes {bytes_:,} bytes, more than the {memory_bytes:,} of "
                "`memory_bytes`. Give more, or make it smaller."
            )
        block = max(1, min(block - 1, int(block * 0.95 * memory_bytes / bytes_)))
    return block
