"""Unit pruning with and without OrthP: its parts, and a tiny run that is killed and goes on."""

import json
import math

import jax
import launched
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.isometry_table import page as isometry_report
from experiments.isometry_table import run as isometry_table
from nopr import networks
from nopr.data import Images, Split
from nopr.lab import checkpoints, records

WIDTH, HIDDEN, INPUTS, CLASSES, SEEDS = 10, 2, 8, 3, 2


def make_setting(*, activation="linear", ratio=0.5):
    """A setting on random data, without the loading."""
    rng = np.random.default_rng(3)

    def split(n):
        images = rng.normal(size=(n, 4, 2, 1)).astype(np.float32)
        return Split(images, np.arange(n, dtype=np.int32) % CLASSES)

    config = ConfigDict(
        {
            "seeds": SEEDS,
            "network": {"width": WIDTH, "hidden": HIDDEN, "activation": activation},
            "pruning": {"ratio": ratio, "ratios": (0.0, ratio)},
            "training": {
                "batch_size": 5,
                "momentum": 0.9,
                "weight_decay": 1e-4,
            },
        }
    )
    images = Images("random", split(15), split(6), split(6), CLASSES, (0.0,), (1.0,))

    def mlp(width):
        return networks.mlp((width,) * HIDDEN + (CLASSES,), inputs=INPUTS, activation=activation)

    return isometry_table.Setting(
        config=config,
        images=images,
        epochs={"training.checkpoint_every": 1},
        network=mlp(WIDTH),
        small=mlp(isometry_table._kept_units(config, ratio)),
        keys=jax.random.split(jax.random.key(0), SEEDS),
        probe=images.train.images,
    )


def initial(setting):
    return jax.vmap(setting.network.init)(setting.keys)


# --- Pruning and measuring ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [(0.0, 100), (0.1, 90), (0.3, 70), (0.55, 45), (0.7, 30), (0.8, 20), (0.805, 19)],
)
def test_the_ceiling_of_the_ratio_goes_however_it_is_rounded(ratio, kept):
    config = ConfigDict({"network": {"width": 100}})
    assert isometry_table._kept_units(config, ratio) == kept


def test_the_units_of_smallest_mean_weight_go(getkey):
    setting = make_setting()
    params = initial(setting)
    found = isometry_table._unit_masks(setting, params, 0.3)
    for layer in range(HIDDEN):
        kernel = np.asarray(params[f"layer_{layer}"]["kernel"])
        size = np.abs(kernel).mean(axis=1)
        alive = np.asarray(found[f"layer_{layer}"]["kernel"]).any(axis=1)
        assert alive.sum(axis=1).tolist() == [7] * SEEDS
        for seed in range(SEEDS):
            assert size[seed][alive[seed]].min() > size[seed][~alive[seed]].max()


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_a_masked_network_has_the_spectrum_of_the_one_with_its_units_removed(activation):
    setting = make_setting(activation=activation)
    params = initial(setting)
    removed = isometry_table._prune(setting, params, "l1")
    assert removed["params"]["layer_1"]["kernel"].shape == (SEEDS, 5, 5)
    by_ratio = isometry_table._jsv_by_ratio(setting, params)["mean"]
    np.testing.assert_allclose(by_ratio[:, 1], removed["jsv"], rtol=1e-5)
    assert np.all(by_ratio[:, 0] > by_ratio[:, 1])


def test_orthp_makes_every_singular_value_of_a_pruned_linear_network_one():
    setting = make_setting()
    found = isometry_table._prune(setting, initial(setting), "l1_orthp")
    assert found["singular_values"].shape == (SEEDS, 15, CLASSES)
    np.testing.assert_allclose(found["singular_values"], 1, atol=1e-5)


def test_the_epoch_is_selected_on_validation_and_never_on_test():
    found = {
        "validation_accuracy": np.array([[0.1, 0.9, 0.5], [0.7, 0.7, 0.2]]),
        "test_accuracy": np.array([[0.3, 0.2, 0.6], [0.5, 0.8, 0.4]]),
    }
    accuracies = isometry_report._accuracies(found)
    np.testing.assert_allclose(accuracies["last"], [60, 40])
    np.testing.assert_allclose(accuracies["selected"], [20, 50])  # Ties: the first.
    np.testing.assert_allclose(accuracies["best_test"], [60, 80])


def test_published_numbers_stand_beside_what_they_are_of_and_nothing_else():
    config = launch_config()
    assert isometry_report._published_applies(config)
    changes = {
        "data.name": "fashion_mnist",
        "network.width": 50,
        "network.hidden": 2,
        "network.activation": "relu",
        "pruning.ratio": 0.7,
    }
    for key, value in changes.items():
        other = launch_config()
        other.update_from_flattened_dict({key: value})
        assert not isometry_report._published_applies(other), key


def launch_config():
    from experiments.isometry_table import config as configs

    return configs.get_config()


def test_the_published_tables_are_whole():
    assert isometry_report.PUBLISHED.keys() == isometry_report.STARTS.keys()
    assert all(len(row) == 3 for row in isometry_report.PUBLISHED.values())
    sizes = {len(row) for row in isometry_report.PUBLISHED_JSV.values()}
    assert sizes == {len(launch_config().pruning.ratios)}


# --- Going on ----------------------------------------------------------------------------------


class Cut(BaseException):
    """Ends a training as a kill would, between two checkpoints."""


def test_training_that_is_cut_off_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    setting = make_setting()
    params = initial(setting)
    rates = ((0, 0.1), (1, 0.05))

    def train(folder):
        with records.open_run(folder, config={}, experiment="test", say=print) as run:
            return isometry_table._train(setting, setting.network, params, 3, rates, "a", run)

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


def test_training_that_diverges_names_the_rates_to_lower(tmp_path):
    setting = make_setting()
    rates = ((0, 1e20),)
    with (
        records.open_run(tmp_path, config={}, experiment="test", say=print) as run,
        pytest.raises(ValueError, match=r"'a' gave NaN or infinity for 2 of 2 seeds\. Lower its"),
    ):
        isometry_table._train(setting, setting.network, initial(setting), 3, rates, "a", run)


TINY = {
    "seeds": 2,
    "data.name": "digits",
    "data.pad": 0,
    "data.validation": 1300,
    "network.width": 12,
    "network.hidden": 2,
    "training.length": "2ep",
    "training.checkpoint_every": "1ep",
    "finetuning.length": "4ep",
    "pruning.ratio": 0.15,
    "pruning.ratios": (0.0, 0.5),
    "measuring.inputs": 8,
}
WORDS = [
    "--config=experiments/isometry_table/config.py",
    *(f"--config.{key}={value}" for key, value in TINY.items()),
]


def test_killed_between_checkpoints_it_goes_on_to_the_same_bytes(tmp_path):
    cache = tmp_path / "cache"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = launched.run([*WORDS, f"--workdir={whole}"], cache=cache)
    assert ended.code == 0, ended.err
    assert "digits" in ended.out
    assert "on MNIST at ratio 0.8 only" in ended.out
    assert (whole / "report.html").exists()
    assert (whole / "figures/jsv_against_ratio.png").exists()
    summary = json.loads((whole / "summary.json").read_bytes())
    assert all(math.isfinite(value) for value in summary.values())
    assert summary["l1_orthp/mean_jsv_after_pruning"] == pytest.approx(1, abs=1e-5)

    words = [*WORDS, f"--workdir={killed}"]
    launched.kill_when("checkpoints/l1_orthp_lr_1e-2-*/1.json", killed, words, cache=cache)
    ended = launched.run(words, cache=cache)
    assert ended.code == 0, ended.err
    assert "finetuned/l1/1e-2: done before" in ended.err
    here, there = launched.contents(killed), launched.contents(whole)
    for name in ("summary.json", "table.txt", "metrics.jsonl", "figures/jsv_against_ratio.csv"):
        assert here[name] == there[name], name
