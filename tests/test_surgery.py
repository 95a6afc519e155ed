"""Live paths against an enumeration of every path; removal against the masked network."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nopr import granularity, isometry, masks, surgery, trees

LAYERS = ("Dense_1/kernel", "Dense_2/kernel", "Dense_10/kernel")  # leaves sort 1, 10, 2
WIDTHS = (3, 4, 3, 2)
SIZES = [ins * outs for ins, outs in itertools.pairwise(WIDTHS)]
bits = st.lists(st.booleans(), min_size=sum(SIZES), max_size=sum(SIZES))


def dense_masks(values):
    pieces = np.split(np.asarray(values, bool), np.cumsum(SIZES)[:-1])
    shapes = itertools.pairwise(WIDTHS)
    return {
        path.split("/")[0]: {"bias": None, "kernel": jnp.asarray(piece.reshape(shape))}
        for path, piece, shape in zip(LAYERS, pieces, shapes, strict=True)
    }


def dense_params(rng, bias=True):
    params = {}
    for path, (ins, outs) in zip(LAYERS, itertools.pairwise(WIDTHS), strict=True):
        layer = {"kernel": jnp.asarray(rng.normal(size=(ins, outs)), jnp.float32)}
        if bias:
            layer["bias"] = jnp.asarray(rng.normal(size=outs), jnp.float32)
        params[path.split("/")[0]] = layer
    return params


def apply(params, inputs, activation=jax.nn.relu):
    for index, path in enumerate(LAYERS):
        layer = params[path.split("/")[0]]
        inputs = inputs @ layer["kernel"]
        if "bias" in layer:
            inputs = inputs + layer["bias"][None, :]
        if index < len(LAYERS) - 1:
            inputs = activation(inputs)
    return inputs


def every_path(kernels):
    """The live weights, by walking every path of units."""
    found = [np.zeros(kernel.shape, bool) for kernel in kernels]
    widths = [kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels)]
    for path in itertools.product(*map(range, widths)):
        steps = list(enumerate(itertools.pairwise(path)))
        if all(kernels[index][step] for index, step in steps):
            for index, step in steps:
                found[index][step] = True
    return found


def kernels_of(tree, layers=LAYERS):
    leaves = dict(zip(trees.paths(tree), jax.tree.leaves(tree), strict=True))
    return [np.asarray(leaves[path]) for path in layers]


jitted_live = jax.jit(lambda tree: surgery.live(tree, LAYERS))


@settings(max_examples=30, deadline=None)
@given(bits)
def test_live_weights_are_those_on_some_path(values):
    tree = dense_masks(values)
    found = jitted_live(tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for mask, expected in zip(kernels_of(found), every_path(kernels_of(tree)), strict=True):
        np.testing.assert_array_equal(mask, expected)


jitted_connectivity = jax.jit(lambda tree: surgery.connectivity(tree, LAYERS))


@settings(max_examples=30, deadline=None)
@given(bits)
def test_connectivity_counts_what_walking_every_path_finds(values):
    tree = dense_masks(values)
    found, kernels = jitted_connectivity(tree), kernels_of(tree)
    paths = dict(zip(LAYERS, every_path(kernels), strict=True))
    first, last = paths[LAYERS[0]], paths[LAYERS[-1]]
    assert found.live == {path: live.sum() for path, live in paths.items()}
    assert found.collapsed == {p: k.sum() == 0 for p, k in zip(LAYERS, kernels, strict=True)}
    assert found.dead_units == {p: sum(~paths[p].any(axis=0)) for p in LAYERS[:-1]}
    assert found.disconnected_inputs == sum(~first.any(axis=1))
    assert found.disconnected_outputs == sum(~last.any(axis=0))
    np.testing.assert_allclose(found.density, np.mean(values), rtol=1e-6)
    live = sum(leaf.sum() for leaf in paths.values())
    np.testing.assert_allclose(found.effective_density, live / len(values), rtol=1e-6)


@pytest.mark.long
def test_connectivity_of_convolutions_counts_channels_and_vmaps():
    tree = {
        "conv": jnp.zeros((3, 3, 2, 4), bool).at[1, 1, 0, :2].set(True),
        "dense": jnp.zeros((16, 3), bool).at[jnp.array([1, 4, 7])].set(True),  # channels 1, 0, 3
    }
    found = surgery.connectivity(tree, ("conv", "dense"))
    assert found.dead_units == {"conv": 2}
    assert (found.live["conv"], found.live["dense"]) == (2, 6)
    assert (found.disconnected_inputs, found.disconnected_outputs) == (1, 0)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, ~leaf]), tree)
    many = jax.vmap(lambda tree: surgery.connectivity(tree, ("conv", "dense")))(both)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), many, found)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The masks leave no path")
def test_live_is_idempotent_and_vmaps_like_a_loop(rng):
    cases = [dense_masks(rng.random(sum(SIZES)) < 0.4) for _ in range(5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    together = jax.vmap(lambda tree: surgery.live(tree, LAYERS))(stacked)
    counts = jax.jit(jax.vmap(lambda tree: surgery.effective_count(tree, LAYERS)))(stacked)
    for case, tree in enumerate(cases):
        alone = surgery.live(tree, LAYERS)
        jax.tree.map(lambda a, b, i=case: np.testing.assert_array_equal(a[i], b), together, alone)
        jax.tree.map(np.testing.assert_array_equal, surgery.live(alone, LAYERS), alone)
        assert int(counts[case]) == int(masks.count(alone))
        np.testing.assert_allclose(
            surgery.effective_density(tree, LAYERS), int(counts[case]) / sum(SIZES)
        )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The masks leave no path")
@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=36, max_size=36))
def test_live_paths_go_through_channels_and_a_channels_last_flatten(values):
    shapes = ((1, 2, 2, 2), (2, 1, 2, 3), (6, 2), (2, 1))  # 8 + 12 + 12 + 2 + 2 spare
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    pieces = np.split(np.asarray(values), ends)[:4]
    layers = ("a", "b", "c", "d")
    tree = {
        name: jnp.asarray(piece.reshape(shape))
        for name, piece, shape in zip(layers, pieces, shapes, strict=True)
    }
    # As a dense network: a channel is one unit, several positions are parallel weights.
    a, b = (np.asarray(tree[name]).any((0, 1)) for name in "ab")
    c = np.asarray(tree["c"]).reshape(2, 3, 2).any(0)
    live_a, live_b, live_c, live_d = every_path([a, b, c, np.asarray(tree["d"])])
    found = surgery.live(tree, layers)
    np.testing.assert_array_equal(found["a"], tree["a"] & live_a)
    np.testing.assert_array_equal(found["b"], tree["b"] & live_b)
    np.testing.assert_array_equal(found["c"], tree["c"] & np.tile(live_c, (2, 1)))
    np.testing.assert_array_equal(found["d"], live_d)


def test_full_and_empty_masks_are_the_two_extremes():
    full = dense_masks(np.ones(sum(SIZES)))
    assert float(surgery.effective_density(full, LAYERS)) == 1
    assert bool(surgery.connected(full, LAYERS))
    cut = dict(full, Dense_2={"bias": None, "kernel": jnp.zeros((4, 3), bool)})
    with pytest.warns(UserWarning, match="breaks at 'Dense_2/kernel'"):
        assert int(surgery.effective_count(cut, LAYERS)) == 0


def broken():
    """Masks that keep weights in every layer, where the last layer reads only dead units."""
    tree = dense_masks(np.ones(sum(SIZES)))
    tree["Dense_2"]["kernel"] = tree["Dense_2"]["kernel"].at[:, 1:].set(False)
    tree["Dense_10"]["kernel"] = tree["Dense_10"]["kernel"].at[0].set(False)
    return tree


@pytest.mark.parametrize(
    "use",
    [
        surgery.live,
        surgery.effective_count,
        surgery.effective_density,
        lambda tree, layers: surgery.remove(dense_params(np.random.default_rng(0)), tree, layers),
    ],
    ids=["live", "effective_count", "effective_density", "remove"],
)
def test_a_broken_path_warns_once_with_the_layer_where_it_breaks(use):
    with pytest.warns(UserWarning, match="leave no path .* breaks at 'Dense_10/kernel'") as caught:
        use(broken(), LAYERS)
    assert len(caught) == 1


def test_a_repair_of_a_broken_network_warns_once_where_the_layers_are_known(rng):
    params, tree = dense_params(rng), dense_masks(np.zeros(sum(SIZES)))
    with pytest.warns(UserWarning, match="leave no path .* breaks at 'Dense_1/kernel'") as caught:
        isometry.orthogonalize(params, tree, layers=LAYERS)
    assert len(caught) == 1


@settings(max_examples=10, deadline=None)
@given(bits)
def test_connected_is_whether_anything_is_live_also_under_a_trace(values):
    tree = dense_masks(values)
    flag = jitted_connected(tree)
    assert bool(flag) == any(leaf.any() for leaf in every_path(kernels_of(tree)))


jitted_connected = jax.jit(lambda tree: surgery.connected(tree, LAYERS))


inputs = np.random.default_rng(3).normal(size=(6, 3)).astype(np.float32)


def relu(values):
    return np.maximum(values, 0)


def to_numpy(tree):
    return jax.tree.map(np.asarray, tree)  # every removal compiles for its own shapes


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The masks leave no path")
@settings(max_examples=20, deadline=None)
@given(bits, st.booleans(), st.booleans())
def test_removal_leaves_the_outputs_of_the_masked_network(values, bias, some_zero):
    tree = dense_masks(values)
    params = dense_params(np.random.default_rng(4), bias)
    if bias and some_zero:
        params["Dense_1"]["bias"] = params["Dense_1"]["bias"] * jnp.array([0, 1, 0, 1])
        params["Dense_2"]["bias"] = params["Dense_2"]["bias"] * 0
    small, small_masks = surgery.remove(params, tree, LAYERS)
    masked = apply(to_numpy(masks.apply(params, tree)), inputs, relu)
    np.testing.assert_allclose(apply(to_numpy(small), inputs, relu), masked, rtol=1e-5, atol=1e-5)
    trees.check_matches(small_masks, small)
    assert min(min(shape) for shape in trees.shapes(small)) > 0
    smaller = surgery.live(small_masks, LAYERS)
    assert int(masks.count(smaller)) == int(surgery.effective_count(tree, LAYERS))


@pytest.mark.long
def test_whole_units_go_and_the_shapes_say_so(rng):
    params = dense_params(rng)
    grain = granularity.units(LAYERS)
    scores = jax.tree.map(jnp.abs, trees.select(params))
    kept = grain.expand(masks.top(grain.pool(scores), count=4), scores)
    small, small_masks = surgery.remove(params, kept, LAYERS)
    alive = [int(kernel.any(0).sum()) for kernel in kernels_of(kept)]
    assert [kernel.shape for kernel in kernels_of(small)] == list(
        itertools.pairwise((3, alive[0], alive[1], 2))
    )
    assert all(kernel.all() for kernel in kernels_of(small_masks))
    assert small["Dense_1"]["bias"].shape == (alive[0],)
    np.testing.assert_allclose(
        apply(small, inputs), apply(masks.apply(params, kept), inputs), rtol=1e-5, atol=1e-6
    )


def test_removal_cascades_from_the_output_backward(rng):
    kernels = np.ones(sum(SIZES), bool)
    tree = dense_masks(kernels)
    tree["Dense_10"]["kernel"] = tree["Dense_10"]["kernel"].at[0].set(False)  # second-layer unit 0
    only_to_zero = (
        jnp.ones((4, 3), bool).at[2, 1:].set(False)
    )  # first-layer unit 2 leads only there
    tree["Dense_2"]["kernel"] = only_to_zero
    small, _ = surgery.remove(dense_params(rng), tree, LAYERS)
    assert [kernel.shape for kernel in kernels_of(small)] == [(3, 3), (3, 2), (2, 2)]


def test_constant_units_stay_and_silent_ones_stay_only_when_asked(rng):
    params = dense_params(rng)
    params["Dense_1"]["bias"] = jnp.array([0.0, 1.0, 2.0, 3.0])
    tree = dense_masks(np.ones(sum(SIZES), bool))
    tree["Dense_1"]["kernel"] = tree["Dense_1"]["kernel"].at[:, :2].set(False)
    small, _ = surgery.remove(params, tree, LAYERS)
    np.testing.assert_array_equal(small["Dense_1"]["bias"], [1.0, 2.0, 3.0])
    whole, _ = surgery.remove(params, tree, LAYERS, keep_constant=True)
    assert whole["Dense_1"]["bias"].shape == (4,)
    masked = masks.apply(params, tree)
    np.testing.assert_allclose(
        apply(whole, inputs, jax.nn.sigmoid), apply(masked, inputs, jax.nn.sigmoid), rtol=1e-5
    )
    np.testing.assert_allclose(apply(small, inputs), apply(masked, inputs), rtol=1e-5)


def test_a_network_without_any_path_keeps_one_unit_a_layer_and_its_constant_output(rng):
    params = dense_params(rng)
    with pytest.warns(UserWarning, match="breaks at 'Dense_1/kernel'"):
        small, _ = surgery.remove(params, dense_masks(np.zeros(sum(SIZES))), LAYERS)
    assert [kernel.shape for kernel in kernels_of(small)] == [(3, 1), (1, 1), (1, 2)]
    np.testing.assert_allclose(
        apply(small, inputs), np.stack([params["Dense_10"]["bias"]] * 6), rtol=1e-6
    )


def test_live_and_remove_take_an_nnx_state():
    model = nnx.List([nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))])
    params = nnx.state(model, nnx.Param)
    kept = trees.full_masks(params)
    layers = trees.paths(kept)
    cut = trees.map_prunable(lambda mask: mask.at[:, 0].set(mask.shape[1] == 2), kept)
    assert int(surgery.effective_count(cut, layers)) == 3 * 3 + 3 * 2
    params = jax.tree.map(lambda leaf: leaf + 1.0, params)
    small, small_masks = surgery.remove(params, surgery.live(cut, layers), layers)
    assert trees.shapes(small) == ((3,), (3, 3), (2,), (3, 2))
    assert isinstance(small, type(params))
    trees.check_matches(small_masks, small)


def test_layers_that_do_not_fit_are_named(rng):
    tree = dense_masks(np.ones(sum(SIZES)))
    with pytest.raises(ValueError, match=r"names 'Dense_3/kernel'.* nearest .* 'Dense_"):
        surgery.live(tree, ("Dense_1/kernel", "Dense_3/kernel"))
    with pytest.raises(ValueError, match="leaf at 'Dense_2/kernel' that is not in `layers`"):
        surgery.effective_count(tree, ("Dense_1/kernel", "Dense_10/kernel"))
    with pytest.raises(
        ValueError, match="'Dense_10/kernel' has 3 inputs, and the layer before it has 4"
    ):
        surgery.remove(dense_params(rng), tree, sorted(LAYERS))


def test_what_cannot_be_removed_is_refused_by_name(rng):
    params, tree = dense_params(rng), dense_masks(np.ones(sum(SIZES)))
    with pytest.raises(ValueError, match=r"cannot be traced.*'Dense_1/kernel'"):
        jax.jit(lambda kept: surgery.remove(params, kept, LAYERS))(tree)
    with pytest.raises(ValueError, match="leaf at 'norm/scale' that is neither a kernel"):
        surgery.remove(dict(params, norm={"scale": jnp.ones(4)}), tree, LAYERS)
    with pytest.raises(ValueError, match="`masks` has a leaf at 'Dense_1/kernel' that `params`"):
        surgery.remove({"Dense_2": params["Dense_2"]}, tree, LAYERS)
    wrong = dict(params, Dense_2=dict(params["Dense_2"], bias=jnp.ones(5)))
    with pytest.raises(ValueError, match=r"bias at 'Dense_2/bias' must be \(3,\), got \(5,\)"):
        surgery.remove(wrong, tree, LAYERS)
    conv = {"a": {"kernel": jnp.ones((3, 3, 1, 2))}, "b": {"kernel": jnp.ones((8, 2))}}
    with pytest.raises(ValueError, match=r"dense kernels \[in, out\] only, got .* at 'a/kernel'"):
        surgery.remove(conv, trees.full_masks(conv), ("a/kernel", "b/kernel"))


@pytest.mark.parametrize("measure", [surgery.live, surgery.connected, surgery.effective_density])
def test_scores_in_place_of_masks_are_refused(measure):
    scores = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 2))}}
    with pytest.raises(ValueError, match="`masks` must be bool, got float32 at 'a/kernel'"):
        measure(scores, ("a/kernel", "b/kernel"))
