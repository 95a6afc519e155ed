import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nopr import convolutions, finetune

N, BATCH = 11, 4  # two full batches and one of three
RATE = 0.05


def _apply(params, inputs):
    return inputs @ params["kernel"] + params["bias"]


_LOSS = finetune.squared_error(_apply)
_TX = optax.sgd(RATE, momentum=0.9)
_ADAMW = optax.adamw(0.1)
_STEP_LOSS = finetune.stateless(_LOSS)
_TRAIN = finetune.trainer(_LOSS, _TX, epochs=3, batch_size=BATCH)


def _norm(params):
    return {"norm": jnp.sum(params["kernel"] ** 2)}


@pytest.fixture
def problem(rng):
    """Params, masks and data of a linear regression, with the examples' ids among the inputs."""
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    masks = {"kernel": np.array([[1, 0], [1, 1], [0, 1]], bool), "bias": None}
    inputs, targets = rng.normal(size=(N, 3)), rng.normal(size=(N, 2))
    return params, masks, (inputs.astype(np.float32), targets.astype(np.float32))


def _recording(params, state, batch, key):
    """The loss; records in the state which examples it saw and what the key gave."""
    del key
    ids, *batch = batch
    place, seen = state
    seen = jax.lax.dynamic_update_slice(seen, ids, (place,))
    return _LOSS(params, batch), (place + len(ids), seen)


def _equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def _close(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), tree, other)


def _momentum_by_hand(params, masks, data, batches):
    """SGD with momentum on a masked linear model, in float64, written out."""
    inputs, targets = (np.asarray(leaf, np.float64) for leaf in data)
    kernel = np.where(masks["kernel"], params["kernel"], 0).astype(np.float64)
    bias = np.asarray(params["bias"], np.float64)
    speed_kernel, speed_bias, losses = np.zeros((3, 2)), np.zeros(2), []
    for rows in batches:
        error = inputs[rows] @ kernel + bias - targets[rows]
        losses.append(np.sum(error**2) / len(rows))
        gradient = 2 * inputs[rows].T @ error / len(rows) * masks["kernel"]
        speed_kernel = 0.9 * speed_kernel + gradient
        speed_bias = 0.9 * speed_bias + 2 * error.mean(axis=0)
        kernel = kernel - RATE * speed_kernel
        bias = bias - RATE * speed_bias
    return {"kernel": kernel, "bias": bias}, losses


def test_training_agrees_with_the_slow_loop_and_visits_every_example_once_an_epoch(problem, getkey):
    params, masks, data = problem
    state = (jnp.zeros((), jnp.int32), jnp.zeros(3 * N, jnp.int32))
    train = finetune.trainer(
        _recording, _TX, epochs=3, batch_size=BATCH, stateful=True, state=state
    )
    fitted = train(params, masks, (np.arange(N, dtype=np.int32), *data), key=getkey())
    orders = np.asarray(fitted.state[1]).reshape(3, N)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(N), (3, 1)))
    assert len({tuple(order) for order in orders}) == 3
    batches = [order[first : first + BATCH] for order in orders for first in range(0, N, BATCH)]
    expected, losses = _momentum_by_hand(params, masks, data, batches)
    _close(fitted.params, expected)
    sizes = np.array([4, 4, 3])
    np.testing.assert_allclose(
        fitted.history.loss, np.reshape(losses, (3, 3)) @ sizes / N, rtol=1e-5
    )
    np.testing.assert_array_equal(np.asarray(fitted.params["kernel"])[~masks["kernel"]], 0)


@pytest.mark.long
@pytest.mark.parametrize("parts", [(2, 2), (1, 1, 2), (3, 1)])
@pytest.mark.parametrize("batch_size", [BATCH, None])
def test_two_calls_end_bit_for_bit_where_one_does(parts, batch_size, problem, getkey):
    params, masks, data = problem
    options = {"step_loss": _STEP_LOSS, "tx": _ADAMW, "batch_size": batch_size, "monitor": _norm}
    start = finetune.start(params, masks, tx=_ADAMW, key=getkey())
    whole = finetune.advance(start, data, epochs=4, **options)
    carry, pieces = start, []
    for epochs in parts:
        fitted = finetune.advance(carry, data, epochs=epochs, **options)
        carry = fitted.carry
        pieces.append(fitted.history)
    _equal(carry._replace(key=0), whole.carry._replace(key=0))
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
    _equal(together, whole.history)
    assert int(whole.epoch) == 4
    assert int(whole.step) == 4 * finetune.steps_per_epoch(N, batch_size=batch_size)


def test_full_batch_descent_on_a_quadratic_has_its_closed_form(rng):
    curvature, start, target = rng.uniform(0.5, 2, (3, 2, 2))
    data = (jnp.zeros((5, 1)),)

    def loss(params, batch):
        del batch
        return jnp.sum(curvature * (params["w"] - target) ** 2) / 2

    expected = target + (1 - RATE * curvature) ** 20 * (start - target)
    params = {"w": jnp.asarray(start, jnp.float32)}
    descended = finetune.gradient_descent(loss, steps=20, learning_rate=RATE)(params, None, data)
    np.testing.assert_allclose(descended.params["w"], expected, rtol=1e-5)
    before = target + (1 - RATE * curvature) ** 19 * (start - target)
    np.testing.assert_allclose(
        descended.history.loss[-1], np.sum(curvature * (before - target) ** 2) / 2, rtol=1e-5
    )
    train = finetune.trainer(loss, optax.sgd(RATE), epochs=20, batch_size=None)
    fitted = train(params, None, data, key=jax.random.key(0))
    np.testing.assert_allclose(fitted.params["w"], expected, rtol=1e-5)


def test_gradient_descent_with_a_transformation_is_full_batch_training(problem, getkey):
    params, masks, data = problem
    descended = finetune.gradient_descent(_LOSS, steps=4, tx=_TX)(params, masks, data)
    train = finetune.trainer(_LOSS, _TX, epochs=4, batch_size=None)
    fitted = train(params, masks, data, key=getkey())
    _close(descended._replace(key=0), fitted._replace(key=0))
    np.testing.assert_array_equal(np.asarray(descended.params["kernel"])[~masks["kernel"]], 0)


def test_a_batch_size_beyond_the_data_is_one_full_batch(problem, getkey):
    params, masks, data = problem
    large = finetune.trainer(_LOSS, _TX, epochs=2, batch_size=100)
    full = finetune.trainer(_LOSS, _TX, epochs=2, batch_size=None)
    key = getkey()
    _close(large(params, masks, data, key=key).params, full(params, masks, data, key=key).params)


@pytest.mark.parametrize("batch_size", [BATCH, None])
def test_training_continues_from_a_record_bit_for_bit(batch_size, problem, getkey):
    params, masks, data = problem
    key, options = getkey(), {"batch_size": batch_size, "monitor": _norm}
    half, whole = (
        finetune.trainer(_LOSS, _ADAMW, epochs=epochs, **options)(params, masks, data, key=key)
        for epochs in (2, 4)
    )
    rest = finetune.advance(half.carry, data, step_loss=_STEP_LOSS, tx=_ADAMW, epochs=2, **options)
    _equal(rest.carry._replace(key=0), whole.carry._replace(key=0))
    _equal(rest.masks, masks)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), half.history, rest.history)
    _equal(joined, whole.history)


class _Rotating(NamedTuple):
    """The state of a transformation that keeps another row of the kernel after every step."""

    step: jax.Array
    masks: Any


def _rotating_init(params):
    mask = jnp.arange(len(params["kernel"]))[:, None] == jnp.zeros_like(params["kernel"])
    return _Rotating(jnp.int32(0), {"kernel": mask, "bias": None})


def _rotating_update(updates, state, params):
    kept = jnp.roll(state.masks["kernel"], 1, axis=0)
    kernel = jnp.where(kept, -RATE * updates["kernel"] + 1e-3, -params["kernel"])
    updates = {"kernel": kernel, "bias": -RATE * updates["bias"]}
    return updates, _Rotating(state.step + 1, {"kernel": kept, "bias": None})


_ROTATING = optax.GradientTransformation(_rotating_init, _rotating_update)


def _read(opt_state):
    return opt_state.masks


def test_masks_that_training_changes_come_out_of_it(problem, getkey):
    params, masks, data = problem
    options = {"batch_size": BATCH, "read_masks": _read}
    train = finetune.trainer(
        _LOSS,
        _ROTATING,
        epochs=2,
        monitor=lambda params: {"kept": jnp.argmax(jnp.abs(params["kernel"][:, 0]))},
        best_by="kept",
        **{**options, "batch_size": None},
    )
    fitted = train(params, None, data, key=getkey())
    for trained, kept, row in (
        (fitted.params, fitted.masks, 2),
        (fitted.best_params, fitted.best_masks, int(fitted.best_epoch) + 1),
    ):
        np.testing.assert_array_equal(np.flatnonzero(np.all(kept["kernel"], axis=1)), [row])
        np.testing.assert_array_equal(np.asarray(trained["kernel"]) != 0, kept["kernel"])
    later = finetune.advance(
        fitted.carry, data, step_loss=_STEP_LOSS, tx=_ROTATING, epochs=1, **options
    )
    np.testing.assert_array_equal(np.argmax(later.masks["kernel"], axis=0), (2 + 3) % 3)
    with pytest.raises(ValueError, match="`masks` must be None with `read_masks`"):
        train(params, masks, data, key=getkey())


def test_without_remainder_only_full_batches_are_steps(problem, getkey):
    params, masks, data = problem
    carry = finetune.start(params, masks, tx=_TX, key=getkey())
    options = {"step_loss": _STEP_LOSS, "tx": _TX, "epochs": 2, "batch_size": BATCH}
    fitted = finetune.advance(carry, data, remainder=False, **options)
    assert int(fitted.step) == 4 == 2 * finetune.steps_per_epoch(N, batch_size=4, remainder=False)


@pytest.mark.parametrize("tx", [_TX, _ADAMW], ids=["momentum", "adamw"])
def test_pruned_weights_are_zero_after_every_epoch(tx, problem, getkey):
    params, masks, data = problem

    def monitor(params):
        pruned = jnp.where(masks["kernel"], 0, params["kernel"])
        return {"pruned": jnp.abs(pruned).max(), "kept": jnp.abs(params["kernel"]).max()}

    train = finetune.trainer(_LOSS, tx, epochs=4, batch_size=BATCH, monitor=monitor)
    metrics = train(params, masks, data, key=getkey()).history.metrics
    np.testing.assert_array_equal(metrics["pruned"], np.zeros(4))
    assert np.all(metrics["kept"] > 0)


@pytest.mark.long
def test_no_masks_and_full_masks_train_the_same_network(problem, getkey):
    params, _, data = problem
    key, full = getkey(), {"kernel": jnp.ones((3, 2), bool), "bias": None}
    dense = _TRAIN(params, None, data, key=key)
    _close(dense.params, _TRAIN(params, full, data, key=key).params)


def test_one_compilation_serves_all_masks(problem, getkey):
    params, masks, data = problem
    traces = []

    def loss(params, batch):
        traces.append(1)
        return _LOSS(params, batch)

    train = finetune.trainer(loss, _TX, epochs=1, batch_size=None)
    train(params, masks, data, key=getkey())
    first = len(traces)
    other = {"kernel": ~masks["kernel"], "bias": None}
    trained = train(params, other, data, key=getkey()).params
    assert len(traces) == first
    np.testing.assert_array_equal(np.asarray(trained["kernel"])[masks["kernel"]], 0)


@pytest.mark.long
def test_seeds_under_vmap_and_jit_agree_with_a_loop(problem, getkey, rng):
    params, _, data = problem
    keys = jax.random.split(getkey(), 3)
    many = jax.tree.map(lambda leaf: leaf + rng.normal(size=(3, *leaf.shape)), params)
    many = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), many)
    kept = {"kernel": jnp.asarray(rng.random((3, 3, 2)) < 0.5), "bias": None}
    together = jax.jit(jax.vmap(lambda p, m, key: _TRAIN(p, m, data, key=key)))(many, kept, keys)
    for index, key in enumerate(keys):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], (many, kept, together))
        alone = _TRAIN(one[0], one[1], data, key=key)
        _close(one[2]._replace(key=0), alone._replace(key=0))


def test_state_is_carried_from_step_to_step(problem, getkey):
    params, _, data = problem

    def step_loss(params, mean, batch, key):
        del key
        return _LOSS(params, batch), 0.5 * mean + 0.5 * jnp.mean(batch[0])

    train = finetune.trainer(
        step_loss, _TX, epochs=5, batch_size=None, stateful=True, state=jnp.zeros(())
    )
    fitted = train(params, None, data, key=getkey())
    expected = data[0].mean() * (1 - 0.5**5)
    np.testing.assert_allclose(fitted.state, expected, rtol=1e-5)


def test_every_step_has_a_key_of_its_own(problem, getkey):
    params, _, data = problem

    def step_loss(params, state, batch, key):
        place, seen = state
        seen = seen.at[place].set(jax.random.bits(key))
        return _LOSS(params, batch), (place + 1, seen)

    state = (jnp.zeros((), jnp.int32), jnp.zeros(6, jnp.uint32))
    train = finetune.trainer(step_loss, _TX, epochs=2, batch_size=4, stateful=True, state=state)
    assert len(set(np.asarray(train(params, None, data, key=getkey()).state[1]).tolist())) == 6


def _counting(table):
    """A run whose weight is the number of epochs done, and a monitor that reads a table."""
    values = jnp.asarray(table)
    train = finetune.trainer(
        lambda params, batch: -jnp.sum(params["w"]) + 0 * jnp.sum(batch),
        optax.sgd(1.0),
        epochs=len(table),
        batch_size=None,
        monitor=lambda params: {"accuracy": values[params["w"].astype(int) - 1]},
        best_by="accuracy",
    )
    return train({"w": jnp.zeros(())}, None, jnp.zeros((1, 1)), key=jax.random.key(0))


@pytest.mark.parametrize(
    ("table", "best"),
    [
        ([1.0, 3.0, 2.0, 3.0], 1),
        ([5.0, 3.0, 5.0, 4.0], 0),
        ([jnp.nan, 1.0, jnp.nan, 2.0], 3),
        ([-jnp.inf, -jnp.inf, jnp.nan, -1.0], 3),
        ([jnp.nan] * 4, 0),
    ],
)
def test_the_best_epoch_is_the_first_of_the_highest(table, best):
    fitted = _counting(table)
    assert int(fitted.best_epoch) == best
    assert float(fitted.best_params["w"]) == best + 1
    assert float(fitted.params["w"]) == 4
    np.testing.assert_array_equal(fitted.history.metrics["accuracy"], table)


def test_a_monitor_of_training_with_a_state_gets_it_and_the_best_state_is_kept():
    """The state counts the steps, and the monitor reads a table by it."""
    table = jnp.asarray([1.0, 4.0, 2.0, 3.0])
    params, data = {"w": jnp.zeros(())}, jnp.zeros((1, 1))
    options = {
        "tx": optax.sgd(1.0),
        "epochs": 4,
        "batch_size": None,
        "monitor": lambda params, state: {"seen": table[state - 1], "w": params["w"]},
    }

    def step_loss(params, state, batch, key):
        return -params["w"] + 0 * jnp.sum(batch), state + 1

    train = finetune.trainer(step_loss, stateful=True, state=0, best_by="seen", **options)
    best = train(params, None, data, key=jax.random.key(0))
    found = best.best_epoch, best.best_params["w"], best.best_state, best.state
    assert [int(value) for value in found] == [1, 2, 2, 4]
    carry = finetune.start(
        params, None, tx=options["tx"], state=jnp.array(0), key=jax.random.key(0)
    )
    advanced = finetune.advance(carry, data, step_loss=step_loss, **options)
    resumed = finetune.resume(carry, data, step_loss=step_loss, every=2, **options)
    for fitted in (best, advanced, resumed):
        np.testing.assert_array_equal(fitted.history.metrics["seen"], table)
        np.testing.assert_array_equal(fitted.history.metrics["w"], [1, 2, 3, 4])


def test_nothing_is_best_where_no_metric_chooses(problem, getkey):
    fitted = _TRAIN(*problem, key=getkey())
    assert fitted[-4:] == (None,) * 4


def test_one_bad_example_anywhere_flags_its_run_alone(problem, getkey):
    params, masks, (inputs, targets) = problem
    many = np.stack([targets] * (N + 1))
    many[np.arange(N), np.arange(N), 0] = np.where(np.arange(N) % 2, np.nan, np.inf)
    train = finetune.trainer(_LOSS, _TX, epochs=1, batch_size=BATCH)
    key = getkey()
    fitted = jax.vmap(lambda targets: train(params, masks, (inputs, targets), key=key))(many)
    np.testing.assert_array_equal(fitted.finite, [False] * N + [True])
    assert np.isfinite(fitted.params["kernel"][N]).all()


class _Flags(NamedTuple):
    finite: np.ndarray


@pytest.mark.parametrize(
    ("finite", "message"),
    [
        ([True, False, True, False], r"infinity in 2 of 4 runs: 1, 3\. Lower"),
        (False, r"^Training gave NaN or infinity\. Lower"),
        ([[True] * 3, [True, True, False]], r"in 1 of 6 runs: \[1, 2\]\."),
        ([False] * 25, r"18, 19 and 5 more\."),
    ],
)
def test_runs_that_are_not_finite_are_listed(finite, message):
    with pytest.raises(FloatingPointError, match=message):
        finetune.raise_if_not_finite(_Flags(np.array(finite)))
    finetune.raise_if_not_finite(_Flags(np.ones_like(finite)))


def test_descent_that_diverges_is_flagged_alone(problem):
    params, masks, data = problem
    train = finetune.gradient_descent(_LOSS, steps=200, learning_rate=RATE)
    scales = jnp.array([1.0, 1e6])
    descended = jax.vmap(lambda s: train(params, masks, (s * data[0], data[1])))(scales)
    np.testing.assert_array_equal(descended.finite, [True, False])


def _accuracy_by_hand(logits, labels):
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return np.mean(logits.argmax(axis=1) == labels), losses.mean()


@pytest.mark.parametrize("batch_size", [1, 4, 11, 1000])
def test_evaluation_counts_every_example(batch_size, problem, rng):
    params, _, (inputs, _) = problem
    labels = rng.integers(0, 2, N)
    evaluation = finetune.evaluate(_apply, params, (inputs, labels), batch_size=batch_size)
    accuracy, loss = _accuracy_by_hand(_apply(params, inputs), labels)
    assert evaluation.count == N
    np.testing.assert_allclose(evaluation.accuracy, accuracy, rtol=1e-6)
    np.testing.assert_allclose(evaluation.loss, loss, rtol=1e-5)


def test_evaluation_vmaps_over_networks(problem, rng):
    params, _, (inputs, _) = problem
    labels = rng.integers(0, 2, N)
    many = jax.tree.map(lambda leaf: np.stack([leaf, -leaf]), params)
    both = jax.jit(jax.vmap(lambda p: finetune.evaluate(_apply, p, (inputs, labels), batch_size=4)))
    evaluations = both(many)
    for index, sign in enumerate((1, -1)):
        expected = _accuracy_by_hand(sign * _apply(params, inputs), labels)
        got = evaluations.accuracy[index], evaluations.loss[index]
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_nan_in_the_last_example_is_not_hidden_by_the_filling(problem):
    params, _, (inputs, _) = problem
    inputs = inputs.copy()
    inputs[0] = np.nan
    labels = np.zeros(N, int)
    assert np.isnan(finetune.evaluate(_apply, params, (inputs, labels), batch_size=4).loss)
    kept = finetune.evaluate(_apply, params, (inputs[1:], labels[1:]), batch_size=4)
    assert np.isfinite(kept.loss)


def test_cross_entropy_divides_by_the_temperature(problem, rng):
    params, _, (inputs, _) = problem
    labels = rng.integers(0, 2, N)
    for temperature in (1.0, 2.5):
        loss = finetune.cross_entropy(_apply, temperature=temperature)(params, (inputs, labels))
        _, expected = _accuracy_by_hand(_apply(params, inputs) / temperature, labels)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("wrong", [-1, 2, 200])
def test_labels_that_are_not_classes_are_refused_or_make_value_and_gradient_nan(wrong, problem):
    params, _, (inputs, _) = problem
    labels = np.zeros(N, np.int16)
    labels[4] = wrong
    loss = finetune.cross_entropy(_apply)
    with pytest.raises(ValueError, match=f"from 0 to 1, the classes of the logits, got {wrong}"):
        loss(params, (inputs, labels))
    value, gradient = jax.jit(jax.value_and_grad(loss))(params, (inputs, labels))
    assert np.isnan(value)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(gradient))
    found = finetune.evaluate(_apply, params, (inputs, labels))
    assert np.isnan(found.loss)


@pytest.mark.parametrize("wrong", [2**32, 2**32 + 1])
def test_labels_of_64_bits_do_not_become_classes(wrong, problem):
    params, _, (inputs, _) = problem
    labels = np.zeros(N, np.int64)
    labels[4] = wrong
    loss = finetune.cross_entropy(_apply)
    with pytest.raises(ValueError, match=f"the classes of the logits, got {wrong}"):
        loss(params, (inputs, labels))
    assert np.isnan(jax.jit(lambda params: loss(params, (inputs, labels)))(params))


def test_squared_error_takes_flat_targets_for_one_output():
    loss = finetune.squared_error(lambda params, inputs: params * inputs)
    inputs, targets = jnp.array([[1.0], [2.0]]), jnp.array([3.0, 1.0])
    np.testing.assert_allclose(loss(2.0, (inputs, targets)), (1 + 9) / 2)


def test_training_works_on_an_nnx_state(problem, getkey):
    _, _, data = problem
    graph, state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    masks = jax.tree.map(lambda leaf: leaf > 0 if leaf.ndim == 2 else None, state)
    loss = finetune.squared_error(lambda state, inputs: nnx.merge(graph, state)(inputs))
    train = finetune.trainer(loss, _TX, epochs=2, batch_size=4)
    fitted = train(state, masks, data, key=getkey())
    kept = np.asarray(masks["kernel"][...])
    np.testing.assert_array_equal(np.asarray(fitted.params["kernel"][...])[~kept], 0)
    assert float(fitted.history.loss[1]) != float(fitted.history.loss[0])


def test_rates_change_at_the_start_of_their_epochs():
    schedule = finetune.epoch_rates({30: 0.1, 0: 1.0, 60: 0.01}, steps_per_epoch=7)
    steps = np.array([0, 209, 210, 419, 420, 10_000])
    rates = [float(schedule(step)) for step in steps]
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    with pytest.raises(ValueError, match=r"a rate for epoch 0, got \{3: 0.1"):
        finetune.epoch_rates({3: 0.1}, steps_per_epoch=7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: finetune.trainer(_LOSS, _TX, epochs=0, batch_size=4),
            "`epochs` must be a whole number of at least 1, got 0",
        ),
        (
            lambda: inspect.unwrap(finetune.trainer)(_LOSS, _TX, epochs=1.5, batch_size=4),
            "`epochs` must be a whole number of at least 1, got 1.5",
        ),
        (
            lambda: finetune.trainer(_LOSS, _TX, epochs=True, batch_size=4),
            "`epochs` must be a whole number of at least 1, got True",
        ),
        (
            lambda: inspect.unwrap(finetune.trainer)(_LOSS, _TX, epochs=1, batch_size="4"),
            "`batch_size` must be a whole number of at least 1, got '4'",
        ),
        (
            lambda: inspect.unwrap(convolutions.resolve)("fast"),
            "`convolutions` must be one of 'auto', 'patches', 'xla', got 'fast'",
        ),
        (
            lambda: inspect.unwrap(finetune.steps_per_epoch)(10, batch_size=2.5),
            "`batch_size` must be a whole number of at least 1, got 2.5",
        ),
        (
            lambda: finetune.trainer(_LOSS, _TX, epochs=1, batch_size=0),
            "`batch_size` must be a whole number of at least 1, got 0",
        ),
        (
            lambda: finetune.trainer(_LOSS, _TX, epochs=1, batch_size=4, best_by="x"),
            "`best_by` = 'x' needs a `monitor`",
        ),
        (
            lambda: finetune.trainer(finetune.cross_entropy, _TX, epochs=1, batch_size=4),
            r"`loss` must take \(params, batch\), got `cross_entropy\(",
        ),
        (
            lambda: finetune.trainer(
                finetune.stateless(_LOSS), _TX, epochs=1, batch_size=4, state=0
            ),
            r"`loss` must take \(params, batch\), got `step_loss.*needs `stateful=True`",
        ),
        (
            lambda: finetune.trainer(_LOSS, _TX, epochs=1, batch_size=4, stateful=True),
            r"`loss` must take \(params, state, batch, key\), .*needs `stateful=False`",
        ),
        (
            lambda: finetune.trainer(_LOSS, _TX, epochs=1, batch_size=4, state=0),
            "`state` needs a `step_loss` that carries it, got int with `stateful=False`",
        ),
        (
            lambda: finetune.trainer(_LOSS, _TX, epochs=1, batch_size=4)(
                {"w": np.ones(2, bool)}, {"w": np.ones(2)}, np.ones(4), key=jax.random.key(0)
            ),
            r"`params` must hold weights, got masks .*`train\(params, masks, data, key=key\)`",
        ),
        (
            lambda: finetune.gradient_descent(_LOSS, steps=-1, learning_rate=0.1),
            "`steps` must be a whole number of at least 0, got -1",
        ),
        (
            lambda: finetune.gradient_descent(_LOSS, steps=1),
            "of `learning_rate` and `tx` must be given, got neither",
        ),
        (
            lambda: finetune.gradient_descent(_LOSS, steps=1, learning_rate=0.1, tx=_TX),
            "of `learning_rate` and `tx` must be given, got both",
        ),
        (
            lambda: finetune.cross_entropy(_apply, temperature=0.0),
            "`temperature` must be a positive number, got 0.0",
        ),
        (
            lambda: finetune.evaluate(_apply, {}, (np.ones((2, 3)), np.ones(2, int)), batch_size=0),
            "`batch_size` must be a whole number of at least 1, got 0",
        ),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.ones((3, 3)), np.ones((2, 2))), "must share a leading example axis, got shapes"),
        ((np.ones((0, 3)), np.ones((0, 2))), "`data` must have at least one example, got none"),
        ((np.ones((3, 3)), np.float32(1)), "must share a leading example axis, got shapes"),
    ],
)
def test_data_without_a_common_example_axis_are_refused(data, message, problem, getkey):
    params, masks, _ = problem
    with pytest.raises(ValueError, match=message):
        _TRAIN(params, masks, data, key=getkey())


def test_what_does_not_fit_is_named(problem, getkey):
    params, masks, data = problem
    wrong = {"kernel": np.ones((2, 2), bool), "bias": None}
    with pytest.raises(ValueError, match=r"`masks` has shape \(2, 2\) at 'kernel'"):
        _TRAIN(params, wrong, data, key=getkey())
    with pytest.raises(ValueError, match=r"must be at most the 11 examples .* got 20"):
        finetune.trainer(_LOSS, _TX, epochs=1, batch_size=20, remainder=False)(
            params, masks, data, key=getkey()
        )
    best = finetune.trainer(_LOSS, _TX, epochs=1, batch_size=4, monitor=_norm, best_by="accuracy")
    with pytest.raises(ValueError, match=r"one of \['norm'\], got 'accuracy'"):
        best(params, masks, data, key=getkey())
    with pytest.raises(ValueError, match=r"labels must be integers of shape \(11,\), got float32"):
        finetune.cross_entropy(_apply)(params, (data[0], data[0][:, 0]))
    with pytest.raises(ValueError, match=r"shape of the outputs, \(11, 2\), got \(11,\)"):
        _LOSS(params, (data[0], data[0][:, 0]))


def test_a_network_that_broke_down_is_right_on_no_example():
    inputs, labels = np.ones((6, 2), np.float32), np.zeros(6, np.int32)
    found = finetune.evaluate(lambda p, x: x * jnp.nan, {}, (inputs, labels))
    assert float(found.accuracy) == 0.0
    assert np.isnan(found.loss)


def _refused_calls():
    params, batch, key = (
        {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
        (jnp.eye(2), jnp.ones(2)),
        jax.random.key(0),
    )
    plain = {"step_loss": _STEP_LOSS, "tx": _TX, "epochs": 1, "batch_size": None}
    carry = finetune.start(params, None, tx=_TX, key=key)
    keys = jax.random.split(key)

    def advance(carry=carry, data=batch, **options):
        return lambda: finetune.advance(carry, data, **{**plain, **options})

    def resume(carry=carry, **options):
        return lambda: finetune.resume(carry, batch, every=1, **{**plain, **options})

    def descend(loss, **options):
        train = finetune.gradient_descent(loss, steps=1, learning_rate=0.1, **options)
        return train(params, None, batch)

    masked = np.ma.masked_array(np.eye(2), np.eye(2) > 0)
    return {
        "a seed": (
            lambda: finetune.start(params, None, tx=_TX, key=0),
            "`key` must be a key of JAX",
        ),
        "a seed in the carry": (
            advance(carry._replace(key=0)),
            "`key` must be a key of JAX, got 0",
        ),
        "keys in the carry": (resume(carry._replace(key=keys)), "`key` must be a single key"),
        "no carry": (advance(params), "`carry` must be a Carry, got"),
        "no transformation": (
            advance(tx=params),
            "`tx` must be an optax transformation, got a dict",
        ),
        "no step_loss": (advance(step_loss=_LOSS), "`step_loss` must take .* got `loss"),
        "no (loss, state)": (
            advance(step_loss=lambda p, s, b, k: jnp.sum(p["kernel"])),
            r"`step_loss` must return \(loss, state\)",
        ),
        "no scalar": (
            advance(step_loss=lambda p, s, b, k: (p["kernel"], s)),
            r"`loss` must return a scalar, got float32 of shape \(2, 1\)",
        ),
        "a monitor of another form": (
            advance(monitor=lambda params: params["kernel"]),
            "`monitor` must return {name: scalar}, got",
        ),
        "no function": (advance(read_masks=params), "`read_masks` must be a function, got"),
        "no mesh": (advance(mesh="batch"), "`mesh` must be a jax.sharding.Mesh, got 'batch'"),
        "no keeper": (resume(keeper="folder"), "`keeper` must have `save` and `restore`"),
        "epochs past int32": (advance(epochs=2**40), "`epochs` must be a whole number of at most"),
        "masked data": (advance(data=(masked, batch[1])), "`data` has a masked array at '0'"),
        "an integer loss": (
            lambda: descend(lambda params, batch: 3),
            "`loss` must return a scalar",
        ),
        "one part": (lambda: _LOSS(params, (batch[0],)), r"`batch` must be a pair .*, got 1 parts"),
        "a network for apply": (
            lambda: finetune.cross_entropy(params),
            "`apply` must be a function .* such as `net.apply`",
        ),
        "several temperatures": (
            lambda: finetune.cross_entropy(_apply, temperature=jnp.ones(2)),
            "`temperature` must be a positive number, got",
        ),
        "no rates": (
            lambda: finetune.epoch_rates(0.1, steps_per_epoch=3),
            "`rates` must be a dict .*, got 0.1",
        ),
        "a rate of nan": (
            lambda: finetune.epoch_rates({0: np.nan}, steps_per_epoch=3),
            "`rates` must hold numbers",
        ),
        "integer params": (
            lambda: finetune.start({"w": jnp.arange(3)}, None, tx=_TX, key=key),
            "`params` must be floating to be differentiated by, got int32 at 'w'",
        ),
        "masked masks on a mesh": (
            lambda: finetune.trainer(
                _LOSS, _TX, epochs=1, batch_size=None, mesh=jax.make_mesh((1,), ("batch",))
            )(params, {"kernel": masked > 0, "bias": None}, batch, key=key),
            "`masks` has a masked array at 'kernel'",
        ),
        "masks that the carry has not": (
            advance(read_masks=lambda opt_state: params),
            "`read_masks` must return masks like those of the carry",
        ),
        "no examples for a mesh": (
            lambda: finetune.gradient_descent(
                _LOSS, steps=1, learning_rate=0.1, mesh=jax.make_mesh((1,), ("batch",))
            )(params, None, 3),
            "`data` must share a leading example axis",
        ),
        "no record": (lambda: finetune.raise_if_not_finite({}), "`fitted` must be a record"),
    }


@pytest.mark.parametrize("name", _refused_calls())
def test_arguments_of_another_kind_are_refused_by_name(name, unchecked):
    call, message = _refused_calls()[name]
    with pytest.raises(ValueError, match=message):
        call()
