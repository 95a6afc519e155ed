r"""The code of the packed file: from bits to close to log2 C(n, k) bits, and back.

A mask is the choice of k among n weights. Where more than half are kept, the pruned ones are coded
instead, so that k is at most n / 2.

1. If k is below n / 128, the positions are split (Elias-Fano): the low bits of each are stored as
   they are, and the high parts become a vector of ones and zeros, the i-th one at i plus the i-th
   high part. Its length is k plus the number of possible high parts, its density between 1/65 and
   1/33. This adds less than 0.5%. Otherwise the vector is the mask itself.
2. The vector is cut into patterns of 16 bits. A pattern with j ones has probability
   :math:`p^j (1 - p)^{16 - j}`, where p = k / n in the vector, but at least 2^-31. So every vector
   with k ones takes at most :math:`\log_2 n^n / (k^k (n - k)^{n - k})` bits, which is about
   :math:`\frac12 \log_2 k` more than :math:`\log_2 \binom{n}{k}`.
3. The patterns of all leaves, one after another, are coded by an asymmetric numeral system (rANS)
   with frequencies that sum to 2^31, states below 2^63 and words of 32 bits. Pattern i is in lane i
   modulo the number of lanes, so that NumPy codes as many at once. There is one lane for every
   16,384 patterns; its state of 8 bytes adds at most 0.5%.

Frequencies are made of n and k in whole numbers, so they are the same on every machine. Sizes and
counts alone determine everything but the bits themselves, so nothing else is stored.

Source: Elias 1974, doi:10.1145/321812.321820; Duda 2013, arXiv:1311.2540; Giesen 2014,
arXiv:1402.3392.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt16, UInt32, UInt64

WIDTH = 16  # bits of a pattern
SUM_BITS = 31  # the frequencies of a leaf sum to 2^31
STEPS = 2**14  # patterns in a lane, at most
SPLIT = 128  # where fewer than 1 in so many are kept, positions are split

_LEAST = np.uint64(1 << SUM_BITS)  # the least state between two patterns, and the first
_SLOTS = np.uint64((1 << SUM_BITS) - 1)
_WORD = np.uint64(32)


class DamageError(ValueError):
    """Contents that no mask is coded as; the message is part of a sentence."""


class Choice(NamedTuple):
    """The choice of `kept` of `size` weights, as it is coded; nothing is if all or none are kept.

    Attributes:
      size: Number of weights.
      kept: Number kept.
    """

    size: int
    kept: int

    @property
    def rare(self) -> int:
        """Number of the rarer kind."""
        return min(self.kept, self.size - self.kept)

    @property
    def low_bits(self) -> int:
        """Number of bits of each position that are stored as they are."""
        share = self.size // self.rare if self.rare else 0
        return share.bit_length() - 6 if share >= SPLIT else 0

    @property
    def length(self) -> int:
        """Length of the vector that is cut into patterns."""
        if not self.rare:
            return 0
        split = self.low_bits
        return ((self.size - 1) >> split) + 1 + self.rare if split else self.size

    @property
    def patterns(self) -> int:
        """Number of patterns."""
        return -(-self.length // WIDTH)

    @property
    def bits(self) -> float:
        """About how many bits the code takes."""
        if not self.rare:
            return 0.0
        p = self.rare / self.length
        entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
        return self.length * entropy + self.rare * self.low_bits


def encode(masks: Sequence[Bool[np.ndarray, " _"]]) -> bytes:
    """The code of flat masks: states of the lanes, words, low bits."""
    choices = [Choice(mask.size, int(np.count_nonzero(mask))) for mask in masks]
    frequencies, starts, lows = [], [], []
    for mask, choice in zip(masks, choices, strict=True):
        if choice.rare:
            vector, low = _split(mask if choice.kept == choice.rare else ~mask, choice)
            symbols = _packed(vector).view("<u2")
            ones, offsets = _patterns().ones[symbols], _patterns().offsets[symbols]
            model = _model(choice.length, choice.rare)
            frequencies.append(model.frequencies[ones])
            starts.append(model.starts[ones] + frequencies[-1] * offsets)
            lows.append(low)
    if not lows:
        return b""
    states, words = _push(np.concatenate(frequencies), np.concatenate(starts))
    low = np.packbits(np.concatenate(lows), bitorder="little")
    return b"".join([states.astype("<u8").tobytes(), words.astype("<u4").tobytes(), low.tobytes()])


def decode(code: bytes, choices: Sequence[Choice]) -> list[Bool[np.ndarray, " _"]]:
    """The flat masks of a code.

    Args:
      code: What `encode` returned.
      choices: Size and number of kept weights of each mask.

    Raises:
      DamageError: If it is the code of no such masks.
    """
    coded = [choice for choice in choices if choice.rare]
    lanes = -(-sum(choice.patterns for choice in coded) // STEPS)
    low_length = -(-sum(choice.rare * choice.low_bits for choice in coded) // 8)
    length = len(code) - 8 * lanes - low_length
    # A claim of many weights ends here, before anything of their size is made.
    # Patterns of ones alone, at 31 bits each, can take 0.4 of the bits; no mask takes a quarter.
    fits = length >= 0 and length % 4 == 0 and (bool(coded) or not code)
    if not fits or 8 * len(code) < sum(choice.bits for choice in coded) / 4:
        raise DamageError("its counts do not fit the length of its masks")
    states = np.frombuffer(code, "<u8", lanes).astype(np.uint64)
    words = np.frombuffer(code, "<u4", length // 4, 8 * lanes).astype(np.uint64)
    low = np.unpackbits(
        np.frombuffer(code, np.uint8, low_length, 8 * lanes + length), bitorder="little"
    )
    symbols = _pop(states, words, coded)
    masks, place, low_place = [], 0, 0
    for choice in choices:
        if not choice.rare:
            masks.append(np.full(choice.size, choice.kept > 0))
            continue
        ends = place + choice.patterns, low_place + choice.rare * choice.low_bits
        mask = _joined(symbols[place : ends[0]], low[low_place : ends[1]], choice)
        masks.append(mask if choice.kept == choice.rare else ~mask)
        place, low_place = ends
    if low[low_place:].any():
        raise DamageError("its low bits do not end in zeros")
    return masks


# --- One leaf -----------------------------------------------------------------------------------


def _split(
    mask: Bool[np.ndarray, " _"], choice: Choice
) -> tuple[Bool[np.ndarray, " _"], UInt8[np.ndarray, " _"]]:
    """The vector of a mask that is rarely true, and its low bits."""
    split = choice.low_bits
    if not split:
        return mask, np.zeros(0, np.uint8)
    positions = np.flatnonzero(mask)
    vector = np.zeros(choice.length, bool)
    vector[(positions >> split) + np.arange(choice.rare)] = True
    low = (positions[:, None] >> np.arange(split)) & 1
    return vector, low.astype(np.uint8).reshape(-1)


def _joined(
    symbols: UInt16[np.ndarray, " _"], low: UInt8[np.ndarray, " _"], choice: Choice
) -> Bool[np.ndarray, " _"]:
    """The mask of a vector in patterns and low bits: the inverse of `_split`."""
    bits = np.unpackbits(symbols.astype("<u2").view(np.uint8), bitorder="little").view(bool)
    ones = np.flatnonzero(bits)
    if len(ones) != choice.rare or ones[-1] >= choice.length:
        raise DamageError("its counts do not fit its masks")
    split = choice.low_bits
    if not split:
        return bits[: choice.size].copy()
    low_parts = low.reshape(choice.rare, split).astype(np.int64) << np.arange(split)
    positions = ((ones - np.arange(choice.rare)) << split) + low_parts.sum(1)
    if positions[-1] >= choice.size or (np.diff(positions) <= 0).any():
        raise DamageError("its masks hold a position twice or out of range")
    mask = np.zeros(choice.size, bool)
    mask[positions] = True
    return mask


def _packed(bits: Bool[np.ndarray, " _"]) -> UInt8[np.ndarray, " _"]:
    """Bits in bytes, the first lowest, with zeros up to a whole pattern."""
    data = np.packbits(bits, bitorder="little")
    return np.pad(data, (0, len(data) % 2))


# --- The model ----------------------------------------------------------------------------------


class _Patterns(NamedTuple):
    """All patterns; within a number of ones they are ordered by value.

    Attributes:
      ones: Number of ones of each pattern.
      offsets: Place of each pattern among those with as many ones.
      ordered: The patterns, by number of ones and then by value.
      first: Place in `ordered` of the first pattern with each number of ones.
    """

    ones: Int64[np.ndarray, " patterns"]
    offsets: UInt64[np.ndarray, " patterns"]
    ordered: UInt16[np.ndarray, " patterns"]
    first: UInt64[np.ndarray, " ones"]


@functools.cache
def _patterns() -> _Patterns:
    ones = np.array([value.bit_count() for value in range(2**WIDTH)])
    ordered = np.argsort(ones, kind="stable")
    first = np.searchsorted(ones[ordered], np.arange(WIDTH + 1))
    places = np.empty_like(ordered)
    places[ordered] = np.arange(2**WIDTH)
    offsets = (places - first[ones]).astype(np.uint64)
    return _Patterns(ones, offsets, ordered.astype(np.uint16), first.astype(np.uint64))


class _Model(NamedTuple):
    """Frequencies of patterns by their number of ones.

    Attributes:
      frequencies: That of each single pattern.
      starts: Sum of those of all patterns with fewer ones.
    """

    frequencies: UInt64[np.ndarray, " ones"]
    starts: UInt64[np.ndarray, " ones"]


def _model(length: int, ones: int) -> _Model:
    """The model of a vector; each pattern has a frequency, and that of zeros takes what is left."""
    scale = 2**SUM_BITS - 2**WIDTH
    found = [
        1 + scale * ones**j * (length - ones) ** (WIDTH - j) // length**WIDTH
        for j in range(WIDTH + 1)
    ]
    sums = [math.comb(WIDTH, j) * each for j, each in enumerate(found)]
    found[0] = sums[0] = 2**SUM_BITS - sum(sums[1:])
    starts = [sum(sums[:j]) for j in range(WIDTH + 1)]
    return _Model(np.array(found, np.uint64), np.array(starts, np.uint64))


# --- The lanes ----------------------------------------------------------------------------------


def _push(
    frequencies: UInt64[np.ndarray, " n"], starts: UInt64[np.ndarray, " n"]
) -> tuple[UInt64[np.ndarray, " lanes"], UInt32[np.ndarray, " words"]]:
    """The states and the words after all patterns, from the last to the first."""
    lanes = -(-len(starts) // STEPS)
    states, words = np.full(lanes, _LEAST), []
    for begin in reversed(range(0, len(starts), lanes)):
        f, start = frequencies[begin : begin + lanes], starts[begin : begin + lanes]
        state = states[: len(f)]  # a view: the last row may be short
        full = state >= f << _WORD
        words.append(state[full].astype(np.uint32))
        state[full] >>= _WORD
        whole, rest = np.divmod(state, f)
        state[:] = (whole << np.uint64(SUM_BITS)) + rest + start
    return states, np.concatenate(words[::-1])


def _pop(
    states: UInt64[np.ndarray, " lanes"],
    words: UInt64[np.ndarray, " words"],
    choices: Sequence[Choice],
) -> UInt16[np.ndarray, " patterns"]:
    """The patterns of all leaves: the inverse of `_push`."""
    counts = [choice.patterns for choice in choices]
    models = [_model(choice.length, choice.rare) for choice in choices]
    owners = np.repeat(np.arange(len(models)), counts)
    symbols = np.empty(sum(counts), np.uint16)
    if not models:
        return symbols
    frequencies = np.stack([model.frequencies for model in models])
    starts = np.stack([model.starts for model in models])
    ordered, first = _patterns().ordered, _patterns().first
    place, lanes = 0, len(states)
    for begin in range(0, len(symbols), lanes):
        owner = owners[begin : begin + lanes]
        state = states[: len(owner)]
        slots = state & _SLOTS
        ones = np.count_nonzero(slots[:, None] >= starts[owner, 1:], axis=1)
        f, rest = frequencies[owner, ones], slots - starts[owner, ones]
        offsets, rest = np.divmod(rest, f)
        symbols[begin : begin + lanes] = ordered[first[ones] + offsets]
        state[:] = f * (state >> np.uint64(SUM_BITS)) + rest
        low = np.flatnonzero(state < _LEAST)
        read = words[place : place + len(low)]
        if len(read) < len(low):
            raise DamageError("its masks end too early")
        state[low] = (state[low] << _WORD) | read
        place += len(low)
    if place != len(words) or (states != _LEAST).any():
        raise DamageError("its masks do not end where their code does")
    return symbols
