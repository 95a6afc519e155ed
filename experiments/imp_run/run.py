"""Iterative magnitude pruning of one network with checkpoints: level by level, in one long run."""

from __future__ import annotations

import math
import textwrap
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments import held_out
from nopr import algorithms, criteria, data, finetune, masks, networks, pruning, trees
from nopr.lab import checkpoints, plots, records, report, steps, tables
from nopr.typing import Params

SPLITS = ("validation", "test")


class Setting(NamedTuple):
    """What the run needs, made once."""

    config: ConfigDict
    images: data.Images
    network: networks.Network
    epochs: int  # of a level, those before the rewind epoch included
    rewind: int  # the epoch whose weights come back
    every: int  # epochs between checkpoints
    counts: np.ndarray  # kept weights after each level of pruning
    size: int  # prunable weights

    @property
    def shape(self) -> str:
        """Inputs, hidden units and outputs."""
        widths = (*self.config.network.widths, self.images.classes)
        return "-".join(map(str, (math.prod(self.images.train.images.shape[1:]), *widths)))


def run(config: ConfigDict, run: records.Run) -> dict[str, Any]:
    """Trains and prunes all levels as one stage with checkpoints; prints, draws and sums up."""
    setting = _setting(config)
    found = run.stage("imp", partial(_iterate, setting, run), finite=True)
    rows = _rows(setting, found)
    _record_metrics(setting, found, run)
    table = _table(setting, rows)
    title = textwrap.fill(table.caption, 100)
    run.show_table(tables.aligned(table.rows, table.columns, title=title))
    _write_page(setting, table, _draw(setting, rows, run), run)
    return _summary(setting, rows)


def _setting(config: ConfigDict) -> Setting:
    _check(config)
    images = held_out.load(config)
    network = networks.mlp(
        (*config.network.widths, images.classes),
        inputs=math.prod(images.train.images.shape[1:]),
        initialization=config.network.initialization,
    )
    like = jax.eval_shape(network.init, jax.random.key(0))
    size = sum(math.prod(shape) for shape in trees.shapes(trees.select(like)))
    kept = [(1 - config.pruning.removal) ** level for level in range(1, config.pruning.levels + 1)]
    lengths = {
        "training.length": config.training.length,
        "training.checkpoint_every": config.training.checkpoint_every,
        "pruning.rewind": config.pruning.rewind,
    }
    epochs, every, rewind = (_epochs(config, images, *item) for item in lengths.items())
    if not rewind < epochs:
        raise ValueError(
            f"`pruning.rewind` must be below `training.length`, {config.training.length!r}, "
            f"got {config.pruning.rewind!r}."
        )
    counts = pruning.level_counts(size, kept)
    return Setting(config, images, network, epochs, rewind, every, counts, size)


def _check(config: ConfigDict) -> None:
    if not 0 < config.pruning.removal < 1:
        raise ValueError(
            f"`pruning.removal` must be between 0 and 1, got {config.pruning.removal}."
        )
    counts = {
        "pruning.levels": config.pruning.levels,
        "training.checkpoint_keep": config.training.checkpoint_keep,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if config.pruning.scope not in ("global", "layer"):
        raise ValueError(
            f"`pruning.scope` must be 'global' or 'layer', got {config.pruning.scope!r}."
        )


def _epochs(config: ConfigDict, images: data.Images, name: str, length: str) -> int:
    per_epoch = steps.per_epoch(len(images.train.labels), batch_size=config.training.batch_size)
    epochs = steps.epochs(length, steps_per_epoch=per_epoch)
    if epochs < 1 and name != "pruning.rewind":
        raise ValueError(f"`{name}` must be at least 1ep, got {length!r}.")
    return epochs


# --- The long run ------------------------------------------------------------------------------


def _iterate(setting: Setting, run: records.Run) -> dict[str, Any]:
    """All levels; what is cut off goes on from its newest whole checkpoint."""
    config, network = setting.config, setting.network
    parts = (tuple(part) for part in (setting.images.train, setting.images.validation))
    train, validation = jax.tree.map(jnp.asarray, tuple(parts))
    test = jax.tree.map(jnp.asarray, tuple(setting.images.test))
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    folder, keep = run.checkpoints("imp"), config.training.checkpoint_keep
    with (
        checkpoints.Saver(folder, keep=keep, say=run.say) as saver,
        tqdm(desc="imp", unit="epoch", disable=None) as bar,
    ):
        levels = algorithms.resume_imp(
            pruning.pruner(criteria.magnitude(), scope=config.pruning.scope),
            network.init(init_key),
            train,
            counts=setting.counts,
            epochs=setting.epochs,
            rewind_epoch=setting.rewind,
            every=setting.every,
            keeper=saver,
            progress=partial(_progress, bar, run),
            key=run_key,
            step_loss=finetune.stateless(finetune.cross_entropy(network.apply)),
            tx=_optimizer(setting),
            batch_size=config.training.batch_size,
            monitor=partial(_measure, network.apply, validation, test),
        )
    return {
        "params": jax.tree.map(np.asarray, levels.params),
        "masks": jax.vmap(masks.pack)(levels.masks),
        "kept": jax.vmap(masks.count)(levels.masks),
        "loss": levels.history.loss,
        **levels.history.metrics,
    }


def _progress(bar: Any, run: records.Run, done: int, total: int) -> None:
    if bar.total is None:
        bar.total = total
        bar.initial = bar.n = done
        if done:
            run.say(f"imp: going on after epoch {done} of {total}")
    bar.update(done - bar.n)


def _optimizer(setting: Setting) -> optax.GradientTransformation:
    """SGD with momentum; the learning rate falls to 0 along half a cosine."""
    config, examples = setting.config.training, len(setting.images.train.labels)
    per_epoch = steps.per_epoch(examples, batch_size=config.batch_size)
    rate = optax.cosine_decay_schedule(config.learning_rate, setting.epochs * per_epoch)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, momentum=config.momentum),
    )


def _measure(apply: Any, validation: Any, test: Any, params: Params) -> dict[str, jax.Array]:
    """Nothing is selected by these numbers; the last epoch is reported."""
    found = {}
    for split, part in zip(SPLITS, (validation, test), strict=True):
        result = finetune.evaluate(apply, params, part)
        found |= {f"{split}_accuracy": result.accuracy, f"{split}_loss": result.loss}
    return found


# --- What came out -----------------------------------------------------------------------------


def _rows(setting: Setting, found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a level, after its last epoch; accuracies in %."""
    rows = []
    for level, kept in enumerate(found["kept"].tolist()):
        row = {"level": level, "density": kept / setting.size, "kept": kept}
        for split in SPLITS:
            row[f"{split}_accuracy"] = 100 * float(found[f"{split}_accuracy"][level, -1])
            row[f"{split}_loss"] = float(found[f"{split}_loss"][level, -1])
        rows.append(row)
    return rows


def _table(setting: Setting, rows: list[dict[str, Any]]) -> report.Table:
    columns = [
        tables.Column("level", "level", 0),
        tables.Column("density", "density", 4),
        tables.Column("kept", "kept\nweights", 0),
        tables.Column("validation_accuracy", "validation\nacc, %"),
        tables.Column("validation_loss", "validation\nloss, nats", 4),
        tables.Column("test_accuracy", "test\nacc, %"),
        tables.Column("test_loss", "test\nloss, nats", 4),
    ]
    rewound = f"epoch {setting.rewind}" if setting.rewind else "initialisation"
    caption = (
        f"Iterative magnitude pruning on {setting.config.data.name}, {setting.shape} ReLU net, "
        f"rewound to {rewound}; "
        f"last of {setting.epochs} epochs of each level; n = 1 seed, so there is no interval; "
        f"{_examples(setting.images)}"
    )
    return report.Table(rows, columns, caption)


def _examples(images: data.Images) -> str:
    parts = {"training": images.train, "validation": images.validation, "test": images.test}
    counts = (f"{len(part.labels):,} {name}" for name, part in parts.items())
    return f"{', '.join(counts)} images"


def _record_metrics(setting: Setting, found: dict[str, Any], run: records.Run) -> None:
    series = {("train", "loss"): found["loss"]} | {
        (split, name): found[f"{split}_{name}"] for split in SPLITS for name in ("accuracy", "loss")
    }
    for (split, name), levels in series.items():
        for level, values in enumerate(levels):
            for epoch, value in enumerate(values, setting.rewind):
                run.metric(epoch, split, f"level_{level}/{name}", value)


def _draw(setting: Setting, rows: list[dict[str, Any]], run: records.Run) -> report.Figure:
    points = [
        {
            "method": "IMP" if row["level"] else "dense",
            "density": row["density"],
            "mean": row["test_accuracy"],
            "half_width": None,
            "n": 1,
        }
        for row in rows
    ]
    figure = plots.accuracy_against_density(
        points, title=f"Accuracy as IMP goes on: {setting.config.data.name}"
    )
    return report.Figure(
        plots.save(figure, points, run.figures, "accuracy_against_density").png,
        "Higher is better, and further right is sparser. The dashed line is the dense network. "
        "One seed, so that a step of one image up or down means nothing.",
        "Test accuracy against the share of weights kept, level by level.",
    )


def _write_page(
    setting: Setting, table: report.Table, figure: report.Figure, run: records.Run
) -> None:
    environment = (run.directory / "environment.json").read_text().strip()
    again = [
        report.Details("Configuration", str(setting.config)),
        report.Details("Environment", environment),
    ]
    report.build(
        run.report,
        title="Iterative magnitude pruning, level by level",
        lead="One network is trained, loses a share of its smallest weights, goes back to its "
        "early weights, and trains again.",
        sections=[
            report.Section("Results", [table, figure]),
            report.Section("Again", again),
        ],
    )


def _summary(setting: Setting, rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "data": setting.config.data.name,
        "seeds": 1,
        "prunable_weights": setting.size,
        "rewind_epoch": setting.rewind,
        "epochs_trained": setting.rewind + len(rows) * (setting.epochs - setting.rewind),
    }
    for row in rows:
        name = f"level_{row['level']}"
        summary |= {f"{name}/density": row["density"], f"{name}/kept_weights": row["kept"]}
        for split in SPLITS:
            summary[f"{name}/{split}_accuracy_percent"] = row[f"{split}_accuracy"]
            summary[f"{name}/{split}_loss_nats"] = row[f"{split}_loss"]
    return summary
