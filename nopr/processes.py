"""Several processes of one program, on one host or many, as JAX runs them.

Every process runs the same program and reaches the same calls in the same order. A single process
is process 0 of 1, and the calls then cost nothing, so that callers need no special case. Processes
exchange bytes only, unchanged by any arithmetic.
"""

from __future__ import annotations

import re
import sys

import numpy as np

# jax is imported late, so that a program can set its environment first.
_STATUS = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN):"
)


class Lost(RuntimeError):
    """Another process of the program did not answer. The message is one line."""


def connect(
    *,
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    patience_seconds: int = 30,
) -> None:
    """Joins the other processes of this program; call it before any other use of JAX.

    `jax.distributed.initialize` finds what is None in the environment, on Slurm, Open MPI,
    Kubernetes and Cloud TPU. JAX aborts the process from C++ if another one does not start or is
    lost; `nopr.lab.launch` turns that into a one-line message.

    Args:
      coordinator: Host and port of process 0, such as `"10.0.0.1:1234"`.
      count: Number of processes.
      index: Index of this process, from 0.
      patience_seconds: Silence after which a process counts as lost and the others end. At the
        start, the processes wait ten times as long for each other.

    Raises:
      ValueError: If an argument is out of range, or is neither given nor in the environment.
      RuntimeError: If JAX has already started.
    """
    import jax

    if not 1 <= patience_seconds <= 10**6:
        raise ValueError(f"`patience_seconds` must be from 1 to 1,000,000, got {patience_seconds}.")
    if count is not None and count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    if index is not None and not 0 <= index < (count or index + 1):
        raise ValueError(f"`index` must be in [0, {(count or 1) - 1}], got {index}.")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"`coordinator` must read like 'host:port', got {coordinator!r}.")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=10 * patience_seconds,
            heartbeat_timeout_seconds=patience_seconds,
            shutdown_timeout_seconds=10 * patience_seconds,
        )
    except ValueError as error:
        raise ValueError(
            f"The processes cannot find each other ({' '.join(str(error).split())}). Give the "
            "address of process 0, the number of processes and the index of this one."
        ) from error


def disconnect() -> None:
    """Waits for all processes to reach this call, then disconnects; for the end of a program."""
    if _joined():
        sys.modules["jax"].distributed.shutdown()


def is_loss(error: BaseException) -> bool:
    """Whether an error, from here or from JAX, means that another process did not answer."""
    return isinstance(error, Lost) or (count() > 1 and _STATUS.match(str(error)) is not None)


def index() -> int:
    """The index of this process, from 0."""
    return sys.modules["jax"].process_index() if _joined() else 0


def count() -> int:
    """The number of processes."""
    return sys.modules["jax"].process_count() if _joined() else 1


def share(data: bytes | None) -> bytes:
    """The bytes of process 0, in every process; the data of the others is ignored.

    Raises:
      ValueError: If the data is 2 GiB or more.
      Lost: If a process did not answer.
    """
    if count() == 1:
        return data or b""
    from jax.experimental import multihost_utils

    _check_length(data or b"")
    mine = np.frombuffer((data if index() == 0 else b"") or b"", np.uint8)
    try:
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(mine))))
        found = multihost_utils.broadcast_one_to_all(_padded(mine, length))
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from error
    return np.asarray(found)[:length].tobytes()


def gather(data: bytes) -> list[bytes]:
    """The bytes of every process, by index, in every process.

    Raises:
      ValueError: If the data is 2 GiB or more.
      Lost: If a process did not answer.
    """
    if count() == 1:
        return [data]
    from jax.experimental import multihost_utils

    _check_length(data)
    mine = np.frombuffer(data, np.uint8)
    try:
        lengths = multihost_utils.process_allgather(np.int32(len(mine)))
        found = multihost_utils.process_allgather(_padded(mine, int(lengths.max())))
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from error
    return [row[:length].tobytes() for row, length in zip(found, lengths, strict=True)]


def _joined() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _check_length(data: bytes) -> None:
    if len(data) >= 2**31:  # lengths are sent as int32
        raise ValueError(
            f"Data sent between processes must be less than 2 GiB, got {len(data):,} bytes. "
            "In a sweep, give a smaller `chunk`."
        )


def _padded(data: np.ndarray, length: int) -> np.ndarray:
    """Pads with zeros to a power of two, so that few programs are compiled."""
    size = 1 << max(length - 1, 63).bit_length()
    return np.concatenate([data, np.zeros(size - len(data), np.uint8)])


def _lost(error: Exception) -> Lost:
    first = (str(error).splitlines() or [""])[0].rstrip(".")
    return Lost(f"Another process of this run did not answer: {first}.")
