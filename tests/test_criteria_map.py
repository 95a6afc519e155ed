"""The map of criteria, tiny."""

import json

import numpy as np
import pytest

from experiments.criteria_map.config import Settings, get_config
from nopr.lab import launch, methods, plots, settings

TINY = {
    "data.name": "digits",
    "data.validation": 1300,
    "seeds": 2,
    "methods": ("imp", "units_after", "snip", "random"),
    "network.widths": (12,),
    "training.length": "1ep",
    "pruning.density": 0.25,
    "pruning.imp_removal": 0.6,
    "measuring.inputs": 4,
    "information.initializations": 2,
    "information.dimension": 2,
    "information.points": 2,
    "information.width": 3,
    "information.steps": 5,
    "information.kept": 3,
}
WORDS = [
    "launch",
    "--config=experiments/criteria_map/config.py",
    *(f"--config.{key}={value}" for key, value in TINY.items()),
]
SIZE = 64 * 12 + 12 * 10


@pytest.mark.long
def test_the_map_has_every_quantity_of_every_method_at_the_same_counts(tmp_path):
    assert launch.main([*WORDS, f"--workdir={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_bytes())
    table = (tmp_path / "run/table.txt").read_text()
    for name in TINY["methods"]:
        assert methods.TITLES[name] in table
        assert summary[f"{name}/cube_kept_weights"] == 3  # one unit has three kernel weights
        assert 0 <= summary[f"{name}/information_bits"] <= summary["dataset_entropy_bits"]
        assert 0 <= summary[f"{name}/effective_percent"] <= 100
        assert summary[f"{name}/mean_singular_value"] > 0
        units = name == "units_after"
        expected = 3 * (64 + 10) if units else round(0.25 * SIZE)
        assert summary[f"{name}/kept_weights"] == expected
    assert summary["random/information_bits"] == 0
    assert summary["snip/information_bits"] > 0
    assert (tmp_path / "run/figures/map.png").exists()


def test_a_cube_net_without_a_weight_to_prune_is_refused():
    config = get_config()
    config.information.kept = 16
    with pytest.raises(ValueError, match=r"must be below the 16 kernel weights .* got 16"):
        settings.read(Settings, config)


def test_points_are_numbered_by_falling_x_and_those_at_0_stand_in_a_strip():
    rows = [
        {"name": name, "group": group, "x": x, "y": y, "color": y, "x_half_width": half}
        | {"y_half_width": None}
        for name, group, x, y, half in (
            ("SNIP", "init", 2.0, 0.5, 0.2),
            ("IMP", "imp", 5.0, 1.5, None),
            ("random", "init", 0.0, 0.1, 0.0),
            ("SynFlow", "init", 0.0, 2.0, 0.0),
        )
    ]
    look = {"title": "Map", "x_label": "bits", "y_label": "mean", "color_label": "%"}
    figure = plots.numbered_points(rows, **look)
    axes = figure.axes[0]
    marks = {text.get_text(): text.get_position() for text in axes.texts}
    np.testing.assert_allclose([marks["1"], marks["2"]], [(5.0, 1.5), (2.0, 0.5)])
    assert marks["3"][0] < marks["4"][0] < 0
    assert [marks["3"][1], marks["4"][1]] == [2.0, 0.1]
    named = [text.get_text() for text in figure.texts]
    assert named == ["1", "IMP", "2", "SNIP", "3", "SynFlow", "4", "random"]
    assert axes.get_yscale() == "log"
    with pytest.raises(ValueError, match=r"`x` of 'SNIP' must be at least 0, got -1"):
        plots.numbered_points([{**rows[0], "x": -1}], **look)
