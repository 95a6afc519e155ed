"""The result of an enumeration: the law of the mask on every dataset, and its bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt32

from nopr.information import laws
from nopr.information.entropies import entropy_bits
from nopr.typing import Masks


class Exact(NamedTuple):
    """What a mask knows about its data, computed over the datasets that were given.

    It is exact if these are the whole law. If they are a sample of a larger law, `bits` is the
    plug-in entropy of that sample: at most log2 of its size, and on average below the truth.

    A batch of keys adds a leading axis of keys, and `levels` an axis of levels: the last one of
    the numbers, and the one after the cases in `outcomes`, `kept` and `masks`. `datasets`,
    `dataset_entropy_bits`, `checked` and the sizes have neither: they are the same for all.

    Attributes:
      bits: I(m; D | key) = H(m | key) - H(m | D, key).
      entropy_bits: H(m | key).
      conditional_entropy_bits: H(m | D, key), which is 0: the algorithm is a function of both.
      dataset_entropy_bits: H(D), a ceiling on `bits`; equal datasets are merged.
      choice_ceiling_bits: log2 of the number of masks with the kept counts that occur, the other
        ceiling: log2 C(n, k) when every mask keeps k.
      distinct: Number of masks with positive probability.
      datasets: Number of distinct datasets with positive probability.
      saturated: Whether each of these, if there are two or more, has a mask of its own, so that
        `bits` is H(D) and cannot tell this algorithm from one that copies the data. For a sample,
        it is no more than what a sample of that size can show.
      probabilities: Probability of each distinct mask, largest first; laws with fewer masks than
        others are padded with zeros.
      outcomes: Index of each case's mask among the distinct masks.
      kept: Number of weights kept in each case.
      masks: The mask of each case.
      checked: Whether a second pass confirmed that H(m | D, key) is 0.
      cases: Number of datasets given, equal ones included.
      keys: Number of keys.
      levels: Number of levels; 1 without `levels`.
    """

    bits: float | Float64[np.ndarray, "*laws"]
    entropy_bits: float | Float64[np.ndarray, "*laws"]
    conditional_entropy_bits: float | Float64[np.ndarray, "*laws"]
    dataset_entropy_bits: float
    choice_ceiling_bits: float | Float64[np.ndarray, "*laws"]
    distinct: int | Int64[np.ndarray, "*laws"]
    datasets: int
    saturated: bool | Bool[np.ndarray, "*laws"]
    probabilities: Float64[np.ndarray, "*laws most"]
    outcomes: Int64[np.ndarray, "..."]
    kept: Int64[np.ndarray, "..."]
    masks: Masks
    checked: bool
    cases: int
    keys: int
    levels: int

    def __repr__(self) -> str:
        """One line: bits, their law, ceilings, masks, saturation, the check; no arrays."""
        if not all(isinstance(value, int | float | np.ndarray | np.generic) for value in self[:8]):
            return tuple.__repr__(self)  # made by `jax.tree.map` or a trace
        given = f"{self.cases} datasets"
        if self.datasets != self.cases:
            given = f"{self.datasets} distinct of {given}"
        axes = (self.keys, "keys"), (self.levels, "levels")
        many = [f"{number} {name}" for number, name in axes if number > 1]
        laws = f" for {' x '.join(many)}" if many else ""
        kept = np.reshape(self.kept, (self.keys, self.cases, self.levels))
        choices = "log2 C(n,k)" if (kept == kept[:, :1]).all() else "log2 sum_k C(n,k)"
        saturated = np.asarray(self.saturated)
        verdict = "not saturated"
        if saturated.any():
            share = f" in {saturated.sum()} of {saturated.size}" if many else ""
            verdict = f"SATURATED{share}: a mask of its own for every dataset, so bits = H(D)"
        checked = "checked" if self.checked else "not checked"
        return (
            f"Exact({_span(self.bits)} bits{laws} over {given}, taken as all there are; "
            f"H(D) = {_span(self.dataset_entropy_bits)}, {choices} = "
            f"{_span(self.choice_ceiling_bits)}; {_span(self.distinct)} distinct masks; {verdict}; "
            f"H(m|D) = 0 {checked} by a second pass)"
        )


def _span(values: Any) -> str:
    low, high = np.min(values), np.max(values)
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def summarize(
    masks: Sequence[Masks],
    words: Sequence[UInt32[np.ndarray, "cases levels words"]],
    weights: Float64[np.ndarray, " cases"],
    dataset: Int64[np.ndarray, " cases"],
    *,
    keys: bool,
    levels: bool,
    checked: bool,
) -> Exact:
    """Builds the result from the masks of every case under each key.

    Args:
      masks: For each key, the masks of every case.
      words: For each key, the same masks packed, with an axis of levels.
      weights: Probability of each case.
      dataset: Index of each case's dataset among the distinct ones.
      keys: Whether the result has an axis of keys.
      levels: Whether the result, and `masks`, have an axis of levels.
      checked: Whether a second pass agreed.
    """
    each = [[laws.group_words(w[:, i], weights) for i in range(w.shape[1])] for w in words]
    every = [law for row in each for law in row]
    shape = (len(each), len(each[0]))
    picked = (slice(None) if keys else 0, slice(None) if levels else 0)

    def per_law(values: Any) -> Any:
        found = np.array(values).reshape(shape)[picked]
        return found if found.ndim else found.item()

    size = sum(math.prod(leaf.shape[1 + levels :]) for leaf in jax.tree.leaves(masks[0]))
    kept = np.stack([np.bitwise_count(w).sum(-1, dtype=np.int64) for w in words])
    occurring = np.moveaxis(kept[:, weights > 0], 1, -1).reshape(len(every), -1)
    most = max(len(law.probabilities) for law in every)
    padded = [np.pad(law.probabilities, (0, most - len(law.probabilities))) for law in every]
    outcomes = np.stack([np.stack([law.outcomes for law in row], axis=-1) for row in each])
    entropies = np.array([entropy_bits(law.probabilities) for law in every])
    conditional = np.zeros_like(entropies)
    distinct = np.array([np.count_nonzero(law.probabilities) for law in every])
    mass = np.bincount(dataset, weights)
    datasets = int(np.count_nonzero(mass))
    return Exact(
        bits=per_law(entropies - conditional),
        entropy_bits=per_law(entropies),
        conditional_entropy_bits=per_law(conditional),
        dataset_entropy_bits=entropy_bits(mass / weights.sum()),
        choice_ceiling_bits=per_law([laws.choice_bits(size, k) for k in occurring]),
        distinct=per_law(distinct),
        datasets=datasets,
        saturated=per_law((distinct == datasets) & (datasets > 1)),
        probabilities=np.stack(padded).reshape(*shape, most)[picked],
        outcomes=outcomes[picked[0], :, picked[1]],
        kept=kept[picked[0], :, picked[1]],
        masks=jax.tree.map(lambda *each: np.stack(each), *masks) if keys else masks[0],
        checked=checked,
        cases=len(weights),
        keys=shape[0],
        levels=shape[1],
    )
