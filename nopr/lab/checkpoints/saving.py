"""Saving at once, and reading the newest checkpoint that is whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from nopr.lab.checkpoints import files, leaves
from nopr.lab.checkpoints.files import steps

Say = Callable[[str], Any]
"""Called with one line for a person at a time."""


class Snapshot(NamedTuple):
    """A tree as it was, on the host: rows of the manifest and arrays."""

    rows: list[dict[str, Any]]
    stored: list[leaves.Stored]


def save(directory: str | Path, step: int, tree: PyTree, *, keep: int = 2) -> Path:
    """Saves `tree` as the checkpoint of `step`, and returns when it is safely on the disk.

    Args:
      directory: Holds the checkpoints, one folder a step; made if missing.
      step: Not negative. A checkpoint of the same step is replaced.
      tree: Any pytree of arrays, numbers and typed PRNG keys: params, masks with None leaves,
        optimiser states. Of several processes the first writes; the others only check.
      keep: How many of the newest checkpoints stay, at least 1. With 2, a damaged last one still
        leaves the one before. The one just saved stays in any case.

    Returns:
      The folder of the checkpoint.

    Raises:
      ValueError: If a leaf is of size 0 (orbax cannot store it), not an array, or spread over
        processes; names it.
      CheckpointError: An OSError, if it cannot be written; older checkpoints are untouched.
    """
    check_keep(keep)
    snapshot = take(step, tree)
    directory = Path(directory).absolute()
    if jax.process_index() == 0:
        files.commit(directory, step, *snapshot, keep=keep)
    return directory / str(step)


def restore(
    directory: str | Path, target: PyTree, *, say: Say | None = None
) -> tuple[int, PyTree] | None:
    """Reads the newest checkpoint that is whole.

    Args:
      directory: Where `save` put them.
      target: A tree of the same leaves, arrays or `jax.ShapeDtypeStruct`s. The result has its
        structure; a leaf is a JAX array on the target's device where the target's is, NumPy or a
        Python number where the target's is.
      say: Called with one line for each damaged checkpoint passed over; prints to stderr by
        default.

    Returns:
      The step and the tree, or None if there is no whole checkpoint.

    Raises:
      ValueError: If the checkpoint is of another tree than `target`; names the leaf.
    """
    directory = Path(directory).absolute()
    for step in reversed(steps(directory)):
        manifest, fault = files.verified(directory / str(step))
        if manifest is not None:
            return step, files.read(directory / str(step), manifest, target)
        (say or to_stderr)(
            f"The checkpoint of step {step} in {directory} is damaged ({fault}); "
            "trying the one before."
        )
    return None


def take(step: int, tree: PyTree) -> Snapshot:
    """Checks what is to be saved, and copies it to the host."""
    if step < 0:
        raise ValueError(f"`step` must not be negative, got {step}.")
    rows = leaves.rows(tree)
    if not rows:
        raise ValueError("`tree` must have at least one array, got none.")
    return Snapshot(rows, leaves.on_host(tree))


def check_keep(keep: int) -> None:
    """Checks that at least one checkpoint is kept."""
    if keep < 1:
        raise ValueError(f"`keep` must be at least 1, got {keep}.")


def to_stderr(line: str) -> None:
    """Prints one line for the person at the terminal, at once."""
    print(line, file=sys.stderr, flush=True)
