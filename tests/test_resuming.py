"""Interrupted training ends with the same bits as uninterrupted training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nopr import finetune
from nopr.lab import checkpoints

EPOCHS, EVERY = 5, 2  # segments of 2, 2 and 1
SAVED = (2, 4, 5)


def _apply(params, inputs):
    return inputs @ params["layer"]["kernel"] + params["layer"]["bias"]


_LOSS = finetune.squared_error(_apply)


def _step_loss(params, state, batch, key):
    """A noisy loss that counts its calls."""
    inputs, targets = batch
    noise = 0.1 * jax.random.normal(key, inputs.shape)
    return _LOSS(params, (inputs + noise, targets)), {"calls": state["calls"] + 1}


def _monitor(params, state):
    layer = params["layer"]
    return {"norm": jnp.sum(layer["kernel"] ** 2), "bias": layer["bias"], "calls": state["calls"]}


def _options(tx):
    return {"step_loss": _step_loss, "tx": tx, "batch_size": 4, "monitor": _monitor}


_TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.1, 0.0, 15)))
OPTIONS = _options(_TX)


def _start(tx=_TX, seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "layer": {
            "kernel": rng.normal(size=(3, 2)).astype(np.float32),
            "bias": np.zeros(2, np.float32),
        },
        "floor": np.float32([-np.inf]),  # A constant; it was never finite.
    }
    mask = np.array([[1, 0], [1, 1], [0, 1]], bool)
    masks = {"layer": {"kernel": mask, "bias": None}, "floor": None}
    key = jax.random.key(seed, impl="rbg")
    return finetune.start(params, masks, tx=tx, state={"calls": jnp.int32(0)}, key=key)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(7)
    inputs, targets = rng.normal(size=(11, 3)), rng.normal(size=(11, 2))
    return inputs.astype(np.float32), targets.astype(np.float32)


@pytest.fixture(scope="module")
def whole(data):
    return finetune.resume(_start(), data, epochs=EPOCHS, every=EVERY, **OPTIONS)


def _bits(leaf):
    assert isinstance(leaf, jax.Array)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def _assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for here, there in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert _bits(here) == _bits(there)


class Cut(BaseException):
    """Ends a training as a kill would, once a segment is done."""


def _run(folder, data, *, cut=None, said=None, start=None, epochs=EPOCHS):
    """A run with checkpoints, cut off at the call of `progress` of that number, from 0."""
    calls = []

    def progress(status):
        assert status.total == epochs
        calls.append(status.done)
        if len(calls) - 1 == cut:
            raise Cut

    say = print if said is None else said.append
    with checkpoints.Saver(folder, say=say) as saver:
        ended = finetune.resume(
            _start() if start is None else start,
            data,
            epochs=epochs,
            every=EVERY,
            keeper=saver,
            progress=progress,
            **OPTIONS,
        )
    return ended, calls


def test_segments_are_the_training_that_advance_does(data, whole):
    fitted = finetune.advance(_start(), data, epochs=EPOCHS, **OPTIONS)
    _assert_same_bits(whole, fitted)
    assert int(fitted.step) == EPOCHS * 3
    assert int(fitted.state["calls"]) == EPOCHS * 3


@pytest.mark.parametrize("cut", range(len(SAVED) + 1))
def test_cut_off_after_any_segment_it_ends_with_the_same_bits(cut, data, whole, tmp_path):
    with pytest.raises(Cut):
        _run(tmp_path, data, cut=cut)
    assert checkpoints.steps(tmp_path) == SAVED[:cut][-2:]
    ended, calls = _run(tmp_path, data)
    _assert_same_bits(ended, whole)
    assert calls == [0, *SAVED][cut:]


def test_cut_off_after_every_segment_it_ends_with_the_same_bits(data, whole, tmp_path):
    for _ in SAVED:
        with pytest.raises(Cut):
            _run(tmp_path, data, cut=1)
    ended, calls = _run(tmp_path, data)
    assert calls == [EPOCHS]
    _assert_same_bits(ended, whole)


def test_a_damaged_last_checkpoint_is_reported_and_its_segment_trained_again(data, whole, tmp_path):
    with pytest.raises(Cut):
        _run(tmp_path, data, cut=2)
    newest = tmp_path / "4.npz"
    flipped = bytearray(newest.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    newest.write_bytes(flipped)
    said = []
    ended, calls = _run(tmp_path, data, said=said)
    assert calls == [2, 4, 5]
    _assert_same_bits(ended, whole)
    assert len(said) == 1
    assert "4.npz is damaged" in said[0]


def test_training_that_follows_other_training_counts_its_epochs_on(data, whole, tmp_path):
    middle = finetune.advance(_start(), data, epochs=2, **OPTIONS).carry
    with pytest.raises(Cut):
        _run(tmp_path, data, cut=1, start=middle, epochs=3)
    assert checkpoints.steps(tmp_path) == (4,)
    fitted, calls = _run(tmp_path, data, start=middle, epochs=3)
    assert calls == [2, 3]
    _assert_same_bits(fitted.carry, whole.carry)
    _assert_same_bits(fitted.history, jax.tree.map(lambda column: column[2:], whole.history))


def test_what_was_kept_of_another_run_is_refused(data, tmp_path):
    with pytest.raises(Cut):
        _run(tmp_path, data, cut=1)
    with pytest.raises(ValueError, match=r"does not match .* has float32\[5\] at '1/loss"):
        _run(tmp_path, data, epochs=4)
    later = finetune.advance(_start(), data, epochs=3, **OPTIONS).carry
    with pytest.raises(ValueError, match=r"is of epoch 2, outside this run of epochs 3 to 8\."):
        _run(tmp_path, data, start=later)


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("epochs", 0)])
def test_lengths_are_at_least_one(name, value, data):
    lengths = {"epochs": EPOCHS, "every": EVERY, name: value}
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least 1, got 0"):
        finetune.resume(_start(), data, **lengths, **OPTIONS)


class Memory:
    """A keeper that stores what it is given."""

    def __init__(self):
        self.kept = {}

    def save(self, step, tree, /):
        self.kept[step] = tree

    def restore(self, target, /):
        del target
        return max(self.kept.items(), default=None)


def test_what_a_keeper_was_given_is_not_changed_later(data, whole):
    memory, options = Memory(), {"epochs": EPOCHS, "every": EVERY, **OPTIONS}
    finetune.resume(_start(), data, keeper=memory, **options)
    assert tuple(memory.kept) == SAVED
    memory.kept = {2: memory.kept[2]}
    np.testing.assert_array_equal(memory.kept[2][1].loss[2:], 0)
    _assert_same_bits(finetune.resume(_start(), data, keeper=memory, **options), whole)


def test_a_saver_is_a_keeper(tmp_path):
    assert isinstance(checkpoints.Saver(tmp_path), finetune.Keeper)


def _turns_to_nan(params, state, batch, key):
    loss, state = _step_loss(params, state, batch, key)
    return jnp.where(state["calls"] == 11, jnp.nan, loss), state  # in epoch 4, of three steps


def _leaps(count):
    return jnp.where(count == 11, jnp.inf, 0.01)  # the last step of epoch 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_loss": _turns_to_nan}, r"^The loss was NaN or infinite in epoch 4\. That segment"),
        (
            {"tx": optax.sgd(_leaps)},
            r"^The params were NaN or infinite after epoch 4\. That segment",
        ),
    ],
    ids=["loss", "params"],
)
def test_training_that_breaks_down_names_the_epoch_and_keeps_what_is_good(
    options, message, data, tmp_path
):
    options = {**OPTIONS, **options}
    start = _start(options["tx"])
    for _ in range(2):  # Resumed, it breaks down again without changes.
        with (
            checkpoints.Saver(tmp_path) as saver,
            pytest.raises(FloatingPointError, match=message),
        ):
            finetune.resume(start, data, epochs=6, every=EVERY, keeper=saver, **options)
        assert checkpoints.steps(tmp_path) == (2,)
