import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from nopr import criteria, densities, granularity, masks, pruning, schedules, trees

LAYERS = ("layer_0/kernel", "layer_1/kernel", "layer_2/kernel")


def net(rng, widths=(6, 20, 10, 4)):
    return {
        f"layer_{i}": {
            "kernel": rng.normal(size=(a, b)).astype(np.float32),
            "bias": np.zeros(b, np.float32),
        }
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    }


def counts(kept):
    return [int(layer.kept) for layer in masks.by_layer(kept).values()]


@pytest.mark.long
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_prune_keeps_exactly_the_requested_count(density, scope, rng, getkey):
    prune = pruning.pruner(criteria.magnitude(), density=density, scope=scope)
    kept = prune(net(rng), None, key=getkey())
    assert int(masks.count(kept)) == round(density * masks.size(kept))


def test_a_distribution_sets_the_count_of_each_layer(rng, getkey):
    prune = pruning.pruner(criteria.random(), density=0.1, distribution=densities.erk)
    kept = prune(net(rng), None, key=getkey())
    shapes = trees.shapes(kept)
    assert tuple(counts(kept)) == densities.erk(shapes, density=0.1)


def test_layer_scope_is_the_uniform_distribution(rng, getkey):
    key, params = getkey(), net(rng)
    by_scope = pruning.pruner(criteria.magnitude(), density=0.13, scope="layer")
    by_rule = pruning.pruner(criteria.magnitude(), density=0.13, distribution=densities.uniform)
    jax.tree.map(
        np.testing.assert_array_equal,
        by_scope(params, None, key=key),
        by_rule(params, None, key=key),
    )


@pytest.mark.parametrize("options", [{"distribution": densities.erk}, {"density": [0.1, 0.2, 1.0]}])
def test_one_count_for_all_layers_does_not_pass_by_what_each_should_keep(options, rng, getkey):
    key, params = getkey(), net(rng)
    prune = pruning.pruner(criteria.magnitude(), **{"density": 0.1, **options})
    with pytest.raises(ValueError, match=r"one number per layer .*, got 50\. `densities.counts`"):
        prune(params, None, count=50, key=key)
    assert counts(prune(params, None, count=[[30, 20, 5]], key=key)) == [30, 20, 5]


@pytest.mark.long
def test_rounds_fall_exponentially_by_default_and_one_round_keeps_the_density(rng, getkey):
    key, params, criterion = getkey(), net(rng), criteria.lamp()
    by_default, named = (
        pruning.pruner(criterion, density=0.1, rounds=4, **options)(params, None, key=key)
        for options in ({}, {"schedule": schedules.exponential})
    )
    jax.tree.map(np.testing.assert_array_equal, by_default, named)
    assert int(masks.count(pruning.pruner(criterion, density=0.1)(params, None, key=key))) == 36


def test_a_schedule_is_given_as_its_constructor():
    made = schedules.exponential(density=0.1, steps=3)
    with pytest.raises(ValueError, match=r"`schedule` must take .*Give the constructor"):
        pruning.pruner(criteria.magnitude(), density=0.1, schedule=made)


@pytest.mark.usefixtures("unchecked")
def test_where_is_a_function_of_path_and_leaf(rng):
    for where in ("kernel", lambda path: True):
        with pytest.raises(ValueError, match=r"`where` must .*\(path, leaf\)"):
            criteria.magnitude(where=where)(net(rng), None)


@pytest.mark.parametrize("distribution", [None, densities.erk])
def test_rounds_only_ever_remove_and_end_where_the_schedule_ends(distribution, rng, getkey):
    params, seen = net(rng), []

    def watching(params, batch, *, masks=None, key):
        jax.debug.callback(
            lambda *leaves: seen.append([np.array(x) for x in leaves]),
            *jax.tree.leaves(masks),
            ordered=True,
        )
        return criteria.random()(params, batch, masks=masks, key=key)

    prune = pruning.pruner(
        watching, density=0.1, schedule=schedules.exponential, rounds=4, distribution=distribution
    )
    kept = prune(params, None, key=getkey())
    jax.effects_barrier()
    path = [*seen, [np.array(leaf) for leaf in jax.tree.leaves(kept)]]
    totals = [sum(int(leaf.sum()) for leaf in leaves) for leaves in path]
    n = masks.size(kept)
    assert totals == [round(n * 0.1 ** (t / 4)) for t in range(5)]
    for before, after in itertools.pairwise(path):
        assert all((b >= a).all() for b, a in zip(before, after, strict=True))


@pytest.mark.long
def test_each_round_scores_the_network_that_the_round_before_left(rng, getkey):
    """SynFlow, three rounds in the scan against three calls by hand."""
    params = net(rng)
    score = criteria.synflow(forward, input_shape=(6,))
    plan = [200, 100, 50]
    prune = pruning.pruner(score, rounds=3)
    together = prune(params, None, count=np.array(plan), key=getkey())
    kept = trees.full_masks(params)
    for count in plan:
        scores = score(masks.apply(params, kept), None, key=None)
        kept = masks.top(scores, count=count, masks=kept)
    jax.tree.map(np.testing.assert_array_equal, together, kept)


def forward(params, inputs):
    for i in range(3):
        inputs = jax.nn.relu(inputs @ params[f"layer_{i}"]["kernel"])
    return inputs


def test_a_removed_weight_returns_with_regrow_and_only_then(getkey):
    """Without d, a and c lose their effect, and d becomes worth more than both."""

    def loss(params, batch):
        (a, b), (c, d) = params["w"]
        return 4 * a * d + 2 * c * d + 3 * b - 5 * d

    def kept(**options):
        prune = pruning.pruner(criteria.force(loss), rounds=2, **options)
        return np.asarray(prune({"w": jnp.ones((2, 2))}, None, count=[3, 2], key=getkey())["w"])

    np.testing.assert_array_equal(kept(regrow=True), [[0, 1], [0, 1]])
    np.testing.assert_array_equal(kept(), [[1, 1], [0, 0]])


PLAN = [24, 15, 9, 5]


def small(rng):
    """Params of 32 weights, and a batch; in double precision, as their twin."""
    params = jax.tree.map(np.float64, net(rng, widths=(5, 4, 3)))
    return params, (rng.normal(size=(6, 5)), rng.normal(size=(6, 3)))


def small_loss(params, batch):
    hidden = jnp.tanh(jnp.dot(batch[0], params["layer_0"]["kernel"]))
    return jnp.mean((jnp.dot(hidden, params["layer_1"]["kernel"]) - batch[1]) ** 2)


def every_round(pruner_of, params, batch, key, **options):
    """The masks after each round, as those of pruners with fewer rounds."""
    for rounds in range(1, len(PLAN) + 1):
        kept = pruner_of(rounds)(params, batch, count=PLAN[:rounds], key=key, **options)
        yield np.asarray(trees.ravel(kept)[0])


@pytest.mark.long
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("make", "regrow"), [(criteria.force, True), (criteria.snip, False)])
def test_rounds_are_force_with_regrow_and_iterative_snip_without(make, regrow, rng, getkey):
    params, batch = small(rng)
    weights, unravel = trees.ravel(trees.select(params))

    def gradient(vector):
        def of(vector):
            return float(small_loss(unravel(jnp.asarray(vector)), batch))

        return oracles.central_difference(of, vector)

    def pruner_of(rounds):
        return pruning.pruner(make(small_loss), rounds=rounds, regrow=regrow)

    expected = oracles.rounds(np.asarray(weights), gradient, PLAN, regrow=regrow)
    found = list(every_round(pruner_of, params, batch, getkey()))
    np.testing.assert_array_equal(found, expected)
    assert [kept.sum() for kept in found] == PLAN
    returned = [(later & ~now).any() for now, later in itertools.pairwise(found)]
    assert any(returned) == regrow


@pytest.mark.long
def test_regrow_chooses_among_the_masks_that_are_given(rng, getkey):
    params, batch = jax.tree.map(np.float32, small(rng))
    alive = jax.tree.map(lambda w: rng.random(w.shape) < 0.8, trees.select(params))

    def pruner_of(rounds):
        return pruning.pruner(criteria.force(small_loss), rounds=rounds, regrow=True)

    found = list(every_round(pruner_of, params, batch, getkey(), masks=alive))
    assert [kept.sum() for kept in found] == PLAN
    assert all((kept <= trees.ravel(alive)[0]).all() for kept in found)
    assert any((later & ~now).any() for now, later in itertools.pairwise(found))


@pytest.mark.long
def test_regrow_works_under_jit_and_vmap_and_at_several_levels(rng, getkey):
    many = jax.tree.map(lambda *x: np.float32(x), *(small(rng) for _ in range(3)))
    prune = pruning.pruner(criteria.force(small_loss), rounds=4, regrow=True, scope="layer")
    levels, key = [PLAN, [28, 20, 12, 8]], getkey()
    together = jax.jit(jax.vmap(lambda p, b: pruning.levels(prune, levels)(p, b, key=key)))(*many)
    for i, j in itertools.product(range(3), range(2)):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], many)
        expected = prune(*one, count=levels[j], key=key)
        found = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], together)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_regrow_returns_whole_filters(rng, getkey):
    params, batch = jax.tree.map(np.float32, small(rng))
    grain = granularity.filters(outputs=[])
    options = {"rounds": 3, "regrow": True, "granularity": grain}
    prune = pruning.pruner(criteria.force(small_loss), **options)
    kept = jax.tree.leaves(prune(params, batch, count=[6, 5, 4], key=getkey()))
    assert all((leaf.all(axis=0) == leaf.any(axis=0)).all() for leaf in kept)
    assert sum(int(leaf[0].sum()) for leaf in kept) == 4


def test_nothing_returns_by_a_criterion_that_scores_removed_weights_as_0(rng, getkey):
    params, batch = jax.tree.map(np.float32, small(rng))
    pair = (
        pruning.pruner(criteria.snip(small_loss), rounds=4, regrow=regrow)
        for regrow in (False, True)
    )
    key = getkey()
    kept = (prune(params, batch, count=PLAN, key=key) for prune in pair)
    jax.tree.map(np.testing.assert_array_equal, *kept)


def test_masks_given_in_the_call_restrict_the_choice(rng, getkey):
    params = net(rng)
    alive = jax.tree.map(lambda w: rng.random(w.shape) < 0.5, trees.select(params))
    prune = pruning.pruner(criteria.magnitude(), density=0.2)
    kept = prune(params, None, masks=alive, key=getkey())
    assert all(
        bool(jnp.all(a >= k)) for a, k in zip(*map(jax.tree.leaves, (alive, kept)), strict=True)
    )
    assert int(masks.count(kept)) == round(0.2 * masks.size(kept))


def test_unit_density_counts_units_and_the_weight_density_is_smaller(rng, getkey):
    prune = pruning.pruner(
        criteria.magnitude(), density=0.2, scope="layer", granularity=granularity.units(LAYERS)
    )
    kept = prune(net(rng), None, key=getkey())
    assert [leaf.any(axis=0).sum() for leaf in jax.tree.leaves(kept)] == [4, 2, 4]
    assert counts(kept) == [6 * 4, 4 * 2, 2 * 4]


def test_units_pruned_twice_stay_whole(rng, getkey):
    params = net(rng)
    grain = granularity.units(LAYERS)
    first = pruning.pruner(criteria.magnitude(), density=0.5, scope="layer", granularity=grain)
    second = pruning.pruner(criteria.magnitude(), density=0.2, scope="layer", granularity=grain)
    half = first(params, None, key=getkey())
    kept = second(params, None, masks=half, key=getkey())
    assert counts(kept) == [6 * 4, 4 * 2, 2 * 4]
    assert all((h >= k).all() for h, k in zip(*map(jax.tree.leaves, (half, kept)), strict=True))


def test_one_compilation_serves_all_counts_and_networks(rng, getkey):
    traces = []

    def counted(params, batch, *, masks=None, key):
        traces.append(1)
        return criteria.magnitude()(params, batch, masks=masks, key=key)

    prune = jax.jit(lambda params, k, key: pruning.pruner(counted)(params, None, count=k, key=key))
    for k in (3, 30, 100):
        assert int(masks.count(prune(net(rng), k, getkey()))) == k
    assert len(traces) <= 2  # one to see the shapes and one to run


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"density": 1.3}, r"`density` must be in \[0, 1\], got 1.3"),
        ({"density": 0.1, "rounds": 0}, "`rounds` must be a whole number of at least 1, got 0"),
        ({"density": 0.1, "scope": "all"}, "'layer', 'output', got 'all'"),
        ({"density": [0.1, 7]}, r"`density` must be in \[0, 1\], got 7"),
        ({"density": [0.1], "distribution": densities.erk}, "must be one number with a"),
    ],
)
def test_bad_options_are_refused_when_the_pruner_is_made(options, match, unchecked):
    with pytest.raises(ValueError, match=match):
        pruning.pruner(criteria.magnitude(), **options)


def test_a_pruner_without_density_needs_counts_one_a_round(rng, getkey):
    with pytest.raises(ValueError, match="has no `density`"):
        pruning.pruner(criteria.magnitude())(net(rng), None, key=getkey())
    with pytest.raises(ValueError, match="one entry per round, 3, got 1"):
        pruning.pruner(criteria.magnitude(), rounds=3)(net(rng), None, count=5, key=getkey())


def test_nothing_prunable_is_refused(getkey):
    with pytest.raises(ValueError, match="No leaf of `params` is prunable"):
        pruning.pruner(criteria.magnitude(), density=0.5)({"b": np.ones(3)}, None, key=getkey())


@pytest.mark.long
def test_levels_give_the_masks_of_every_count_from_one_pruner(rng, getkey):
    params, key = net(rng), getkey()
    prune = pruning.pruner(criteria.random())
    together = pruning.levels(prune, [90, 200])(params, None, key=key)
    for i, k in enumerate([90, 200]):
        alone = prune(params, None, count=k, key=key)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone)
    with pytest.raises(ValueError, match="counts of `levels` are fixed"):
        pruning.levels(prune, [5])(params, None, count=3, key=key)


def test_level_counts_round_each_density_and_must_fall():
    np.testing.assert_array_equal(pruning.level_counts(21, [1.0, 0.5, 0.1]), [21, 10, 2])
    np.testing.assert_array_equal(pruning.level_counts(3_000_000_000, [0.9]), [2_700_000_000])
    with pytest.raises(ValueError, match="must fall"):
        pruning.level_counts(21, [0.1, 0.5])
    for bad in (1.5, np.nan, "0.5", True):
        with pytest.raises(ValueError, match=r"`densities` must be in \[0, 1\], got"):
            pruning.level_counts(21, [bad])


def test_a_count_or_density_may_be_given_to_each_layer_by_path(rng, getkey):
    params, key = net(rng), getkey()
    sizes = (120, 200, 40)
    by_count = pruning.pruner(criteria.magnitude())
    wanted = dict(zip(reversed(LAYERS), (3, 20, 7), strict=True))
    kept = by_count(params, None, count=wanted, key=key)
    assert counts(kept) == [7, 20, 3]
    by_density = pruning.pruner(
        criteria.magnitude(),
        density=dict(zip(LAYERS, (0.5, 0.1, 0.25), strict=True)),
        schedule=schedules.linear,
        rounds=2,
    )
    kept = by_density(params, None, key=key)
    assert counts(kept) == [round(d * n) for d, n in zip((0.5, 0.1, 0.25), sizes, strict=True)]


def test_densities_by_path_must_name_every_layer_and_nothing_else(rng, getkey):
    for wrong, match in (
        ({LAYERS[0]: 0.5, LAYERS[1]: 0.1}, "`density` has no entry for 'layer_2/kernel'"),
        ({**dict.fromkeys(LAYERS, 0.5), "layer_3/kernel": 0.1}, "has 'layer_3/kernel', which is"),
    ):
        prune = pruning.pruner(criteria.random(), density=wrong, rounds=2)
        with pytest.raises(ValueError, match=match):
            prune(net(rng), None, key=getkey())
    with pytest.raises(ValueError, match=r"`density` must be in \[0, 1\], got 1\.5"):
        pruning.pruner(criteria.random(), density={LAYERS[0]: 1.5})


def test_a_layer_that_loses_everything_is_named_once_and_a_level_too(rng, getkey):
    params, key = net(rng), getkey()
    params["layer_2"]["kernel"] *= 1e-6
    for options in ({"density": 0.5}, {"density": 0.5, "rounds": 3, "schedule": schedules.linear}):
        with pytest.warns(UserWarning, match="No weight is kept in 'layer_2/kernel'; ") as caught:
            pruning.pruner(criteria.magnitude(), **options)(params, None, key=key)
        assert len(caught) == 1
    many = pruning.levels(pruning.pruner(criteria.magnitude()), [350, 100, 0])
    with pytest.warns(UserWarning, match="No weight is kept in 'layer_2/kernel'; ") as caught:
        many(params, None, key=key)
    assert len(caught) == 1


def test_counts_past_what_is_there_are_refused_and_do_not_wrap(rng, getkey):
    params, key = net(rng), getkey()
    one, three = (pruning.pruner(criteria.magnitude(), rounds=rounds) for rounds in (1, 3))
    for big in (361, 2**32 + 5, 2**40):
        with pytest.raises(ValueError, match=f"got {big}"):
            one(params, None, count=big, key=key)
        with pytest.raises(ValueError, match=f"`count` must be at most .* got {big}"):
            three(params, None, count=[big, 5, 1], key=key)
        with pytest.raises(ValueError, match=f"got {big}"):
            pruning.levels(one, [big, 5])(params, None, key=key)


def residual(params, inputs):
    """A residual network of 109 hidden layers and a readout, without normalization."""
    values = inputs @ params["first"]["kernel"]
    values, _ = jax.lax.scan(
        lambda h, w: (h + jax.nn.relu(h @ w[0]) @ w[1], None),
        values,
        (params["blocks"]["v"], params["blocks"]["w"]),
    )
    return values @ params["last"]["kernel"]


@pytest.mark.long
def test_synflow_prunes_a_110_layer_residual_network_as_float64_does(rng, getkey):
    """R passes 1e38 here, so that float32 alone gives nothing but infinities."""
    width, blocks = 24, 54
    params = {
        "first": {"kernel": rng.normal(size=(8, width))},
        "blocks": {name: rng.normal(size=(blocks, width, width)) for name in "vw"},
        "last": {"kernel": rng.normal(size=(width, 5))},
    }
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    single = residual(jax.tree.map(jnp.abs, params), jnp.ones((1, 8)))
    assert not bool(jnp.all(jnp.isfinite(single)))

    def prune(params, key):
        score = criteria.synflow(residual, input_shape=(8,))
        pruner = pruning.pruner(score, density=0.1, schedule=schedules.exponential, rounds=20)
        return pruner(params, None, key=key)

    key = getkey()
    ours = jax.jit(prune)(params, key)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        expected = jax.jit(prune)(double, key)
    assert int(masks.count(ours)) == round(0.1 * masks.size(ours))
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("options", [{"distribution": densities.uniform}, {"scope": "layer"}])
def test_rounds_keep_the_exact_count_where_a_layers_share_would_rise(options, getkey):
    """Largest remainder is not monotone: these layers lost a weight at this density."""
    params = {
        name: np.arange(size, dtype=np.float32)[:, None] + 1
        for name, size in zip("abcd", (6, 39, 15, 39), strict=True)
    }
    density = 0.49138428226381914
    prune = pruning.pruner(
        criteria.magnitude(),
        density=density,
        schedule=schedules.exponential,
        rounds=27,
        **options,
    )
    assert int(masks.count(prune(params, None, key=getkey()))) == round(density * 99)


@pytest.mark.parametrize("grain", [granularity.unstructured(), granularity.filters(outputs=[])])
def test_no_weight_that_was_dead_comes_back_with_its_granule(grain, rng, getkey):
    params = net(rng)
    alive = jax.tree.map(lambda w: rng.random(w.shape) < 0.4, trees.select(params))
    prune = pruning.pruner(criteria.magnitude(), scope="layer", density=0.3, granularity=grain)
    kept = prune(params, None, masks=alive, key=getkey())
    assert all((a >= k).all() for a, k in zip(*map(jax.tree.leaves, (alive, kept)), strict=True))


@pytest.mark.parametrize(
    ("counts", "match"),
    [
        ([0.5, 0.2], r"must be whole numbers from 0 up, got 0\.5"),
        ([-5], "must be whole numbers from 0 up, got -5"),
        ([1000], "from 0 to 360, the weights alive, got 1000"),
    ],
)
def test_levels_that_are_not_counts_are_refused_and_not_truncated(counts, match, rng, getkey):
    with pytest.raises(ValueError, match=match):
        pruning.levels(pruning.pruner(criteria.magnitude()), counts)(net(rng), None, key=getkey())


def test_counts_of_rounds_that_are_not_counts_are_refused(rng, getkey):
    prune = pruning.pruner(criteria.magnitude(), rounds=3)
    with pytest.raises(ValueError, match=r"must be whole numbers from 0 up, got 20\.7"):
        prune(net(rng), None, count=[100, 20.7, 10], key=getkey())


def test_rounds_on_scores_that_are_not_finite_raise_outside_a_trace(rng, getkey):
    params = net(rng)
    params["layer_1"]["kernel"][0, 0] = np.nan
    prune = pruning.pruner(criteria.magnitude(), density=0.1, rounds=3)
    with pytest.raises(ValueError, match="scores of round 1 of 3 have NaN"):
        prune(params, None, key=getkey())


def test_series_and_levels_without_an_entry_are_refused(unchecked):
    with pytest.raises(ValueError, match="`densities` must be in \\[0, 1\\], got nan"):
        pruning.level_counts(10, np.nan)
    with pytest.raises(ValueError, match="`counts` must have one entry per level, got \\[\\]"):
        pruning.levels(pruning.pruner(criteria.magnitude()), [])


def test_scores_of_another_tree_are_refused(getkey, unchecked):
    def elsewhere(params, batch, *, masks=None, key):
        return {"v": jnp.ones((2, 2))}

    prune = pruning.pruner(elsewhere, density=0.5)
    with pytest.raises(ValueError, match="`scores` has a leaf at 'v' that `params` lacks"):
        prune({"w": jnp.ones((2, 2))}, None, key=getkey())
