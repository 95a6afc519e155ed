"""OrthP against a NumPy twin on physically removed blocks, and against what isometry means."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nopr import granularity, isometry, masks, spectra, trees

METHODS = ("polar", "qr")


def orthp(kernel, method="qr"):
    """The slow twin, as in the paper: filters as rows, transposed if there are too many."""
    a = np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)
    tall = a if a.shape[0] >= a.shape[1] else a.T
    if method == "polar":
        u, _, v = np.linalg.svd(tall, full_matrices=False)
        new = u @ v
    else:
        q, r = np.linalg.qr(tall)
        new = q * np.array([-1 if x < 0 else 1 for x in np.diag(r)])
    new = new if a.shape[0] >= a.shape[1] else new.T
    return np.moveaxis(new.reshape(kernel.shape[-1], *kernel.shape[:-1]), 0, -1)


def random_kernel(seed, shape=(5, 4)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def removed(kernel, rows, columns, method):
    """OrthP on the kernel with inputs and outputs physically removed, put back among zeros."""
    block = np.ix_(np.flatnonzero(rows), np.flatnonzero(columns))
    new = np.zeros_like(kernel)
    if kernel[block].size:
        new[block] = orthp(kernel[block], method)
    return new


def repair(kernel, mask, method):
    return isometry.orthogonalize({"kernel": kernel}, {"kernel": mask}, method=method)["kernel"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4), (3, 3, 2, 5), (2, 1, 2, 6)], ids=str)
def test_whole_kernels_agree_with_the_slow_twin(shape, method):
    params = {"layer": {"kernel": random_kernel(0, shape), "bias": random_kernel(1, shape[-1:])}}
    new = isometry.orthogonalize(params, gain=1.5, method=method)
    np.testing.assert_allclose(
        new["layer"]["kernel"], 1.5 * orthp(params["layer"]["kernel"], method), atol=2e-5
    )
    assert new["layer"]["bias"] is params["layer"]["bias"]
    flat = np.asarray(new["layer"]["kernel"]).reshape(-1, shape[-1])
    gram = flat.T @ flat if flat.shape[0] >= flat.shape[1] else flat @ flat.T
    np.testing.assert_allclose(gram, 1.5**2 * np.eye(len(gram)), atol=1e-5)


traced = {method: jax.jit(lambda k, m, method=method: repair(k, m, method)) for method in METHODS}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The masks leave")
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=9, max_size=9), st.booleans(), st.integers(0, 10**6))
def test_kept_blocks_of_every_shape_agree_with_removal_traced_or_not(method, kept, tall, seed):
    shape = (5, 4) if tall else (4, 5)
    kernel = random_kernel(seed, shape)
    rows, columns = np.array(kept[: shape[0]]), np.array(kept[shape[0] :])
    mask = rows[:, None] & columns
    expected = removed(kernel, rows, columns, method)
    np.testing.assert_allclose(repair(kernel, mask, method), expected, atol=3e-4)
    np.testing.assert_allclose(traced[method](kernel, mask), expected, atol=3e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_kept_block_without_full_rank_still_becomes_semi_orthogonal(method):
    kernel = random_kernel(3)
    kernel[:, 1] = kernel[:, 0]
    kernel[:, 2] = 0
    mask = np.array([1, 0, 1, 1, 1], bool)[:, None] & np.array([1, 1, 1, 0], bool)
    for new in (repair(kernel, mask, method), traced[method](kernel, mask)):
        assert not np.any(np.asarray(new)[~mask])
        np.testing.assert_allclose(new.T @ new, np.diag([1.0, 1, 1, 0]), atol=1e-5)


def test_gram_schmidt_keeps_the_direction_of_the_first_filter_and_orders_the_rest():
    kernel = random_kernel(4, (6, 3))
    new = np.asarray(isometry.orthogonalize({"kernel": kernel})["kernel"])
    np.testing.assert_allclose(new[:, 0], kernel[:, 0] / np.linalg.norm(kernel[:, 0]), atol=1e-6)
    upper = new.T @ kernel
    np.testing.assert_allclose(np.tril(upper, -1), 0, atol=1e-5)
    assert np.all(np.diag(upper) > 0)


def test_zero_kernels_take_the_sign_of_zero_as_one():
    new = isometry.orthogonalize({"kernel": jnp.zeros((4, 3))})["kernel"]
    np.testing.assert_allclose(np.abs(np.linalg.det(new.T @ new)), 1, atol=1e-6)
    np.testing.assert_array_equal(new, orthp(np.zeros((4, 3), np.float32)))


def test_a_kernel_that_is_semi_orthogonal_already_does_not_change():
    kernel = orthp(random_kernel(5, (3, 6)), "polar")
    polar = isometry.orthogonalize({"kernel": kernel}, method="polar")["kernel"]
    np.testing.assert_allclose(polar, kernel, atol=1e-6)
    # Gram-Schmidt leaves orthonormal filters alone: their triangle is the identity.
    q = isometry.orthogonalize({"kernel": kernel.T})["kernel"]
    np.testing.assert_allclose(q, kernel.T, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4)], ids=str)
def test_the_polar_factor_is_the_nearest_semi_orthogonal_kernel(shape, rng):
    kernel = random_kernel(6, shape)
    distance = {
        method: np.linalg.norm(
            kernel - isometry.orthogonalize({"kernel": kernel}, method=method)["kernel"]
        )
        for method in METHODS
    }
    values = np.linalg.svd(kernel, compute_uv=False)
    np.testing.assert_allclose(distance["polar"], np.linalg.norm(values - 1), rtol=1e-5)
    assert distance["polar"] < distance["qr"]
    for _ in range(20):
        other = orthp(rng.normal(size=shape))
        assert distance["polar"] <= np.linalg.norm(kernel - other)


def linear_net(rng, widths):
    return {
        f"layer_{i}": {
            "kernel": jnp.asarray(rng.normal(size=pair), jnp.float32),
            "bias": jnp.ones(pair[1]),
        }
        for i, pair in enumerate(itertools.pairwise(widths))
    }


def linear(params, inputs):
    for layer in params.values():
        inputs = inputs @ layer["kernel"] + layer["bias"][None, :]
    return inputs


LAYERS = ("layer_0/kernel", "layer_1/kernel", "layer_2/kernel")


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_pruned_linear_net_gets_every_singular_value_equal_to_the_product_of_gains(rng, method):
    params = linear_net(rng, (9, 8, 8, 3))
    grain = granularity.units(LAYERS)
    scores = jax.tree.map(jnp.abs, trees.select(params))
    kept = grain.expand(masks.top(grain.pool(scores), count=10, scope="layer"), scores)
    gains = dict(zip(LAYERS, (2.0, 0.5, 3.0), strict=True))
    new = isometry.orthogonalize(params, kept, gain=lambda path, _: gains[path], method=method)
    values = spectra.singular_values(linear, new, jnp.ones((2, 9)))
    np.testing.assert_allclose(values, 3.0, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, masks.apply(new, kept), new)


@pytest.mark.long
def test_it_jits_and_vmaps_over_params_and_masks_like_a_loop(rng):
    params = [linear_net(rng, (6, 5, 4, 2)) for _ in range(3)]
    grain = granularity.units(LAYERS)
    kept = [
        grain.expand(masks.top(grain.pool(scores), count=6), scores)
        for scores in (jax.tree.map(jnp.abs, trees.select(p)) for p in params)
    ]
    stack = lambda cases: jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)  # noqa: E731
    together = jax.jit(jax.vmap(isometry.orthogonalize))(stack(params), stack(kept))
    for case, (p, m) in enumerate(zip(params, kept, strict=True)):
        alone = isometry.orthogonalize(p, jax.tree.map(np.asarray, m))
        for found, expected in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(found[case], expected, atol=1e-4)


def test_convolutions_lose_whole_channels_and_filters():
    kernel = random_kernel(8, (3, 3, 4, 6))
    ins, outs = np.array([1, 0, 1, 0], bool), np.array([0, 1, 1, 1, 0, 1], bool)
    mask = np.broadcast_to(ins[:, None] & outs, kernel.shape)
    expected = np.zeros_like(kernel)
    expected[np.ix_(range(3), range(3), np.flatnonzero(ins), np.flatnonzero(outs))] = orthp(
        kernel[:, :, ins][..., outs]
    )
    np.testing.assert_allclose(repair(kernel, mask, "qr"), expected, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(lambda m: repair(kernel, m, "qr"))(mask), expected, atol=1e-5
    )


def test_double_precision_stays_double():
    with jax.enable_x64(True):
        kernel = np.random.default_rng(0).normal(size=(20, 7))
        new = isometry.orthogonalize({"kernel": jnp.asarray(kernel)})["kernel"]
        np.testing.assert_allclose(new, orthp(kernel), atol=1e-13)
    half = isometry.orthogonalize({"kernel": jnp.ones((3, 2), jnp.bfloat16)})["kernel"]
    assert half.dtype == jnp.bfloat16


def test_where_chooses_the_kernels_and_an_nnx_state_goes_through():
    model = nnx.List([nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))])
    params = nnx.state(model, nnx.Param)
    first, second = trees.paths(trees.select(params))
    new = isometry.orthogonalize(
        params, where=lambda path, leaf: trees.is_prunable(path, leaf) and path == first
    )
    assert jax.tree.structure(new) == jax.tree.structure(params)
    before, after = (
        dict(zip(trees.paths(p), jax.tree.leaves(p), strict=True)) for p in (params, new)
    )
    np.testing.assert_array_equal(after[second], before[second])
    np.testing.assert_allclose(after[first] @ after[first].T, np.eye(3), atol=1e-6)


@pytest.mark.long
def test_growing_widths_are_reported_only_where_masks_removed_inputs(rng):
    params = linear_net(rng, (3, 8, 6, 4))
    isometry.orthogonalize(params, trees.full_masks(params))  # wider than its input by design
    grain = granularity.units(LAYERS)
    granules = {
        "layer_0": {"kernel": jnp.arange(8) < 6, "bias": None},
        "layer_1": {"kernel": jnp.arange(6) < 2, "bias": None},
        "layer_2": {"kernel": None, "bias": None},
    }
    narrow = grain.expand(granules, trees.select(params))
    with pytest.warns(UserWarning, match="leave 2 inputs to the 4 outputs of 'layer_2/kernel'"):
        isometry.orthogonalize(params, narrow)
    filters = granularity.filters(outputs=[]).expand(
        dict(granules, layer_2={"kernel": jnp.ones(4, bool), "bias": None}), trees.select(params)
    )
    isometry.orthogonalize(params, filters)  # without the order nothing can be seen
    with pytest.warns(UserWarning, match="leave 2 inputs to the 4 outputs of 'layer_2/kernel'"):
        jax.jit(lambda p: isometry.orthogonalize(p, filters, layers=LAYERS))(params)


def test_unstructured_masks_are_refused_by_name_and_give_nan_under_a_trace(rng):
    kernel = random_kernel(9)
    mask = np.ones((5, 4), bool)
    mask[0, 0] = False
    with pytest.raises(ValueError, match=r"at 'kernel' it does not.*`isometry.approximate`"):
        repair(kernel, mask, "qr")
    assert np.all(np.isnan(traced["qr"](kernel, mask)))


@pytest.mark.usefixtures("unchecked")
def test_options_and_weights_out_of_range_are_refused():
    params = {"a": {"kernel": jnp.ones((3, 2))}, "b": {"kernel": jnp.array([[1.0, np.nan]])}}
    with pytest.raises(ValueError, match="`method` must be one of 'polar', 'qr', got 'svd'"):
        isometry.orthogonalize(params, method="svd")
    with pytest.raises(ValueError, match="`params` has NaN or infinite values at 'b/kernel'"):
        isometry.orthogonalize(params)
    good = {"a": params["a"]}
    for gain in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"`gain` must be positive.*got {gain} at 'a/kernel'"):
            isometry.orthogonalize(good, gain=gain)
    with pytest.raises(ValueError, match="`masks` has a leaf at 'b/kernel' that `params` lacks"):
        isometry.orthogonalize(good, {"b": {"kernel": jnp.ones((3, 2), bool)}})
    with pytest.raises(ValueError, match=r"`masks` has shape \(2, 2\) at 'a/kernel'"):
        isometry.orthogonalize(good, {"a": {"kernel": jnp.ones((2, 2), bool)}})
    with pytest.raises(ValueError, match="`masks` must be bool, got float32 at 'a/kernel'"):
        isometry.orthogonalize(good, {"a": {"kernel": jnp.ones((3, 2))}})
    with pytest.raises(ValueError, match=r"two or more dimensions, got \(2,\) at 'bias'"):
        isometry.orthogonalize({"bias": jnp.ones(2)}, where=trees.everything)


@pytest.mark.parametrize("gain", [1j, "1", [1.0], None, True])
def test_a_gain_that_is_no_number_is_refused(gain, unchecked):
    with pytest.raises(ValueError, match="`gain` must be positive and finite, got"):
        isometry.orthogonalize({"w": jnp.eye(2)}, gain=gain)
