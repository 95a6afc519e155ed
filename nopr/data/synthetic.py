r"""Cube datasets: few enough that a pruning algorithm can run on every one of them.

A dataset is a handful of labeled corners of :math:`\{-1, 1\}^d`. Its law is known exactly, and so
is the entropy H(D), a ceiling on the information that any mask has about the data.

Source: "No Free Prune", arXiv:2402.01089, Appendix C.2.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, Key

from nopr.typing import check_key, shown, whole_number

LAWS = ("distinct", "label_per_draw", "label_per_point")
"""How points and labels are drawn; see `cube`."""

Symbols: TypeAlias = Int[np.ndarray, "n points"]
"""Labeled points as numbers, twice the corner plus the label; ascending in each row."""

_MOST = 2**22
_MOST_DIMENSIONS = 29  # symbols are int32


class Enumeration(NamedTuple):
    """Every dataset of a law, and its probability.

    Attributes:
      datasets: Inputs float32 [n, points, dimension] and labels float32 [n, points], all -1 or 1.
      weights: Probability of each dataset; they sum to 1.
      entropy_bits: H(D), the ceiling on the mutual information of a mask and the data.
    """

    datasets: tuple[Float32[np.ndarray, "n points dimension"], Float32[np.ndarray, "n points"]]
    weights: Float64[np.ndarray, " n"]
    entropy_bits: float


def cube(*, dimension: int = 3, points: int = 6, law: str = "distinct") -> Enumeration:
    r"""Enumerates the datasets of `points` labeled corners of the cube, without their order.

    The laws, each with its number of datasets and H(D) for 6 points in 3 dimensions:

    - `"distinct"`: all points differ; points and labels are uniform. 1,792 datasets, 10.81 bits.
    - `"label_per_draw"`: points are drawn with replacement, and every draw has its own label, so
      that a point may have both labels. 54,264 multisets, 15.41 bits.
    - `"label_per_point"`: points are drawn with replacement, and a point always has the same
      label. 27,008 multisets, 14.67 bits.

    A multiset in which labeled point :math:`i` occurs :math:`c_i` times comes from
    :math:`m! / \prod_i c_i!` equally probable ordered draws of :math:`m` points.

    Args:
      dimension: Dimension of the cube, d; it has 2^d corners.
      points: Number of examples in a dataset, m.
      law: The law of points and labels.

    Returns:
      The datasets, their weights and H(D).

    Raises:
      ValueError: If there is no such dataset, or more than 2^22.

    Source: "No Free Prune", arXiv:2402.01089, Appendix C.2, where the law is left open.
    """
    dimension, points = _checked(dimension, points, law)
    corners = 2**dimension
    if _total(corners, points, law) > _MOST:
        raise ValueError(
            f"The law {law!r} has more datasets of {points} points in {dimension} dimensions than "
            f"the {_MOST} that can be enumerated. Draw some with `sample_cube`."
        )
    symbols = _distinct(corners, points) if law == "distinct" else _multisets(corners, points)
    if law == "label_per_point":
        symbols = symbols[_is_consistent(symbols)]
    weights = _weights(symbols, corners, law)
    entropy_bits = -math.fsum(weights * np.log2(weights))
    return Enumeration(_decode(symbols, dimension, np), weights, entropy_bits)


def sample_cube(
    count: int, *, dimension: int = 3, points: int = 6, law: str = "distinct", key: Key[Array, ""]
) -> tuple[Float[Array, "n points dimension"], Float[Array, "n points"]]:
    """Draws datasets from a law of `cube`, with the points in the order of `cube`.

    Args:
      count: Number of datasets.
      dimension: Dimension of the cube.
      points: Number of examples in a dataset.
      law: The law of points and labels.
      key: Typed key.

    Returns:
      Inputs and labels, all -1 or 1; equal multisets are equal arrays.

    Raises:
      ValueError: If there is no such dataset.
    """
    dimension, points = _checked(dimension, points, law)
    count = whole_number("count", count, most=_MOST)
    check_key(key)
    corners = 2**dimension

    def draw(key: Key[Array, ""]) -> Int[Array, " points"]:
        point_key, label_key = jax.random.split(key)
        if law == "distinct":
            corner = jax.random.permutation(point_key, corners)[:points]
        else:
            corner = jax.random.randint(point_key, (points,), 0, corners)
        each = law == "label_per_point"
        label = jax.random.bernoulli(label_key, shape=(corners if each else points,))
        return jnp.sort(2 * corner + (label[corner] if each else label))

    return _decode(jax.vmap(draw)(jax.random.split(key, count)), dimension, jnp)


def _checked(dimension: int, points: int, law: str) -> tuple[int, int]:
    if law not in LAWS:
        raise ValueError(f"`law` must be one of {', '.join(LAWS)}, got {shown(law)}.")
    dimension = whole_number("dimension", dimension, most=_MOST_DIMENSIONS)
    points = whole_number("points", points, most=_MOST)
    if law == "distinct" and points > 2**dimension:
        raise ValueError(
            f"`points` must be at most 2^{dimension} = {2**dimension} for the law 'distinct', got "
            f"{points}. Choose a law with repetition, or more dimensions."
        )
    return dimension, points


def _total(corners: int, points: int, law: str) -> float:
    """The number of datasets that the enumeration visits; infinite if it is far too large."""
    if min(points, corners) > math.log2(_MOST):  # each point at least doubles it
        return math.inf
    if law == "distinct":
        return math.comb(corners, points) * 2**points
    return math.comb(2 * corners + points - 1, points)


def _distinct(corners: int, points: int) -> Symbols:
    chosen = np.array(list(itertools.combinations(range(corners), points)))
    labels = np.array(list(itertools.product((0, 1), repeat=points)))
    return (2 * chosen[:, None] + labels).reshape(-1, points)


def _multisets(corners: int, points: int) -> Symbols:
    return np.array(list(itertools.combinations_with_replacement(range(2 * corners), points)))


def _is_consistent(symbols: Symbols) -> np.ndarray:
    """Whether no point of a row has both labels."""
    same_point = symbols[:, 1:] // 2 == symbols[:, :-1] // 2
    return ~np.any(same_point & (symbols[:, 1:] != symbols[:, :-1]), axis=1)


def _weights(symbols: Symbols, corners: int, law: str) -> Float64[np.ndarray, " n"]:
    rows, points = symbols.shape
    if law == "distinct":
        return np.full(rows, 1 / rows)
    orders = math.factorial(points) / _repeats(symbols)
    if law == "label_per_draw":
        return orders / float(2 * corners) ** points
    distinct = 1 + np.sum(symbols[:, 1:] != symbols[:, :-1], axis=1)
    return orders / (float(corners) ** points * 2.0**distinct)


def _repeats(symbols: Symbols) -> Float64[np.ndarray, " n"]:
    """The product of the factorials of the multiplicities in each row.

    The j-th of equal neighbors contributes j, and 1 * 2 * ... * c = c!.
    """
    place = np.ones(symbols.shape)
    for column in range(1, symbols.shape[1]):
        again = symbols[:, column] == symbols[:, column - 1]
        place[:, column] += again * place[:, column - 1]
    return place.prod(axis=1)


def _decode(symbols, dimension: int, numpy):
    """Symbols to (inputs, labels) of -1 and 1; the first coordinate is the highest bit."""
    bits = symbols[..., None] // 2 >> numpy.arange(dimension - 1, -1, -1) & 1
    return _signs(bits, numpy), _signs(symbols & 1, numpy)


def _signs(bits, numpy):
    return (2 * bits - 1).astype(numpy.float32)
