"""The four controls of a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr import algorithms, criteria, masks, pruning, trees

DATA = (np.float32(np.random.default_rng(3).normal(size=(8, 3))), np.ones(8, np.float32))


def init(key):
    one, two = jax.random.split(key)
    return {
        "a": {"kernel": jax.random.normal(one, (3, 20)), "bias": jnp.full(20, 0.1)},
        "b": {"kernel": jax.random.normal(two, (20, 2)), "bias": None},
    }


def loss(params, data):
    hidden = jnp.tanh(data[0] @ params["a"]["kernel"] + params["a"]["bias"])
    return jnp.mean((hidden @ params["b"]["kernel"]).sum(1) - data[1]) ** 2


def train(params, kept, data, *, key):
    """A step that depends on the data and the key."""
    del kept
    shift = data[0].mean() + jax.random.normal(key)
    return jax.tree.map(lambda leaf: leaf + shift, params)


def at_init(criterion):
    return algorithms.at_init(pruning.pruner(criterion, density=0.3), init=init)


def iterative(criterion):
    pruner = pruning.pruner(criterion)
    return algorithms.imp(pruner, init=init, train=train, counts=(60, 30), rewind=train)


def going_on(criterion):
    pruner, retrain = pruning.pruner(criterion), "learning_rate_rewinding"
    return algorithms.imp(pruner, init=init, train=train, counts=(60, 30), retrain=retrain)


SNIP = criteria.snip(loss)
RUNS = {
    "at_init": (at_init, algorithms.controls(SNIP, at_init, init=init)),
    "imp": (iterative, algorithms.controls(SNIP, iterative, init=init, rewind=train)),
}
KEY = jax.random.key(5)


@pytest.fixture(scope="module", params=RUNS)
def found(request):
    build, run = RUNS[request.param]
    return build, run(DATA, key=KEY)


def same(one, two):
    leaves = zip(*map(jax.tree.leaves, (one, two)), strict=True)
    return jax.tree.structure(one) == jax.tree.structure(two) and all(
        np.array_equal(a, b) for a, b in leaves
    )


def counts(kept):
    return {path: int(layer.kept) for path, layer in masks.by_layer(kept).items()}


def test_the_chosen_masks_are_those_of_the_algorithm(found):
    build, starts = found
    assert list(starts) == ["chosen", "shuffled", "redrawn", "inverted", "random"]
    assert same(starts["chosen"].masks, build(SNIP)(DATA, key=KEY))


def test_the_params_are_those_the_algorithm_started_from():
    init_key, run_key = jax.random.split(KEY)
    first = init(init_key)
    rewound = train(first, None, DATA, key=jax.random.split(run_key, 3)[2])
    for name, expected in (("at_init", first), ("imp", rewound)):
        starts = RUNS[name][1](DATA, key=KEY)
        for branch in ("chosen", "shuffled", "inverted", "random"):
            assert same(starts[branch].params, expected), (name, branch)


def test_shuffled_and_random_masks_keep_the_counts_of_each_layer_and_other_weights(found):
    _, starts = found
    chosen, shuffled, random = (starts[name].masks for name in ("chosen", "shuffled", "random"))
    assert counts(chosen) == counts(shuffled) == counts(random)
    assert not same(chosen, shuffled)
    assert not same(chosen, random)
    assert not same(shuffled, random)


def test_random_masks_depend_on_the_data_through_the_counts_alone():
    run = RUNS["at_init"][1]
    one, two = (run((sign * DATA[0], DATA[1]), key=KEY) for sign in (1, 3))
    assert not same(one["chosen"].masks, two["chosen"].masks)
    for leaves in zip(
        *map(jax.tree.leaves, (one["random"].masks, two["random"].masks)), strict=True
    ):
        few, many = sorted(leaves, key=np.sum)
        assert not np.any(few & ~many)  # the same ranking, cut at another count


def test_redrawn_weights_go_with_the_chosen_masks(found):
    _, starts = found
    assert same(starts["redrawn"].masks, starts["chosen"].masks)
    for path, leaf in trees.by_path(trees.select(starts["redrawn"].params), "params").items():
        chosen = trees.by_path(starts["chosen"].params, "params")[path]
        assert not np.any(leaf == chosen)


def test_inverted_masks_are_those_of_the_inverted_criterion(found):
    build, starts = found
    assert same(starts["inverted"].masks, build(criteria.invert(SNIP))(DATA, key=KEY))
    assert masks.count(starts["inverted"].masks) == masks.count(starts["chosen"].masks)
    assert not same(starts["inverted"].masks, starts["chosen"].masks)


def test_an_algorithm_of_ones_own_is_not_asked_how_it_was_built():
    build = lambda criterion: lambda data, *, key: at_init(criterion)(data, key=key)  # noqa: E731
    algorithms.branch("chosen", SNIP, build, init=init, rewind=train)(DATA, key=KEY)


@pytest.mark.parametrize("name", RUNS)
def test_a_branch_is_the_control_of_that_name(name):
    build, run = RUNS[name]
    rewind = train if name == "imp" else None
    starts = run(DATA, key=KEY)
    for word, start in starts.items():
        alone = algorithms.branch(word, SNIP, build, init=init, rewind=rewind)
        assert same(alone(DATA, key=KEY), start), word


def test_controls_jit_and_vmap_over_keys_like_a_loop():
    run, keys = RUNS["imp"][1], jax.random.split(KEY, 3)
    many = jax.jit(jax.vmap(lambda key: run(DATA, key=key)))(keys)
    for index, key in enumerate(keys):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], many)
        for word, start in run(DATA, key=key).items():
            assert same(one[word].masks, start.masks), word
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
                one[word].params,
                start.params,
            )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: algorithms.controls(criteria.snip, at_init, init=init), "must be called: `snip"),
        (lambda: algorithms.controls(SNIP, at_init(SNIP), init=init),
         r"`build` must take \(criterion\), got .*It returns an Algorithm"),
        (lambda: algorithms.controls(SNIP, at_init, init=init(KEY)), "`init` must be a function"),
        (lambda: algorithms.controls(SNIP, at_init, init=init, rewind=init),
         r"`rewind` must take \(params, masks, data, \*, key\)"),
        (lambda: algorithms.branch("shuffle", SNIP, at_init, init=init),
         "`name` must be one of 'chosen', 'shuffled', 'redrawn', 'inverted', 'random', got"),
        (lambda: algorithms.controls(SNIP, lambda criterion: criterion, init=init),
         r"`build` must return an Algorithm"),
        (lambda: algorithms.controls(SNIP, iterative, init=init),
         "`rewind` must be the one that the algorithm was built with, <function train .* got None"),
        (lambda: algorithms.branch("random", SNIP, at_init, init=init, rewind=train),
         "`rewind` must be the one that the algorithm was built with, None, got <function train"),
        (lambda: algorithms.controls(SNIP, going_on, init=init),
         "rewinds the weights, .* got one with `retrain='learning_rate_rewinding'`"),
        (lambda: RUNS["at_init"][1](DATA, key=0), "`key` must be a key of JAX, got 0"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_what_is_not_of_the_form_is_refused_with_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_each_level_of_leveled_masks_has_controls_of_its_own():
    def leveled(criterion):
        pruner = pruning.pruner(criterion)
        options = {"init": init, "train": train, "counts": (60, 30), "rewind": train}
        return algorithms.imp(pruner, **options, levels=True)

    found = algorithms.controls(SNIP, leveled, init=init, rewind=train, levels=True)(DATA, key=KEY)
    plain = RUNS["imp"][1](DATA, key=KEY)
    for name, start in found.items():
        assert same(start.params, plain[name].params), name
        for level, count in enumerate((60, 30)):
            kept = jax.tree.map(lambda leaf, level=level: leaf[level], start.masks)
            assert int(masks.count(kept)) == count, name
            if name in ("shuffled", "random"):
                chosen = jax.tree.map(lambda leaf, i=level: leaf[i], found["chosen"].masks)
                assert counts(kept) == counts(chosen), name
                assert not same(kept, chosen), name
    for name in ("chosen", "inverted"):
        last = jax.tree.map(lambda leaf: leaf[-1], found[name].masks)
        assert same(last, plain[name].masks), name


@pytest.mark.usefixtures("unchecked")
def test_levels_are_told_from_single_masks():
    def leveled(criterion):
        pruner = pruning.levels(pruning.pruner(criterion), [60, 6])
        return algorithms.at_init(pruner, init=init)

    with pytest.raises(ValueError, match=r"levels=False, got shape \(2, 3, 20\) at 'a/kernel'"):
        algorithms.controls(SNIP, leveled, init=init)(DATA, key=KEY)
    for name in ("chosen", "inverted"):
        begin = algorithms.branch(name, SNIP, at_init, init=init, levels=True)
        with pytest.raises(ValueError, match=r"axis of levels with levels=True, got .*\(3, 20\)"):
            begin(DATA, key=KEY)
    with pytest.raises(ValueError, match="`levels` must be True or False, got 'no'"):
        algorithms.controls(SNIP, at_init, init=init, levels="no")
