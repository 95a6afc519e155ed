"""Criteria that score filters, against NumPy, loops and layers from which filters were cut."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nopr import criteria, granularity, masks, pruning, trees

FILTERS = granularity.filters(outputs=["head"])


@pytest.fixture
def params(rng):
    """A convolution of five filters, one nearly a copy of another, its scale, and a head."""
    body = rng.normal(size=(3, 3, 2, 5)).astype(np.float32)
    body[..., 3] = body[..., 1] + 1e-4 * body[..., 3]
    scale = np.float32([0.5, -2, 0, 1, -1])
    return {"body": body, "norm": {"scale": scale}, "head": np.float32(rng.normal(size=(5, 3)))}


@pytest.fixture
def kept(params, rng):
    """Masks without the second filter of the body and some other weights."""
    kept = jax.tree.map(lambda w: rng.random(w.shape) < 0.7, trees.select(params))
    kept["body"][..., 1] = False
    return kept


def norm(order):
    return lambda kernel: [
        np.linalg.norm(kernel[..., i].ravel(), order) for i in range(kernel.shape[-1])
    ]


TWINS = {
    "filter_l1": (criteria.filter_l1(), norm(1)),
    "filter_l2": (criteria.filter_l2(), norm(2)),
    "fpgm": (criteria.fpgm(), oracles.fpgm),
}
every = pytest.mark.parametrize("name", TWINS)


@every
def test_every_weight_has_the_score_of_its_filter(name, params):
    criterion, twin = TWINS[name]
    for path, leaf in trees.by_path(criterion(params, None), "scores").items():
        expected = np.broadcast_to(np.float32(twin(params[path])), leaf.shape)
        np.testing.assert_allclose(leaf, expected, rtol=1e-5)


@every
def test_pooling_by_filters_returns_the_score_of_the_filter(name, params):
    criterion, twin = TWINS[name]
    pooled = FILTERS.pool(criterion(params, None))
    np.testing.assert_allclose(pooled["body"], twin(params["body"]), rtol=1e-5)
    assert pooled["head"] is None


@every
def test_a_pruner_removes_the_filters_of_the_lowest_scores(name, params, getkey):
    criterion, twin = TWINS[name]
    prune = pruning.pruner(criterion, granularity=FILTERS)
    kept = prune(params, None, count=3, key=getkey())
    best = np.isin(np.arange(5), np.argsort(twin(params["body"]))[2:])
    np.testing.assert_array_equal(kept["body"], np.broadcast_to(best, (3, 3, 2, 5)))


@every
def test_scores_are_those_of_the_layer_from_which_removed_filters_are_cut(name, params, kept):
    criterion, _ = TWINS[name]
    masked = criterion(params, None, masks=kept)["body"]
    cut = np.delete(np.where(kept["body"], params["body"], 0), 1, axis=-1)
    expected = criterion({"body": cut}, None)["body"]
    np.testing.assert_allclose(np.delete(masked, 1, axis=-1), expected, rtol=1e-6)


def total(params, batch):
    return jnp.sum(jnp.sin(params["w"]) * batch[0])


OF_AXES = {
    "filter_l1": criteria.filter_l1,
    "filter_l2": criteria.filter_l2,
    "fpgm": criteria.fpgm,
    "by_filter": lambda **options: criteria.by_filter(criteria.lamp(), **options),
    "taylor": lambda **options: criteria.taylor(total, group="filter", **options),
    "spectral": lambda **options: criteria.spectral(rank=2, **options),
}
ORDERS = [(-1, (0, 1, 2)), (0, (1, 2, 0)), ((-2, -1), (0, 1, 2)), ((0, 2), (1, 0, 2))]


@pytest.mark.parametrize("name", OF_AXES)
def test_the_axes_that_number_filters_can_be_any(name, rng):
    """As for the kernel with these axes moved to the end and merged."""
    kernel, weight = np.float32(rng.normal(size=(2, 3, 4))), np.float32(1.7)
    for axes, order in ORDERS:
        outs = np.prod([kernel.shape[axis] for axis in np.atleast_1d(axes)])
        moved = kernel.transpose(order)
        for given in (axes, {"w": axes}):
            found = OF_AXES[name](axes=given)({"w": kernel}, (weight,), key=None)["w"]
            like = OF_AXES[name]()({"w": moved.reshape(-1, outs)}, (weight,), key=None)["w"]
            found = np.transpose(found, order).reshape(-1, outs)
            np.testing.assert_allclose(found, like, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: criteria.filter_l1(axes="in"), "`axes` must be whole numbers, or {path: whole nu"),
        (lambda: criteria.by_filter(criteria.magnitude(), axes={3: 1}), "`axes` must be whole nu"),
        (lambda: criteria.taylor(total, axes=1), "`axes` number filters and need `group='filter'`"),
        (lambda: criteria.spectral(rank=0), "`rank` must be a whole number of at least 1, got 0"),
        (lambda: criteria.fpgm(axes=4)({"w": jnp.ones((2, 3))}, None), r"at 'w', of shape \(2, 3"),
        (lambda: criteria.filter_l2(axes={"v": 1})({"w": jnp.ones((2, 3))}, None),
         "`axes` names 'v', where `params` has no leaf. The nearest of its paths is 'w'"),
        (lambda: criteria.fpgm()({"w": jnp.ones((2, 3, 4))}, None), "`axes` must be given for 'w'"),
    ],
)  # fmt: skip
def test_axes_that_do_not_fit_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("rank", [1, 3, 100])
def test_spectral_scores_are_the_squares_of_a_weight_in_the_best_approximation(rank, params):
    scores = criteria.spectral(rank=rank)(params, None)
    for path, leaf in trees.by_path(scores, "scores").items():
        kernel = np.float64(params[path])
        np.testing.assert_allclose(leaf, oracles.spectral(kernel, rank), rtol=1e-3, atol=1e-5)
        values = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)
        np.testing.assert_allclose(np.sum(leaf), np.sum(values[:rank] ** 2), rtol=1e-5)
    if rank == 100:
        np.testing.assert_allclose(scores["head"], params["head"] ** 2, rtol=1e-3, atol=1e-5)


def test_fpgm_keeps_a_filter_of_zeros_that_was_not_removed(params):
    params["body"][..., 0] = 0
    scores = criteria.fpgm()(params, None)["body"][0, 0, 0]
    np.testing.assert_allclose(scores, oracles.fpgm(params["body"]), rtol=1e-5)


def test_fpgm_removes_the_filter_in_the_middle_and_a_norm_the_smallest(getkey):
    kernel = np.float32([[100, 160, 40, 100, 100], [0, 0, 0, 60, -60]])
    for criterion, gone in ((criteria.fpgm(), 0), (criteria.filter_l2(), 2)):
        prune = pruning.pruner(criterion, granularity=granularity.filters(outputs=[]))
        kept = prune({"kernel": kernel}, None, count=4, key=getkey())["kernel"]
        assert np.flatnonzero(~kept[0]).tolist() == [gone]


def test_distances_of_near_copies_are_not_lost_to_rounding():
    """By inner products, float32 would give 0 or noise for a distance of 1e-4 of the norm."""
    kernel = np.ones((4096, 2), np.float32)
    kernel[0, 1] += 1e-3
    scores = criteria.fpgm()({"kernel": kernel}, None)["kernel"][0]
    np.testing.assert_allclose(scores, kernel[0, 1] - kernel[0, 0], rtol=1e-6)


def test_the_scale_of_batch_norm_is_the_score_of_the_filter_before_it(params, getkey):
    criterion = criteria.batch_norm_scale({"body": "norm/scale"})
    scores = criterion(params, None)
    np.testing.assert_array_equal(scores["body"], np.broadcast_to([0.5, 2, 0, 1, 1], (3, 3, 2, 5)))
    assert scores["head"] is None
    kept = pruning.pruner(criterion, granularity=FILTERS)(params, None, count=2, key=getkey())
    assert np.flatnonzero(kept["body"][0, 0, 0]).tolist() == [1, 3]
    assert masks.apply(params, kept)["head"] is params["head"]


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (None, "`scales` must map paths of kernels to paths of scales.* got None"),
        ({}, r"`scales` must map paths .* got \{\}"),
        ({"body": 3}, r"`scales` must map paths .* got \{'body': 3\}"),
        ({"bodi": "norm/scale"}, "names 'bodi', .* The nearest of its paths is 'body'"),
        ({"body": "norm/offset"}, "names 'norm/offset', .* The nearest of its paths is 'norm/sc"),
        (
            {"head": "norm/scale"},
            r"got shape \(5,\) at 'norm/scale' for the kernel of shape",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused_by_path(scales, message, params, unchecked):
    with pytest.raises(ValueError, match=message):
        criteria.batch_norm_scale(scales)(params, None)


def test_biases_and_empty_layers_have_scores_where_asked_for():
    """Each entry of a bias is a filter of its own."""
    params = {"bias": jnp.array([3.0, -1.0]), "scalar": jnp.float32(2), "empty": jnp.ones((0, 2))}
    each = {"filter_l1": [3, 1], "filter_l2": [3, 1], "fpgm": [4, 4], "spectral": [9, 1]}
    for name, expected in each.items():
        scores = getattr(criteria, name)(where=trees.everything)(params, None)
        np.testing.assert_allclose(scores["bias"], expected, rtol=1e-5)
        assert trees.shapes(scores) == trees.shapes(params)


def test_norms_of_half_precision_are_summed_in_single_precision():
    params = {"w": jnp.ones((1000, 2), jnp.bfloat16)}
    for criterion in (criteria.filter_l1(), criteria.filter_l2()):
        scores = criterion(params, None)["w"]
        assert scores.dtype == np.float32
    np.testing.assert_allclose(criteria.filter_l1()(params, None)["w"], 1000)
