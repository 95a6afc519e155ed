"""Bad input to the real experiments: one clear line, at once, and nothing damaged."""

import time

import pytest

from nopr.lab import launch, records

# Types and ranges are those of `nopr.lab.settings`, which has tests of its own: here a few of each.
QUICKSTART = {
    "an unknown dataset": ({"data.name": "minst"}, "'minst'; nearest is 'mnist'"),
    "an unknown method": ({"methods": ("snap",)}, "`methods` must be one of 'apoz_after', "),
    "no method": ({"methods": ()}, "`methods` must hold at least one entry, got none"),
    "a density above 1": ({"pruning.densities": (1.3,)}, "above 0 and at most 1, got 1.3"),
    "rising densities": ({"pruning.densities": (0.05, 0.2)}, "must fall from left to right"),
    "a density in letters": ({"pruning.densities": ("a",)}, "must be of type float, got 'a'"),
    "OrthP at no density": ({"repair.density": 0.3}, "must be one of `pruning.densities`"),
    "a misspelled key": ({"pruning.densites": (0.2,)}, "Did you mean 'pruning.densities'?"),
    "a wrong type": ({"seeds": "two"}, "--config.seeds=two: invalid literal for int()"),
    "no seeds": ({"seeds": 0}, "`seeds` must be at least 1, got 0"),
    "all removed at once": ({"pruning.imp_removal": 1.0}, "must be at least 0.001 and below 1"),
    "a broken width": ({"network.widths": (300.5, 100)}, "must be of type int, got 300.5"),
    "a huge width": ({"network.widths": (99999999999,)}, "`network.widths` must be at least 1 and"),
    "no unit to prune": ({"information.width": 1}, "`information.width` must be at least 2"),
    "nothing held out": ({"data.validation": 0}, "`data.validation` must be above 0, got 0"),
    "a length without unit": ({"training.length": "10"}, "must read like '10ep' or '500it'"),
    "no epochs": ({"training.length": "0ep"}, "`training.length` must be at least 1ep, got '0ep'"),
    "endless epochs": ({"training.length": "9" * 20 + "ep"}, "`training.length` must be at most"),
    "an unknown law": ({"information.law": "distnct"}, "must be one of 'distinct', "),
    "too many points": ({"information.points": 9}, "must be at most 2^3 = 8"),
}
ISOMETRY = {
    "a ratio above 1": ({"pruning.ratio": 1.3}, "`pruning.ratio` must be at least 0 and below 1"),
    "nothing left": ({"pruning.ratios": (0.5, 0.995)}, "leave a unit of 100, got 0.995"),
    "no checkpoint": ({"training.checkpoint_every": "0ep"}, "must be at least 1ep, got '0ep'"),
    "no first rate": (
        {"finetuning.large_rates": ((1, 0.1),)},
        "`finetuning.large_rates` must have a rate for epoch 0, got ((1, 0.1),)",
    ),
    "a rate too late": ({"training.dense_rates": ((0, 0.1), (10**9, 0.1))}, "at most 10000, got"),
    "no finetuning": ({"finetuning.length": "0ep"}, "`finetuning.length` must be at least 1ep"),
}
INFORMATION = {
    "whole units": ({"methods": ("units_after",)}, "must prune one weight at a time"),
    "too many pruned": (
        {"pruning.most": 21},
        "must be below the 21 weights of the network, got 21",
    ),
    "an unknown initialization later": ({"sensitivity.initialization": ("foo",)}, "got 'foo'"),
    "half a step": ({"sensitivity.steps": (0.5,)}, "must be of type int, got 0.5"),
    "an unknown law": ({"task.law": "distnct"}, "must be one of 'distinct', "),
}


def words(experiment, workdir, changes):
    return [
        "launch",
        f"--config=experiments/{experiment}/config.py",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in changes.items()),
    ]


@pytest.fixture
def refused(tmp_path, capsys):
    """Launches what must fail with one line that says `message`."""

    def launch_and_check(experiment, changes, message, *, workdir=tmp_path / "run"):
        assert launch.main(words(experiment, workdir, changes)) != 0
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("error: ")
        assert message in lines[0]
        assert "Traceback" not in captured.out + captured.err
        assert not (workdir / "DONE").exists()
        assert not list(workdir.glob("stages/**/*.npz")), "something was computed before the error"

    return launch_and_check


@pytest.mark.parametrize(("changes", "message"), QUICKSTART.values(), ids=QUICKSTART)
def test_the_main_job_refuses(refused, changes, message):
    refused("quickstart", changes, message)


@pytest.mark.parametrize(("changes", "message"), ISOMETRY.values(), ids=ISOMETRY)
def test_the_isometry_table_refuses(refused, changes, message):
    digits = {"data.name": "digits", "data.pad": 0, "data.validation": 1300}
    refused("isometry_table", digits | changes, message)


@pytest.mark.parametrize(("changes", "message"), INFORMATION.values(), ids=INFORMATION)
def test_mask_information_refuses(refused, changes, message):
    refused("mask_information", changes, message)


def test_the_long_run_refuses_levels_that_leave_no_weight(refused):
    refused("imp_run", {"pruning.removal": 0.9999999}, "`pruning.removal` must leave one of")


# --- Files -------------------------------------------------------------------------------------


@pytest.fixture
def originals(tmp_path, monkeypatch):
    """The folder of the original files, empty, and no prepared copy."""
    folder = tmp_path / "originals"
    folder.mkdir()
    monkeypatch.setenv("NOPR_MANUAL_DIR", str(folder))
    monkeypatch.setenv("NOPR_DATA_DIR", str(tmp_path / "prepared"))
    return folder


@pytest.mark.parametrize("experiment", ["quickstart", "isometry_table"])
def test_missing_files_are_named_at_once_with_where_they_were_looked_for(
    experiment, originals, refused, tmp_path
):
    started = time.perf_counter()
    refused(experiment, {"data.name": "mnist"}, str(originals))
    assert time.perf_counter() - started < 20  # Without any retries of the network: 0.1 s.
    assert not (tmp_path / "prepared").exists()


def test_a_corrupted_file_is_named_and_nothing_is_prepared_from_it(originals, refused, tmp_path):
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for name in names:
        (originals / f"{name}-ubyte.gz").write_bytes(b"damaged")
    refused("quickstart", {"data.name": "mnist"}, "train-images-idx3-ubyte.gz")
    assert not (tmp_path / "prepared").exists()


# --- Work directories --------------------------------------------------------------------------


def test_a_directory_in_use_by_a_live_run_is_refused_and_left_alone(refused, tmp_path):
    workdir = tmp_path / "run"
    with records.open_run(workdir, config={"seeds": 1}, experiment="quickstart", say=print):
        before = (workdir / "config.json").read_bytes()
        refused("quickstart", {}, f"'{workdir}' is in use by another run (process ")
    assert (workdir / "config.json").read_bytes() == before


def test_a_file_in_the_place_of_the_work_directory_stays(refused, tmp_path):
    workdir = tmp_path / "run"
    workdir.write_text("mine")
    refused("quickstart", {}, f"Cannot write '{workdir}'")
    assert workdir.read_text() == "mine"


# --- Training that diverges --------------------------------------------------------------------


def test_the_main_job_names_the_learning_rate_that_made_it_diverge(refused):
    changes = {
        "training.learning_rate": 1e20,
        "training.length": "1ep",
        "network.widths": (8,),
        "seeds": 1,
        "methods": ("random",),
        "measuring.inputs": 2,
    }
    message = "NaN or infinity in 1 of 1 runs: dense. Lower `training.learning_rate`, 1e+20."
    refused("quickstart", changes, message)


def test_the_isometry_table_names_the_rates_that_made_it_diverge(refused):
    changes = {
        "data.name": "digits",
        "data.pad": 0,
        "data.validation": 1300,
        "network.hidden": 1,
        "training.dense_rates": ((0, 1e20),),
        "training.length": "2ep",
        "training.checkpoint_every": "2ep",
        "seeds": 1,
    }
    refused("isometry_table", changes, " of 1 seeds: 0. Lower the learning rates.")
