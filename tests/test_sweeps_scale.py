"""The same bytes on one device, on eight, and in two processes."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def environment(devices):
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    # The size of the thread pool changes last bits, and is at least the number of devices.
    return {**os.environ, "XLA_FLAGS": flags, "NPROC": "8", "PYTHONPATH": path}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_on_eight_devices():
    words = [str(TESTS / "eight_devices.py"), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        env=environment(8),
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


ONE = """
import pickle, sys, eight_devices
from nopr import sweeps
found = {
    batching: eight_devices.bits(
        sweeps.run(eight_devices.job, eight_devices.CASES, block=4, batching=batching)
    )
    for batching in ("vmap", "lanes")
}
open(sys.argv[1], "wb").write(pickle.dumps(found))
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The bits of one process with one device."""
    out = tmp_path_factory.mktemp("one") / "out"
    subprocess.run([sys.executable, "-c", ONE, str(out)], env=environment(1), check=True)
    return pickle.loads(out.read_bytes())


@pytest.fixture(scope="module", params=[1, 4], ids=["one device each", "four devices each"])
def two(request, tmp_path_factory):
    """The results of each of two processes, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    port = str(free_port())
    words = [sys.executable, str(TESTS / "two_processes.py")]
    started = [
        subprocess.Popen(
            [*words, str(folder / f"out{index}"), str(folder / "store"), port, str(index)],
            env=environment(request.param),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return [pickle.loads((folder / f"out{index}").read_bytes()) for index in range(2)], folder


@pytest.mark.parametrize("batching", ["vmap", "lanes"])
def test_two_processes_get_the_bytes_of_one(one, two, batching):
    for found in two[0]:
        assert found[batching] == [one[batching]] * 3  # without a store, filling it, from it


def test_each_process_keeps_its_share_of_the_chunks(two):
    found, folder = two
    chunks = sorted(path.stem for path in (folder / "store" / "vmap").glob("chunk-*.npz"))
    assert len(chunks) == 10  # 37 cases in blocks of 4
    assert [each["said"] for each in found] == [[], []]


def test_failures_of_all_processes_are_reported_to_all(two):
    assert [found["failures"] for found in two[0]] == [[0, 1, 2, 3]] * 2


def test_processes_with_other_cases_are_refused_by_all(two):
    for found in two[0]:
        assert "those of process 1 differ from those of process 0" in found["differs"]


def test_what_process_0_shares_reaches_all_and_gathering_keeps_the_order(two):
    for index, found in enumerate(two[0]):
        assert (found["index"], found["count"]) == (index, 2)
        assert (found["shared"], found["empty"]) == (b"first", b"")
        assert found["gathered"] == [b"\x00\xff" * 3, b"\x00\xff" * 4]
