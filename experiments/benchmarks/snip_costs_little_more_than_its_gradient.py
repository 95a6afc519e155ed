"""SNIP on 14.7 million weights, and the choice of 5% of them, cost little more than the gradient.

VGG-16 with batch norm in inference mode and 128 random images of 32 x 32: one program scores all
weights by SNIP and keeps exactly 5%; the other returns the gradient of the same loss and nothing
else. Before timing, the scores are checked against the gradient. Goal: at most 1.1 times the
gradient. About three minutes.

    python -m experiments.benchmarks.snip_costs_little_more_than_its_gradient
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import _timing
from experiments.benchmarks._timing import Way
from nopr import criteria, finetune, masks, networks, trees
from nopr.networks import Network

DENSITY, BATCH, REPEATS = 0.05, 128, 7
KEY = jax.random.key(0)
GOAL = 1.1
KEY = jax.random.key(2)  # SNIP does not use it


def network() -> Network:
    """The network that is scored."""
    return networks.vgg(16)


def main() -> None:
    """Prints the table and the ratio."""
    net = network()
    params = net.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (BATCH, *net.input_shape))
    batch = images, jnp.arange(BATCH) % 10
    loss = finetune.cross_entropy(net.bind(net.init_state()))
    score = criteria.snip(loss)

    def gradient(params: Any, batch: Any) -> Any:
        return trees.select(jax.grad(loss)(params, batch))

    def snip(params: Any, batch: Any) -> Any:
        return score(params, batch, key=KEY)

    def kept(params: Any, batch: Any) -> Any:
        return masks.top(score(params, batch, key=KEY), density=DENSITY, warn=False)

    ways = {
        "gradient": Way(_call(gradient, params, batch)),
        "SNIP": Way(_call(snip, params, batch)),
        "SNIP and masks.top": Way(_call(kept, params, batch)),
    }
    found, firsts = _timing.first_calls(ways)
    size = masks.size(found["SNIP and masks.top"])
    _check(params, found, size)
    rows = _timing.take_turns(ways, firsts, repeats=REPEATS)
    print(f"{size:,} weights, a batch of {BATCH}, {DENSITY:.0%} kept; seconds")
    _timing.print_table(ways, rows, runs=1)
    ours, alone = rows["SNIP and masks.top"], rows["gradient"]
    print(
        f"medians of {REPEATS}, in turns: {ours.median_seconds / alone.median_seconds:.3f} times "
        f"the gradient, {ours.least_seconds / alone.least_seconds:.3f} by the least; goal: {GOAL}"
    )


def _call(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    jitted = jax.jit(function)
    return lambda: jax.block_until_ready(jitted(*args))


def _check(params: Any, found: dict[str, Any], size: int) -> None:
    kept = int(masks.count(found["SNIP and masks.top"]))
    if kept != round(DENSITY * size):
        raise RuntimeError(f"{kept:,} of {size:,} weights are kept.")
    expected = jax.tree.map(lambda w, g: abs(w * g), trees.select(params), found["gradient"])
    for ours, theirs in zip(*map(jax.tree.leaves, (found["SNIP"], expected)), strict=True):
        peak = float(np.max(theirs))
        if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * peak):
            raise RuntimeError("SNIP's scores are not those of the gradient.")


if __name__ == "__main__":
    main()
