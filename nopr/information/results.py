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
    """The mutual information of mask and data, computed over the given datasets.

    The result is exact if these are the whole law. If they are a sample of a larger law, `bits` is
    the plug-in entropy of that sample: at most log2 of its size, and on average below the truth.

    A batch of keys adds a leading axis of keys. `levels` adds an axis of levels: the last axis of
    the numbers, and the axis after the cases in `outcomes`, `kept` and `masks`. `datasets`,
    `dataset_entropy_bits` and `checked` have neither axis, since they are the same for all.

    Attributes:
      bits: I(m; D | key) = H(m | key) - H(m | D, key).
      entropy_bits: H(m | key).
      conditional_entropy_bits: H(m | D, key), which is 0: the algorithm is a function of both.
      dataset_entropy_bits: H(D), a ceiling on `bits`; equal datasets are merged.
      choice_ceiling_bits: The other ceiling: log2 of the number of masks with the kept counts that
        occur, so log2 C(n, k) when every mask keeps k.
      distinct: Number of masks with positive probability.
      datasets: Number of distinct datasets with positive probability.
      saturated: Whether each of these datasets has a mask of its own. Then `bits` is H(D) and
        cannot distinguish this algorithm from one that copies the data; for a sample, it is only
        the most that a sample of that size can show.
      probabilities: Probability of each distinct mask, largest first; laws with fewer masks than
        others are padded with zeros.
      outcomes: Index of each case's mask among the distinct masks.
      kept: Number of weights kept in each case.
      masks: The mask of each case.
      checked: Whether a second pass confirmed that H(m | D, key) is 0.
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

    def __repr__(self) -> str:
        """One line without arrays: bits, ceilings, counts, and whether saturated and checked."""
        if not all(isinstance(value, int | float | np.ndarray | np.generic) for value in self[:8]):
            return tuple.__repr__(self)  # made by `jax.tree.map` or a trace
        bits, saturated = np.asarray(self.bits), np.asarray(self.saturated)
        of = f" in {bits.size} laws {list(bits.shape)}" if bits.ndim else ""
        if not saturated.any():
            verdict = "not saturated"
        else:
            share = f" in {saturated.sum()} of {saturated.size}" if bits.ndim else ""
            verdict = (
                f"SATURATED{share}: every dataset has a mask of its own, so bits = H(D); if the "
                f"datasets are a sample, that is all that {self.datasets} of them can show"
            )
        return (
            f"Exact({_span(bits)} bits{of} over the {self.datasets} datasets given, "
            f"H(D) {_span(self.dataset_entropy_bits)}, "
            f"choice ceiling {_span(self.choice_ceiling_bits)}; "
            f"{_span(self.distinct)} distinct masks; {verdict}; "
            f"{'checked' if self.checked else 'not checked'})"
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
    """Computes the result from the masks of every case, plain and packed, for each key.

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
        saturated=per_law(distinct == datasets),
        probabilities=np.stack(padded).reshape(*shape, most)[picked],
        outcomes=outcomes[picked[0], :, picked[1]],
        kept=kept[picked[0], :, picked[1]],
        masks=jax.tree.map(lambda *each: np.stack(each), *masks) if keys else masks[0],
        checked=checked,
    )
