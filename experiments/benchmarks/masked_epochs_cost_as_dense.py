"""Training under masks costs what dense training costs.

One epoch of 60,000 x 784 random examples through 784-300-100-10 (batch 128, SGD with momentum),
masked to 5% against dense, in turns in the same process. Goal: at most 1.1 times the dense
epoch. About ten seconds on two cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nopr import finetune, networks, trees

EXAMPLES, INPUTS, WIDTHS, BATCH_SIZE = 60_000, 784, (300, 100, 10), 128
DENSITY, REPEATS = 0.05, 15


def main() -> None:
    """Prints the table."""
    runs = _runs()
    for run in runs.values():
        jax.block_until_ready(run())  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            seconds[name].append(_seconds(run))
    print(f"one epoch, {EXAMPLES:,} x {INPUTS}, batch {BATCH_SIZE}, medians of {REPEATS}")
    print(f"{'weights':<22} {'seconds':>8} {'ratio':>7}")
    for name, values in seconds.items():
        # Each is divided by the dense epoch beside it, so that a slow moment hits both.
        ratios = [mine / dense for mine, dense in zip(values, seconds["dense"], strict=True)]
        print(f"{name:<22} {statistics.median(values):>8.3f} {statistics.median(ratios):>7.3f}")
    print("goal: at most 1.1")


def _runs() -> dict[str, Callable[[], Any]]:
    network = networks.mlp(WIDTHS, inputs=INPUTS)
    loss = finetune.cross_entropy(network.apply)
    tx = optax.sgd(0.1, momentum=0.9)
    train = finetune.trainer(loss, tx, epochs=1, batch_size=BATCH_SIZE)
    data_key, label_key, mask_key, key = jax.random.split(jax.random.key(0), 4)
    data = (
        jax.random.normal(data_key, (EXAMPLES, INPUTS)),
        jax.random.randint(label_key, (EXAMPLES,), 0, WIDTHS[-1]),
    )
    params = network.init(key)
    masks = jax.tree.map(
        lambda leaf: jax.random.bernoulli(mask_key, DENSITY, leaf.shape), trees.select(params)
    )
    kept = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(masks))
    return {
        "dense": lambda: train(params, None, data, key=key),
        f"masked, {int(kept):,} kept": lambda: train(params, masks, data, key=key),
    }


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
