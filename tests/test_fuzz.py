"""2,000 calls of the public functions: none wrong in silence, no crash, no hang, no unclear line.

`NOPR_TEST_SEED` draws other calls. A failure prints calls to paste after `from fuzzing import *`.
"""

import faulthandler
import inspect
import math
import os
import random
import warnings
from collections.abc import Mapping

import fuzzing
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

SEED = int(os.environ.get("NOPR_TEST_SEED", "2024"))
CALLS = 2000
OFTEN = {"masks.top": 100, "pruning.pruner": 50, "masks.apply": 30, "masks.combine": 30}
# Each call compiles a program of its own.
SELDOM = {
    **dict.fromkeys(("algorithms", "finetune.advance", "finetune.resume", "finetune.trainer"), 3),
    **dict.fromkeys(("criteria.check_contract", "criteria.grasp", "criteria.prospr"), 3),
    **dict.fromkeys(("information.exact", "criteria.woodfisher", "capture", "reconstruct"), 3),
    **dict.fromkeys(("criteria.ntk_sap", "criteria.px"), 3),
    **dict.fromkeys(("pruning.levels", "criteria", "isometry", "spectra", "synthetic"), 6),
    **dict.fromkeys(("finetune", "sweeps"), 10),
}
GRADIENTS = ("snip", "force", "taylor", "movement", "grasp", "obd", "prospr", "woodfisher", "px")
DATA_FREE = (
    *("random", "magnitude", "lamp", "ntk_sap", "filter_l1", "filter_l2", "fpgm", "spectral"),
    "batch_norm_scale",
)
PROMISES = {}
# NaN that is given and is not read, or is meant.
UNREAD = {
    "criteria.batch_norm_scale()": "only the scales of some layers are read",
    "criteria.random()": "scores are noise",
    **dict.fromkeys(
        ("capture.nonzero", "capture.rows", "capture.second_moments", "capture.squared_norms"),
        "the last kernel has no part in what enters",
    ),
    "export.load_masks": "of `like` only the shapes are read",
    "export.load_pruned": "of `like` only the shapes are read",
    "export.load_safetensors": "of `like` only the shapes are read",
    "GradientTransformationExtraArgs.init": "zeros are made of shapes",
    "densities.counts": "shapes are all that is read",
    "densities.plan": "shapes are all that is read",
    "trees.full_masks": "weights are chosen by their paths",
    "trees.map_prunable": "the function that is given decides",
    "trees.overlay": "the function that is given decides",
    "trees.select": "weights are chosen by their paths",
}


def promise(*owners):
    """Registers what holds of the results of these functions, given the arguments of the call."""

    def register(check):
        PROMISES.update(dict.fromkeys(owners, check))
        return check

    return register


# --- What holds --------------------------------------------------------------------------------


def same_form(got, like, dtype=None):
    assert jax.tree.structure(got) == jax.tree.structure(like), "another structure"
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(like), strict=True):
        assert np.shape(one) == np.shape(two), "another shape"
        assert jnp.asarray(one).dtype == (dtype or jnp.asarray(two).dtype), "another dtype"


def flat(tree):
    return np.concatenate(
        [np.empty(0)]
        + [np.asarray(np.real(leaf), np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    )


def amount(value, of, room, *, is_density, traced):
    """The number of weights that a count or a density asks for."""
    if not is_density:
        return min(max(int(value), 0), room) if traced else int(value)
    share = float(np.float32(value)) if traced else float(value)
    share = min(max(0.0 if math.isnan(share) else share, 0.0), 1.0) if traced else share
    return min(round(share * of), room) if traced else round(share * of)


@promise("masks.top")
def _(
    got,
    call,
    *,
    scores,
    density=None,
    count=None,
    masks=None,
    scope="global",
    axes=None,
    warn=True,
):
    del warn
    same_form(got, scores, bool)
    if scope == "output":
        of_outputs(got, scores, masks, axes)
        return
    values, kept = map(jnp.asarray, jax.tree.leaves(scores)), jax.tree.leaves(got)
    values = list(values)
    alive = [np.ones(v.shape, bool) for v in values] if masks is None else jax.tree.leaves(masks)
    sizes, rooms = [v.size for v in values], [int(np.sum(m)) for m in alive]
    counts = [int(np.sum(k)) for k in kept]
    budget, options = (
        (density if count is None else count),
        {
            "is_density": count is None,
            "traced": call.traced is not None and call.arguments[call.traced].name != "scores",
        },
    )
    if isinstance(budget, Mapping | list | tuple) or np.ndim(budget):
        each = list(budget.values() if isinstance(budget, Mapping) else budget)
        asked = [amount(*row, **options) for row in zip(each, sizes, rooms, strict=True)]
        assert counts == asked, f"kept {counts} of {asked}"
    else:
        asked = amount(budget, sum(sizes), sum(rooms), **options)
        assert sum(counts) == asked, f"kept {sum(counts)} of {asked}"
        if scope == "layer" and masks is None:
            assert counts == oracles.shares(asked, sizes), "shares are not by largest remainder"
    groups = [[i] for i in range(len(values))] if scope == "layer" else [range(len(values))]
    for group in groups:
        part, chosen, there = (flat([tree[i] for i in group]) for tree in (values, kept, alive))
        assert not np.any(chosen > there), "a dead weight is kept"
        if np.isfinite(part).all():
            expected = oracles.top(part, int(chosen.sum()), there)
            np.testing.assert_array_equal(
                chosen, expected, "not the highest, the first among equals"
            )


def of_outputs(got, scores, masks, axes):
    """All outputs of a leaf keep as many of their own highest scores, if so many are alive."""
    for path, kept in fuzzing.trees.by_path(got, "masks").items():
        values = jnp.asarray(fuzzing.trees.by_path(scores, "scores")[path])
        there = jnp.ones(kept.shape, bool)
        if masks is not None:
            there = fuzzing.trees.by_path(masks, "masks")[path]
        outs = axes.get(path, -1) if isinstance(axes, Mapping) else -1 if axes is None else axes
        outs = [a % kept.ndim for a in (outs if isinstance(outs, tuple | list) else [outs])]
        order = [*outs, *(a for a in range(kept.ndim) if a not in outs)]
        count = math.prod(kept.shape[a] for a in outs)
        rows = [np.transpose(a, order).reshape(count, -1) for a in (values, kept, there)]
        most = max((int(row.sum()) for row in rows[1]), default=0)
        for row, chosen, alive in zip(*rows, strict=True):
            assert chosen.sum() == min(most, alive.sum()), "outputs keep different counts"
            if np.isfinite(row).all():
                expected = oracles.top(np.float64(row), int(chosen.sum()), alive)
                np.testing.assert_array_equal(chosen, expected)


@promise("masks.n_of_m")
def _(got, call, *, scores, n, m, axis=-2, masks=None):
    same_form(got, scores, bool)
    if call.traced is not None:
        return
    alive = [None] * 2 if masks is None else jax.tree.leaves(masks)
    for leaf, kept, there in zip(jax.tree.leaves(scores), jax.tree.leaves(got), alive, strict=True):
        one, two, three = (
            None if x is None else np.moveaxis(np.asarray(x), axis, -1).ravel()
            for x in (leaf, kept, there)
        )
        np.testing.assert_array_equal(two, oracles.n_of_m(one.astype(float), int(n), int(m), three))


@promise("masks.apply")
def _(got, call, *, params, masks):
    if not all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(params)):
        return
    same_form(got, params)
    for path, leaf in fuzzing.trees.by_path(masks, "masks").items():
        before, after = (fuzzing.trees.by_path(tree, "params")[path] for tree in (params, got))
        np.testing.assert_array_equal(flat(after), np.where(np.ravel(leaf), flat(before), 0))


@promise("masks.combine")
def _(got, call, *, masks=None, rule=None):
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(got)), "masks that are not bool"
    concrete = all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(masks))
    assert (
        rule is not None or not concrete or fuzzing.masks.count(got) <= fuzzing.masks.count(masks)
    )


@promise("masks.count", "masks.size", "masks.density", "surgery.effective_count")
def _(got, call, *, masks, layers=None):
    name = call.owner.partition(".")[2]
    if name == "size":  # of scores too
        assert got == sum(map(np.size, jax.tree.leaves(masks)))
        return
    size, kept = len(flat(masks)), flat(masks).sum()
    if name == "effective_count":
        assert 0 <= got <= kept
    else:
        expected = {"count": kept, "density": kept / max(size, 1)}[name]
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@promise("masks.by_layer", "masks.emptied")
def _(got, call, *, masks):
    assert list(got) == list(fuzzing.trees.by_path(masks, "masks"))
    if call.owner == "masks.by_layer":
        assert sum(int(layer.kept) for layer in got.values()) == flat(masks).sum()


@promise("masks.shuffle", "surgery.live")
def _(got, call, *, masks, key=None, layers=None):
    same_form(got, masks, bool)
    counts = [[int(np.sum(leaf)) for leaf in jax.tree.leaves(tree)] for tree in (got, masks)]
    assert counts[0] == counts[1] if layers is None else np.all(flat(got) <= flat(masks))


@promise("masks.pack")
def _(got, call, *, masks):
    assert int(np.bitwise_count(np.asarray(got)).sum()) == flat(masks).sum()


@promise("trees.full_masks")
def _(got, call, **_given):
    assert all(leaf.dtype == bool and np.all(leaf) for leaf in jax.tree.leaves(got))


@promise("trees.largest_remainder", "budgets.share")
def _(got, call, *, total, quotas=None, sizes=None):
    assert sum(got) == total


@promise(
    *(f"densities.{name}" for name in ("uniform", "erk", "igq", "uniform_plus()", "smart_ratio()"))
)
def _(got, call, *, shapes, density, **_given):
    sizes = [math.prod(int(n) for n in shape) for shape in shapes]
    assert sum(got) == round(float(density) * sum(sizes))
    assert all(0 <= k <= size for k, size in zip(got, sizes, strict=True))


@promise("densities.plan")
def _(got, call, *, tree, densities, **_given):
    if call.arguments[0].hostile:  # any function that returns counts
        return
    size = sum(map(np.size, jax.tree.leaves(tree)))
    assert got.sum(axis=1).tolist() == [round(float(d) * size) for d in np.atleast_1d(densities)]
    assert np.all(np.diff(got, axis=0) <= 0), "a count rises"


@promise(*(f"schedules.{name}()" for name in ("one_shot", "linear", "exponential", "cubic")))
def _(got, call, *, density, steps=1, initial=1.0, step):
    assert call.traced is not None or density - 1e-9 <= got <= initial + 1e-9
    assert call.traced is not None or step < steps or got == density, "not exactly the density"


@promise("pruning.level_counts")
def _(got, call, *, size, densities):
    each = densities if np.ndim(densities) else [densities]
    assert got.tolist() == [round(float(d) * size) for d in each]


@promise("budgets.kept")
def _(got, call, *, sizes, alive=None, **_given):
    assert all(0 <= k <= 18 for k in got)


@promise("Granularity.expand")
def _(got, call, *, granule_masks, like, **_given):
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(got))
    assert [np.shape(x) for x in jax.tree.leaves(got)] == [
        np.shape(x) for x in jax.tree.leaves(like)
    ]


@promise("pruning.pruner()")
def _(
    got,
    call,
    *,
    criterion,
    density=None,
    scope="global",
    axes=None,
    distribution=None,
    granularity=None,
    schedule=None,
    rounds=1,
    regrow=False,
    params,
    batch,
    masks=None,
    count=None,
    key=None,
):
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(got)), "masks that are not bool"
    if masks is not None:
        assert np.all(flat(got) <= flat(masks)), "a dead weight is kept"
    if distribution is not None or scope == "output":
        return
    if granularity is not None and granularity.name != "unstructured":
        return
    budget = density if count is None else count
    each = list(budget.values()) if isinstance(budget, Mapping) else np.atleast_1d(budget)
    sizes = [leaf.size for leaf in jax.tree.leaves(got)]
    if len(each) == 1 and np.ndim(each[0]) == 0 and call.traced is None:
        asked = round(float(each[0]) * sum(sizes)) if count is None else int(each[0])
        assert flat(got).sum() == asked, f"kept {flat(got).sum()} of {asked}"


@promise("GradientTransformationExtraArgs.update")
def _(got, call, *, tx, masks, updates, state, params):
    if masks is not None and params is not None:
        weights = fuzzing.trees.by_path(params, "params")
        for path, leaf in fuzzing.trees.by_path(masks, "masks").items():
            update = flat(fuzzing.trees.by_path(got[0], "updates")[path])
            dead = ~np.ravel(leaf)
            np.testing.assert_array_equal(update[dead], -flat(weights[path])[dead])


@promise("export.save_masks")
def _(got, call, *, masks, path):
    found = fuzzing.export.load_masks(got, like=masks)
    same_form(found, masks)
    np.testing.assert_array_equal(flat(found), flat(masks), "other masks come back")


@promise("export.save_pruned", "export.save_safetensors")
def _(got, call, *, params, masks, path):
    name = call.owner.replace("save", "load")
    found = getattr(fuzzing.export, name.partition(".")[2])(got, like=params)
    kept = fuzzing.trees.by_path(masks, "masks")
    pruned = {
        path: np.where(kept.get(path, True), leaf, np.zeros((), leaf.dtype))
        for path, leaf in fuzzing.trees.by_path(params, "params").items()
        if hasattr(leaf, "dtype")
    }
    back = fuzzing.trees.by_path(found.params, "params")
    for path, leaf in pruned.items():
        np.testing.assert_array_equal(back[path], leaf, "other params come back")
    assert flat(found.masks).sum() == flat(masks).sum(), "other masks come back"


@promise("export.load_masks", "export.load_pruned", "export.load_safetensors")
def _(got, call, *, path, like=None):
    kept = getattr(got, "masks", got)
    assert flat(kept).sum() == flat(fuzzing.KEPT).sum(), "other masks are loaded"


@promise("finetune.steps_per_epoch")
def _(got, call, *, examples, batch_size, remainder=True):
    examples = int(examples)
    size = examples if batch_size is None else int(batch_size)
    assert got == (-(-examples // size) if remainder else examples // size)


@promise(
    "finetune.start",
    "finetune.advance",
    "finetune.resume",
    "finetune.trainer()",
    "finetune.gradient_descent()",
    "algorithms.resume_imp",
)
def _(got, call, *, params=None, **_given):
    record = getattr(got, "last", got)
    if record.masks is not None:
        weights = fuzzing.trees.by_path(record.params, "params")
        for path, leaf in fuzzing.trees.by_path(record.masks, "masks").items():
            assert not np.any(flat(weights[path])[~np.ravel(leaf)]), "a pruned weight is not 0"
    if hasattr(record, "finite") and fuzzing.is_finite(params):
        assert bool(record.finite) <= fuzzing.is_finite(record.params), "NaN in finite params"


@promise("finetune.evaluate")
def _(got, call, *, data, **_given):
    assert 0 <= got.accuracy <= 1
    assert got.count == len(data[1])


@promise(*(f"criteria.{name}()" for name in (*GRADIENTS, *DATA_FREE)))
def _(got, call, *, params, where=None, **_given):
    weights = fuzzing.trees.by_path(params, "params")
    for path, leaf in fuzzing.trees.by_path(got, "scores").items():
        assert np.shape(leaf) == np.shape(weights[path])


@promise("reconstruct.obs()")
def _(got, call, *, params, masks, **_given):
    same_form(got, params)
    weights = fuzzing.trees.by_path(got, "params")
    for path, leaf in fuzzing.trees.by_path(masks, "masks").items():
        assert not np.any(flat(weights[path])[~np.ravel(leaf)]), "a pruned weight is not 0"


@promise("spectra.singular_values")
def _(got, call, *, params, inputs, **_given):
    assert got.shape[0] == len(inputs)
    assert call.traced is not None or (np.all(got >= 0) and np.all(np.diff(got) <= 1e-6))


@promise("spectra.summarize")
def _(got, call, *, values):
    assert fuzzing.holds_nan(values) or np.isclose(got.mean, np.mean(np.asarray(values)), 1e-3)


@promise("isometry.orthogonalize")
def _(got, call, *, params, masks=None, gain=1.0, **_given):
    same_form(got, params)
    if not _is_floating(params):
        return
    kernel = np.asarray(np.real(got["layer_0"]["kernel"]), np.float64)
    if kernel.shape == (4, 3) and masks is None and not callable(gain) and float(gain) < 1e9:
        exact = "bfloat16" not in str(got["layer_0"]["kernel"].dtype)
        if exact and fuzzing.is_finite(params):
            expected = float(gain) ** 2 * np.eye(3)
            np.testing.assert_allclose(kernel.T @ kernel, expected, atol=1e-4 * max(1, gain**2))


@promise("information.choice_bits")
def _(got, call, *, size, kept):
    if size > 1000:  # the binomials would not end
        return
    exact = sum(math.comb(int(size), int(k)) for k in np.unique(np.asarray(kept)))
    np.testing.assert_allclose(got, math.log2(exact), rtol=1e-6, atol=1e-9)


@promise("information.entropy", "information.plug_in", "information.miller_madow")
def _(got, call, *, probabilities=None, counts=None):
    assert got >= 0
    assert probabilities is None or got <= math.log2(len(probabilities)) + 1e-9


@promise("information.law")
def _(got, call, *, masks, weights=None):
    assert got.counts.sum() == len(got.outcomes) == len(jax.tree.leaves(masks)[0])
    np.testing.assert_allclose(got.probabilities.sum(), 1)


@promise("information.exact")
def _(got, call, *, datasets, **_given):
    assert np.all(np.asarray(got.bits) <= got.dataset_entropy_bits + 1e-9)
    assert np.all(np.asarray(got.bits) >= 0)
    assert got.cases == len(jax.tree.leaves(datasets)[0])


@promise("surgery.effective_density")
def _(got, call, *, masks, layers):
    assert 0 <= got <= flat(masks).mean() + 1e-6


@promise("surgery.remove")
def _(got, call, *, params, masks, layers, keep_constant=False):
    assert flat(got[1]).size <= flat(masks).size
    assert got[0]["layer_0"]["kernel"].shape == got[1]["layer_0"]["kernel"].shape


@promise("sweeps.run")
def _(got, call, *, function, cases, shared=None, **_given):
    assert len(got.finite) == len(jax.tree.leaves(cases)[0])
    assert bool(got.finite.all()) == fuzzing.is_finite(got.values)
    if function is fuzzing.case_sum:
        total = np.asarray(cases["x"], np.float64).sum(1) + (
            0 if shared is None else np.sum(shared)
        )
        np.testing.assert_allclose(got.values["sum"], total, rtol=1e-3)


@promise("synthetic.cube", "synthetic.sample_cube")
def _(got, call, *, count=None, dimension=3, points=6, law="distinct", key=None):
    inputs, labels = got.datasets if count is None else got
    assert inputs.shape[1:] == (int(points), int(dimension))
    assert set(np.unique(inputs)) | set(np.unique(labels)) <= {-1.0, 1.0}
    assert len(inputs) == int(count) if count is not None else np.isclose(got.weights.sum(), 1)


@promise("data.load")
def _(got, call, **_given):
    assert len(got.train.labels) + len(got.validation.labels) == 1437


@promise("tables.mean_interval")
def _(got, call, *, values, axis=0):
    np.testing.assert_allclose(got.mean, np.mean(np.asarray(values, np.float64), axis))


@promise("checkpoints.save")
def _(got, call, *, directory, step, tree, keep=2):
    found = fuzzing.checkpoints.restore(directory, tree)
    assert found is not None, "what was saved is not found"
    assert found[0] == int(step)
    assert jax.tree.structure(found[1]) == jax.tree.structure(tree)


@promise("Store.put")
def _(got, call, *, directory, context, name, values, say=None):
    found = fuzzing.records.Store(directory, context).get(name)
    assert found is not None, "what was put is not found"
    numbers = [sum(map(np.size, jax.tree.leaves(tree))) for tree in (found, values)]
    assert numbers[0] == numbers[1], "some of it is lost"


# --- The test ----------------------------------------------------------------------------------


def defect(outcome):
    """What is wrong with a call, in a few words; None if nothing is."""
    if outcome.error is not None:
        return fuzzing.complaint(outcome)
    call, given = outcome.calls[-1], {k: v for values in outcome.values for k, v in values.items()}
    try:
        check = PROMISES.get(call.owner)
        if check is not None and not _lacks(check, given):
            check(outcome.result, call, **given)
    except Exception as broken:  # of a promise that does not even have its form
        return " ".join(f"{type(broken).__name__}: {broken}".split())
    noise = "criteria.random" in outcome.line
    if callable(outcome.result) or call.owner in UNREAD or noise:
        return None
    there = fuzzing.leaves(outcome.result)
    read = {name: value for name, value in given.items() if name not in _unread(call.owner, given)}
    if fuzzing.holds_nan(read) and call.traced is None and there:
        return None if not fuzzing.is_finite(outcome.result) else "a NaN is hidden"
    if call.owner == "spectra.summarize":  # the condition number may be infinite
        return None
    if fuzzing.is_finite(given) and not outcome.hostile and not fuzzing.is_finite(outcome.result):
        return "a NaN or infinity from finite arguments"
    return None


def _unread(owner, given):
    """The arguments in which a NaN changes nothing."""
    if given.get("steps") == 0 or given.get("masks") is fuzzing.EMPTY:  # nothing is left to read
        return set(given)
    if owner in ("algorithms.at_init()", "algorithms.checked()"):  # the pruner takes magnitudes
        return {"key", "data"}
    if owner == "finetune.epoch_rates()":  # a schedule of optax
        return set(given)
    losses = (*GRADIENTS, "gradients", "entropy", "error")
    uses_batch = any(name in owner for name in losses)
    by_data = uses_batch or not owner.startswith(("criteria", "pruning"))
    return (
        {"key", "k", "rule", "layers"} if by_data else {"key", "batch", "schedule", "distribution"}
    )


def _is_floating(params):
    kernel = params["layer_0"]["kernel"]
    return hasattr(kernel, "dtype") and jnp.issubdtype(kernel.dtype, jnp.floating)


def _lacks(check, given):
    parameters = inspect.signature(check).parameters.values()
    return any(
        p.default is p.empty and p.kind is p.KEYWORD_ONLY and p.name not in given
        for p in parameters
    )


def weight(name):
    known = {**SELDOM, **OFTEN}
    return known.get(name, known.get(name.partition(".")[0], 20))


def every_call(seed, count):
    """`count` calls, spread over the public functions by weight, and for each what is wrong."""
    rng = random.Random(seed)
    functions = fuzzing.public()
    names = sorted(functions)
    for name in rng.choices(names, [weight(name) for name in names], k=count):
        outcome = fuzzing.made(rng, name, functions[name])
        yield name, outcome, defect(outcome)


@pytest.fixture
def whole_tracebacks():
    """Tracebacks with the frames of JAX, which show where an error was raised."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


def test_every_public_function_has_values_to_be_called_with():
    for name, function in fuzzing.public().items():
        for parameter in inspect.signature(function).parameters:
            fuzzing.lookup(name, parameter)


@pytest.mark.usefixtures("unchecked", "whole_tracebacks")
def test_no_call_is_wrong_in_silence_and_every_refusal_says_what_to_do():
    faulthandler.dump_traceback_later(20 * fuzzing.LIMIT_SECONDS)  # a hang outside of Python
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # those of NumPy and JAX would hide a wrong number
        warnings.simplefilter("ignore", UserWarning)
        for name, outcome, wrong in every_call(SEED, CALLS):
            if wrong is not None:
                error = "" if outcome.error is None else f"\n    {outcome.error!r:.300}"
                found.setdefault((name, wrong), f"{wrong}:\n  {outcome.line}{error}")
    faulthandler.cancel_dump_traceback_later()
    assert not found, "\n".join([f"seed {SEED}", *found.values()])
