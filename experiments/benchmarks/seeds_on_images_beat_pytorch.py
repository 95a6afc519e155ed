"""Seeds of an image classifier take less than half of a PyTorch loop, and beat torch.func.vmap.

One epoch of 60,000 Fashion-MNIST images through 784-300-100-10 (batch 100, SGD with momentum) for 8
seeds, each with its own initialization and order of the images. `sweeps.run` trains them under
jax.vmap, all at once or one per block; the alternatives are a Python loop over the jitted training,
a PyTorch loop, and torch.func.vmap over the gradient, all with the images in memory. At this size
one matrix product fills the cores, so that on a CPU neither vmap nor the sweep makes a seed
cheaper: the gain over PyTorch is the loop compiled to one program. Before timing, all ways train on
the first images, where rounding has no time to grow, and must end at the same params. If
Fashion-MNIST is not available, random arrays of its shape replace it. About a minute.

    python -m experiments.benchmarks.seeds_on_images_beat_pytorch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import _timing
from experiments.benchmarks._timing import Layers, Way
from nopr import data, finetune, networks, sweeps

EXAMPLES, INPUTS, WIDTHS, BATCH_SIZE = 60_000, 784, (300, 100, 10), 100
LEARNING_RATE, MOMENTUM = 0.02, 0.9
SEEDS, REPEATS = 8, 3
TIMED = 2  # seeds that the PyTorch loop is timed on
CHECKED = 2_000  # images on which all ways must agree
TOLERANCE = 1e-4  # of a weight, after these images


def main(*, examples: int = EXAMPLES, checked: int = CHECKED, repeats: int = REPEATS) -> None:
    """Prints the table.

    Args:
      examples: Images of the epoch.
      checked: Number of them on which all ways must agree.
      repeats: Timed calls of each way, after one that compiles.
    """
    images, labels = (leaf[:examples] for leaf in load())
    ways_on = _ways_on(_timing.pytorch_or_say())
    few = ways_on(images[:checked], labels[:checked], threads={})
    found, _ = _timing.first_calls(few)
    difference = _timing.check_agreement(found, tolerance=TOLERANCE)
    ways = ways_on(images, labels, threads={name: way.threads for name, way in few.items()})
    _, firsts = _timing.first_calls(ways)
    rows = _timing.take_turns(ways, firsts, repeats=repeats)
    layers = "-".join(map(str, (INPUTS, *WIDTHS)))
    print(
        f"{SEEDS} seeds x an epoch of {len(labels):,} images, {layers}, batch {BATCH_SIZE}; seconds"
    )
    _timing.print_table(ways, rows, runs=SEEDS)
    print(
        f"medians of {repeats}, in turns; after {checked:,} images all weights agree within "
        f"{difference:.1g}"
    )


def load() -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST's 60,000 flat training images and labels; else random ones, with a note."""
    try:
        images, labels = data.load("fashion_mnist", validation=0).train
    except OSError as error:  # no network, no folder
        print(f"random images, as Fashion-MNIST cannot be had: {error}")
        rng = np.random.default_rng(0)
        images = rng.standard_normal((EXAMPLES, INPUTS), np.float32)
        labels = rng.integers(0, WIDTHS[-1], EXAMPLES, np.int32)
    return images.reshape(len(images), INPUTS), labels


def _ways_on(pytorch: Any) -> Callable[..., dict[str, Way]]:
    """The ways to train on given images; JAX compiles them once for each number of images."""
    network = networks.mlp(WIDTHS, inputs=INPUTS)
    tx = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    loss = finetune.cross_entropy(network.apply)
    train = finetune.trainer(loss, tx, epochs=1, batch_size=BATCH_SIZE)

    def run(key: Any, examples: Any) -> Any:
        init_key, run_key = jax.random.split(key)
        return train(network.init(init_key), None, examples, key=run_key).params

    jitted = jax.jit(run)

    def ways_on(
        images: np.ndarray, labels: np.ndarray, *, threads: Mapping[str, int | None]
    ) -> dict[str, Way]:
        keys = jax.random.split(jax.random.key(0), SEEDS)
        ways = _jax_ways(run, jitted, keys, (jnp.asarray(images), jnp.asarray(labels)))
        if pytorch is not None:
            ways |= _torch_ways(network, images, labels, keys, pytorch, threads)
        return ways

    return ways_on


def _jax_ways(run: Any, jitted: Any, keys: Any, examples: Any) -> dict[str, Way]:
    def sweep(block: int) -> Callable[[], Layers]:
        return lambda: _layers(sweeps.run(run, keys, shared=examples, block=block).values)

    def loop() -> Layers:
        trained = [jax.device_get(jitted(key, examples)) for key in keys]
        return _layers(jax.tree.map(lambda *leaves: np.stack(leaves), *trained))

    return {
        f"sweeps.run, vmap of {SEEDS}": Way(sweep(SEEDS)),
        "sweeps.run, one by one": Way(sweep(1)),
        "loop over jitted runs": Way(loop),
    }


def _torch_ways(
    network: Any,
    images: np.ndarray,
    labels: np.ndarray,
    keys: Any,
    pytorch: Any,
    threads: Mapping[str, int | None],
) -> dict[str, Way]:
    init_keys, run_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    start = _layers(jax.device_get(jax.vmap(network.init)(init_keys)))
    orders = np.stack([_order(key, len(labels)) for key in run_keys])
    calls = {
        "PyTorch loop": (pytorch.loop_over_seeds, TIMED),
        "torch.func.vmap": (pytorch.vmap_over_seeds, SEEDS),
    }
    ways = {}
    for name, (train, count) in calls.items():

        def run(train: Any = train, count: int = count) -> Layers:
            return train(
                [(kernel[:count], bias[:count]) for kernel, bias in start],
                images,
                labels,
                orders[:count],
                batch_size=BATCH_SIZE,
                learning_rate=LEARNING_RATE,
                momentum=MOMENTUM,
            )

        chosen = threads.get(name) or pytorch.fastest_threads(run)
        ways[name] = Way(pytorch.with_threads(run, chosen), SEEDS / count, chosen)
    return ways


def _order(key: Any, examples: int) -> np.ndarray:
    """The order of the images in the first epoch of `finetune`."""
    order_key, _ = jax.random.split(jax.random.fold_in(key, 0))
    return np.asarray(jax.random.permutation(order_key, examples))


def _layers(params: Any) -> Layers:
    return [(params[name]["kernel"], params[name]["bias"]) for name in sorted(params)]


if __name__ == "__main__":
    main()
