"""Weight updates after pruning."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nopr import reconstruct

N = 6


@pytest.fixture(scope="module")
def quadratic():
    """A positive definite matrix and weights."""
    rng = np.random.default_rng(7)
    root = rng.normal(size=(N, N))
    return root @ root.T + 0.1 * np.eye(N), rng.normal(size=N)


@pytest.fixture(scope="module")
def many():
    return jax.jit(jax.vmap(reconstruct.restricted, (None, None, 0)))


KEPT = np.array([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0], [0] * N, [1] * N], bool)


def test_the_restricted_minimum_is_that_by_the_whole_inverse(quadratic, many):
    hessian, weights = quadratic
    found = many(hessian, weights, KEPT)
    expected = [oracles.restricted(hessian, weights, kept) for kept in KEPT]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[3], np.float32(weights))
    np.testing.assert_array_equal(np.asarray(found)[~KEPT], 0)
    alone = reconstruct.restricted(hessian, weights, KEPT[0])
    np.testing.assert_allclose(alone, found[0], rtol=1e-5)


@pytest.mark.usefixtures("double")
def test_the_change_is_orthogonal_to_every_kept_weight_in_the_matrix(quadratic, many):
    hessian, weights = quadratic
    change = many(hessian, weights, KEPT) - weights
    np.testing.assert_allclose(np.where(KEPT, change @ hessian, 0), 0, atol=1e-12)
    assert change.dtype == np.float64


@pytest.mark.usefixtures("double")
def test_one_removed_weight_takes_the_step_of_the_optimal_brain_surgeon(quadratic, many):
    hessian, weights = quadratic
    inverse = np.linalg.inv(hessian)
    found = many(hessian, weights, ~np.eye(N, dtype=bool))
    for q in range(N):
        step = -weights[q] * inverse[:, q] / inverse[q, q]
        np.testing.assert_allclose(found[q] - weights, step, atol=1e-12)
        rise = step @ hessian @ step / 2
        np.testing.assert_allclose(rise, weights[q] ** 2 / (2 * inverse[q, q]), rtol=1e-10)


def test_a_matrix_that_is_not_positive_definite_is_refused_or_gives_nan_under_a_trace(many):
    with pytest.raises(ValueError, match=r"`hessian` must be positive definite .* Add damping"):
        reconstruct.restricted(-jnp.eye(2), jnp.ones(2), jnp.array([True, False]))
    assert np.isnan(many(-np.eye(N), np.ones(N), KEPT)[0, 0])
    # The pruned block is not read as a matrix to solve with.
    hessian = jnp.diag(jnp.array([1.0, -1.0]))
    reconstruct.restricted(hessian, jnp.ones(2), jnp.array([True, False]))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([[1.0], 2.0], np.ones(2), np.ones(2, bool)), "`hessian` must be an array of numbers"),
        ((np.eye(2), np.ones(3), np.ones(3, bool)), r"shapes \[n, n\], \[n\] and \[n\], got \(2,"),
        ((np.eye(2), np.ones(2), np.ones(2)), "`kept` must be bool, got float32"),
        ((1j * np.eye(2), np.ones(2), np.ones(2, bool)), "must be real, got complex"),
    ],
)
def test_what_does_not_fit_is_refused(args, message, unchecked):
    with pytest.raises(ValueError, match=message):
        reconstruct.restricted(*args)
