"""Iterative pruning as a long run: the algorithm `imp`, wherever it is cut off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_algorithms import init, loss

from nopr import algorithms, criteria, finetune, masks, pruning, trees
from nopr.lab import checkpoints

SIZE, LEVELS = 24, (12, 6)
EPOCHS, REWIND, EVERY = 6, 3, 2
MAGNITUDE = pruning.pruner(criteria.magnitude())
RATE = optax.linear_schedule(0.2, 0.0, EPOCHS * 3)


def _norm(params):
    return {"norm": jnp.sum(params["a"]["kernel"] ** 2)}


OPTIONS = {
    "step_loss": finetune.stateless(loss),
    # The norm covers momenta too, also those of pruned weights if there are any.
    "tx": optax.chain(
        optax.trace(0.9), optax.clip_by_global_norm(0.5), optax.scale_by_learning_rate(RATE)
    ),
    "batch_size": 3,
    "monitor": _norm,
}
KEY = jax.random.key(11)
INIT_KEY, RUN_KEY = jax.random.split(KEY)


def _run(data, *, counts=LEVELS, rewind_epoch=REWIND, pruner=MAGNITUDE, **options):
    return algorithms.resume_imp(
        pruner,
        init(INIT_KEY),
        data,
        counts=counts,
        epochs=EPOCHS,
        rewind_epoch=rewind_epoch,
        every=EVERY,
        key=RUN_KEY,
        **{**OPTIONS, **options},
    )


@pytest.fixture(scope="module")
def fixed():
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(8, 3)).astype(np.float32)
    return inputs, np.sign(inputs[:, 0]).astype(np.float32)


@pytest.fixture(scope="module")
def whole(fixed):
    return _run(fixed)


def _assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for here, there in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert here.dtype == there.dtype
        np.testing.assert_array_equal(*map(_numbers, (here, there)))


def _numbers(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_without_rewinding_it_chooses_the_masks_of_imp(fixed):
    fit = finetune.trainer(loss, OPTIONS["tx"], epochs=EPOCHS, batch_size=3)

    algorithm = algorithms.imp(MAGNITUDE, init=init, train=fit, counts=LEVELS, levels=True)
    path = jax.jit(algorithm)(fixed, key=KEY)
    found = _run(fixed, rewind_epoch=0)
    _assert_same_bits(jax.tree.map(lambda leaf: leaf[1:], found.masks), path)
    last = jax.tree.map(lambda leaf: leaf[-1], path)
    expected = fit(init(INIT_KEY), last, fixed, key=jax.random.split(RUN_KEY, 3)[0]).params
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found.params, expected
    )
    assert found.before is None
    assert found.history.loss.shape == (3, EPOCHS)


def test_every_level_resumes_from_the_training_state_at_the_rewind_epoch(fixed, whole):
    """By hand: level 0 is plain training; later levels lose weights and their momentum."""
    train_key, prune_key, _ = jax.random.split(RUN_KEY, 3)
    kept = jax.tree.map(lambda leaf: leaf[0], whole.masks)
    carry = finetune.start(init(INIT_KEY), kept, tx=OPTIONS["tx"], key=train_key)
    rewound = finetune.advance(carry, fixed, epochs=REWIND, **OPTIONS)
    np.testing.assert_array_equal(whole.before.loss, rewound.history.loss)
    rewound = rewound.carry
    for level, count in enumerate((*LEVELS, None)):
        assert int(masks.count(kept)) == (SIZE, *LEVELS)[level]
        trace, clip, schedule = rewound.opt_state
        trace = trace._replace(trace=masks.apply(trace.trace, kept))
        assert int(schedule.count) == 3 * REWIND
        begin = rewound._replace(
            params=masks.apply(rewound.params, kept),
            masks=kept,
            opt_state=(trace, clip, schedule),
        )
        fitted = finetune.advance(begin, fixed, epochs=EPOCHS - REWIND, **OPTIONS)
        history = fitted.history
        np.testing.assert_array_equal(whole.history.loss[level], history.loss)
        np.testing.assert_array_equal(whole.history.metrics["norm"][level], history.metrics["norm"])
        _assert_same_bits(jax.tree.map(lambda leaf, at=level: leaf[at], whole.masks), kept)
        if count is not None:
            kept = MAGNITUDE(fitted.params, fixed, masks=kept, count=count, key=prune_key)
    _assert_same_bits(whole.last.carry, fitted.carry)


@pytest.mark.parametrize("retrain", ["learning_rate_rewinding", "finetuning"])
def test_weights_go_on_from_the_level_before_while_the_schedule_restarts_or_not(
    retrain, fixed, whole
):
    """By hand; level 0 is that of weight rewinding."""
    found = _run(fixed, retrain=retrain)
    train_key, prune_key, _ = jax.random.split(RUN_KEY, 3)
    dense = trees.full_masks(init(INIT_KEY))
    carry = finetune.start(init(INIT_KEY), dense, tx=OPTIONS["tx"], key=train_key)
    rewound = finetune.advance(carry, fixed, epochs=REWIND, **OPTIONS).carry
    fitted = finetune.advance(rewound, fixed, epochs=EPOCHS - REWIND, **OPTIONS)
    np.testing.assert_array_equal(found.history.loss[0], whole.history.loss[0])
    kept = dense
    for level, count in enumerate(LEVELS, start=1):
        kept = MAGNITUDE(fitted.params, fixed, masks=kept, count=count, key=prune_key)
        trace, clip, schedule = (
            rewound if retrain == "learning_rate_rewinding" else fitted
        ).opt_state
        assert int(schedule.count) == (
            3 * REWIND if retrain != "finetuning" else 18 + 9 * level - 9
        )
        begin = rewound._replace(
            params=masks.apply(fitted.params, kept),
            masks=kept,
            opt_state=(trace._replace(trace=masks.apply(trace.trace, kept)), clip, schedule),
        )
        fitted = finetune.advance(begin, fixed, epochs=EPOCHS - REWIND, **OPTIONS)
        np.testing.assert_array_equal(found.history.loss[level], fitted.history.loss)
        assert np.any(fitted.history.loss != whole.history.loss[level])
        _assert_same_bits(jax.tree.map(lambda leaf, at=level: leaf[at], found.masks), kept)
    _assert_same_bits(found.last.carry, fitted.carry)


def test_a_count_is_kept_in_each_layer(fixed):
    found = _run(fixed, counts=[[9, 4], [5, 3]])
    kept = jax.vmap(masks.by_layer)(found.masks)
    assert kept["a/kernel"].kept.tolist() == [18, 9, 5]
    assert kept["b/kernel"].kept.tolist() == [6, 4, 3]


def test_without_pruning_every_level_is_the_dense_training(fixed):
    found = _run(fixed, counts=(SIZE, SIZE))
    params, train_key = init(INIT_KEY), jax.random.split(RUN_KEY, 3)[0]
    start = finetune.start(params, trees.full_masks(params), tx=OPTIONS["tx"], key=train_key)
    fitted = finetune.advance(start, fixed, epochs=EPOCHS, **OPTIONS)
    history = fitted.history
    np.testing.assert_array_equal(found.before.loss, history.loss[:REWIND])
    for level in range(3):
        np.testing.assert_array_equal(found.history.loss[level], history.loss[REWIND:])
    _assert_same_bits(found.params, fitted.params)


class Cut(BaseException):
    """Ends a run as a kill would."""


def _cut(folder, data, *, calls, **options):
    """A run with checkpoints, cut off at a call of `progress`; also returns the epochs reported."""
    told = []

    def progress(status):
        assert status.total == REWIND + 3 * (EPOCHS - REWIND)
        told.append(status.done)
        if len(told) == calls:
            raise Cut

    with checkpoints.Saver(folder, say=print) as saver:
        return _run(data, keeper=saver, progress=progress, **options), told


TOLD = [0, 2, 3, 3, 5, 6, 6, 8, 9, 9, 11, 12]  # at each start, and after each segment


@pytest.mark.parametrize("reached", [0, 2, 3, 5, 6, 8, 12])
def test_cut_off_anywhere_it_ends_with_the_same_bits(reached, fixed, whole, tmp_path):
    with pytest.raises(Cut):
        _cut(tmp_path, fixed, calls=1 + TOLD.index(reached))
    assert checkpoints.steps(tmp_path)[-1:] == ((reached,) if reached else ())
    found, told = _cut(tmp_path, fixed, calls=None)
    _assert_same_bits(found, whole)
    # It resumes at the end of the level if that was stored.
    assert told == TOLD[TOLD.index(reached) :]


def test_weights_that_went_on_are_those_after_an_interruption(fixed, tmp_path):
    retrain = "learning_rate_rewinding"
    with pytest.raises(Cut):
        _cut(tmp_path, fixed, calls=1 + TOLD.index(8), retrain=retrain)
    found, _ = _cut(tmp_path, fixed, calls=None, retrain=retrain)
    _assert_same_bits(found, _run(fixed, retrain=retrain))


def test_the_state_that_is_kept_records_where_the_run_is(fixed):
    kept = {}

    class Noting:
        def save(self, step, tree, /):
            kept[step] = tree

        def restore(self, target, /):
            return None

    _run(fixed, keeper=Noting())
    assert sorted(kept) == [2, 3, 5, 6, 8, 9, 11, 12]
    assert [int(kept[step].level) for step in sorted(kept)] == [-1, -1, 0, 0, 1, 1, 2, 2]
    state = kept[8]
    alive = [int(count) for count in jax.vmap(masks.count)(state.masks)]
    assert alive == [SIZE, LEVELS[0], 0]
    assert int(state.rewound.epoch) == REWIND
    assert int(state.carry.epoch) == 5
    np.testing.assert_array_equal(state.history.loss[1, 2:], 0)
    assert np.all(state.history.loss[1, :2] != 0)


def test_a_breakdown_names_level_and_epoch(fixed):
    def leap(count):
        return jnp.where(count >= 12, jnp.inf, 0.1)

    message = r"^In level 0 of 2: The (loss|params) .* epoch 5. That segment is not saved\."
    with pytest.raises(FloatingPointError, match=message):
        _run(fixed, tx=optax.sgd(leap))
    message = r"^In the start: The (loss|params) .* epoch 1. That segment is not saved\."
    with pytest.raises(FloatingPointError, match=message):
        _run(fixed, tx=optax.sgd(jnp.inf))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewind_epoch": EPOCHS}, r"`rewind_epoch` must be less than the 6 epochs, got 6"),
        ({"rewind_epoch": -1}, r"`rewind_epoch` must be a whole number of at least 0, got -1"),
        ({"counts": (6, 12)}, r"`counts` must fall from level to level, got \[6, 12\]"),
        ({"retrain": "rewinding"}, "`retrain` must be one of 'weight_rewinding', 'learning_rate_r"),
        ({"counts": ()}, r"`counts` must be a list with one number per level"),
    ],
)
def test_what_cannot_be_run_is_refused(options, message, fixed, unchecked):
    with pytest.raises(ValueError, match=message):
        _run(fixed, **options)


def test_the_pruner_scores_on_the_batch_it_is_given_and_among_the_weights_that_are_left(fixed):
    shapes, alive = set(), []

    def pruner(params, batch, *, masks=None, count=None, key):
        shapes.add(jax.tree.map(jnp.shape, batch))
        if masks is not None:
            alive.append(int(kept(masks)))
        return MAGNITUDE(params, batch, masks=masks, count=count, key=key)

    kept = masks.count
    _run(fixed, pruner=pruner, batch=lambda data: (data[0][:2], data[1][:2]))
    assert shapes == {((2, 3), (2,))}
    assert alive == [SIZE, LEVELS[0]]
