"""Criteria made of criteria: what they do to scores, and that they keep double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr import criteria, granularity, masks, trees

PARAMS = {
    "a": jnp.array([[3.0, -1.0, 0.5], [2.0, -4.0, 0.0]]),
    "b": jnp.array([[300.0, 500.0], [-100.0, 700.0]]),
}
KEPT = {
    "a": np.array([[True, True, False], [True, False, True]]),
    "b": np.array([[True, True], [False, True]]),
}


def loss(params, batch):
    inputs, targets = batch
    hidden = jnp.tanh(jnp.dot(inputs, params["a"]))
    return jnp.mean((jnp.sum(hidden, axis=1) * jnp.mean(params["b"]) / 100 - targets) ** 2)


@pytest.fixture
def batches(rng):
    """Three batches of four examples."""
    return np.float32(rng.normal(size=(3, 4, 2))), np.float32(20 * rng.normal(size=(3, 4)))


def close(got, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected)


def test_shuffled_scores_are_the_same_numbers_of_the_same_layer_in_another_order(getkey):
    criterion = criteria.shuffle(criteria.magnitude())
    found = [criterion(PARAMS, None, key=getkey()) for _ in range(4)]
    for name, leaf in PARAMS.items():
        rows = [np.ravel(scores[name]) for scores in found]
        assert all(sorted(row) == sorted(np.abs(np.ravel(leaf))) for row in rows)
        assert len({tuple(row) for row in rows}) > 1
    kept = [masks.top(scores, count=5) for scores in (*found, criteria.magnitude()(PARAMS, None))]
    assert {tuple(int(leaf.sum()) for leaf in jax.tree.leaves(one)) for one in kept} == {(1, 4)}


def test_scores_are_shuffled_among_living_weights_alone_and_in_every_order(getkey):
    """Three of five weights live, so that there are six orders, in which frequencies are equal."""
    weights, kept = jnp.array([[1.0, 2, 3, 4, 5]]), np.array([[True, False, True, True, False]])
    criterion = criteria.shuffle(criteria.magnitude())
    scores = jax.vmap(lambda key: criterion({"w": weights}, None, masks={"w": kept}, key=key)["w"])(
        jax.random.split(getkey(), 3000)
    )
    orders, counts = np.unique(np.asarray(scores)[:, kept], axis=0, return_counts=True)
    assert len(orders) == 6
    assert set(orders.ravel()) == {1.0, 3.0, 4.0}
    np.testing.assert_allclose(counts, 500, atol=5 * np.sqrt(500 * 5 / 6))


def test_normalized_scores_are_shares_of_the_living_total_of_the_layer():
    scores = criteria.normalize(criteria.magnitude())(PARAMS, None, masks=KEPT, key=None)
    np.testing.assert_allclose(scores["a"], [[3 / 6, 1 / 6, 0], [2 / 6, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores["b"], [[3 / 15, 5 / 15], [0, 7 / 15]], rtol=1e-6)


def test_normalizing_forgets_the_scale_of_a_layer_up_to_the_largest_floats():
    criterion = criteria.normalize(criteria.from_weights(lambda w: w))
    expected = criterion(PARAMS, None, key=None)
    for scale in (1e-30, 3e35):
        scaled = jax.tree.map(lambda leaf, s=scale: leaf * s, PARAMS)
        close(criterion(scaled, None, key=None), expected, rtol=1e-5)
    np.testing.assert_allclose(np.abs(expected["a"]).sum(), 1, rtol=1e-6)


def test_a_layer_without_scores_stays_0_and_one_that_is_not_finite_is_refused():
    criterion = criteria.normalize(criteria.magnitude())
    scores = criterion({**PARAMS, "b": jnp.zeros((2, 2))}, None, key=None)
    np.testing.assert_array_equal(scores["b"], 0)
    for bad in (np.nan, np.inf):
        scores = criterion({**PARAMS, "b": PARAMS["b"].at[0, 0].set(bad)}, None, key=None)
        with pytest.raises(ValueError, match="`scores` has NaN or infinite values at 'b'"):
            masks.top(scores, count=2)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (criteria.normalize, [[3 / 6, 1 / 6, 0], [2 / 6, 0, 0]]),
        (criteria.by_filter, [[5, 1, 0], [5, 1, 0]]),
    ],
)
def test_scores_of_pruned_weights_do_not_count_whatever_they_are(make, expected):
    def careless(params, batch, *, masks=None, key):
        del batch, masks, key
        return {"a": jnp.abs(params["a"])}

    scores = make(careless)(PARAMS, None, masks={"a": KEPT["a"]}, key=None)["a"]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_scores_of_filters_are_the_sums_over_their_living_weights(batches):
    batch = tuple(leaf[0] for leaf in batches)
    by_filter = criteria.by_filter(criteria.magnitude())(PARAMS, None, masks=KEPT, key=None)
    close(by_filter, criteria.filter_l1()(PARAMS, None, masks=KEPT, key=None), rtol=1e-6)
    squares = criteria.taylor(loss)(PARAMS, batch, key=None)
    sums = criteria.by_filter(criteria.taylor(loss))(PARAMS, batch, key=None)
    pooled = granularity.filters(outputs=[]).pool(sums)
    close(pooled, jax.tree.map(lambda leaf: leaf.sum(0), squares), rtol=1e-6)


def test_the_average_over_keys_is_the_mean_of_scores_with_the_keys_split(getkey):
    key = getkey()
    scores = criteria.average(criteria.random(), keys=5)(PARAMS, None, key=key)
    each = [criteria.random()(PARAMS, None, key=one) for one in jax.random.split(key, 5)]
    close(scores, jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *each), rtol=1e-6)


def test_the_average_over_batches_is_the_mean_of_their_scores_and_not_of_gradients(batches):
    each = [
        criteria.snip(loss)(PARAMS, jax.tree.map(lambda x, i=i: x[i], batches), key=None)
        for i in range(3)
    ]
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *each)
    scores = criteria.average(criteria.snip(loss), stacked=True)(PARAMS, batches, key=None)
    close(scores, expected, rtol=1e-5)
    summed = criteria.snip(loss, stacked=True)(PARAMS, batches, key=None)
    assert np.any(np.abs(summed["a"]) < 2.9 * expected["a"])  # signs of the gradients differ


def test_obd_is_half_the_average_of_taylor_over_single_examples(batches):
    batch = tuple(leaf[0] for leaf in batches)
    singles = jax.tree.map(lambda leaf: leaf[:, None], batch)
    halves = criteria.average(criteria.taylor(loss), stacked=True)(PARAMS, singles, key=None)
    scores = criteria.obd(loss)(PARAMS, batch, key=None)
    close(scores, jax.tree.map(lambda leaf: leaf / 2, halves), rtol=1e-5)


def test_batches_that_are_averaged_have_keys_of_their_own(getkey, batches):
    key = getkey()
    scores = criteria.average(criteria.random(), stacked=True)(PARAMS, batches, key=key)
    close(scores, criteria.average(criteria.random(), keys=3)(PARAMS, None, key=key), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        criteria.invert,
        criteria.shuffle,
        criteria.normalize,
        criteria.by_filter,
        lambda criterion: criteria.average(criterion, keys=2),
    ],
    ids=["invert", "shuffle", "normalize", "by_filter", "average"],
)
def test_scores_in_double_precision_stay_so(make, getkey):
    """These two weights differ by less than float32 can tell."""

    def close_by(params, batch, *, masks=None, key):
        del batch, masks, key
        return {"w": params["w"]}

    with jax.enable_x64(True):
        params = {"w": jnp.array([[1.0], [1.0 + 1e-12]])}
    scores = np.asarray(jax.jit(make(close_by))(params, None, key=getkey())["w"])
    assert scores.dtype == np.float64
    spread = 0 if make is criteria.by_filter else 1e-12
    np.testing.assert_allclose(np.ptp(scores) / np.abs(scores).max(), spread, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: criteria.average(criteria.magnitude()), "needs one of .* got neither"),
        (lambda: criteria.average(criteria.magnitude(), keys=2, stacked=True), "got both"),
        (lambda: criteria.average(criteria.magnitude(), keys=0), "`keys` must be a whole number"),
        (lambda: criteria.average(criteria.magnitude, keys=2), r"must be called: `magnitude\("),
        (lambda: criteria.average(criteria.random(), keys=2)(PARAMS, None, key=None),
         "`key` must be a key of JAX, got None"),
        (lambda: criteria.average(criteria.snip(loss), stacked=True)(PARAMS, (), key=None),
         "`batch` must have at least one array, got none"),
        (lambda: criteria.shuffle(criteria.magnitude())(PARAMS, None, key=3),
         "`key` must be a key of JAX, got 3"),
        (lambda: criteria.normalize(criteria.magnitude())(
            PARAMS, None, masks={"a": KEPT["a"]}, key=None
        ), "`params` has a leaf at 'b' that `masks` lacks"),
        (lambda: criteria.normalize(lambda params, batch, *, masks, key: {"w": 1.0})(
            PARAMS, None, key=None
        ), "`scores` must be floating, got float at 'w'"),
        (lambda: criteria.invert(lambda params, batch, *, masks, key: KEPT)(
            PARAMS, None, key=None
        ), "`scores` must be floating, got bool at 'a'"),
        (lambda: criteria.by_filter(lambda params, batch, *, masks, key: {"w": jnp.ones(2)})(
            PARAMS, None, masks=KEPT, key=None
        ), "`masks` has a leaf at 'a' that `scores` lacks"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_remedy(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [criteria.shuffle, criteria.normalize, criteria.by_filter])
def test_a_constructor_that_was_not_called_is_refused(make):
    with pytest.raises(ValueError, match=r"must be called: `snip\(\.\.\.\)`"):
        make(criteria.snip)


def test_combined_criteria_compose(getkey, batches):
    criterion = criteria.normalize(
        criteria.average(criteria.average(criteria.random(), keys=2), stacked=True)
    )
    scores = jax.jit(criterion)(PARAMS, batches, masks=KEPT, key=getkey())
    for path, leaf in trees.by_path(scores, "scores").items():
        np.testing.assert_allclose(leaf.sum(), 1, rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(leaf)[~KEPT[path]], 0)
