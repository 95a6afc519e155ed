"""Training convolutions inside a scan costs what it costs outside.

Steps of a small network (convolutions 1-8-16, 5x5, max-pooling, dense 256-10; batch 64, SGD with
momentum), 10 for one seed and 3 for five under `vmap`: a Python loop of jitted steps, and
`finetune`'s scan with XLA's convolutions and with patches, which it chooses itself on a CPU. The
images are from Fashion-MNIST if NOPR_MANUAL_DIR is set, and otherwise drawn at random. Goal: on a
CPU, at most 1.1 times the loop. Less than two minutes on two cores.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nopr import convolutions, data, finetune

STEPS = {1: 10, 5: 3}  # by the number of seeds
BATCH_SIZE, REPEATS = 64, 3
SHAPES = {"conv_0": (5, 5, 1, 8), "conv_1": (5, 5, 8, 16), "dense": (256, 10)}
TX = optax.sgd(0.01, momentum=0.9)


def main() -> None:
    """Prints the table."""
    source, examples = _examples(max(STEPS.values()) * BATCH_SIZE)
    print(f"ms a step, batch {BATCH_SIZE} of {source}, medians of {REPEATS}")
    heads = [f"{seeds} seed{'s' * (seeds > 1)}" for seeds in STEPS]
    print(f"{jax.default_backend():<22}" + "".join(f" {head:>10} {'ratio':>6}" for head in heads))
    measured = [_measured(seeds, examples) for seeds in STEPS]
    for name in measured[0]:
        columns = ""
        for seconds, steps in zip(measured, STEPS.values(), strict=True):
            median = statistics.median(seconds[name])
            # Each is divided by the loop beside it, so that a slow moment hits both.
            pairs = zip(seconds[name], seconds["loop"], strict=True)
            ratio = statistics.median(mine / loop for mine, loop in pairs)
            columns += f" {1e3 * median / steps:>10.1f} {ratio:>6.2f}"
        print(f"{name:<22}{columns}")
    print(f"goal: at most 1.1; here `finetune` takes {convolutions.resolve()!r}")


def _examples(count: int) -> tuple[str, tuple[Any, Any]]:
    """The name of the source, and images and labels from it."""
    if os.environ.get("NOPR_MANUAL_DIR"):
        train = data.load("fashion_mnist").train
        images, labels = jnp.asarray(train.images[:count]), jnp.asarray(train.labels[:count])
        return "Fashion-MNIST", (images, labels)
    image_key, label_key = jax.random.split(jax.random.key(0))
    images = jax.random.normal(image_key, (count, 28, 28, 1))
    return "random images", (images, jax.random.randint(label_key, (count,), 0, 10))


def _measured(seeds: int, examples: Any) -> dict[str, list[float]]:
    runs = _runs(seeds, examples)
    for run in runs.values():
        jax.block_until_ready(run())  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def _runs(seeds: int, examples: Any) -> dict[str, Callable[[], Any]]:
    batches = jax.tree.map(lambda leaf: leaf[: STEPS[seeds] * BATCH_SIZE], examples)
    keys = jax.random.split(jax.random.key(1), seeds)
    params = jax.vmap(_init)(keys)
    if seeds == 1:
        params, keys = jax.tree.map(lambda leaf: leaf[0], params), keys[0]
    return {
        "loop": lambda: _loop(params, batches, many=seeds > 1),
        "scan, XLA's": _scan("xla", params, batches, keys),
        "scan, patches": _scan("patches", params, batches, keys),
    }


def _init(key: Any) -> dict[str, Any]:
    return {name: jax.random.normal(key, shape) / 10 for name, shape in SHAPES.items()}


def _apply(params: Any, images: Any) -> Any:
    values = images
    for name in ("conv_0", "conv_1"):
        layout = ("NHWC", "HWIO", "NHWC")
        values = lax.conv_general_dilated(
            values, params[name], (1, 1), "VALID", dimension_numbers=layout
        )
        window = (1, 2, 2, 1)
        values = lax.reduce_window(jax.nn.relu(values), -jnp.inf, lax.max, window, window, "VALID")
    return values.reshape(len(values), -1) @ params["dense"]


LOSS = finetune.cross_entropy(_apply)


def _update(params: Any, opt_state: Any, batch: Any) -> Any:
    gradients = jax.grad(LOSS)(params, batch)
    updates, opt_state = TX.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state


_ONE = jax.jit(_update)
_MANY = jax.jit(jax.vmap(_update, in_axes=(0, 0, None)))


def _loop(params: Any, batches: Any, *, many: bool) -> Any:
    step, opt_state = _MANY if many else _ONE, TX.init(params)
    for first in range(0, len(batches[1]), BATCH_SIZE):
        batch = jax.tree.map(lambda leaf, first=first: leaf[first : first + BATCH_SIZE], batches)
        params, opt_state = step(params, opt_state, batch)
    return params


def _scan(
    choice: convolutions.Implementation, params: Any, batches: Any, key: Any
) -> Callable[[], Any]:
    train = finetune.trainer(LOSS, TX, epochs=1, batch_size=BATCH_SIZE, convolutions=choice)
    run = jax.jit(lambda params, key: train(params, None, batches, key=key).params)
    if key.ndim:
        run = jax.jit(jax.vmap(run))
    return lambda: run(params, key)


if __name__ == "__main__":
    main()
