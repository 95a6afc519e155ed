r"""Entropies of discrete laws in bits, known or estimated from samples. Host functions, float64.

Every estimator takes `counts`: how often each outcome was seen, :math:`n_i`, with
:math:`N = \sum_i n_i` samples of :math:`K` observed outcomes. Zeros are ignored. Estimates are
never clamped at 0, which would bias the null. All are too low on average when most outcomes are
rarely seen, the plug-in most of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Float64
from scipy.special import digamma

from nopr import trees

Values: TypeAlias = Sequence[Any] | np.ndarray | jax.Array
"""A vector of numbers: a list, or a NumPy or JAX array with one axis."""

_SUM_TOLERANCE = 1e-6  # a float32 vector of any length sums to 1 well within it
_NATS = math.log(2)  # nats in one bit


def entropy(probabilities: Values) -> float:
    r"""The entropy of a known law, :math:`H = -\sum_i p_i \log_2 p_i`, in bits.

    Args:
      probabilities: The law, a vector; zeros add nothing. It is divided by its sum, which must be 1
        to within rounding (1e-6).

    Returns:
      Entropy in bits, exactly 0.0 when one outcome has all the mass.

    Raises:
      ValueError: If `probabilities` are negative, not finite or empty, or do not sum to 1.
    """
    return entropy_bits(distribution(probabilities, name="probabilities"))


def plug_in(counts: Values) -> float:
    r"""The entropy of the observed frequencies, :math:`-\sum_i (n_i/N) \log_2 (n_i/N)`, in bits.

    It never exceeds :math:`\log_2 N`, and is biased down by about :math:`(K - 1) / (2N)` nats.

    Args:
      counts: Number of times each outcome was seen, a vector.

    Returns:
      The estimate in bits.

    Raises:
      ValueError: If `counts` are negative, not whole, or without a single sample.
    """
    seen = _observed(counts)
    return entropy_bits(seen / seen.sum())


def miller_madow(counts: Values) -> float:
    r"""The plug-in entropy with its first-order bias, :math:`(K - 1) / (2N)` nats, added; in bits.

    Args:
      counts: Number of times each outcome was seen, a vector.

    Returns:
      The estimate in bits.

    Raises:
      ValueError: If `counts` are negative, not whole, or without a single sample.

    Source: Miller 1955, "Note on the bias of information estimates".
    """
    seen = _observed(counts)
    return entropy_bits(seen / seen.sum()) + (len(seen) - 1) / (2 * float(seen.sum())) / _NATS


def grassberger(counts: Values) -> float:
    r"""Grassberger's digamma estimator of entropy, in bits.

    .. math::
        H = \ln N - \frac{1}{N} \sum_i n_i G(n_i), \qquad
        G(n) = \psi(n) + \frac{(-1)^n}{2}
               \left[\psi\left(\frac{n+1}{2}\right) - \psi\left(\frac{n}{2}\right)\right]

    It can be slightly below 0 when nearly all the samples agree.

    Args:
      counts: Number of times each outcome was seen, a vector.

    Returns:
      The estimate in bits.

    Raises:
      ValueError: If `counts` are negative, not whole, or without a single sample.

    Source: Grassberger 2003, arXiv:physics/0307138.
    """
    seen = _observed(counts)
    sign = 1.0 - 2.0 * (seen % 2)
    logs = digamma(seen) + sign / 2 * (digamma((seen + 1) / 2) - digamma(seen / 2))
    total = float(seen.sum())
    return float(math.log(total) - np.sum(seen * logs) / total) / _NATS


def chao_shen(counts: Values) -> float:
    r"""The coverage-adjusted entropy of Chao and Shen, in bits.

    The frequencies are shrunk by the estimated coverage :math:`C = 1 - f_1/N`, where :math:`f_1`
    outcomes were seen once, and each term is divided by the probability that its outcome is seen
    (Horvitz and Thompson):

    .. math:: H = -\sum_i \frac{C p_i \ln (C p_i)}{1 - (1 - C p_i)^N}, \qquad p_i = n_i / N

    When all samples differ, the coverage would be 0; the usual remedy, used here, is
    :math:`f_1 = N - 1`.

    Args:
      counts: Number of times each outcome was seen, a vector.

    Returns:
      The estimate in bits.

    Raises:
      ValueError: If `counts` are negative, not whole, or without a single sample.

    Source: Chao and Shen 2003, doi:10.1023/A:1026096204727.
    """
    seen = _observed(counts)
    total = float(seen.sum())
    singletons = min(float(np.sum(seen == 1)), total - 1)
    shrunk = (1 - singletons / total) * seen / total
    with np.errstate(divide="ignore"):  # a single outcome: exp(log(0)) is 0
        included = -np.expm1(total * np.log1p(-shrunk))
    return float(-np.sum(shrunk * np.log2(shrunk) / included)) + 0.0


def distribution(values: Values, *, name: str) -> Float64[np.ndarray, " outcomes"]:
    """The probabilities `values` in float64, divided by their sum.

    Raises:
      ValueError: If they are negative, not finite or empty, or do not sum to 1; the message calls
        them `name`.
    """
    found = _vector(values, name)
    if np.any(found < 0):
        raise ValueError(f"`{name}` must not be negative, got {found.min()}.")
    total = float(found.sum())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise ValueError(f"`{name}` must sum to 1, got {total}. Divide them by their sum.")
    return found / total


def entropy_bits(probabilities: Float[np.ndarray, " outcomes"]) -> float:
    """The entropy in bits of validated probabilities; 0.0, not -0.0, for a single outcome."""
    positive = probabilities[probabilities > 0]
    return float(-np.sum(positive * np.log2(positive))) + 0.0


def _observed(counts: Values) -> Float64[np.ndarray, " seen"]:
    """The positive counts, in float64."""
    found = _vector(counts, "counts")
    if np.any(found < 0):
        raise ValueError(f"`counts` must not be negative, got {found.min():g}.")
    if np.any(found % 1):
        wrong = found[found % 1 != 0][0]
        raise ValueError(
            f"`counts` must be whole numbers, got {wrong}. For probabilities, use `entropy`."
        )
    if not found.any():
        raise ValueError(f"`counts` must hold at least one sample, got {len(found)} zeros.")
    return found[found > 0]


def _vector(values: Values, name: str) -> Float64[np.ndarray, " n"]:
    """Finite numbers along one axis, in float64."""
    found = np.asarray(trees.numbers(values, name))
    if found.dtype.kind not in "iuf":
        raise ValueError(f"`{name}` must be numbers, got dtype {found.dtype}.")
    if found.ndim != 1 or not found.size:
        raise ValueError(f"`{name}` must be a non-empty vector, got shape {found.shape}.")
    if not np.all(np.isfinite(found)):
        wrong = found[~np.isfinite(found)][0]
        raise ValueError(f"`{name}` must be finite, got {wrong}.")
    return found.astype(np.float64)
