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
