"""The benchmarks run, at sizes at which their times mean nothing."""

import re

import jax
import pytest

from experiments.benchmarks import (
    __main__,
    checkpoints_cost_little,
    exact_information_is_cheap,
    masked_epochs_cost_as_dense,
    top_is_faster_than_sorting,
)

TINY = {
    checkpoints_cost_little: {"EXAMPLES": 256, "EPOCHS": 2, "REPEATS": 1},
    exact_information_is_cheap: {
        "REPEATS": 1,
        "STEPS": 2,
        "SAMPLES": 8,
        "TIMED": {"steps": 1, "runs": 2, "samples": 4},
    },
    masked_epochs_cost_as_dense: {"EXAMPLES": 256, "REPEATS": 1},
}


@pytest.mark.parametrize("benchmark", TINY, ids=lambda module: module.__name__.split(".")[-1])
def test_the_benchmark_prints_its_table(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # other tests share them
    for name, value in TINY[benchmark].items():
        monkeypatch.setattr(benchmark, name, value)
    benchmark.main()
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_only_exact_ways_keep_the_count_where_scores_tie(capsys):
    top_is_faster_than_sorting.main(shapes={"a": (30, 20), "b": (50, 8)}, repeats=1)
    table = capsys.readouterr().out.split("all scores equal")[1]
    kept = dict(re.findall(r"^(\w.*?)(?: +[\d.]+){3} +([\d,]+)$", table, re.MULTILINE))
    exact = {"masks.top", "masks.top under jit", "jnp.argsort, scattered"}
    assert {name for name, count in kept.items() if count == "50"} == exact
    assert {count for name, count in kept.items() if name not in exact} == {"1,000"}


def test_an_unknown_benchmark_is_named_with_the_nearest():
    with pytest.raises(SystemExit, match="nearest is 'top_is_faster_than_sorting'"):
        __main__.main(["top_is_fast"])
