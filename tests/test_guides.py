"""The code of the guides in docs/ does what they promise, from a folder outside the clone."""

import json
import re
from pathlib import Path

import pytest

from nopr.lab import launch

DOCS = Path(__file__).parents[1] / "docs"


def blocks(name, kind="python"):
    """The blocks of code in a guide, in their order."""
    return re.findall(rf"```{kind}\n(.*?)```", (DOCS / name).read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The experiment of the guide, alone in a folder."""
    (code,) = blocks("your_own_experiment.md")
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
    assert "--config=mine.py" in Path("run/report.html").read_text()


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
    assert launch.main(["launch", "--config=mine.py", "--workdir=refused", flag]) != 0
    assert message in capsys.readouterr().err


def test_the_criterion_of_the_guide_prunes_in_a_pruner_and_in_a_sweep():
    names = {}
    for code in blocks("your_own_criterion.md"):
        exec(code, names)
    assert names["found"].values.tolist() == [33] * 8
