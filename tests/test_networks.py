from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from nopr import convolutions, criteria, finetune, granularity, networks, trees
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
    params = jax.jit(layer.init)(getkey(), jnp.zeros((1, 4, 4, 6)))["params"]
    for values in (params["kernel"], params["bias"]):
        assert 0.98 / 6 < np.abs(values).max() <= 1 / 6


@pytest.mark.parametrize("implementation", ["patches", "xla"])
def test_a_convolution_agrees_with_the_slow_loop(implementation, getkey, x64):
    images = jax.random.normal(getkey(), (2, 6, 5, 3))
    layer = networks.Conv(4, (3, 2), implementation=implementation)
    params = jax.jit(layer.init)(getkey(), images)["params"]
    expected = _convolved(*map(np.asarray, (images, params["kernel"]))) + params["bias"]
    tolerance = 1e-12 if x64 else 1e-5
    outputs = jax.jit(layer.apply)({"params": params}, images)
    np.testing.assert_allclose(outputs, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=6, derandomize=True)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.sampled_from(["VALID", "SAME", 1, ((0, 2), (1, 0))]),
    groups=st.sampled_from([1, 2, 4]),
)
def test_convolutions_agree_with_flax_in_value_and_gradient(kernel, strides, padding, groups):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        options = {"strides": strides, "padding": padding}
        layers = [nn.Conv(8, kernel, feature_group_count=groups, **options)]
        for name in ("patches", "xla"):
            layers.append(networks.Conv(8, kernel, implementation=name, groups=groups, **options))
        weights = {"kernel": rng.normal(size=(*kernel, 4 // groups, 8)), "bias": rng.normal(size=8)}
        params = {"params": jax.tree.map(jnp.asarray, weights)}
        images = jnp.asarray(rng.normal(size=(2, 7, 6, 4)))

        @jax.jit
        def pulled(params, images):
            results = [jax.vjp(layer.apply, params, images) for layer in layers]
            return [(outputs, back(jnp.cos(outputs))) for outputs, back in results]

        expected, *rest = pulled(params, images)
        for found in rest:
            jax.tree.map(partial(np.testing.assert_allclose, atol=1e-11), found, expected)


def test_lenet5_has_its_published_size_and_reads_flat_images_too(rng):
    network = networks.lenet5()
    params = _drawn(network)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 61_706
    shapes = [params[path.split("/")[0]]["kernel"].shape for path in network.layers]
    assert shapes == [(5, 5, 1, 6), (5, 5, 6, 16), (5, 5, 16, 120), (120, 84), (84, 10)]
    images = rng.normal(size=(2, 32, 32)).astype(np.float32)
    outputs, flat = jax.jit(
        lambda images: [network.apply(params, x) for x in (images, images.reshape(2, 1024))]
    )(images)
    assert outputs.shape == (2, 10)
    np.testing.assert_array_equal(outputs, flat)


def test_a_linear_lenet5_is_linear_between_the_switches_of_its_pooling(getkey):
    network = networks.lenet5(activation="linear", classes=3)
    images = jax.random.normal(getkey(), (2, 32, 32, 1))
    apply = jax.jit(partial(network.apply, _drawn(network)))  # the biases are 0
    np.testing.assert_allclose(apply(2 * images), 2 * apply(images), rtol=1e-4, atol=1e-6)


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

    @jax.jit
    def both(key):
        params = network.init(key)
        return params["layer_0"]["kernel"], network.apply(params, inputs)

    together = jax.vmap(both)(keys)
    for index, key in enumerate(keys):
        for many, alone in zip(together, both(key), strict=True):
            np.testing.assert_allclose(many[index], alone, rtol=1e-5)


SIZES = {
    "ResNet-20": (networks.resnet(20), 269_722),
    "ResNet-20 B": (networks.resnet(20, shortcut="B"), 272_474),
    "ResNet-32": (networks.resnet(32), 464_154),
    "ResNet-56": (networks.resnet(56), 853_018),
    "ResNet-110": (networks.resnet(110), 1_727_962),
    "VGG-16": (networks.vgg(16), 14_724_042),
    "VGG-19": (networks.vgg(19), 20_035_018),
    "ViT": (networks.vit(), 2_693_194),
    "LeNet-300-100": (networks.lenet_300_100(), 266_610),
}


@pytest.mark.parametrize(("network", "size"), SIZES.values(), ids=SIZES)
def test_networks_have_their_published_sizes_and_name_their_kernels(network, size):
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    assert {path for path in trees.paths(params) if path.endswith("kernel")} == set(network.kernels)
    kernels = dict(zip(trees.paths(params), trees.shapes(params), strict=True))
    assert kernels[network.outputs[0]][-1] == 10
    assert network.layers == (network.kernels if network.chain else ())
    if network.chain:
        granularity.chain(trees.select(params), network.layers)


def _drawn(network):
    """Params by He's law, drawn with NumPy: compiling the draws would take most of the time."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = trees.path_string(path).split("/")[-1]
        if name in ("bias", "scale"):
            return jnp.full(leaf.shape, name == "scale", leaf.dtype)
        fan_in = leaf.size / leaf.shape[-1]
        return jnp.asarray(np.sqrt(2 / fan_in) * rng.normal(size=leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def _digits(network, count=40):
    images, labels = load_digits(return_X_y=True)
    images = images[:count].reshape(-1, 8, 8, 1).astype(np.float32) / 16
    factor = network.input_shape[0] // 8
    return images.repeat(factor, 1).repeat(factor, 2), labels[:count].astype(np.int32)


GRAY = (8, 8, 1)
XLA = {"implementation": "xla"}  # compiles in a fraction of the time
NARROW = {
    "ResNet-8": networks.resnet(8, width=1 / 4, input_shape=GRAY, **XLA),
    "VGG-11": networks.vgg(11, width=1 / 32, input_shape=(32, 32, 1), **XLA),
    "ViT": networks.vit(patch=2, dim=8, depth=1, heads=2, hidden=16, input_shape=GRAY),
}


@pytest.mark.parametrize("network", NARROW.values(), ids=NARROW)
def test_ten_steps_of_training_on_digits_lower_the_loss_and_move_every_leaf(network, getkey):
    data = images, labels = _digits(network)
    params, state = _drawn(network), network.init_state()

    def monitor(params, state):
        apply = network.bind(state)
        return {"fit": -finetune.evaluate(apply, params, data, convolutions="xla").loss}

    train = finetune.trainer(
        network.step_loss(finetune.cross_entropy),
        optax.adam(3e-3),
        epochs=10,
        batch_size=None,
        monitor=monitor,
        best_by="fit",
        stateful=True,
        state=state,
        convolutions="xla",
    )
    fitted = train(params, None, (images, labels), key=getkey())
    assert fitted.history.loss[-1] < 0.9 * fitted.history.loss[0]
    assert bool(fitted.state) == network.stateful
    moved = lambda a, b: bool(np.any(a != b)) and bool(np.isfinite(b).all())  # noqa: E731
    before, after = jax.device_get(((params, state), (fitted.params, fitted.state)))
    assert jax.tree.all(jax.tree.map(moved, before, after))
    fit = np.asarray(fitted.history.metrics["fit"])
    assert np.isfinite(fit).all()
    assert int(fitted.best_epoch) == int(np.argmax(fit))
    best = monitor(fitted.best_params, fitted.best_state)
    np.testing.assert_allclose(best["fit"], fit.max(), rtol=1e-4)


@pytest.fixture(scope="module")
def residual():
    """A narrow residual network, its state after one batch, and that batch."""
    network = NARROW["ResNet-8"]
    images = _digits(network)[0]
    params = _drawn(network)
    outputs, state = jax.jit(network.train)(params, network.init_state(), images)
    return network, params, images, outputs, state


def test_training_moves_the_running_statistics_a_tenth_of_the_way(residual):
    _, params, images, _, state = residual
    first = networks.Conv(4, (3, 3), use_bias=False, padding=1)
    values = first.apply({"params": params["conv"]}, jnp.asarray(images))
    mean, variance = (np.asarray(f(values, axis=(0, 1, 2))) for f in (jnp.mean, jnp.var))
    np.testing.assert_allclose(state["norm"]["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state["norm"]["var"], 0.9 + 0.1 * variance, rtol=1e-4)


def test_inference_uses_the_running_statistics_and_training_those_of_the_batch(residual):
    network, params, images, outputs, state = residual
    measured = jax.jit(network.bind(state))
    alone = measured(params, images[:1])
    np.testing.assert_allclose(measured(params, images)[:1], alone, rtol=1e-4, atol=1e-6)
    assert np.abs(jax.jit(network.train)(params, state, images)[0] - outputs).max() < 1e-6
    assert np.abs(alone - outputs[:1]).max() > 1e-3


def test_networks_report_how_their_convolutions_are_computed():
    assert networks.lenet5().implementation == convolutions.resolve()
    assert networks.resnet(8, implementation="xla").implementation == "xla"
    assert networks.vit(implementation="patches").implementation == "patches"
    assert networks.mlp((2,), inputs=3).implementation is None


def test_statistics_in_double_precision_stay_double(double):
    network = networks.resnet(8, width=1 / 16, input_shape=GRAY)
    arrays = jax.eval_shape(
        network.train,
        jax.eval_shape(network.init, jax.random.key(0)),
        jax.eval_shape(network.init_state),
        jax.ShapeDtypeStruct((2, *GRAY), float),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(arrays)} == {np.dtype("float64")}


def test_a_network_without_state_passes_any_state_through(getkey):
    network = networks.mlp((2,), inputs=4)
    params, batch = network.init(getkey()), (jnp.ones((3, 4)), jnp.zeros(3, int))
    loss = finetune.cross_entropy(network.apply)(params, batch)
    assert network.init_state() == {}
    found = network.step_loss(finetune.cross_entropy)(params, None, batch, getkey())
    assert found == (loss, None)


def test_apply_without_the_state_it_needs_is_refused(residual):
    network, params, images, _, _ = residual
    with pytest.raises(ValueError, match=r"`apply` lacks the state.*`net\.bind\(state\)`"):
        network.apply(params, images)


def test_the_two_shortcuts_are_the_identity_but_where_channels_double(getkey):
    for shortcut, added in (("A", []), ("B", ["shortcut_conv", "shortcut_norm"])):
        network = networks.resnet(14, width=1 / 8, input_shape=GRAY, shortcut=shortcut)
        params = jax.eval_shape(network.init, getkey())
        for stage in (1, 2, 3):
            first, second = (params[f"stage_{stage}_block_{block}"] for block in (1, 2))
            expected = ["conv_1", "conv_2", "norm_1", "norm_2", *(added if stage > 1 else [])]
            assert (sorted(first), sorted(second)) == (expected, expected[:4])
    block = networks.ResNetBlock(3, stride=2, shortcut="A")
    images = jnp.arange(80.0).reshape(2, 5, 4, 2)
    shapes = jax.eval_shape(block.init, getkey(), images)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    skipped = block.apply(variables, images)
    np.testing.assert_array_equal(skipped[..., :2], images[:, ::2, ::2])
    np.testing.assert_array_equal(skipped[..., 2], 0)


def test_synaptic_flow_is_finite_on_a_deep_network_whose_flow_passes_single_precision():
    network = networks.resnet(20, width=1 / 8, input_shape=(4, 4, 1))
    params, apply = _drawn(network), network.bind(network.init_state())
    params = jax.tree.map(lambda leaf: 100 * np.asarray(leaf), params)  # as 110 layers multiply
    score = criteria.synflow(apply, input_shape=network.input_shape)

    @jax.jit
    def both(params):
        flow = apply(jax.tree.map(jnp.abs, params), jnp.ones((1, 4, 4, 1)))
        return flow, score(params, None, key=None)

    flow, scores = both(params)
    assert not np.isfinite(flow).any()
    for score in jax.tree.leaves(scores):
        assert np.isfinite(score).all()
        assert (np.asarray(score) > 0).any()


def test_the_position_embedding_is_not_prunable_by_default():
    params = jax.eval_shape(NARROW["ViT"].init, jax.random.key(0))
    assert params["position_embedding"].shape == (16, 8)
    assert trees.select(params)["position_embedding"] is None


def test_the_modules_work_inside_a_larger_linen_model(getkey):
    class Tower(nn.Module):
        @nn.compact
        def __call__(self, images):
            values = networks.Conv(2, (3, 3))(images)
            return networks.MLP((4, 2))(values) + networks.Dense(2)(images.reshape(len(images), -1))

    images = jax.random.normal(getkey(), (3, 5, 5, 1))
    outputs, variables = jax.jit(Tower().init_with_output)(getkey(), images)
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
        (
            lambda: networks.mlp((3,), inputs=0),
            "`inputs` must be a whole number of at least 1, got 0",
        ),
        (
            lambda: networks.mlp((3,), inputs=3, activation="gelu"),
            "`activation` must be one of 'linear', 'relu', 'tanh', got 'gelu'",
        ),
        (
            lambda: networks.mlp((3,), inputs=3, initialization="kaiming"),
            "`initialization` must be one of 'he', 'lecun', 'torch', got 'kaiming'",
        ),
        (
            lambda: networks.lenet5(classes=0),
            "`classes` must be a whole number of at least 1, got 0",
        ),
        (lambda: networks.lenet5(activation="x"), "`activation` must be one of"),
        (lambda: networks.lenet5(initialization="x"), "`initialization` must be one of"),
        (
            lambda: networks.lenet5(implementation="fft"),
            "`implementation` must be one of 'auto', 'patches', 'xla', got 'fft'",
        ),
        (lambda: networks.resnet(18), r"`depth` must be 6 n \+ 2 .* got 18"),
        (lambda: networks.resnet(20, shortcut="C"), "`shortcut` must be one of 'A', 'B', got 'C'"),
        (lambda: networks.resnet(20, width=0), "`width` must be a positive number, got 0"),
        (lambda: networks.resnet(20, implementation="fft"), "`implementation` must be one of"),
        (lambda: networks.vgg(17), "`depth` must be one of 11, 13, 16, 19, got 17"),
        (lambda: networks.vgg(16, input_shape=(28, 28, 1)), r"multiples of 32.*got \(28, 28, 1\)"),
        (lambda: networks.vgg(16, input_shape=(32, 0, 3)), r"must be \(height, width, channels\)"),
        (lambda: networks.vit(heads=5), "`heads` must divide `dim` = 192, got 5"),
        (lambda: networks.vit(patch=5), "`patch` must divide .* got 5"),
        (lambda: networks.vit(depth=0), "`depth` must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_with_the_choices(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(2, 5), (2, 2, 3), (4,)])
def test_inputs_of_the_wrong_size_are_refused(shape, getkey):
    network = networks.mlp((2,), inputs=4)
    params = network.init(getkey())
    with pytest.raises(ValueError, match=r"with 4 features per example, got shape \("):
        network.apply(params, jnp.zeros(shape))


def test_a_module_built_by_hand_checks_its_names(getkey):
    with pytest.raises(ValueError, match="`activation` must be one of"):
        networks.MLP((2, 2), activation="gelu").init(getkey(), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="`initialization` must be one of"):
        networks.Dense(2, initialization="x").init(getkey(), jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        networks.Conv(2, implementation="x").init(getkey(), jnp.zeros((1, 5, 5, 1)))
    with pytest.raises(
        ValueError, match=r"`padding` must be 'SAME', 'VALID' or numbers, .* got 'x'"
    ):
        networks.Conv(2, padding="x").init(getkey(), jnp.zeros((1, 5, 5, 1)))
    with pytest.raises(ValueError, match="`groups` must divide the 3 input channels and the 2"):
        networks.Conv(2, groups=2).init(getkey(), jnp.zeros((1, 5, 5, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: networks.mlp(3, inputs=4),
            "`widths` must be one or more positive integers, got 3",
        ),
        (lambda: networks.vgg(16, input_shape=3), "`input_shape` must be .*, got 3"),
        (lambda: networks.vgg(16, width="1"), "`width` must be a positive number, got '1'"),
        (lambda: networks.resnet(6 * 2**40 + 2), "`depth` must be 6 n \\+ 2"),
        (lambda: networks.vit(depth=2**40), "`depth` must be a whole number of at most 10,000"),
        (lambda: networks.mlp((3,), inputs=4).init(0), "`key` must be a key of JAX, got 0"),
        (
            lambda: networks.mlp((3,), inputs=4).apply({}, "x"),
            "`inputs` must be an array of numbers",
        ),
    ],
)
def test_options_of_another_type_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (0, 1)}, "`strides` must be two whole numbers of at least 1, got"),
        ({"strides": 2}, "`strides` must be two whole numbers"),
        ({"padding": -1}, "`padding` must be 'SAME', 'VALID' or numbers"),
        ({"padding": 2**40}, "`padding` must be 'SAME', 'VALID' or numbers"),
        ({"padding": [(1, 0)]}, "`padding` must be"),
        ({"groups": 2}, "`kernel` must have 1 input channels"),
        ({"groups": 1.5}, "`groups` must be a whole number"),
        ({"inputs": jnp.ones((5, 5, 2))}, "`inputs` must have four dimensions"),
        ({"kernel": "kernel"}, "`kernel` must be an array of numbers"),
        ({"kernel": jnp.ones((9, 9, 2, 4))}, "`kernel` must fit into the images"),
        ({"kernel": jnp.ones((0, 3, 2, 4))}, "`kernel` must fit into the images"),
    ],
)
@pytest.mark.parametrize("implementation", ["xla", "patches"])
def test_convolutions_that_do_not_fit_are_refused(implementation, options, message, unchecked):
    given = {"inputs": jnp.ones((2, 5, 5, 2)), "kernel": jnp.ones((3, 3, 2, 4)), **options}
    with pytest.raises(ValueError, match=message):
        networks.convolve(**given, implementation=implementation)


def test_sizes_of_a_small_integer_type_do_not_wrap(unchecked):
    net = networks.vit(dim=np.uint8(192), heads=np.int8(3), depth=1, input_shape=(8, 8, 1))
    assert (net.module.dim, net.module.heads, net.module.hidden) == (192, 3, 768)
