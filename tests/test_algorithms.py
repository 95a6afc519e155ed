from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr import algorithms, criteria, densities, masks, pruning, trees

POINTS = 8


def init(key):
    one, two = jax.random.split(key)
    return {
        "a": {"kernel": jax.random.normal(one, (3, 6)) / 2, "bias": jnp.full(6, 0.1)},
        "b": {"kernel": jax.random.normal(two, (6, 1)) / 2, "bias": jnp.zeros(1)},
    }


def apply(params, inputs):
    hidden = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"])
    return hidden @ params["b"]["kernel"] + params["b"]["bias"]


def loss(params, data):
    return jnp.mean((apply(params, data[0])[:, 0] - data[1]) ** 2)


def train(params, kept, data, *, key):
    """Forty steps of gradient descent that multiply by the mask."""
    del key
    params = params if kept is None else masks.apply(params, kept)

    def step(params, _):
        gradient = jax.grad(loss)(params, data)
        params = jax.tree.map(lambda p, g: p - 0.2 * g, params, gradient)
        return (params if kept is None else masks.apply(params, kept)), None

    return jax.lax.scan(step, params, None, length=40)[0]


@pytest.fixture
def data(rng):
    inputs = rng.normal(size=(POINTS, 3)).astype(np.float32)
    return inputs, np.sign(inputs[:, 0]).astype(np.float32)


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


MAGNITUDE = pruning.pruner(criteria.magnitude(), density=0.25)
LEVELS = (18, 12, 6)
ALL = {
    "at_init": algorithms.at_init(pruning.pruner(criteria.snip(loss), density=0.25), init=init),
    "after_training": algorithms.after_training(MAGNITUDE, init=init, train=train),
    "imp": algorithms.imp(
        pruning.pruner(criteria.magnitude()), init=init, train=train, counts=LEVELS
    ),
}


@pytest.mark.long
def test_at_init_prunes_the_params_of_the_first_half_of_the_key(data, getkey):
    key = getkey()
    init_key, run_key = jax.random.split(key)
    pruner = pruning.pruner(criteria.random(), density=0.25)
    expected = pruner(init(init_key), data, key=run_key)
    assert_same(algorithms.at_init(pruner, init=init)(data, key=key), expected)


def test_after_training_prunes_the_trained_params(data, getkey):
    key = getkey()
    trained = train(init(jax.random.split(key)[0]), None, data, key=None)
    assert_same(ALL["after_training"](data, key=key), MAGNITUDE(trained, data, key=key))


@pytest.mark.long
def test_imp_trains_prunes_and_rewinds_level_by_level(data, getkey):
    key = getkey()
    start = init(jax.random.split(key)[0])
    kept, path = trees.full_masks(start), []
    for count in LEVELS:
        trained = train(start, kept, data, key=None)
        kept = masks.top(criteria.magnitude()(trained, None), count=count, masks=kept)
        path.append(kept)
    assert_same(ALL["imp"](data, key=key), kept)
    every = algorithms.imp(
        pruning.pruner(criteria.magnitude()), init=init, train=train, counts=LEVELS, levels=True
    )(data, key=key)
    assert_same(every, jax.tree.map(lambda *leaves: np.stack(leaves), *path))


def test_imp_rewinds_to_the_given_step(data, getkey):
    key = getkey()

    def early(params, kept, data, *, key):
        return jax.tree.map(lambda leaf: 2 * leaf, params)

    algorithm = algorithms.imp(
        pruning.pruner(criteria.magnitude()), init=init, train=train, counts=(6,), rewind=early
    )
    with pytest.warns(UserWarning, match="No weight is kept in 'b/kernel'"):
        rewound = algorithm(data, key=key)
    start = jax.tree.map(lambda leaf: 2 * leaf, init(jax.random.split(key)[0]))
    trained = train(start, None, data, key=None)
    assert_same(rewound, masks.top(criteria.magnitude()(trained, None), count=6, warn=False))


def slowly(params, kept, data, *, key):
    """Another procedure, which depends on its key."""
    shifted = jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape), params)
    return train(shifted, kept, data, key=key)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:No weight is kept")  # which depends on the key
@pytest.mark.parametrize(
    ("retrain", "later"),
    [("learning_rate_rewinding", train), ("finetuning", slowly), ("weight_rewinding", train)],
)
def test_imp_retrains_what_is_left_as_it_is_told(retrain, later, data, getkey):
    key = getkey()
    init_key, run_key = jax.random.split(key)
    train_key, _, rewind_key = jax.random.split(run_key, 3)
    begin = start = slowly(init(init_key), None, data, key=rewind_key)
    kept, path = trees.full_masks(start), []
    for level, count in enumerate(LEVELS):
        trained = (later if level else train)(begin, kept, data, key=train_key)
        kept = masks.top(criteria.magnitude()(trained, None), count=count, masks=kept)
        begin = start if retrain == "weight_rewinding" else trained
        path.append(kept)
    found = algorithms.imp(
        pruning.pruner(criteria.magnitude()),
        init=init,
        train=train,
        counts=LEVELS,
        rewind=slowly,
        retrain=retrain,
        finetune=slowly if retrain == "finetuning" else None,
        levels=True,
    )(data, key=key)
    assert_same(found, jax.tree.map(lambda *leaves: np.stack(leaves), *path))


@pytest.mark.filterwarnings("ignore:No weight is kept")
def test_the_ways_of_retraining_choose_other_masks(data, getkey):
    """So that the test above can tell them apart."""
    key, found = getkey(), []
    for retrain in ("learning_rate_rewinding", "weight_rewinding"):
        algorithm = algorithms.imp(
            pruning.pruner(criteria.magnitude()),
            init=init,
            train=train,
            counts=LEVELS,
            retrain=retrain,
        )
        found.append(jax.tree.leaves(algorithm(data, key=key)))
    assert any(np.any(a != b) for a, b in zip(*found, strict=True))


@pytest.mark.long
def test_imp_keeps_a_count_in_each_layer(data, getkey):
    key, pruner = getkey(), pruning.pruner(criteria.magnitude())
    by_layer = [[14, 5], [9, 5], [7, 2]]
    by_path = {"a/kernel": [14, 9, 7], "b/kernel": (5, 5, 2)}
    one, two = (
        algorithms.imp(pruner, init=init, train=train, counts=counts, levels=True)(data, key=key)
        for counts in (by_layer, by_path)
    )
    assert_same(one, two)
    kept = {path: layer.kept.tolist() for path, layer in jax.vmap(masks.by_layer)(one).items()}
    assert kept == {path: list(counts) for path, counts in by_path.items()}
    start = init(jax.random.split(key)[0])
    trained = train(start, None, data, key=None)
    expected = masks.top(criteria.magnitude()(trained, None), count=[14, 5], scope="layer")
    assert_same(jax.tree.map(lambda leaf: leaf[0], one), expected)


def test_imp_follows_a_distribution_level_by_level(data, getkey):
    key, like = getkey(), jax.eval_shape(init, jax.random.key(0))
    counts = densities.plan(densities.erk, trees.select(like), densities=[0.6, 0.3])
    pruner = pruning.pruner(criteria.magnitude(), distribution=densities.erk)
    kept = algorithms.imp(pruner, init=init, train=train, counts=counts)(data, key=key)
    assert [int(layer.kept) for layer in masks.by_layer(kept).values()] == counts[-1].tolist()


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_algorithms_are_pure_and_compose_with_jit_and_vmap(name, data, getkey, rng):
    algorithm, key = ALL[name], getkey()
    many = (
        np.stack([data[0], rng.normal(size=data[0].shape).astype(np.float32)]),
        np.stack([data[1], rng.choice([-1.0, 1.0], POINTS).astype(np.float32)]),
    )
    together = jax.jit(jax.vmap(lambda data: algorithm(data, key=key)))(many)
    for i in range(2):
        alone = algorithm(jax.tree.map(lambda leaf, i=i: leaf[i], many), key=key)
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)
    counts = [int(masks.count(jax.tree.map(lambda leaf, i=i: leaf[i], together))) for i in (0, 1)]
    assert counts == [6, 6]


def test_masks_found_by_training_depend_on_the_data_and_those_at_random_do_not(data, getkey):
    key, other = getkey(), (data[0], -data[1][::-1])
    blind = algorithms.at_init(pruning.pruner(criteria.random(), density=0.25), init=init)
    assert_same(blind(data, key=key), blind(other, key=key))
    seeing = ALL["after_training"]
    differ = [
        (a != b).any()
        for a, b in zip(
            *map(jax.tree.leaves, (seeing(data, key=key), seeing(other, key=key))), strict=True
        )
    ]
    assert any(differ)


@pytest.mark.parametrize(
    ("counts", "match"),
    [
        ((6, 12), "must fall from level to level"),
        ([[6, 2], [6, 3]], r"must fall from level to level, got \[\[6, 2\], \[6, 3\]\]"),
        ({"a/kernel": [3, 4], "b/kernel": [2, 2]}, r"must fall from level to level, got \[3, 4\]"),
        ({"a/kernel": [4, 3], "b/kernel": [2]}, "one number per level"),
        ({"a/kernel": 4}, "one number per level"),
        ({}, "one number per level"),
        ([[[3]]], "one number per level"),
        ((), "one number per level"),
        (6, "one number per"),
    ],
)
def test_invalid_levels_are_refused(counts, match):
    with pytest.raises(ValueError, match=match):
        algorithms.imp(pruning.pruner(criteria.magnitude()), init=init, train=train, counts=counts)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"retrain": "rewinding"}, "`retrain` must be one of 'weight_rewinding', 'learning_rate_"),
        ({"retrain": "finetuning"}, "`finetune` must be given with .* got None with 'finetuning'"),
        ({"finetune": train}, "`finetune` must be given with .* with 'weight_rewinding'"),
        ({"retrain": "finetuning", "finetune": abs}, r"`finetune` must take \(params, masks, data"),
    ],
)
def test_ways_of_retraining_that_do_not_fit_are_refused(options, match, unchecked):
    pruner = pruning.pruner(criteria.magnitude())
    with pytest.raises(ValueError, match=match):
        algorithms.imp(pruner, init=init, train=train, counts=LEVELS, **options)


def test_counts_that_are_densities_or_too_many_are_refused(data, getkey):
    pruner = pruning.pruner(criteria.magnitude())
    with pytest.raises(ValueError, match=r"whole numbers from 0 up, got 0\.8"):
        algorithms.imp(pruner, init=init, train=train, counts=(0.8, 0.5))
    many = algorithms.imp(pruner, init=init, train=train, counts=(1000, 6))
    with pytest.raises(ValueError, match="from 0 to 24, the weights alive, got 1000"):
        many(data, key=getkey())


def broken(params, kept, data, *, key):
    """Training that diverges where the first label is -1."""
    scale = jnp.where(data[1][0] < 0, jnp.nan, 1.0)
    return jax.tree.map(lambda leaf: leaf * scale, train(params, kept, data, key=key))


def test_imp_whose_training_diverges_raises_outside_a_trace(data, getkey):
    algorithm = algorithms.imp(
        pruning.pruner(criteria.magnitude()), init=init, train=broken, counts=LEVELS
    )
    bad = (data[0], -np.abs(data[1]))
    with pytest.raises(FloatingPointError, match=r"in 3 of 3 levels: 0, 1, 2\. Lower"):
        algorithm(bad, key=getkey())


@pytest.mark.long
@pytest.mark.parametrize("name", ["imp", "after_training"])
def test_checked_flags_the_cases_whose_scores_are_not_finite(name, data, getkey):
    pruner = pruning.pruner(criteria.magnitude(), density=0.25)
    algorithm = {
        "imp": algorithms.imp(pruner, init=init, train=broken, counts=LEVELS),
        "after_training": algorithms.after_training(pruner, init=init, train=broken),
    }[name]
    key = getkey()
    many = (np.stack([data[0]] * 3), np.stack([np.abs(data[1])] * 3))
    many[1][1, 0] = -1.0
    run = jax.jit(jax.vmap(lambda data: algorithms.checked(algorithm)(data, key=key)))
    found = run(many)
    np.testing.assert_array_equal(found.finite, [True, False, True])
    good = algorithm(jax.tree.map(lambda leaf: leaf[0], many), key=key)
    assert_same(jax.tree.map(lambda leaf: leaf[0], found.masks), good)


def test_checked_passes_an_algorithm_without_checks(data, getkey):
    constant = algorithms.checked(lambda data, *, key: {"w": jnp.ones(3, bool)})
    assert bool(constant(data, key=getkey()).finite)


class Record(NamedTuple):
    params: Any
    masks: Any
    finite: Any


def recorded(params, kept, data, *, key):
    return Record(train(params, kept, data, key=key), kept, jnp.array(True))


@pytest.mark.long
def test_training_may_return_a_record_or_params_alone(data, getkey):
    key, pruner = getkey(), pruning.pruner(criteria.magnitude())
    after = algorithms.after_training(MAGNITUDE, init=init, train=recorded)
    assert_same(after(data, key=key), ALL["after_training"](data, key=key))
    imp = algorithms.imp(pruner, init=init, train=recorded, rewind=recorded, counts=(6,))
    rewound = algorithms.imp(pruner, init=init, train=train, rewind=train, counts=(6,))
    assert_same(imp(data, key=key), rewound(data, key=key))


def test_masks_that_training_changes_are_those_of_the_algorithm(data, getkey):
    def growing(params, kept, data, *, key):
        kept = trees.map_prunable(lambda leaf: leaf > 0, trees.select(params))
        return Record(train(params, kept, data, key=key), kept, jnp.isfinite(data[1][0]))

    key = getkey()
    params = init(jax.random.split(key)[0])
    positive = {name: {"kernel": params[name]["kernel"] > 0, "bias": None} for name in "ab"}
    during = algorithms.during_training(init=init, train=growing)
    assert_same(during(data, key=key), positive)
    # The masks chosen after training are among them.
    chosen = algorithms.after_training(MAGNITUDE, init=init, train=growing)(data, key=key)
    assert int(masks.count(masks.combine(chosen, positive))) == 6
    bad = (data[0], np.full_like(data[1], np.nan))
    with pytest.raises(FloatingPointError, match="Training gave NaN or infinity"):
        during(bad, key=key)
    with pytest.raises(ValueError, match="must return a record with masks, got None"):
        algorithms.during_training(init=init, train=recorded)(data, key=key)


@pytest.mark.parametrize("name", ["imp", "after_training"])
def test_training_that_returns_neither_record_nor_params_is_refused(name, data, getkey):
    def record(params, kept, data, *, key):
        return train(params, kept, data, key=key), 0.5

    pruner = pruning.pruner(criteria.magnitude(), density=0.25)
    algorithm = {
        "imp": algorithms.imp(pruner, init=init, train=record, counts=LEVELS),
        "after_training": algorithms.after_training(pruner, init=init, train=record),
    }[name]
    with pytest.raises(ValueError, match=r"`train` must return a record .* got tuple"):
        algorithm(data, key=getkey())
