"""Criteria that keep what the neural tangent kernel is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from nopr import jaxprs, precision, sweeps, trees
from nopr import masks as masks_
from nopr.criteria import squared_paths
from nopr.criteria.activations import inputs_of
from nopr.criteria.shared import check_input_shape, living
from nopr.typing import (
    Apply,
    Batch,
    Criterion,
    Masks,
    Params,
    Scores,
    Where,
    check_apply,
    check_choice,
    check_form,
    check_key,
    explained,
    is_real,
    shown,
    whole_number,
)

Gates: TypeAlias = Literal["outputs", "paths"]
"""What the gates of real inputs weigh in `px`: whole `"outputs"`, or each of the `"paths"`."""


def px(
    apply: Apply,
    *,
    gates: Gates = "outputs",
    where: Where = trees.is_prunable,
    stacked: bool = False,
) -> Criterion:
    r"""Path exclusion: a weight's share of a bound on the trace of the neural tangent kernel.

    Output :math:`k` of a piecewise linear network is a sum over the paths :math:`p` that lead to it
    from inputs, and from whatever is added, such as biases: of the product
    :math:`v_p = \prod_{i \in p} w_i` of the weights on the path, the input :math:`x_p` where it
    starts, 1 if it starts within, and its gate :math:`a_p(x)`, 1 if all units on it are active for
    the input :math:`x` and 0 if not. The score is

    .. math:: \frac{w_i^2}{R} \frac{\partial R}{\partial w_i^2}, \qquad
        R = \sum_k \bigg( \sum_x \sum_{p \to k} \big( a_p(x) \, x_p \big)^2 \bigg)
        \bigg( \sum_{p \to k} v_p^2 \bigg) .

    By the Cauchy-Schwarz inequality, the trace of the kernel over these weights, the sum over
    outputs and inputs of their squared derivatives, is at most
    :math:`\sum_i \partial R / \partial w_i^2`, where the derivative is of the last factor alone:
    the data decide how much each output counts. With `gates="paths"`, each path keeps its own gate,

    .. math:: R = \sum_x \sum_p \big( v_p \, a_p(x) \, x_p \big)^2 ,

    which is at most the :math:`R` above and bounds nothing: the same sum of derivatives is then
    what the trace would be if different paths did not interfere.

    In both forms, the scores over any cut between inputs and outputs of a network without biases
    sum to 1. As long as the last layer is dense and has all its weights, all outputs of the first
    form count alike, and it is `synflow` of the squared weights whatever the inputs: the data count
    once pruning tells outputs apart. The second form is so with positive weights and inputs of
    ones. Meant for about 100 rounds of an exponential schedule on 2 batches (`pruning.pruner`).

    The gates are found by following `apply` operation by operation. ReLU and leaky ReLU, max and
    average pooling, and norms in inference mode are piecewise linear. Everything is computed in
    float64, and with powers of two beside it, so that deep networks neither overflow nor vanish.
    Constants, among them the leaves that are not prunable, are squared like weights. The first
    factor of the first form is the squared network on squared inputs under the real gates, with
    all its weights and constants 1 where they are not 0 (pruned weights are 0). The second is the
    squared network on inputs of ones with all gates open, where leaky ReLU takes its positive side
    and max pooling the largest sum, for which the bound above does not hold.

    The versions of the released code differ. In the last one, the batch norms and the classifier
    of both factors are those of the real network, with the statistics of each batch, and masks act
    in both; the one before it resets the norms of the first factor, removes its biases, squares
    all variables of the second, running means among them, and squares the derivative. Both pool
    the largest sums. Here nothing depends on the other examples of a batch.

    Args:
      apply: `apply(params, inputs) -> outputs`; it must follow the dtype of its arguments. The
        inputs are the first entry of a batch that is a tuple or list, and otherwise all of it.
        Examples are along the first axis of inputs and outputs.
      gates: What the gates of real inputs weigh: whole `"outputs"`, as published, or each of the
        `"paths"`.
      where: `where(path, leaf)`, true for a prunable leaf.
      stacked: Whether the batch holds several batches, over which :math:`R` is summed.

    Returns:
      A criterion whose scores are float64, in [0, 1].

    Raises:
      ValueError: If `gates` is unknown. From the criterion, if an operation is not piecewise
        linear, such as GELU, softmax, attention or a norm in training mode; the message names it.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from nopr import criteria
      >>> def apply(params, inputs):
      ...     return jax.nn.relu(inputs @ params["a"]) @ params["b"]
      >>> params = {"a": jnp.array([[1.0, 2.0], [3.0, -4.0]]), "b": jnp.array([[5.0], [6.0]])}
      >>> criteria.px(apply)(params, jnp.array([[1.0, 0.0]]))["a"]
      Array([[0.0257732 , 0.14845361],
             [0.23195876, 0.59381443]], dtype=float64)
      >>> criteria.px(apply, gates="paths")(params, jnp.array([[1.0, 0.0]]))["a"]
      Array([[0.14792899, 0.85207101],
             [0.        , 0.        ]], dtype=float64)

    Source: Iurada et al. 2024, arXiv:2406.01820.
    """
    check_apply(apply)
    check_choice("gates", gates, Gates)

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Any = None
    ) -> Scores:
        del key
        trees.by_path(params, "params")
        if masks is not None:
            masks_.check_bool(masks)
        inputs = jnp.asarray(trees.numbers(inputs_of(batch, "px"), "batch"))
        if stacked:
            sweeps.case_count(inputs, name="batch")
        return precision.in_double(path_scores, params, inputs, masks)

    def path_scores(params: Params, inputs: Array, masks: Masks | None) -> Scores:
        params, inputs = jax.tree.map(_double, (params, inputs))
        weights = living(params, masks, where)
        squares = jax.tree.map(jnp.square, weights)

        def replaced(weights: Params, inputs: Array) -> Array:
            what = f"`apply` failed on inputs of shape {jnp.shape(inputs)}"
            remedy = (
                "Give params of this network, and inputs or (inputs, labels), with an axis of "
                "batches before them where `stacked=True`."
            )
            with explained(what, remedy):
                outputs = apply(trees.overlay(lambda _, new: new, params, weights), inputs)
            return trees.numbers(outputs, "apply(params, inputs)")

        def shares(inputs: Array) -> tuple[Scores, Array]:
            def flow(squares: Params) -> tuple[Array, Array]:
                if gates == "paths":
                    return _total(*_squared_flow(replaced, weights, squares, inputs))
                ones = inputs
                if jnp.issubdtype(inputs.dtype, jnp.floating):
                    ones = jnp.ones_like(inputs[:1])  # all examples are the same
                values, exponent = _squared_flow(replaced, weights, squares, ones, isopen=True)
                return _total(data * values, more + exponent)

            if gates == "outputs":
                kept = jax.tree.map(_indicator, weights)
                data, more = _squared_flow(replaced, weights, kept, inputs, square=_indicator)
            (value, exponent), slopes = jax.value_and_grad(flow, has_aux=True)(squares)
            scale = jnp.where(value == 0, 1.0, value)
            found = jax.tree.map(lambda s, g: s * g / scale, squares, slopes)
            return found, jnp.log(value) + exponent * jnp.log(2.0)

        def add(before: tuple[Scores, Array], inputs: Array) -> tuple[tuple[Scores, Array], None]:
            (one, first), (two, second) = before, shares(inputs)
            both = jnp.logaddexp(first, second)
            part, rest = (jnp.where(x == -jnp.inf, 0.0, jnp.exp(x - both)) for x in (first, second))
            return (jax.tree.map(lambda a, b: part * a + rest * b, one, two), both), None

        if not stacked:
            return shares(inputs)[0]
        none = jax.tree.map(jnp.zeros_like, squares), jnp.asarray(-jnp.inf)
        return jax.lax.scan(add, none, inputs)[0][0]

    return score


def ntk_sap(
    apply: Apply,
    *,
    input_shape: tuple[int, ...],
    init: Callable[..., Params] | None = None,
    eps: float = 0.01,
    draws: int = 5,
    examples: int = 100,
    where: Where = trees.is_prunable,
) -> Criterion:
    r"""Effect of a weight's mask on the trace of the neural tangent kernel, estimated by noise.

    The kernel's trace, up to a factor, is the mean squared change of the outputs under a small
    random perturbation of the weights, and the score is its derivative by the mask at the current
    masks :math:`m`,

    .. math:: \bigg| \frac{\partial}{\partial m} \sum_{r=1}^{R} \sum_x \big\|
        f(x; m \odot w_r) - f(x; m \odot (w_r + \epsilon z_r)) \big\|^2 \bigg| ,

    where :math:`z_r` and the inputs :math:`x` are standard normal, and drawn anew for each
    :math:`r`. With `init`, so are all params :math:`w_r`, and the scores do not depend on the
    values of the given params. Needs no data. The finite :math:`\epsilon` is the paper's; the
    difference is taken in float64, where it keeps its digits. Meant for rounds of an exponential
    schedule (`pruning.pruner`), 20 in the script that the authors released.

    Norms are those of `apply`. The released code normalizes by the statistics of each batch of
    noise.

    Args:
      apply: `apply(params, inputs) -> outputs`; it must follow the dtype of its arguments.
      input_shape: The shape of one input, without the batch axis.
      init: `init(key) -> params`, which draws the weights of each round of noise; None for the
        given params every time.
      eps: The standard deviation :math:`\epsilon` of the perturbation.
      draws: The number R of draws; 5 in the released code's one sample script, for ResNet-20 on
        CIFAR-10, and 1 by default there.
      examples: The number of inputs in each draw; 10 a class by default in the released code.
      where: `where(path, leaf)`, true for a prunable leaf.

    Returns:
      A criterion that needs a key, and whose scores are float64.

    Raises:
      ValueError: If an option is out of range. From the criterion, if `init` draws other params
        than those given.

    Source: Wang et al. 2023, arXiv:2304.02840.
    """
    check_apply(apply)
    check_input_shape(input_shape)
    if init is not None:
        check_form(init, "(key)", name="init", remedy="It draws the params.")
    if not is_real(eps) or not 0 < float(eps) <= 1:
        raise ValueError(f"`eps` must be in (0, 1], got {shown(eps)}.")
    draws = whole_number("draws", draws)
    examples = whole_number("examples", examples)

    def score(
        params: Params, batch: Batch, *, masks: Masks | None = None, key: Key[Array, ""]
    ) -> Scores:
        del batch
        check_key(key)
        trees.check_floating(living(params, masks, where))  # checks the masks

        def draw(total: Scores, key: Key[Array, ""]) -> tuple[Scores, None]:
            init_key, input_key, noise_key = jax.random.split(key, 3)
            now = params if init is None else init(init_key)
            trees.check_same(now, params, name="init(key)", other="params")
            inputs = jax.random.normal(input_key, (examples, *input_shape), jnp.float32)
            leaves, treedef = jax.tree.flatten(trees.select(now, where))
            keys = jax.random.split(noise_key, len(leaves))
            noise = [
                jax.random.normal(k, leaf.shape, jnp.float32)
                for k, leaf in zip(keys, leaves, strict=True)
            ]
            noise = jax.tree.unflatten(treedef, noise)
            slopes = precision.in_double(slope, now, masks, inputs, noise)
            return precision.in_double(_sum, total, slopes), None

        zeros = precision.in_double(
            lambda weights: jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float64), weights),
            trees.select(params, where),
        )
        total, _ = jax.lax.scan(draw, zeros, jax.random.split(key, draws))
        return precision.in_double(lambda tree: jax.tree.map(jnp.abs, tree), total)

    def slope(params: Params, masks: Masks | None, inputs: Array, noise: Params) -> Params:
        params, inputs, noise = jax.tree.map(_double, (params, inputs, noise))
        weights = living(params, masks, where)
        moved = living(trees.overlay(lambda w, z: w + eps * z, params, noise), masks, where)

        def outputs(weights: Params, gates: Params) -> Array:
            gated = trees.overlay(
                lambda _, new: new, params, jax.tree.map(jnp.multiply, weights, gates)
            )
            what = f"`apply` failed on inputs of shape {inputs.shape}, of `input_shape`"
            with explained(what, "Give the shape of one input, without the batch axis."):
                found = apply(gated, inputs)
            return trees.numbers(found, "apply(params, inputs)")

        def change(gates: Params) -> Array:
            return jnp.sum(jnp.square(outputs(weights, gates) - outputs(moved, gates)))

        return jax.grad(change)(jax.tree.map(jnp.ones_like, weights))

    return score


def _squared_flow(
    function: Callable[..., Array],
    weights: Params,
    squares: Params,
    inputs: Array,
    *,
    square: squared_paths.Square = jnp.square,
    isopen: bool = False,
) -> tuple[Array, Array]:
    """The sums over the squared paths of `function(weights, inputs)`, and their exponent."""
    values: list[Any] = [
        squared_paths.Flow(None if isopen else real, square, kind=squared_paths.WEIGHT)
        for real, square in zip(jax.tree.leaves(weights), jax.tree.leaves(squares), strict=True)
    ]
    values.append(inputs)
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        real = None if isopen else inputs
        values[-1] = squared_paths.Flow(real, jnp.square(inputs), kind=squared_paths.INPUT)
    program, _ = jaxprs.trace(function, weights, inputs)
    (result,) = squared_paths.walk(program, values, square)
    return squared_paths.outcome(result, square)


def _total(values: Array, exponent: Array) -> tuple[Array, Array]:
    return jnp.sum(values), exponent


def _indicator(values: Any) -> Array:
    """1 where a value is not 0."""
    return jnp.not_equal(values, 0).astype(jnp.result_type(values))


def _sum(one: Params, two: Params) -> Params:
    return jax.tree.map(jnp.add, one, two)


def _double(leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.asarray(leaf).astype(jnp.float64)
