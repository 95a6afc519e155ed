"""Pruning at initialization beside its controls: the comparison, and a tiny run."""

import csv
import json

import jax
import numpy as np
import pytest

from experiments.pruning_at_init import page as at_init_page
from experiments.pruning_at_init import run as at_init
from experiments.pruning_at_init.config import Settings, get_config
from nopr.lab import launch, settings

DENSITIES = (0.5, 0.1)
TINY = {
    "data.name": "digits",
    "data.validation": 1300,
    "seeds": 3,
    "methods": ("imp", "magnitude_after", "iterative_snip"),
    "network.widths": (12,),
    "training.length": "1ep",
    "pruning.densities": DENSITIES,
    "pruning.rounds": 2,
    "pruning.imp_removal": 0.6,
}
WORDS = [
    "launch",
    "--config=experiments/pruning_at_init/config.py",
    *(f"--config.{key}={value}" for key, value in TINY.items()),
]
SIZE = 64 * 12 + 12 * 10


def results(**accuracies):
    """What `compare` reads, of one density."""
    return {name: {0.1: {"test_accuracy": np.array(values)}} for name, values in accuracies.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of one tiny run."""
    folder = tmp_path_factory.mktemp("pruning_at_init") / "run"
    assert launch.main([*WORDS, f"--workdir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(run):
    with open(run / "results.csv") as file:
        return list(csv.DictReader(file))


def test_a_control_hurts_where_it_is_reliably_worse_after_correction():
    chosen = [0.95, 0.94, 0.96, 0.95]
    found = {
        "snip": results(
            chosen=chosen,
            shuffled=[0.85, 0.83, 0.86, 0.86],
            redrawn=[0.95, 0.95, 0.95, 0.95],
            inverted=[0.97, 0.96, 0.981, 0.97],
            random=[0.90, 0.99, 0.92, 0.94],
        )
    }
    compared = at_init_page.compare(found)
    assert [one.control for one in compared] == ["shuffled", "redrawn", "inverted", "random"]
    assert at_init_page._verdict(compared, 1) == "shuffled"
    assert at_init_page._verdict(compared, -1) == "inverted"
    assert compared[0].difference.interval.mean == pytest.approx(10.0)


def test_masks_survive_their_packing(rng):
    like = {"a": jax.ShapeDtypeStruct((3, 5), bool), "b": jax.ShapeDtypeStruct((7,), bool)}
    kept = jax.tree.map(lambda leaf: rng.random((2, 4, *leaf.shape)) < 0.5, like)
    back = at_init.unpacked(at_init._packed(kept), like)
    jax.tree.map(np.testing.assert_array_equal, back, kept)


def test_whole_units_are_refused():
    config = get_config()
    config.methods = ("snip", "units_after")
    with pytest.raises(ValueError, match=r"must prune single weights, 'units_after' does not"):
        settings.read(Settings, config)
    with pytest.raises(ValueError, match="variant must be 'fashion_mnist'"):
        get_config("digits")


@pytest.mark.long
def test_every_branch_is_trained_at_the_counts_of_its_density(rows):
    assert len(rows) == 3 * 5 * len(DENSITIES) * 3
    for row in rows:
        assert int(row["kept_weights"]) == round(float(row["density"]) * SIZE)
        assert int(row["effective_weights"]) <= int(row["kept_weights"])
        assert 0 < float(row["test_accuracy"]) < 1
    by = {(r["method"], r["branch"], r["density"], r["seed"]): r for r in rows}
    same = [
        by[m, "chosen", d, s]["test_accuracy"] == by[m, branch, d, s]["test_accuracy"]
        for m, branch, d, s in by
        if branch != "chosen"
    ]
    assert np.mean(same) < 0.2  # other masks or other weights train to something else


@pytest.mark.long
def test_the_summary_and_the_page_have_every_comparison(run):
    summary = json.loads((run / "summary.json").read_bytes())
    lines = (run / "table.txt").read_text()
    for name in TINY["methods"]:
        for control in at_init_page.CONTROLS:
            assert 0 <= summary[f"{name}/chosen_minus_{control}_corrected_p_value"] <= 1
            assert f"{name}/chosen_minus_{control}_points_half_width" in summary
    assert "corrected by Holm's method over all 12 comparisons" in " ".join(lines.split())
    assert {path.name for path in (run / "figures").glob("*.csv")} == {
        "accuracy_of_controls.csv",
        "differences.csv",
    }


@pytest.mark.long
def test_masks_after_training_start_from_the_trained_weights_and_redrawn_ones_do_not(rows):

    def accuracy(method, branch):
        return np.mean(
            [
                float(row["test_accuracy"])
                for row in rows
                if (row["method"], row["branch"], row["density"]) == (method, branch, "0.5")
            ]
        )

    # After one epoch more, trained weights are well ahead of newly drawn ones.
    assert accuracy("magnitude_after", "chosen") > accuracy("magnitude_after", "redrawn") + 0.05
