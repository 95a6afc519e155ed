"""Scores and updates of the optimal brain surgeon with the empirical Fisher information."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from nopr import criteria, finetune, masks, reconstruct, trees

EXAMPLES, DAMPING = 7, 1e-3


def loss(params, batch):
    inputs, targets = batch
    hidden = jnp.tanh(jnp.dot(inputs, params["a"]["w"]) + params["a"]["bias"][None, :])
    return jnp.mean(jnp.square(jnp.dot(hidden, params["b"]["w"]) - targets))


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.float32(rng.normal(size=shape))  # noqa: E731
    params = {"a": {"w": draw(4, 5), "bias": draw(5)}, "b": {"w": draw(5, 2), "bias": None}}
    return params, (draw(EXAMPLES, 4), draw(EXAMPLES, 2))


@pytest.fixture(scope="module")
def slopes(problem):
    """The gradient of each example by leaf, [examples, weights], filter by filter."""
    params, batch = problem
    each = jax.vmap(lambda *one: jax.grad(loss)(params, jax.tree.map(lambda x: x[None], one)))
    return {name: flat(np.moveaxis(each(*batch)[name]["w"], 0, -1)).T for name in "ab"}


def flat(kernel):
    """The weights of a dense kernel filter by filter; further axes stay."""
    turned = np.swapaxes(np.asarray(kernel), 0, 1)
    return turned.reshape(-1, *turned.shape[2:])


def scores(problem, kept=None, **options):
    params, batch = problem
    score = criteria.woodfisher(loss, **{"damping": DAMPING, "examples": 3, **options})
    return jax.jit(lambda kept: score(params, batch, masks=kept))(kept)


@pytest.mark.parametrize("block", [1, 6, 100])
def test_woodfisher_is_that_of_the_recursion_over_examples(block, problem, slopes):
    found = scores(problem, block=block)
    assert found["a"]["bias"] is None
    for name in "ab":
        weights = flat(problem[0][name]["w"])
        expected = oracles.woodfisher(weights, slopes[name], DAMPING, block)
        np.testing.assert_allclose(flat(found[name]["w"]), expected, rtol=1e-5)
        assert found[name]["w"].dtype == np.float32


def test_blocks_of_one_weight_are_obd_with_damping(problem):
    params, batch = problem
    plain = criteria.obd(loss)(params, batch, key=None)
    found = scores(problem, block=1)
    for name in "ab":
        expected = plain[name]["w"] + DAMPING * params[name]["w"] ** 2 / 2
        np.testing.assert_allclose(found[name]["w"], expected, rtol=1e-5)


def test_removed_weights_are_constants_of_the_information(problem, slopes):
    kept = trees.select(trees.full_masks(problem[0]), lambda path, leaf: path in ("a/w", "b/w"))
    kept = {**kept, "b": {**kept["b"], "w": kept["b"]["w"].at[1].set(False)}}
    found = flat(scores(problem, kept, block=100)["b"]["w"])
    params = masks.apply(problem[0], kept)
    each = jax.vmap(lambda *one: jax.grad(loss)(params, jax.tree.map(lambda x: x[None], one)))
    alive = flat(kept["b"]["w"])
    left = flat(np.moveaxis(each(*problem[1])["b"]["w"], 0, -1))[alive].T
    expected = oracles.woodfisher(flat(params["b"]["w"])[alive], left, DAMPING, 100)
    np.testing.assert_allclose(found[alive], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[~alive], 0)


def test_stacked_batches_give_the_information_of_all_their_examples(problem):
    params, batch = problem
    many = jax.tree.map(lambda x: np.concatenate([x, -x]), batch)
    stacked = jax.tree.map(lambda x: x.reshape(2, EXAMPLES, -1), many)
    one = scores((params, many), block=6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        scores((params, stacked), block=6, stacked=True),
        one,
    )


def test_tiny_damping_and_large_gradients_keep_the_accuracy_of_double_precision():
    """In single precision, the factors of these blocks would be NaN or noise."""
    inputs = np.float32(1e3 * np.random.default_rng(1).normal(size=(3, 6)))
    params = {"w": jnp.ones((6, 1))}

    def of_products(params, batch):
        return jnp.sum(jnp.dot(batch, params["w"])) / len(batch)

    found = criteria.woodfisher(of_products, damping=1e-6)(params, inputs)["w"][:, 0]
    # The information is that of the inputs' span; F^-1 is nearly the projection off it / damping.
    off = np.eye(6) - np.linalg.pinv(np.float64(inputs)) @ inputs
    np.testing.assert_allclose(found, 1e-6 / (2 * np.diag(off)), rtol=1e-3)


def removed(weights, index):
    return {"w": jnp.ones(weights.shape, bool).at[index, 0].set(False)}


def predictions(params, batch):
    return jnp.mean(jnp.square(jnp.dot(batch[0], params["w"]) - batch[1])) / 2


@pytest.fixture(scope="module")
def fit():
    """A least-squares fit with residuals of -1 and 1, whose Hessian is the Fisher information."""
    rng = np.random.default_rng(5)
    inputs, weights = rng.normal(size=(12, 6)) + 0.5, rng.normal(size=(6, 1))
    both = np.concatenate([inputs, inputs])
    sign = np.repeat([[1.0], [-1.0]], 12, axis=0)
    return {"w": weights}, (both, both @ weights + sign)


@pytest.mark.usefixtures("double")
def test_the_score_is_the_rise_of_the_loss_after_the_update(fit):
    params, batch = fit
    options = {"block": 10, "damping": 1e-12}
    found = criteria.woodfisher(predictions, **options)(params, batch)["w"]
    update = jax.jit(reconstruct.obs(predictions, **options))
    before = predictions(params, batch)
    for index in range(6):
        after = update(params, removed(params["w"], index), batch)
        assert after["w"][index, 0] == 0
        np.testing.assert_allclose(predictions(after, batch) - before, found[index, 0], rtol=1e-8)


@pytest.mark.usefixtures("double")
def test_on_a_quadratic_loss_the_update_is_the_least_squares_fit_of_what_is_kept(fit):
    params, (inputs, targets) = fit
    kept = np.array([[1], [0], [1], [0], [0], [1]], bool)
    update = reconstruct.obs(predictions, block=10, damping=1e-12)
    after = update(params, {"w": jnp.asarray(kept)}, (inputs, targets))["w"]
    best = np.linalg.lstsq(inputs[:, kept[:, 0]], targets)[0]
    np.testing.assert_allclose(after[kept], best[:, 0], rtol=1e-8)
    np.testing.assert_array_equal(after[~kept], 0)


def test_the_update_is_that_of_the_whole_inverse_block_by_block(problem, slopes):
    params, batch = problem
    kept = masks.top(scores(problem, block=8), density=0.5)
    options = {"block": 8, "damping": DAMPING, "examples": 3}
    after = jax.jit(reconstruct.obs(loss, **options))(params, kept, batch)
    for name in "ab":
        weights, alive = flat(params[name]["w"]), flat(kept[name]["w"])
        expected = []
        for start in range(0, len(weights), 8):
            part = slice(start, start + 8)
            rows = np.float64(slopes[name][:, part])
            fisher = rows.T @ rows / EXAMPLES + DAMPING * np.eye(rows.shape[1])
            expected += list(oracles.restricted(fisher, weights[part], alive[part]))
        np.testing.assert_allclose(flat(after[name]["w"]), expected, rtol=1e-4, atol=1e-5)
    assert after["a"]["bias"] is params["a"]["bias"] or np.array_equal(
        after["a"]["bias"], params["a"]["bias"]
    )


def test_what_is_kept_whole_stays_as_it_is_to_the_last_bit(problem):
    params, batch = problem
    full = trees.full_masks(params)
    half = {**full, "a": {**full["a"], "w": full["a"]["w"].at[0].set(False)}}
    update = jax.jit(jax.vmap(reconstruct.obs(loss), (None, 0, None)))
    after = update(params, jax.tree.map(lambda *x: jnp.stack(x), full, half), batch)
    for i, name in ((0, "a"), (0, "b"), (1, "b")):
        np.testing.assert_array_equal(after[name]["w"][i], params[name]["w"])
    assert np.any(after["a"]["w"][1, 1:] != params["a"]["w"][1:])
    np.testing.assert_array_equal(after["a"]["w"][1, 0], 0)


def nnx_model():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    return state, lambda state, inputs: nnx.merge(graph, state)(inputs)


def equinox_model():
    model = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    return model, lambda model, inputs: jax.vmap(model)(inputs)


def haiku_model():
    network = hk.without_apply_rng(hk.transform(lambda inputs: hk.Linear(2)(inputs)))  # noqa: PLW0108
    return network.init(jax.random.key(0), np.ones((1, 3))), network.apply


@pytest.mark.long
@pytest.mark.parametrize("make", [nnx_model, equinox_model, haiku_model])
def test_scores_and_updates_of_other_peoples_models(make):
    params, apply = make()
    loss = finetune.squared_error(apply)
    batch = np.eye(3, dtype=np.float32), np.ones((3, 2), np.float32)
    score = criteria.woodfisher(loss)
    criteria.check_contract(score, params, batch, key=jax.random.key(0))
    criteria.check_contract(criteria.spectral(rank=1), params, batch, key=jax.random.key(0))
    kept = masks.top(score(params, batch), count=4)
    after = jax.jit(reconstruct.obs(loss))(params, kept, batch)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    for path, leaf in trees.by_path(after, "params").items():
        mask = trees.by_path(kept, "masks").get(path)
        if mask is None:  # the bias
            np.testing.assert_array_equal(leaf, trees.by_path(params, "params")[path])
        else:
            np.testing.assert_array_equal(np.asarray(leaf)[~mask], 0)


def test_large_weights_of_no_slope_have_the_score_of_the_damping():
    """The square of the weight alone would be infinite in single precision."""
    flat_loss = lambda params, batch: 0 * jnp.sum(params["w"]) * jnp.sum(batch)  # noqa: E731
    found = criteria.woodfisher(flat_loss)({"w": jnp.full((1, 2), 1e20)}, np.ones((2, 1)))["w"]
    np.testing.assert_allclose(found, 1e40 * 1e-5 / 2, rtol=1e-5)


@pytest.mark.parametrize("make", [criteria.woodfisher, reconstruct.obs])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "`block` must be a whole number of at least 1, got 0"),
        ({"examples": 2.5}, r"`examples` must be a whole number of at least 1, got 2\.5"),
        ({"memory_bytes": -1}, "`memory_bytes` must be a whole number of at least 1"),
        ({"damping": 0}, "`damping` must be a positive number, got 0"),
        ({"damping": np.nan}, "`damping` must be a positive number, got nan"),
    ],
)
def test_options_out_of_range_are_refused(make, options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make(loss, **options)


def test_blocks_larger_than_the_memory_are_refused_before_they_are_made():
    """The block of this kernel would take 442 GB, and six times as much with sums and factors."""
    params = {"w": jnp.ones((784, 300))}
    message = (
        r"Blocks of 235,200 weights take 2,655,\d{3},\d{3},\d{3} bytes, more than `memory_bytes`, "
        r"4,294,967,296\. Take a smaller `block`, here 1,000,000"
    )
    for use in (
        lambda: criteria.woodfisher(predictions, block=10**6)(params, np.ones((2, 784))),
        lambda: reconstruct.obs(predictions, block=10**6)(params, trees.full_masks(params), None),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_an_update_that_is_not_finite_is_refused_by_leaf():
    params, kept = {"w": jnp.ones((2, 1))}, {"w": jnp.array([[True], [False]])}
    batch = np.float32([[np.nan, 1]]), np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="NaN or infinity at 'w'"):
        reconstruct.obs(predictions)(params, kept, batch)
    with pytest.raises(ValueError, match="`masks` has a leaf at 'v' that `params` lacks"):
        reconstruct.obs(predictions)(params, {"v": kept["w"]}, batch)
