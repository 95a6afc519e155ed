"""Bits against pruned weights, tiny, beside the published curves."""

import csv
import json

import pytest

from experiments import launch, mask_information

TINY = {
    "initializations": 2,
    "checked": 0,
    "methods": ("magnitude_after", "snip", "synflow", "random"),
    "training.steps": 5,
    "pruning.most": 5,
    "pruning.synflow_rounds": 3,
    "sensitivity.initialization": ("he",),
    "sensitivity.learning_rate": (),
    "sensitivity.steps": (),
}
WORDS = [
    "launch",
    "--config=experiments/configs/mask_information.py",
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
        assert summary[f"initialisation_he/snip/pruned_{pruned}/bits"] == 0
    assert not any(name.endswith("pruned_6/bits") for name in summary)


def test_the_table_sets_the_published_numbers_beside_ours(run):
    lines = (run / "table.txt").read_text().splitlines()
    published = [line for line in lines if " published" in line]
    assert [line.split()[1:] for line in published] == [
        [f"{mask_information.PUBLISHED[name][i]:.2f}" for i in (0, 1)]
        for name in ("magnitude_after", "snip")
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


def test_run_again_it_computes_nothing(run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*.json")}
    assert launch.main([*WORDS, f"--workdir={run}"]) == 0
    assert "mask_information is finished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == before
