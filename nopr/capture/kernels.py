"""The walk: kernels followed from the params to the products that consume them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from nopr import jaxprs, trees
from nopr.capture.uses import REMEDY, USES, Kernel, Move, Origin, Use, index_of, replay, unfollowed
from nopr.typing import Apply, Params, Where, check_apply, explained

# Operations that leave values and form as they are, up to a cast.
_SAME = {
    *("convert_element_type", "copy", "copy_p", "name", "optimization_barrier"),
    *("sharding_constraint", "stop_gradient"),
}


class _Tracked(NamedTuple):
    """A variable: its value in each copy of the network, and the kernel that it is, if any."""

    values: tuple[Any, ...]
    origin: Origin | None = None


Visit = Callable[[Use], Sequence[Any] | None]


def walk(
    apply: Apply,
    copies: Sequence[Params],
    inputs: Any,
    visit: Visit,
    *,
    where: Where = trees.is_prunable,
) -> None:
    """Runs copies of a network side by side and calls `visit` wherever a kernel is used.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      copies: The params of each copy.
      inputs: The inputs of the network.
      visit: `visit(use)`, in the order in which the network uses the kernels. If it returns leaves,
        one for each copy, they replace the kernel in this use and all later ones.
      where: `where(path, leaf)`, true for the kernels.

    Raises:
      ValueError: If a kernel cannot be followed, is used in two different ways, or is not used at
        all; the message has its path.
    """
    check_apply(apply)
    first = copies[0]
    asked = trees.select(first, where)
    trees.check_floating(asked)
    kernels = trees.paths(asked)

    def function(arrays: PyTree, inputs: Any) -> Any:
        return apply(trees.overlay(lambda _, new: new, first, arrays), inputs)

    chosen = [
        trees.select(copy, lambda path, leaf: path in kernels or trees.everything(path, leaf))
        for copy in copies
    ]
    with explained("`apply` failed on these params and inputs", "Check that they fit it."):
        program, _ = jaxprs.trace(function, chosen[0], inputs)
    values = []
    for path, *leaves in zip(trees.paths(chosen[0]), *map(jax.tree.leaves, chosen), strict=True):
        origin = Origin(path, np.shape(leaves[0])) if path in kernels else None
        values.append(_Tracked(tuple(map(jnp.asarray, leaves)), origin))
    values += [_Tracked((leaf,) * len(copies)) for leaf in jax.tree.leaves(inputs)]
    walker = _Walker(visit, len(copies), {t.origin.path: t.values for t in values if t.origin})
    walker.through(program, values)
    for path in kernels:
        if path not in walker.indices:
            raise ValueError(
                f"The network does not use the leaf at {path!r} as a kernel, in a matrix product "
                f"or a convolution. {REMEDY}"
            )


def kernels(
    apply: Apply, params: Params, inputs: Any, *, where: Where = trees.is_prunable
) -> dict[str, Kernel]:
    """The kernels of a network, in the order in which it first uses them.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      params: The parameters.
      inputs: Inputs of the network, or their shapes and dtypes.
      where: `where(path, leaf)`, true for the kernels.

    Returns:
      A record of each, by its path.

    Raises:
      ValueError: If a leaf cannot be followed, is used in two different ways, or is not used as a
        kernel; the message has its path.

    Example:
      >>> import jax.numpy as jnp
      >>> from nopr import capture
      >>> def apply(params, x):
      ...     heads = jnp.einsum("ni,ihf->nhf", x, params["query"])
      ...     return jnp.einsum("nhf,hfo->no", heads, params["out"])
      >>> params = {"out": jnp.ones((2, 3, 5)), "query": jnp.ones((4, 2, 3))}
      >>> for path, kernel in capture.kernels(apply, params, jnp.ones((1, 4))).items():
      ...     print(path, kernel.inputs, kernel.outputs, kernel.fan_in)
      query (0,) (1, 2) 4
      out (0, 1) (2,) 6
    """
    found: dict[str, Kernel] = {}

    def visit(use: Use) -> None:
        found.setdefault(use.kernel.path, use.kernel)

    def run(arrays: PyTree, inputs: Any) -> None:
        copy = trees.overlay(lambda _, new: new, params, arrays)
        walk(apply, [copy], inputs, visit, where=where)

    jax.eval_shape(run, trees.select(params, trees.everything), inputs)
    return found


def output_axes(
    apply: Apply, params: Params, inputs: Any, *, where: Where = trees.is_prunable
) -> dict[str, tuple[int, ...]]:
    """The axes that number each kernel's outputs, as `masks.top` and granularities take them.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      params: The parameters.
      inputs: Inputs of the network, or their shapes and dtypes.
      where: `where(path, leaf)`, true for the kernels.

    Returns:
      `{path: axes}`, in the order in which the network uses the kernels.

    Raises:
      ValueError: As `kernels` does, and if an axis of a leaf numbers inputs and outputs both.
    """
    found = kernels(apply, params, inputs, where=where)
    for path, kernel in found.items():
        if set(kernel.inputs) & set(kernel.outputs):
            raise ValueError(
                f"The kernel at {path!r} of shape {kernel.shape} has an axis that numbers inputs "
                f"and outputs both, so it has no axes of outputs. {REMEDY}"
            )
    return {path: kernel.outputs for path, kernel in found.items()}


class _Walker:
    """One walk: what was decided for each kernel, and how each was used before."""

    def __init__(self, visit: Visit, copies: int, weights: dict[str, tuple[Any, ...]]) -> None:
        self.visit = visit
        self.copies = copies
        self.weights = weights
        self.replaced: set[str] = set()
        self.indices: dict[str, np.ndarray] = {}

    def through(self, program: jaxprs.Program, values: Sequence[_Tracked]) -> list[_Tracked]:
        return jaxprs.fold(
            program, values, self.step, constant=lambda value: _Tracked((value,) * self.copies)
        )

    def step(self, eqn: jaxprs.Equation, operands: list[_Tracked]) -> list[_Tracked]:
        call = jaxprs.called(eqn)
        if call is not None:
            return self.through(call, operands)
        held = [operand.origin for operand in operands if operand.origin is not None]
        if not held:
            return self.bound(eqn, operands, [None] * len(eqn.outvars))
        name = eqn.primitive.name
        if name in _SAME and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
            return self.bound(eqn, operands, [operand.origin for operand in operands])
        move = _move(eqn)
        if move is not None:
            origin = held[0]._replace(moves=(*held[0].moves, move))
            return self.bound(eqn, operands, [origin])
        if name not in USES or len(held) > 1:
            raise unfollowed(held[0], eqn)
        return self.used(eqn, operands, held[0])

    def used(
        self, eqn: jaxprs.Equation, operands: list[_Tracked], origin: Origin
    ) -> list[_Tracked]:
        side = next(i for i, operand in enumerate(operands) if operand.origin is not None)
        kernel, entering = USES[eqn.primitive.name](eqn, side, origin)
        self.check(origin, kernel, eqn.invars[1 - side].aval.dtype)
        path = origin.path
        new = self.visit(
            Use(kernel, tuple(map(entering, operands[1 - side].values)), self.weights[path])
        )
        if new is not None:
            self.weights[path] = tuple(new)
            self.replaced.add(path)
        if path in self.replaced:
            dtype = eqn.invars[side].aval.dtype
            moved = [replay(origin.moves, leaf).astype(dtype) for leaf in self.weights[path]]
            operands = list(operands)
            operands[side] = _Tracked(tuple(moved))
        return self.bound(eqn, operands, [None])

    def check(self, origin: Origin, kernel: Kernel, dtype: Any) -> None:
        """Checks that a use is like those before it, and of real numbers."""
        path = origin.path
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"What enters the kernel at {path!r} must be floating, got {dtype}. Cast the "
                "inputs, or leave the kernel out with `where`."
            )
        index = kernel.matrix(index_of(origin.shape))
        if not np.array_equal(self.indices.setdefault(path, index), index):
            raise ValueError(
                f"The kernel at {path!r} is used in two different ways, so rows of its uses do not "
                f"go together. {REMEDY}"
            )

    def bound(
        self,
        eqn: jaxprs.Equation,
        operands: list[_Tracked],
        origins: Sequence[Origin | None],
    ) -> list[_Tracked]:
        """Applies an operation in each copy; once where all copies have the same operands."""
        columns = list(zip(*(operand.values for operand in operands), strict=True))
        columns = columns or [()] * self.copies
        results = [jaxprs.bind(eqn, *columns[0])]
        for column in columns[1:]:
            same = all(a is b for a, b in zip(column, columns[0], strict=True))
            results.append(results[0] if same else jaxprs.bind(eqn, *column))
        return [
            _Tracked(values, origin)
            for values, origin in zip(zip(*results, strict=True), origins, strict=True)
        ]


def _move(eqn: jaxprs.Equation) -> Move | None:
    """What an operation does to the form of its operand, if it does nothing else."""
    name, before = eqn.primitive.name, tuple(eqn.invars[0].aval.shape)
    after = tuple(eqn.outvars[0].aval.shape)
    if name == "transpose":
        return "transpose", before, tuple(eqn.params["permutation"])
    if name == "reshape" and eqn.params.get("dimensions") is not None:
        return None
    if name in ("reshape", "squeeze", "broadcast_in_dim", "slice", "expand_dims"):
        return ("reshape", before, after) if math.prod(before) == math.prod(after) else None
    return None
