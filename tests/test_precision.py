import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from nopr import masks, precision

TINY = 1e-12  # lost beside 1 in float32


def grow(x):
    """Distinguishes float64 from float32: (x + tiny - x) / tiny is 1 or 0."""
    total = x.astype(jnp.float64) + TINY
    matrix = jnp.ones((3, 3), jnp.float64) * total
    return jnp.sum(matrix @ matrix), jnp.argmax(matrix), (total - x) / TINY


def kept_double(x):
    total, place, share = precision.in_double(grow, x)
    del total, place
    return precision.in_double(lambda s: jnp.abs(s - 1) < 1e-3, share)


def scanned(f):
    return lambda x: jax.lax.scan(lambda carry, _: (carry, f(carry)), x, None, length=2)[1].all()


CALLS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "scan": scanned,
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, x])).all(),
    "vmap of scan": lambda f: lambda x: jax.vmap(scanned(f))(jnp.stack([x, x])).all(),
    "vmap of jit": lambda f: lambda x: jax.vmap(jax.jit(f))(jnp.stack([x, x])).all(),
    "scan of vmap": lambda f: scanned(lambda x: jax.vmap(f)(jnp.stack([x, x])).all()),
    "vmap of vmap": lambda f: lambda x: jax.vmap(jax.vmap(f))(jnp.full((2, 2), x)).all(),
    "checkify": lambda f: lambda x: checkify.checkify(f, errors=checkify.user_checks)(x)[1],
    "checkify in vmap of scan": lambda f: (
        lambda x: jax.vmap(checkify.checkify(scanned(f), errors=checkify.user_checks))(
            jnp.stack([x, x])
        )[1].all()
    ),
}


@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_double_precision_survives_every_transform(call, outer):
    assert bool(outer(call(kept_double))(jnp.float32(1.0)))


def test_without_it_the_same_sum_is_lost():
    x = jnp.float32(1.0)
    assert float((x + jnp.float32(TINY)) - x) == 0.0


def test_functions_may_close_over_batched_values():
    def one(x):
        return precision.in_double(lambda y: (y.astype(jnp.float64) * x).astype(jnp.float32), x + 1)

    xs = jnp.arange(3.0)
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(xs), xs * (xs + 1))


def test_numpy_doubles_go_in_whole():
    x = np.array([1.0, 1.0 + TINY])
    assert bool(precision.in_double(lambda a: a[1] > a[0], x))


def test_top_ranks_doubles_under_vmap_of_scan_in_a_program_of_single_precision():
    def choose(k):
        scores = precision.in_double(
            lambda k: 1 + TINY * jnp.arange(8, dtype=jnp.float64) + 0 * k, k
        )
        return scanned_top(scores, k)

    def scanned_top(scores, k):
        step = lambda kept, _: (masks.top({"w": scores}, count=k, masks=kept), None)  # noqa: E731
        return jax.lax.scan(step, {"w": jnp.ones(8, bool)}, None, length=2)[0]["w"]

    kept = jax.jit(jax.vmap(choose))(jnp.array([1, 3]))
    np.testing.assert_array_equal(kept[0], np.arange(8) >= 7)
    np.testing.assert_array_equal(kept[1], np.arange(8) >= 5)
