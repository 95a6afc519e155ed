"""Experiments are found by themselves, and their results depend on the code that they import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import reproduce
from nopr.lab import finding, launch, records
from nopr.lab.records.sources import closure

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """\"\"\"What it is about.

More of it.
\"\"\"
from ml_collections import ConfigDict
VARIANTS = ("large",)
def get_config(variant=""): return ConfigDict({"n": 2 if variant else 1})
"""
RUN = """
def run(config, run):
    from helper import value
    found = run.stage("a", lambda: {"x": value(config.n)})
    run.metric(0, "train", "x", found["x"])
    return found
"""
PAGE = """
def show(results, config, run):
    run.show_table(f"CAPTION {results['x']}")
    return {"x": float(results["x"])}
"""
HELPER = "def value(n): return 0.5 * n\n"


def _write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with an experiment that has published numbers, and one of a single file."""
    _write(
        tmp_path,
        {
            "experiments/paper/config.py": CONFIG,
            "experiments/paper/run.py": RUN,
            "experiments/paper/page.py": PAGE,
            "experiments/paper/helper.py": HELPER,
            "experiments/paper/published.csv": "x\n0.5\n",
            "experiments/other.py": "x = 1\n",
            "mine.py": f"{CONFIG}{RUN}{PAGE}",
            "helper.py": HELPER,
            "notes.py": "not Python",
            "deep.py": f"x = {'+'.join('1' * 9999)}",
            "computed.py": CONFIG.replace('("large",)', 'tuple("ab")'),
        },
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Found -------------------------------------------------------------------------------------


def test_the_list_holds_every_experiment_with_its_variants(clone, capsys):
    assert launch.main(["launch", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "computed.py                  What it is about.",
        "mine.py                      What it is about.",
        "mine.py:large",
        "experiments/paper/config.py  What it is about.",
        "experiments/paper/config.py:large",
    ]


def test_what_has_published_numbers_is_reproduced_with_its_variants(clone):
    paper = "--config=experiments/paper/config.py"
    for name in ("all", "paper"):
        commands = reproduce.commands(name, ["--config.n=3"])
        assert [words[3:] for words in commands] == [
            [paper, "--config.n=3"],
            [f"{paper}:large", "--config.n=3"],
        ]
    (command,) = reproduce.commands("paper:large")
    assert command[3:] == [f"{paper}:large"]


def test_an_unknown_reproduction_costs_one_line_with_the_choices(clone, capsys):
    assert reproduce.main(["reproduce", "--name=papre"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: `--name` must be one of all, paper, paper:large, got 'papre'."
    ]


def test_a_reproduction_needs_no_place_to_print():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m experiments.reproduce --help >/dev/full 2>&-"],
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0


@pytest.mark.parametrize("one", finding.find(ROOT), ids=lambda one: one.name)
def test_every_experiment_of_the_clone_loads_with_each_variant(one, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert one.about
    for variant in ("", *(f":{each}" for each in one.variants)):
        command = launch.parse(["launch", f"--config={one.config}{variant}"])
        assert command.experiment == one.name
        assert command.code.run == one.config.with_name("run.py")


# --- Run ---------------------------------------------------------------------------------------


def _launch(folder, *words):
    """A launch from a folder outside the clone, as by a user."""
    return subprocess.run(
        [sys.executable, "-m", "nopr.lab.launch", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_experiment_of_one_file_runs_from_any_folder(clone):
    done = _launch(clone, "--config=mine.py:large", "--workdir=out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["mine: writing to out", "CAPTION 1.0", "Done: out"]
    assert json.loads((clone / "out/summary.json").read_bytes()) == {"x": 1.0}
    assert json.loads((clone / "out/config.json").read_bytes())["experiment"] == "mine"


def test_a_new_caption_is_shown_without_computing_and_new_code_computes_again(clone):
    words = ["--config=experiments/paper/config.py", "--workdir=out"]
    assert "a: done in" in _launch(clone, *words).stderr
    before = {path: path.read_bytes() for path in clone.glob("out/stages/*")}

    page = clone / "experiments/paper/page.py"
    page.write_text(PAGE.replace("CAPTION", "Another"))
    assert "paper is finished: out" in _launch(clone, *words).stdout
    shown = _launch(clone, *words, "--show")
    assert (shown.returncode, shown.stdout.splitlines()[1]) == (0, "Another 0.5"), shown.stderr
    assert shown.stderr == ""
    assert {path: path.read_bytes() for path in clone.glob("out/stages/*")} == before

    (clone / "experiments/paper/helper.py").write_text("def value(n): return 0.25 * n\n")
    assert "finished by an earlier version" in _launch(clone, *words).stdout
    again = _launch(clone, *words, "--show")
    assert (again.stdout.splitlines()[1], again.stderr) == ("Another 0.5", "")
    assert "finished by an earlier version" in _launch(clone, *words).stdout
    assert "Another 0.25" in _launch(clone, *words, "--rerun").stdout


def test_a_show_that_fails_loses_nothing(clone, capsys):
    page = clone / "experiments/paper/page.py"
    page.write_text(PAGE.replace("results['x']", "1 // 0"))
    words = ["launch", "--config=experiments/paper/config.py", "--workdir=out"]
    assert launch.main(words) == 1
    assert "once `show` is fixed, --show needs no computing" in capsys.readouterr().err
    page.write_text(PAGE)
    assert launch.main([*words, "--show"]) == 0
    shown = capsys.readouterr()
    assert (shown.out.splitlines()[1], shown.err) == ("CAPTION 0.5", "")


def test_what_cannot_be_stored_is_shown_from_the_stages(clone, capsys):
    run = clone / "experiments/paper/run.py"
    run.write_text(RUN.replace("return found", "return {**found, 'f': print}"))
    words = ["launch", "--config=experiments/paper/config.py", "--workdir=out"]
    assert launch.main(words) == 0
    assert not (clone / "out/results.npz").exists()
    run.write_text(f"{run.read_text()}more = 1\n")
    capsys.readouterr()
    assert launch.main([*words, "--show"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first == "What `run` returned is not stored: it runs again on its stored stages."
    assert "a: done before" in second


# --- The code that counts ----------------------------------------------------------------------

TREE = {
    "run.py": "import near, json, numpy\nfrom pack import inner\ndef f():\n    import late\n",
    "near.py": "from pack.deep import thing\n",
    "late.py": "import importlib\nimportlib.import_module('named')\n",
    "named.py": "",
    "pack/__init__.py": "",
    "pack/inner.py": "from . import sibling\nfrom .deep.base import y\n",
    "pack/sibling.py": "import torn\n",
    "torn.py": "def (\n",
    "pack/deep/__init__.py": "thing = 1\n",
    "pack/deep/base.py": "y = 1\n",
    "pack/deep/unused.py": "",
    "lazy/__init__.py": "def __getattr__(name): ...\n",
    "lazy/one.py": "",
    "lazy/two.py": "",
    "page.py": "",
    "config.py": "",
}
USED = ["run", "near", "late", "named", "pack/__init__", "pack/inner", "pack/sibling"]
USED = [*USED, "torn", "pack/deep/__init__", "pack/deep/base"]
MORE = {
    "": [],
    "import lazy": ["lazy/__init__", "lazy/one", "lazy/two"],
    "import lazy.one": ["lazy/__init__", "lazy/one", "lazy/two"],
    "import lazy.one as o": ["lazy/__init__", "lazy/one"],
    "from lazy import two": ["lazy/__init__", "lazy/two"],
    "from lazy import shortcut": ["lazy/__init__", "lazy/one", "lazy/two"],
    "from pack.deep import *": ["pack/deep/unused"],
    "__import__(name)": ["page", "config"],
}


@pytest.mark.parametrize(("line", "more"), MORE.items(), ids=MORE)
def test_only_imported_code_counts(tmp_path, line, more):
    _write(tmp_path, {**TREE, "run.py": f"{TREE['run.py']}{line}\n"})
    found = {path.relative_to(tmp_path).as_posix() for path in closure([tmp_path / "run.py"])}
    assert found == {f"{name}.py" for name in [*USED, *more]}


def test_the_digest_depends_on_code_but_not_on_docstrings_or_location(tmp_path):
    for folder in ("a", "b"):
        _write(tmp_path / folder, TREE)
    one, two = (records.source_digest(tmp_path / folder / "run.py") for folder in ("a", "b"))
    assert one == two
    base = tmp_path / "b/pack/deep/base.py"
    base.write_text('"""A docstring."""\n\ny = 1  # and a comment\n')
    assert records.source_digest(tmp_path / "b/run.py") == one
    base.write_text("y = 2\n")
    assert records.source_digest(tmp_path / "b/run.py") != one


def test_the_library_counts_as_far_as_it_is_used(tmp_path):
    (tmp_path / "run.py").write_text("from nopr import masks\n")
    found = closure([tmp_path / "run.py"])
    assert {ROOT / f"nopr/{name}.py" for name in ("__init__", "masks", "trees")} <= found
    assert not found & {*ROOT.glob("nopr/lab/*"), ROOT / "nopr/isometry.py"}
