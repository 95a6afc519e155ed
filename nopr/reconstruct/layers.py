"""Kept weights refitted by least squares, layer by layer, and the parts that SparseGPT shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nopr import capture, precision, trees
from nopr import masks as masks_
from nopr.capture.statistics import total
from nopr.criteria.activations import inputs_of
from nopr.reconstruct.quadratic import change
from nopr.typing import (
    Apply,
    Batch,
    Masks,
    Params,
    Where,
    check_apply,
    check_choice,
    is_real,
    shown,
)

Inputs: TypeAlias = Literal["dense", "pruned"]
"""The network whose inputs of a layer are used: before pruning, or pruned up to this layer."""


def least_squares(
    apply: Apply,
    *,
    damping: float = 0.01,
    inputs: Inputs = "dense",
    where: Where = trees.everything,
) -> Callable[[Params, Masks, Batch], Params]:
    r"""The kept weights of each output refitted, so that layers compute what they did before.

    Layer by layer in the order in which the network uses its kernels, each output's weights
    :math:`v`, 0 where pruned, minimize

    .. math:: \| X' v - X w \|^2 + \lambda \| v - w \|^2,

    where :math:`w` are its weights before pruning, the rows of :math:`X` are what enters the kernel
    in the network before pruning (patches, for a convolution), and those of :math:`X'` what enters
    it where it is used: :math:`X' = X` with `inputs="dense"`, or what the layers before it give
    after they were pruned and refitted, with `inputs="pruned"`, which also makes up for their
    errors. :math:`\lambda` is `damping` times the mean of the diagonal of
    :math:`X'^\top X'`. Biases stay as they are.

    The squared error :math:`\| X' v - X w \|^2` of an output is never larger than that of its
    masked weights, and with full masks the weights do not change. It is computed in double
    precision, from second moments alone; each output costs a Cholesky factorization of its kept
    weights, or of its fan-in where the masks are traced.

    Args:
      apply: `apply(params, inputs) -> outputs`.
      damping: A share of the mean of the diagonal, from 0 up. With 0, rows must outnumber the kept
        weights and be independent.
      inputs: `"dense"` or `"pruned"`.
      where: `where(path, leaf)`, true for the kernels that are refitted; the others that have masks
        are masked.

    Returns:
      `(params, masks, batch) -> params`, which takes the params before pruning and gives them
      exactly 0 where pruned, in their own dtypes. The batch is the inputs of the network, or a
      tuple whose first entry is. It works under jit and vmap. It raises a ValueError if the batch
      is None, the masks do not match the params, a kernel cannot be followed through the network
      (see `capture`), is used twice with `inputs="pruned"`, or, outside a trace, new weights are
      not finite; the message has its path.

    Raises:
      ValueError: If `damping` is negative or `inputs` is none of the choices.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from nopr import reconstruct
      >>> def apply(params, x):
      ...     return x @ params["kernel"]
      >>> params = {"kernel": jnp.array([[1.0], [1.0]])}
      >>> x = jnp.array([[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])  # one input twice
      >>> refit = reconstruct.least_squares(apply, damping=1e-6)
      >>> kernel = refit(params, {"kernel": jnp.array([[True], [False]])}, x)["kernel"]
      >>> [round(float(w), 4) for w in kernel[:, 0]]
      [2.0, 0.0]

    Source: the refitting of Luo et al. 2017, ThiNet, arXiv:1707.06342, and of He et al. 2017,
    channel pruning, arXiv:1707.06168, for any mask.
    """
    check_apply(apply)
    damping = check_damping(damping)
    check_choice("inputs", inputs, Inputs)

    def reconstruct(params: Params, masks: Masks, batch: Batch) -> Params:
        entering = inputs_of(batch, "least_squares")
        masks_.check_bool(masks)
        masked = masks_.apply(params, masks)
        kept = trees.by_path(masks, "masks")
        refitted = tuple(
            path
            for path, leaf in trees.by_path(trees.select(params, among(kept)), "masks").items()
            if where(path, leaf)
        )
        if not refitted:
            return masked
        moments: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        new: dict[str, Any] = {}
        uses: dict[str, capture.Kernel] = {}

        def collect(use: capture.Use) -> None:
            path, one = use.kernel.path, gram(use.entering[0], use.entering[0])
            known = moments.get(path)
            moments[path] = one if known is None else precision.in_double(jnp.add, known, one)
            uses[path], seen[path] = use.kernel, use.weights[0]

        def follow(use: capture.Use) -> tuple[Any, Any]:
            path = check_first(use, new)
            dense, pruned = use.entering
            crossed = gram(pruned, dense)
            new[path] = fit(use.kernel, use.weights[0], kept[path], gram(pruned, pruned), crossed)
            return use.weights[0], new[path]

        if inputs == "dense":
            capture.walk(apply, [params], entering, collect, where=among(refitted))
            for path, kernel in uses.items():
                new[path] = fit(kernel, seen[path], kept[path], moments[path], None)
        else:
            capture.walk(apply, [params, masked], entering, follow, where=among(refitted))
        check_finite(new)
        return overlaid(masked, new)

    def fit(kernel: capture.Kernel, leaf: Any, mask: Any, moments: Any, crossed: Any) -> Array:
        mask = jnp.asarray(mask)
        columns = kernel.matrix(mask)  # [groups, fan_in, width]
        most = columns.shape[1]
        if not isinstance(columns, jax.core.Tracer):
            most = max(int(columns.sum(axis=1).max(initial=0)), 1)

        def solve(leaf: Any, columns: Any, moments: Any, crossed: Any) -> Array:
            weights = kernel.matrix(leaf).astype(jnp.float64)
            system = moments + damped(moments, damping)
            if crossed is not None:
                # The best weights without a mask; they are `weights` where the inputs are the same.
                pull = (crossed - moments) @ weights
                weights = weights + jnp.linalg.solve(system, pull)
            return kernel.leaf(each_output(system, weights, columns, most=most))

        found = precision.in_double(solve, leaf, columns, moments, crossed)
        return jnp.where(mask, found.astype(leaf.dtype), 0)

    return reconstruct


def each_output(systems: Array, weights: Array, kept: Array, *, most: int) -> Array:
    """What `restricted` gives for each output of each group, one after the other.

    The kept entries of an output are gathered first: systems of their number cost far less than
    those of the fan-in.

    Args:
      systems: A matrix for each group, [groups, fan_in, fan_in].
      weights: The weights, [groups, fan_in, width].
      kept: Their masks.
      most: The most kept weights of an output, or more.
    """
    groups, fan_in, width = weights.shape
    pulls = jnp.matmul(systems, jnp.where(kept, 0, weights), precision="highest")
    masks, pulls = (jnp.swapaxes(each, 1, 2).reshape(-1, fan_in) for each in (kept, pulls))

    def one(row: tuple[Array, Array, Array]) -> Array:
        group, mask, pull = row
        there = jnp.argsort(~mask, stable=True)[:most]
        part = change(systems[group][there][:, there], pull[there], mask[there])
        return jnp.zeros(fan_in, pull.dtype).at[there].set(part)

    found = jax.lax.map(one, (jnp.repeat(jnp.arange(groups), width), masks, pulls))
    changes = jnp.swapaxes(found.reshape(groups, width, fan_in), 1, 2)
    return jnp.where(kept, weights + changes, 0)


def gram(one: capture.Entering, other: capture.Entering) -> Array:
    """The sum over rows of outer products, [groups, fan_in, fan_in], in double precision."""

    def sums(one_operand: Any, other_operand: Any) -> Array:
        return total(
            lambda a, b: jnp.einsum(
                "gri,grj->gij", a.astype(jnp.float64), b.astype(jnp.float64), precision="highest"
            ),
            one._replace(operand=one_operand),
            other._replace(operand=other_operand),
        )

    return precision.in_double(sums, one.operand, other.operand)


def damped(moments: Array, damping: float) -> Array:
    """What damping adds to second moments: a multiple of the identity for each group.

    The multiple is `damping` times the mean of the diagonal; 1 for a group that nothing enters.
    """
    mean = jnp.trace(moments, axis1=-2, axis2=-1)[:, None, None] / max(moments.shape[-1], 1)
    scale = jnp.where(mean > 0, damping * mean, 1)
    return scale * jnp.eye(moments.shape[-1], dtype=moments.dtype)


def among(paths: Any) -> Where:
    """The `where` of these paths."""
    return lambda path, leaf: path in paths


def overlaid(params: Params, new: dict[str, Any]) -> Params:
    """The params with new leaves by path."""
    chosen = trees.select(params, among(new))
    leaves = [new[path] for path in trees.paths(chosen)]
    tree = jax.tree.unflatten(jax.tree.structure(chosen), leaves)
    return trees.overlay(lambda _, leaf: leaf, params, tree)


def check_first(use: capture.Use, done: Any) -> str:
    """The path of a kernel, checked to be used for the first time.

    Raises:
      ValueError: If it was used before.
    """
    path = use.kernel.path
    if path in done:
        raise ValueError(
            f"The kernel at {path!r} is used more than once, so what enters it later depends on "
            'its own update. Leave it out with `where`, or take `least_squares(inputs="dense")`.'
        )
    return path


def check_damping(damping: Any) -> float:
    """Checks that the damping is a number from 0 up, and returns it as a float.

    Raises:
      ValueError: If it is not.
    """
    if not is_real(damping) or damping < 0:
        raise ValueError(f"`damping` must be a number from 0 up, got {shown(damping)}.")
    return float(damping)


def check_finite(new: dict[str, Any]) -> None:
    """Checks, outside a trace, that new weights are finite.

    Raises:
      ValueError: If they are not; the message has the path.
    """
    for path, leaf in new.items():
        if not isinstance(leaf, jax.core.Tracer) and not jnp.isfinite(leaf).all():
            raise ValueError(
                f"The new weights have NaN or infinity at {path!r}. Give more rows than kept "
                "weights, or more `damping`; check the params and the inputs."
            )
