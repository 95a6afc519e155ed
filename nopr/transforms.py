"""Optax transformations for training under masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array, PyTree

from nopr import masks as masks_
from nopr import trees
from nopr.typing import Masks, Params

Transformation: TypeAlias = optax.GradientTransformation | optax.MultiSteps
"""An optax transformation."""


def keep(tx: Transformation, masks: Masks | None) -> optax.GradientTransformationExtraArgs:
    r"""Trains the kept weights with `tx` and holds the pruned ones at exactly 0.

    With mask :math:`m`, gradient :math:`g`, weight :math:`w` and :math:`u` the update of `tx` for
    the gradient :math:`m \odot g`, the update is :math:`u` where :math:`m` is true and :math:`-w`
    elsewhere. The state is that of `tx`. It fits any optimizer loop: params, gradients and masks
    are matched by their paths, so masks of an `nnx.state` fit the pure trees of an `nnx.Optimizer`.

    To `tx`, a pruned weight is a weight of 0 with a gradient of 0. Where zeros change nothing,
    training is that of a network without the pruned weights: transformations of each weight by
    itself (SGD, momentum, weight decay, Adam, Lion, RMSProp) and norms (clipping by global norm,
    LAMB). It differs where `tx` takes means over a leaf or works on a whole matrix: in Adafactor's
    factored moments, clipping by block RMS, centralized gradients or Muon, pruned weights count as
    zeros, and noise added to gradients counts in a norm taken later. Equality holds from the first
    step for params that are 0 where pruned and a state made under these masks. If the masks change
    during training, make a new state: the old one has moments of the newly pruned weights.

    The masks are data: build the transformation inside the jitted function, and one compilation
    serves all masks. In an `optax.chain`, wrap the whole chain or its last link in `keep`; clipping
    that comes before it sees the gradients of pruned weights too.

    Args:
      tx: Any optax transformation.
      masks: Masks of the params, None on leaves that are not prunable; None for a dense network.

    Returns:
      A transformation whose `update` needs the params; extra arguments go to `tx`.

    Raises:
      ValueError: If `tx` is not a transformation. From `update`, if the params are missing, or the
        gradients or the params do not match `masks`; the message names the leaf. From `init`, if
        `tx` contains `optax.lookahead`, whose params are pairs; put `keep` inside it.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from nopr import masks, transforms
      >>> params, kept = {"w": jnp.array([4.0, 2.0])}, {"w": jnp.array([True, False])}
      >>> params = masks.apply(params, kept)
      >>> tx = transforms.keep(optax.sgd(0.5, momentum=0.9), kept)
      >>> updates, state = tx.update({"w": jnp.array([2.0, 2.0])}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([3., 0.], dtype=float32)}
    """
    check(tx)
    tx = _with_extra_arguments(tx)
    if masks is None:
        return tx
    masks_.check_bool(masks)

    def init(params: Params) -> optax.OptState:
        state = tx.init(params)
        if any(map(_is_lookahead, jax.tree.leaves(state, is_leaf=_is_lookahead))):
            raise ValueError(
                "`tx` must not contain `optax.lookahead`, whose params are pairs. Put `keep` "
                "inside it: `optax.lookahead(transforms.keep(tx, masks), ...)`."
            )
        return state

    def update(
        updates: optax.Updates, state: optax.OptState, params: Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "`params` must be given to the `update` of `transforms.keep`, got None. "
                "Call `update(gradients, state, params)`."
            )
        updates, state = tx.update(_overlay(_kept, updates, masks), state, params, **extra)
        return _overlay(_kept_or_removed, updates, masks, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def check(tx: Transformation) -> None:
    """Checks that an argument is an optax transformation.

    Raises:
      ValueError: If it is something else.
    """
    if not hasattr(tx, "init") or not hasattr(tx, "update"):
        raise ValueError(
            f"`tx` must be an optax transformation, got a {type(tx).__name__}. Make one, such as "
            "`optax.sgd(0.1)`; in `transforms.keep(tx, masks)` it comes first."
        )


def _with_extra_arguments(tx: Transformation) -> optax.GradientTransformationExtraArgs:
    if isinstance(tx, optax.MultiSteps):  # optax's conversion drops the extra arguments
        return optax.GradientTransformationExtraArgs(tx.init, cast(Any, tx.update))
    return optax.with_extra_args_support(tx)


def _kept(update: Array, mask: Array) -> Array:
    return jnp.where(mask, update, jnp.zeros_like(update))


def _kept_or_removed(update: Array, mask: Array, param: Array) -> Array:
    return jnp.where(mask, update, -jnp.asarray(param, update.dtype))


def _overlay(f: Callable[..., Array], updates: PyTree, masks: Masks, *params: Params) -> PyTree:
    """Maps `f` over the leaves of `updates` that have a mask; the others stay as they are."""
    masks = _visible(masks, updates)
    trees.check_matches(masks, updates, name="masks", other="updates")
    for tree in params:
        trees.check_matches(masks, tree)
    columns = [trees.by_path(tree, "params") for tree in (masks, *params)]

    def one(path: Any, leaf: Any) -> Any:
        name = trees.path_string(path)
        return f(leaf, *(column[name] for column in columns)) if name in columns[0] else leaf

    return tree_map_with_path(one, updates)


def _visible(masks: Masks, updates: PyTree) -> Masks:
    """Puts None where `optax.masked` or `multi_transform` has hidden a leaf or a whole subtree."""
    nodes, _ = tree_flatten_with_path(updates, is_leaf=_is_hidden)
    hidden = tuple(
        f"{trees.path_string(path)}/" if path else "" for path, node in nodes if _is_hidden(node)
    )
    return tree_map_with_path(
        lambda path, mask: None if f"{trees.path_string(path)}/".startswith(hidden) else mask, masks
    )


def _is_hidden(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _is_lookahead(node: Any) -> bool:
    return isinstance(node, optax.LookaheadState)
