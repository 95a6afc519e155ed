"""Checkpoints written in the background, failing writes, and several processes."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr.lab import checkpoints, records

LARGE = {"w": np.random.default_rng(0).normal(size=100_000)}
SMALL = {"w": np.zeros(2)}


@pytest.fixture
def gate(monkeypatch):
    """Holds every background write until opened; counts the writes under way."""
    opened, commit = threading.Event(), records.Store.put
    opened.underway, opened.most = 0, 0

    def held(*args, **options):
        opened.underway += 1
        opened.most = max(opened.most, opened.underway)
        assert opened.wait(60)
        try:
            return commit(*args, **options)
        finally:
            opened.underway -= 1

    monkeypatch.setattr(records.Store, "put", held)
    yield opened
    opened.set()


def test_what_is_donated_or_changed_after_save_returns_is_not_seen(tmp_path, gate):
    donate = jax.jit(lambda leaf: leaf + 1, donate_argnums=0)
    for name, leaf in {"jax": jnp.arange(64.0), "numpy": np.arange(64.0, dtype=np.float32)}.items():
        gate.clear()
        with checkpoints.Saver(tmp_path / name) as saver:
            saver.save(1, {"w": leaf})
            assert checkpoints.steps(tmp_path / name) == ()
            if name == "jax":
                donate(leaf).block_until_ready()
            else:
                leaf[:] = 0
            gate.set()
        _, found = checkpoints.restore(tmp_path / name, {"w": np.zeros(64, np.float32)})
        np.testing.assert_array_equal(found["w"], np.arange(64.0))


def test_one_write_at_a_time_and_as_many_kept_as_asked(tmp_path, gate):
    gate.set()
    with checkpoints.Saver(tmp_path, keep=3) as saver:
        for step in range(6):
            saver.save(step, {"w": jnp.full((2,), float(step))})
        saver.wait()
        assert checkpoints.steps(tmp_path) == (3, 4, 5)
        saver.save(6, {"w": jnp.full((2,), 6.0)})
        step, found = saver.restore({"w": jnp.zeros(2)})  # Waits for the write under way.
    assert step == 6
    np.testing.assert_array_equal(found["w"], [6.0, 6.0])
    assert gate.most == 1


class Stop(BaseException):
    """The exception that a signal raises."""


def test_a_block_left_by_a_signal_still_waits_for_the_write(tmp_path, gate):
    def leave():
        with checkpoints.Saver(tmp_path) as saver:
            saver.save(1, {"w": jnp.ones(2)})
            threading.Timer(0.3, gate.set).start()
            raise Stop

    with pytest.raises(Stop):
        leave()
    assert checkpoints.steps(tmp_path) == (1,)
    assert checkpoints.restore(tmp_path, {"w": jnp.zeros(2)})[0] == 1


def test_a_signal_within_the_wait_loses_no_write(tmp_path, gate):
    def interrupt(*_):
        gate.set()
        raise Stop

    def wait():
        with checkpoints.Saver(tmp_path) as saver:
            saver.save(1, {"w": jnp.ones(2)})
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            saver.wait()

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Stop):
            wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert checkpoints.steps(tmp_path) == (1,)


@contextlib.contextmanager
def _no_file_larger_than(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, action)


@pytest.mark.parametrize("raiser", ["save", "wait", "close"])
def test_a_background_error_is_raised_once_in_one_line(tmp_path, raiser):
    saver = checkpoints.Saver(tmp_path)
    saver.save(1, SMALL)
    saver.wait()
    call = {"save": lambda: saver.save(3, SMALL), "wait": saver.wait, "close": saver.close}[raiser]
    with _no_file_larger_than(10_000):
        saver.save(2, LARGE)
        with pytest.raises(records.RunError, match=r"^Cannot write .*2\.npz': File too large"):
            call()
    assert {path.name for path in tmp_path.iterdir()} == {"1.npz", "1.json"}
    assert checkpoints.restore(tmp_path, SMALL)[0] == 1
    if raiser != "close":
        saver.save(4, SMALL)
    saver.close()
    assert checkpoints.steps(tmp_path) == ((1,) if raiser == "close" else (1, 4))


def test_a_failed_write_is_reported_where_another_error_is_raised(tmp_path):
    said = []
    (tmp_path / "file").touch()

    def leave():
        with checkpoints.Saver(tmp_path / "file", say=said.append) as saver:
            saver.save(1, SMALL)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        leave()
    assert len(said) == 1
    assert said[0].startswith("Cannot write ")


def test_damaged_checkpoints_that_were_passed_over_do_not_count_among_those_kept(tmp_path):
    said = []
    with checkpoints.Saver(tmp_path, keep=2, say=said.append) as saver:
        for step in (10, 20):
            saver.save(step, {"w": jnp.full((64,), float(step))})
        saver.wait()
        (tmp_path / "20.npz").unlink()
        assert saver.restore({"w": jnp.zeros(64)})[0] == 10
        saver.save(15, {"w": jnp.full((64,), 15.0)})
        saver.wait()
        assert checkpoints.steps(tmp_path) == (10, 15)
    assert len(said) == 1


def test_a_closed_saver_refuses_to_save(tmp_path):
    with checkpoints.Saver(tmp_path) as saver:
        pass
    with pytest.raises(ValueError, match="is closed"):
        saver.save(1, SMALL)
    with pytest.raises(ValueError, match="`keep` must be a whole number of at least 1, got 0"):
        checkpoints.Saver(tmp_path, keep=0)


# --- Several processes -------------------------------------------------------------------------

PROCESS = """
import sys, time
from pathlib import Path
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

port, index, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)
from nopr.lab import checkpoints

mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))

def place(value, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

key = jax.random.wrap_key_data(place(np.array([7, 9], np.uint32)))
tree = {"w": place(np.arange(6, dtype=np.float32)), "key": key, "mask": np.array([True, False])}
assert not tree["w"].is_fully_addressable
done = folder / "done"
if index == 0:
    # The other process waits for a file, and not for this one: any barrier would hang here.
    checkpoints.save(folder / "alone", 1, tree)
    assert checkpoints.restore(folder / "alone", tree)[0] == 1
    with checkpoints.Saver(folder / "saver") as saver:
        saver.save(1, tree)
        saver.save(2, tree)
    done.touch()
limit = time.monotonic() + 40
while not done.exists():
    assert time.monotonic() < limit
    time.sleep(0.01)
if index == 1:
    with checkpoints.Saver(folder / "saver") as saver:
        saver.save(3, tree)
    checkpoints.save(folder / "other", 1, tree)
    assert checkpoints.steps(folder / "saver") == (1, 2)  # The first process writes.
    assert not (folder / "other").exists()
    step, found = checkpoints.restore(folder / "saver", tree)
    assert step == 2
    assert found["w"].sharding == tree["w"].sharding
    np.testing.assert_array_equal(found["w"], np.arange(6))
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), [7, 9])
    np.testing.assert_array_equal(found["mask"], [True, False])
try:
    checkpoints.save(folder / "spread", 1, {"w": place(np.arange(2.0), "batch")})
except ValueError as error:
    print("refused:", error)
"""


def test_the_first_of_two_processes_saves_alone_and_both_restore(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).resolve().parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(index), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        ended = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, ended, strict=True):
        assert process.returncode == 0, err
        assert "leaf at 'w' that is spread over processes" in out
