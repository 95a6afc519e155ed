"""Exact spectra against closed forms: orthogonal, Gaussian, He and convolutional networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nopr import spectra


def linear(params, inputs):
    values = inputs.reshape(inputs.shape[0], -1)
    for kernel in params:
        values = values @ kernel
    return values


def tanh_net(params, inputs):
    values = inputs.reshape(inputs.shape[0], -1)
    hidden = jnp.tanh(values @ params["first"]["kernel"] + params["first"]["bias"][None])
    return hidden @ params["second"]["kernel"]


def tanh_params(rng, ins, hidden, outs):
    return {
        "first": {
            "kernel": jnp.asarray(rng.normal(size=(ins, hidden))),
            "bias": jnp.asarray(rng.normal(size=hidden)),
        },
        "second": {"kernel": jnp.asarray(rng.normal(size=(hidden, outs)))},
    }


def orthogonal(rng, rows, columns):
    return np.linalg.qr(rng.normal(size=(max(rows, columns),) * 2))[0][:rows, :columns]


def tolerance(x64):
    return 1e-12 if x64 else 2e-5


@pytest.mark.long
@pytest.mark.parametrize(
    ("ins", "outs"), [(12, 3), (3, 12), (5, 5)], ids=["wide", "tall", "square"]
)
def test_all_modes_give_the_jacobian_worked_out_by_hand(ins, outs, rng, x64):
    params = tanh_params(rng, ins, 6, outs)
    inputs = jnp.asarray(rng.normal(size=(4, ins)))
    hidden = np.tanh(np.asarray(inputs) @ params["first"]["kernel"] + params["first"]["bias"])
    by_hand = np.einsum(
        "ho,bh,ih->boi", params["second"]["kernel"], 1 - hidden**2, params["first"]["kernel"]
    )
    for mode in ("forward", "reverse", "auto"):
        found = spectra.jacobian(tanh_net, params, inputs, mode=mode)
        assert found.shape == (4, outs, ins)
        np.testing.assert_allclose(found, by_hand, atol=10 * tolerance(x64))


@pytest.mark.long
def test_the_jacobian_agrees_with_finite_differences_on_image_shaped_inputs_and_outputs(rng):
    with jax.enable_x64(True):
        params = tanh_params(rng, 6, 4, 4)
        images = rng.normal(size=(2, 3, 2, 1))

        def apply(params, images):
            return tanh_net(params, images).reshape(-1, 2, 2)

        found = np.asarray(spectra.jacobian(apply, params, images))
        step = 1e-6
        for pixel in range(6):
            shift = np.zeros(6)
            shift[pixel] = step
            shift = shift.reshape(1, 3, 2, 1)
            ahead = apply(params, jnp.asarray(images + shift)).reshape(2, 4)
            behind = apply(params, jnp.asarray(images - shift)).reshape(2, 4)
            np.testing.assert_allclose(found[:, :, pixel], (ahead - behind) / (2 * step), atol=1e-8)


@pytest.mark.parametrize(
    ("ins", "outs", "expected"), [(3, 10, "forward"), (3, 3, "forward"), (10, 3, "reverse")]
)
def test_auto_mode_is_forward_for_tall_and_square_jacobians_and_reverse_for_wide_ones(
    ins, outs, expected, rng
):
    params, inputs = tanh_params(rng, ins, 6, outs), jnp.zeros((4, ins))

    def program(mode):
        measure = functools.partial(spectra.singular_values, tanh_net, mode=mode, block=4)
        return str(jax.make_jaxpr(measure)(params, inputs))

    assert program("forward") != program("reverse")
    assert program("auto") == program(expected)


@pytest.mark.long
def test_semi_orthogonal_linear_nets_of_falling_widths_have_the_product_of_gains(rng, x64):
    gains = (0.5, 3.0, 1.25)
    params = [
        jnp.asarray(gain * orthogonal(rng, ins, outs))
        for gain, ins, outs in zip(gains, (9, 7, 7), (7, 7, 4), strict=True)
    ]
    values = spectra.singular_values(linear, params, jnp.asarray(rng.normal(size=(3, 9))))
    assert values.shape == (3, 4)
    np.testing.assert_allclose(values, np.prod(gains), rtol=10 * tolerance(x64))


def test_aligned_layers_multiply_their_singular_values(rng, x64):
    u0, u1, u2 = (orthogonal(rng, 5, 5) for _ in range(3))
    s1, s2 = rng.uniform(0.1, 2, size=(2, 5))
    params = [jnp.asarray(u0 @ np.diag(s1) @ u1.T), jnp.asarray(u1 @ np.diag(s2) @ u2.T)]
    values = spectra.singular_values(linear, params, jnp.ones((2, 5)))
    expected = np.sort(s1 * s2)[::-1]
    np.testing.assert_allclose(values, np.stack([expected] * 2), rtol=100 * tolerance(x64))


@pytest.fixture(scope="module")
def gaussian_moments():
    """tr JJ^T and tr (JJ^T)^2 of many Gaussian linear nets, by vmap over the params."""
    rng = np.random.default_rng(7)
    widths, variances, draws = (3, 5, 4, 2), (0.5, 0.3, 0.2), 4000
    params = [
        jnp.asarray(np.sqrt(variance) * rng.normal(size=(draws, ins, outs)), jnp.float32)
        for variance, ins, outs in zip(variances, widths, widths[1:], strict=False)
    ]
    one = jnp.ones((1, 3), jnp.float32)
    squares = jax.jit(jax.vmap(lambda p: spectra.singular_values(linear, p, one) ** 2))(params)
    return widths, variances, np.sum(squares, (1, 2)), np.sum(np.square(squares), (1, 2))


def test_gaussian_linear_nets_have_the_moments_of_the_wishart_recursion(gaussian_moments):
    widths, variances, first, second = gaussian_moments
    p, r = widths[0] ** 2, widths[0]
    for n, v in zip(widths[1:], variances, strict=True):
        p, r = v**2 * (n**2 * p + 2 * n * r), v**2 * (n * p + (n**2 + n) * r)
    mean = widths[0] * np.prod(variances) * np.prod(widths[1:])
    for values, expected in ((first, mean), (second, r)):
        error = values.std() / np.sqrt(values.size)
        assert abs(values.mean() - expected) < 4.5 * error
        assert error < 0.1 * expected


def test_he_initialised_relu_nets_keep_the_mean_squared_norm_at_any_depth():
    width, depth, draws = 8, 4, 4000
    params = np.sqrt(2 / width) * np.random.default_rng(5).normal(size=(draws, depth, width, width))

    def relu_net(kernels, inputs):
        for kernel in kernels:
            inputs = jax.nn.relu(inputs @ kernel)
        return inputs

    one = jnp.asarray(np.random.default_rng(6).normal(size=(1, width)), jnp.float32)
    values = jax.jit(jax.vmap(lambda p: spectra.singular_values(relu_net, p, one)))(
        jnp.asarray(params, jnp.float32)
    )
    norms = np.sum(np.square(values), (1, 2)) / width
    assert abs(norms.mean() - 1) < 4.5 * norms.std() / np.sqrt(draws)


@pytest.mark.long
def test_circular_convolutions_have_the_singular_values_of_each_frequency(rng, x64):
    side, ins, outs = 4, 2, 3
    kernel = rng.normal(size=(3, 3, ins, outs))

    def circular(kernel, images):
        rolled = [
            jnp.roll(images, (-i, -j), axis=(1, 2)) @ kernel[i, j]
            for i in range(3)
            for j in range(3)
        ]
        return sum(rolled)

    padded = np.zeros((side, side, ins, outs))
    padded[:3, :3] = kernel
    frequencies = np.fft.fft2(padded, axes=(0, 1))
    expected = np.sort(np.linalg.svd(frequencies, compute_uv=False).ravel())[::-1]
    images = jnp.asarray(rng.normal(size=(1, side, side, ins)))
    values = spectra.singular_values(circular, jnp.asarray(kernel), images)
    np.testing.assert_allclose(values[0], expected, rtol=200 * tolerance(x64))


@pytest.mark.long
def test_delta_orthogonal_convolutions_are_exact_isometries(rng):
    kernel = np.zeros((3, 3, 4, 4))
    kernel[1, 1] = orthogonal(rng, 4, 4)

    def convolve(kernel, images):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    images = jnp.asarray(rng.normal(size=(1, 3, 3, 4)), jnp.float32)
    values = spectra.singular_values(convolve, jnp.asarray(kernel, jnp.float32), images)
    np.testing.assert_allclose(values, 1, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("block", [1, 2, 99])
def test_blocks_change_nothing_and_values_descend(block, rng):
    params = tanh_params(rng, 12, 6, 3)
    inputs = jnp.asarray(rng.normal(size=(5, 12)), jnp.float32)
    whole = spectra.jacobian(tanh_net, params, inputs)
    np.testing.assert_allclose(
        spectra.jacobian(tanh_net, params, inputs, block=block), whole, rtol=1e-5, atol=4e-6
    )
    values = spectra.singular_values(tanh_net, params, inputs, block=block)
    assert np.all(np.diff(values) <= 0)
    np.testing.assert_allclose(values, np.linalg.svd(whole, compute_uv=False), rtol=1e-4)


@pytest.mark.parametrize("apply", [tanh_net, jax.jit(tanh_net)], ids=["plain", "jitted"])
def test_the_default_block_keeps_the_compiled_program_within_its_bound(apply, monkeypatch, rng):
    monkeypatch.setattr(spectra, "BLOCK_BYTES", 2**18)
    params = tanh_params(rng, 100, 1000, 10)
    inputs = jnp.asarray(rng.normal(size=(64, 100)), jnp.float32)

    def temporary_bytes(**options):
        measure = jax.jit(functools.partial(spectra.singular_values, apply, **options))
        return measure.lower(params, inputs).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes() < 2**18
    assert temporary_bytes(block=64) > 2**18


@pytest.mark.long
def test_the_gram_route_agrees_within_the_error_it_states(rng):
    u, v = orthogonal(rng, 4, 4), orthogonal(rng, 9, 9)[:, :4]
    true = np.array([2.0, 1.0, 1e-2, 1e-6])
    params = [jnp.asarray(v @ np.diag(true) @ u.T, jnp.float32)]
    inputs = jnp.ones((1, 9), jnp.float32)
    svd = spectra.singular_values(linear, params, inputs)[0]
    gram = spectra.singular_values(linear, params, inputs, method="gram")[0]
    np.testing.assert_allclose(svd, true, atol=2e-6)
    np.testing.assert_allclose(gram[:3], true[:3], atol=10 * np.finfo(np.float32).eps * 4 / 1e-2)
    assert gram[3] < 4 * np.sqrt(np.finfo(np.float32).eps) * 2
    tall = spectra.singular_values(linear, [params[0].T], inputs[:, :4], method="gram")[0]
    np.testing.assert_allclose(tall[:2], true[:2], rtol=1e-5)


@pytest.mark.long
def test_it_jits_and_vmaps_over_params_like_a_loop(rng):
    stack = jnp.asarray(rng.normal(size=(3, 6, 4)), jnp.float32)
    inputs = jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)

    def measure(kernel):
        return spectra.singular_values(linear, [kernel], inputs, block=2)

    together = jax.jit(jax.vmap(measure))(stack)
    for kernel, values in zip(stack, together, strict=True):
        np.testing.assert_allclose(values, measure(kernel), rtol=1e-5)


def test_it_takes_an_nnx_state(rng):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    inputs = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    found = spectra.jacobian(lambda s, x: nnx.merge(graph, s)(x), state, inputs)
    np.testing.assert_allclose(found, np.stack([model.kernel[...].T] * 2), rtol=1e-6)


@pytest.mark.long
def test_summary_of_values_known_by_hand():
    values = np.array([[4.0, 2.0, 1.0], [2.5, 0.5, 0.25], [3.0, 0.4, 0.0]])
    summary = spectra.summarize(values)
    np.testing.assert_allclose(summary.mean, values.mean(), rtol=1e-6)
    np.testing.assert_allclose(summary.std, values.std(), rtol=1e-6)
    assert (float(summary.max), float(summary.min)) == (4.0, 0.0)
    assert float(summary.condition_number) == 10.0  # the median of 4, 10 and infinity
    np.testing.assert_allclose(summary.fraction_near_one, 3 / 9, rtol=1e-6)
    assert np.isinf(spectra.summarize(np.array([1.0, 0.0])).condition_number)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 8, width=32), min_size=6, max_size=6))
def test_summary_bounds_hold_for_any_values(numbers):
    summary = spectra.summarize(np.array(numbers, np.float32).reshape(2, 3))
    assert summary.min <= summary.mean * (1 + 1e-5)
    assert summary.mean <= summary.max * (1 + 1e-5)
    assert 0 <= summary.fraction_near_one <= 1
    assert summary.condition_number >= 1


@pytest.mark.usefixtures("unchecked")
def test_options_and_inputs_out_of_range_are_refused():
    params, inputs = [jnp.eye(3)], jnp.ones((2, 3))
    with pytest.raises(ValueError, match="`mode` must be one of 'auto', 'forward', 'reverse', got"):
        spectra.jacobian(linear, params, inputs, mode="sideways")
    with pytest.raises(ValueError, match="`method` must be one of 'gram', 'svd', got 'lanczos'"):
        spectra.singular_values(linear, params, inputs, method="lanczos")
    with pytest.raises(ValueError, match="`block` must be a whole number of at least 1, got 0"):
        spectra.jacobian(linear, params, inputs, block=0)
    with pytest.raises(
        ValueError, match="`inputs` must be floating to differentiate by, got uint8"
    ):
        spectra.jacobian(linear, params, np.ones((2, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"must be \[batch, ...\] and not empty, got shape \(0, 3\)"
    ):
        spectra.jacobian(linear, params, np.ones((0, 3)))


@pytest.mark.parametrize("measure", [spectra.jacobian, spectra.singular_values])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_jacobian_that_is_not_finite_names_the_first_example(measure, bad):
    inputs = jnp.array([[1.0], [bad], [1.0], [bad]])

    def square(params, inputs):
        return params * inputs**2

    with pytest.raises(ValueError, match=r"Jacobian of example 1 .* \(2 of 4 examples do\)"):
        measure(square, jnp.ones(()), inputs, block=2)
    traced = jax.jit(lambda x: spectra.singular_values(square, 1.0, x))(inputs)
    np.testing.assert_array_equal(np.isnan(traced[:, 0]), [False, True, False, True])


def test_a_summary_of_nothing_or_of_no_singular_values_is_refused():
    with pytest.raises(ValueError, match="must hold singular values, got shape"):
        spectra.summarize(np.ones((0, 3)))
    for bad in (np.nan, -1.0):
        with pytest.raises(ValueError, match="must be finite and not negative"):
            spectra.summarize(np.array([1.0, bad]))


@pytest.mark.parametrize("values", ["abc", [1, "a"], [[1], [2, 3]], None, 3])
def test_a_summary_of_what_is_no_vector_is_refused(values, unchecked):
    with pytest.raises(ValueError, match="`values` must"):
        spectra.summarize(values)


def test_outputs_that_cannot_be_differentiated_are_refused(unchecked):
    with pytest.raises(ValueError, match="`apply` must return floating outputs, got bool"):
        spectra.jacobian(lambda params, inputs: inputs > 0, None, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"`apply` must be a function .*, got a dict"):
        spectra.jacobian({}, None, jnp.ones((2, 3)))


@pytest.mark.long
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_refused_where_its_slope_is_0(bad):
    inputs = jnp.array([[1.0, 2.0], [bad, 1.0]])
    with pytest.raises(ValueError, match=r"Jacobian of example 1 .* \(1 of 2 examples do\)"):
        spectra.jacobian(lambda params, x: jax.nn.relu(-jnp.abs(x)), None, inputs)
