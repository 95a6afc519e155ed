"""Unit pruning with and without OrthP, finetuned at two learning rates, beside the published table.

The seeds are one vmapped program. Units are removed physically, so that what is finetuned is the
small dense network of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments import report, steps, tables
from nopr import (
    checkpoints,
    criteria,
    data,
    finetune,
    granularity,
    isometry,
    networks,
    plots,
    pruning,
    records,
    spectra,
    surgery,
    trees,
)
from nopr.typing import Masks, Params

PUBLISHED = {
    # arXiv:2105.05916, MLP-7-Linear, 90 epochs: best accuracy (%) at 1e-2 and 1e-3, mean JSV.
    "l1": (91.36, 90.54, 0.0040),
    "l1_orthp": (92.79, 92.77, 1.0),
}
PUBLISHED_JSV = {
    # Mean JSV right after L1 pruning, by pruning ratio.
    "ratios": (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
    "linear": (2.4987, 1.7132, 0.5325, 0.1180, 0.0151, 0.0004),
    "relu": (1.8265, 1.6664, 1.2583, 0.6295, 0.1334, 0.0055),
}
STARTS = {"l1": "L1", "l1_orthp": "L1 + OrthP"}
SCHEDULES = {"1e-2": "large_rates", "1e-3": "small_rates"}


class Setting(NamedTuple):
    """What every stage needs."""

    config: ConfigDict
    images: data.Images
    network: networks.Network
    small: networks.Network  # what is left when the units are removed
    keys: Any
    probe: np.ndarray


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Trains, prunes, repairs, finetunes; each part is a stage, training with checkpoints."""
    setting = _setting(config)
    dense = run.stage("dense", lambda: _train_dense(setting, run), finite=True)
    pruned = {
        name: run.stage(f"pruned/{name}", partial(_prune, setting, dense["params"], name))
        for name in STARTS
    }
    curve = run.stage("jsv", partial(_jsv_by_ratio, setting, dense["params"]), finite=True)
    finetuned = {
        (name, rate): run.stage(
            f"finetuned/{name}/{rate}",
            partial(_finetune, setting, pruned[name]["params"], SCHEDULES[rate], name, rate, run),
            finite=True,
        )
        for name in STARTS
        for rate in SCHEDULES
    }
    _record_metrics(run, dense, finetuned)
    columns, rows = _table(setting, pruned, finetuned)
    title = f"{_net(config)} on MNIST, pruning ratio {config.pruning.ratio}; {_statistic(config)}"
    dense_line = _dense_line(dense)
    run.show_table(tables.aligned(rows, columns, title=title, group_by="start") + "\n" + dense_line)
    _draw(setting, curve["mean"], run)
    _write_report(setting, run, (columns, rows), dense_line)
    return _summary(setting, dense, pruned, finetuned, curve["mean"])


def _setting(config: ConfigDict) -> Setting:
    images = data.load(
        config.data.name, pad=config.data.pad, validation=config.data.validation, seed=config.seed
    )
    inputs = math.prod(images.train.images.shape[1:])

    def mlp(width: int) -> networks.Network:
        widths = (*[width] * config.network.hidden, images.classes)
        return networks.mlp(widths, inputs=inputs, activation=config.network.activation)

    network, small = mlp(config.network.width), mlp(_kept_units(config, config.pruning.ratio))
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    return Setting(
        config, images, network, small, keys, images.train.images[: config.measuring.inputs]
    )


# --- Training ----------------------------------------------------------------------------------


def _train_dense(setting: Setting, run: records.Run) -> dict[str, Any]:
    training = setting.config.training
    params = jax.vmap(setting.network.init)(jax.vmap(_init_key)(setting.keys))
    return _train(
        setting, setting.network, params, training.length, training.dense_rates, "dense", run
    )


def _finetune(
    setting: Setting, params: Params, rates: str, name: str, rate: str, run: records.Run
) -> dict[str, Any]:
    finetuning = setting.config.finetuning
    name = f"{name}_lr_{rate}"
    return _train(setting, setting.small, params, finetuning.length, finetuning[rates], name, run)


def _train(
    setting: Setting,
    network: networks.Network,
    params: Params,
    length: str,
    rates: Sequence[Sequence[float]],
    name: str,
    run: records.Run,
) -> dict[str, Any]:
    """Trains all seeds at once; a checkpoint every few epochs carries the histories too."""
    config, images = setting.config.training, setting.images
    per_epoch = steps.per_epoch(len(images.train.labels), batch_size=config.batch_size)
    epochs = steps.epochs(length, steps_per_epoch=per_epoch)
    every = steps.epochs(config.checkpoint_every, steps_per_epoch=per_epoch)
    tx = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(
            finetune.epoch_rates(
                {int(epoch): rate for epoch, rate in rates}, steps_per_epoch=per_epoch
            ),
            momentum=config.momentum,
        ),
    )
    step_loss = finetune.stateless(finetune.cross_entropy(network.apply))
    begin = jax.vmap(lambda params, key: finetune.start(params, None, tx=tx, key=key))
    carry = begin(jax.tree.map(jnp.asarray, params), jax.vmap(_run_key)(setting.keys))
    logs = {key: np.full((len(setting.keys), epochs), -1.0) for key in ("loss", *_MEASURED)}
    folder = run.checkpoints(name)
    found = checkpoints.restore(folder, (carry, logs))
    done = 0
    if found is not None:
        done, (carry, logs) = found
        logs = jax.tree.map(np.array, logs)

    def advance(carry: Any, parts: Any, count: int) -> Any:
        train, validation, test = parts
        return finetune.advance(
            carry,
            train,
            step_loss=step_loss,
            tx=tx,
            epochs=count,
            batch_size=config.batch_size,
            monitor=partial(_measure, network.apply, validation, test),
        )

    program = jax.jit(jax.vmap(advance, in_axes=(0, None, None)), static_argnums=2)
    parts = jax.tree.map(
        jnp.asarray, (tuple(images.train), tuple(images.validation), tuple(images.test))
    )
    with tqdm(total=epochs, initial=done, desc=name, unit="epoch", disable=None) as bar:
        while done < epochs:
            count = min(every, epochs - done)
            carry, history = program(carry, parts, count)
            finetune.raise_if_not_finite(history)
            for key in logs:
                values = history.loss if key == "loss" else history.metrics[key]
                logs[key][:, done : done + count] = values
            done += count
            bar.update(count)
            checkpoints.save(folder, done, (carry, logs))
    jsv = _singular_values(setting, network, carry.params).mean(axis=(1, 2))
    return {"params": jax.tree.map(np.asarray, carry.params), **logs, "jsv": jsv}


_MEASURED = ("validation_accuracy", "test_accuracy")


def _measure(apply: Any, validation: Any, test: Any, params: Params) -> dict[str, jax.Array]:
    """Selection sees the validation accuracy alone."""
    return {
        "validation_accuracy": finetune.evaluate(apply, params, validation).accuracy,
        "test_accuracy": finetune.evaluate(apply, params, test).accuracy,
    }


def _init_key(key: Any) -> Any:
    return jax.random.split(key)[0]


def _run_key(key: Any) -> Any:
    return jax.random.split(key)[1]


# --- Pruning and measuring ---------------------------------------------------------------------


def _unit_masks(setting: Setting, params: Params, ratio: float) -> Masks:
    """Keeps the units of largest mean |w| of every hidden layer; ceil(ratio * n) go."""
    prune = pruning.pruner(
        criteria.magnitude(),
        scope="layer",
        granularity=granularity.units(setting.network.layers),
    )
    kept = _kept_units(setting.config, ratio)
    counts = np.array([[kept] * setting.config.network.hidden], np.int32)
    return jax.vmap(lambda p: prune(p, None, counts=counts, key=jax.random.key(0)))(params)


def _kept_units(config: ConfigDict, ratio: float) -> int:
    return config.network.width - math.ceil(ratio * config.network.width - 1e-9)


def _prune(setting: Setting, params: Params, name: str) -> dict[str, Any]:
    """The small networks of all seeds, stacked."""
    kept = _unit_masks(setting, params, setting.config.pruning.ratio)
    smaller = []
    for seed in range(setting.config.seeds):
        one = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (params, kept))
        small, _ = surgery.remove(*one, setting.network.layers)
        if name == "l1_orthp":
            gain = 1.0 if setting.config.network.activation == "linear" else math.sqrt(2)
            small = isometry.orthogonalize(small, gain=gain)
        smaller.append(small)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *smaller)
    values = _singular_values(setting, setting.small, stacked)
    return {"params": stacked, "jsv": values.mean(axis=(1, 2)), "singular_values": values}


def _jsv_by_ratio(setting: Setting, params: Params) -> dict[str, Any]:
    """Mean JSV right after pruning, [seeds, ratios]; masked is as good as removed."""
    means = []
    for ratio in setting.config.pruning.ratios:
        kept = _unit_masks(setting, params, ratio)
        zeroed = trees.overlay(lambda leaf, mask: jnp.where(mask, leaf, 0), params, kept)
        means.append(_singular_values(setting, setting.network, zeroed).mean(axis=(1, 2)))
    return {"mean": np.stack(means, axis=1)}


def _singular_values(setting: Setting, network: networks.Network, params: Params) -> np.ndarray:
    """[seeds, inputs, classes]."""
    measure = jax.jit(jax.vmap(partial(spectra.singular_values, network.apply), (0, None)))
    return np.asarray(measure(params, setting.probe))


# --- What is shown -----------------------------------------------------------------------------


def _net(config: ConfigDict) -> str:
    kind = {"linear": "Linear", "relu": "ReLU", "tanh": "Tanh"}[config.network.activation]
    return f"MLP-{config.network.hidden + 1}-{kind}"


def _statistic(config: ConfigDict) -> str:
    return f"mean and 95% interval, n = {config.seeds} seeds"


def _accuracies(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Test accuracy in %, [seeds]: last epoch, epoch selected on validation, best test epoch."""
    test = 100 * np.asarray(found["test_accuracy"])
    selected = np.asarray(found["validation_accuracy"]).argmax(axis=1)
    return {
        "last": test[:, -1],
        "selected": test[np.arange(len(test)), selected],
        "best_test": test.max(axis=1),
    }


def _table(
    setting: Setting, pruned: Mapping[str, Any], finetuned: Mapping[Any, Any]
) -> tuple[list[tables.Column], list[dict[str, Any]]]:
    columns = [
        tables.Column("start", "start"),
        tables.Column("rate", "learning\nrate"),
        tables.Column("last", "test accuracy, %\nlast epoch", 2),
        tables.Column("selected", "test accuracy, %\nselected on validation", 2),
        tables.Column("best_test", "test accuracy, %\nbest test epoch", 2),
        tables.Column("published", "published, %\nbest test epoch", 2),
        tables.Column("jsv", "mean JSV\nafter pruning", 4),
        tables.Column("published_jsv", "published\nmean JSV", 4),
        tables.Column("jsv_end", "mean JSV\nafter finetuning", 3),
    ]
    compared = _published_applies(setting.config)
    none = tables.Missing("The paper prints these numbers for MLP-7-Linear at ratio 0.8 only.")
    rows = []
    for (name, rate), found in finetuned.items():
        place = list(SCHEDULES).index(rate)
        intervals = {
            key: tables.mean_interval(values) for key, values in _accuracies(found).items()
        }
        rows.append(
            {
                "start": STARTS[name],
                "rate": rate,
                **intervals,
                "published": PUBLISHED[name][place] if compared else none,
                "jsv": tables.mean_interval(pruned[name]["jsv"]),
                "published_jsv": PUBLISHED[name][2] if compared else none,
                "jsv_end": tables.mean_interval(found["jsv"]),
            }
        )
    return columns, rows


def _published_applies(config: ConfigDict) -> bool:
    return config.network.activation == "linear" and config.pruning.ratio == 0.8


def _dense_line(dense: Mapping[str, Any]) -> str:
    accuracy = tables.interval_text(tables.mean_interval(_accuracies(dense)["last"]), 2)
    jsv = tables.interval_text(tables.mean_interval(dense["jsv"]), 3)
    return f"Dense, before pruning: test accuracy {accuracy} % (last epoch), mean JSV {jsv}."


def _record_metrics(run: records.Run, dense: Any, finetuned: Mapping[Any, Any]) -> None:
    named = {"dense": dense} | {
        f"{name}/{rate}": found for (name, rate), found in finetuned.items()
    }
    for name, found in named.items():
        for split in ("validation", "test"):
            means = np.asarray(found[f"{split}_accuracy"]).mean(axis=0)
            for epoch, value in enumerate(means):
                run.metric(epoch, split, f"{name}/accuracy", value)


def _draw(setting: Setting, jsv: np.ndarray, run: records.Run) -> None:
    config = setting.config
    mean, half, _ = tables.mean_interval(jsv)
    ours = {"x": config.pruning.ratios, "mean": mean}
    if half is not None:
        # On a logarithmic axis an interval has to stay above 0.
        ours |= {"low": np.maximum(mean - half, mean / 10), "high": mean + half}
    curves = {"ours": ours}
    activation = config.network.activation
    if activation in PUBLISHED_JSV:
        curves["published"] = {"x": PUBLISHED_JSV["ratios"], "mean": PUBLISHED_JSV[activation]}
    figure = plots.lines_with_intervals(
        curves,
        title=f"Removing units destroys isometry: {_net(config)} on MNIST",
        subtitle=f"{_statistic(config)}; right after L1 pruning, before finetuning",
        x_label="pruning ratio (share of hidden units removed)",
        y_label="mean JSV (log scale; 1 is isometry)",
        y_scale="log",
    )
    plots.save(figure, plots.curve_rows(curves), run.figures, "jsv_against_ratio")


def _write_report(setting: Setting, run: records.Run, main: Any, dense_line: str) -> None:
    config = setting.config
    caption = (
        f"{_net(config)}, pruning ratio {config.pruning.ratio}; {_statistic(config)}. The best "
        "test epoch is what the paper reports; it is chosen on the test set and only stands here "
        "to be compared."
    )
    blocks: list[report.Block] = [
        dense_line,
        report.Table(main[1], main[0], caption, "start"),
        report.Figure(
            run.figures / "jsv_against_ratio.png",
            "Mean Jacobian singular value right after removing units, ours and published.",
            "Mean singular value against pruning ratio on a logarithmic axis.",
        ),
    ]
    again = [report.Details("Configuration", str(config))]
    report.build(
        run.report,
        title="Does pruning leave a good place to start?",
        lead="Units of the smallest mean |w| are removed from a trained network; finetuning starts "
        "from what is left, or from its orthogonalised form (OrthP), at two learning rates.",
        sections=[report.Section("Results", blocks), report.Section("Again", again)],
    )


def _summary(
    setting: Setting, dense: Any, pruned: Any, finetuned: Mapping[Any, Any], jsv: np.ndarray
) -> dict[str, Any]:
    summary: dict[str, Any] = {"seeds": setting.config.seeds}

    def add(name: str, values: Any) -> None:
        mean, half, _ = tables.mean_interval(values)
        summary[name] = mean
        if half is not None:
            summary[f"{name}_half_width"] = half

    add("dense/test_accuracy_last_percent", _accuracies(dense)["last"])
    add("dense/mean_jsv", dense["jsv"])
    for name in STARTS:
        add(f"{name}/mean_jsv_after_pruning", pruned[name]["jsv"])
    for (name, rate), found in finetuned.items():
        for kind, values in _accuracies(found).items():
            add(f"{name}/lr_{rate}/test_accuracy_{kind}_percent", values)
        add(f"{name}/lr_{rate}/mean_jsv_after_finetuning", found["jsv"])
    for ratio, values in zip(setting.config.pruning.ratios, jsv.T, strict=True):
        add(f"ratio_{ratio}/mean_jsv_after_pruning", values)
    return summary
