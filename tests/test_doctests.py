"""Runs every example in the docstrings of the package, in the README and in the guides."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import nopr

ROOT = Path(__file__).parents[1]
FLAGS = doctest.NORMALIZE_WHITESPACE


def examples():
    """Every doctest of the package, also of its private functions."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for found in pkgutil.walk_packages(nopr.__path__, "nopr."):
        module = importlib.import_module(found.name)
        yield from (test for test in finder.find(module) if test.examples)


def run(test):
    """Runs a doctest; fails with what it printed."""
    report = []
    results = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(report)


EXAMPLES = list(examples())
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if ">>> " in page.read_text()
]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_the_example_prints_what_it_claims(test):
    run(test)


@pytest.mark.parametrize(
    "name",
    [
        "nopr.masks.top",
        "nopr.masks.apply",
        "nopr.densities.erk",
        "nopr.information.enumeration.exact",
        "nopr.isometry.orthogonalize",
        "nopr.spectra.singular_values",
        "nopr.transforms.keep",
    ],
)
def test_the_functions_that_one_starts_with_have_an_example(name):
    assert name in {test.name for test in EXAMPLES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_the_page_runs_from_top_to_bottom(page):
    namespace = {}
    for line, source in python_blocks(page.read_text()):
        if ">>>" in source:
            name = page.name
            parsed = doctest.DocTestParser().get_doctest(source, namespace, name, str(page), line)
            parsed.globs = namespace  # shared, where a doctest takes a copy
            report = []
            runner = doctest.DocTestRunner(optionflags=FLAGS)
            results = runner.run(parsed, out=report.append, clear_globs=False)
            assert results.failed == 0, "".join(report)
        else:
            exec(compile("\n" * line + source, str(page), "exec"), namespace)


def test_the_readme_and_the_guides_have_examples():
    assert {"README.md", "scaling.md", "your_own_model.md"} <= {page.name for page in PAGES}


def test_blocks_are_found_with_their_lines_and_other_languages_left_out():
    text = "a\n```python\nx = 1\n```\n```\nmake\n```\n  ```python\n  y = 2\n  ```\n"
    assert python_blocks(text) == [(2, "x = 1\n"), (8, "y = 2\n")]


def python_blocks(text):
    """The fenced blocks of python in a text, each with the number of lines before it."""
    found = re.finditer(r"^( *)```python\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [
        (
            text[: match.start(2)].count("\n"),
            re.sub(f"^{match.group(1)}", "", match.group(2), flags=re.MULTILINE),
        )
        for match in found
    ]
