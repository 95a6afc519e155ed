"""Layer distributions: from shapes and a density to an exact kept count per layer.

A distribution is a function `(shapes, *, density) -> counts`, such as `erk`; its counts sum to
round(density * n), by largest remainder. One that depends on the order of the layers is made by a
constructor that is told the order by path, and is called `(shapes, *, density, paths)`: the leaves
of a tree are sorted by name, so that Dense_10 comes before Dense_2.

With a granularity, layers are made of granules: the shapes are those of the granules of each leaf,
and counts are of granules.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int, PyTree

from nopr import budgets, trees
from nopr.typing import Counts, Shapes, check_form, shown, takes


def uniform(shapes: Shapes, *, density: float) -> Counts:
    """Kept weights per layer with the same density in each.

    Args:
      shapes: Shape of each prunable layer.
      density: Kept fraction over all prunable weights, in [0, 1].

    Returns:
      Kept count per layer; they sum to round(density * n) exactly.

    Raises:
      ValueError: If `density` is outside [0, 1].
    """
    sizes, total = _sizes(shapes, density)
    return tuple(budgets.share(total, sizes))


def erk(shapes: Shapes, *, density: float) -> Counts:
    r"""Kept weights per layer by the Erdős–Rényi-kernel rule.

    Layer :math:`l` with dimensions :math:`n_i` keeps a share proportional to
    :math:`\sum_i n_i / \prod_i n_i`. A layer whose share would exceed 1 becomes dense, and the
    rest is shared again. Every dimension counts, so that an attention kernel [in, heads, features]
    keeps less than its matrix [in, heads * features] would. Granules of one dimension, such as
    filters, all have the same share, so that ERK of filters is `uniform`.

    Args:
      shapes: Shape of each prunable layer.
      density: Kept fraction over all prunable weights, in [0, 1].

    Returns:
      Kept count per layer; they sum to round(density * n) exactly.

    Raises:
      ValueError: If `density` is outside [0, 1].

    Example:
      >>> from nopr import densities
      >>> densities.erk(((784, 300), (300, 100), (100, 10)), density=0.05)  # 235,200; 30,000; 1,000
      (9051, 3340, 919)

    Source: Evci et al. 2020, arXiv:1911.11134.
    """
    sizes, total = _sizes(shapes, density)
    # The raw share times the size is the sum of the dimensions: the layer's weight in the split. A
    # scalar counts as one dimension of 1.
    quotas = _filled(total, [sum(shape or (1,)) for shape in shapes], sizes)
    return trees.largest_remainder(quotas, total)


def igq(shapes: Shapes, *, density: float) -> Counts:
    r"""Kept weights per layer by ideal gas quotas.

    Layer :math:`l` with :math:`N_l` weights has density :math:`1 / (1 + F N_l)`, where the force
    :math:`F` on all layers is found by bisection, so that the total is exact. Small layers stay
    almost whole, and large layers of any size keep at most :math:`1 / F` weights.

    Args:
      shapes: Shape of each prunable layer.
      density: Kept fraction over all prunable weights, in [0, 1].

    Returns:
      Kept count per layer; they sum to round(density * n) exactly.

    Raises:
      ValueError: If `density` is outside [0, 1].

    Example:
      >>> from nopr import densities
      >>> densities.igq(((784, 300), (300, 100), (100, 10)), density=0.05)  # 235,200; 30,000; 1,000
      (6775, 5660, 875)

    Source: Vysogorets and Kempe 2023, arXiv:2107.02306.
    """
    sizes, total = _sizes(shapes, density)
    if total in (0, sum(sizes)):
        return tuple(sizes) if total else (0,) * len(sizes)
    low, high = 0.0, len(sizes) / total  # no layer keeps more than 1 / F
    while low < (force := (low + high) / 2) < high:
        if math.fsum(size / (1 + force * size) for size in sizes) > total:
            low = force
        else:
            high = force
    kept = [Fraction(size / (1 + high * size)) for size in sizes]
    scale = Fraction(total) / sum(kept)  # 1 but for the rounding of floats
    return trees.largest_remainder([scale * each for each in kept], total)


def uniform_plus(*, first: str, last: str) -> Callable[..., Counts]:
    """The distribution with a dense first layer, a fifth of the last, and one density elsewhere.

    The first layer is kept whole. All other layers have the same density; where that would be below
    20%, the last layer keeps 20%, rounded up, and the rest share what remains.

    Args:
      first: The path of the layer that reads the network's inputs.
      last: The path of the layer that computes its outputs.

    Returns:
      The distribution `(shapes, *, density, paths) -> counts`. The counts sum to round(density * n)
      exactly. It raises a ValueError if `paths`, those of the layers, lack `first` or `last`, or
      the density is too low for what the two keep; where round(density * n) is 0, nothing is kept.

    Raises:
      ValueError: If `first` and `last` are not the paths of two layers.

    Example:
      >>> from nopr import densities
      >>> rule = densities.uniform_plus(first="conv/kernel", last="head/kernel")
      >>> shapes = ((3, 3, 3, 16), (3, 3, 16, 64), (64, 10))  # 432, 9,216 and 640 weights
      >>> rule(shapes, density=0.1, paths=("conv/kernel", "deep/kernel", "head/kernel"))
      (432, 469, 128)

    Source: Gale et al. 2019, arXiv:1902.09574.
    """
    _check_paths((first, last), "`first` and `last` must be the paths of two layers")

    def distribution(shapes: Shapes, *, density: float, paths: Sequence[str]) -> Counts:
        sizes, total = _sizes(shapes, density)
        [start] = _places([first], paths, sizes, argument="first")
        [end] = _places([last], paths, sizes, argument="last")
        fifth = -(-sizes[end] // 5)
        if not total:
            return (0,) * len(sizes)
        _check_enough(
            density, total, sizes, sizes[start] + fifth, f"all of {first!r} and a fifth of {last!r}"
        )
        left = total - sizes[start]
        counts = budgets.share(left, [0 if i == start else n for i, n in enumerate(sizes)])
        if counts[end] < fifth:
            rest = [0 if i in (start, end) else n for i, n in enumerate(sizes)]
            counts = budgets.share(left - fifth, rest)
        kept = {start: sizes[start], end: max(counts[end], fifth)}
        return tuple(kept.get(i, count) for i, count in enumerate(counts))

    return distribution


def smart_ratio(layers: Sequence[str]) -> Callable[..., Counts]:
    r"""The distribution that keeps less of the later layers, and 30% of the classifier.

    Layer :math:`l` of :math:`L` keeps a share proportional to :math:`(L - l + 1)^2 + (L - l + 1)`.
    The last layer keeps 30%, more only where all the others are dense. A layer whose share would
    exceed 1 becomes dense, and the rest is shared again. The released code further divides the
    shares of VGG by :math:`l^2`; this does not.

    Args:
      layers: The paths of all prunable layers, in the order in which they are applied; the last is
        the classifier.

    Returns:
      The distribution `(shapes, *, density, paths) -> counts`. The counts sum to round(density * n)
      exactly. It raises a ValueError if `paths`, those of the layers, are not those of `layers`, or
      the density is too low for 30% of the classifier; where round(density * n) is 0, nothing is
      kept.

    Raises:
      ValueError: If `layers` are not the paths of two or more layers.

    Example:
      >>> from nopr import densities
      >>> rule = densities.smart_ratio(["Dense_2", "Dense_10", "Dense_11"])
      >>> shapes = ((50, 20), (20, 10), (40, 50))  # 1,000; 200; 2,000
      >>> rule(shapes, density=0.2, paths=("Dense_10", "Dense_11", "Dense_2"))
      (116, 60, 464)

    Source: Su et al. 2020, arXiv:2009.11094.
    """
    _check_paths(layers, "`layers` must be the paths of two or more layers, in order")

    def distribution(shapes: Shapes, *, density: float, paths: Sequence[str]) -> Counts:
        sizes, total = _sizes(shapes, density)
        places = _places(layers, paths, sizes, argument="layers")
        for path in paths:
            if path not in layers:
                raise ValueError(f"`layers` must name every layer in order, but lacks {path!r}.")
        if not total:
            return (0,) * len(sizes)
        end = places[-1]
        _check_enough(density, total, sizes, Fraction(3 * sizes[end], 10), f"30% of {layers[-1]!r}")
        head = max(Fraction(3 * sizes[end], 10), Fraction(total - sum(sizes) + sizes[end]))
        left = [len(places) - place for place in range(len(places) - 1)]  # L - l + 1
        weights = [0] * len(sizes)
        for place, k in zip(places, left, strict=False):
            weights[place] = (k + 1) * k * sizes[place]
        quotas = _filled(total - head, weights, sizes)
        quotas[end] = head
        return trees.largest_remainder(quotas, total)

    return distribution


def counts(distribution: Callable[..., Counts], tree: PyTree, *, density: float) -> Counts:
    """Kept count per leaf of a tree, by any distribution, in leaf order.

    Args:
      distribution: `(shapes, *, density)` or `(shapes, *, density, paths) -> counts`.
      tree: Scores, masks, or their shapes; None on leaves that are not prunable.
      density: Kept fraction over all leaves, in [0, 1].

    Raises:
      ValueError: If `distribution` is something else, or does not return a whole number per leaf.

    Example:
      >>> import numpy as np
      >>> from nopr import densities
      >>> kernels = {"Dense_10": np.ones((5, 4)), "Dense_2": np.ones((4, 5)), "Dense_11": None}
      >>> rule = densities.uniform_plus(first="Dense_2", last="Dense_10")
      >>> densities.counts(rule, kernels, density=0.75)
      (10, 20)
    """
    check(distribution)
    found = trees.by_path(tree, "tree")
    given: dict[str, Any] = {"density": density}
    if takes(distribution, _WITH_PATHS):
        given["paths"] = tuple(found)
    kept = distribution(trees.shapes(tree), **given)
    must = "`distribution` must return a whole number per layer"
    whole = budgets.whole(kept, must=must)
    if whole.shape != (len(found),):
        raise ValueError(f"{must}, {len(found)}, got {shown(kept)}.")
    return tuple(whole.tolist())


def plan(
    distribution: Callable[..., Counts], tree: PyTree, *, densities: Sequence[float]
) -> Int[np.ndarray, "rounds layers"]:
    """Kept counts of falling densities, of which none rises from round to round.

    Largest remainder can give a layer one more when the total falls; the excess is then taken from
    the layer that still has the most to lose, so that each round's sum stays.

    Args:
      distribution: `(shapes, *, density)` or `(shapes, *, density, paths) -> counts`.
      tree: Scores, masks, or their shapes; None on leaves that are not prunable.
      densities: Kept fraction over all leaves after each round; they fall.

    Raises:
      ValueError: If `densities` are outside [0, 1] or rise, or for the reasons of `counts`.
    """
    falling = budgets.falling(densities)
    rows = np.array([counts(distribution, tree, density=each) for each in falling], np.int64)
    for now, later in zip(rows[-2::-1], rows[:0:-1], strict=True):
        total = now.sum()
        np.maximum(now, later, out=now)
        while now.sum() > total:
            now[np.argmax(now - later)] -= 1
    return rows


def check(distribution: Any) -> None:
    """Checks that an argument is a distribution, and not a constructor that was not called.

    Raises:
      ValueError: If its signature does not accept (shapes, *, density), with or without `paths`.
    """
    if callable(distribution) and takes(distribution, _WITH_PATHS):
        return
    check_form(
        distribution,
        "(shapes, *, density)",
        name="distribution",
        remedy="Take one of `densities`; where the order of layers matters, call its constructor, "
        "such as `densities.smart_ratio(layers)`.",
    )


_WITH_PATHS = "(shapes, *, density, paths)"


def _sizes(shapes: Shapes, density: float) -> tuple[list[int], int]:
    """The size of each layer, and the number of kept weights in all."""
    must = "`shapes` must be a sequence of tuples of whole numbers"
    rows = shapes if isinstance(shapes, tuple | list) else [shapes]
    if not all(isinstance(row, tuple | list) for row in rows):
        raise ValueError(f"{must}, got {shown(shapes)}.")
    sizes = [math.prod(budgets.whole(row, must=must).tolist()) for row in rows]
    return sizes, round(budgets.check_density(density) * sum(sizes))


def _filled(
    amount: Fraction | int, weights: Sequence[int], sizes: Sequence[int]
) -> list[Fraction | int]:
    """Shares an amount in proportion to `weights`; no layer gets more than its size."""
    dense: set[int] = set()
    while True:
        left = amount - sum(sizes[i] for i in dense)
        scale = Fraction(left) / max(sum(w for i, w in enumerate(weights) if i not in dense), 1)
        over = {i for i, w in enumerate(weights) if i not in dense and scale * w > sizes[i]}
        if not over:
            break
        dense |= over
    return [n if i in dense else scale * weights[i] for i, n in enumerate(sizes)]


def _check_paths(given: Any, must: str) -> None:
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if not listed or not all(isinstance(path, str) for path in given):
        raise ValueError(f"{must}, got {shown(given)}.")
    if len(given) < 2 or len(set(given)) < len(given):
        raise ValueError(f"{must}, each once, got {shown(list(given))}.")


def _places(
    wanted: Sequence[str], paths: Sequence[str], sizes: Sequence[int], *, argument: str
) -> list[int]:
    """The places of layers among `paths`."""
    known = list(paths) if isinstance(paths, Sequence) else []
    if len(known) != len(sizes) or not all(isinstance(path, str) for path in known):
        raise ValueError(f"`paths` must be one path per layer, {len(sizes)}, got {shown(paths)}.")
    for path in wanted:
        if path not in known:
            nearest = difflib.get_close_matches(path, known, n=1, cutoff=0)
            hint = (
                f"The nearest path is {nearest[0]!r}."
                if nearest
                else "There are none: check `where`."
            )
            raise ValueError(f"`{argument}` names {path!r}, which is not a layer. {hint}")
    return [known.index(path) for path in wanted]


def _check_enough(
    density: float, total: int, sizes: Sequence[int], least: Fraction | int, what: str
) -> None:
    if total < least:
        raise ValueError(
            f"`density` must keep at least {math.ceil(least)} of {sum(sizes)} weights, {what}, got "
            f"{density}, which keeps {total}. Raise it, or take another distribution, such as "
            "`densities.erk`."
        )
