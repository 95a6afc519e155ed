"""How a sweep is divided: blocks, which fix the last bits, in chunks, which are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from nopr.typing import whole_number

_MOST_CHUNKS = 100  # a kill loses about 1% of the work, and files cost little in comparison
_LEAST_KEPT = 8  # rounds that a sweep with a store has, unless blocks would be very small
_SMALL = 8


class Plan(NamedTuple):
    """The sizes of a sweep, in cases, fixed once."""

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
    """Chooses the chunk for a block.

    Args:
      cases: Number of cases.
      block: Cases in one vmapped call; all cases if it is larger than their number.
      chunk: Cases stored together, rounded up to whole blocks; by default one block, or as many as
        keep the number of chunks at 100 or less.
    """
    block = min(block, cases)
    blocks = -(-cases // block)
    per_chunk = -(-blocks // _MOST_CHUNKS) if chunk is None else -(-chunk // block)
    return Plan(block, block * min(per_chunk, blocks))


def checked_sizes(**sizes: Any) -> tuple[int | None, ...]:
    """The options, each checked to be a whole number of at least 1, or None.

    Raises:
      ValueError: If an option is anything else; the message names it.
    """
    return tuple(None if size is None else whole_number(name, size) for name, size in sizes.items())


def largest_block(cases: int, *, devices: int, stored: bool) -> int:
    """The block if memory is no limit: one round over all devices, or several with a store.

    Args:
      cases: Number of cases.
      devices: Number of devices, in all processes.
      stored: Whether chunks are stored, so that a kill should not lose everything.
    """
    once = -(-cases // devices)
    return once if not stored else max(min(once, _SMALL), -(-once // _LEAST_KEPT))


def fitting_block(block: int, *, memory_bytes: int, needed: Callable[[int], int]) -> int:
    """The largest block, at most this one, that fits the memory.

    Args:
      block: The largest block to try.
      memory_bytes: The memory of each device.
      needed: A function from a block to the bytes it takes; it compiles the program, so it is
        called rarely.

    Raises:
      ValueError: If not even one case fits.
    """
    while (bytes_ := needed(block)) > memory_bytes:
        if block == 1:
            raise ValueError(
                f"One case takes {bytes_:,} bytes, more than the {memory_bytes:,} of "
                "`memory_bytes`. Give more memory, or make the case smaller."
            )
        block = max(1, min(block - 1, int(block * 0.95 * memory_bytes / bytes_)))
    return block
