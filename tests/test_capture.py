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


SHARED = {"w": normal(3, 3)}


def twice(params, x):
    return jnp.tanh(x @ params["w"]) @ params["w"]


def test_a_kernel_used_twice_has_the_rows_of_both_uses_and_their_statistics():
    x = normal(4, 3)
    rows = capture.rows(twice, SHARED, x)["w"]
    expected = np.concatenate([x, np.tanh(x @ SHARED["w"])])
    np.testing.assert_allclose(rows[0], expected, rtol=1e-5)
    norms = capture.squared_norms(twice, SHARED, x)["w"]
    np.testing.assert_allclose(norms[0], (expected**2).sum(0), rtol=1e-5)
    moments = capture.second_moments(twice, SHARED, x)["w"]
    np.testing.assert_allclose(moments[0], expected.T @ expected / 8, rtol=1e-5)


def test_statistics_are_those_of_the_rows_under_jit_vmap_and_in_blocks(monkeypatch):
    apply, params, x = CASES[1].values

    def statistics(params, x):
        return [f(apply, params, x) for f in (capture.second_moments, capture.squared_norms)]

    rows = capture.rows(apply, params, x)
    whole = jax.jit(jax.vmap(statistics, (None, 0)))(params, jnp.stack([x, 2 * x]))
    monkeypatch.setattr("nopr.capture.statistics.BLOCK_BYTES", 1)
    blocks = jax.jit(statistics)(params, x)  # of one example
    for path, found in rows.items():
        moments = jnp.swapaxes(found, 1, 2) @ found / found.shape[1]
        norms = jnp.sum(found**2, axis=1)
        for one, two, three in zip(whole, blocks, (moments, norms), strict=True):
            np.testing.assert_allclose(one[path][0], three, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(two[path], three, rtol=1e-4, atol=1e-5)


def test_shares_of_nonzero_values_are_of_units_and_of_channels_without_padding():
    params = {"conv": normal(3, 3, 2, 4), "out": normal(36, 2)}

    def apply(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(x).reshape(len(x), -1) @ params["out"]

    x = normal(5, 3, 3, 2).at[..., 1].set(0)
    found = capture.nonzero(apply, params, x)
    np.testing.assert_array_equal(found["conv"], [[1, 0]])
    expected = np.mean(capture.rows(apply, params, x)["out"] != 0, axis=1)
    np.testing.assert_allclose(found["out"], expected)


def test_the_axes_of_attention_need_no_declaration():
    apply, params, x = CASES[0].values
    found = capture.output_axes(apply, params, x)
    attention = "params/MultiHeadDotProductAttention_0"
    heads = {f"{attention}/{name}/kernel": (1, 2) for name in ("query", "key", "value")}
    first, last = "params/CheckpointDense_0/kernel", "params/Dense_0/kernel"
    assert found == {**heads, f"{attention}/out/kernel": (2,), first: (1,), last: (1,)}
    assert (next(iter(found)), list(found)[-1]) == (first, last)  # in the order of use


W = {"w": normal(4, 4)}


def in_a_scan(params, x):
    return jax.lax.scan(lambda x, _: (x @ params["w"], None), x, length=2)[0]


UNFOLLOWED = {
    "`mul` to a matrix product": lambda p, x: x @ (2 * p["w"]),
    "`gather`": lambda p, x: p["w"][jnp.argmax(x, axis=1)],
    "`scan`": in_a_scan,
    "`cond`": lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: x, p["w"]),
    "does not use the leaf at 'w' as a kernel": lambda p, x: 2 * x,
    "used in two different ways": lambda p, x: x @ p["w"] @ p["w"].T,
    "must be floating, got int32": lambda p, x: jnp.dot(jnp.int32(x), p["w"]),
    "numbers inputs and outputs both": lambda p, x: jnp.einsum(
        "ngi,gio->ngo", x.reshape(-1, 2, 2), p["w"].reshape(2, 2, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", UNFOLLOWED)
def test_what_cannot_be_followed_is_refused_by_path_and_operation(message):
    with pytest.raises(ValueError, match=message) as error:
        capture.output_axes(UNFOLLOWED[message], W, normal(3, 4))
    assert "'w'" in str(error.value)
    assert "with `where`" in str(error.value)


def test_a_kernel_that_is_not_asked_for_may_be_used_in_any_way():
    params = {"w": normal(4, 4), "table": normal(7, 4)}

    def apply(params, x):
        return jnp.tanh(params["table"][x] * 2) @ params["w"]

    found = capture.rows(apply, params, jnp.array([1, 6]), where=lambda path, leaf: path == "w")
    np.testing.assert_array_equal(found["w"][0], jnp.tanh(2 * params["table"][jnp.array([1, 6])]))
    with pytest.raises(ValueError, match=r"at 'table' cannot be followed through .* `gather`"):
        capture.rows(apply, params, jnp.array([1, 6]))
