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
    return State(params, masks, tx.init(params), keys, 3 + seed, 0.1, extremes)


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


def _largest_file(folder):
    return max((path for path in folder.rglob("d/*")), key=lambda path: path.stat().st_size)


def test_masks_keys_optimiser_states_and_named_tuples_come_back_bit_for_bit(tmp_path):
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
    path = _largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(folder):
    path = _largest_file(folder)
    path.write_bytes(path.read_bytes()[:-1])


def _remove(folder):
    _largest_file(folder).unlink()


def _alter_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


@pytest.mark.parametrize("damage", [_flip_a_bit, _truncate, _remove, _alter_manifest])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_restored(tmp_path, capsys, damage):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"w": jnp.full((64,), float(step))})
    damage(tmp_path / "2")
    step, found = checkpoints.restore(tmp_path, {"w": jnp.zeros(64)})
    assert step == 1
    np.testing.assert_array_equal(found["w"], np.ones(64))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "step 2" in said[0]
    assert "damaged" in said[0]


def test_a_half_written_checkpoint_is_ignored_and_cleared(tmp_path):
    checkpoints.save(tmp_path, 1, {"w": jnp.ones(2)})
    half = tmp_path / ".2.new.tmp"
    (half / "arrays").mkdir(parents=True)
    assert checkpoints.restore(tmp_path, {"w": jnp.zeros(2)})[0] == 1
    checkpoints.save(tmp_path, 2, {"w": jnp.ones(2)})
    assert not half.exists()
    assert checkpoints.steps(tmp_path) == (1, 2)


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
        ({"a": {"b": jnp.zeros((0, 3))}}, {}, r"size 0 at 'a/b' \(shape \(0, 3\)\)"),
        ({"a": "text"}, {}, "got str at 'a'"),
        ({"a": None}, {}, "at least one array"),
        ({"a": jnp.ones(2)}, {"keep": 0}, "`keep` must be at least 1, got 0"),
        ({"a": jnp.ones(2)}, {"step": -1}, "`step` must not be negative, got -1"),
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
    os.utime(tmp_path / "2", (2e9, 2e9))
    os.utime(tmp_path / "10", (1, 1))
    assert checkpoints.steps(tmp_path) == (2, 10)
    step, found = checkpoints.restore(tmp_path, {"w": jnp.zeros(2)})
    assert step == 10
    np.testing.assert_array_equal(found["w"], [10.0, 10.0])


def test_arrays_come_back_as_weak_and_as_free_to_move_as_the_target_has_them(tmp_path):
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
