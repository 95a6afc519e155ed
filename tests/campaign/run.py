"""A small but real job: a stage, a sweep with chunks, a long run with checkpoints, results.

Environment variables control the campaign's hooks inside it.
"""

from __future__ import annotations

import os
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from campaign import hooks
from nopr import algorithms, criteria, finetune, networks, pruning, sweeps
from nopr.lab import checkpoints, progress

BLOCK = 4
EPOCHS = 4
STEPS = 1000


def run(config, run):
    hooks.begin()
    data = run.stage("data", partial(_data, config.seed))
    nets = _sweep(config, data, run)
    long = run.stage("long", partial(_long, config, data, run), finite=True)
    hooks.at("metrics", run.directory)
    for case, loss in enumerate(nets["loss"]):
        hooks.at(f"metrics:{case}", run.directory)
        run.metric(case, "train", "loss_nats", loss)
    for level, values in enumerate(long["loss"]):
        for epoch, loss in enumerate(values):
            run.metric(epoch, "train", f"level_{level}/loss_nats", loss)
    hooks.at("table", run.directory)
    run.show_table(f"cases  loss, nats\n{len(nets['loss'])}     {nets['loss'].mean():.6f}")
    hooks.at("page", run.directory)
    # As by a library that knows nothing of runs.
    page = "<p>" + " ".join(f"{loss:.9f}" for loss in nets["loss"]) + "</p>\n"
    with open(run.figures / "page.html", "w") as file:
        file.write(page)
    hooks.at("summary", run.directory)
    return {"loss_nats": float(nets["loss"].mean()), "last_loss_nats": float(long["loss"][-1, -1])}


def _data(seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(32, 8)).astype(np.float32)
    return {"inputs": inputs, "labels": (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int32)}


def _sweep(config, data, run):
    """Trains a tiny network for every key; some 20 ms a chunk."""
    keys = jax.random.split(jax.random.key(config.seed), config.cases)

    def train(key, shared):
        first, second = jax.random.split(key)
        params = {
            "first": jax.random.normal(first, (8, 16)) / 3,
            "second": jax.random.normal(second, (16,)) / 4,
        }

        def loss(params):
            logits = jnp.tanh(shared["inputs"] @ params["first"]) @ params["second"]
            return optax.sigmoid_binary_cross_entropy(logits, shared["labels"]).mean()

        def step(params, _):
            value, gradient = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda w, g: w - config.rate * g, params, gradient), value

        params, losses = jax.lax.scan(step, params, length=STEPS)
        return {"loss": losses[-1], "weights": params["second"]}

    with progress.shown("nets", unit="net") as tell:

        def report(status):
            tell(status)
            hooks.at(f"nets:{status.done}", run.directory)

        hooks.at("nets:0", run.directory)
        swept = sweeps.run(
            train,
            keys,
            shared=data,
            block=BLOCK,
            chunk=BLOCK,
            store=run.store("nets"),
            progress=report,
        )
    return swept.values


def _long(config, data, run):
    """Iterative pruning of one network, with a checkpoint after every epoch."""
    network = networks.mlp((32, 2), inputs=8)
    init_key, run_key = jax.random.split(jax.random.key(config.seed + 1))

    def report(status):
        hooks.at(f"long:{status.done}", run.directory)
        time.sleep(float(os.environ.get("CAMPAIGN_SEGMENT_SECONDS", "0")))

    with checkpoints.Saver(run.checkpoints("long"), say=run.say) as saver:
        found = algorithms.resume_imp(
            pruning.pruner(criteria.magnitude()),
            network.init(init_key),
            (data["inputs"], data["labels"]),
            counts=[200 // 2**level for level in range(config.levels - 1)],
            epochs=EPOCHS,
            every=1,
            keeper=saver,
            progress=report,
            key=run_key,
            step_loss=finetune.stateless(finetune.cross_entropy(network.apply)),
            tx=optax.adam(0.01),
            batch_size=8,
        )
    return {"params": jax.tree.map(np.asarray, found.params), "loss": found.history.loss}
