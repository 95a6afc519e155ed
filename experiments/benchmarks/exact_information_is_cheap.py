"""Exact mask information costs less than sampling it, and far less than a training loop.

On every dataset of 6 distinct points of the cube with labels of +-1 (1,792 of them), a 3-4-1 ReLU
net is trained by 500 full-batch gradient steps and its largest weights are kept. `exact` does this
under one vmap, twice with its check. The alternatives are a Python loop over the datasets, of
jitted gradient steps or of whole jitted runs, and 32,000 sampled datasets, as in the paper, under
the same vmap. The slow ones are timed on some datasets and extrapolated.

    python -m experiments.benchmarks.exact_information_is_cheap
"""

import itertools
import statistics
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from nopr import information, masks

KEPT = 8  # of 21 weights
STEPS = 500
LEARNING_RATE = 0.05
REPEATS = 5
SAMPLES = 32_000  # datasets drawn in the paper for each estimate
TIMED = {"steps": 4, "runs": 64, "samples": 4_000}  # datasets that each loop is timed on


def magnitude_after_training(data, *, key):
    """Trains the net on `data` and keeps its largest weights, biases among them."""
    params, _ = jax.lax.scan(
        lambda params, _: (step(params, data), None), initialize(key), None, length=STEPS
    )
    return largest(params)


def step(params, data):
    """One full-batch gradient step on the squared error."""

    def loss(params):
        inputs, labels = data
        hidden = jax.nn.relu(inputs @ params["a"] + params["b"][None])
        return jnp.mean((hidden @ params["c"] + params["d"] - labels) ** 2)

    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, jax.grad(loss)(params))


def largest(params):
    """The masks of the KEPT largest weights."""
    return masks.top(jax.tree.map(jnp.abs, params), count=KEPT, warn=False)


def initialize(key):
    """PyTorch's default: weights and biases uniform within 1 / sqrt(fan-in)."""
    keys = jax.random.split(key, 4)
    shapes = {"a": ((3, 4), 3), "b": ((4,), 3), "c": ((4,), 4), "d": ((), 4)}
    return {
        name: jax.random.uniform(k, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)
        for k, (name, (shape, fan_in)) in zip(keys, shapes.items(), strict=True)
    }


def cube_datasets():
    """All sets of 6 distinct points of {-1, 1}^3 with all labels: 28 * 64 = 1,792."""
    points = np.array(list(itertools.product((-1, 1), repeat=3)), np.float32)
    labels = np.array(list(itertools.product((-1, 1), repeat=6)), np.float32)
    chosen = np.array(list(itertools.combinations(range(8), 6)))
    return np.repeat(points[chosen], len(labels), axis=0), np.tile(labels, (len(chosen), 1))


def main() -> None:
    """Prints the table."""
    datasets = cube_datasets()
    cases = len(datasets[1])
    ways = {
        "exact": (_exact(datasets, check=True), 1),
        "exact, check=False": (_exact(datasets, check=False), 1),
        "loop over jitted runs": (_loop(datasets, _run, TIMED["runs"]), cases / TIMED["runs"]),
        "loop over jitted steps": (_loop(datasets, _walk, TIMED["steps"]), cases / TIMED["steps"]),
        "32,000 samples, vmapped": (_samples(datasets), SAMPLES / TIMED["samples"]),
    }
    jax.block_until_ready(initialize(jax.random.key(0)))  # starts the backend
    rows = {name: _seconds(way, times) for name, (way, times) in ways.items()}
    print(f"{cases} datasets x {STEPS} gradient steps, {KEPT} of 21 weights kept; seconds")
    print(f"{'':26}{'compile':>9}{'min':>9}{'median':>9}{'x exact':>9}{'timed on':>10}")
    for name, (compile_seconds, least, median) in rows.items():
        ratio = median / rows["exact"][2]
        share = f"1/{ways[name][1]:.0f}" if ways[name][1] > 1 else "all"
        print(f"{name:26}{compile_seconds:9.2f}{least:9.2f}{median:9.2f}{ratio:9.1f}{share:>10}")
    result = information.exact(magnitude_after_training, datasets, key=jax.random.key(0))
    print(f"I(m; D | init) = {result.bits:.4f} bits of H(D) = {result.dataset_entropy_bits:.4f}.")
    print(f"{REPEATS} calls after one that compiles, each with another key.")


def _exact(datasets, *, check):
    return lambda key: (
        information.exact(magnitude_after_training, datasets, check=check, key=key).bits
    )


def _samples(datasets):
    vmapped = jax.jit(
        jax.vmap(lambda data, key: magnitude_after_training(data, key=key), (0, None))
    )

    def way(key):
        drawn = jax.random.randint(key, (TIMED["samples"],), 0, len(datasets[1]))
        found = vmapped(tuple(leaf[np.asarray(drawn)] for leaf in datasets), key)
        return information.plug_in(information.law(found).counts)

    return way


def _loop(datasets, run, count):
    def way(key):
        rows = (tuple(leaf[i] for leaf in datasets) for i in range(count))
        found = Counter(np.asarray(masks.pack(run(row, key))).tobytes() for row in rows)
        return information.plug_in(list(found.values()))

    return way


def _run(data, key):
    return _jitted_run(data, key=key)


def _walk(data, key):
    params = initialize(key)
    for _ in range(STEPS):
        params = _jitted_step(params, data)
    return largest(params)


def _seconds(way, times):
    """Seconds to compile, and the least and median of later calls, all `times` as long."""
    jax.clear_caches()
    taken = []
    for seed in range(REPEATS + 1):
        key = jax.random.key(seed)
        start = time.perf_counter()
        way(key)
        taken.append(time.perf_counter() - start)
    median = statistics.median(taken[1:])
    return taken[0] - median, times * min(taken[1:]), times * median


_jitted_run = jax.jit(magnitude_after_training)
_jitted_step = jax.jit(step)


if __name__ == "__main__":
    main()
