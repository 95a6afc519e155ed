"""Saving in the background, one write at a time."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import jax
from jaxtyping import PyTree

from nopr.lab.checkpoints import files, saving
from nopr.lab.checkpoints.files import CheckpointError
from nopr.lab.checkpoints.saving import Say


class Saver:
    """Saves checkpoints while the program goes on; a context manager.

    `save` copies the leaves to the host before it returns, so that buffers may be donated or
    written to right after it, and the disk is written in the background. There is never more than
    one write under way: a `save` waits for the one before. What goes wrong in the background is
    raised by the next `save`, `restore`, `wait` or `close`.

    Leaving the `with` waits for the write, also where an error or a signal ends it; then an error
    of the write is only said, and the one that is on its way goes on. A process that is killed
    leaves whole checkpoints alone.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, say: Say | None = None):
        """Prepares to save in a folder; nothing is read or written yet.

        Args:
          directory: Holds the checkpoints, one folder a step; made by the first `save`.
          keep: How many of the newest checkpoints stay, at least 1.
          say: Called with one line for a person at a time; prints to stderr by default.

        Raises:
          ValueError: If `keep` is less than 1.
        """
        saving.check_keep(keep)
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._say = say or saving.to_stderr
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._underway: Future[Path] | None = None
        self._passed_over: frozenset[int] = frozenset()
        self._closed = False

    def save(self, step: int, tree: PyTree) -> None:
        """Copies `tree`, and begins to write it as the checkpoint of `step`.

        Of several processes the first writes; the others only check.

        Args:
          step: Not negative. A checkpoint of the same step is replaced.
          tree: As for `checkpoints.save`.

        Raises:
          ValueError: If `tree` cannot be saved, or the saver is closed.
          CheckpointError: If the write before this one failed; `tree` is not saved then.
        """
        if self._closed:
            raise ValueError(f"The saver of {str(self._directory)!r} is closed. Make another.")
        self.wait()
        snapshot = saving.take(step, tree)
        if jax.process_index() == 0:
            stale, self._passed_over = self._passed_over, frozenset()
            self._underway = self._writer.submit(
                files.commit, self._directory, step, *snapshot, keep=self._keep, stale=stale
            )

    def restore(self, target: PyTree) -> tuple[int, PyTree] | None:
        """Reads the newest checkpoint that is whole, once the write under way is done.

        What was passed over because it is damaged goes with the next `save`, so that it does not
        count among those that are kept.

        Args:
          target: As for `checkpoints.restore`.

        Returns:
          The step and the tree, or None if there is no whole checkpoint.

        Raises:
          ValueError: If the checkpoint is of another tree than `target`; names the leaf.
          CheckpointError: If the write before this failed.
        """
        self.wait()
        found = saving.restore(self._directory, target, say=self._say)
        newest = -1 if found is None else found[0]
        there = files.steps(self._directory)
        self._passed_over = frozenset(step for step in there if step > newest)
        if jax.process_index() == 0:
            files.tidy(self._directory, newest=newest, keep=self._keep)
        return found

    def wait(self) -> None:
        """Waits until the last `save` is safely on the disk.

        Raises:
          CheckpointError: If it could not be written; said once.
        """
        if self._underway is not None:
            # Kept until it is done: a signal may end this wait, and `close` waits again.
            self._underway.exception()
            underway, self._underway = self._underway, None
            underway.result()

    def close(self) -> None:
        """Waits for the last `save`; the saver takes nothing more.

        Raises:
          CheckpointError: If it could not be written.
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
        if error is None:
            self.close()
            return
        try:
            self.close()
        except CheckpointError as failure:
            self._say(str(failure))
