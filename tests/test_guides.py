"""The code of the guides in docs/ works as described, from a folder outside the clone."""

import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

from nopr import criteria, pruning
from nopr.lab import launch, records, settings, training

DOCS = Path(__file__).parents[1] / "docs"


def blocks(name, kind="python"):
    """The blocks of code in a guide, in their order."""
    found = re.findall(rf"```{kind}\n(.*?)```", (DOCS / name).read_text(), flags=re.DOTALL)
    return [textwrap.dedent(code) for code in found]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The experiment of the guide, alone in a folder."""
    code, *_ = blocks("your_own_experiment.md")
    path = tmp_path_factory.mktemp("elsewhere") / "mine.py"
    path.write_text(code)
    return path


def test_the_experiment_of_the_guide_shows_table_figure_and_page(mine, monkeypatch, capsys):
    monkeypatch.chdir(mine.parent)
    quick = {"seeds": 2, "widths": (12,), "training.length": "1ep", "densities": (0.05,)}
    words = [f"--config.{key}={value}" for key, value in quick.items()]
    assert launch.main(["launch", "--config=mine.py", "--workdir=run", *words]) == 0
    out = capsys.readouterr().out
    title, *_ = re.findall(r"method +density.*", (DOCS / "your_own_experiment.md").read_text())
    assert title.split() == re.findall(r"method +density.*", out)[0].split()
    assert "95.7" in out
    made = {path.name for path in Path("run").rglob("*")}
    assert made >= {"report.html", "table.txt", "summary.json", "metrics.jsonl"}
    assert made >= {f"accuracy_against_density.{kind}" for kind in ("png", "pdf", "csv")}
    summary = json.loads(Path("run/summary.json").read_bytes())
    assert 0 < summary["SNIP/density_0.05/test_accuracy_percent"] <= 100
    report = Path("run/report.html").read_text()
    assert "--config=mine.py" in report
    assert "--workdir=run</code>" in report

    # Another caption, and a `run` that must not be run any more.
    code = mine.read_text().replace('lead="Networks', 'lead="All networks')
    mine.write_text(code.replace("    task = training", "    1 / 0\n    task = training"))
    page, numbers = Path("run/report.html"), Path("run/summary.json").read_bytes()
    assert launch.main(["launch", "--config=mine.py", "--workdir=run", *words, "--show"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert page.read_text() == report.replace("Networks are", "All networks are")
    assert Path("run/summary.json").read_bytes() == numbers
    assert launch.main(["launch", "--config=mine.py", "--workdir=run", *words]) == 0
    again = capsys.readouterr().out
    assert "finished by an earlier version of the code" in again
    assert "--show draws it again" in again


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.seedz=3", "There is no config key 'seedz'"),
        ("--config.densities=(2.0,)", "`densities` must be above 0 and at most 1, got 2.0."),
        ("--config.training.length=ten", "`training.length` must read like '10ep' or '500it'"),
    ],
)
def test_the_experiment_of_the_guide_refuses_a_bad_setting(
    flag, message, mine, monkeypatch, capsys
):
    monkeypatch.chdir(mine.parent)
    assert launch.main(["launch", "--config=mine.py", "--workdir=refused", flag]) == 2
    assert message in capsys.readouterr().err


@dataclass(frozen=True)
class Quick:
    data: settings.Data = settings.Data("digits")
    training: settings.Training = settings.Training(length="1ep")


def test_the_guide_prunes_after_training_in_a_sweep_of_its_own(tmp_path):
    task = training.task(Quick().data, Quick().training, widths=(8,), seed=0, seeds=2)
    with records.open_run(tmp_path, config={}, experiment="x", say=(said := []).append) as run:
        names = {"criteria": criteria, "pruning": pruning, "training": training}
        names |= {"task": task, "run": run}
        exec(blocks("your_own_experiment.md")[1], names)
        assert said == ["dense: 1 network of 2 seeds each, stored as they finish"]
        with pytest.raises(ValueError, match=r"got 'dense' twice\. Give it `name=`"):
            training.sweep(task, {"dense": names["dense"]}, run, name="dense")
    after, kernel = names["after"], jax.tree.leaves(names["trained"])[-1]
    assert np.array_equal(jax.tree.leaves(after["params"])[-1], kernel)
    assert not np.array_equal(jax.tree.leaves(task.initial)[-1], kernel)
    kept = sum(int(np.sum(mask)) for mask in jax.tree.leaves(after["masks"]))
    assert kept == 2 * round(0.05 * (64 * 8 + 8 * 10))


def test_the_criterion_of_the_guide_prunes_in_a_pruner_and_in_a_sweep():
    names = {}
    for code in blocks("your_own_criterion.md"):
        exec(code, names)
    assert names["found"].values.tolist() == [33] * 8


def test_a_criterion_that_gives_nan_makes_no_case():
    task = training.task(Quick().data, Quick().training, widths=(8,), seed=0, seeds=2)
    broken = pruning.pruner(criteria.from_weights(lambda weight: weight * np.nan), density=0.3)
    with pytest.raises(ValueError, match=r"No mask for the networks .*NaN or infinite"):
        training.pruned(task, broken)
