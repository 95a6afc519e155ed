"""One process of an arm of `sweeps_scale`: it sweeps for each line of input.

Each answer is a line of JSON, including a first one after compilation: wall seconds, the
processor seconds of the process, and the SHA-256 of the results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from experiments.benchmarks.exact_information_is_cheap import cube_datasets, initialize, step
from nopr import finetune, networks, processes, sweeps


def main(words: Sequence[str]) -> None:
    """Answers until the input ends."""
    options = _parser().parse_args(words)
    if options.cores:
        os.sched_setaffinity(0, options.cores)  # before the backend starts its threads
    if options.coordinator:
        processes.connect(coordinator=options.coordinator, count=2, index=options.index)
    sweep = _WORK[options.work](options)
    _answer(sweep)
    for _ in sys.stdin:
        _answer(sweep)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=sorted(_WORK), required=True)
    parser.add_argument("--blocks", type=int, required=True, help="an even number of them")
    parser.add_argument("--steps", type=int, required=True, help="of each training")
    parser.add_argument("--cores", type=int, nargs="+", help="that it may run on")
    parser.add_argument("--devices", type=int, default=1, help="that the sweep is spread over")
    parser.add_argument("--coordinator", help="host:port of process 0, if there are two")
    parser.add_argument("--index", type=int, default=0, help="of this process")
    parser.add_argument("--half", action="store_true", help="only that half of the cases")
    return parser


def _cube(options: argparse.Namespace) -> Callable[[], Any]:
    """Each block holds the 1,792 datasets under a key of its own."""
    inputs, labels = cube_datasets()
    keys = jax.random.split(jax.random.key(0), options.blocks)
    keys = jax.numpy.repeat(keys, len(labels))
    tiles = (options.blocks, 1, 1)
    cases = (np.tile(inputs, tiles), np.tile(labels, tiles[:2]), keys)

    def train(case: Any) -> Any:
        *data, key = case
        body = lambda params, _: (step(params, data), None)  # noqa: E731
        return jax.lax.scan(body, initialize(key), length=options.steps)[0]

    return _sweep(train, cases, len(labels), options, batching="lanes")


def _images(options: argparse.Namespace) -> Callable[[], Any]:
    """Each block is one seed of 784-300-100-10 on as many random images as the steps take."""
    network = networks.mlp((300, 100, 10), inputs=784)
    fit = finetune.trainer(
        finetune.cross_entropy(network.apply), optax.sgd(0.02), epochs=1, batch_size=100
    )
    rng = np.random.default_rng(0)
    images = rng.standard_normal((100 * options.steps, 784), np.float32)
    data = (images, rng.integers(0, 10, len(images), np.int32))
    keys = jax.random.split(jax.random.key(0), options.blocks)

    def train(key: Any, data: Any) -> Any:
        return fit(network.init(key), None, data, key=key).params

    return _sweep(train, keys, 1, options, shared=data)


def _sweep(
    function: Callable[..., Any],
    cases: Any,
    block: int,
    options: argparse.Namespace,
    **settings: Any,
) -> Callable[[], Any]:
    """The sweep, in eight chunks, over the devices or of the requested half."""
    chunk = block * max(1, options.blocks // 8)
    if options.half:
        size = block * options.blocks // 2
        rows = slice(options.index * size, (options.index + 1) * size)
        cases = jax.tree.map(lambda leaf: leaf[rows], cases)
    if options.devices > 1:
        settings["mesh"] = jax.sharding.Mesh(jax.devices()[: options.devices], ("runs",))
    return lambda: sweeps.run(function, cases, block=block, chunk=chunk, **settings).values


def _answer(sweep: Callable[[], Any]) -> None:
    wall, processor = time.perf_counter(), time.process_time()
    values = sweep()
    taken = {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
    }
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(values):
        total.update(np.ascontiguousarray(leaf).tobytes())
    print(json.dumps({**taken, "sha256": total.hexdigest()}), flush=True)


_WORK = {"cube": _cube, "images": _images}


if __name__ == "__main__":
    main(sys.argv[1:])
