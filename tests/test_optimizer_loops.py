"""`transforms.keep` in the loops that users of each library write, on real networks.

Each loop trains a network with normalization and attention, or the equivalents in its library,
on one regression batch, and returns the masks, the params before and after, and the losses.
"""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

from nopr import masks, transforms, trees

STEPS = 4
INPUTS = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
TARGETS = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
OPTIMIZERS = {
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adamw": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.02, weight_decay=0.1)),
}


def error(outputs):
    return jnp.mean((outputs - TARGETS) ** 2)


def half(params):
    """Masks of the larger half of all prunable weights."""
    return masks.top(jax.tree.map(jnp.abs, trees.select(params)), density=0.5)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 3, rngs=rngs)])

    def __call__(self, inputs):
        values = self.norm(self.first(inputs))
        return self.layers[0](values + self.attention(values))


def nnx_loop(params_of, jit=False):
    """The loop of the NNX guides; `params_of` gives the tree that the masks are made from."""

    def loop(tx):
        model = NnxNet(nnx.Rngs(0))
        kept = half(params_of(model))
        optimizer = nnx.Optimizer(model, transforms.keep(tx, kept), wrt=nnx.Param)

        def step(model, optimizer):
            loss, gradients = nnx_gradient(model)
            optimizer.update(model, gradients)
            return loss

        before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        step = nnx.jit(step) if jit else step
        losses = [step(model, optimizer) for _ in range(STEPS)]
        return kept, before, nnx.state(model, nnx.Param), losses

    return loop


nnx_gradient = nnx.jit(nnx.value_and_grad(lambda model: error(model(INPUTS))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        values = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(inputs))
        return nn.Dense(3)(values + nn.MultiHeadDotProductAttention(2)(values))


class LinenState(TrainState):
    batch_stats: dict


def linen_loop(tx):
    variables = LinenNet().init(jax.random.key(0), INPUTS, train=False)
    kept = half(variables["params"])
    state = LinenState.create(
        apply_fn=LinenNet().apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=transforms.keep(tx, kept),
    )

    @jax.jit
    def step(state):
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            outputs, changed = state.apply_fn(
                variables, INPUTS, train=True, mutable=["batch_stats"]
            )
            return error(outputs), changed["batch_stats"]

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients, batch_stats=stats), value

    losses = []
    for _ in range(STEPS):
        state, loss = step(state)
        losses.append(loss)
    return kept, variables["params"], state.params, losses


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    last: eqx.nn.Linear
    activation: object  # a leaf that is no array

    def __init__(self, key):
        one, two, three = jax.random.split(key, 3)
        self.first, self.last = eqx.nn.Linear(4, 8, key=one), eqx.nn.Linear(8, 3, key=two)
        self.norm = eqx.nn.LayerNorm(8)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=three)
        self.activation = jnp.tanh

    def __call__(self, inputs):
        values = jax.vmap(self.norm)(jax.vmap(self.first)(inputs))
        values = self.activation(values + self.attention(values, values, values))
        return jax.vmap(self.last)(values)


def equinox_loop(tx):
    before = EquinoxNet(jax.random.key(0))
    kept = half(before)
    tx = transforms.keep(tx, kept)

    @eqx.filter_jit
    def step(model, state):
        loss, gradients = eqx.filter_value_and_grad(lambda m: error(jax.vmap(m)(INPUTS)))(model)
        updates, state = tx.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss

    model, state, losses = before, tx.init(eqx.filter(before, eqx.is_inexact_array)), []
    for _ in range(STEPS):
        model, state, loss = step(model, state)
        losses.append(loss)
    return kept, *(eqx.filter(m, eqx.is_inexact_array) for m in (before, model)), losses


def haiku_loop(tx):
    def forward(inputs):
        values = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(inputs), is_training=True)
        attention = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(1.0))
        return hk.Linear(3)(values + attention(values, values, values))

    network = hk.transform_with_state(forward)
    before, statistics = network.init(jax.random.key(0), INPUTS)
    kept = half(before)
    tx = transforms.keep(tx, kept)

    @jax.jit
    def step(params, statistics, state):
        def loss(params):
            outputs, changed = network.apply(params, statistics, None, INPUTS)
            return error(outputs), changed

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), statistics, state, value

    params, state, losses = before, tx.init(before), []
    for _ in range(STEPS):
        params, statistics, state, loss = step(params, statistics, state)
        losses.append(loss)
    return kept, before, params, losses


LOOPS = {
    "nnx, masks from nnx.state": (
        nnx_loop(lambda m: nnx.state(m, nnx.Param), jit=True),
        "momentum",
    ),
    "nnx, masks from nnx.split": (nnx_loop(lambda m: nnx.split(m, nnx.Param, ...)[1]), "adamw"),
    "nnx, masks from nnx.to_pure_dict": (
        nnx_loop(lambda m: nnx.to_pure_dict(nnx.state(m, nnx.Param))),
        "adamw",
    ),
    "linen with a TrainState": (linen_loop, "adamw"),
    "equinox": (equinox_loop, "adamw"),
    "haiku": (haiku_loop, "momentum"),
}


@pytest.mark.parametrize(("loop", "optimizer"), LOOPS.values(), ids=LOOPS)
def test_pruned_weights_are_exactly_zero_and_the_others_train(loop, optimizer):
    kept, before, after, losses = loop(OPTIMIZERS[optimizer])
    kept, before, after = (trees.by_path(tree, "tree") for tree in (kept, before, after))
    assert sum(mask.sum() for mask in kept.values()) * 2 == sum(m.size for m in kept.values())
    for path, mask in kept.items():
        np.testing.assert_array_equal(np.asarray(after[path])[~mask], 0)
        assert np.any(np.asarray(after[path] != before[path])[mask]) or not mask.any()
    assert losses[-1] < losses[0]
