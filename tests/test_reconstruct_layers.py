"""Least squares and SparseGPT: normal equations, closed forms, and slow twins."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from test_capture import CASES

from nopr import capture, criteria, masks, reconstruct, trees

NETWORKS = {case.id: case.values for case in CASES}
RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(8, 8)) + 2
X = jnp.float32(RNG.normal(size=(60, 8)) @ MIX)  # correlated inputs
ONE = {"w": jnp.float32(RNG.normal(size=(8, 5)))}
HALF = masks.top(criteria.magnitude()(ONE, None), density=0.5)


def product(params, x):
    return jnp.dot(x, params["w"])


def error(params, x=X):
    return float(jnp.sum((product(params, x) - product(ONE, x)) ** 2))


def chosen(params):
    scores = criteria.random()(params, None, key=jax.random.key(0))
    return masks.top(scores, density=0.5, scope="layer")


def test_the_weights_of_each_output_are_those_of_numpys_least_squares():
    new = reconstruct.least_squares(product, damping=0)(ONE, HALF, X)["w"]
    for j, (w, kept) in enumerate(zip(ONE["w"].T, np.array(HALF["w"]).T, strict=True)):
        best = np.linalg.lstsq(np.float64(X)[:, kept], np.float64(X @ w), rcond=None)[0]
        np.testing.assert_allclose(new[kept, j], best, rtol=1e-3)
        assert not np.any(new[~kept, j])
    assert error({"w": new}) < 0.5 * error(masks.apply(ONE, HALF))


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
@pytest.mark.parametrize("name", ["attention", "convolutions", "equinox", "stacked"])
def test_full_masks_change_nothing_and_residuals_are_orthogonal_to_what_is_kept(name, inputs):
    apply, params, x = NETWORKS[name]
    x = jax.random.normal(jax.random.key(1), (12, *x.shape[1:]))
    refit = jax.jit(reconstruct.least_squares(apply, damping=1e-9, inputs=inputs))
    same = refit(params, trees.full_masks(params), x)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    kept = chosen(params)
    new = refit(params, kept, x)
    dense = capture.rows(apply, params, x)
    after = dense if inputs == "dense" else capture.rows(apply, new, x)
    olds, news, alive = (trees.by_path(tree, "") for tree in (params, new, kept))
    masked = trees.by_path(masks.apply(params, kept), "")
    for path, kernel in capture.kernels(apply, params, x).items():
        old, got, mask, cut = (kernel.matrix(t[path]) for t in (olds, news, alive, masked))
        assert not np.any(got[~mask])
        residual = after[path] @ got - dense[path] @ old
        slopes = jnp.swapaxes(after[path], 1, 2) @ residual
        scale = jnp.abs(jnp.swapaxes(after[path], 1, 2)) @ jnp.abs(dense[path] @ old)
        np.testing.assert_allclose(np.where(mask, slopes / scale, 0), 0, atol=2e-4)
        before = after[path] @ cut - dense[path] @ old
        sums = [jnp.sum(r**2, axis=1) for r in (residual, before)]
        assert np.all(sums[0] <= sums[1] * (1 + 1e-4) + 1e-6), path


def test_sparsegpt_is_its_slow_twin():
    params = {"w": jnp.float32(RNG.normal(size=(8, 3)))}
    found = reconstruct.sparsegpt(product, density=0.4, block=3)(params, X)
    new, kept = oracles.sparsegpt(X, params["w"], density=0.4, block=3, damping=0.01)
    np.testing.assert_array_equal(found.masks["w"], kept)
    np.testing.assert_allclose(found.params["w"], new, rtol=1e-4, atol=1e-6)
    assert bool(found.finite)


def test_with_a_fixed_mask_each_removal_is_the_optimal_update_of_the_weights_after_it():
    """One weight goes: those before it stay, the others minimize the layer's error."""
    kept = np.ones((8, 1), bool)
    kept[2] = False
    w = ONE["w"][:, :1]
    found = reconstruct.sparsegpt(product, density=1.0, block=3)(
        {"w": w}, X, masks={"w": jnp.asarray(kept)}
    )
    np.testing.assert_array_equal(found.masks["w"], kept)
    hessian = np.float64(X).T @ np.float64(X)
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(8)
    rest = w[3:, 0] + np.linalg.solve(hessian[3:, 3:], hessian[3:, 2]) * w[2, 0]
    np.testing.assert_array_equal(found.params["w"][:3, 0], [*w[:2, 0], 0])
    np.testing.assert_allclose(found.params["w"][3:, 0], rest, rtol=1e-5)


@pytest.mark.parametrize("options", [{"density": 0.5}, {"n_of_m": (2, 4)}], ids=str)
def test_sparsegpt_has_a_smaller_error_than_magnitude_and_wanda_on_correlated_inputs(options):
    found = reconstruct.sparsegpt(product, **options)(ONE, (X, None))
    assert masks.count(found.masks) == 20
    others = [criteria.magnitude()(ONE, X), criteria.wanda(product)(ONE, X)]
    if "n_of_m" in options:
        kept = [masks.n_of_m(scores, n=2, m=4) for scores in others]
        groups = np.reshape(found.masks["w"], (2, 4, 5)).sum(axis=1)
        np.testing.assert_array_equal(groups, 2)
    else:
        kept = [masks.top(one, density=0.5, scope="output") for one in others]
    assert error(found.params) < 0.8 * min(error(masks.apply(ONE, one)) for one in kept)


@pytest.mark.parametrize("name", ["attention", "convolutions", "equinox", "stacked"])
def test_counts_of_each_layer_are_exact_and_pruned_weights_are_0_in_any_network(name):
    apply, params, x = NETWORKS[name]
    x = jax.random.normal(jax.random.key(1), (12, *x.shape[1:]))
    prune = jax.jit(reconstruct.sparsegpt(apply, density=0.3, block=5))
    found = prune(params, x)
    for path, layer in masks.by_layer(found.masks).items():
        assert int(layer.kept) == round(0.3 * layer.size), path
    again = masks.apply(found.params, found.masks)
    jax.tree.map(np.testing.assert_array_equal, again, found.params)
    assert bool(found.finite)


def shared(params, x):
    return jnp.dot(jnp.tanh(jnp.dot(x, params["w"])), params["w"])


SQUARE = {"w": jnp.float32(RNG.normal(size=(8, 8)))}


def test_a_shared_kernel_is_refitted_to_all_its_uses_by_dense_inputs():
    kept = chosen(SQUARE)
    new = reconstruct.least_squares(shared, damping=1e-9)(SQUARE, kept, X)["w"]
    rows = capture.rows(shared, SQUARE, X)["w"][0]
    slopes = rows.T @ (rows @ (new - SQUARE["w"]))
    np.testing.assert_allclose(np.where(kept["w"], slopes, 0), 0, atol=2e-2)


BAD = {
    "`damping` must be a number from 0 up, got -1": lambda: reconstruct.least_squares(
        product, damping=-1
    ),
    "`inputs` must be one of 'dense', 'pruned', got 'sparse'": lambda: reconstruct.least_squares(
        product, inputs="sparse"
    ),
    "`least_squares` needs a batch, got None": lambda: reconstruct.least_squares(product)(
        ONE, HALF, None
    ),
    "`sparsegpt` needs a batch, got None": lambda: reconstruct.sparsegpt(product, density=0.5)(
        ONE, None
    ),
    "Give exactly one of `density` and `n_of_m`": lambda: reconstruct.sparsegpt(product),
    "must divide the fan-in of the kernel at 'w', 8, got 3": lambda: reconstruct.sparsegpt(
        product, n_of_m=(2, 3)
    )(ONE, X),
    "NaN or infinity at 'w'. Give more rows": lambda: reconstruct.least_squares(product, damping=0)(
        ONE, HALF, X[:1]
    ),
    "at 'w' is used more than once": lambda: reconstruct.least_squares(shared, inputs="pruned")(
        SQUARE, chosen(SQUARE), X
    ),
    "kernel at 'w' is used more": lambda: reconstruct.sparsegpt(shared, density=0.5)(SQUARE, X),
    "does not use the leaf at 'v' as a kernel": lambda: reconstruct.sparsegpt(product, density=0.5)(
        {**ONE, "v": ONE["w"]}, X
    ),
    "must be in .0, 1., got 1.3": lambda: reconstruct.sparsegpt(product, density=1.3),
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_one_clear_line(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_weights_that_are_nan_have_no_masks():
    broken = {"w": ONE["w"].at[2, 1].set(jnp.nan)}
    with pytest.raises(ValueError, match="new weights have NaN or infinity at 'w'"):
        reconstruct.sparsegpt(product, density=0.5)(broken, X)
    with pytest.raises(ValueError, match="`masks` must be bool, got float32 at 'w'"):
        reconstruct.least_squares(product)(ONE, ONE, X)
