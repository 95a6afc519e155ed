"""What enters each kernel, on networks of several libraries: rows @ matrix is what leaves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from nopr import capture, networks, trees

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.float32(RNG.normal(size=shape))


class Block(nn.Module):
    """Batch norm, attention with heads, and remat."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.remat(nn.Dense)(6)(x))
        return nn.Dense(2)(nn.relu(x + nn.MultiHeadDotProductAttention(2)(x)))


class Images(nn.Module):
    """Plain, strided, grouped, depthwise and dilated convolutions, then a flatten."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 2), strides=(2, 1))(x))
        x = nn.Conv(6, (2, 2), feature_group_count=2, padding="VALID")(x)
        x = nn.Conv(6, (2, 3), feature_group_count=6)(jnp.tanh(x))
        x = nn.Conv(3, (2, 2), kernel_dilation=2, use_bias=False)(x)
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


def equinox_like(params, x):
    """Weights [out, in] and [out, in, height, width] of one example, mapped over the examples."""

    def one(x):  # [channels, height, width]
        x = jax.lax.conv_general_dilated(x[None], params["conv"]["weight"], (1, 1), "SAME")[0]
        return params["linear"]["weight"] @ jax.nn.relu(x).reshape(-1) + params["linear"]["bias"]

    return jax.vmap(one)(x)


def cases():
    x = normal(2, 3, 4)
    yield "attention", Block().apply, Block().init(jax.random.key(0), x), x
    x = normal(3, 6, 5, 2)
    yield "convolutions", Images().apply, Images().init(jax.random.key(0), x), x
    net = networks.lenet5(implementation="patches")
    params = net.init(jax.random.key(0))
    yield "patches", net.apply, params, normal(2, *networks.LENET5_INPUT_SHAPE)
    params = {
        "conv": {"weight": normal(3, 2, 2, 3)},
        "linear": {"weight": normal(2, 60), "bias": normal(2)},
    }
    yield "equinox", equinox_like, params, normal(2, 2, 5, 4)
    graph, state = nnx.split(nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.tanh))
    yield "nnx", lambda state, x: nnx.merge(graph, state)(x), state, normal(5, 4)
    stacked = {"w": normal(3, 4, 2), "v": normal(2, 6)}

    def grouped(params, x):
        groups = jnp.einsum("ngi,gio->ngo", x, params["w"])
        return jnp.einsum("nk,ok->no", groups.reshape(-1, 6), params["v"])

    yield "stacked", grouped, stacked, normal(5, 3, 4)


CASES = [pytest.param(*case[1:], id=case[0]) for case in cases()]


@pytest.mark.parametrize(("apply", "params", "x"), CASES)
def test_rows_times_the_matrix_is_what_the_products_and_convolutions_return(apply, params, x):
    """Each product is caught in the program, in order; its outputs are compared as sets."""
    found, rows = jax.jit(lambda p, x: (outputs(apply, p, x), capture.rows(apply, p, x)))(params, x)
    kernels = capture.kernels(apply, params, x)
    leaves = trees.by_path(params, "params")
    assert sorted(kernels) == sorted(trees.paths(trees.select(params)))
    for path, kernel in kernels.items():
        np.testing.assert_array_equal(kernel.leaf(kernel.matrix(leaves[path])), leaves[path])
        made = np.sort(np.ravel(rows[path] @ kernel.matrix(leaves[path])))
        close = [
            one.size == made.size and np.allclose(np.sort(np.ravel(one)), made, atol=1e-4)
            for one in found
        ]
        assert any(close), path


def outputs(apply, params, x):
    from nopr import jaxprs

    program, _ = jaxprs.trace(apply, params, x)
    found = []

    def keep(eqn, operands):
        found.extend(jaxprs.bind(eqn, *operands))
        return found[-1:]

    rules = dict.fromkeys(("dot_general", "conv_general_dilated"), keep)
    jaxprs.evaluate(program, jax.tree.leaves((params, x)), rules)
    return found
