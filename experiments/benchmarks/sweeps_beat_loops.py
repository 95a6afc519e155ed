"""A sweep of tiny nets takes a thousandth of a loop in PyTorch and a third of torch.func.vmap.

A 3-4-1 ReLU net (21 parameters) is trained by 500 full-batch gradient steps on each dataset of 6
distinct points of the cube with labels of +-1: 1,792 runs of a plain JAX function of one dataset.
`sweeps.run` does them with the datasets along the last axis ("lanes") or under jax.vmap. The
alternatives are a Python loop over jitted runs; a PyTorch loop with nn.Module and torch.optim;
torch.func.vmap over the gradient; and the net batched by hand with torch.baddbmm. All start from
the same weights and must end at the same, up to rounding, before timing. The loops are timed on
some datasets and extrapolated; torch uses the number of threads at which it is fastest. Goals: a
thousandth of the PyTorch loop, a third of torch.func.vmap. Half a minute.

    python -m experiments.benchmarks.sweeps_beat_loops
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import _timing
from experiments.benchmarks._timing import Layers, Way
from experiments.benchmarks.exact_information_is_cheap import (
    LEARNING_RATE,
    cube_datasets,
    initialize,
    step,
)
from nopr import sweeps

STEPS, REPEATS = 500, 5
TIMED = {"jitted": 224, "torch": 28}  # datasets that each loop is timed on: 1/8, 1/64
TOLERANCE = 2e-3  # of a weight: rounding, after 500 steps past the kinks of ReLU


def main(*, steps: int = STEPS, repeats: int = REPEATS, timed: Mapping[str, int] = TIMED) -> None:
    """Prints the table.

    Args:
      steps: Gradient steps of each training.
      repeats: Timed calls of each way, after one that compiles.
      timed: Datasets that the loops over "jitted" runs and in "torch" are timed on.
    """
    datasets, params = cube_datasets(), jax.device_get(initialize(jax.random.key(0)))
    runs = len(datasets[1])
    ways = _jax_ways(datasets, params, steps=steps, timed=timed["jitted"])
    ways |= _torch_ways(datasets, params, steps=steps, timed=timed["torch"])
    found, firsts = _timing.first_calls(ways)
    difference = _timing.check_agreement(found, tolerance=TOLERANCE)
    rows = _timing.take_turns(ways, firsts, repeats=repeats)
    print(f"{runs:,} datasets x {steps} gradient steps of a net of 21 parameters; seconds")
    _timing.print_table(ways, rows, runs=runs)
    print(f"medians of {repeats}, in turns; all final weights agree within {difference:.1g}")
    print("goal: sweeps.run 1,000 times as fast as the PyTorch loop, 3 times torch.func.vmap")


def _jax_ways(datasets: Any, params: Any, *, steps: int, timed: int) -> dict[str, Way]:
    def train(data: Any, params: Any) -> Any:
        return jax.lax.scan(lambda p, _: (step(p, data), None), params, length=steps)[0]

    def sweep(batching: sweeps.Batching) -> Callable[[], Layers]:
        return lambda: _layers(sweeps.run(train, datasets, shared=params, batching=batching).values)

    jitted = jax.jit(train)

    def loop() -> Layers:
        rows = (tuple(leaf[i] for leaf in datasets) for i in range(timed))
        trained = [jax.device_get(jitted(row, params)) for row in rows]
        return _layers(jax.tree.map(lambda *leaves: np.stack(leaves), *trained))

    return {
        "sweeps.run, lanes": Way(sweep("lanes")),
        "sweeps.run, vmap": Way(sweep("vmap")),
        "loop over jitted runs": Way(loop, len(datasets[1]) / timed),
    }


def _torch_ways(datasets: Any, params: Any, *, steps: int, timed: int) -> dict[str, Way]:
    pytorch = _timing.pytorch_or_say()
    if pytorch is None:
        return {}
    cases = len(datasets[1])
    start = _layers(jax.tree.map(lambda leaf: np.stack([leaf] * cases), params))
    options = {"steps": steps, "learning_rate": LEARNING_RATE}
    calls = {
        "PyTorch loop": (pytorch.loop_over_datasets, timed),
        "torch.func.vmap": (pytorch.vmap_over_datasets, cases),
        "torch.baddbmm by hand": (pytorch.bmm_over_datasets, cases),
    }
    ways = {}
    for name, (train, count) in calls.items():

        def run(train: Any = train, count: int = count) -> Layers:
            return train(start, *(leaf[:count] for leaf in datasets), **options)

        threads = pytorch.fastest_threads(run)
        ways[name] = Way(pytorch.with_threads(run, threads), cases / count, threads)
    return ways


def _layers(params: Any) -> Layers:
    """The params, stacked over cases, as layers; the output layer has one unit."""
    return [(params["a"], params["b"]), (params["c"][..., None], params["d"][..., None])]


if __name__ == "__main__":
    main()
