"""Granules: pooling scores and spreading masks, against loops over filters and units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nopr import criteria, granularity, masks, pruning, trees

LAYERS = ("conv/kernel", "dense_10/kernel", "dense_2/kernel")  # in order; leaves sort 10 before 2
SHAPES = {"conv": (2, 2, 1, 3), "dense_10": (6, 5), "dense_2": (5, 4)}  # a flatten of 2 x 3


def network(rng):
    return {
        name: {"bias": jnp.zeros(shape[-1]), "kernel": jnp.asarray(rng.normal(size=shape))}
        for name, shape in SHAPES.items()
    }


def scores_of(rng):
    return jax.tree.map(jnp.abs, trees.select(network(rng)))


def unit_masks(conv, dense):
    """By hand: channel c of the flattened image is input 3 * position + c."""
    conv, dense = np.asarray(conv, bool), np.asarray(dense, bool)
    first = np.zeros((2, 2, 1, 3), bool)
    first[..., conv] = True
    second = np.zeros((6, 5), bool)
    for position in range(2):
        for channel in range(3):
            second[3 * position + channel] = conv[channel] & dense
    third = np.stack([dense] * 4, axis=1)
    return {"conv/kernel": first, "dense_10/kernel": second, "dense_2/kernel": third}


def test_unstructured_granules_are_the_weights_themselves(rng):
    scores, grain = scores_of(rng), granularity.unstructured()
    assert grain.pool(scores) is scores
    kept = masks.top(scores, count=7)
    assert grain.expand(kept, scores) is kept
    assert sum(granularity.sizes(grain, scores).values()) == 12 + 30 + 20


def test_filter_scores_are_means_over_everything_but_the_output(rng):
    scores = scores_of(rng)
    pooled = granularity.filters(outputs=[]).pool(scores)
    for name in SHAPES:
        kernel = np.asarray(scores[name]["kernel"])
        by_hand = [kernel[..., j].mean() for j in range(kernel.shape[-1])]
        np.testing.assert_allclose(pooled[name]["kernel"], by_hand, rtol=1e-6)
        assert pooled[name]["bias"] is None


def test_filters_are_kept_or_removed_whole_and_other_leaves_stay_whole(rng):
    scores = scores_of(rng)
    grain = granularity.filters(outputs=["dense_2/kernel"], where=lambda path, leaf: leaf.ndim == 4)
    pooled = grain.pool(scores)
    assert trees.paths(pooled) == ("conv/kernel",)
    kept = grain.expand(masks.top(pooled, count=2), scores)
    weakest = int(np.argmin(pooled["conv"]["kernel"]))
    np.testing.assert_array_equal(kept["conv"]["kernel"].all((0, 1, 2)), np.arange(3) != weakest)
    assert int(masks.count(kept)) == 8 + 30 + 20
    assert kept["dense_2"]["bias"] is None


HEADS = {
    "body": {"kernel": (5, 6), "bias": (6,)},
    "heads": {"policy": {"kernel": (6, 3)}, "value": {"kernel": (6, 1)}},
}
POLICY, VALUE = "heads/policy/kernel", "heads/value/kernel"


def two_heads(rng, scale=1.0):
    """Params of a network with two outputs, whose own weights are the smallest of all."""
    params = jax.tree.map(
        lambda shape: rng.normal(size=shape), HEADS, is_leaf=lambda x: isinstance(x, tuple)
    )
    return {**params, "heads": jax.tree.map(lambda leaf: scale * leaf, params["heads"])}


def test_filters_refuse_without_the_outputs():
    with pytest.raises(ValueError, match=r"`outputs` must name .* got None. .*`outputs=\[\]`"):
        granularity.filters()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_outputs_that_are_named_stay_whole_whatever_their_scores(scope, rng, getkey):
    params = two_heads(rng, scale=1e-6)
    grain = granularity.filters(outputs=[POLICY, VALUE])
    prune = pruning.pruner(criteria.magnitude(), density=0.5, scope=scope, granularity=grain)
    kept = trees.by_path(prune(params, None, key=getkey()), "kept")
    assert kept[POLICY].all()
    assert kept[VALUE].all()
    assert kept["body/kernel"].all(axis=0).sum() == 3
    only = granularity.filters(outputs=POLICY)  # the other head is declared not to be an output
    assert granularity.sizes(only, trees.select(params)) == {"body/kernel": 6, VALUE: 1}


def test_an_output_that_is_not_there_is_refused_with_the_nearest_path(rng):
    scores = trees.select(two_heads(rng))
    for wrong in ("heads/polcy/kernel", "policy"):
        with pytest.raises(ValueError, match=rf"names '{wrong}', .* nearest .* '{POLICY}'"):
            granularity.filters(outputs=[VALUE, wrong]).pool(scores)
    with pytest.raises(ValueError, match=f"nearest .* '{VALUE}'"):
        granularity.filters(outputs=["value/kernel"]).expand(scores, scores)


def test_an_output_that_is_not_prunable_anyway_may_be_named(rng):
    scores = trees.select(two_heads(rng), lambda path, leaf: path == "body/kernel")
    assert granularity.sizes(granularity.filters(outputs=[POLICY]), scores) == {"body/kernel": 6}


def test_two_leaves_of_one_path_are_refused():
    scores = {"a/b": jnp.ones((2, 3)), "a": {"b": jnp.ones((3, 2))}}
    with pytest.raises(ValueError, match="two leaves at 'a/b'"):
        granularity.filters(outputs=[]).pool(scores)
    with pytest.raises(ValueError, match="two leaves at 'a/b'"):
        granularity.units(("a/b", "c")).pool(scores)
    with pytest.raises(ValueError, match="two leaves at 'a/b'"):
        granularity.sizes(granularity.unstructured(), scores)


def test_units_never_remove_an_output(rng, getkey):
    params = network(rng)
    params["dense_2"]["kernel"] = 1e-9 * params["dense_2"]["kernel"].at[:, 1:].set(0)
    prune = pruning.pruner(
        criteria.magnitude(),
        density=0.4,
        scope="layer",
        granularity=granularity.units(LAYERS),
    )
    last = prune(params, None, key=getkey())["dense_2"]["kernel"]
    hidden = np.asarray(last.any(axis=1))
    assert hidden.sum() == 2
    np.testing.assert_array_equal(last, np.stack([hidden] * 4, axis=1))


def test_units_pool_the_incoming_weights_of_all_but_the_last_layer(rng):
    scores = scores_of(rng)
    grain = granularity.units(LAYERS)
    pooled = grain.pool(scores)
    assert pooled["dense_2"]["kernel"] is None
    assert granularity.sizes(grain, scores) == {"conv/kernel": 3, "dense_10/kernel": 5}
    np.testing.assert_allclose(
        pooled["dense_10"]["kernel"], np.mean(scores["dense_10"]["kernel"], axis=0), rtol=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=8, max_size=8))
def test_unit_masks_remove_a_unit_with_all_that_the_next_layer_reads_from_it(kept):
    like = scores_of(np.random.default_rng(1))
    granules = jax.tree.map(lambda _: None, like)
    granules["conv"]["kernel"], granules["dense_10"]["kernel"] = (
        np.array(kept[:3]),
        np.array(kept[3:]),
    )
    found = granularity.units(LAYERS).expand(granules, like)
    expected = unit_masks(kept[:3], kept[3:])
    assert trees.paths(found) == ("conv/kernel", "dense_10/kernel", "dense_2/kernel")
    for path, mask in zip(trees.paths(found), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(mask, expected[path])


def test_pooled_masks_show_which_granules_are_alive():
    grain = granularity.units(LAYERS)
    like = scores_of(np.random.default_rng(1))
    granules = jax.tree.map(lambda leaf: jnp.arange(leaf.size) % 2 == 0, grain.pool(like))
    shares = grain.pool(grain.expand(granules, like))
    jax.tree.map(
        lambda share, kept: np.testing.assert_array_equal(share > 0, kept), shares, granules
    )


def test_units_jit_and_vmap_like_a_loop(rng):
    grain = granularity.units(LAYERS)
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf, leaf**2]), scores_of(rng))

    def prune(scores):
        return grain.expand(masks.top(grain.pool(scores), count=6), scores)

    together = jax.jit(jax.vmap(prune))(stack)
    for case in range(3):
        alone = prune(jax.tree.map(lambda leaf, i=case: leaf[i], stack))
        found = jax.tree.map(lambda leaf, i=case: leaf[i], together)
        jax.tree.map(np.testing.assert_array_equal, found, alone)


def test_filters_and_units_take_an_nnx_state():
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    scores = jax.tree.map(jnp.abs, trees.select(state))
    (path,) = trees.paths(scores)
    grain = granularity.filters(outputs=[])
    kept = grain.expand(masks.top(grain.pool(scores), count=1), scores)
    assert jax.tree.structure(kept) == jax.tree.structure(scores)
    assert int(masks.count(kept)) == 3

    model = nnx.List([nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))])
    scores = trees.select(nnx.state(model, nnx.Param))
    grain = granularity.units(trees.paths(scores))
    kept = grain.expand(masks.top(grain.pool(scores), count=1), scores)
    assert int(masks.count(kept)) == 3 + 2
    assert path


def test_layers_that_do_not_fit_the_tree_are_named(rng):
    scores = scores_of(rng)

    def pool(*layers):
        return granularity.units(layers).pool(scores)

    with pytest.raises(ValueError, match="must name at least two kernels, got"):
        pool("conv/kernel")
    with pytest.raises(ValueError, match=r"names 'conv/kernal'.* nearest .* 'conv/kernel'"):
        pool("conv/kernal", "dense_10/kernel")
    with pytest.raises(ValueError, match="has a leaf at 'dense_2/kernel' that is not in `layers`"):
        pool("conv/kernel", "dense_10/kernel")
    with pytest.raises(ValueError, match="each kernel once"):
        pool("conv/kernel", "conv/kernel")
    with pytest.raises(
        ValueError, match="'dense_2/kernel' has 5 inputs, and the layer before it has 3 out"
    ):
        pool("conv/kernel", "dense_2/kernel", "dense_10/kernel")
    dense = {"a": jnp.ones((2, 3)), "b": jnp.ones((6, 2))}
    with pytest.raises(ValueError, match="'b' has 6 inputs"):
        granularity.units(("a", "b")).pool(dense)  # only a convolution is flattened
    with pytest.raises(ValueError, match=r"kernel \[in, out\] or .*, got \(3,\) at 'b'"):
        granularity.units(("a", "b")).pool({"a": jnp.ones((2, 3)), "b": jnp.ones(3)})


def test_granule_masks_of_another_shape_are_named(rng):
    scores = scores_of(rng)
    grain = granularity.units(LAYERS)
    wrong = jax.tree.map(lambda leaf: jnp.ones(2, bool), grain.pool(scores))
    kept = jax.tree.map(lambda leaf: leaf > 0, grain.pool(scores))
    with pytest.raises(ValueError, match=r"shape \(3,\) at 'conv/kernel', .* got shape \(2,\)"):
        grain.expand(wrong, scores)
    with pytest.raises(ValueError, match=r"at 'dense_2/kernel', one entry per filter, got none"):
        granularity.filters(outputs=[]).expand(kept, scores)
    with pytest.raises(ValueError, match="`granule_masks` has shape"):
        granularity.unstructured().expand(kept, scores)


@pytest.mark.parametrize("layers", [None, 3, "conv/kernel", [1, 2], (None, None)])
def test_layers_that_are_no_sequence_of_paths_are_refused(layers, unchecked):
    with pytest.raises(ValueError, match="`layers` must be a sequence of paths, got"):
        granularity.units(layers)
    with pytest.raises(ValueError, match="`outputs` must be a sequence of paths, got 3"):
        granularity.filters(outputs=3)


def test_a_chain_of_no_layers_is_refused(rng):
    with pytest.raises(ValueError, match="`layers` must name at least one kernel"):
        granularity.chain(scores_of(rng), ())


def test_sizes_of_what_is_no_granularity_are_refused(rng, unchecked):
    with pytest.raises(ValueError, match="`granularity` must be a Granularity, got 'filters'"):
        granularity.sizes("filters", scores_of(rng))


def test_granule_masks_that_are_scores_are_refused(rng):
    grain = granularity.units(LAYERS)
    with pytest.raises(ValueError, match="`granule_masks` must be bool, got float32 at"):
        grain.expand(grain.pool(scores_of(rng)), scores_of(rng))


def test_filters_of_what_is_no_array_are_refused(unchecked):
    with pytest.raises(ValueError, match="`scores` must hold arrays, got a float at 'w/0'"):
        granularity.filters(outputs=[]).pool({"w": [0.5]})
