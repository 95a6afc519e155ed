"""The shared parts of experiments: the pruners by name, and the cube task."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.mask_information import cube, published
from experiments.mask_information.config import Cube
from experiments.quickstart import config as quickstart
from nopr import finetune, information, masks, networks, trees
from nopr.lab import methods, settings, steps, training

NETWORK = networks.mlp((6, 5, 3), inputs=4)
SHAPES = ((4, 6), (6, 5), (5, 3))
LIKE = trees.select(jax.eval_shape(NETWORK.init, jax.random.key(0)))
SIZE = 69
ROUNDS = 4
DATA_FREE = ("random", "magnitude_init", "lamp_init", "synflow", "ntk_sap")
SINGLE = tuple(name for name in methods.TITLES if name not in settings.WHOLE_UNITS)


@pytest.fixture(scope="module")
def problem():
    loss = finetune.cross_entropy(NETWORK.apply)
    return methods.Problem(
        apply=NETWORK.apply,
        loss=loss,
        grasp_loss=loss,
        input_shape=(4,),
        layers=NETWORK.layers,
        like=LIKE,
    )


@pytest.fixture(scope="module")
def task():
    return cube.task(Cube(dimension=2, points=2, width=3, steps=20, learning_rate=0.1))


@pytest.fixture(scope="module")
def kernels():
    """The task with kernels alone prunable."""
    asked = Cube(dimension=2, points=2, width=3, steps=20, learning_rate=0.1)
    return cube.task(asked, where=trees.is_prunable)


# --- Methods -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SINGLE)
def test_every_method_keeps_exactly_the_planned_weights(name, problem, getkey, rng):
    params = NETWORK.init(getkey())
    batch = rng.normal(size=(9, 4)).astype(np.float32), np.arange(9) % 3
    prune = methods.pruner(name, problem, rounds=ROUNDS)
    program = jax.jit(lambda counts, key: prune(params, batch, count=counts, key=key))
    for density in (1.0, 0.5, 0.123, 0.04, 0.0):
        counts = methods.plan(name, density, problem, rounds=ROUNDS)
        found = program(jnp.asarray(counts), getkey())
        within_outputs = [round(density * a) * b for a, b in SHAPES]
        expected = sum(within_outputs) if name == "wanda_after" else round(density * SIZE)
        assert int(masks.count(found)) == expected
        assert trees.shapes(found) == SHAPES


def test_units_keep_their_whole_rows_and_columns(problem, getkey):
    params = NETWORK.init(getkey())
    prune = methods.pruner("units_after", problem, rounds=ROUNDS)
    found = prune(params, None, count=np.array([[3, 2]]), key=getkey())
    first, second, last = (np.asarray(found[f"layer_{i}"]["kernel"]) for i in range(3))
    np.testing.assert_array_equal(first, np.broadcast_to(first[0], first.shape))
    np.testing.assert_array_equal(second, first[0][:, None] & second.any(axis=0))
    np.testing.assert_array_equal(last, np.broadcast_to(second.any(axis=0)[:, None], last.shape))
    assert [int(mask.sum()) for mask in (first, second, last)] == [4 * 3, 3 * 2, 2 * 3]


def test_units_go_from_the_layer_they_are_planned_for_however_the_layers_sort(getkey):
    hidden = (40, *[30] * 9, 8)
    network = networks.mlp((*hidden, 3), inputs=5)
    params = network.init(getkey())
    loss = finetune.cross_entropy(network.apply)
    like = trees.select(jax.eval_shape(network.init, getkey()))
    problem = methods.Problem(network.apply, loss, loss, (5,), network.layers, like)
    assert trees.paths(like) != network.layers  # layer_10 sorts before layer_2.
    assert problem.widths == (5, *hidden, 3)
    counts = methods.plan("units_after", 0.5, problem, rounds=ROUNDS)
    prune = methods.pruner("units_after", problem, rounds=ROUNDS)
    found = trees.map_prunable(np.asarray, prune(params, None, count=counts, key=getkey()))
    kept = [found[path.split("/")[0]]["kernel"].any(axis=0).sum() for path in network.layers]
    assert kept == [20, *[15] * 9, 4, 3]


@pytest.mark.parametrize(
    ("name", "trainings"),
    [("snip", 0), ("dense", 0), ("magnitude_after", 1), ("units_after", 1), ("imp", 3)],
)
def test_the_trainings_behind_a_mask_are_counted(name, trainings):
    # The rounds of IMP are 0.8, 0.64 and 0.512.
    found = methods.trainings(name, 0.512, densities=(0.8, 0.512), removal=0.2)
    assert found == trainings


def test_scores_that_are_not_finite_are_an_error_that_names_the_method():
    def choose(scores):
        return masks.top({"w": scores}, count=1)

    kept = methods.over_seeds("imp", choose, jnp.array([[1.0, 2.0], [4.0, 3.0]]))["w"]
    np.testing.assert_array_equal(kept, [[False, True], [True, False]])
    with pytest.raises(ValueError, match=r"^No mask for 'IMP': .*finite.*\.$") as caught:
        methods.over_seeds("imp", choose, jnp.array([[1.0, 2.0], [jnp.nan, 3.0]]))
    assert len(str(caught.value).splitlines()) == 1


# --- Data and lengths --------------------------------------------------------------------------


@pytest.mark.parametrize(("validation", "count"), [(240, 240), (240.0, 240), (1 / 6, 240)])
def test_a_count_to_hold_out_is_a_count_even_where_a_flag_made_it_a_float(validation, count):
    images = training.load(settings.Data("digits", validation), seed=0)
    assert len(images.validation.labels) == count


def test_holding_nothing_out_names_the_key():
    with pytest.raises(ValueError, match=r"`data\.validation` must hold out .* got 1e-05"):
        training.load(settings.Data("digits", 1e-5), seed=0)


@pytest.mark.parametrize("batch_size", [1, 7, 10, None])
@pytest.mark.parametrize("remainder", [False, True])
def test_an_epoch_has_the_steps_that_training_takes(batch_size, remainder):
    expected = finetune.steps_per_epoch(10, batch_size=batch_size, remainder=remainder)
    assert steps.per_epoch(10, batch_size=batch_size, remainder=remainder) == expected


# --- The cube task -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", quickstart.Settings().methods)
def test_every_method_prunes_the_planned_weights_and_data_free_ones_know_nothing(
    name, task, getkey
):
    assert task.size == 2 * 3 + 3 + 3 + 1
    pruned = cube.pruned_counts(name, task, range(1, task.size))
    algorithm = cube.algorithm(name, task, pruned, rounds=ROUNDS)
    found = information.exact(
        algorithm,
        task.data.datasets,
        weights=task.data.weights,
        levels=True,
        check=False,
        key=getkey(),
    )
    if name in settings.WHOLE_UNITS:
        # Its masks hold kernels alone; the bias of a unit is removed without being in them.
        expected = [(2 + 1) * (3 - units) for units in (1, 2)]
    else:
        expected = [task.size - count for count in pruned]
    np.testing.assert_array_equal(found.kept, np.tile(expected, (24, 1)))
    assert np.all(found.conditional_entropy_bits == 0)
    if name in DATA_FREE:
        assert np.all(found.bits == 0)
        assert np.all(found.distinct == 1)
    else:
        assert found.bits.max() > 0
        assert np.all(found.bits <= np.log2(24) + 1e-9)
        assert np.all(found.bits <= found.choice_ceiling_bits + 1e-9)


@pytest.mark.parametrize("name", sorted(set(methods.TITLES) - set(quickstart.Settings().methods)))
def test_every_method_of_the_map_prunes_kernels_of_the_cube_and_data_free_ones_know_nothing(
    name, kernels, getkey
):
    assert kernels.size == 2 * 3 + 3
    counts = [methods.plan(name, 3 / kernels.size, kernels.problem, rounds=ROUNDS)]
    found = information.exact(
        cube.with_counts(name, kernels, counts, rounds=ROUNDS),
        kernels.data.datasets,
        weights=kernels.data.weights,
        levels=True,
        check=False,
        key=getkey(),
    )
    # Each output keeps a third of its inputs: one of two, three times, and one of three.
    np.testing.assert_array_equal(found.kept, 4 if name == "wanda_after" else 3)
    if name != "apoz_after":  # which may prune the same unit on all these datasets
        # Published, PX reads the data only to weigh the outputs, and here there is one.
        assert (found.bits.max() == 0) == (name in (*DATA_FREE, "px"))


def test_a_unit_of_the_cube_net_takes_its_weights_and_its_bias_with_it(task):
    assert cube.pruned_counts("units_after", task, range(1, 13)) == (4, 8)
    assert cube.pruned_counts("snip", task, range(1, 4)) == (1, 2, 3)


def test_the_task_of_the_paper_has_its_size_and_entropy():
    task = cube.task(Cube())
    assert task.size == 21
    assert len(task.data.weights) == 1792
    assert task.data.entropy_bits == pytest.approx(np.log2(1792))
    assert cube.pruned_counts("units_after", task, range(1, 21)) == (5, 10, 15)


def test_the_published_curves_have_a_value_at_each_pruned_count():
    assert np.all(np.diff(published.PRUNED) > 0)
    assert max(published.PRUNED) <= 20
    for name, bits in published.BITS.items():
        assert name in methods.TITLES
        assert len(bits) == len(published.PRUNED)
        assert np.all((np.array(bits) > 0) & (np.array(bits) < np.log2(1792)))


def test_the_methods_of_the_settings_are_those_that_have_a_title():
    assert set(get_args(settings.Method)) == set(methods.TITLES)
