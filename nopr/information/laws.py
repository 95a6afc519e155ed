"""The law of a mask: which masks occur, how often, and how many bits a choice of mask can hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt32
from scipy.special import betaln

from nopr import masks as masks_
from nopr import sweeps, trees
from nopr.information.entropies import Values, distribution
from nopr.typing import Masks, is_key, shown, whole_number


class Law(NamedTuple):
    """A law over masks, the most probable first.

    Attributes:
      words: Each distinct mask, packed by `masks.pack`.
      counts: Number of cases with each mask, unweighted, as the entropy estimators take it.
      probabilities: Total weight of the cases with each mask.
      first: Index of the first case with each mask, so that `masks[first]` are the distinct masks.
      outcomes: Index of each case's mask among the distinct masks.
    """

    words: UInt32[np.ndarray, "distinct words"]
    counts: Int64[np.ndarray, " distinct"]
    probabilities: Float64[np.ndarray, " distinct"]
    first: Int64[np.ndarray, " distinct"]
    outcomes: Int64[np.ndarray, " cases"]


def law(masks: Masks, *, weights: Values | None = None) -> Law:
    """Groups equal masks: the law of a mask over many cases, enumerated or sampled.

    With samples, `plug_in(law(masks).counts)` and the like estimate the entropy.

    Args:
      masks: Masks with a leading axis of cases on every leaf.
      weights: Probability of each case, summing to 1; uniform when None.

    Returns:
      The law, on the host.

    Raises:
      ValueError: If the leading axes differ (the leaf is named), there are no cases or no leaves,
        or `weights` are not a law over the cases.

    Example:
      >>> import numpy as np
      >>> from nopr import information
      >>> drawn = {"w": np.array([[1, 0], [0, 1], [1, 0], [1, 1]], bool)}  # four masks of 2 weights
      >>> found = information.law(drawn)
      >>> found.counts.tolist(), found.outcomes.tolist()
      ([2, 1, 1], [0, 1, 0, 2])
      >>> information.plug_in(found.counts)
      1.5
    """
    cases = sweeps.case_count(masks, name="masks")
    for path, leaf in zip(trees.paths(masks), jax.tree.leaves(masks), strict=True):
        if leaf.dtype != bool:
            raise ValueError(f"`masks` must be bool, got {leaf.dtype} at {path!r}.")
    words = np.asarray(_pack(masks))
    return group_words(words, case_weights(weights, cases))


def group_words(
    words: UInt32[np.ndarray, "cases words"], weights: Float64[np.ndarray, " cases"]
) -> Law:
    """The law of packed masks under `weights` that sum to 1."""
    first, outcomes, counts = _group(np.ascontiguousarray(words).view(np.uint8))
    probabilities = np.bincount(outcomes, weights, minlength=len(first))
    probabilities /= probabilities.sum()  # so that a single outcome has exactly 1
    order = np.argsort(-probabilities, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return Law(
        words[first[order]], counts[order], probabilities[order], first[order], rank[outcomes]
    )


def choice_bits(size: int, kept: Any) -> float:
    r"""The bits needed to specify which weights are kept: a ceiling on the entropy of a mask.

    .. math:: \log_2 \sum_{k \in \text{kept}} \binom{\text{size}}{k}

    Args:
      size: Number of prunable weights.
      kept: Number of kept weights, or all numbers that may occur (repeats count once).

    Returns:
      The ceiling in bits.

    Raises:
      ValueError: If a number is not a whole number in [0, size], or there is none.
    """
    size = whole_number("size", size, least=0)
    occurring = np.unique(np.asarray(trees.numbers(kept, "kept")))
    if not occurring.size or occurring.dtype.kind not in "iu":
        raise ValueError(f"`kept` must be whole numbers, at least one, got {shown(kept)}.")
    if occurring[0] < 0 or occurring[-1] > size:
        raise ValueError(f"`kept` must be in [0, {size}], got {shown(kept)}.")
    # C(n, k) = 1 / ((n + 1) B(n - k + 1, k + 1)); betaln does not cancel as three lgammas do.
    k = occurring.astype(np.float64)
    logs = -(betaln(size - k + 1, k + 1) + np.log1p(float(size))) / np.log(2)
    return float(np.logaddexp2.reduce(logs)) + 0.0


def dataset_groups(
    datasets: Any, cases: int
) -> tuple[Int64[np.ndarray, " distinct"], Int64[np.ndarray, " cases"]]:
    """First index of each distinct dataset, and each case's index among them; compares bits."""
    rows = [np.zeros((cases, 1), np.uint8)]  # so that rows without any bytes can be grouped
    for leaf in jax.tree.leaves(datasets):
        plain = jax.random.key_data(leaf) if is_key(leaf) else leaf
        flat = np.ascontiguousarray(plain).reshape(cases, -1)
        rows.append(flat.view(np.uint8) if flat.size else rows[0])
    first, inverse, _ = _group(np.concatenate(rows, axis=1))
    return first, inverse


def case_weights(weights: Values | None, cases: int) -> Float64[np.ndarray, " cases"]:
    """The probability of each case, uniform when `weights` is None.

    Raises:
      ValueError: If `weights` are not a law over `cases` cases.
    """
    if weights is None:
        return np.full(cases, 1 / cases)
    found = distribution(weights, name="weights")
    if len(found) != cases:
        raise ValueError(f"`weights` must have one entry per case, {cases}, got {len(found)}.")
    return found


def _group(
    rows: UInt8[np.ndarray, "cases bytes"],
) -> tuple[
    Int64[np.ndarray, " distinct"], Int64[np.ndarray, " cases"], Int64[np.ndarray, " distinct"]
]:
    """First index, inverse and counts of the distinct rows; comparing bytes is fastest."""
    whole = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").reshape(-1)
    _, first, inverse, counts = np.unique(
        whole, return_index=True, return_inverse=True, return_counts=True
    )
    return first, inverse, counts


_pack = jax.jit(jax.vmap(masks_.pack))
