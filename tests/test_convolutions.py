"""Convolutions as patches agree with XLA's in value and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from nopr import convolutions, finetune
from nopr.convolutions import as_patches

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HNCW", "WIOH", "CWNH")]
SIZES = {"N": 2, "H": 6, "W": 5, "C": 4, "I": 4, "O": 6}
KERNEL = {"H": 3, "W": 2, "O": 6}


def _inputs(layout, groups, rng):
    kernel = {**KERNEL, "I": SIZES["C"] // groups}
    lhs, rhs, _ = layout
    shapes = [SIZES[axis] for axis in lhs], [kernel[axis] for axis in rhs]
    return [rng.normal(size=shape) for shape in shapes]


def _convolution(layout, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lambda x, w: lax.conv_general_dilated(x, w, dimension_numbers=layout, **options)


def _has_convolution(function, *args):
    return "conv_general_dilated" in str(jax.make_jaxpr(function)(*args))


def _assert_rewritten_exactly(function, *args):
    """Value and gradients in double precision, and none of XLA's convolutions left in either."""

    def descent(function):
        return jax.value_and_grad(lambda args: jnp.sum(jnp.sin(function(*args))))

    ours, theirs = descent(as_patches(function)), descent(function)
    assert _has_convolution(theirs, args)
    assert not _has_convolution(ours, args)
    both = jax.jit(lambda args: (ours(args), theirs(args)))(args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), *both)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


PAIRS = st.tuples(st.integers(1, 2), st.integers(1, 2))


@pytest.mark.long
@settings(max_examples=6, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    groups=st.sampled_from([1, 2]),
    strides=PAIRS,
    padding=st.tuples(*[st.tuples(st.integers(-1, 2), st.integers(0, 2))] * 2),
    lhs_dilation=PAIRS,
    rhs_dilation=PAIRS,
)
def test_every_layout_stride_padding_dilation_and_group_agrees_with_xla(
    layout, groups, strides, padding, lhs_dilation, rhs_dilation
):
    function = _convolution(
        layout,
        window_strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        feature_group_count=groups,
    )
    inputs = _inputs(layout, groups, np.random.default_rng(0))
    if 0 not in jax.eval_shape(function, *inputs).shape:
        _assert_rewritten_exactly(function, *inputs)


PLAIN = _convolution(LAYOUTS[0])


def _scanned(x, w):
    def body(carry, scale):
        return carry + PLAIN(x, w * scale) * carry.mean(), None

    return lax.scan(body, jnp.ones((2, 6, 5, 6)), jnp.arange(3.0))[0]


def _branched(x, w):
    return lax.cond(x[0, 0, 0, 0] > 0, PLAIN, lambda x, w: PLAIN(x, -w), x, w)


BODIES = {
    "jit": jax.jit(PLAIN),
    "checkpoint": jax.checkpoint(PLAIN, policy=jax.checkpoint_policies.dots_saveable),
    "scan": _scanned,
    "cond": _branched,
    "depthwise": lambda x, w: _convolution(LAYOUTS[0], feature_group_count=4)(
        x, jnp.tile(w[:, :, :1], (1, 1, 1, 2))
    ),
    "vector": lambda x, w: lax.conv_general_dilated(
        x[:, 0], w[0], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "kernels": lambda x, w: jax.vmap(PLAIN, (None, 0))(x, jnp.stack([w, 2 * w])),
}


@pytest.mark.parametrize("name", BODIES)
def test_programs_inside_the_function_are_entered(name, rng):
    _assert_rewritten_exactly(BODIES[name], *_inputs(LAYOUTS[0], 1, rng))


@jax.custom_jvp
def _clipped(x):
    return jnp.clip(x, -1, 1)


@_clipped.defjvp
def _straight_through(primals, tangents):
    return _clipped(*primals), tangents[0]


@jax.custom_vjp
def _reversed(x, w):
    return PLAIN(x, w)


_reversed.defvjp(lambda x, w: (PLAIN(x, w), (x, w)), lambda kept, _: kept)


@pytest.mark.long
def test_functions_with_derivative_rules_of_their_own_keep_them(rng):
    x, w = _inputs(LAYOUTS[0], 1, rng)
    _assert_rewritten_exactly(lambda x, w: _clipped(3 * PLAIN(x, w)), x, w)
    gradient = jax.grad(as_patches(lambda w: jnp.sum(PLAIN(x, w) * 0 + _reversed(x, w))))(w)
    np.testing.assert_array_equal(gradient, w)


def test_unsupported_convolutions_are_left_to_xla(rng):
    x, w = _inputs(LAYOUTS[0], 1, rng)
    grouped = _convolution(LAYOUTS[0], batch_group_count=2)
    assert _has_convolution(as_patches(grouped), x, w)
    wide = np.ones((17, 17, 4, 6))
    assert _has_convolution(as_patches(PLAIN), x, wide)


def _loss(params, batch):
    inputs, labels = batch
    hidden = jax.nn.relu(PLAIN(inputs, params["conv"]))
    return finetune.cross_entropy(lambda _, x: x.mean((1, 2)))(None, (hidden, labels))


@pytest.mark.long
def test_training_has_no_convolution_on_a_cpu_and_ends_where_xla_ends(rng):
    inputs, kernel = _inputs(LAYOUTS[0], 1, rng)
    params, data = {"conv": kernel}, (np.concatenate([inputs] * 3), np.arange(6) % 3)
    tx, key = optax.sgd(0.1), jax.random.key(0)
    found = {}
    for choice in ("auto", "xla"):
        train = finetune.trainer(_loss, tx, epochs=2, batch_size=None, convolutions=choice)
        descend = finetune.gradient_descent(_loss, steps=2, tx=tx, convolutions=choice)
        kept = choice == "xla"
        for run in (train, descend):
            many = jax.vmap(lambda p, run=run: run(p, None, data, key=key).params)
            stacked = {"conv": jnp.stack([kernel, -kernel])}
            assert _has_convolution(many, stacked) == kept
        found[choice] = train(params, None, data, key=key)
    np.testing.assert_allclose(
        found["auto"].params["conv"], found["xla"].params["conv"], rtol=1e-9, atol=1e-12
    )
    assert convolutions.resolve() == "patches"


def test_a_function_without_convolutions_is_traced_as_it_is(rng):
    def function(x):
        return jnp.tanh(x @ x.T).sum()

    x = rng.normal(size=(3, 3))
    assert str(jax.make_jaxpr(as_patches(function))(x)) == str(jax.make_jaxpr(function)(x))
