"""Bits against pruned weights, tiny, beside the published curves."""

import csv
import json

import numpy as np
import pytest

from experiments.mask_information import cube, published
from experiments.mask_information import page as mask_information_page
from experiments.mask_information import run as mask_information
from experiments.mask_information.config import Settings, get_config
from nopr.lab import launch, settings

TINY = {
    "initializations": 2,
    "checked": 0,
    "methods": ("magnitude_after", "snip", "synflow", "random"),
    "task.steps": 5,
    "pruning.most": 5,
    "pruning.rounds": 3,
    "sensitivity.initialization": ("he",),
    "sensitivity.learning_rate": (),
    "sensitivity.steps": (),
}
WORDS = [
    "launch",
    "--config=experiments/mask_information/config.py",
    *(f"--config.{key}={value}" for key, value in TINY.items()),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of one tiny run."""
    folder = tmp_path_factory.mktemp("mask_information") / "run"
    assert launch.main([*WORDS, f"--workdir={folder}"]) == 0
    return folder


def test_the_summary_has_exact_zeros_for_data_free_masks_and_bits_for_the_others(run):
    summary = json.loads((run / "summary.json").read_bytes())
    assert summary["datasets"] == 1792
    for pruned in range(1, 6):
        for name in ("synflow", "random"):
            row = f"as_configured/{name}/pruned_{pruned}"
            assert summary[f"{row}/bits"] == 0
            assert summary[f"{row}/half_width_bits"] == 0
        for row in ("as_configured/snip", "as_configured/magnitude_after"):
            bits = summary[f"{row}/pruned_{pruned}/bits"]
            assert 0 < bits <= summary["dataset_entropy_bits"]
        # He's biases are 0, and so are their SNIP scores: the five of them go first, always.
        assert summary[f"initialization_he/snip/pruned_{pruned}/bits"] == 0
    assert not any(name.endswith("pruned_6/bits") for name in summary)


def test_the_table_sets_the_published_numbers_beside_ours(run):
    lines = (run / "table.txt").read_text().splitlines()
    theirs = [line for line in lines if " published" in line]
    assert [line.split()[1:] for line in theirs] == [
        [f"{published.BITS[name][i]:.2f}" for i in (0, 1)] for name in ("magnitude_after", "snip")
    ]
    zeros = [line for line in lines if line.startswith(("SynFlow", "random (ERK)"))]
    assert len(zeros) == 2
    assert all(line.split()[-6:] == ["0.00", "±", "0.00"] * 2 for line in zeros)


def test_the_figure_holds_the_computed_and_the_published_points(run):
    with open(run / "figures/bits_against_pruned.csv") as file:
        rows = list(csv.DictReader(file))
    computed = [row for row in rows if row["source"] == "computed"]
    assert len(computed) == 4 * 5
    assert {row["method"] for row in rows if row["source"] == "published"} == {
        "magnitude after training",
        "SNIP",
    }
    assert "data:image/png;base64" in (run / "report.html").read_text()


def test_the_settings_are_compared_on_the_same_initializations(rng):
    bits = {
        "as configured": {"imp": rng.normal(size=(5, 20)), "random": np.zeros((5, 20))},
        "steps 1000": {"imp": rng.normal(size=(3, 20))},
    }
    table = mask_information_page.sensitivity(settings.read(Settings, get_config()), bits)
    assert "over the same n = 3 initializations" in table.caption
    for row, values in zip(
        table.rows, (bits["as configured"]["imp"], bits["steps 1000"]["imp"]), strict=True
    ):
        assert row["9"].n == 3
        assert row["9"].mean == pytest.approx(values[:3, 8].mean())
        assert row["peak"].mean == pytest.approx(values[:3].mean(axis=0).max())


def test_the_caption_names_the_batching_and_how_many_were_checked(run):
    for name in ("table.txt", "report.html"):
        text = " ".join((run / name).read_text().split())
        assert "computed on lanes; H(m | D) = 0 checked on 0 of 2" in text


def test_every_setting_of_the_config_as_it_stands_can_be_built_and_stored():
    asked = settings.read(Settings, get_config())
    chosen = list(mask_information.variations(asked))
    changed = asked.sensitivity
    assert len(chosen) == 1 + sum(
        map(len, (changed.initialization, changed.learning_rate, changed.steps))
    )
    assert [setting.initializations for setting in chosen] == [5, *[3] * (len(chosen) - 1)]
    assert all(cube.task(setting.task).size == 21 for setting in chosen)
    names = [mask_information.slug(setting.name) for setting in chosen]
    assert names[-1] == "steps_1000"
    assert mask_information.slug("learning rate 1e+16/imp/0") == "learning_rate_1e_16/imp/0"
