"""Training convolutions inside a scan costs what it costs outside.

80 steps of a small network (convolutions 1-8-16, 5x5, max-pooling, dense 256-10; batch 64, SGD with
momentum) on 28x28 images drawn at random, for one seed and for five under `vmap`: a Python loop of
jitted steps, and `finetune`'s scan with XLA's convolutions and with patches, which it chooses
itself on a CPU. Goal: on a CPU, at most 1.1 times the loop. Some two minutes on two cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nopr import finetune

STEPS, BATCH_SIZE, SEEDS, REPEATS = 80, 64, 5, 3
SHAPES = {"conv_0": (5, 5, 1, 8), "conv_1": (5, 5, 8, 16), "dense": (256, 10)}
TX = optax.sgd(0.01, momentum=0.9)


def main() -> None:
    """Prints the table."""
    print(f"{STEPS} steps of batch {BATCH_SIZE}, medians of {REPEATS}; {jax.default_backend()}")
    print(f"{'':<22} {'seconds':>8} {'ratio':>6} {f'{SEEDS} seeds':>10} {'ratio':>6}")
    measured = [_measured(seeds) for seeds in (1, SEEDS)]
    for name in measured[0]:
        columns = ""
        for seconds, width in zip(measured, (8, 10), strict=True):
            median = statistics.median(seconds[name])
            # Each is divided by the loop beside it, so that a slow moment hits both.
            pairs = zip(seconds[name], seconds["loop"], strict=True)
            ratio = statistics.median(mine / loop for mine, loop in pairs)
            columns += f" {median:>{width}.2f} {ratio:>6.2f}"
        print(f"{name:<22}{columns}")
    print(f"goal: at most 1.1; here `finetune` takes {finetune.resolve_convolutions()!r}")


def _measured(seeds: int) -> dict[str, list[float]]:
    runs = _runs(seeds)
    for run in runs.values():
        jax.block_until_ready(run())  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def _runs(seeds: int) -> dict[str, Callable[[], Any]]:
    image_key, label_key, key = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(image_key, (STEPS * BATCH_SIZE, 28, 28, 1))
    data = images, jax.random.randint(label_key, (len(images),), 0, 10)
    keys = jax.random.split(key, seeds)
    params = jax.vmap(_init)(keys)
    if seeds == 1:
        params, key = jax.tree.map(lambda leaf: leaf[0], params), keys[0]
    return {
        "loop": lambda: _loop(params, data, many=seeds > 1),
        "scan, XLA's": _scan("xla", params, data, keys if seeds > 1 else key),
        "scan, patches": _scan("patches", params, data, keys if seeds > 1 else key),
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


def _loop(params: Any, data: Any, *, many: bool) -> Any:
    step, opt_state = _MANY if many else _ONE, TX.init(params)
    for first in range(0, STEPS * BATCH_SIZE, BATCH_SIZE):
        batch = jax.tree.map(lambda leaf, first=first: leaf[first : first + BATCH_SIZE], data)
        params, opt_state = step(params, opt_state, batch)
    return params


def _scan(choice: finetune.Convolutions, params: Any, data: Any, key: Any) -> Callable[[], Any]:
    train = finetune.trainer(LOSS, TX, epochs=1, batch_size=BATCH_SIZE, convolutions=choice)
    run = jax.jit(lambda params, key: train(params, None, data, key=key).params)
    if key.ndim:
        run = jax.jit(jax.vmap(run))
    return lambda: run(params, key)


if __name__ == "__main__":
    main()
