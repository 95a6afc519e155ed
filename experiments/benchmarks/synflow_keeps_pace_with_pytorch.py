"""SynFlow in double precision takes no longer than in PyTorch, compilation aside.

100 rounds to 1% of the weights: a gradient of the flow and an exact selection in each. `pruner`
compiles all rounds to one program, which scores in double precision and selects by integer
comparisons; PyTorch runs the rounds one by one and selects by `torch.kthvalue`, in double precision
and in its usual single one. Batch norm is in inference mode. Before timing, the masks are compared:
in double precision they may differ where scores agree to rounding, in a millionth of the weights.
Goal: half the time of double precision on the first two, and no longer on VGG-16. About eight
minutes, most of them for VGG-16.

    python -m experiments.benchmarks.synflow_keeps_pace_with_pytorch
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import _timing
from experiments.benchmarks._timing import Way
from nopr import criteria, masks, networks, pruning, schedules, trees
from nopr.networks import Network

DENSITY, ROUNDS, REPEATS = 0.01, 100, 3
NETWORKS: dict[str, Callable[[], Network]] = {
    "LeNet-300-100": networks.lenet_300_100,
    "ResNet-20": lambda: networks.resnet(20),
    "VGG-16": lambda: networks.vgg(16),
}
DIFFERENT = 1e-6  # share of the weights that rounding may decide


def main() -> None:
    """Prints a table for each network."""
    pytorch = _timing.pytorch_or_say()
    for name, make in NETWORKS.items():
        network = make()
        params = jax.device_get(network.init(jax.random.key(0)))
        ways = {"nopr, float64": Way(_ours(network, params))}
        if pytorch is not None:
            ways |= _theirs(name, network, params, pytorch)
        found, firsts = _timing.first_calls(ways)
        size = masks.size(found["nopr, float64"])
        different = _different(found)
        rows = _timing.take_turns(ways, firsts, repeats=REPEATS)
        print(f"{name}, {size:,} prunable weights, {ROUNDS} rounds to {DENSITY:.0%}; seconds")
        _timing.print_table(ways, rows, runs=1)
        for way, count in different.items():
            print(f"{way}: {count:,} of {size:,} weights are chosen otherwise")
        print()
    print(f"medians of {REPEATS}, in turns")


def _ours(network: Network, params: Any) -> Callable[[], Any]:
    prune = pruning.pruner(
        criteria.synflow(_apply(network), input_shape=network.input_shape),
        density=DENSITY,
        schedule=schedules.exponential,
        rounds=ROUNDS,
    )
    jitted = jax.jit(lambda params: prune(params, None, key=jax.random.key(0)))
    return lambda: jax.device_get(jitted(params))


def _apply(network: Network) -> Any:
    return network.bind(network.init_state()) if network.stateful else network.apply


def _theirs(name: str, network: Network, params: Any, pytorch: Any) -> dict[str, Way]:
    theirs = importlib.import_module("experiments.benchmarks._pytorch_synflow")
    prunable = trees.paths(trees.select(params))
    size = masks.size(trees.full_masks(params))
    at = schedules.exponential(density=DENSITY, steps=ROUNDS)
    counts = pruning.level_counts(size, [at(step) for step in range(1, ROUNDS + 1)]).tolist()

    def way(dtype: Any) -> Way:
        def run(counts: list[int] = counts) -> Any:
            kept = theirs.synflow(
                theirs.NETWORKS[name],
                {path: np.asarray(leaf) for path, leaf in trees.by_path(params, "params").items()},
                prunable,
                counts,
                input_shape=network.input_shape,
                dtype=dtype,
            )
            like = trees.full_masks(params)
            leaves = [kept[path].astype(bool) for path in prunable]
            return jax.tree.unflatten(jax.tree.structure(like), leaves)

        threads = pytorch.fastest_threads(lambda: run(counts[-1:]))
        return Way(pytorch.with_threads(run, threads), threads=threads)

    return {
        "PyTorch, float64": way(theirs.torch.float64),
        "PyTorch, float32": way(theirs.torch.float32),
    }


def _different(found: dict[str, Any]) -> dict[str, int]:
    """How many weights each way of PyTorch chooses otherwise; in double precision, next to none."""
    (_, ours), *others = found.items()
    counts = {
        name: sum(
            int(np.sum(a != b)) for a, b in zip(*map(jax.tree.leaves, (ours, kept)), strict=True)
        )
        for name, kept in others
    }
    size = masks.size(ours)
    for name, count in counts.items():
        if name.endswith("float64") and count > max(2, DIFFERENT * size):
            raise RuntimeError(f"{name!r} chose other masks: {count} of {size} weights differ.")
    return counts


if __name__ == "__main__":
    main()
