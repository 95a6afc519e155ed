"""The main job, tiny, and its parts."""

import csv
import fcntl
import functools
import itertools
import json
import math
import os

import jax
import launched
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from experiments.quickstart import config as configs
from experiments.quickstart import page as quickstart_page
from experiments.quickstart import run as quickstart
from nopr import algorithms, criteria, data, finetune, networks, pruning
from nopr.lab import choosing, methods, settings, training

DENSITIES = (0.5, 0.1)
SEEDS = 2
SIZE = 64 * 16 + 16 * 12 + 12 * 10
TINY = {
    "seeds": SEEDS,
    "network.widths": (16, 12),
    "training.length": "1ep",
    "pruning.densities": DENSITIES,
    "pruning.scoring_examples": 32,
    "pruning.rounds": 3,
    "pruning.imp_removal": 0.7,
    "repair.density": 0.5,
    "measuring.inputs": 8,
    "information.initializations": 1,
    "information.checked": 0,
    "information.dimension": 2,
    "information.points": 2,
    "information.width": 3,
    "information.steps": 5,
}
WORDS = [
    "--config=experiments/quickstart/config.py",
    *(f"--config.{key}={value}" for key, value in TINY.items()),
]
TITLES = {name: methods.TITLES[name] for name in configs.Settings().methods}
FIGURES = ("accuracy_against_density", "bits_against_pruned", "singular_values")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with the main job run to its end, in `run`; xdist's workers share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "quickstart"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "out").exists():
            ended = launched.run([*WORDS, f"--workdir={folder}/run"])
            assert ended.code == 0, ended.err
            (folder / "out").write_text(ended.out)
    return folder


@pytest.fixture(scope="module")
def summary(whole):
    return json.loads((whole / "run/summary.json").read_bytes())


@pytest.fixture(scope="module")
def rows(whole):
    with open(whole / "run/results.csv") as file:
        return list(csv.DictReader(file))


# --- What a whole run leaves -------------------------------------------------------------------


def test_the_main_job_writes_all_that_it_promises(whole):
    run, out = whole / "run", (whole / "out").read_text()
    table = (run / "table.txt").read_text()
    assert table in out
    assert f"Done: {run}/report.html" in out
    for title in TITLES.values():
        assert title in table
    for name in FIGURES:
        assert (run / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        with open(run / f"figures/{name}.csv") as file:
            assert len(list(csv.DictReader(file))) > 2
        assert f"{run}/figures/{name}.png" in out


def test_the_report_is_one_page_that_needs_nothing_else(whole):
    page = (whole / "run/report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(FIGURES)
    assert "http" not in page
    assert "<script" not in page
    for title in TITLES.values():
        assert title in page


def test_the_summary_is_flat_and_finite(summary):
    for name, value in summary.items():
        assert isinstance(value, str) or math.isfinite(value), name
    assert summary["prunable_weights"] == SIZE
    assert summary["dataset_entropy_bits"] == pytest.approx(math.log2(24))


def test_every_method_keeps_exactly_what_was_asked(summary):
    for name, density in itertools.product(TITLES, DENSITIES):
        kept = summary[f"{name}/density_{density}/kept_weights"]
        first, second = round(density * 16), round(density * 12)
        units = 64 * first + first * second + second * 10
        assert kept == (units if name == "units_after" else round(density * SIZE)), name
        assert 0 <= summary[f"{name}/density_{density}/effective_weights"] <= kept


def test_orthp_starts_from_the_same_weights_and_changes_the_spectrum(summary):
    plain, repaired = "units_after/density_0.5", "units_after/density_0.5/orthp"
    assert summary[f"{repaired}/kept_weights"] == summary[f"{plain}/kept_weights"]
    assert (
        summary[f"{repaired}/mean_singular_value_pruned"]
        != summary[f"{plain}/mean_singular_value_pruned"]
    )
    assert not any("/orthp" in name for name in summary if not name.startswith(repaired))


def test_data_free_masks_know_nothing_and_the_others_at_most_the_entropy(summary):
    ceiling = summary["dataset_entropy_bits"]
    for name in TITLES:
        bits = [v for k, v in summary.items() if k.startswith(f"cube/{name}/") and "half" not in k]
        assert len(bits) == (2 if name == "units_after" else 12)
        if name in ("random", "magnitude_init", "synflow"):
            assert bits == [0.0] * len(bits)
        else:
            assert 0 < max(bits) <= ceiling + 1e-9


def test_the_summary_is_the_mean_and_interval_of_the_csv(summary, rows):
    assert len(rows) == SEEDS * (1 + len(TITLES) * len(DENSITIES) + 1)
    jobs = {(row["method"], row["density"], row["orthp"]) for row in rows}
    for method, density, orthp in jobs - {("dense", "1.0", "0")}:
        values = [
            100 * float(row["test_accuracy"])
            for row in rows
            if (row["method"], row["density"], row["orthp"]) == (method, density, orthp)
        ]
        name = f"{method}/density_{density}{'/orthp' * int(orthp)}/test_accuracy_percent"
        half = scipy.stats.t.ppf(0.975, SEEDS - 1) * scipy.stats.sem(values)
        assert summary[name] == pytest.approx(np.mean(values))
        assert summary[f"{name}_half_width"] == pytest.approx(half)


def test_every_row_states_its_training_epochs(whole, rows):
    # IMP removes at most 0.7: one round to 0.5, two more to 0.1; an epoch each, and one after.
    expected = {("dense", "1.0"): 1, ("imp", "0.5"): 2, ("imp", "0.1"): 4}
    for row in rows:
        after = 2 if row["method"] in methods.AFTER_TRAINING else 1
        epochs = expected.get((row["method"], row["density"]), after)
        assert int(row["training_epochs"]) == epochs, row
    said = " ".join(quickstart_page.BUDGETS.split())
    assert said in " ".join((whole / "run/table.txt").read_text().split())
    assert said in (whole / "run/report.html").read_text()


# --- The rounds of IMP -------------------------------------------------------------------------


@given(
    targets=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4, unique=True),
    removal=st.floats(0.05, 0.95),
)
def test_imp_rounds_are_geometric_and_hit_every_target(targets, removal):
    targets = sorted(targets, reverse=True)
    levels, hits = methods.imp_levels(targets, removal=removal)
    assert [levels[hit] for hit in hits] == targets
    assert hits[-1] == len(levels) - 1
    path = np.array([1.0, *levels])
    ratios = path[1:] / path[:-1]
    assert np.all(ratios >= (1 - removal) * (1 - 1e-6))
    for start, stop in itertools.pairwise([0, *(hit + 1 for hit in hits)]):
        leg = ratios[start:stop]
        np.testing.assert_allclose(leg, leg[0], rtol=1e-6)
        # One round fewer would remove more than allowed.
        fewer = len(leg) - 1
        assert fewer == 0 or leg.prod() < (1 - removal) ** fewer * (1 + 1e-6)


def test_imp_rounds_that_fit_exactly_are_not_made_more():
    levels, hits = methods.imp_levels([0.64, 0.512], removal=0.2)
    np.testing.assert_allclose(levels, [0.8, 0.64, 0.512])
    assert hits == [1, 2]


# --- Keys and checks ---------------------------------------------------------------------------


def make_setting(learning_rate=0.05):
    """A setting on random data with one seed, without the loading."""
    asked = configs.Settings(
        seeds=1,
        pruning=configs.Pruning(densities=(0.5,)),
        training=settings.Training("2ep", 8, learning_rate),
    )
    rng = np.random.default_rng(0)
    split = data.Split(
        rng.normal(size=(16, 4)).astype(np.float32), np.arange(16, dtype=np.int32) % 3
    )
    images = data.Images("random", split, split, split, 3, (0.0,), (1.0,))
    network = networks.mlp((5, 3), inputs=4)
    loss = finetune.cross_entropy(network.apply)
    tx = training.cosine_sgd(asked.training, images, epochs=2)
    trainer = functools.partial(finetune.trainer, loss, tx, epochs=2, batch_size=8)
    keys = jax.random.split(jax.random.key(0), 1)
    task = training.Task(images, network, loss, trainer, 2, keys, learning_rate)
    pruning = asked.pruning
    choice = choosing.choice(task, pruning, densities=pruning.densities, block=None)
    return quickstart.Setting(asked, choice, None)


@pytest.fixture
def setting():
    return make_setting()


def test_imp_and_pruning_after_training_have_the_batches_of_the_dense_stage(setting):
    def train(params, masks, data, *, key):
        del masks, data
        return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)

    def init(key):
        return {"w": jax.random.normal(key, (4, 5))}

    prune = pruning.pruner(criteria.magnitude())
    expected = train(init(setting.task.keys[0]), None, None, key=setting.task.train_keys[0])
    kept = prune(expected, None, count=7, key=setting.task.keys[0])["w"]
    imp = algorithms.imp(prune, init=init, train=train, counts=[7])
    after = algorithms.after_training(
        pruning.pruner(criteria.magnitude(), density=7 / 20), init=init, train=train
    )
    for algorithm in (imp, after):
        np.testing.assert_array_equal(algorithm(None, key=setting.task.keys[0])["w"], kept)


def test_imp_that_diverges_has_no_mask(setting):
    found = quickstart.choose_masks(setting, "imp", None)
    assert found["layer_0/kernel"].shape == (1, 1, 4, 5)
    with pytest.raises(ValueError, match=r"No mask for 'IMP': .*finite"):
        quickstart.choose_masks(make_setting(1e20), "imp", None)


@pytest.mark.parametrize("name", ["snip", "grasp", "magnitude_after"])
def test_a_score_that_is_not_finite_gives_no_mask(name, setting):
    images = setting.task.images
    broken = images.train._replace(images=np.full((16, 4), np.nan, np.float32))
    task = setting.task._replace(images=images._replace(train=broken))
    dense = jax.tree.map(lambda leaf: leaf * np.nan, task.initial)
    choice = setting.choice._replace(task=task)
    with pytest.raises(ValueError, match=f"No mask for '{methods.TITLES[name]}': .*finite"):
        quickstart.choose_masks(setting._replace(choice=choice), name, dense)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning.densities": (0.1, 0.5)}, r"must fall from left to right, got \(0\.1, 0\.5\)"),
        (
            {"repair.density": 0.3},
            r"`repair\.density` must be one of .*, got 0\.3",
        ),
        ({"information.width": 1}, r"`information\.width` must be at least 2 for 'units_after'"),
        ({"pruning.densities": (0.5, 1e-4)}, r"must leave a unit in each of `network\.widths`"),
        ({"methods": ("snip", "snap")}, r"`methods` must be one of 'apoz_after', .*, got 'snap'"),
        ({"methods": ()}, r"`methods` must hold at least one entry, got none"),
        ({"pruning.imp_removal": 1e-9}, r"`pruning\.imp_removal` must be at least 0\.001"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(changes, message):
    config = configs.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        quickstart.check(config)


def test_a_density_that_leaves_no_weight_is_refused_before_training():
    asked = configs.Settings(methods=("snip",), pruning=configs.Pruning(densities=(1e-7,)))
    with pytest.raises(ValueError, match=r"must leave one of 50,200 weights, got 1e-07"):
        quickstart.run(settings.config(asked), None)
