"""Granularities on dense, grouped, depthwise, attention and embedding kernels, against loops."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nopr import criteria, granularity, masks, pruning, schedules, trees


class Net(nn.Module):
    @nn.compact
    def __call__(self, tokens, images):
        values = nn.Embed(8, 8, name="embed")(tokens)
        attended = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(values)
        values = nn.Conv(8, (2, 2), name="conv")(images)
        values = nn.Conv(8, (2, 2), feature_group_count=2, name="grouped")(values)
        values = nn.Conv(16, (2, 2), feature_group_count=8, name="depthwise")(values)
        return nn.Dense(4, name="head")(values.mean(axis=(1, 2))), attended


TOKENS, IMAGES = jnp.zeros((1, 3), int), jnp.zeros((1, 4, 4, 4))
SHAPES = jax.eval_shape(Net().init, jax.random.key(0), TOKENS, IMAGES)["params"]
LIKE = trees.by_path(trees.select(SHAPES), "like")
PATHS = tuple(LIKE)
INWARD = [f"attention/{part}/kernel" for part in ("query", "key", "value")]
OUTWARD, HEAD = "attention/out/kernel", "head/kernel"
GROUPS = {"grouped/kernel": 2, "depthwise/kernel": 8}


def spared(*names):
    """A `where` that leaves out kernels by name."""
    return lambda path, leaf: path.split("/")[-2] not in names


def axes(inward, outward):
    return {**dict.fromkeys(INWARD, inward), OUTWARD: outward}


def filter_of(path):
    return (lambda index: index[1:]) if path in INWARD else (lambda index: index[-1])


def head_of(path):
    return lambda index: index[0 if path == OUTWARD else 1]


def channel_of(path):
    if path in INWARD:
        return lambda index: index[0]
    if path == OUTWARD:
        return lambda index: index[:2]
    per_group = {"grouped/kernel": 4, "depthwise/kernel": 2}.get(path, 10**6)
    return lambda index: (index[-1] // per_group, index[-2])


def row_of(path):
    return (lambda index: index[0]) if path in INWARD else (lambda index: index[:-1])


def block_of(path):
    if path in INWARD:
        return lambda index: (index[0] // 4, index[1], index[2] // 2)
    return lambda index: (*index[:-2], index[-2] // 4, index[-1] // 2)


CASES = {
    "unstructured": (granularity.unstructured(), lambda path: lambda index: index),
    "filters": (granularity.filters(outputs=[HEAD], axes=axes((1, 2), -1)), filter_of),
    "heads": (
        granularity.filters(outputs=[], where=lambda path, leaf: "query" in path, axes=axes(1, -1)),
        head_of,
    ),
    "channels": (granularity.channels(axes=axes(0, (0, 1)), groups=GROUPS), channel_of),
    "rows": (granularity.rows(axes=axes((1, 2), -1)), row_of),
    "blocks": (
        granularity.blocks((4, 2), axes=axes((0, 2), (1, 2)), where=spared("depthwise")),
        block_of,
    ),
}
BY_COUNT = pytest.mark.parametrize(("grain", "key_of"), CASES.values(), ids=CASES)


def params_of(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), SHAPES)


def scores_of(seed):
    return jax.tree.map(np.abs, trees.select(params_of(seed)))


def labels_of(grain, key_of):
    """By path, the number of the granule of each weight, for the leaves that are pruned."""
    pooled = trees.paths(jax.eval_shape(grain.pool, scores_of(0)))
    return {path: oracles.granules(LIKE[path].shape, key_of(path)) for path in pooled}


def alive_in(kept, labels):
    """The number of granules with a kept weight."""
    found = trees.by_path(kept, "kept")
    return sum(len(np.unique(one[np.asarray(found[path])])) for path, one in labels.items())


@BY_COUNT
def test_granules_are_pooled_to_means_in_the_order_of_their_places(grain, key_of):
    scores = trees.by_path(scores_of(1), "scores")
    pooled = trees.by_path(grain.pool(scores_of(1)), "pooled")
    labels = labels_of(grain, key_of)
    assert granularity.sizes(grain, scores_of(1)) == {p: one.max() + 1 for p, one in labels.items()}
    for path, one in labels.items():
        by_hand = [scores[path][one == number].mean() for number in range(one.max() + 1)]
        np.testing.assert_allclose(np.ravel(pooled[path]), by_hand, rtol=1e-5)


@BY_COUNT
def test_granules_are_kept_or_removed_whole_and_the_other_leaves_stay(grain, key_of):
    like = scores_of(1)
    chosen = jax.tree.map(lambda leaf: leaf > jnp.median(leaf), grain.pool(like))
    kept = trees.by_path(grain.expand(chosen, like), "kept")
    flags, labels = trees.by_path(chosen, "chosen"), labels_of(grain, key_of)
    for path in PATHS:
        expected = np.ones(LIKE[path].shape, bool)
        if path in labels:
            expected = np.ravel(flags[path])[labels[path]]
        np.testing.assert_array_equal(kept[path], expected)
    shares = grain.pool(grain.expand(chosen, like))
    jax.tree.map(np.testing.assert_array_equal, shares, chosen)


@BY_COUNT
def test_a_pruner_keeps_exact_counts_over_rounds_and_maps_over_params_like_a_loop(grain, key_of):
    prune = pruning.pruner(
        criteria.magnitude(), density=0.3, granularity=grain, schedule=schedules.linear, rounds=2
    )
    run = jax.jit(lambda params, alive: prune(params, None, masks=alive, key=jax.random.key(0)))
    labels = labels_of(grain, key_of)
    total = sum(one.max() + 1 for one in labels.values())
    rng = np.random.default_rng(5)
    cases = []
    for seed in range(2):
        alive = jax.tree.map(lambda leaf: rng.random(leaf.shape) < 0.9, trees.select(SHAPES))
        kept = run(params_of(seed), alive)
        assert alive_in(kept, labels) == round(0.3 * total)
        assert all(jax.tree.leaves(jax.tree.map(lambda k, a: np.all(a >= k), kept, alive)))
        cases.append((params_of(seed), alive, kept))
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    together = jax.jit(jax.vmap(run))(*stack[:2])
    jax.tree.map(np.testing.assert_array_equal, together, stack[2])


def test_the_scores_of_dead_weights_have_no_say_in_their_granule(getkey):
    def criterion(params, batch, *, masks=None, key):
        return {"w": jnp.array([[0.0, 1.0, 2.0], [1.0, 2.0, 2.0]]).at[0, 0].set(batch)}

    prune = pruning.pruner(criterion, density=2 / 3, granularity=granularity.filters(outputs=[]))
    alive = {"w": np.array([[False, True, True], [True, True, True]])}
    for value in (1e9, -1e9, np.nan):
        kept = prune({"w": np.ones((2, 3))}, value, masks=alive, key=getkey())
        np.testing.assert_array_equal(kept["w"].any(axis=0), [False, True, True])


def test_a_granule_that_is_dead_is_not_chosen_and_one_that_is_not_keeps_what_is_alive(getkey):
    alive = {"w": np.array([[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1]], bool)}
    prune = pruning.pruner(criteria.random(), density=2 / 3, granularity=granularity.rows())
    kept = prune({"w": np.ones((3, 4))}, None, masks=alive, key=getkey())["w"]
    rows = np.asarray(kept.any(axis=1))
    assert rows.sum() == 2
    np.testing.assert_array_equal(kept[rows], alive["w"][rows])
    prune = pruning.pruner(
        criteria.random(), density=3 / 4, granularity=granularity.filters(outputs=[])
    )
    kept = prune({"w": np.ones((3, 4))}, None, masks=alive, key=getkey())["w"]
    np.testing.assert_array_equal(kept, alive["w"])


# --- N:M -----------------------------------------------------------------------------------------

TWO_OF_FOUR = granularity.n_of_m(2, 4, axis=axes(0, 1), where=spared("depthwise"))


def in_groups(path, leaf):
    """The groups of 4 inputs of a kernel, [groups, 4]."""
    place = {**dict.fromkeys(INWARD, 0), OUTWARD: 1}.get(path, leaf.ndim - 2)
    return np.moveaxis(np.asarray(leaf), place, -1).reshape(-1, 4)


def test_two_of_four_keeps_two_of_each_group_in_every_kernel_and_maps_like_a_loop():
    prune = pruning.pruner(criteria.magnitude(), granularity=TWO_OF_FOUR)
    run = jax.jit(lambda params: prune(params, None, key=jax.random.key(0)))
    alone = [run(params_of(seed)) for seed in range(2)]
    for seed, kept in enumerate(alone):
        scores = trees.by_path(scores_of(seed), "scores")
        for path, mask in trees.by_path(kept, "kept").items():
            if path == "depthwise/kernel":
                assert mask.all()
                continue
            expected = oracles.n_of_m(in_groups(path, scores[path]).ravel(), 2, 4)
            np.testing.assert_array_equal(in_groups(path, mask).ravel(), expected)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(params_of, range(2)))
    together = jax.jit(jax.vmap(run))(stack)
    jax.tree.map(lambda t, *a: np.testing.assert_array_equal(t, a), together, *alone)


def test_rounds_of_n_of_m_fall_to_n_and_only_remove(rng, getkey):
    params, seen = {"w": rng.normal(size=(16, 3))}, []

    def watching(params, batch, *, masks=None, key):
        jax.debug.callback(
            lambda *leaves: seen.extend(map(np.array, leaves)),
            *jax.tree.leaves(masks),
            ordered=True,
        )
        return criteria.random()(params, batch, masks=masks, key=key)

    prune = pruning.pruner(
        watching, granularity=granularity.n_of_m(1, 8), schedule=schedules.linear, rounds=4
    )
    kept = prune(params, None, key=getkey())["w"]
    jax.effects_barrier()
    path = [*seen, np.array(kept)]
    for mask, count in zip(path, (8, 6, 4, 3, 1), strict=True):  # 8 (1 - 7 t / 32), half to even
        assert np.all(mask.reshape(2, 8, 3).sum(axis=1) == count)
    assert all(np.all(before >= after) for before, after in itertools.pairwise(path))


def test_a_group_with_fewer_weights_alive_keeps_all_of_these(getkey):
    alive = {"w": np.array([[1, 0, 0, 0, 0, 1, 1, 1]], bool).T}
    below_zero = criteria.from_weights(lambda w: w - 9)  # where dead weights have 0, or -9
    prune = pruning.pruner(below_zero, granularity=granularity.n_of_m(2, 4))
    kept = prune({"w": np.ones((8, 1))}, None, masks=alive, key=getkey())["w"][:, 0]
    np.testing.assert_array_equal(kept[:4], [True, False, False, False])
    assert not kept[4]
    assert kept[5:].sum() == 2


@settings(max_examples=50)
@given(
    scores=st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1.0, 1e-40]), min_size=12, max_size=12),
    alive=st.lists(st.booleans(), min_size=12, max_size=12),
    n=st.integers(1, 4),
)
def test_n_of_m_agrees_with_its_slow_twin_where_scores_tie(scores, alive, n):
    scores, alive = np.array(scores, np.float32), np.array(alive)
    tree = {"a": {"b": None, "w": scores.reshape(2, 6)[:, :4]}, "v": scores.reshape(3, 4)}
    living = {"a": {"b": None, "w": alive.reshape(2, 6)[:, :4]}, "v": alive.reshape(3, 4)}
    for there in (None, living):
        kept = masks.n_of_m(tree, n=n, m=4, axis=-1, masks=there)
        expected = oracles.n_of_m(scores, n, 4, None if there is None else alive)
        np.testing.assert_array_equal(np.ravel(kept["v"]), expected)
        assert kept["a"]["b"] is None
    turned, turned_living = (jax.tree.map(np.transpose, each) for each in (tree, living))
    columns = masks.n_of_m(turned, n=n, m=4, axis=0, masks=turned_living)
    rows = masks.n_of_m(tree, n=n, m=4, axis=1, masks=living)
    jax.tree.map(lambda one, two: np.testing.assert_array_equal(one.T, two), columns, rows)


def test_n_may_be_traced_and_scores_may_be_double(rng):
    scores = {"w": 1 + rng.normal(size=(8, 3)) * 1e-12}  # equal in single precision
    expected = [oracles.n_of_m(column, 3, 4) for column in scores["w"].T]
    np.testing.assert_array_equal(masks.n_of_m(scores, n=3, m=4)["w"].T, expected)
    single = {"w": scores["w"].astype(np.float32)}
    traced = jax.jit(lambda n: masks.n_of_m(single, n=n, m=4))
    for n in (-1, 0, 3, 4, 7):
        kept = traced(n)["w"].reshape(2, 4, 3).sum(axis=1)
        assert np.all(kept == min(max(n, 0), 4))


def test_scores_of_n_of_m_that_are_not_finite_are_refused(rng):
    for value in (np.nan, np.inf):
        scores = {"a": rng.normal(size=(4, 2)), "w": rng.normal(size=(4, 2))}
        scores["w"][2, 1] = value
        with pytest.raises(ValueError, match="`scores` has NaN or infinite values at 'w'"):
            masks.n_of_m(scores, n=2, m=4)
        dead = {"a": np.ones((4, 2), bool), "w": np.isfinite(scores["w"])}
        assert masks.count(masks.n_of_m(scores, n=2, m=4, masks=dead)) == 8


# --- What does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "match"),
    [
        (0, 4, "`n` must be a whole number of at least 1, got 0"),
        (5, 4, "`n` must be a whole number of at most 4, got 5"),
        (2.0, 4, r"`n` must be a whole number of at least 1, got 2\.0"),
        (1, 0, "`m` must be a whole number of at least 1, got 0"),
        (1, "4", "`m` must be a whole number of at least 1, got '4'"),
    ],
)
def test_n_and_m_out_of_range_are_refused(n, m, match, unchecked):
    with pytest.raises(ValueError, match=match):
        granularity.n_of_m(n, m)
    with pytest.raises(ValueError, match=match):
        masks.n_of_m({"w": np.ones((4, 2))}, n=n, m=m)


def test_n_of_m_that_does_not_divide_is_refused_by_path():
    scores = {"conv": np.ones((3, 3, 8, 4)), "depthwise": np.ones((3, 3, 1, 8))}
    match = r"`m` must divide axis 2 of the kernel \(3, 3, 1, 8\) at 'depthwise', got 4\. Choose"
    with pytest.raises(ValueError, match=match):
        granularity.n_of_m(2, 4).pool(scores)
    with pytest.raises(ValueError, match=r"axis 0 of the kernel \(3, 3, 8, 4\) at 'conv', got 4"):
        granularity.n_of_m(2, 4, axis={"conv": 0}).pool(scores)
    match = r"`m` must divide axis -2 of the scores at 'depthwise', of shape \(3, 3, 1, 8\), got 4"
    with pytest.raises(ValueError, match=match):
        masks.n_of_m(scores, n=2, m=4)
    with pytest.raises(ValueError, match=r"axis 1 of the scores at 'b', of shape \(4,\), got 4"):
        masks.n_of_m({"b": np.ones(4)}, n=2, m=4, axis=1)


@pytest.mark.parametrize("given", [{"density": 0.5}, {"distribution": lambda s, *, density: s}])
def test_what_n_of_m_settles_is_refused_when_the_pruner_is_made(given):
    with pytest.raises(ValueError, match=r"` must be None with granularity 2:4, .* Leave it out"):
        pruning.pruner(criteria.random(), granularity=granularity.n_of_m(2, 4), **given)


def test_a_count_is_refused_with_n_of_m(getkey):
    prune = pruning.pruner(criteria.random(), granularity=granularity.n_of_m(2, 4))
    with pytest.raises(ValueError, match=r"`count` must be None with granularity 2:4, .* got 8"):
        prune({"w": np.ones((4, 4))}, None, count=8, key=getkey())


KERNEL = {"w": np.ones((6, 8))}
CONV_1D = {"w": np.ones((3, 6, 8))}


@pytest.mark.parametrize(
    ("grain", "scores", "match"),
    [
        (
            granularity.filters(outputs=[]),
            CONV_1D,
            r"`axes` must be given for 'w': .* number its o",
        ),
        (granularity.channels(), CONV_1D, r"`axes` must be given for 'w': .* \(3, 6, 8\), may be"),
        (granularity.rows(), CONV_1D, r"Pass `axes=\{'w': \.\.\.\}`, the axes that number its out"),
        (
            granularity.blocks((2, 2)),
            CONV_1D,
            "`axes` must be given for 'w': .* axes that are tiled",
        ),
        (granularity.n_of_m(2, 3), CONV_1D, "`axis` must be given for 'w': .* along which groups"),
        (granularity.rows(axes=2), KERNEL, r"axes of the leaf at 'w', of shape \(6, 8\), got 2"),
        (granularity.rows(axes=(1, -1)), KERNEL, r"of the leaf at 'w', .* got \(1, -1\)\. Give"),
        (granularity.rows(axes={"v": 1}), KERNEL, "`axes` names 'v', .* nearest .* is 'w'"),
        (granularity.rows(), {"w": np.ones(6)}, r"two or more dimensions, got shape \(6,\) at 'w'"),
        (granularity.channels(), {"w": np.ones(6)}, r"axes of the leaf at 'w', .* got -2"),
        (
            granularity.channels(),
            {"w": np.ones((3, 3, 1, 8))},
            r"two or more inputs, .* at 'w'\. If",
        ),
        (granularity.channels(groups={"w": 3}), KERNEL, r"divide the outputs .* at 'w', got 3"),
        (granularity.channels(groups={"w": 2}, axes=-1), KERNEL, "divide the outputs .* got 2"),
        (granularity.channels(groups={"v": 2}), KERNEL, "`groups` names 'v', .* nearest .* is 'w'"),
        (
            granularity.blocks((4, 2)),
            KERNEL,
            r"`shape` must divide the kernel \(6, 8\) at 'w' along",
        ),
        (granularity.blocks((2, 2), axes=(1,)), KERNEL, "`axes` must be two axes at 'w', got 1"),
        (
            granularity.n_of_m(1, 2, axis={"w": (0, 1)}),
            KERNEL,
            "`axis` must be one axis at 'w', got 2",
        ),
        (granularity.n_of_m(1, 2, axis={"v": 1}), KERNEL, "`axis` names 'v', .* nearest .* is 'w'"),
    ],
)
def test_a_leaf_that_does_not_fit_is_refused_by_path(grain, scores, match):
    with pytest.raises(ValueError, match=match):
        grain.pool(scores)
    with pytest.raises(ValueError, match=match):
        grain.expand(jax.tree.map(lambda leaf: leaf > 0, scores), scores)


@pytest.mark.parametrize("axes", ["in", (), {"w": "in"}, {"w": None}, {3: 1}, True, 0.5])
def test_axes_that_are_no_whole_numbers_are_refused_at_once(axes, unchecked):
    makers = (granularity.rows, granularity.channels)
    for make in (*makers, lambda axes: granularity.blocks((1, 1), axes=axes)):
        with pytest.raises(ValueError, match=r"`axes` must be whole numbers, or \{path: whole num"):
            make(axes=axes)
    with pytest.raises(ValueError, match="`axis` must be whole numbers, or"):
        granularity.n_of_m(2, 4, axis=axes)
    with pytest.raises(ValueError, match="`axis` must be a whole number, got"):
        masks.n_of_m({"w": np.ones((4, 4))}, n=2, m=4, axis=axes)


@pytest.mark.parametrize("shape", [4, (4,), (4, 4, 4), "44", None])
def test_a_block_of_another_form_is_refused(shape, unchecked):
    with pytest.raises(ValueError, match="`shape` must be the height and width of a block, got"):
        granularity.blocks(shape)


@pytest.mark.parametrize("shape", [(0, 4), (4, 2.5), (True, 4)])
def test_a_block_without_whole_sides_is_refused(shape, unchecked):
    with pytest.raises(ValueError, match="`shape` must be a whole number of at least 1, got"):
        granularity.blocks(shape)


@pytest.mark.parametrize("groups", [2, [2], {"w": 0}, {"w": 1.5}])
def test_groups_that_are_no_numbers_by_path_are_refused(groups, unchecked):
    with pytest.raises(ValueError, match="`groups` must be"):
        granularity.channels(groups=groups)


def test_granule_masks_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"shape \(6,\) at 'w', one entry per row, got shape \(3,"):
        granularity.rows().expand({"w": np.ones(3, bool)}, KERNEL)


def test_leaves_that_are_left_out_need_not_fit():
    grain = granularity.n_of_m(2, 3, where=lambda path, leaf: path != "v")
    like = {"v": np.ones((7, 7, 7)), "w": np.ones((6, 8))}
    kept = grain.expand(jax.tree.map(lambda leaf: leaf > 0, grain.pool(like)), like)
    assert masks.count(kept) == 7**3 + 48
    assert granularity.sizes(grain, like) == {"w": 48}
