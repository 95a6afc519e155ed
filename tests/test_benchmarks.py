"""The benchmarks run, at sizes at which their times mean nothing."""

import re
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import (
    __main__,
    _timing,
    checkpoints_cost_little,
    exact_information_is_cheap,
    masked_epochs_cost_as_dense,
    packed_masks_come_close_to_the_least,
    seeds_on_images_beat_pytorch,
    snip_costs_little_more_than_its_gradient,
    sweeps_beat_loops,
    sweeps_scale,
    synflow_keeps_pace_with_pytorch,
    the_store_costs_little,
    top_is_faster_than_sorting,
)
from nopr import data, networks
from nopr.lab import records

TINY = {
    checkpoints_cost_little: {"EXAMPLES": 256, "EPOCHS": 2, "REPEATS": 1},
    exact_information_is_cheap: {
        "REPEATS": 1,
        "STEPS": 2,
        "SAMPLES": 8,
        "TIMED": {"steps": 1, "runs": 2, "samples": 4},
    },
    masked_epochs_cost_as_dense: {"EXAMPLES": 256, "REPEATS": 1},
    snip_costs_little_more_than_its_gradient: {
        "REPEATS": 1,
        "BATCH": 4,
        "network": lambda: networks.resnet(8, width=0.25, input_shape=(8, 8, 3)),
    },
    synflow_keeps_pace_with_pytorch: {
        "ROUNDS": 2,
        "REPEATS": 1,
        "NETWORKS": {"LeNet-300-100": networks.lenet_300_100},
    },
}


@pytest.mark.parametrize("benchmark", TINY, ids=lambda module: module.__name__.split(".")[-1])
def test_the_benchmark_prints_its_table(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # other tests share them
    for name, value in TINY[benchmark].items():
        monkeypatch.setattr(benchmark, name, value)
    benchmark.main()
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_only_exact_ways_keep_the_count_when_scores_tie(capsys):
    top_is_faster_than_sorting.main(shapes={"a": (30, 20), "b": (50, 8)}, repeats=1)
    table = capsys.readouterr().out.split("all scores equal")[1]
    kept = dict(re.findall(r"^(\w.*?)(?: +[\d.]+){3} +([\d,]+)$", table, re.MULTILINE))
    exact = {"masks.top", "masks.top under jit", "jnp.argsort, scattered"}
    assert {name for name, count in kept.items() if count == "50"} == exact
    assert {count for name, count in kept.items() if name not in exact} == {"1,000"}


def test_packed_masks_are_smaller_and_every_way_gives_them_back(monkeypatch, capsys):
    benchmark = packed_masks_come_close_to_the_least
    sizes = {"shapes": {"a": (30, 20), "b": (50, 80)}, "densities": [0.05], "repeats": 1}
    benchmark.main(**sizes)
    out = capsys.readouterr().out
    least = int(re.search(r"at random: at least ([\d,]+) bytes", out)[1].replace(",", ""))
    rows = re.findall(r"^  (\S.*?) +([\d,]+) +[\d.]+ ", out, re.MULTILINE)[:3]
    ours, *others = (int(size.replace(",", "")) for _, size in rows)
    assert least < ours <= 1.02 * least + 2 * 64
    assert ours < min(others)
    wrong = benchmark.WAYS["np.packbits + zlib"]._replace(load=lambda path, like: {"a": 0, "b": 0})
    monkeypatch.setitem(benchmark.WAYS, "np.packbits + zlib", wrong)
    with pytest.raises(RuntimeError, match="packbits \\+ zlib gave other masks back"):
        benchmark.main(**sizes)


def test_an_unknown_benchmark_is_named_with_the_nearest():
    with pytest.raises(SystemExit, match="nearest is 'top_is_faster_than_sorting'"):
        __main__.main(["top_is_fast"])


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "experiments.benchmarks._pytorch", raising=False)


@pytest.fixture
def tiny_images(monkeypatch):
    def load(name, **_):
        raise ConnectionError(f"{name} is far away.")

    monkeypatch.setattr(data, "load", load)
    for name, value in {"SEEDS": 2, "TIMED": 1, "WIDTHS": (5, 10), "EXAMPLES": 200}.items():
        monkeypatch.setattr(seeds_on_images_beat_pytorch, name, value)
    return {"examples": 200, "checked": 200, "repeats": 1}


TINY_SWEEP = {"steps": 3, "repeats": 1, "timed": {"jitted": 2, "torch": 1}}


def rows(out):
    """The names of the rows of a table of ways."""
    return re.findall(r"^(\S.*?)  +[\d.]+  .*(?:all|1/[\d,]+)$", out, re.MULTILINE)


@pytest.mark.usefixtures("no_torch")
def test_without_torch_a_line_reports_it_and_the_other_ways_agree(tiny_images, capsys):
    sweeps_beat_loops.main(**TINY_SWEEP)
    tiny = capsys.readouterr().out
    assert "pip install -e '.[bench]'" in tiny
    assert rows(tiny) == ["sweeps.run, lanes", "sweeps.run, vmap", "loop over jitted runs"]
    seeds_on_images_beat_pytorch.main(**tiny_images)
    images = capsys.readouterr().out
    assert "random images, as Fashion-MNIST cannot be had: fashion_mnist is far away." in images
    assert "pip install -e '.[bench]'" in images
    assert len(rows(images)) == 3


def test_every_way_in_torch_trains_the_same_nets(tiny_images, capsys):
    pytest.importorskip("torch")
    sweeps_beat_loops.main(**TINY_SWEEP)  # raises where they differ
    tiny = rows(capsys.readouterr().out)
    assert tiny[3:] == ["PyTorch loop", "torch.func.vmap", "torch.baddbmm by hand"]
    seeds_on_images_beat_pytorch.main(**tiny_images)
    assert rows(capsys.readouterr().out)[3:] == ["PyTorch loop", "torch.func.vmap"]


@pytest.mark.parametrize("wrong", [1.5, np.nan])
def test_ways_that_train_other_nets_are_not_compared(wrong):
    right = [(np.ones((3, 2, 4)), np.ones((3, 4)))]
    other = [(np.ones((2, 2, 4)), np.ones((2, 4)))]  # only the first two runs
    assert _timing.check_agreement({"a": right, "b": other}, tolerance=0.4) == 0
    other[0][1][1, 3] = wrong
    with pytest.raises(RuntimeError, match="'b' trained other nets"):
        _timing.check_agreement({"a": right, "b": other}, tolerance=0.4)


def test_a_row_counts_the_share_that_was_timed(capsys):
    ways = {"all": _timing.Way(lambda: None), "a quarter": _timing.Way(lambda: None, 4, 2)}
    _timing.print_table(ways, {name: _timing.Row(0, 1, 2) for name in ways}, runs=100)
    whole, quarter = capsys.readouterr().out.splitlines()[1:]
    assert whole.split() == ["all", "0.00", "1.000", "2.000", "50.0", "1.0", "all"]
    assert quarter.split()[-3:] == ["1.0", "2", "1/4"]
    timed = _timing.take_turns(ways, dict.fromkeys(ways, 9.0), repeats=3)
    assert timed["all"].compile_seconds == pytest.approx(9, abs=1)


def test_the_store_benchmark_holds_its_sweeps_to_the_same_bits(monkeypatch, capsys):
    plans = {"a chunk": (2, 1)}
    the_store_costs_little.main(steps=1, plans=plans, repeats=1)
    assert "a chunk   " in capsys.readouterr().out
    monkeypatch.setattr(records.Store, "get", lambda *_: None)
    with pytest.raises(RuntimeError, match="2 were written, 0 found again and 2 computed again"):
        the_store_costs_little.main(steps=1, plans=plans, repeats=1)


def test_devices_and_processes_end_with_the_same_bits(monkeypatch, capsys):
    arms = sweeps_scale.make_arms
    whole = lambda cores: {name: arm for name, arm in arms(cores).items() if arm.whole}  # noqa: E731
    monkeypatch.setattr(sweeps_scale, "make_arms", whole)
    sweeps_scale.main(work={"a few": ("cube", 4, 1)}, repeats=1)  # raises where they differ
    out = capsys.readouterr().out
    assert len(re.findall(r"^[12] .* \d+\.\d{3} .*$", out, re.MULTILINE)) == 4


def test_a_process_that_ends_early_is_reported_with_its_last_line():
    arms = {"one": sweeps_scale.Arm([["--devices", "many"]], 1, 1, "one")}
    with pytest.raises(
        RuntimeError, match=r"ended with exit status 2: .*invalid int value: 'many'"
    ):
        sweeps_scale.ask_in_turns(arms, ["--work", "cube"], 1)


def test_arms_with_other_bits_are_not_compared():
    arms = {
        "one": sweeps_scale.Arm([[]], 1, 1, "one"),
        "two": sweeps_scale.Arm([[], []], 1, 1, "one"),
        "halves": sweeps_scale.Arm([[], []], 1, 1, "one", whole=False),
    }
    rows = {name: sweeps_scale.Row([1.0], [1.0], {"a"}) for name in arms}
    rows["halves"].results.update({"b", "c"})
    sweeps_scale.check_same_bits(arms, rows)
    rows["two"].results.add("b")
    with pytest.raises(RuntimeError, match="'two' and 'one' gave other bits"):
        sweeps_scale.check_same_bits(arms, rows)
