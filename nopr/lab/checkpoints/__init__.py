"""Checkpoints: pytrees on disk, restored bit for bit, with damage detected.

A checkpoint is a result of `records.Store`, named by its step: an npz file of the leaves and a seal
with its SHA-256. It is written to a temporary file and renamed, so that a half-written one is
never seen. The newest is the one of the highest step, whatever its date.

    with checkpoints.Saver("run/checkpoints", keep=2) as saver:
        found = saver.restore(state)
        step, state = found or (0, state)
        while step < 100:
            state, step = train(state), step + 1
            saver.save(step, state)  # copies and returns; the disk is written in the background

Every process of a `jax.distributed` job may call this: process 0 writes, all can read, and no call
waits for another process. Leaves must be complete on each process, as replicated ones are.
"""

from nopr.lab.checkpoints.saver import Saver, restore, save, steps

__all__ = ["Saver", "restore", "save", "steps"]
