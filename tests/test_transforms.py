from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopr import masks as masks_
from nopr import transforms, trees

TRANSFORMATIONS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
    "clip": optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(0.5, momentum=0.9)),
    "clipped adam": optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.1)),
    "schedule": optax.sgd(optax.linear_schedule(0.3, 0.1, 5), momentum=0.9),
    "lion": optax.lion(0.1, weight_decay=0.1),
    "rmsprop": optax.rmsprop(0.1, momentum=0.9),
    "lamb": optax.lamb(0.1, weight_decay=0.1),
    "masked": optax.masked(optax.adam(0.1), lambda params: jax.tree.map(lambda _: True, params)),
    "multi_transform": optax.multi_transform(
        {"all": optax.adam(0.1)}, lambda params: jax.tree.map(lambda _: "all", params)
    ),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "MultiSteps": optax.MultiSteps(optax.adam(0.1), every_k_schedule=2),
}


def _problem(rng):
    """A quadratic that ties every weight to every other, its masks, and a start."""
    params = {
        "first": {"bias": rng.normal(size=2), "kernel": rng.normal(size=(3, 2))},
        "second": {"kernel": rng.normal(size=(2, 2))},
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    masks = {
        "first": {"bias": None, "kernel": jnp.array([[1, 0], [1, 1], [0, 0]], bool)},
        "second": {"kernel": jnp.array([[0, 1], [1, 1]], bool)},
    }
    matrix = jnp.asarray(rng.normal(size=(12, 12)), jnp.float32)
    return params, masks, lambda vector: jnp.sum((matrix @ (vector - 1)) ** 2) / 12


def _steps(tx, params, gradient, steps=6):
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


def _flat(tree):
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def _kept_places(masks, params):
    full = trees.overlay(lambda _, mask: mask, jax.tree.map(jnp.ones_like, params), masks)
    return np.flatnonzero(_flat(full))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_training_is_that_of_the_network_without_the_pruned_weights(name, rng):
    tx = TRANSFORMATIONS[name]
    params, masks, energy = _problem(rng)
    places = _kept_places(masks, params)
    start = masks_.apply(params, masks)
    kept = transforms.keep(tx, masks)

    @jax.jit
    def step(params, state):
        updates, state = kept.update(jax.grad(lambda p: energy(_flat(p)))(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, kept.init(start)
    for _ in range(6):
        params, state = step(params, state)

    def small(leaves):
        return energy(jnp.zeros(12).at[places].set(_flat(leaves)))

    alone = [leaf[leaf != 0] for leaf in jax.tree.leaves(start)]  # the network without the others
    expected = np.zeros(12, np.float32)
    expected[places] = _flat(_steps(tx, alone, jax.grad(small)))
    values = np.asarray(_flat(params))
    np.testing.assert_array_equal(np.delete(values, places), 0)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    if name != "MultiSteps":  # which makes no update in between
        once, _ = step(jax.tree.map(lambda leaf: leaf + 1, start), kept.init(start))
        np.testing.assert_array_equal(np.delete(np.asarray(_flat(once)), places), 0)


@pytest.mark.parametrize(
    "tx", [optax.adafactor(0.1), optax.contrib.muon(0.1)], ids=["adafactor", "muon"]
)
def test_pruned_weights_stay_zero_where_the_optimizer_mixes_the_weights_of_a_leaf(tx, rng):
    params, masks, energy = _problem(rng)
    trained = _steps(
        transforms.keep(tx, masks), params, jax.grad(lambda p: energy(_flat(p))), steps=2
    )
    values, places = np.asarray(_flat(trained)), _kept_places(masks, params)
    np.testing.assert_array_equal(np.delete(values, places), 0)
    assert np.all(np.isfinite(values))
    assert np.all(values[places] != _flat(params)[places])


WRAPPERS = {
    "chain": lambda tx, masks: optax.chain(optax.identity(), transforms.keep(tx, masks)),
    "inject_hyperparams": lambda tx, masks: optax.inject_hyperparams(
        lambda learning_rate: transforms.keep(optax.sgd(learning_rate, momentum=0.9), masks)
    )(learning_rate=0.1),
    "MultiSteps": lambda tx, masks: optax.MultiSteps(transforms.keep(tx, masks), 1),
    "multi_transform": lambda tx, masks: optax.multi_transform(
        {"one": transforms.keep(tx, masks), "two": transforms.keep(tx, masks)},
        {"first": {"bias": "two", "kernel": "one"}, "second": {"kernel": "two"}},
    ),
    "multi_transform by subtree": lambda tx, masks: optax.multi_transform(
        {"one": transforms.keep(tx, masks), "two": transforms.keep(tx, masks)},
        {"first": "one", "second": "two"},
    ),
    "masked": lambda tx, masks: optax.masked(transforms.keep(tx, masks), True),
    "named_chain": lambda tx, masks: optax.named_chain(("keep", transforms.keep(tx, masks))),
    "apply_if_finite": lambda tx, masks: optax.apply_if_finite(transforms.keep(tx, masks), 3),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_it_works_inside_the_wrappers_of_optax(name, rng):
    params, masks, energy = _problem(rng)
    tx = TRANSFORMATIONS["momentum"]
    gradient = jax.grad(lambda p: energy(_flat(p)))
    plain = _steps(transforms.keep(tx, masks), params, gradient)
    wrapped = _steps(WRAPPERS[name](tx, masks), params, gradient)
    np.testing.assert_allclose(_flat(wrapped), _flat(plain), rtol=1e-5, atol=1e-6)
    pruned = np.setdiff1d(np.arange(12), _kept_places(masks, params))
    np.testing.assert_array_equal(_flat(wrapped)[pruned], 0)


def test_lookahead_goes_around_it_and_is_refused_inside(rng):
    params, masks, energy = _problem(rng)
    lookahead = partial(optax.lookahead, sync_period=2, slow_step_size=0.5)
    with pytest.raises(ValueError, match=r"`optax\.lookahead\(transforms\.keep\(tx, masks\)"):
        transforms.keep(optax.chain(optax.identity(), lookahead(optax.sgd(0.1))), masks).init(
            optax.LookaheadParams.init_synced(params)
        )
    tx = lookahead(transforms.keep(optax.sgd(0.1), masks))
    pair = _steps(
        tx,
        optax.LookaheadParams.init_synced(masks_.apply(params, masks)),
        lambda pair: jax.grad(lambda p: energy(_flat(p)))(pair.fast),
    )
    for values in map(_flat, pair):
        np.testing.assert_array_equal(np.delete(values, _kept_places(masks, params)), 0)


def test_leaves_that_another_transformation_owns_pass_through(rng):
    params, masks, energy = _problem(rng)
    tx = optax.masked(
        transforms.keep(optax.sgd(0.1), masks), {"first": True, "second": {"kernel": False}}
    )
    gradients = jax.grad(lambda p: energy(_flat(p)))(params)
    updates, _ = tx.update(gradients, tx.init(params), params)
    np.testing.assert_array_equal(updates["second"]["kernel"], gradients["second"]["kernel"])
    kernel = masks["first"]["kernel"]
    np.testing.assert_array_equal(
        updates["first"]["kernel"],
        jnp.where(kernel, -0.1 * gradients["first"]["kernel"], -params["first"]["kernel"]),
    )


@given(
    bits=st.lists(st.booleans(), min_size=12, max_size=12),
    values=st.lists(st.sampled_from([-2.0, -0.5, 0.0, 1.0]), min_size=12, max_size=12),
)
def test_sgd_under_masks_is_sgd_on_the_masked_loss(bits, values):
    mask = np.array(bits).reshape(3, 4)
    start = np.where(mask, np.array(values, np.float32).reshape(3, 4), np.float32(0))
    ours, plain = _both_descents({"w": mask}, {"w": start})
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(ours)[~mask], 0)


@jax.jit
def _both_descents(masks, params):
    def energy(vector):
        return jnp.sum(jnp.cos(vector - jnp.arange(12))) + jnp.sum(vector) ** 2

    def run(tx, loss, params):
        def body(_, carry):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 5, body, (params, tx.init(params)))[0]

    tx = optax.sgd(0.05, momentum=0.9)
    ours = run(transforms.keep(tx, masks), lambda p: energy(p["w"].reshape(-1)), params)
    masked = lambda p: energy((p["w"] * masks["w"]).reshape(-1))  # noqa: E731
    return ours["w"], run(tx, masked, params)["w"]


def test_one_compilation_serves_all_masks_and_they_vmap(rng):
    params, masks, energy = _problem(rng)
    traces = []

    @jax.jit
    def step(params, masks):
        traces.append(1)
        tx = transforms.keep(optax.adam(0.1), masks)
        gradients = jax.grad(lambda p: energy(_flat(p)))(params)
        updates, _ = tx.update(gradients, tx.init(params), params)
        return optax.apply_updates(params, updates)

    others = jax.tree.map(jnp.logical_not, masks)
    first, second = step(params, masks), step(params, others)
    assert len(traces) == 1
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), masks, others)
    together = jax.vmap(step, in_axes=(None, 0))(params, both)
    for index, alone in enumerate((first, second)):
        np.testing.assert_allclose(
            _flat(jax.tree.map(lambda leaf, i=index: leaf[i], together)), _flat(alone), rtol=1e-5
        )


def test_without_masks_the_transformation_is_unchanged(rng):
    params, _, energy = _problem(rng)
    gradient = jax.grad(lambda p: energy(_flat(p)))
    tx = TRANSFORMATIONS["clipped adam"]
    np.testing.assert_array_equal(
        _flat(_steps(transforms.keep(tx, None), params, gradient)),
        _flat(_steps(tx, params, gradient)),
    )


def test_the_state_is_that_of_the_wrapped_transformation(rng):
    params, masks, _ = _problem(rng)
    tx = TRANSFORMATIONS["adamw"]
    ours, plain = transforms.keep(tx, masks).init(params), tx.init(params)
    assert jax.tree.structure(ours) == jax.tree.structure(plain)


def test_masks_may_cover_biases_too(rng):
    params, masks, energy = _problem(rng)
    masks["first"]["bias"] = jnp.array([True, False])
    tx = transforms.keep(TRANSFORMATIONS["momentum"], masks)
    trained = _steps(tx, params, jax.grad(lambda p: energy(_flat(p))))
    assert trained["first"]["bias"][1] == 0
    assert trained["first"]["bias"][0] != 0


@pytest.mark.long
def test_a_nan_in_a_pruned_gradient_does_not_spread(rng):
    params, masks, _ = _problem(rng)
    gradients = jax.tree.map(
        lambda m, w: jnp.ones_like(w) if m is None else jnp.where(m, 1.0, jnp.nan),
        masks,
        params,
        is_leaf=lambda m: m is None,
    )
    tx = transforms.keep(TRANSFORMATIONS["clipped adam"], masks)
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert np.isfinite(_flat(updates)).all()


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.MultiSteps(tx, 1)])
def test_extra_arguments_reach_the_transformation(wrap, rng):
    params, masks, _ = _problem(rng)

    def update(updates, state, params=None, *, value, **_):
        return jax.tree.map(lambda leaf: leaf * value, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = transforms.keep(wrap(inner), masks)
    updates, _ = tx.update(params, tx.init(params), params, value=3.0)
    np.testing.assert_allclose(updates["first"]["bias"], 3 * params["first"]["bias"], rtol=1e-6)


def test_missing_params_are_asked_for(rng):
    params, masks, _ = _problem(rng)
    tx = transforms.keep(optax.sgd(0.1), masks)
    with pytest.raises(ValueError, match=r"`params` must be given to the `update` .* got None"):
        tx.update(params, tx.init(params))


def test_masks_that_do_not_match_are_refused_by_the_name_of_the_leaf(rng):
    params, masks, _ = _problem(rng)
    wrong = {**masks, "third": {"kernel": jnp.ones((2, 2), bool)}}
    tx = transforms.keep(optax.sgd(0.1), wrong)
    with pytest.raises(ValueError, match="`masks` has a leaf at 'third/kernel'"):
        tx.update(params, tx.init(params), params)
    wrong = {**masks, "second": {"kernel": jnp.ones((3, 2), bool)}}
    tx = transforms.keep(optax.sgd(0.1), wrong)
    with pytest.raises(ValueError, match=r"`masks` has shape \(3, 2\) at 'second/kernel'"):
        tx.update(params, tx.init(params), params)


@pytest.mark.usefixtures("unchecked")
def test_masks_in_place_of_a_transformation_are_refused():
    with pytest.raises(ValueError, match=r"`tx` must be an optax .*got a dict\. Make one"):
        transforms.keep({"w": jnp.ones(2, bool)}, optax.sgd(0.1))


def test_params_or_gradients_that_are_stacked_are_refused(rng):
    params, masks, _ = _problem(rng)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    tx = transforms.keep(optax.sgd(0.1), masks)
    for gradients, values, name in ((params, stacked, "params"), (stacked, stacked, "updates")):
        with pytest.raises(ValueError, match=rf"'first/kernel', where `{name}` has \(2, 3, 2\)"):
            tx.update(gradients, tx.init(values), values)
