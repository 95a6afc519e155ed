"""The notebooks are in step with their scripts; `make notebooks` runs them."""

from pathlib import Path

import jupytext
import pytest

COLAB = Path(__file__).parents[1] / "colab"
SCRIPTS = sorted(COLAB.glob("*.py"))


def cells(path):
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_notebook_is_in_step_with_its_script(script):
    assert cells(script.with_suffix(".ipynb")) == cells(script), "run `make notebooks`"


def test_every_notebook_has_a_script():
    assert SCRIPTS
    assert {path.stem for path in COLAB.glob("*.ipynb")} == {path.stem for path in SCRIPTS}
