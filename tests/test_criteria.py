"""Each criterion against finite differences or a closed form; see also the contract."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from nopr import criteria, granularity, masks, trees

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


@pytest.mark.long
@pytest.mark.usefixtures("double")
def test_snip_is_weight_times_finite_difference_gradient(problem):
    params, batch = problem
    scores = criteria.snip(loss)(params, batch, key=None)
    kernels, of = flat_loss(params, batch)
    gradient = oracles.central_difference(of, kernels)
    np.testing.assert_allclose(trees.ravel(scores)[0], np.abs(kernels * gradient), atol=1e-8)


@pytest.mark.usefixtures("double")
def test_taylor_and_movement_are_those_of_finite_differences(problem):
    params, batch = problem
    kernels, of = flat_loss(params, batch)
    change = kernels * oracles.central_difference(of, kernels)
    scores = trees.ravel(criteria.taylor(loss)(params, batch, key=None))[0]
    np.testing.assert_allclose(scores, change**2, atol=1e-10)
    scores = trees.ravel(criteria.movement(loss)(params, batch, key=None))[0]
    np.testing.assert_allclose(scores, -change, atol=1e-8)


@pytest.mark.usefixtures("double")
def test_taylor_of_a_filter_is_the_squared_change_of_the_loss_as_it_fades(problem):
    params, batch = problem
    scores = criteria.taylor(loss, group="filter")(params, batch, key=None)
    pooled = granularity.filters(outputs=[]).pool(scores)
    for name, layer in params.items():
        kernel = layer["kernel"]

        def fading(gates, name=name, kernel=kernel):
            faded = {**params[name], "kernel": kernel * gates[None, :]}
            return float(loss({**params, name: faded}, batch))

        slopes = oracles.central_difference(fading, np.ones(kernel.shape[1]))
        np.testing.assert_allclose(pooled[name]["kernel"], slopes**2, atol=1e-10)
        np.testing.assert_array_equal(
            scores[name]["kernel"], np.broadcast_to(scores[name]["kernel"][0], kernel.shape)
        )


@pytest.mark.usefixtures("double")
def test_movement_is_the_growth_of_the_magnitude_in_a_step_of_descent(problem):
    params, batch = problem
    scores = criteria.movement(loss)(params, batch, key=None)
    rate = 1e-7
    slopes = jax.grad(loss)(params, batch)
    for name, layer in params.items():
        after = np.abs(layer["kernel"] - rate * slopes[name]["kernel"])
        growth = np.abs(layer["kernel"]) * (after - np.abs(layer["kernel"])) / rate
        np.testing.assert_allclose(scores[name]["kernel"], growth, atol=1e-6)


@pytest.mark.usefixtures("double")
def test_force_is_the_change_if_a_removed_weight_returned(problem, rng):
    params, batch = problem
    kept = jax.tree.map(lambda w: rng.random(w.shape) < 0.6, trees.select(params))
    kernels, _ = flat_loss(params, batch)
    living, of = flat_loss(masks.apply(params, kept), batch)
    expected = np.abs(kernels * oracles.central_difference(of, living))
    scores = trees.ravel(criteria.force(loss)(params, batch, masks=kept, key=None))[0]
    np.testing.assert_allclose(scores, expected, atol=1e-8)
    assert np.all(np.asarray(scores)[~np.asarray(trees.ravel(kept)[0])] > 0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("pruned", [False, True])
def test_prospr_is_the_effect_of_a_mask_on_the_loss_after_training_by_optax(pruned, problem, rng):
    params, batch = problem
    stacked = tuple(rng.normal(size=(4, *x.shape)) for x in batch)
    kept = None
    if pruned:
        kept = jax.tree.map(lambda w: rng.random(w.shape) < 0.6, trees.select(params))
    tx = optax.sgd(0.3, momentum=0.9)

    def outcome(gates):
        def alive(tree):
            return tree if kept is None else masks.apply(tree, kept)

        now = alive(trees.overlay(jnp.multiply, params, gates))
        state = tx.init(now)
        for i in range(3):
            slopes = jax.grad(loss)(now, tuple(x[i] for x in stacked))
            updates, state = tx.update(alive(slopes), state)
            now = optax.apply_updates(now, updates)
        return loss(now, tuple(x[3] for x in stacked))

    vector, unravel = trees.ravel(jax.tree.map(np.ones_like, trees.select(params)))
    compiled = jax.jit(lambda vector: outcome(unravel(vector)))
    expected = np.abs(oracles.central_difference(compiled, np.asarray(vector)))
    criterion = criteria.prospr(loss, learning_rate=0.3, momentum=0.9, stacked=True)
    scores = trees.ravel(criterion(params, stacked, masks=kept, key=None))[0]
    np.testing.assert_allclose(scores, expected, atol=1e-7)
    assert np.max(expected) > 1e-2


@pytest.mark.long
def test_prospr_without_training_is_snip_and_with_it_is_not(problem):
    params, batch = jax.tree.map(np.float32, problem)
    snip = trees.ravel(criteria.snip(loss)(params, batch, key=None))[0]
    for rate, same in ((0.0, True), (0.3, False)):
        scores = criteria.prospr(loss, learning_rate=rate)(params, batch, key=None)
        assert np.allclose(trees.ravel(scores)[0], snip, rtol=1e-5) == same


def test_force_of_the_whole_network_is_snip(problem):
    params, batch = problem
    pair = (make(loss)(params, batch, key=None) for make in (criteria.force, criteria.snip))
    jax.tree.map(np.testing.assert_array_equal, *pair)


@pytest.mark.long
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("examples", [1, 4, 6, 32])
def test_obd_is_half_the_squared_weight_times_the_mean_squared_gradient(examples, problem):
    params, batch = problem
    kernels, _ = flat_loss(params, batch)
    scores = criteria.obd(loss, examples=examples)(params, batch, key=None)
    squares = [
        oracles.central_difference(flat_loss(params, tuple(x[[i]] for x in batch))[1], kernels) ** 2
        for i in range(len(batch[0]))
    ]
    expected = kernels**2 * np.mean(squares, axis=0) / 2
    np.testing.assert_allclose(trees.ravel(scores)[0], expected, atol=1e-8)


@pytest.mark.usefixtures("double")
def test_obd_is_the_rise_of_the_loss_where_the_information_is_the_curvature():
    """The maximum-likelihood fit of a Bernoulli law: one weight, the logit of the mean."""
    labels = np.array([1.0, 1, 1, 0, 0, 0, 0, 0])
    logit = np.log(3 / 5)
    params = {"w": np.array([[logit]])}

    def negative_log_likelihood(params, batch):
        return jnp.mean(jax.nn.softplus(params["w"][0, 0]) - batch * params["w"][0, 0])

    score = criteria.obd(negative_log_likelihood)(params, labels, key=None)["w"]
    curvature = jax.hessian(negative_log_likelihood)(params, labels)["w"]["w"].item()
    np.testing.assert_allclose(score, [[logit**2 * curvature / 2]], rtol=1e-12)


def test_obd_of_half_precision_adds_up_in_single_precision():
    """In bfloat16, a sum of 1,000 squares would stop growing at 256."""
    params = {"w": jnp.ones((2, 2), jnp.bfloat16)}

    def of_one(params, batch):
        return jnp.mean(jnp.sum(params["w"], dtype=jnp.float32) * batch)

    slope = np.float32(1 + 2**-7)  # its square takes more than the bits of bfloat16
    scores = criteria.obd(of_one)(params, np.full(1000, slope), key=None)["w"]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, slope**2 / 2, rtol=1e-5)


@pytest.mark.long
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
@pytest.mark.parametrize(
    "make", [criteria.snip, criteria.force, criteria.taylor, criteria.movement, criteria.grasp]
)
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
@pytest.mark.parametrize("make", [criteria.obd, criteria.movement])
def test_the_scores_of_stacked_batches_add_up(make, problem, rng):
    params, batch = problem
    stacked = tuple(np.stack([x, rng.normal(size=x.shape)]) for x in batch)
    each = [make(loss)(params, tuple(x[i] for x in stacked), key=None) for i in range(2)]
    scores = make(loss, stacked=True)(params, stacked, key=None)
    expected = jax.tree.map(jnp.add, *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), scores, expected)


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


SMALL = st.lists(st.integers(-3, 3), min_size=12, max_size=12)


@pytest.mark.long
@given(values=SMALL, alive=st.lists(st.booleans(), min_size=12, max_size=12))
def test_lamp_agrees_with_its_twin_when_magnitudes_tie_and_weights_are_pruned(values, alive):
    weights, kept = (np.float32(values).reshape(4, 3), np.array(alive).reshape(4, 3))
    scores = criteria.lamp()({"w": weights}, None, masks={"w": kept}, key=None)["w"]
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, oracles.lamp(np.where(kept, weights, 0)), rtol=1e-14)


def test_lamp_of_a_large_layer_of_equal_weights_is_the_harmonic_series():
    """Float32 cannot tell the last of these scores from its neighbors."""
    n = 2**18
    weights = {"w": jnp.full((n // 8, 8), -0.1)}
    scores = np.asarray(jax.jit(criteria.lamp())(weights, None, key=jax.random.key(0))["w"])
    np.testing.assert_allclose(scores.ravel(), 1 / np.arange(1, n + 1), rtol=1e-13)


@pytest.mark.long
@given(values=SMALL, count=st.integers(0, 12))
def test_lamp_keeps_in_a_layer_what_magnitude_keeps(values, count):
    weights = {"w": np.float32(values).reshape(4, 3)}
    kept = [
        masks.top(criterion(weights, None, key=None), count=count, warn=False)["w"]
        for criterion in (criteria.lamp(), criteria.magnitude())
    ]
    np.testing.assert_array_equal(*kept)


def test_lamp_keeps_the_largest_weight_of_every_layer_whatever_its_scale(problem):
    params, _ = problem
    params["layer_1"]["kernel"] *= 1e-15
    params["layer_2"]["kernel"] *= 1e15
    kept = masks.top(criteria.lamp()(params, None, key=None), count=3)
    for path, leaf in trees.by_path(kept, "masks").items():
        index, name = np.argmax(abs(params[path.partition("/")[0]]["kernel"])), path
        np.testing.assert_array_equal(np.flatnonzero(leaf), [index], err_msg=name)


def test_biases_are_scored_only_when_asked_for(problem):
    params, batch = problem
    default = criteria.magnitude()(params, batch, key=None)
    everything = criteria.magnitude(where=trees.everything)(params, batch, key=None)
    assert len(jax.tree.leaves(default)) == 3
    assert len(jax.tree.leaves(everything)) == 6


@pytest.mark.long
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


@pytest.mark.parametrize("make", [criteria.snip, criteria.obd])
def test_a_stack_of_no_batches_is_refused(make):
    score = make(lambda params, batch: jnp.sum(params["w"]), stacked=True)
    with pytest.raises(ValueError, match="`batch` must have at least one array"):
        score({"w": jnp.ones((2, 2))}, ())


def test_options_out_of_range_are_refused(unchecked):
    with pytest.raises(ValueError, match="`group` must be one of 'weight', 'filter', got 'unit'"):
        criteria.taylor(loss, group="unit")
    with pytest.raises(ValueError, match="`examples` must be a whole number of at least 1, got 0"):
        criteria.obd(loss, examples=0)
    for bad in (-0.1, np.nan, None, 1e300):
        with pytest.raises(ValueError, match=r"`learning_rate` must be in \[0, 1e\+38\), got"):
            criteria.prospr(loss, learning_rate=bad)
    with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\), got 1"):
        criteria.prospr(loss, learning_rate=0.1, momentum=1)
    with pytest.raises(ValueError, match="`steps` must be a whole number of at least 1, got 0"):
        criteria.prospr(loss, learning_rate=0.1, steps=0)


def test_prospr_asks_for_a_batch_for_each_step_and_one_more(problem):
    params, batch = problem
    score = criteria.prospr(loss, learning_rate=0.1, stacked=True)
    with pytest.raises(ValueError, match=r"`batch` must hold 4 batches, .* `steps` = 3 .* got 6"):
        score(params, batch)
