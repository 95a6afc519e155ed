"""The long run of iterative pruning: killed, damaged and resumed to the same bytes."""

import json
import math
import re

import launched
import pytest

from experiments.imp_run import config as configs
from experiments.imp_run import run as imp_run

TINY = {
    "data.validation": 1300,
    "network.widths": "(12,)",
    "training.length": "4ep",
    "training.checkpoint_every": "2ep",
    "pruning.levels": 9,
    "pruning.rewind": "1ep",
    "pruning.retrain": "learning_rate_rewinding",
}
WORDS = [
    "--config=experiments/imp_run/config.py",
    *(f"--config.{key}={value}" for key, value in TINY.items()),
]
LEVELS = 10
# Epochs over all levels: those before the rewind epoch, then 2 and 1 in each level.
SAVED = (1, *(1 + 3 * level + done for level in range(LEVELS) for done in (2, 3)))


def _newest(folder):
    return max(folder.glob("checkpoints/imp-*/[0-9]*.npz"), key=lambda path: int(path.stem))


def _damage(folder):
    """Flips a bit in the arrays of the newest checkpoint; returns its step and the one before."""
    newest = _newest(folder)
    step, data = int(newest.stem), bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    return step, SAVED[SAVED.index(step) - 1]


def _results(folder):
    """What a run leaves, except its checkpoints and the page, which shows the date."""
    contents = launched.contents(folder)
    return {
        name: data
        for name, data in contents.items()
        if not name.startswith("checkpoints/") and name != "report.html"
    }


def test_killed_and_damaged_it_ends_with_the_same_bytes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ended = launched.run([*WORDS, f"--workdir={whole}"])
    assert ended.code == 0, ended.err
    assert "n = 1 seed, so there is no interval" in " ".join(ended.out.split())
    assert (whole / "report.html").exists()
    assert int(_newest(whole).stem) == SAVED[-1]
    _check_summary(json.loads((whole / "summary.json").read_bytes()))

    words = [*WORDS, f"--workdir={cut}"]
    launched.kill_when("checkpoints/imp-*/[4-9].json", cut, words)
    damaged, before = _damage(cut)
    ended = launched.run(words)
    assert ended.code == 0, ended.err
    assert f"/{damaged}.npz is damaged" in ended.err
    assert f"imp: resuming after epoch {before} of {SAVED[-1]}" in ended.err
    assert _results(cut) == _results(whole)


def _check_summary(summary):
    assert summary["seeds"] == 1
    assert summary["rewind_epoch"] == 1
    assert summary["retrain"] == "learning_rate_rewinding"
    assert summary["epochs_trained"] == SAVED[-1]
    size = summary["prunable_weights"]
    assert size == (64 + 10) * 12
    kept = [summary[f"level_{level}/kept_weights"] for level in range(LEVELS)]
    assert kept == [round(0.8**level * size) for level in range(LEVELS)]
    numbers = [value for value in summary.values() if not isinstance(value, str)]
    assert all(math.isfinite(value) for value in numbers)
    accuracies = [value for name, value in summary.items() if name.endswith("accuracy_percent")]
    assert len(accuracies) == 2 * LEVELS
    assert all(10 < value <= 100 for value in accuracies)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pruning.levels", 0, "`pruning.levels` must be at least 1 and at most 1000, got 0."),
        ("pruning.removal", 1.0, "`pruning.removal` must be above 0 and below 1, got 1.0."),
        ("pruning.removal", 0.9999999, "`pruning.removal` must leave one of 50,200 weights after"),
        ("network.widths", (10**11,), "`network.widths` must be at least 1 and at most 1048576"),
        ("network.widths", (2**20, 2**20), "`network` must have at most 2,147,483,647 weights"),
        ("training.length", f"{10**20}ep", "`training.length` must be at most 2,147,483,647 st"),
        ("training.length", f"{10**9}ep", "`training.length` must be at most 2,147,483,647 st"),
        ("pruning.scope", "net", "`pruning.scope` must be one of 'global', 'layer', got 'net'."),
        ("pruning.retrain", "finetuning", "`pruning.retrain` must be one of 'learning_rate_rew"),
        ("pruning.rewind", "60ep", "`pruning.rewind` must be below `training.length`, '60ep', got"),
        ("training.checkpoint_keep", 0, "`training.checkpoint_keep` must be at least 1, got 0."),
        ("training.checkpoint_every", "0ep", "`training.checkpoint_every` must be at least 1ep"),
        ("training.length", "0ep", "`training.length` must be at least 1ep, got '0ep'."),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_before_it_runs(key, value, message):
    config = configs.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=re.escape(message)):
        imp_run.run(config, None)
