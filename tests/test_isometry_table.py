"""Unit pruning with and without OrthP: its parts, and a tiny run."""

import json
import math

import jax
import numpy as np
import optax
import pytest

from experiments.isometry_table import page as isometry_page
from experiments.isometry_table import published
from experiments.isometry_table import run as isometry_table
from experiments.isometry_table.config import Settings, get_config, kept_units
from nopr import networks
from nopr.lab import checkpoints, launch, long_training, records, settings


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [(0.0, 100), (0.1, 90), (0.3, 70), (0.55, 45), (0.7, 30), (0.8, 20), (0.805, 19)],
)
def test_the_ceiling_of_the_ratio_goes_however_it_is_rounded(ratio, kept):
    assert kept_units(100, ratio) == kept


def test_the_epoch_is_selected_on_validation_and_never_on_test():
    found = {
        "validation_accuracy": np.array([[0.1, 0.9, 0.5], [0.7, 0.7, 0.2]]),
        "test_accuracy": np.array([[0.3, 0.2, 0.6], [0.5, 0.8, 0.4]]),
    }
    accuracies = isometry_page.accuracies(found)
    np.testing.assert_allclose(accuracies["last"], [60, 40])
    np.testing.assert_allclose(accuracies["selected"], [20, 50])  # Ties: the first.
    np.testing.assert_allclose(accuracies["best_test"], [60, 80])


def test_published_numbers_stand_beside_what_they_are_of_and_nothing_else():
    assert isometry_page.has_published_table(settings.read(Settings, get_config()))
    changes = {
        "data.name": "fashion_mnist",
        "network.width": 50,
        "network.hidden": 2,
        "network.activation": "relu",
        "pruning.ratio": 0.7,
    }
    for key, value in changes.items():
        other = get_config()
        other.update_from_flattened_dict({key: value})
        assert not isometry_page.has_published_table(settings.read(Settings, other)), key


def test_the_published_tables_are_whole():
    assert published.ACCURACY_AND_JSV.keys() == set(isometry_table.STARTS)
    assert all(len(row) == 3 for row in published.ACCURACY_AND_JSV.values())
    assert {len(row) for row in published.JSV.values()} == {len(published.RATIOS)}
    assert Settings().pruning.ratios == published.RATIOS


# --- Resuming ------------------------------------------------------------------------------------


class Cut(BaseException):
    """Ends a training as a kill would, between two checkpoints."""


def test_training_that_is_cut_off_resumes_from_its_checkpoint(tmp_path, monkeypatch, rng):
    network = networks.mlp((10, 3), inputs=8)
    keys = jax.random.split(jax.random.key(0), 2)
    parts = {
        name: (rng.normal(size=(n, 8)).astype(np.float32), np.arange(n, dtype=np.int32) % 3)
        for name, n in {"train": 15, "validation": 6, "test": 6}.items()
    }

    def train(folder, rate=0.1):
        with records.open_run(folder, config={}, experiment="test", say=print) as run:
            return long_training.with_checkpoints(
                network,
                jax.vmap(network.init)(keys),
                parts,
                tx=optax.sgd(rate, momentum=0.9),
                epochs=3,
                every=1,
                batch_size=5,
                folder=run.checkpoints("a"),
                keys=keys,
            )

    whole = train(tmp_path / "whole")
    saved, save = [], checkpoints.save

    def save_and_cut(folder, step, tree):
        save(folder, step, tree)
        saved.append(step)
        if step == 2 and len(saved) == 2:
            raise Cut

    monkeypatch.setattr(checkpoints, "save", save_and_cut)
    with pytest.raises(Cut):
        train(tmp_path / "cut")
    (checkpoint,) = (tmp_path / "cut/checkpoints").iterdir()
    (checkpoint / ".3.npz.1.tmp").touch()  # What a kill within `save` leaves.
    resumed = train(tmp_path / "cut")
    assert saved == [1, 2, 3]
    assert jax.tree.structure(resumed) == jax.tree.structure(whole)
    for here, there in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(here, there)
    with pytest.raises(FloatingPointError, match="NaN or infinity in 2 of 2 seeds"):
        train(tmp_path / "diverging", 1e20)


# --- The whole -----------------------------------------------------------------------------------

TINY = {
    "seeds": 2,
    "data.name": "digits",
    "data.pad": 0,
    "data.validation": 1300,
    "network.width": 12,
    "network.hidden": 2,
    "training.length": "2ep",
    "finetuning.length": "4ep",
    "pruning.ratio": 0.15,
    "pruning.ratios": (0.0, 0.15),
    "measuring.inputs": 8,
}
CONFIG = "--config=experiments/isometry_table/config.py"


def test_a_tiny_run_shows_the_table_the_figure_and_the_page(tmp_path, capsys):
    words = [CONFIG, *(f"--config.{key}={value}" for key, value in TINY.items())]
    assert launch.main(["launch", *words, f"--workdir={tmp_path}/run"]) == 0
    out = capsys.readouterr().out
    assert "MLP-3-Linear on digits" in out
    assert "for MLP-7-Linear on MNIST at ratio 0.8 only" in out
    assert (tmp_path / "run/report.html").exists()
    assert (tmp_path / "run/figures/jsv_against_ratio.png").exists()
    summary = json.loads((tmp_path / "run/summary.json").read_bytes())
    assert all(math.isfinite(value) for value in summary.values())
    assert summary["l1_orthp/mean_jsv_after_pruning"] == pytest.approx(1, abs=1e-5)
    masked, removed = (summary[f"{name}/mean_jsv_after_pruning"] for name in ("ratio_0.15", "l1"))
    assert masked == pytest.approx(removed, rel=1e-5)
    assert masked < summary["ratio_0.0/mean_jsv_after_pruning"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pruning.ratio", 0.9999, r"`pruning\.ratio` must leave a unit of 100, got 0\.9999"),
        ("network.hidden", 0, r"`network\.hidden` must be at least 1 and at most 1000, got 0"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(key, value, message):
    config = get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        isometry_table.check(config)
