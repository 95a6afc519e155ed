"""Saves checkpoints, at once or in the background, and reads the newest intact one."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from jaxtyping import PyTree

from nopr.lab import records, terminal
from nopr.lab.checkpoints import leaves
from nopr.typing import whole_number

Say = Callable[[str], Any]
"""A function that reports one line to the user."""


def steps(directory: str | Path) -> tuple[int, ...]:
    """The steps that have a checkpoint, ascending, whether it is intact or damaged."""
    names = _store(directory, terminal.say).names()
    return tuple(sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)))


def save(directory: str | Path, step: Any, tree: PyTree, *, keep: int = 2) -> None:
    """Saves `tree` as the checkpoint of `step`, and returns when it is safely on the disk.

    Args:
      directory: Folder of the checkpoints; created if missing.
      step: Nonnegative integer. A checkpoint of the same step is replaced.
      tree: Any pytree of arrays, numbers and typed PRNG keys: params, masks with None leaves,
        optimizer states. With several processes, process 0 writes; the others only check.
      keep: Number of newest checkpoints to keep, at least 1; with 2, one is left if the last is
        damaged. The one just saved is always kept.

    Raises:
      ValueError: If a leaf is not an array or number, or spread over processes; names it.
      RunError: If it cannot be written; older checkpoints are untouched.
    """
    with Saver(directory, keep=keep) as saver:
        saver.save(step, tree)


def restore(
    directory: str | Path, target: PyTree, *, say: Say | None = None
) -> tuple[int, PyTree] | None:
    """Reads the newest intact checkpoint.

    Args:
      directory: Folder of the checkpoints.
      target: Tree of the same leaves, arrays or `jax.ShapeDtypeStruct`s. The result has its
        structure; a leaf is a JAX array on the target's device where the target's is, NumPy or a
        Python number where the target's is.
      say: Function that reports one line for each damaged checkpoint passed over; prints to
        stderr by default.

    Returns:
      The step and the tree, or None if there is no intact checkpoint.

    Raises:
      ValueError: If the checkpoint does not match `target`; names the leaf.
    """
    store = _store(directory, say or terminal.say)
    for step in reversed(steps(directory)):
        found = store.get(str(step))
        if found is not None:
            name = str(store.directory / str(step))
            return step, leaves.as_target(found, target, name=name)
    return None


class Saver:
    """Saves checkpoints while the program continues; a context manager.

    `save` copies the leaves to the host before it returns, so that buffers may be donated or
    overwritten right after it, and the disk is written in the background. At most one write is
    under way: a `save` waits for the one before. An error in the background is raised by
    the next `save`, `restore`, `wait` or `close`.

    Leaving the `with` waits for the write, even when an error or a signal ends the block. A failed
    write is then only reported, and the original error is raised. A process that is killed leaves
    only intact checkpoints.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, say: Say | None = None):
        """Prepares to save in a folder; nothing is read or written yet.

        Args:
          directory: Folder of the checkpoints; created by the first `save`.
          keep: Number of newest checkpoints to keep, at least 1.
          say: Function that reports one line to the user; prints to stderr by default.

        Raises:
          ValueError: If `keep` is less than 1.
        """
        whole_number("keep", keep)
        self._store = _store(directory, say or terminal.say)
        self._keep = keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._underway: Future[None] | None = None
        self._passed_over: frozenset[int] = frozenset()
        self._closed = False

    def save(self, step: Any, tree: PyTree) -> None:
        """Copies `tree` and starts writing it as the checkpoint of `step`.

        With several processes, process 0 writes; the others only check.

        Args:
          step: As for `checkpoints.save`.
          tree: As for `checkpoints.save`.

        Raises:
          ValueError: If `tree` cannot be saved, or the saver is closed.
          RunError: If the write before this one failed; `tree` is not saved then.
        """
        if self._closed:
            raise ValueError(
                f"The saver of {str(self._store.directory)!r} is closed. Make another."
            )
        self.wait()
        step = whole_number("step", step, least=0)
        values = leaves.on_host(tree)
        if jax.process_index() == 0:
            stale, self._passed_over = self._passed_over - {step}, frozenset()
            self._underway = self._writer.submit(self._write, step, values, stale)

    def restore(self, target: PyTree) -> tuple[int, PyTree] | None:
        """Reads the newest intact checkpoint, once the write under way is done.

        Damaged checkpoints that were passed over are removed by the next `save`, so that they do
        not count towards `keep`.

        Args:
          target: As for `checkpoints.restore`.

        Returns:
          The step and the tree, or None if there is no intact checkpoint.

        Raises:
          ValueError: If the checkpoint does not match `target`; names the leaf.
          RunError: If the write before this failed.
        """
        self.wait()
        found = restore(self._store.directory, target, say=self._store.say)
        newest = -1 if found is None else found[0]
        self._passed_over = frozenset(s for s in steps(self._store.directory) if s > newest)
        return found

    def wait(self) -> None:
        """Waits until the last `save` is safely on the disk.

        Raises:
          RunError: If it could not be written; raised once.
        """
        if self._underway is not None:
            # Kept until it is done: a signal may end this wait, and `close` waits again.
            self._underway.exception()
            underway, self._underway = self._underway, None
            underway.result()

    def close(self) -> None:
        """Waits for the last `save` and closes the saver.

        Raises:
          RunError: If it could not be written.
        """
        self._closed = True
        try:
            self.wait()
        finally:
            self._writer.shutdown(wait=False)

    def __enter__(self) -> Saver:
        """Returns the saver itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for the last `save`, however the block was left."""
        try:
            self.close()
        except records.RunError as failure:
            if error is None:
                raise
            self._store.say(str(failure))

    def _write(self, step: int, values: dict[str, Any], stale: frozenset[int]) -> None:
        """Writes a checkpoint, then removes the `stale` and all but the newest ones."""
        for left in self._store.directory.glob(".*.tmp"):  # of a process that was killed
            left.unlink(missing_ok=True)
        self._store.put(str(step), values)
        there = [each for each in steps(self._store.directory) if each not in stale]
        for gone in {*there[: -self._keep], *stale} - {step}:
            self._store.remove(str(gone))


def _store(directory: str | Path, say: Say) -> records.Store:
    return records.Store(Path(directory).absolute(), context={}, say=say)
