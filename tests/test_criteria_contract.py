"""The contract of every criterion, over one table: a new criterion is one more line in CRITERIA.

Each is tested on a Linen network with batch norm and attention, all its variables in one tree, and
on a plain dict with None leaves. Most of the time is compilation, which the tests share.
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from nopr import algorithms, criteria, finetune, granularity, masks, pruning, trees

KEYS = jax.random.split(jax.random.key(0), 2)


class Network(NamedTuple):
    """The arguments of constructors and of criteria."""

    apply: object
    gated: object  # the same, piecewise linear
    params: dict
    inputs: np.ndarray
    targets: np.ndarray
    scales: dict  # the scale of each kernel that has one
    layers: tuple  # a chain of kernels

    def loss(self, params, batch):
        inputs, targets = batch
        return jnp.mean((self.apply(params, inputs) - targets) ** 2)


class Block(nn.Module):
    attends: bool = True

    @nn.compact
    def __call__(self, inputs):
        values = nn.BatchNorm(use_running_average=True)(nn.Dense(6)(inputs))
        more = nn.MultiHeadDotProductAttention(2)(values) if self.attends else nn.relu(values)
        return nn.Dense(2)(values + more)


def linen():
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    params = Block().init(jax.random.key(1), inputs)
    scales = {"params/Dense_0/kernel": "params/BatchNorm_0/scale"}
    gated = Block(attends=False).apply
    layers = ("params/Dense_0/kernel", "params/Dense_1/kernel")
    return Network(Block().apply, gated, params, inputs, inputs[..., :2], scales, layers)


def plain():
    rng = np.random.default_rng(1)
    kernels = {"a": rng.normal(size=(4, 5)), "b": rng.normal(size=(5, 2))}
    params = {name: {"w": jnp.float32(w), "bias": None} for name, w in kernels.items()}
    params["a"]["bias"] = jnp.float32(rng.normal(size=5))
    for name, w in kernels.items():
        params[name]["scale"] = jnp.float32(rng.normal(size=w.shape[1]))

    def apply(params, inputs, act=jnp.tanh):
        hidden = act(jnp.dot(inputs, params["a"]["w"]) + params["a"]["bias"][None, :])
        return jnp.dot(hidden, params["b"]["w"])

    def gated(params, inputs):
        return apply(params, inputs, nn.relu)

    inputs = np.float32(rng.normal(size=(6, 4)))
    scales = {"a/w": "a/scale", "b/w": "b/scale"}
    return Network(apply, gated, params, inputs, inputs[:, :2], scales, ("a/w", "b/w"))


class NnxNet(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(5, use_running_average=True, rngs=nnx.Rngs(1))
        self.b = nnx.Linear(5, 2, rngs=nnx.Rngs(2))

    def __call__(self, inputs):
        return self.b(nnx.relu(self.norm(self.a(inputs))))


class EquinoxNet(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear
    act: object = eqx.field(static=True, default=jax.nn.relu)

    def __call__(self, inputs):
        return jax.vmap(lambda x: self.b(self.act(self.a(x))))(inputs)


def of_other_libraries():
    inputs = np.float32(np.random.default_rng(2).normal(size=(6, 4)))
    graph, state = nnx.split(NnxNet())
    apply = lambda state, inputs: nnx.merge(graph, state)(inputs)  # noqa: E731
    scales = {"a/kernel": "norm/scale"}
    layers = ("a/kernel", "b/kernel")
    yield "nnx", Network(apply, apply, state, inputs, inputs[:, :2], scales, layers)
    module = EquinoxNet(eqx.nn.Linear(4, 5, key=KEYS[0]), eqx.nn.Linear(5, 2, key=KEYS[1]))
    apply = lambda module, inputs: module(inputs)  # noqa: E731
    scales, layers = {"b/weight": "a/bias"}, ("a/weight", "b/weight")
    yield "equinox", Network(apply, apply, module, inputs, inputs[:, :2], scales, layers)


def guide():
    """What the first two blocks of the guide define: its criteria."""
    text = (Path(__file__).parents[1] / "docs/your_own_criterion.md").read_text()
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[:2]:
        exec(code, names)
    return names


def kernels(path, leaf):
    """Not attention's, whose filters are not along the last axis alone."""
    return trees.is_prunable(path, leaf) and leaf.ndim != 3


OF_FILTERS = {"taylor of filters", "filter_l1", "filter_l2", "fpgm", "by_filter", "spectral"}
ATTENTION = "params/MultiHeadDotProductAttention_0/"
AXES = {
    **{f"{ATTENTION}{part}/kernel": (-2, -1) for part in ("query", "key", "value")},
    f"{ATTENTION}out/kernel": -1,
}
NETWORKS = {"linen": linen(), "plain": plain()}
CRITERIA = {
    "random": lambda net: criteria.random(),
    "magnitude": lambda net: criteria.magnitude(),
    "lamp": lambda net: criteria.lamp(),
    "snip": lambda net: criteria.snip(net.loss),
    "force": lambda net: criteria.force(net.loss),
    "taylor": lambda net: criteria.taylor(net.loss),
    "taylor of filters": lambda net: criteria.taylor(net.loss, group="filter", where=kernels),
    "movement": lambda net: criteria.movement(net.loss),
    "grasp": lambda net: criteria.grasp(net.loss),
    "obd": lambda net: criteria.obd(net.loss, examples=4),
    "woodfisher": lambda net: criteria.woodfisher(net.loss, block=8, examples=4),
    "prospr": lambda net: criteria.prospr(net.loss, learning_rate=0.1),
    "synflow": lambda net: criteria.synflow(net.apply, input_shape=net.inputs.shape[1:]),
    "px": lambda net: criteria.px(net.gated),
    "px by paths": lambda net: criteria.px(net.gated, gates="paths"),
    "ntk_sap": lambda net: criteria.ntk_sap(
        net.apply, input_shape=net.inputs.shape[1:], draws=2, examples=3
    ),
    "filter_l1": lambda net: criteria.filter_l1(where=kernels),
    "filter_l2": lambda net: criteria.filter_l2(where=kernels),
    "fpgm": lambda net: criteria.fpgm(where=kernels),
    "spectral": lambda net: criteria.spectral(rank=2, where=kernels),
    "batch_norm_scale": lambda net: criteria.batch_norm_scale(net.scales),
    "wanda": lambda net: criteria.wanda(net.apply),
    "apoz": lambda net: criteria.apoz(net.apply, layers=net.layers),
    "invert": lambda net: criteria.invert(criteria.snip(net.loss)),
    "shuffle": lambda net: criteria.shuffle(criteria.snip(net.loss)),
    "normalize": lambda net: criteria.normalize(criteria.snip(net.loss)),
    "by_filter": lambda net: criteria.by_filter(criteria.taylor(net.loss, where=kernels)),
    "average": lambda net: criteria.average(criteria.random(), keys=3),
    "average in float64": lambda net: criteria.average(criteria.lamp(), stacked=True),
    "the guide's short one": lambda net: guide()["rooted"](net.loss),
    "the guide's long one": lambda net: guide()["fisher"](net.loss),
}
OTHERS = dict(of_other_libraries())
NOISE = {"random", "average"}  # reads no weights
# Laws that do not hold: noise is drawn by the place of a weight, not by its unit, and WoodFisher's
# blocks are of neighboring weights.
NOT_EQUIVARIANT = {*NOISE, "shuffle", "ntk_sap", "woodfisher"}
UNREAD_WEIGHTS = {*NOISE, "batch_norm_scale"}
NEEDS_KEY = {"random", "average", "shuffle", "ntk_sap"}

both = pytest.mark.parametrize("network", NETWORKS)
every = pytest.mark.parametrize("name", CRITERIA)


@both
@every
def test_the_contract_holds(name, network):
    net = NETWORKS[network]
    score, batch = CRITERIA[name](net), (net.inputs, net.targets)
    criteria.check_contract(score, net.params, batch, key=KEYS[1])
    shapes = jax.eval_shape(lambda params: score(params, batch, key=KEYS[1]), net.params)
    where = kernels if name in OF_FILTERS else trees.is_prunable
    if name == "batch_norm_scale":
        where = lambda path, leaf: path in net.scales  # noqa: E731
    if name == "apoz":
        where = lambda path, leaf: path in net.layers  # noqa: E731
    assert jax.tree.structure(shapes) == jax.tree.structure(trees.select(net.params, where))


def test_the_guides_fisher_is_twice_obd():
    net = NETWORKS["plain"]
    batch = (net.inputs, net.targets)
    half, whole = (
        CRITERIA[name](net)(net.params, batch, key=None) for name in ("obd", "the guide's long one")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-5), half, whole)


def of_filters():
    """Criteria of filters that are not told to leave attention's kernels out."""
    yield from (criteria.filter_l1(), criteria.filter_l2(), criteria.fpgm(), criteria.spectral())
    yield criteria.by_filter(criteria.magnitude())
    yield criteria.taylor(NETWORKS["linen"].loss, group="filter")


@pytest.mark.parametrize("score", list(of_filters()))
def test_criteria_of_filters_refuse_kernels_of_three_dimensions_by_path(score):
    net = NETWORKS["linen"]
    with pytest.raises(ValueError, match=r"`axes` must be given for 'params/.*/key/kernel'"):
        score(net.params, (net.inputs, net.targets), key=KEYS[0])


def test_criteria_of_filters_that_are_told_the_axes_score_attention_too():
    net = NETWORKS["linen"]
    score = criteria.taylor(net.loss, group="filter", axes=AXES)
    batch = (net.inputs, net.targets)
    criteria.check_contract(score, net.params, batch, key=KEYS[1])
    values = score(net.params, batch, key=None)["params"]["MultiHeadDotProductAttention_0"]
    assert np.unique(values["query"]["kernel"].round(12)).size == 6  # 2 heads of 3 features
    assert np.unique(values["out"]["kernel"].round(12)).size == 6  # outputs


def careless(change):
    """The size of a weight, changed: `change(leaf, masks, key)`."""

    def score(params, batch, *, masks=None, key):
        del batch
        return jax.tree.map(lambda w: change(jnp.abs(w), masks, key), trees.select(params))

    return score


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, masks, key: w / w.sum(), "Pruned weights influence the scores of the others"),
        (lambda w, masks, key: w + (masks is None), "The scores are not the same under vmap"),
        (lambda w, masks, key: w > 0, "The scores must be floating, got bool at 'a/w'"),
        (lambda w, masks, key: w / 0, "The scores must be finite, got NaN or infinity at 'a/w'"),
        (lambda w, masks, key: w[0], r"`scores` has shape \(5,\) at 'a/w'"),
    ],
)
def test_a_broken_promise_of_the_contract_is_named(change, message):
    net = NETWORKS["plain"]
    with pytest.raises(ValueError, match=message):
        criteria.check_contract(
            careless(change), net.params, (net.inputs, net.targets), key=KEYS[0]
        )


@functools.cache
def jitted(name):
    """`(params, batch, key) -> scores` on the plain dict, compiled once for all laws."""
    score = CRITERIA[name](NETWORKS["plain"])
    return jax.jit(lambda params, batch, key: score(params, batch, key=key))


def scored(name, params=None, batch=None, key=KEYS[0]):
    net = NETWORKS["plain"]
    params = net.params if params is None else params
    return jitted(name)(params, (net.inputs, net.targets) if batch is None else batch, key)


def assert_close(one, two):
    """Equal to rounding, beside the largest of a leaf."""
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))


@every
def test_another_key_changes_the_scores_only_where_it_is_needed(name):
    pairs = zip(*map(jax.tree.leaves, (scored(name, key=key) for key in KEYS)), strict=True)
    assert any(np.any(a != b) for a, b in pairs) == (name in NEEDS_KEY)


@every
def test_the_order_of_the_examples_changes_nothing(name):
    net = NETWORKS["plain"]
    order = np.array([3, 0, 5, 1, 4, 2])
    assert_close(scored(name, batch=(net.inputs[order], net.targets[order])), scored(name))


def permuted(tree, order):
    """The hidden units in another order."""
    return {
        "a": {part: None if x is None else x[..., order] for part, x in tree["a"].items()},
        "b": {
            part: x[order] if part == "w" and x is not None else x for part, x in tree["b"].items()
        },
    }


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in NOT_EQUIVARIANT])
def test_permuted_units_have_permuted_scores(name):
    order = np.array([2, 4, 0, 1, 3])
    found = scored(name, permuted(NETWORKS["plain"].params, order))
    expected = permuted(scored(name), order)
    assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in UNREAD_WEIGHTS])
def test_a_weight_that_is_nan_has_no_mask_and_its_leaf_is_named(name):
    params = jax.tree.map(jnp.asarray, NETWORKS["plain"].params)
    params["a"]["w"] = params["a"]["w"].at[1, 2].set(jnp.nan)
    with pytest.raises(ValueError, match="has NaN or infinite values at 'a/w'"):
        masks.top(scored(name, params), density=0.5)


@every
def test_scores_are_the_same_under_vmap_and_scan_over_params_and_keys(name):
    net = NETWORKS["plain"]
    score, batch = CRITERIA[name](net), (net.inputs, net.targets)
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), net.params)

    def one(case):
        params, key = case
        return score(params, batch, key=key)

    both = jax.jit(lambda stack: (jax.vmap(one)((stack, KEYS)), jax.lax.map(one, (stack, KEYS))))
    vmapped, scanned = both(stack)
    assert_close(vmapped, scanned)
    assert_close(jax.tree.map(lambda leaf: leaf[0], vmapped), scored(name))


@pytest.mark.parametrize("library", OTHERS)
@every
def test_the_scores_of_a_model_of_another_library_have_its_form(name, library):
    net = OTHERS[library]
    if (name, library) == ("apoz", "equinox"):
        with pytest.raises(ValueError, match=r"'b/weight'"):  # its kernels are [out, in]
            CRITERIA[name](net)(net.params, net.inputs)
        return
    score, batch = CRITERIA[name](net), (net.inputs, net.targets)
    shapes = jax.eval_shape(lambda params: score(params, batch, key=KEYS[0]), net.params)
    expected = trees.select(net.params)
    if name == "batch_norm_scale":
        expected = trees.select(net.params, lambda path, leaf: path in net.scales)
    assert jax.tree.structure(shapes) == jax.tree.structure(expected)
    assert trees.shapes(shapes) == trees.shapes(expected)


@every
def test_a_key_is_asked_for_where_it_is_needed(name):
    net = NETWORKS["plain"]
    score = CRITERIA[name](net)
    if name in NEEDS_KEY:
        with pytest.raises(TypeError, match="key"):
            score(net.params, (net.inputs, net.targets))
    else:
        shapes = jax.eval_shape(lambda p: score(p, (net.inputs, net.targets), key=None), net.params)
        assert trees.shapes(shapes) == ((4, 5), (5, 2))


@every
def test_masks_that_are_not_bool_or_do_not_match_are_refused_by_name(name):
    net = NETWORKS["plain"]
    score = CRITERIA[name](net)
    chosen = trees.select(net.params)
    wrong = {
        "`masks` must be bool, got float32 at 'a/w'": chosen,
        "'a/bias' that `params` lacks": trees.full_masks(net.params, trees.everything),
        r"`masks` has shape \(4,\) at 'a/w'": {
            "a": {"w": jnp.ones(4, bool), "bias": None},
            "b": {"w": jnp.ones((5, 2), bool), "bias": None},
        },
    }
    for match, masks_ in wrong.items():
        with pytest.raises(ValueError, match=match):
            score(net.params, (net.inputs, net.targets), masks=masks_, key=KEYS[0])


def test_higher_means_keep_and_invert_turns_it_around():
    net = NETWORKS["plain"]
    full = trees.full_masks(net.params)
    low, high = (
        CRITERIA[name](net)(net.params, (net.inputs, net.targets), key=KEYS[0])
        for name in ("invert", "snip")
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, -b), low, high)
    kept = masks.top(low, count=10), masks.top(high, count=masks.size(full) - 10)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, ~b), *kept)


@pytest.mark.parametrize("use", [pruning.pruner, criteria.invert])
@pytest.mark.parametrize("constructor", ["magnitude", "snip", "force", "synflow", "invert"])
def test_a_constructor_that_was_not_called_is_refused_with_the_remedy(constructor, use):
    with pytest.raises(ValueError, match=rf"must be called: `{constructor}\(\.\.\.\)`"):
        use(getattr(criteria, constructor))


PRUNER = pruning.pruner(criteria.random())


def mean_loss(params, batch):
    return jnp.mean(params["a"]["w"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pruning.pruner(lambda params, batch: params),
         r"got `<lambda>\(params, batch\)`\. It lacks `masks` and `key`: add"),
        (lambda: criteria.snip(finetune.cross_entropy), r"`loss` must take \(params, batch\), got"),
        (lambda: criteria.grasp({}), "`loss` must be a function .* got a dict"),
        (lambda: criteria.snip(lambda params, batch: params["a"]["w"])(NETWORKS["plain"].params, 0),
         r"`loss` must return a scalar, got float32 of shape \(4, 5\)\. Make"),
        (lambda: criteria.snip(lambda params, batch: 3)(NETWORKS["plain"].params, 0),
         r"`loss` must return a scalar, got 3\. Make"),
        (lambda: criteria.random()(NETWORKS["plain"].params, 0, key=KEYS), "must be a single key"),
        (lambda: criteria.synflow(abs, input_shape=(4,)), r"`apply` must take \(params, inputs\)"),
        (lambda: criteria.synflow(lambda params, inputs: None, input_shape=("4",)),
         "`input_shape` must be a tuple of whole numbers, got"),
        (lambda: criteria.from_weights(lambda w, g: w), r"`score` must take \(weights\)"),
        (lambda: masks.top(criteria.snip(mean_loss), count=1),
         "`scores` must be a tree of arrays, got the function `criterion`. Call the criterion"),
        (lambda: pruning.pruner(criteria.random(), granularity=granularity.filters),
         r"`granularity` must be a Granularity, got filters\. Call a constructor"),
        (lambda: pruning.pruner(criteria.random(), granularity="filters"), "got 'filters'"),
        (lambda: pruning.pruner(criteria.random(), density=0.5)(NETWORKS["plain"].params, 0, key=0),
         "`key` must be a key of JAX, got 0"),
        (lambda: algorithms.at_init(criteria.magnitude(), init=mean_loss),
         r"`pruner` must take .* got `criterion\(.*Make one from a criterion: `pruning.pruner"),
        (lambda: algorithms.after_training(PRUNER, init=NETWORKS["plain"].params, train=mean_loss),
         r"`init` must be a function \(key\), got a dict\. Give the function that draws"),
        (lambda: algorithms.imp(PRUNER, init=abs, train=mean_loss, counts=(3,)),
         r"`train` must take \(params, masks, data, \*, key\), got `mean_loss\("),
        (lambda: algorithms.imp(
            lambda params, batch, *, masks=None, count=None, key: params,
            init=lambda key: NETWORKS["plain"].params,
            train=lambda params, masks, data, *, key: params,
            counts=(3,),
        )(0, key=KEYS[0]), "`masks` must be bool, got float32 at"),
        (lambda: pruning.pruner(criteria.random(), regrow="yes"), "`regrow` must be True or False"),
        (lambda: criteria.snip(mean_loss, stacked=1), "`stacked` must be True or False, got 1"),
        (lambda: masks.top(NETWORKS["plain"].params["a"], density=1, warn="no"), "`warn` must be"),
        (lambda: finetune.trainer(
            mean_loss, optax.sgd(1.0), epochs=1, batch_size=2, remainder=None),
         "`remainder` must be True or False, got None"),
        (lambda: criteria.snip(lambda p, b: jnp.mean(jnp.dot(b, p["a"]["w"])[0]), stacked=True)(
            NETWORKS["plain"].params, np.ones((6, 4, 1))),
         r"`stacked=True` gives the loss one batch .* of shape \(4, 1\), and it failed: .* Leave"),
        (lambda: criteria.obd(mean_loss, stacked=True)(
            NETWORKS["plain"].params, (np.ones((6, 4)), np.ones(6))),
         r"two leading axes with `stacked=True`, .* got shape \(6,\) at '1'"),
        (lambda: criteria.woodfisher(mean_loss, stacked=True)(
            NETWORKS["plain"].params, (np.ones((6, 4)), np.ones((6, 3)))),
         r"the same in every array, got shape \(6, 3\) at '1'"),
        (lambda: criteria.synflow(NETWORKS["plain"].apply, input_shape=(3, 5))(
            NETWORKS["plain"].params, None),
         r"`apply` failed on one input of `input_shape`, an array of shape \(1, 3, 5\): .* Give"),
        (lambda: finetune.cross_entropy(nn.BatchNorm()), "must be a function .* got a BatchNorm"),
        (lambda: finetune.cross_entropy(lambda p, x: x)({}, (jnp.eye(3), jnp.eye(3))),
         r"integers of shape \(3,\), got float32 of shape \(3, 3\)\. Turn one-hot labels into int"),
        (lambda: algorithms.at_init(PRUNER, init=abs)(0, key=0),
         "`key` must be a key of JAX, got 0"),
        (lambda: PRUNER(NETWORKS["plain"].params, None, count=[3, 2], key=KEYS[0]),
         "one entry per round, 1, got 2. Give one per round, or take a pruner of one round"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_what_is_not_of_the_form_is_refused_with_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
