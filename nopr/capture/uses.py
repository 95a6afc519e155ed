"""What the walk finds: a kernel, what enters it, and the products and convolutions that use it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nopr import convolutions, jaxprs

REMEDY = "Leave the kernel out with `where`."

Move: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A `"reshape"`, from a shape to another, or a `"transpose"`, of a shape by a permutation."""


class Kernel(NamedTuple):
    """A kernel as the network uses it: a matrix for each of its groups.

    Attributes:
      path: The path of the leaf.
      shape: The shape of the leaf.
      inputs: The axes of the leaf that are contracted with what enters.
      outputs: The axes of the leaf that number outputs; those of different groups included.
      groups: The number of groups, each with inputs of its own: those of a grouped or depthwise
        convolution, or the batch axes of a product of stacked matrices; else 1.
      fan_in: The inputs of an output: entries of a row, in the order of the leaf's axes.
      width: The outputs of a group, in the order of the leaf's axes.
      moves: The reshapes and transposes that make the leaf [groups, fan_in, width].
    """

    path: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    groups: int
    fan_in: int
    width: int
    moves: tuple[Move, ...]

    def matrix(self, leaf: Any) -> Any:
        """The leaf, or an array of its shape such as a mask, as [groups, fan_in, width]."""
        return replay(self.moves, leaf)

    def leaf(self, matrix: Any) -> Any:
        """An array [groups, fan_in, width] in the shape of the leaf; the inverse of `matrix`."""
        for kind, before, after in reversed(self.moves):
            if kind == "reshape":
                matrix = matrix.reshape(before)
            else:
                matrix = matrix.transpose(np.argsort(after).tolist())
        return matrix


class Entering(NamedTuple):
    """What enters a kernel where it is used.

    Attributes:
      operand: The array as the network has it.
      rows: From it, or from some of its examples, to rows [groups, rows, fan_in].
      entries: From it to [groups, rows, entries], each of its values once: the rows of a matrix
        product, and the pixels of a convolution's inputs, whose entries are channels.
      examples: The axis of its examples if rows hold each value more than once, as patches do;
        else None.
    """

    operand: Any
    rows: Callable[[Any], Array]
    entries: Callable[[Any], Array]
    examples: int | None


class Use(NamedTuple):
    """A use of a kernel, once for each of the copies of the network that run side by side.

    Attributes:
      kernel: The kernel.
      entering: What enters it in each copy.
      weights: Its leaf in each copy.
    """

    kernel: Kernel
    entering: tuple[Entering, ...]
    weights: tuple[Any, ...]


class Origin(NamedTuple):
    """A kernel on its way to a product."""

    path: str
    shape: tuple[int, ...]
    moves: tuple[Move, ...] = ()


def replay(moves: Sequence[Move], array: Any) -> Any:
    """The array after its moves."""
    for kind, _, after in moves:
        array = array.reshape(after) if kind == "reshape" else array.transpose(after)
    return array


def index_of(shape: tuple[int, ...]) -> np.ndarray:
    """The place of each entry in its leaf; NumPy arrays, used while tracing."""
    return np.arange(math.prod(shape), dtype=np.int32).reshape(shape)


def _ordered(index: np.ndarray, axes: Sequence[int]) -> list[int]:
    """Axes of an operand in the order of the leaf: by how far apart neighbors lie in it."""

    def stride(axis: int) -> int:
        corner = np.moveaxis(index, axis, -1).reshape(-1, index.shape[axis])[0]
        return abs(int(corner[:2][-1]) - int(corner[0]))

    return sorted(axes, key=lambda axis: -stride(axis)) if index.size else list(axes)


def _kernel(origin: Origin, moves: Sequence[Any], shape: tuple[int, int, int]) -> Kernel:
    """The record of a kernel, with the roles of its leaf's axes as found by places."""
    moves = (*origin.moves, *moves)
    matrix = replay(moves, index_of(origin.shape))

    def along(places: np.ndarray) -> set[int]:
        where = np.unravel_index(places.reshape(-1), origin.shape)
        return {axis for axis, values in enumerate(where) if values.size and np.ptp(values)}

    inputs = along(matrix[:1, :, :1])
    outputs = along(matrix[:, :1, :1]) | along(matrix[:1, :1, :])
    # An axis of one entry has no role of its own; it is an input unless it lies after the outputs.
    rest = set(range(len(origin.shape))) - inputs - outputs
    inputs |= {axis for axis in rest if axis < max(outputs, default=len(origin.shape))}
    outputs |= rest - inputs
    groups, fan_in, width = shape
    return Kernel(
        origin.path,
        origin.shape,
        tuple(sorted(inputs)),
        tuple(sorted(outputs)),
        groups,
        fan_in,
        width,
        moves,
    )


def _of_product(
    eqn: jaxprs.Equation, side: int, origin: Origin
) -> tuple[Kernel, Callable[[Any], Entering]]:
    """A matrix product, `dot_general`."""
    contracting, batch = eqn.params["dimension_numbers"]
    shape, other = (tuple(eqn.invars[i].aval.shape) for i in (side, 1 - side))
    index = replay(origin.moves, index_of(origin.shape))

    def paired(pairs: Any) -> tuple[list[int], list[int]]:
        """The axes of the kernel in the order of its leaf, and their partners."""
        mine, theirs = (list(pairs[i]) for i in (side, 1 - side))
        ordered = _ordered(index, mine)
        return ordered, [theirs[mine.index(axis)] for axis in ordered]

    (ins, theirs), (groups, other_groups) = paired(contracting), paired(batch)
    outs = _ordered(index, [a for a in range(len(shape)) if a not in (*ins, *groups)])
    free = [a for a in range(len(other)) if a not in (*theirs, *other_groups)]
    count, fan_in, width = (math.prod(shape[a] for a in axes) for axes in (groups, ins, outs))
    counts = (count, fan_in, width)
    order = (*groups, *ins, *outs)
    permuted = tuple(shape[axis] for axis in order)
    moves = (("transpose", shape, order), ("reshape", permuted, counts))

    def rows(operand: Any) -> Array:
        moved = jnp.transpose(operand, (*other_groups, *free, *theirs))
        return moved.reshape(count, math.prod(other[a] for a in free), fan_in)

    return _kernel(origin, moves, counts), lambda value: Entering(value, rows, rows, None)


def _of_convolution(
    eqn: jaxprs.Equation, side: int, origin: Origin
) -> tuple[Kernel, Callable[[Any], Entering]]:
    """A convolution, whose rows are patches."""
    params = eqn.params
    if side != 1 or params["batch_group_count"] != 1:
        raise unfollowed(origin, eqn)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    out, channel, *window = numbers.rhs_spec
    shape = tuple(eqn.invars[side].aval.shape)
    index = replay(origin.moves, index_of(origin.shape))
    ins = _ordered(index, [*window, channel])
    fan_in, width = math.prod(shape[a] for a in ins), shape[out] // groups
    order = (*ins, out)
    permuted = tuple(shape[axis] for axis in order)
    moves = (
        ("transpose", shape, order),
        ("reshape", permuted, (fan_in, groups, width)),
        ("transpose", (fan_in, groups, width), (1, 0, 2)),
    )
    taps = [shape[axis] for axis in window]
    named = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count")
    options = {name: params[name] for name in named}
    # Patches have the channel fastest; rows have the order of the leaf.
    places = [[*window, channel].index(axis) for axis in ins]

    def rows(operand: Any) -> Array:
        found = convolutions.patches(operand, taps, dimension_numbers=numbers, **options)
        found = jnp.moveaxis(found, -2, 0).reshape(groups, -1, *taps, shape[channel])
        return jnp.transpose(found, (0, 1, *(2 + place for place in places))).reshape(
            groups, -1, fan_in
        )

    def entries(operand: Any) -> Array:
        pixels = jnp.moveaxis(operand, numbers.lhs_spec[1], -1).reshape(-1, groups, shape[channel])
        return jnp.moveaxis(pixels, 1, 0)

    entering = partial(Entering, rows=rows, entries=entries, examples=numbers.lhs_spec[0])
    return _kernel(origin, moves, (groups, fan_in, width)), entering


USES = {"dot_general": _of_product, "conv_general_dilated": _of_convolution}


def unfollowed(origin: Origin, eqn: jaxprs.Equation) -> ValueError:
    """The error for a kernel that enters an operation that is neither move nor use."""
    return ValueError(
        f"The kernel at {origin.path!r} cannot be followed through the operation "
        f"`{eqn.primitive.name}` to a matrix product or a convolution. {REMEDY}"
    )
