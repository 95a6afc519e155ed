"""Slices of a kernel: filters, input channels and rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nopr import axes as axes_
from nopr.granularity.shared import Granularity, Layout, grouped, paths
from nopr.typing import Where, shown, whole_number


def filters(
    *,
    outputs: Sequence[str] | None = None,
    where: Where | None = None,
    axes: axes_.Axes = None,
) -> Granularity:
    """Whole filters: the weights that compute one output of a kernel, its last axis.

    A granule's score is the mean of its weights' scores. The weights of other layers that read
    from a removed filter stay in place; `units` removes them too. Kernels are [..., in, out], as in
    Flax and Haiku; transpose weights of Equinox or PyTorch, which are [out, in, ...], first. The
    last axis also numbers the outputs of grouped and depthwise convolutions, and the features of an
    embedding.

    Args:
      outputs: The paths of the kernels that compute the network's outputs; an empty sequence if
        there are none. They are kept whole: to remove one of their filters is to remove a class.
      where: `where(path, leaf)`, true for the leaves that are pruned by filters; the other leaves
        of the scores are kept whole. By default, all but the outputs are pruned.
      axes: The axes that number a kernel's outputs, or `{path: axes}`; by default, the last. They
        must be given for kernels of three dimensions: -1 for a 1-D convolution; for attention's
        query, key and value, [in, heads, features], (-2, -1) for single features or -2 for heads.

    Returns:
      The granularity; pooled scores are [out] on each leaf that is pruned, and of one dimension per
      axis if several are given. Its functions raise a ValueError if the scores lack a path of
      `outputs` or `axes`, with the nearest path, or a leaf lacks an axis.

    Raises:
      ValueError: If `outputs` is not given.

    Example:
      >>> import numpy as np
      >>> from nopr import granularity
      >>> scores = {"body": np.array([[1.0, 3.0], [1.0, 4.0]]), "head": np.ones((2, 10))}
      >>> granularity.filters(outputs=["head"]).pool(scores)
      {'body': Array([1. , 3.5], dtype=float32), 'head': None}
    """
    if outputs is None:
        raise ValueError(
            "`outputs` must name the kernels that compute the network's outputs, which are kept "
            'whole, got None. Pass their paths, such as `outputs=["params/head/kernel"]`, or '
            "`outputs=[]` if there are none."
        )
    whole = paths((outputs,) if isinstance(outputs, str) else outputs, argument="outputs")

    def layout(path: str, shape: tuple[int, ...]) -> Layout:
        return Layout(shape, _numbering(axes, path, shape, default=-1, what="outputs"))

    return grouped(
        layout,
        name="filters",
        granule="filter",
        where=where,
        whole=whole,
        named={"outputs": whole, "axes": axes_.check(axes, argument="axes")},
    )


def channels(
    *,
    where: Where | None = None,
    axes: axes_.Axes = None,
    groups: Mapping[str, int] | None = None,
) -> Granularity:
    """Whole input channels: the weights of a kernel that read one of its inputs.

    A granule's score is the mean of its weights' scores. The filters that compute a removed channel
    stay in place; `units` removes them too. Kernels are [..., in, out]; a channel of an embedding,
    [vocabulary, features], is a token. The kernel of a grouped or depthwise convolution is
    [..., in / groups, out], and its shape does not show the groups: name them, so that a channel is
    what reads one input and not one input of every group.

    Args:
      where: `where(path, leaf)`, true for the leaves that are pruned by channels; the others are
        kept whole. To keep all inputs of the network, leave its first kernel out.
      axes: The axes that number a kernel's inputs, or `{path: axes}`; by default, the last but one.
        They must be given for kernels of three dimensions: -2 for a 1-D convolution; 0 for
        attention's query, key and value, [in, heads, features]; (0, 1) for its output,
        [heads, features, out], or 0 there for whole heads.
      groups: The number of groups of each grouped convolution, `{path: groups}`.

    Returns:
      The granularity; pooled scores are [in] on each leaf that is pruned, [groups, in / groups] if
      grouped. Its functions raise a ValueError that names the leaf if it has a single input, lacks
      an axis, or its outputs are not a multiple of its groups.

    Raises:
      ValueError: If `groups` are not whole numbers by path.

    Example:
      >>> import numpy as np
      >>> from nopr import granularity
      >>> scores = {"dense": np.array([[1.0, 3.0], [1.0, 4.0]]), "depthwise": np.ones((3, 3, 1, 2))}
      >>> granularity.channels(groups={"depthwise": 2}).pool(scores)["dense"]
      Array([2. , 2.5], dtype=float32)
    """
    if groups is not None and not isinstance(groups, Mapping):
        raise ValueError(f"`groups` must be {{path: groups}}, got {shown(groups)}.")
    counts = {path: whole_number("groups", number) for path, number in (groups or {}).items()}

    def layout(path: str, shape: tuple[int, ...]) -> Layout:
        ins, number = _numbering(axes, path, shape, default=-2, what="inputs"), counts.get(path, 1)
        last = len(shape) - 1
        if number * math.prod(shape[axis] for axis in ins) < 2:
            raise ValueError(
                f"`channels` needs kernels of two or more inputs, got shape {shape} at {path!r}. "
                f"If it is depthwise, give `groups={{{path!r}: ...}}`; else leave it out with "
                "`where`."
            )
        if number == 1:
            return Layout(shape, ins)
        if last in ins or shape[last] % number:
            raise ValueError(
                f"`groups` must divide the outputs of the kernel {shape} at {path!r}, got {number}."
            )
        split = (*shape[:last], number, shape[last] // number)
        return Layout(split, (last, *ins))

    named = {"axes": axes_.check(axes, argument="axes"), "groups": counts}
    return grouped(layout, name="channels", granule="channel", where=where, named=named)


def rows(
    *,
    where: Where | None = None,
    axes: axes_.Axes = None,
) -> Granularity:
    """Whole rows: the weights at one place of a kernel that lead to all its outputs.

    The kernel is taken as a matrix with its last axis as columns and all other axes as rows, which
    is how a convolution multiplies patches: a row is one input of a dense kernel, one input at one
    position of the window of a convolution, one position of the window of a depthwise convolution,
    and one token of an embedding. A granule's score is the mean of its weights' scores.

    Args:
      where: `where(path, leaf)`, true for the leaves that are pruned by rows; the others are kept
        whole.
      axes: The axes along which a row runs, those of a kernel's outputs, or `{path: axes}`; by
        default, the last. They must be given for kernels of three dimensions: -1 for a 1-D
        convolution and for attention's output, [heads, features, out]; (-2, -1) for its query, key
        and value, [in, heads, features].

    Returns:
      The granularity; pooled scores have the other axes of each leaf that is pruned. Its functions
      raise a ValueError that names the leaf if it lacks an axis, or has no other.

    Example:
      >>> import numpy as np
      >>> from nopr import granularity
      >>> scores = {"dense": np.array([[1.0, 3.0], [1.0, 4.0]]), "conv": np.ones((3, 3, 8, 16))}
      >>> granularity.sizes(granularity.rows(), scores)
      {'conv': 72, 'dense': 2}
    """

    def layout(path: str, shape: tuple[int, ...]) -> Layout:
        along = _numbering(axes, path, shape, default=-1, what="outputs")
        others = tuple(axis for axis in range(len(shape)) if axis not in along)
        if not others:
            raise ValueError(
                f"`rows` needs kernels of two or more dimensions, got shape {shape} at {path!r}. "
                "Leave it out with `where`."
            )
        return Layout(shape, others)

    return grouped(
        layout,
        name="rows",
        granule="row",
        where=where,
        named={"axes": axes_.check(axes, argument="axes")},
    )


def _numbering(
    given: Any, path: str, shape: tuple[int, ...], *, default: int, what: str
) -> tuple[int, ...]:
    role = f"the axes that number its {what}"
    return axes_.of_leaf(given, path, shape, default=default, role=role, argument="axes")
