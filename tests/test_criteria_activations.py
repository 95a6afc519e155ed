"""Wanda and APoZ against NumPy, and scores that compete within each output."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from nopr import criteria, granularity, masks, pruning, trees


class Images(nn.Module):
    """Two convolutions, a pool, a flatten and two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.max_pool(nn.relu(nn.Conv(3, (2, 2))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(5)(x.reshape(len(x), -1)))
        return nn.Dense(2)(x)


NAMES = ("Conv_0", "Conv_1", "Dense_0", "Dense_1")
LAYERS = tuple(f"params/{name}/kernel" for name in NAMES)
RNG = np.random.default_rng(0)
X = jnp.float32(RNG.normal(size=(6, 4, 4, 2)))
PARAMS = Images().init(jax.random.key(0), X)
HALF = masks.top(criteria.random()(PARAMS, None, key=jax.random.key(1)), density=0.5)


def entering():
    """What enters each layer of the masked network."""
    params = masks.apply(PARAMS, HALF)
    _, state = Images().apply(params, X, capture_intermediates=True, mutable=["intermediates"])
    out = [state["intermediates"][name]["__call__"][0] for name in NAMES]
    hidden = [nn.relu(x) for x in out]
    hidden[1] = nn.max_pool(hidden[1], (2, 2), (2, 2))
    return [X, *hidden[:3]]


@jax.jit
def scores(x):
    one = criteria.wanda(Images().apply)(PARAMS, x, masks=HALF)
    two = criteria.apoz(Images().apply, layers=LAYERS)
    return one, two(PARAMS, (x, jnp.arange(6)), masks=HALF)


def test_wanda_is_the_weight_times_the_norm_of_its_input_over_all_patches():
    wanda = trees.by_path(scores(X)[0], "")
    kernels = trees.by_path(masks.apply(PARAMS, HALF), "")
    for path, x in zip(LAYERS, entering(), strict=True):
        kernel = np.float64(kernels[path])
        expected = np.zeros(kernel.shape)
        for *tap, i, o in np.ndindex(*kernel.shape[:-2], *kernel.shape[-2:]):
            values = oracles.at_tap(x, tap, kernel.shape)[..., i] if tap else x.reshape(6, -1)[:, i]
            expected[(*tap, i, o)] = abs(kernel[(*tap, i, o)]) * np.linalg.norm(values)
        np.testing.assert_allclose(wanda[path], expected, rtol=1e-4, atol=1e-6)


def test_apoz_is_the_share_of_zeros_of_each_channel_through_pool_and_flatten():
    found = scores(X)[1]
    np.testing.assert_array_equal(found["params"]["Dense_1"]["kernel"], np.ones((5, 2)))
    for name, x in zip(NAMES, entering()[1:], strict=False):
        kernel = found["params"][name]["kernel"]
        zeros = [np.mean(np.asarray(x)[..., c] == 0) for c in range(x.shape[-1])]
        np.testing.assert_allclose(1 - kernel, np.broadcast_to(zeros, kernel.shape), atol=1e-6)


def test_units_that_are_always_zero_go_first_and_change_nothing():
    params = jax.tree.map(lambda w: w, PARAMS)
    params["params"]["Dense_0"]["bias"] = jnp.float32([1, -99, 1, -99, 1])
    score = criteria.apoz(Images().apply, layers=LAYERS[2:])
    for where in (granularity.filters(outputs=[LAYERS[3]]), granularity.units(LAYERS[2:])):
        prune = pruning.pruner(score, density=0.6, granularity=where)
        kept = prune(params, X, key=jax.random.key(0))
        kernel = kept["params"]["Dense_0"]["kernel"]
        np.testing.assert_array_equal(kernel.any(axis=0), [True, False, True, False, True])
        new = masks.apply(params, kept)
        np.testing.assert_array_equal(Images().apply(params, X), Images().apply(new, X))


@given(
    rows=st.lists(st.lists(st.integers(-2, 2), min_size=12, max_size=12), min_size=3, max_size=3),
    alive=st.lists(st.booleans(), min_size=36, max_size=36),
    count=st.integers(0, 12),
)
def test_each_output_keeps_its_own_count_the_first_among_equals(rows, alive, count):
    """Outputs are numbered by the axes 0 and 3 of a leaf, of which the first has one entry."""
    flat, alive = np.float32(rows), np.reshape(alive, (3, 12))
    leaf, mask = (np.moveaxis(a.reshape(1, 3, 4, 3), 1, 3) for a in (flat, alive))
    there, options = {"w": jnp.asarray(mask)}, {"scope": "output", "axes": (3, 0), "warn": False}
    kept = masks.top({"w": jnp.asarray(leaf)}, count=count, masks=there, **options)["w"]
    expected = [oracles.top(row, count, a) for row, a in zip(flat, alive, strict=True)]
    np.testing.assert_array_equal(np.moveaxis(kept, 3, 1).reshape(3, 12), expected)


def test_a_pruner_keeps_the_same_count_of_every_output_in_every_round():
    score = criteria.wanda(Images().apply)
    prune = pruning.pruner(score, density=0.35, scope="output", rounds=3)
    kept = trees.by_path(prune(PARAMS, X, key=jax.random.key(0)), "")
    for path, fan_in in zip(LAYERS, (18, 16, 12, 5), strict=True):
        sums = np.asarray(kept[path]).reshape(-1, kept[path].shape[-1]).sum(axis=0)
        np.testing.assert_array_equal(sums, round(0.35 * fan_in))
    fewer = prune(PARAMS, X, count=[5, 5, 4], key=jax.random.key(0))
    assert masks.count(fewer) == 4 * (4 + 3 + 5 + 2)


BAD = {
    "`axes` must be given for 'q': a kernel of three dimensions": lambda: masks.top(
        {"q": jnp.ones((4, 2, 3))}, count=2, scope="output"
    ),
    "`axes` must be None with scope='layer'": lambda: masks.top(
        {"w": jnp.ones((4, 2))}, count=2, scope="layer", axes=1
    ),
    "`axes` names 'spam', where `scores` has no leaf": lambda: masks.top(
        {"w": jnp.ones((4, 2))}, count=2, scope="output", axes={"spam": 1}
    ),
    "must be a whole number from 0 to 4, .* at 'w', got 5": lambda: masks.top(
        {"w": jnp.ones((4, 2))}, count=5, scope="output"
    ),
    "`granularity` and `distribution` must be None": lambda: pruning.pruner(
        criteria.random(), scope="output", granularity=granularity.rows()
    ),
    "`wanda` needs a batch, got None": lambda: criteria.wanda(Images().apply)(PARAMS, None),
    "`apoz` needs a batch, got None": lambda: criteria.apoz(Images().apply, layers=LAYERS)(
        PARAMS, None
    ),
    r"`wanda` needs examples, got a batch of shape \(0, 4, 4, 2\)": lambda: criteria.wanda(
        Images().apply
    )(PARAMS, X[:0]),
    "at least two kernels, got .'w'.": lambda: criteria.apoz(Images().apply, layers=["w"]),
    "has 3 inputs|`layers` must fit together": lambda: criteria.apoz(
        Images().apply, layers=LAYERS[::-1]
    )(PARAMS, X),
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_one_clear_line(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
