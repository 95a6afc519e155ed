"""The contract of every criterion, over one table: a new criterion is one more line in CRITERIA.

Each is tested on a Linen network with batch norm and attention, all its variables in one tree, and
on a plain dict with None leaves. Most of the time is compilation, which the tests share.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nopr import criteria, masks, pruning, trees

KEYS = jax.random.split(jax.random.key(0), 2)


class Network(NamedTuple):
    """The arguments of constructors and of criteria."""

    apply: object
    params: dict
    inputs: np.ndarray
    targets: np.ndarray

    def loss(self, params, batch):
        inputs, targets = batch
        return jnp.mean((self.apply(params, inputs) - targets) ** 2)


class Block(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        values = nn.BatchNorm(use_running_average=True)(nn.Dense(6)(inputs))
        return nn.Dense(2)(values + nn.MultiHeadDotProductAttention(2)(values))


def linen():
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    params = Block().init(jax.random.key(1), inputs)
    return Network(Block().apply, params, inputs, inputs[..., :2])


def plain():
    rng = np.random.default_rng(1)
    kernels = {"a": rng.normal(size=(4, 5)), "b": rng.normal(size=(5, 2))}
    params = {name: {"w": jnp.float32(w), "bias": None} for name, w in kernels.items()}
    params["a"]["bias"] = jnp.float32(rng.normal(size=5))

    def apply(params, inputs):
        hidden = jnp.tanh(jnp.dot(inputs, params["a"]["w"]) + params["a"]["bias"][None, :])
        return jnp.dot(hidden, params["b"]["w"])

    inputs = np.float32(rng.normal(size=(6, 4)))
    return Network(apply, params, inputs, inputs[:, :2])


NETWORKS = {"linen": linen(), "plain": plain()}
CRITERIA = {
    "random": lambda net: criteria.random(),
    "magnitude": lambda net: criteria.magnitude(),
    "snip": lambda net: criteria.snip(net.loss),
    "grasp": lambda net: criteria.grasp(net.loss),
    "synflow": lambda net: criteria.synflow(net.apply, input_shape=net.inputs.shape[1:]),
    "invert": lambda net: criteria.invert(criteria.snip(net.loss)),
}
NEEDS_KEY = {"random"}

both = pytest.mark.parametrize("network", NETWORKS)
every = pytest.mark.parametrize("name", CRITERIA)


@functools.cache
def compiled(name, network):
    """The scores for two keys at once, jitted: `scores(params, masks) -> [2, ...]`."""
    net = NETWORKS[network]
    score, batch = CRITERIA[name](net), (net.inputs, net.targets)
    return jax.jit(
        lambda params, masks: jax.vmap(lambda k: score(params, batch, masks=masks, key=k))(KEYS)
    )


def halves(params):
    """Masks that remove every other weight."""
    return jax.tree.map(lambda w: jnp.arange(w.size).reshape(w.shape) % 2 == 0, params)


@both
@every
def test_scores_are_like_the_prunable_params_floating_and_finite(name, network):
    net = NETWORKS[network]
    wanted = trees.select(net.params)
    scores = compiled(name, network)(net.params, trees.full_masks(net.params))
    assert jax.tree.structure(scores) == jax.tree.structure(wanted)
    for score, weights in zip(jax.tree.leaves(scores), jax.tree.leaves(wanted), strict=True):
        assert score.shape == (2, *weights.shape)
        assert jnp.issubdtype(score.dtype, jnp.floating)
        assert np.all(np.isfinite(score))
    varies = any(np.any(leaf[0] != leaf[1]) for leaf in jax.tree.leaves(scores))
    assert varies == (name in NEEDS_KEY)


@both
@every
def test_pruned_weights_do_not_influence_the_scores_of_the_others(name, network):
    net = NETWORKS[network]
    kept = halves(trees.select(net.params))
    other = trees.overlay(lambda w, m: jnp.where(m, w, 7 - 2 * w), net.params, kept)
    scores = [compiled(name, network)(params, kept) for params in (net.params, other)]
    for mask, *both in zip(*map(jax.tree.leaves, (kept, *scores)), strict=True):
        np.testing.assert_array_equal(*(np.asarray(leaf)[:, mask] for leaf in both))


@every
def test_scores_are_the_same_without_jit_and_without_masks(name):
    net = NETWORKS["plain"]
    together = compiled(name, "plain")(net.params, trees.full_masks(net.params))
    alone = CRITERIA[name](net)(net.params, (net.inputs, net.targets), key=KEYS[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a)[1], b, rtol=1e-4, atol=1e-6),
        together,
        alone,
    )


@every
def test_a_key_is_asked_for_where_it_is_needed(name):
    net = NETWORKS["plain"]
    score = CRITERIA[name](net)
    if name in NEEDS_KEY:
        with pytest.raises(TypeError, match="key"):
            score(net.params, (net.inputs, net.targets))
    else:
        shapes = jax.eval_shape(lambda p: score(p, (net.inputs, net.targets), key=None), net.params)
        assert trees.shapes(shapes) == ((4, 5), (5, 2))


@every
def test_masks_that_are_not_bool_or_do_not_match_are_refused_by_name(name):
    net = NETWORKS["plain"]
    score = CRITERIA[name](net)
    wrong = {
        "`masks` must be bool, got float32 at 'a/w'": trees.select(net.params),
        "'a/bias' that `params` lacks": trees.full_masks(net.params, trees.everything),
        r"`masks` has shape \(4,\) at 'a/w'": {
            "a": {"w": jnp.ones(4, bool), "bias": None},
            "b": {"w": jnp.ones((5, 2), bool), "bias": None},
        },
    }
    for match, masks_ in wrong.items():
        with pytest.raises(ValueError, match=match):
            score(net.params, (net.inputs, net.targets), masks=masks_, key=KEYS[0])


@pytest.mark.parametrize("network", ["plain"])
def test_higher_means_keep_and_invert_turns_it_around(network):
    net = NETWORKS[network]
    full = trees.full_masks(net.params)
    low, high = (
        jax.tree.map(lambda leaf: leaf[0], compiled(name, network)(net.params, full))
        for name in ("invert", "snip")
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, -b), low, high)
    kept = masks.top(low, count=10), masks.top(high, count=masks.size(full) - 10)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, ~b), *kept)


@pytest.mark.parametrize("use", [pruning.pruner, criteria.invert])
@pytest.mark.parametrize("constructor", ["magnitude", "snip", "synflow", "invert"])
def test_a_constructor_that_was_not_called_is_refused_with_the_remedy(constructor, use):
    with pytest.raises(ValueError, match=rf"has to be called: `{constructor}\(\.\.\.\)`"):
        use(getattr(criteria, constructor))
