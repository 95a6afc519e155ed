"""The processes of one run: they connect before JAX starts, and none outlives another for long.

When a process is lost, JAX ends the others from C++, with pages of logs and `abort`. Here the logs
go to a file, and the abort becomes one line and an exit status.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nopr import processes
from nopr.lab import terminal

LOST = 75  # the exit status when another process was lost

_REMEDY = "Start the same command on every host, each with its own --process."

_last_word = threading.Lock()
_kept: list[Any] = []  # keeps what C calls alive


class Peers(NamedTuple):
    """The other processes of a run, as the command line gives them."""

    coordinator: str | None
    count: int | None
    index: int | None
    patience_seconds: float


class AloneError(Exception):
    """The other processes did not join."""


def abort_in_one_line(line: Callable[[], str]) -> None:
    """Turns an abort from C++ into one line and exit status `LOST`; C++ logs to a file.

    Args:
      line: Function that returns the line; the path of the log, which is kept, is appended.
    """
    shown = os.dup(2)
    sys.stderr = terminal.guarded(shown, sys.stderr)
    log = Path(tempfile.gettempdir(), f"nopr-{os.getpid()}.log")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)

    def on_abort(number: int) -> None:
        del number
        if not _last_word.acquire(blocking=False):
            time.sleep(60)  # the main thread is about to end the program
        terminal.say(f"error: {line()} JAX's log is {log}.")
        os._exit(LOST)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    _kept.extend((handler, log))


def end() -> None:
    """Prepares a normal exit: an abort prints nothing from now on, and the log is removed."""
    if _kept:
        _last_word.acquire(timeout=60)
        _kept[1].unlink(missing_ok=True)


def connect(peers: Peers) -> None:
    """Connects to the other processes, then starts JAX's distributed service.

    Raises:
      ValueError: If they cannot connect: the address is wrong or in use, an index is given twice,
        or they disagree on their number.
      AloneError: If some do not join within ten times the patience.
    """
    if peers.coordinator is not None:
        limit = time.monotonic() + 10 * peers.patience_seconds
        host, _, port = peers.coordinator.rpartition(":")
        _check_known(host.strip("[]"))
        mine = {"count": peers.count, "index": peers.index}
        try:
            if peers.index == 0:
                _receive(host, int(port), mine, limit)
            else:
                _report(host.strip("[]"), int(port), mine, limit)
        except TimeoutError as error:
            raise AloneError from error
    processes.connect(**peers._asdict())


def _check_known(host: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no name of a host"
        raise ValueError(
            f"The address {host!r} in --coordinator is not known ({why}). Give the name or IP "
            "address of the host of process 0."
        ) from error


def _receive(host: str, port: int, mine: dict[str, Any], limit: float) -> None:
    """Waits in process 0 for all others, checks that they agree, and answers each."""
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=mine["count"],
        )
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ValueError(
            f"Port {port} of {host} cannot be used ({why}). Give another port in --coordinator, "
            "the same on every host."
        ) from error
    there: dict[int, socket.socket] = {}
    fault = ""
    with server:
        while len(there) < mine["count"] - 1 and not fault:
            server.settimeout(max(0.01, limit - time.monotonic()))
            other, _ = server.accept()
            other.settimeout(5)
            try:
                theirs = json.loads(other.recv(1024))
                count, index = int(theirs["count"]), int(theirs["index"])
            except (OSError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
                other.close()  # not a process of a run
                continue
            if count != mine["count"]:
                fault = f"Process {index} has --processes={count}, process 0 has {mine['count']}."
            elif index in there or index == 0:
                fault = f"--process={index} was given to two processes."
            there[index if index not in there else -1] = other
        for other in there.values():
            with other:
                other.sendall(json.dumps({"fault": fault}).encode())
    if fault:
        raise ValueError(f"{fault} {_REMEDY}")


def _report(host: str, port: int, mine: dict[str, Any], limit: float) -> None:
    """Reports this process to process 0 and waits for the answer."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as server:
                server.sendall(json.dumps(mine).encode())
                server.settimeout(max(0.01, limit - time.monotonic()))
                answer = server.recv(1024)
            break
        except OSError as error:
            if time.monotonic() > limit:
                raise TimeoutError from error
            time.sleep(0.1)
    if not answer:
        raise processes.Lost("Process 0 ended before all processes had joined.")
    try:
        fault = json.loads(answer)["fault"]
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"What answers at port {port} of {host} does not wait for this process. Give the port "
            "of process 0 in --coordinator, and the same --processes everywhere."
        ) from error
    if fault:
        raise ValueError(f"{fault} {_REMEDY}")
