"""Path exclusion and NTK-SAP against goldens in plain NumPy, and the laws of path exclusion."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen as nn

from nopr import criteria, masks, networks, pruning, schedules, trees

WIDTHS = (3, 4, 3, 2)


def net(rng, widths=WIDTHS, bias=0.5):
    return {
        f"layer_{i}": {"kernel": rng.normal(size=(a, b)), "bias": bias * rng.normal(size=b)}
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    }


def apply(params, inputs, act=jax.nn.relu):
    values = inputs
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        values = jnp.dot(values, layer["kernel"]) + layer["bias"]
        values = act(values) if i < len(params) - 1 else values
    return values


def compare(ours, theirs, rtol=1e-9):
    """The kernels' scores, and the masks at three densities."""
    for name, layer in ours.items():
        np.testing.assert_allclose(layer["kernel"], theirs[name], rtol=rtol, atol=1e-300)
    expected = {name: {"kernel": leaf, "bias": None} for name, leaf in theirs.items()}
    for density in (0.5, 0.2, 0.05):
        pair = [masks.top(s, density=density, warn=False) for s in (ours, expected)]
        jax.tree.map(np.testing.assert_array_equal, *pair)


def sums(scores):
    return [float(np.sum(leaf)) for leaf in jax.tree.leaves(scores)]


GATES = ("outputs", "paths")
PX = {
    gates: jax.jit(
        lambda params, inputs, masks, gates=gates: criteria.px(apply, gates=gates)(
            params, inputs, masks=masks
        )
    )
    for gates in GATES
}
both = pytest.mark.parametrize("gates", GATES)


@pytest.fixture
def problem(rng):
    params = net(rng)
    kept = jax.tree.map(lambda w: rng.random(w.shape) < 0.9, trees.select(params))
    kept["layer_2"]["kernel"] = np.array([[1, 0], [0, 1], [1, 1]], bool)  # outputs differ
    return params, rng.normal(size=(5, 3)), kept


@pytest.mark.usefixtures("double")
@both
@pytest.mark.parametrize("pruned", [False, True])
def test_px_is_the_share_of_the_squared_paths_through_a_weight_path_by_path(problem, pruned, gates):
    params, inputs, kept = problem
    kept = kept if pruned else trees.full_masks(params)
    scores = PX[gates](params, inputs, kept)
    compare(scores, oracles.px(masks.apply(params, kept), inputs, gates))


@pytest.mark.usefixtures("double")
def test_px_divides_a_bound_on_the_trace_of_the_tangent_kernel(problem):
    """The sum of the derivatives of R by the squared weights, of which the scores are shares."""
    params, inputs, _ = problem
    params = {name: {**layer, "bias": 0 * layer["bias"]} for name, layer in params.items()}
    scores = PX["outputs"](params, inputs, trees.full_masks(params))
    values, data, squares = inputs, inputs**2, np.ones((1, 3))
    for layer in params.values():
        kernel = layer["kernel"]
        values, data, squares = values @ kernel, data @ np.ones_like(kernel), squares @ kernel**2
        if layer is not params["layer_2"]:
            values, data = np.maximum(values, 0), data * (values > 0)
    slopes = [scores[n]["kernel"] / params[n]["kernel"] ** 2 for n in params]
    bound = np.sum(data * squares) * sum(map(np.sum, slopes))
    derivatives = jax.jacobian(apply)(params, inputs)
    trace = sum(np.sum(layer["kernel"] ** 2) for layer in derivatives.values())
    assert 0.001 * bound < trace < bound


def conv_net(params, inputs):
    values = jax.lax.conv_general_dilated(
        inputs, params["conv"]["kernel"], (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    values = nn.avg_pool(jax.nn.relu(values + params["conv"]["bias"]), (2, 2), (2, 2))
    return values.reshape(len(inputs), -1) @ params["last"]["kernel"]


@pytest.mark.usefixtures("double")
@both
def test_px_of_a_convolution_is_that_of_its_matrix_with_shared_weights_added(rng, gates):
    """The convolution as a dense layer: a weight's score is the sum over the places it is used."""
    kernel, last = rng.normal(size=(2, 2, 1, 2)), rng.normal(size=(2, 2))
    params = {"conv": {"kernel": kernel, "bias": rng.normal(size=2)}, "last": {"kernel": last}}
    images = rng.normal(size=(4, 3, 3, 1))
    scores = criteria.px(conv_net, gates=gates)(params, (images, np.zeros(4)), key=None)
    matrix, owner = np.zeros((9, 8)), {}
    for row, column, dy, dx, out in itertools.product(range(2), repeat=5):
        place = 3 * (row + dy) + column + dx, 2 * (2 * row + column) + out
        matrix[place], owner[place] = kernel[dy, dx, 0, out], (dy, dx, 0, out)
    pooled = np.concatenate([last / 4] * 4)
    dense = {
        "layer_0": {"kernel": matrix, "bias": np.tile(params["conv"]["bias"], 4)},
        "layer_1": {"kernel": pooled, "bias": np.zeros(2)},
    }
    first, second = oracles.px(dense, images.reshape(4, 9), gates).values()
    expected = np.zeros_like(kernel)
    for place, index in owner.items():
        expected[index] += first[place]
    np.testing.assert_allclose(scores["conv"]["kernel"], expected, rtol=1e-9)
    np.testing.assert_allclose(
        scores["last"]["kernel"], second.reshape(4, 2, 2).sum(axis=0), rtol=1e-9
    )


@pytest.mark.usefixtures("double")
@both
def test_px_through_every_cut_of_a_net_without_biases_is_one(rng, gates):
    params, inputs = net(rng, bias=0.0), rng.normal(size=(5, 3))
    scores = PX[gates](params, inputs, trees.full_masks(params))
    np.testing.assert_allclose(sums(scores), 1, rtol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("gates", "act"),
    [
        ("paths", jax.nn.relu),
        *(("outputs", act) for act in (jax.nn.relu, jax.nn.leaky_relu, jax.nn.relu6)),
    ],
)
def test_px_with_open_gates_or_with_outputs_that_count_alike_is_synflow_of_the_squared_weights(
    rng, gates, act
):
    params, inputs = jax.tree.map(lambda w: 3 * w, net(rng)), rng.normal(size=(2, 3))
    if gates == "paths":
        params, inputs = jax.tree.map(np.abs, params), np.ones((1, 3))
    score = criteria.px(functools.partial(apply, act=act), gates=gates)
    scores = score(params, inputs, key=None)
    squared = jax.tree.map(np.square, params)
    expected = criteria.synflow(apply, input_shape=(3,))(squared, None, key=None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), scores, expected)


@pytest.mark.usefixtures("double")
@both
def test_px_of_stacked_batches_is_that_of_one_batch_of_all(problem, gates):
    params, inputs, _ = problem
    inputs = np.concatenate([inputs[:4], 1e-3 * inputs[:4]])
    stacked = criteria.px(apply, gates=gates, stacked=True)(
        params, inputs.reshape(2, 4, 3), key=None
    )
    whole = PX[gates](params, inputs, trees.full_masks(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), stacked, whole)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("draw_anew", [False, True])
def test_ntk_sap_is_the_derivative_by_the_masks_of_the_change_under_noise(problem, draw_anew):
    params, _, kept = problem

    def init(key):
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        draws = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, draws)

    key = jax.random.key(3)
    score = criteria.ntk_sap(
        apply, input_shape=(3,), init=init if draw_anew else None, draws=2, examples=4
    )
    scores = jax.jit(lambda p, m: score(p, None, masks=m, key=key))(params, kept)
    found = []
    for draw in jax.random.split(key, 2):
        init_key, input_key, noise_key = jax.random.split(draw, 3)
        keys = jax.random.split(noise_key, 3)
        now = init(init_key) if draw_anew else params
        noise = {
            name: jax.random.normal(k, layer["kernel"].shape, jnp.float32)
            for k, (name, layer) in zip(keys, now.items(), strict=True)
        }
        inputs = jax.random.normal(input_key, (4, 3), jnp.float32)
        found.append(oracles.ntk_sap(now, masks_of(kept), inputs, noise, eps=0.01))
    expected = {name: np.abs(found[0][name] + found[1][name]) for name in params}
    compare(scores, expected)


def masks_of(kept):
    return {name: np.asarray(layer["kernel"]) for name, layer in kept.items()}


def prune(score, params, batch, rounds=5, density=0.1, **options):
    pruner = pruning.pruner(
        score, density=density, schedule=schedules.exponential, rounds=rounds, **options
    )
    return pruner(params, batch, key=jax.random.key(0))


@pytest.mark.usefixtures("double")
def test_the_rounds_of_force_are_those_of_backpropagation_by_hand(rng):
    params = net(rng, (5, 8, 6, 3))
    inputs, targets = rng.normal(size=(6, 5)), rng.normal(size=(6, 3))

    def loss(params, batch):
        return jnp.mean((apply(params, batch[0]) - batch[1]) ** 2)

    size = sum(layer["kernel"].size for layer in params.values())
    at = schedules.exponential(density=0.1, steps=5)
    counts = [int(k) for k in pruning.level_counts(size, [at(t) for t in range(1, 6)])]
    ours = prune(criteria.force(loss), params, (inputs, targets), regrow=True)
    flat = np.concatenate([layer["kernel"].ravel() for layer in params.values()])

    def gradient(weights):
        start, pruned = 0, {}
        for name, layer in params.items():
            end = start + layer["kernel"].size
            kernel = weights[start:end].reshape(layer["kernel"].shape)
            pruned[name], start = {"kernel": kernel, "bias": layer["bias"]}, end
        slopes = oracles.mse_gradient(pruned, inputs, targets)
        return np.concatenate([leaf.ravel() for leaf in slopes.values()])

    expected = oracles.rounds(flat, gradient, counts, regrow=True)
    assert any(np.any(b & ~a) for a, b in itertools.pairwise(expected)), "none returned"
    np.testing.assert_array_equal(trees.ravel(ours)[0], expected[-1])


def residual(params, inputs):
    """A residual net of 110 layers: x + V relu(W x) in 54 blocks, as a loop over them."""

    def block(values, weights):
        v, w = weights
        return values + jax.nn.relu(values @ v) @ w, None

    values, _ = jax.lax.scan(
        block,
        inputs @ params["first"]["kernel"],
        (params["blocks"]["v"], params["blocks"]["w"]),
    )
    return values @ params["last"]["kernel"]


def plain(params, inputs):
    """60 layers without shortcuts, as a loop over them."""
    values, _ = jax.lax.scan(
        lambda values, w: (jax.nn.relu(values @ w), None), inputs, params["kernels"]
    )
    return values


def deep(rng, scale):
    blocks = {name: rng.normal(size=(54, 12, 12)) * scale for name in "vw"}
    first, last = rng.normal(size=(8, 12)), rng.normal(size=(12, 5))
    params = {"first": {"kernel": first}, "blocks": blocks, "last": {"kernel": last}}
    yield residual, params
    yield plain, {"kernels": rng.normal(size=(60, 8, 8)) * scale}


@pytest.mark.long
@both
@pytest.mark.parametrize(
    ("index", "scale"),
    [(0, 1.0), (0, 100.0), (1, 10.0), (1, 1e4), (1, 1e-4)],
)
def test_px_prunes_deep_networks_as_float64_does_where_it_alone_overflows(scale, index, rng, gates):
    function, params = list(deep(rng, scale))[index]
    params = jax.tree.map(np.float32, params)
    inputs = np.float32(rng.normal(size=(4, 8)))
    where = trees.everything  # stacked kernels have three dimensions

    def run(params):
        return prune(criteria.px(function, gates=gates, where=where), params, inputs)

    ours = jax.jit(run)(params)
    with jax.enable_x64(True):
        expected = jax.jit(run)(jax.tree.map(np.float64, params))
    assert int(masks.count(ours)) == round(0.1 * masks.size(ours))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    scores = criteria.px(function, gates=gates, where=where)(params, inputs, key=None)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(scores))
    if index == 1:
        np.testing.assert_allclose(np.asarray(scores["kernels"]).sum(axis=(1, 2)), 1, rtol=1e-9)


@both
def test_px_is_nan_where_the_network_itself_overflows(rng, gates):
    """Its gates are then unknown, though the sums of squares are in range."""
    params = {"kernels": np.float32(1e7 * rng.normal(size=(60, 4, 4)))}
    score = criteria.px(plain, gates=gates, where=trees.everything)
    assert np.isnan(score(params, np.ones((1, 4), np.float32), key=None)["kernels"]).all()


@pytest.mark.long
@both
def test_px_of_a_loop_over_layers_is_that_of_the_layers_written_out(rng, gates):
    """With two results a round, a loop counter and constants that are added."""
    params = {"kernels": np.float32(rng.normal(size=(3, 4, 4)))}
    inputs = np.float32(rng.normal(size=(2, 4)))

    def looped(params, inputs):
        def layer(carry, w):
            place, values = carry
            values = jax.nn.relu(values @ w + 0.1 * jnp.arange(3.0)[place])
            return (place + 1, values), values.sum(axis=1)

        (_, values), each = jax.lax.scan(layer, (0, inputs), params["kernels"])
        return values.sum(axis=1) + each.sum(axis=0)

    def written(params, inputs):
        values, total = inputs, 0.0
        for i in range(3):
            values = jax.nn.relu(values @ params["kernels"][i] + 0.1 * i)
            total += values.sum(axis=1)
        return values.sum(axis=1) + total

    pair = (
        criteria.px(f, gates=gates, where=trees.everything)(params, inputs, key=None)
        for f in (looped, written)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *pair)


@jax.custom_vjp
def clipped(values):
    """ReLU with a derivative of its own."""
    return jnp.maximum(values, 0)


clipped.defvjp(lambda values: (clipped(values), values > 0), lambda gate, slope: (slope * gate,))


@both
@pytest.mark.parametrize("wrap", [jax.checkpoint, lambda f: f])
def test_px_enters_checkpoints_and_custom_derivatives(rng, gates, wrap):
    params, inputs = jax.tree.map(np.float32, net(rng)), np.float32(rng.normal(size=(2, 3)))
    function = wrap(functools.partial(apply, act=clipped))
    found = criteria.px(function, gates=gates)(params, inputs, key=None)
    with jax.enable_x64(True):
        expected = oracles.px(jax.tree.map(np.float64, params), inputs, gates)
        compare(found, expected)


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (jnp.tanh, "'tanh'"),
        (jax.nn.gelu, "'integer_pow'"),
        (jax.nn.silu, "'logistic' in 'silu'"),
        (jax.nn.softmax, "'exp'"),
        (lambda x: x * x, "'mul'"),
        (lambda x: x / (1 + jnp.abs(x)), "'div'"),
        (lambda x: x / jnp.std(x), "'square' in '_var'"),
    ],
)
def test_px_refuses_what_is_not_piecewise_linear_by_name(act, found, rng):
    params = jax.tree.map(np.float32, net(rng))
    score = criteria.px(lambda params, inputs: apply(params, inputs, act))
    with pytest.raises(ValueError, match=f"piecewise linear .*, got {found}.*Use ReLU"):
        score(params, np.ones((2, 3), np.float32), key=None)


@pytest.mark.usefixtures("double")
@both
def test_px_counts_a_constant_as_it_does_a_weight(rng, gates):
    """A mean or a norm divides the weights around it; only a branch beside it shows by how much."""
    params = {name: {"kernel": rng.normal(size=(3, 3))} for name in "abc"}
    inputs = rng.normal(size=(5, 3))

    def branches(params, inputs, norm):
        a, b, c = (params[name]["kernel"] for name in "abc")
        return norm(jax.nn.relu(inputs @ a)) @ b + inputs @ c

    scaled = {**params, "b": {"kernel": params["b"]["kernel"] * 0.3}}
    px = functools.partial(criteria.px, gates=gates)
    expected = px(lambda p, x: branches(p, x, lambda h: h))(scaled, inputs, key=None)
    for norm in (lambda h: h / (1 / 0.3), lambda h: -h * 0.3, lambda h: h @ np.diag([0.3] * 3)):
        found = px(lambda p, x, norm=norm: branches(p, x, norm))(params, inputs, key=None)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, expected)


@pytest.mark.long
@both
def test_px_of_sixty_layers_written_out_is_that_of_the_loop_over_them(rng, gates):
    kernels = np.float32(1e4 * rng.normal(size=(60, 4, 4)))
    inputs = np.float32(rng.normal(size=(2, 4)))
    params = {f"layer_{i}": {"kernel": k, "bias": jnp.zeros(4)} for i, k in enumerate(kernels)}
    px = functools.partial(criteria.px, gates=gates)
    written = px(lambda params, inputs: jax.nn.relu(apply(params, inputs)))
    looped = px(plain, where=trees.everything)({"kernels": kernels}, inputs, key=None)
    scores = written(params, inputs, key=None)
    for i, layer in enumerate(np.asarray(looped["kernels"])):
        found = scores[f"layer_{i}"]["kernel"]
        np.testing.assert_allclose(found, layer, rtol=1e-9, atol=1e-300)


@pytest.mark.long
@both
def test_px_of_resnet_110_is_finite_and_gives_the_masks_of_float64(rng, gates):
    """Not jitted, since one program of this size compiles longer than its operations do."""
    network = networks.resnet(110, width=0.25, input_shape=(8, 8, 3), implementation="xla")
    params = network.init(jax.random.key(0))
    statistics = jax.tree.map(lambda x: x + 0.5 * rng.random(x.shape), network.init_state())
    bound = network.bind(jax.tree.map(np.float32, statistics))
    score = criteria.px(bound, gates=gates)
    images = np.float32(rng.normal(size=(2, 8, 8, 3)))
    scores = score(params, images, key=None)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(scores))
    np.testing.assert_allclose(np.asarray(scores["classifier"]["kernel"]).sum(), 1, rtol=1e-9)
    with jax.enable_x64(True):
        double = score(jax.tree.map(np.float64, params), np.float64(images), key=None)
    for density in (0.1, 0.01):
        pair = [masks.top(tree, density=density, warn=False) for tree in (scores, double)]
        jax.tree.map(np.testing.assert_array_equal, *pair)


@pytest.mark.long
@pytest.mark.usefixtures("double")
@both
def test_the_rounds_of_px_are_those_of_its_golden(problem, gates):
    params, inputs, _ = problem
    size = sum(layer["kernel"].size for layer in params.values())
    at = schedules.exponential(density=0.3, steps=5)
    ours = prune(criteria.px(apply, gates=gates), params, inputs, density=0.3)
    golden = functools.partial(oracles.px, inputs=inputs, gates=gates)
    kept = np.ones(size, bool)
    for count in pruning.level_counts(size, [at(t) for t in range(1, 6)]):
        _, unravel = trees.ravel(trees.select(params))
        living = masks.apply(params, jax.tree.map(lambda m: m != 0, unravel(kept * 1.0)))
        scores = np.concatenate([leaf.ravel() for leaf in golden(living).values()])
        kept = oracles.top(scores, int(count), kept)
    np.testing.assert_array_equal(trees.ravel(ours)[0], kept)


@pytest.mark.usefixtures("double")
def test_lamp_competes_over_the_network_as_its_golden_does(rng):
    params = net(rng, (5, 8, 6, 3))
    golden = {name: oracles.lamp(layer["kernel"]) for name, layer in params.items()}
    compare(criteria.lamp()(params, None, key=None), golden)


def test_batches_and_input_shapes_that_do_not_fit_are_explained(problem):
    params, inputs = problem[0], np.ones((2, 9, 7), np.float32)
    with pytest.raises(ValueError, match="`px` needs a batch, got None"):
        criteria.px(apply)(params, None)
    with pytest.raises(ValueError, match=r"`apply` failed on inputs of shape \(9, 7\): .*stacked"):
        criteria.px(apply, stacked=True)(params, inputs)
    score = criteria.ntk_sap(apply, input_shape=(9,), draws=1, examples=2)
    with pytest.raises(ValueError, match=r"shape \(2, 9\), of `input_shape`: .*batch axis"):
        score(params, None, key=jax.random.key(0))
