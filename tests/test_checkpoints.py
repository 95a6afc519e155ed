"""A checkpoint comes back bit for bit, or not at all."""

import os
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nopr.lab import checkpoints


class State(NamedTuple):
    params: dict
    masks: dict
    empty: jax.Array
    opt_state: tuple
    key: jax.Array
    epoch: int
    rate: float
    scores: np.ndarray


def _state(seed=0):
    kernel = jax.random.normal(jax.random.key(seed), (4, 3))
    params = {
        "Dense_10": {"kernel": kernel, "bias": jnp.full((3,), -0.0)},
        "Dense_2": {"kernel": kernel.astype(jnp.bfloat16), "bias": jnp.zeros((3,))},
    }
    masks = {
        "Dense_10": {"kernel": kernel > 0, "bias": None},
        "Dense_2": {"kernel": kernel < 0, "bias": None},
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), 2)
    extremes = np.array([np.nan, np.inf, -np.inf, 5e-324, np.pi])
    return State(params, masks, jnp.zeros((0, 3)), tx.init(params), keys, 3 + seed, 0.1, extremes)


def _bits(leaf):
    if jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        return str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
    array = np.asarray(leaf)
    return str(array.dtype), array.shape, array.tobytes()


def _assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, twin in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert _bits(leaf) == _bits(twin)
        assert isinstance(twin, jax.Array) == isinstance(leaf, jax.Array)


def test_masks_keys_optimizer_states_and_named_tuples_come_back_bit_for_bit(tmp_path):
    state = _state()
    checkpoints.save(tmp_path, 7, state)
    step, found = checkpoints.restore(tmp_path, state)
    assert step == 7
    assert isinstance(found, State)
    _assert_same(state, found)


def test_a_target_of_shapes_alone_is_enough(tmp_path):
    tree = {"key": jax.random.key(5), "kernel": jnp.arange(6.0).reshape(2, 3), "bias": None}
    checkpoints.save(tmp_path, 0, tree)
    _, found = checkpoints.restore(tmp_path, jax.eval_shape(lambda: tree))
    _assert_same(tree, found)


def test_the_newest_is_restored_and_only_as_many_are_kept_as_asked(tmp_path):
    for step in (1, 2, 10):
        checkpoints.save(tmp_path, step, {"w": jnp.full((2,), float(step))}, keep=2)
    assert checkpoints.steps(tmp_path) == (2, 10)
    checkpoints.save(tmp_path, 10, {"w": jnp.full((2,), 11.0)})
    step, found = checkpoints.restore(tmp_path, {"w": jnp.zeros(2)})
    assert step == 10
    np.testing.assert_array_equal(found["w"], [11.0, 11.0])


def test_nothing_is_restored_where_nothing_was_saved(tmp_path):
    assert checkpoints.restore(tmp_path / "missing", {"w": jnp.zeros(2)}) is None


def _flip_a_bit(folder):
    path = folder / "2.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(folder):
    (folder / "2.npz").write_bytes((folder / "2.npz").read_bytes()[:-1])


def _remove(folder):
    (folder / "2.npz").unlink()


def _bracket(folder):
    (folder / "2.json").write_text("[" * 100_000)


def _copy_another(folder):
    for kind in ("npz", "json"):
        (folder / f"2.{kind}").write_bytes((folder / f"1.{kind}").read_bytes())


@pytest.mark.parametrize("damage", [_flip_a_bit, _truncate, _remove, _bracket, _copy_another])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_restored(tmp_path, capsys, damage):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"w": jnp.full((64,), float(step))})
    damage(tmp_path)
    step, found = checkpoints.restore(tmp_path, {"w": jnp.zeros(64)})
    assert step == 1
    np.testing.assert_array_equal(found["w"], np.ones(64))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / '2.npz'} is damaged")


def test_a_half_written_checkpoint_is_ignored_and_cleared(tmp_path):
    checkpoints.save(tmp_path, 1, {"w": jnp.ones(2)})
    half = tmp_path / ".2.npz.1.tmp"
    half.touch()
    assert checkpoints.restore(tmp_path, {"w": jnp.zeros(2)})[0] == 1
    checkpoints.save(tmp_path, 2, {"w": jnp.ones(2)})
    assert not half.exists()
    assert checkpoints.steps(tmp_path) == (1, 2)


def test_other_files_and_folders_are_not_steps(tmp_path):
    checkpoints.save(tmp_path, 3, {"w": jnp.ones(2)})
    for name in ("\u00b2", "7.npz", "8.json"):
        (tmp_path / name).mkdir()
    for name in ("0005.json", "\u00b2.json", "+7.json", "notes.json", "4.txt"):
        (tmp_path / name).touch()
    assert checkpoints.steps(tmp_path) == (3,)
    assert checkpoints.restore(tmp_path, {"w": jnp.zeros(2)})[0] == 3
    checkpoints.save(tmp_path, 4, {"w": jnp.ones(2)}, keep=1)
    assert checkpoints.steps(tmp_path) == (4,)


@pytest.mark.parametrize("step", [5, np.int64(5), jnp.int32(5)], ids=type)
def test_a_step_may_be_any_whole_number(tmp_path, step):
    checkpoints.save(tmp_path, step, {"w": jnp.ones(2)})
    assert checkpoints.restore(tmp_path, {"w": jnp.zeros(2)})[0] == 5


@pytest.mark.parametrize("step", [2.0, 1.5, True, np.float32(3), "4", None, -1, jnp.ones(2)])
def test_a_step_that_is_not_a_whole_number_is_refused(tmp_path, step):
    with pytest.raises(ValueError, match="`step` must be a whole number of at least 0, got"):
        checkpoints.save(tmp_path, step, {"w": jnp.ones(2)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"w": np.zeros((3,), np.float32)}, r"float32\[2\] at 'w', where .*float32\[3\] at 'w'"),
        ({"w": np.zeros((2,), np.int32)}, r"float32\[2\] at 'w', where .*int32\[2\] at 'w'"),
        ({"v": np.zeros((2,), np.float32)}, "at 'w', where .* at 'v'"),
        ({"w": np.zeros((2,), np.float32), "x": 1}, "no such leaf, where .* at 'x'"),
    ],
)
def test_another_tree_than_was_saved_is_refused_with_the_leaf(tmp_path, target, message):
    checkpoints.save(tmp_path, 1, {"w": np.zeros((2,), np.float32)})
    with pytest.raises(ValueError, match=message):
        checkpoints.restore(tmp_path, target)


@pytest.mark.parametrize(
    ("tree", "options", "message"),
    [
        ({"a": "text"}, {}, "got str at 'a'"),
        ({"a": np.ma.masked_less(np.arange(3), 1)}, {}, "got MaskedArray at 'a'"),
        ({"a": None}, {}, "at least one array"),
        ({"a": jnp.ones(2)}, {"keep": 0}, "`keep` must be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_is_written(tmp_path, tree, options, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.save(tmp_path, tree=tree, **{"step": 0, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_step_below_the_newest_stays_when_it_is_saved(tmp_path):
    for step in (9, 10, 1):
        checkpoints.save(tmp_path, step, {"w": jnp.ones(2)}, keep=2)
    assert checkpoints.steps(tmp_path) == (1, 9, 10)


def test_neither_the_clock_nor_the_dates_of_files_decide_which_is_the_newest(tmp_path, monkeypatch):
    seconds = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    monkeypatch.setattr(time, "time_ns", lambda: next(seconds) * 10**9)
    with checkpoints.Saver(tmp_path, keep=2) as saver:
        for step in (1, 2, 10):
            saver.save(step, {"w": jnp.full((2,), float(step))})
    for step, date in (("2", 2e9), ("10", 1)):
        for kind in ("npz", "json"):
            os.utime(tmp_path / f"{step}.{kind}", (date, date))
    assert checkpoints.steps(tmp_path) == (2, 10)
    step, found = checkpoints.restore(tmp_path, {"w": jnp.zeros(2)})
    assert step == 10
    np.testing.assert_array_equal(found["w"], [10.0, 10.0])


def test_arrays_come_back_as_weakly_typed_and_uncommitted_as_in_the_target(tmp_path):
    device = jax.devices()[0]
    tree = {
        "weak": jnp.asarray(0.1),
        "strong": jnp.asarray(0.1, jnp.float32),
        "bound": jax.device_put(jnp.ones(2), device),
        "free_key": jax.random.key(1),
        "bound_key": jax.device_put(jax.random.key(1), device),
    }
    checkpoints.save(tmp_path, 0, tree)
    _, found = checkpoints.restore(tmp_path, tree)
    _assert_same(tree, found)
    for name, leaf in found.items():
        assert getattr(leaf, "weak_type", False) == (name == "weak"), name
        assert leaf.committed == tree[name].committed, name


def test_the_number_to_keep_is_a_whole_number(tmp_path, unchecked):
    with pytest.raises(ValueError, match=r"`keep` must be a whole number of at least 1, got \{\}"):
        checkpoints.save(tmp_path, 1, {"a": jnp.ones(2)}, keep={})
