"""Parts of a kernel as a matrix: blocks, and N of each M consecutive weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nopr import axes as axes_
from nopr.granularity.shared import Granularity, Layout, grouped
from nopr.typing import Where, shown, whole_number


def blocks(
    shape: Sequence[int],
    *,
    where: Where | None = None,
    axes: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
) -> Granularity:
    """Whole blocks: tiles of the last two axes of a kernel, [..., in, out].

    A granule's score is the mean of its weights' scores. A convolution has blocks at each position
    of its window; in a grouped convolution, a block may hold outputs of two groups. The last two
    axes of an embedding are [vocabulary, features].

    Args:
      shape: The height and width of a block, such as (4, 4), or (1, 8) for 8 outputs of one input.
      where: `where(path, leaf)`, true for the leaves that are pruned by blocks; the others are kept
        whole.
      axes: The two axes that are tiled, or `{path: axes}`; by default, the last two. They must be
        given for kernels of three dimensions: (-2, -1) for a 1-D convolution; (0, 2) for
        attention's query, key and value, [in, heads, features]; (1, 2) for its output,
        [heads, features, out].

    Returns:
      The granularity; pooled scores are [..., in / height, out / width] on each leaf that is
      pruned. Its functions raise a ValueError that names the leaf if blocks do not divide it.

    Raises:
      ValueError: If `shape` is not two whole numbers from 1 up.

    Example:
      >>> import numpy as np
      >>> from nopr import granularity
      >>> scores = {"dense": np.arange(8.0).reshape(2, 4), "conv": np.ones((3, 3, 8, 16))}
      >>> grain = granularity.blocks((2, 2))
      >>> grain.pool(scores)["dense"]
      Array([[2.5, 4.5]], dtype=float32)
      >>> granularity.sizes(grain, scores)
      {'conv': 288, 'dense': 2}

    Source: Gray et al. 2017, "GPU kernels for block-sparse weights".
    """
    pair = isinstance(shape, Sequence) and not isinstance(shape, str) and len(shape) == 2
    if not pair:
        raise ValueError(f"`shape` must be the height and width of a block, got {shown(shape)}.")
    block = tuple(whole_number("shape", side) for side in shape)

    def layout(path: str, kernel: tuple[int, ...]) -> Layout:
        role = "the two axes that are tiled"
        tiled = axes_.of_leaf(axes, path, kernel, default=(-2, -1), role=role, argument="axes")
        if len(tiled) != 2:
            raise ValueError(f"`axes` must be two axes at {path!r}, got {len(tiled)}.")
        sides = dict(zip(tiled, block, strict=True))
        if any(kernel[axis] % side for axis, side in sides.items()):
            raise ValueError(
                f"`shape` must divide the kernel {kernel} at {path!r} along axes {tiled}, got "
                f"{block}. Choose another, or leave the kernel out with `where`."
            )
        split, numbers = [], []
        for axis, size in enumerate(kernel):
            numbers.append(len(split))
            split += [size // sides[axis], sides[axis]] if axis in sides else [size]
        return Layout(tuple(split), tuple(numbers))

    named = {"axes": axes_.check(axes, argument="axes")}
    name = "blocks_{}x{}".format(*block)
    return grouped(layout, name=name, granule="block", where=where, named=named)


def n_of_m(
    n: int,
    m: int,
    *,
    where: Where | None = None,
    axis: int | Mapping[str, Any] | None = None,
) -> Granularity:
    """N:M sparsity: the n best of each m consecutive weights along a kernel's inputs.

    2:4 is what the sparse matrix units of GPUs compute. The density of the leaves that are pruned
    is n / m, so a pruner takes no `density` with it. Over several rounds, round t keeps
    round(m * schedule(t)) of each m weights, and the last keeps n. A group with fewer weights alive
    keeps all of these. `masks.n_of_m` makes the choice: exact, the first among equals.

    Args:
      n: Number of weights kept in each group, from 1 to m.
      m: Size of the groups, which must divide the number of inputs.
      where: `where(path, leaf)`, true for the leaves that are pruned; the others are kept whole.
      axis: The axis along which the groups lie, or `{path: axis}`; by default, the last but one,
        the inputs of [..., in, out]. It must be given for kernels of three dimensions: -2 for a 1-D
        convolution and for attention's output, [heads, features, out]; 0 for its query, key and
        value, [in, heads, features]. In an embedding, [vocabulary, features], the default groups
        tokens; -1 groups features.

    Returns:
      The granularity; granules are weights, and pooled scores are [..., in / m, out, m]. Its
      functions raise a ValueError that names the leaf if m does not divide its inputs, as in a
      depthwise convolution, [..., 1, out].

    Raises:
      ValueError: If `n` or `m` is not a whole number, or n > m.

    Example:
      >>> import jax, numpy as np
      >>> from nopr import criteria, granularity, pruning
      >>> params = {"kernel": np.array([[3.0, 1.0], [-1.0, 4.0], [1.0, 1.0], [2.0, 5.0]])}
      >>> prune = pruning.pruner(criteria.magnitude(), granularity=granularity.n_of_m(2, 4))
      >>> prune(params, None, key=jax.random.key(0))["kernel"].astype(int)
      Array([[1, 0],
             [0, 1],
             [0, 0],
             [1, 1]], dtype=int32)

    Source: Mishra et al. 2021, arXiv:2104.08378.
    """
    m = whole_number("m", m)
    n = whole_number("n", n, most=m)

    def layout(path: str, shape: tuple[int, ...]) -> Layout:
        role = "the axis along which groups lie"
        along = axes_.of_leaf(axis, path, shape, default=-2, role=role, argument="axis")
        if len(along) != 1:
            raise ValueError(f"`axis` must be one axis at {path!r}, got {len(along)}.")
        [place] = along
        if shape[place] % m:
            raise ValueError(
                f"`m` must divide axis {place} of the kernel {shape} at {path!r}, got {m}. Choose "
                "another axis for it, or leave it out with `where`."
            )
        split = (*shape[:place], shape[place] // m, m, *shape[place + 1 :])
        numbers = [number for number in range(len(split)) if number != place + 1]
        return Layout(split, (*numbers, place + 1))

    named = {"axis": axes_.check(axis, argument="axis")}
    return grouped(
        layout, name=f"{n}:{m}", granule="weight", where=where, named=named, n_of_m=(n, m)
    )
