"""Checkpoints: a pytree on disk, bit for bit, noticed when damaged. The only importer of orbax.

Orbax writes the arrays; beside them lies a manifest of our own with the SHA-256 of every file and
the path, shape and dtype of every leaf, because orbax reads a flipped bit without a word. A
checkpoint is written aside and renamed, so that a half-written one is never seen; which of them is
the newest is said by its step and never by a clock.

    with checkpoints.Saver("run/checkpoints", keep=2) as saver:
        found = saver.restore(state)
        step, state = found or (0, state)
        while step < 100:
            state, step = train(state), step + 1
            saver.save(step, state)  # copies and returns; the disk is written in the background

Every process of a `jax.distributed` job may call this: the first one writes and all can read, and
no call waits for another process. Leaves have to be whole on that process, as replicated ones are.
"""

from nopr.lab.checkpoints.files import CheckpointError
from nopr.lab.checkpoints.saver import Saver
from nopr.lab.checkpoints.saving import restore, save, steps

__all__ = ["CheckpointError", "Saver", "restore", "save", "steps"]
