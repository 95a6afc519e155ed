"""Each criterion against finite differences or a closed form; see also the contract."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from nopr import criteria, masks, trees

WIDTHS = (5, 7, 4, 3)


def net(rng, widths=WIDTHS):
    return {
        f"layer_{i}": {
            "kernel": rng.normal(size=(a, b)) / np.sqrt(a),
            "bias": 0.3 * rng.normal(size=b),
        }
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    }


def apply(params, inputs):
    values = inputs
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        values = jnp.dot(values, layer["kernel"]) + layer["bias"][None, :]
        values = jnp.tanh(values) if i < len(params) - 1 else values
    return values


def loss(params, batch):
    inputs, targets = batch
    return jnp.mean((apply(params, inputs) - targets) ** 2)


@pytest.fixture
def problem(rng):
    return net(rng), (rng.normal(size=(6, 5)), rng.normal(size=(6, 3)))


def flat_loss(params, batch):
    """The loss as a function of the raveled kernels."""
    kernels, unravel = trees.ravel(trees.select(params))

    def of(vector):
        return float(loss(trees.overlay(lambda _, new: new, params, unravel(vector)), batch))

    return np.asarray(kernels), of


@pytest.mark.usefixtures("double")
def test_snip_is_weight_times_finite_difference_gradient(problem):
    params, batch = problem
    scores = criteria.snip(loss)(params, batch, key=None)
    kernels, of = flat_loss(params, batch)
    gradient = oracles.central_difference(of, kernels)
    np.testing.assert_allclose(trees.ravel(scores)[0], np.abs(kernels * gradient), atol=1e-8)


@pytest.mark.usefixtures("double")
def test_grasp_is_weight_times_hessian_times_gradient(problem):
    params, batch = problem
    kernels, of = flat_loss(params, batch)
    gradient = oracles.central_difference(of, kernels)
    step = 1e-4
    up = oracles.central_difference(of, kernels + step * gradient)
    down = oracles.central_difference(of, kernels - step * gradient)
    expected = kernels * (up - down) / (2 * step)
    scores = criteria.grasp(loss)(params, batch, key=None)
    np.testing.assert_allclose(trees.ravel(scores)[0], expected, atol=1e-6)


@pytest.mark.usefixtures("double")
def test_grasp_changes_the_squared_gradient_norm_as_documented(problem):
    params, batch = problem
    scores = criteria.grasp(loss)(params, batch, key=None)
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(scores))

    # Scaling every kernel by (1 - eps) changes |g|^2 / 2 by -eps * sum of w (H g).
    def norm(scale):
        scaled = trees.overlay(lambda p, m: p * scale, params, trees.full_masks(params))
        gradient = jax.grad(lambda k: loss(trees.overlay(lambda _, n: n, scaled, k), batch))(
            trees.select(scaled)
        )
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)) / 2

    eps = 1e-5
    np.testing.assert_allclose((norm(1 + eps) - norm(1 - eps)) / (2 * eps), total, rtol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("make", [criteria.snip, criteria.grasp])
def test_stacked_batches_sum_their_gradients_before_anything_else(make, problem, rng):
    params, (inputs, targets) = problem
    stacked = (
        np.stack([inputs, rng.normal(size=inputs.shape)]),
        np.stack([targets, rng.normal(size=targets.shape)]),
    )

    def summed_loss(params, batch):
        return sum(loss(params, jax.tree.map(lambda leaf, i=i: leaf[i], batch)) for i in range(2))

    expected = make(summed_loss)(params, stacked, key=None)
    scores = make(loss, stacked=True)(params, stacked, key=None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), scores, expected)


@pytest.mark.usefixtures("double")
def test_masked_grasp_is_that_of_the_network_without_the_pruned_weights(problem, rng):
    params, batch = problem
    kept = jax.tree.map(lambda w: rng.random(w.shape) < 0.6, trees.select(params))
    keep = np.asarray(trees.ravel(kept)[0])
    kernels, unravel = trees.ravel(trees.select(params))

    def small_loss(living):
        vector = jnp.zeros(kernels.shape).at[np.flatnonzero(keep)].set(living)
        return loss(trees.overlay(lambda _, new: new, params, unravel(vector)), batch)

    living = kernels[keep]
    gradient = jax.jit(jax.grad(small_loss))(living)
    expected = living * jax.jit(jax.hessian(small_loss))(living).dot(gradient)
    scores = trees.ravel(criteria.grasp(loss)(params, batch, masks=kept, key=None))[0]
    np.testing.assert_allclose(scores[keep], expected, rtol=1e-9, atol=1e-12)


def test_synflow_conserves_flow_between_layers_of_a_net_without_biases(rng):
    params = net(rng)
    for layer in params.values():
        layer["bias"] = np.zeros_like(layer["bias"])
    scores = criteria.synflow(linear_apply, input_shape=(5,))(params, None, key=None)
    sums = [float(np.asarray(leaf).sum()) for leaf in jax.tree.leaves(scores)]
    np.testing.assert_allclose(sums, 1.0, rtol=1e-12)  # each layer carries the whole flow R


def linear_apply(params, inputs):
    values = inputs
    for i in range(len(params)):
        values = jnp.dot(values, params[f"layer_{i}"]["kernel"]) + params[f"layer_{i}"]["bias"]
    return values


@pytest.mark.long
def test_synflow_is_finite_in_single_precision_on_a_net_that_overflows_it(getkey):
    width, depth = 32, 60
    params = {
        f"layer_{i}": {
            "kernel": 10 * jax.random.normal(jax.random.fold_in(getkey(), i), (width, width)),
            "bias": jnp.zeros(width),
        }
        for i in range(depth)
    }
    plain = linear_apply(jax.tree.map(jnp.abs, params), jnp.ones((1, width)))
    assert not bool(jnp.all(jnp.isfinite(plain)))
    score = jax.jit(
        lambda p: criteria.synflow(linear_apply, input_shape=(width,))(p, None, key=None)
    )
    scores = score(params)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(scores))
    sums = [float(np.asarray(leaf).sum()) for leaf in jax.tree.leaves(scores)]
    np.testing.assert_allclose(sums, 1.0, rtol=1e-9)


def test_synflow_scores_a_disconnected_net_as_zero(rng):
    params = net(rng)
    params = jax.tree.map(np.zeros_like, params)
    scores = criteria.synflow(linear_apply, input_shape=(5,))(params, None, key=None)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(scores))


def test_biases_are_scored_only_when_asked_for(problem):
    params, batch = problem
    default = criteria.magnitude()(params, batch, key=None)
    everything = criteria.magnitude(where=trees.everything)(params, batch, key=None)
    assert len(jax.tree.leaves(default)) == 3
    assert len(jax.tree.leaves(everything)) == 6


def test_criteria_work_on_an_nnx_state(rng):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    batch = (rng.normal(size=(4, 3)).astype(np.float32), np.zeros((4, 2), np.float32))

    def nnx_loss(state, batch):
        return jnp.mean((nnx.merge(graph, state)(batch[0]) - batch[1]) ** 2)

    scores = criteria.snip(nnx_loss)(state, batch, key=None)
    assert trees.paths(scores) == ("kernel",)
    kept = masks.top(scores, density=0.5)
    assert int(masks.count(kept)) == 3
    assert isinstance(masks.apply(state, kept), nnx.State)


def test_weights_that_are_integers_are_refused_by_name():
    score = criteria.snip(lambda params, batch: 0.0, where=lambda path, leaf: True)
    with pytest.raises(ValueError, match=r"`params` must be floating .* got int32 at 'w'"):
        score({"w": jnp.arange(3)}, None)


def test_a_stack_of_no_batches_is_refused():
    score = criteria.snip(lambda params, batch: jnp.sum(params["w"]), stacked=True)
    with pytest.raises(ValueError, match="`batch` must have at least one array"):
        score({"w": jnp.ones((2, 2))}, ())
