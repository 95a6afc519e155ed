"""Processes meet before JAX starts, or fail at once with the reason."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nopr import processes
from nopr.lab import peers, terminal

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def meet(port, monkeypatch):
    """Lets processes (here threads) meet; returns None or the error raised for each."""
    monkeypatch.setattr(processes, "connect", lambda **options: None)

    def meet(*each, host="127.0.0.1", patience=1):
        ended = {}

        def one(number, count, index):
            try:
                peers.connect(peers.Peers(f"{host}:{port}", count, index, patience))
                ended[number] = None
            except Exception as error:
                ended[number] = error

        threads = [threading.Thread(target=one, args=(i, *who)) for i, who in enumerate(each)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return [ended[number] for number in range(len(each))]

    return meet


def test_all_meet_in_any_order(meet):
    assert meet((3, 2), (3, 0), (3, 1)) == [None, None, None]


def test_an_index_given_twice_is_reported_to_all(meet):
    errors = meet((3, 0), (3, 1), (3, 1))
    for error in errors:
        assert "--process=1 was given to two processes. Start the same" in str(error)


def test_other_numbers_of_processes_are_reported_to_both(meet):
    for error in meet((2, 0), (3, 1)):
        assert "Process 1 has --processes=3, process 0 has 2. Start the same" in str(error)


def test_a_port_in_use_is_reported_at_once(meet, port):
    with socket.create_server(("", port)):
        (error,) = meet((2, 0))
    assert f"Port {port} of 127.0.0.1 cannot be used (Address already in use). Give " in str(error)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b"])
def test_an_address_that_is_not_known_is_reported_at_once(meet, host, index):
    (error,) = meet((2, index), host=host)
    assert f"The address {host!r} in --coordinator is not known (" in str(error)


def test_a_program_that_answers_something_else_is_reported_at_once(meet, port):
    def answer(server):
        with server.accept()[0] as other:
            other.sendall(b"\xfe HTTP/1.1")

    with socket.create_server(("127.0.0.1", port)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        (error,) = meet((2, 1))
        thread.join()
    assert f"What answers at port {port} of 127.0.0.1 does not wait for this process" in str(error)


@pytest.mark.parametrize("junk", [b"[" * 1024, b"\xff", b"null", b'{"count": 1e999, "index": 1}'])
def test_what_is_not_a_process_of_the_run_is_not_counted(port, junk, monkeypatch):
    monkeypatch.setattr(processes, "connect", lambda **options: None)
    limit = time.monotonic() + 10
    mine = peers.Peers(f"127.0.0.1:{port}", 2, 0, 1)
    first = threading.Thread(target=peers.connect, args=(mine,))
    first.start()
    answers = []
    for sent in (junk, b'{"count": 2, "index": 1}'):
        with _connected(port, limit) as connection:
            connection.sendall(sent)
            answers.append(connection.recv(1024))
    first.join()
    assert answers == [b"", b'{"fault": ""}']


def _connected(port, limit):
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except ConnectionRefusedError:
            assert time.monotonic() < limit
            time.sleep(0.02)


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_waits_alone_ends_in_time(meet, index):
    (error,) = meet((2, index), patience=0.05)
    assert isinstance(error, peers.AloneError)


def test_an_abort_is_one_line_and_an_exit_status():
    code = """
import os
from nopr.lab import peers
peers.abort_in_one_line(lambda: "Another process was lost.")
os.write(2, b"F1121 client.h:80] Terminating process because of pages of logs.")
os.abort()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said, _, log = done.stderr.partition(" JAX's log is ")
    assert (done.returncode, said) == (peers.LOST, "error: Another process was lost.")
    log = Path(log.strip().rstrip("."))
    assert "pages of logs" in log.read_text()
    log.unlink()


def test_what_cannot_be_printed_is_dropped(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    stream = terminal.guarded(writer)
    print("nobody reads this", file=stream, flush=True)
    os.close(writer)
    print("this is closed", file=stream, flush=True)
    path = tmp_path / "out"
    with open(path, "wb") as file:
        ascii_only = type("Like", (), {"encoding": "ascii"})
        print("Erdős", file=terminal.guarded(file.fileno(), ascii_only), flush=True)
    assert path.read_bytes() == b"Erd\\u0151s\n"


STUCK = """
import ctypes, os, signal, threading
from nopr.lab import stopping
stopping._GRACE_SECONDS = 0.2
stopping.listen(lambda: os.write(2, b"unheard"))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that the call is not interrupted
thread = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
thread.start()
ctypes.CDLL(None).sleep(60)
"""


def test_a_signal_ends_a_program_that_is_in_a_long_call():
    done = subprocess.run(
        [sys.executable, "-c", STUCK], cwd=ROOT, capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, b"unheard")
