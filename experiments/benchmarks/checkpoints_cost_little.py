"""A checkpoint after every epoch costs little if it is written in the background.

Epochs of 60,000 x 784 random examples through 784-300-100-10 (batch 128, SGD with momentum), as in
Fashion-MNIST, with the whole state saved after each epoch: not at all, at once, and in the
background, in turns in the same process. Goal: in the background at most 1.1 times the
training without. About a minute on two cores.

Training then waits about a millisecond per save, for the copy. The rest of the ratio is the write,
some 20 ms of a core taken from training that keeps both cores busy; beside an accelerator it would
cost nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

from nopr import finetune, networks
from nopr.lab import checkpoints

EXAMPLES, INPUTS, WIDTHS, BATCH_SIZE = 60_000, 784, (300, 100, 10), 128
EPOCHS, REPEATS = 10, 6


class Timed:
    """A keeper that saves by a function, measures how long training waits, and restores nothing."""

    def __init__(self, save: Callable[[int, Any], Any]):
        self._save = save
        self.seconds = 0.0

    def save(self, step: int, tree: Any, /) -> None:
        """Saves a tree."""
        begin = time.perf_counter()
        self._save(step, tree)
        self.seconds += time.perf_counter() - begin

    def restore(self, target: Any, /) -> None:
        """Returns None, so that each run starts over."""


def main() -> None:
    """Prints the table."""
    train = _training()
    ways = {"none": _without, "at once": _at_once, "in the background": _in_background}
    _without(train)  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    waits: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(REPEATS):
        first = turn % len(ways)  # Each comes first in turn.
        for name in (*list(ways)[first:], *list(ways)[:first]):
            begin = time.perf_counter()
            waits[name].append(1000 * ways[name](train) / EPOCHS)
            seconds[name].append((time.perf_counter() - begin) / EPOCHS)
    print(f"epochs of {EXAMPLES:,} x {INPUTS}, batch {BATCH_SIZE}, each with a checkpoint of")
    print(f"{_megabytes(train):.1f} MB, medians of {REPEATS} runs of {EPOCHS} epochs")
    print(f"{'checkpoints':<18} {'seconds an epoch':>17} {'ratio':>7} {'ms waited a save':>17}")
    for name, values in seconds.items():
        # Each is divided by the run beside it, so that a slow moment hits both.
        ratios = [mine / none for mine, none in zip(values, seconds["none"], strict=True)]
        print(
            f"{name:<18} {statistics.median(values):>17.3f} {statistics.median(ratios):>7.3f} "
            f"{statistics.median(waits[name]):>17.1f}"
        )
    print("goal: in the background at most 1.1")


def _training() -> Callable[[finetune.Keeper | None], Any]:
    """`train(keeper)`: the epochs, one per segment."""
    network = networks.mlp(WIDTHS, inputs=INPUTS)
    tx = optax.sgd(0.1, momentum=0.9)
    data_key, label_key, key = jax.random.split(jax.random.key(0), 3)
    data = (
        jax.random.normal(data_key, (EXAMPLES, INPUTS)),
        jax.random.randint(label_key, (EXAMPLES,), 0, WIDTHS[-1]),
    )
    start = finetune.start(network.init(key), None, tx=tx, key=key)
    step_loss = finetune.stateless(finetune.cross_entropy(network.apply))

    def train(keeper: finetune.Keeper | None) -> Any:
        return finetune.resume(
            start,
            data,
            epochs=EPOCHS,
            every=1,
            keeper=keeper,
            step_loss=step_loss,
            tx=tx,
            batch_size=BATCH_SIZE,
        )

    return train


def _without(train: Callable[..., Any]) -> float:
    jax.block_until_ready(train(None).params)
    return 0.0


def _at_once(train: Callable[..., Any]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        keeper = Timed(lambda step, tree: checkpoints.save(folder, step, tree))
        train(keeper)
    return keeper.seconds


def _in_background(train: Callable[..., Any]) -> float:
    with tempfile.TemporaryDirectory() as folder, checkpoints.Saver(folder) as saver:
        keeper = Timed(saver.save)
        train(keeper)
    return keeper.seconds


def _megabytes(train: Callable[..., Any]) -> float:
    fitted = train(None)
    saved = jax.tree.leaves((fitted.carry._replace(key=None), fitted.history))
    return sum(leaf.nbytes for leaf in saved) / 1e6


if __name__ == "__main__":
    main()
