import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nopr import networks
from nopr.networks.layers import max_pool


def _convolved(images, kernel):
    batch, height, width, _ = images.shape
    rows, columns, _, features = kernel.shape
    out = np.zeros((batch, height - rows + 1, width - columns + 1, features))
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            patch = images[:, row : row + rows, column : column + columns]
            out[:, row, column] = np.tensordot(patch, kernel, axes=3)
    return out


def test_a_linear_mlp_is_the_product_of_its_kernels(getkey, x64):
    network = networks.mlp((5, 4, 2), inputs=3, activation="linear", use_bias=False)
    params = network.init(getkey())
    inputs = jax.random.normal(getkey(), (6, 3))
    product = np.linalg.multi_dot([params[f"layer_{i}"]["kernel"] for i in range(3)])
    outputs = network.apply(params, inputs)
    assert outputs.dtype == (jnp.float64 if x64 else jnp.float32)
    np.testing.assert_allclose(outputs, inputs @ product, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "function"), [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh)]
)
def test_an_mlp_activates_every_layer_but_the_last(activation, function, getkey):
    network = networks.mlp((4, 5, 2), inputs=3, activation=activation)
    params = network.init(getkey())
    inputs = jax.random.normal(getkey(), (6, 3))
    values = np.asarray(inputs)
    for index in range(3):
        layer = params[f"layer_{index}"]
        values = values @ layer["kernel"] + layer["bias"]
        values = function(values) if index < 2 else values
    np.testing.assert_allclose(network.apply(params, inputs), values, rtol=1e-5, atol=1e-6)


def test_params_are_a_plain_dict_and_layers_name_the_kernels_in_order(getkey):
    network = networks.mlp((4,) * 11, inputs=3)
    params = network.init(getkey())
    assert type(params) is dict
    assert network.layers == tuple(f"layer_{i}/kernel" for i in range(11))
    sizes = [params[path.split("/")[0]]["kernel"].shape for path in network.layers]
    assert sizes == [(3, 4)] + [(4, 4)] * 10


def test_inputs_of_any_shape_and_number_type_are_flattened(getkey):
    network = networks.mlp((2,), inputs=12)
    params = network.init(getkey())
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    flat = images.reshape(2, 12).astype(np.float32)
    np.testing.assert_array_equal(network.apply(params, images), network.apply(params, flat))


def test_torch_draws_kernels_and_biases_uniformly_within_one_over_root_fan_in(getkey):
    layer = networks.mlp((4000,), inputs=25).init(getkey())["layer_0"]
    for values in (layer["kernel"], layer["bias"]):
        assert 0.99 / 5 < np.abs(values).max() <= 1 / 5
        np.testing.assert_allclose(np.std(values), 1 / 5 / np.sqrt(3), rtol=0.05)
        np.testing.assert_allclose(np.mean(values), 0, atol=0.01)


@pytest.mark.parametrize(("initialization", "gain"), [("he", 2), ("lecun", 1)])
def test_normal_laws_have_their_variance_and_zero_biases(initialization, gain, getkey):
    network = networks.mlp((400,), inputs=100, initialization=initialization)
    layer = network.init(getkey())["layer_0"]
    np.testing.assert_allclose(np.var(layer["kernel"]), gain / 100, rtol=0.05)
    assert np.abs(layer["kernel"]).max() > 3 * np.sqrt(gain / 100)  # not cut off
    np.testing.assert_array_equal(layer["bias"], np.zeros(400))


def test_a_convolution_counts_height_width_and_channels_as_its_fan_in(getkey):
    layer = networks.Conv(400, (3, 2))
    params = layer.init(getkey(), jnp.zeros((1, 4, 4, 6)))["params"]
    for values in (params["kernel"], params["bias"]):
        assert 0.98 / 6 < np.abs(values).max() <= 1 / 6


@pytest.mark.parametrize("implementation", ["patches", "xla"])
def test_a_convolution_agrees_with_the_slow_loop(implementation, getkey, x64):
    images = jax.random.normal(getkey(), (2, 6, 5, 3))
    layer = networks.Conv(4, (3, 2), implementation=implementation)
    params = layer.init(getkey(), images)["params"]
    expected = _convolved(np.asarray(images), np.asarray(params["kernel"])) + params["bias"]
    tolerance = 1e-12 if x64 else 1e-5
    outputs = layer.apply({"params": params}, images)
    np.testing.assert_allclose(outputs, expected, rtol=tolerance, atol=tolerance)


def test_the_two_implementations_agree_in_value_and_gradient(getkey):
    images = jax.random.normal(getkey(), (3, 7, 6, 2))
    params = networks.Conv(4, (3, 2)).init(getkey(), images)
    results = []
    for implementation in ("patches", "xla"):
        layer = networks.Conv(4, (3, 2), implementation=implementation)
        energy = lambda *args, f=layer.apply: jnp.sum(jnp.tanh(f(*args)) ** 2)  # noqa: E731
        results.append(jax.jit(jax.value_and_grad(energy, argnums=(0, 1)))(params, images))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), results[0], results[1]
    )


def test_lenet5_has_its_published_size_and_reads_flat_images_too(getkey):
    network = networks.lenet5()
    params = network.init(getkey())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_706
    shapes = [params[path.split("/")[0]]["kernel"].shape for path in network.layers]
    assert shapes == [(5, 5, 1, 6), (5, 5, 6, 16), (5, 5, 16, 120), (120, 84), (84, 10)]
    images = jax.random.normal(getkey(), (2, 32, 32))
    outputs = network.apply(params, images)
    assert outputs.shape == (2, 10)
    np.testing.assert_array_equal(outputs, network.apply(params, images.reshape(2, 1024)))


def test_a_linear_lenet5_is_linear_between_the_switches_of_its_pooling(getkey):
    network = networks.lenet5(activation="linear", classes=3)
    params = network.init(getkey())
    zero = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else jnp.zeros_like(leaf), params)
    images = jax.random.normal(getkey(), (2, 32, 32, 1))
    twice = network.apply(zero, 2 * images)
    np.testing.assert_allclose(twice, 2 * network.apply(zero, images), rtol=1e-4, atol=1e-6)


def test_max_pooling_and_its_gradient_agree_with_xla_on_ties(rng):
    values = jnp.asarray(rng.integers(-1, 2, (4, 6, 8, 3)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(4, 3, 4, 3)), jnp.float32)
    ours = lambda v: jnp.sum(weights * max_pool(v))  # noqa: E731
    theirs = lambda v: jnp.sum(weights * nn.max_pool(v, (2, 2), (2, 2)))  # noqa: E731
    np.testing.assert_array_equal(max_pool(values), nn.max_pool(values, (2, 2), (2, 2)))
    np.testing.assert_array_equal(jax.grad(ours)(values), jax.grad(theirs)(values))


def test_max_pooling_does_not_hide_a_nan():
    for place in range(4):
        window = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool(window)).all()


def test_init_and_apply_vmap_over_seeds(getkey):
    network = networks.mlp((3, 2), inputs=4)
    keys = jax.random.split(getkey(), 3)
    inputs = jax.random.normal(getkey(), (5, 4))
    params = jax.vmap(network.init)(keys)
    outputs = jax.vmap(network.apply, in_axes=(0, None))(params, inputs)
    for index, key in enumerate(keys):
        alone = network.init(key)
        np.testing.assert_allclose(params["layer_0"]["kernel"][index], alone["layer_0"]["kernel"])
        np.testing.assert_allclose(outputs[index], network.apply(alone, inputs), rtol=1e-5)


def test_the_modules_work_inside_a_larger_linen_model(getkey):
    class Tower(nn.Module):
        @nn.compact
        def __call__(self, images):
            values = networks.Conv(2, (3, 3))(images)
            return networks.MLP((4, 2))(values) + networks.Dense(2)(images.reshape(len(images), -1))

    images = jax.random.normal(getkey(), (3, 5, 5, 1))
    outputs, variables = Tower().init_with_output(getkey(), images)
    assert outputs.shape == (3, 2)
    assert set(variables["params"]) == {"Conv_0", "MLP_0", "Dense_0"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.mlp((), inputs=3), r"`widths` must be .* got \(\)"),
        (lambda: networks.mlp((3, 0), inputs=3), r"`widths` must be .* got \(3, 0\)"),
        (lambda: networks.mlp((300.5, 3), inputs=3), r"`widths` must be .* got \(300\.5, 3\)"),
        (lambda: networks.mlp(("a",), inputs=3), r"`widths` must be .* got \('a',\)"),
        (lambda: networks.mlp((True, 3), inputs=3), r"`widths` must be .* got \(True, 3\)"),
        (lambda: networks.mlp((3,), inputs=0), "`inputs` must be at least 1, got 0"),
        (
            lambda: networks.mlp((3,), inputs=3, activation="gelu"),
            "`activation` must be one of 'linear', 'relu', 'tanh', got 'gelu'",
        ),
        (
            lambda: networks.mlp((3,), inputs=3, initialization="kaiming"),
            "`initialization` must be one of 'he', 'lecun', 'torch', got 'kaiming'",
        ),
        (lambda: networks.lenet5(classes=0), "`classes` must be at least 1, got 0"),
        (lambda: networks.lenet5(activation="x"), "`activation` must be one of"),
        (lambda: networks.lenet5(initialization="x"), "`initialization` must be one of"),
        (
            lambda: networks.lenet5(implementation="fft"),
            "`implementation` must be one of 'patches', 'xla', got 'fft'",
        ),
    ],
)
def test_wrong_options_are_refused_with_the_choices(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(2, 5), (2, 2, 3), (4,)])
def test_inputs_of_the_wrong_size_are_refused(shape, getkey):
    network = networks.mlp((2,), inputs=4)
    params = network.init(getkey())
    with pytest.raises(ValueError, match=r"with 4 features an example, got shape \("):
        network.apply(params, jnp.zeros(shape))


def test_a_module_built_by_hand_checks_its_names(getkey):
    with pytest.raises(ValueError, match="`activation` must be one of"):
        networks.MLP((2, 2), activation="gelu").init(getkey(), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="`initialization` must be one of"):
        networks.Dense(2, initialization="x").init(getkey(), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        networks.Conv(2, implementation="x").init(getkey(), jnp.zeros((1, 5, 5, 1)))
