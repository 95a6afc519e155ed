import functools
import itertools
import math

import jax
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nopr import criteria, densities, pruning, schedules

SHAPES = ((64, 300), (100, 10), (300, 100), (3, 3, 16, 32))
SIZES = [math.prod(shape) for shape in SHAPES]
PATHS = ("Dense_1", "Dense_10", "Dense_2", "Stem")
ORDER = ("Stem", "Dense_1", "Dense_2", "Dense_10")


def with_paths(rule, paths=PATHS):
    return functools.partial(rule, paths=paths)


UNIFORM_PLUS = densities.uniform_plus(first="Stem", last="Dense_10")
SMART_RATIO = densities.smart_ratio(ORDER)
RULES = [densities.uniform, densities.erk, densities.igq]
ORDERED = [with_paths(UNIFORM_PLUS), with_paths(SMART_RATIO)]
LEAST = (4608 + 200) / sum(SIZES)  # of uniform+
TREE = {path: np.ones(shape) for path, shape in zip(PATHS, SHAPES, strict=True)}


@pytest.mark.parametrize("rule", RULES)
@given(density=st.floats(0, 1))
def test_counts_sum_exactly_and_fit_their_layers(rule, density):
    counts = rule(SHAPES, density=density)
    assert sum(counts) == round(density * sum(SIZES))
    assert all(0 <= count <= size for count, size in zip(counts, SIZES, strict=True))


@pytest.mark.parametrize("rule", ORDERED)
@given(density=st.floats(LEAST + 1e-4, 1))
def test_counts_of_rules_with_an_order_sum_exactly_and_fit_their_layers(rule, density):
    counts = rule(SHAPES, density=density)
    assert sum(counts) == round(density * sum(SIZES))
    assert all(0 <= count <= size for count, size in zip(counts, SIZES, strict=True))


@pytest.mark.parametrize("rule", [*RULES, *ORDERED])
def test_density_zero_keeps_nothing_and_density_one_everything(rule):
    assert rule(SHAPES, density=0) == (0,) * 4
    assert rule(SHAPES, density=1) == tuple(SIZES)


def test_uniform_rounds_by_largest_remainder():
    assert densities.uniform(((5, 5),) * 3, density=0.02) == (1, 1, 0)


def test_erk_follows_the_sum_over_product_rule():
    shapes = ((100, 100), (400, 25))  # equal sizes; sums 200 and 425
    assert densities.erk(shapes, density=0.1) == (640, 1360)


def test_erk_makes_a_layer_dense_that_would_pass_one_and_shares_the_rest_again():
    shapes = ((4, 2), (100, 100), (400, 25))
    counts = densities.erk(shapes, density=0.5)
    left = 10_004 - 8
    assert counts[0] == 8
    np.testing.assert_allclose(counts[1:], [left * 200 / 625, left * 425 / 625], atol=1)


@given(density=st.floats(0, 1))
def test_erk_fills_layers_as_its_slow_twin_does(density):
    total = round(density * sum(SIZES))
    quotas = oracles.filled(total, [sum(shape) for shape in SHAPES], SIZES)
    counts = densities.erk(SHAPES, density=density)
    assert list(counts) == oracles.rounded(quotas, total)


@given(total=st.integers(0, 12))
def test_uniform_is_exact_where_shares_tie(total):
    counts = densities.uniform(((2,), (5,), (5,)), density=total / 12)
    assert list(counts) == oracles.shares(total, (2, 5, 5))


@given(total=st.integers(0, 83))
def test_igq_agrees_with_its_slow_twin_where_shares_tie(total):
    sizes = (2, 5, 5, 40, 31)
    counts = densities.igq(tuple((size,) for size in sizes), density=total / 83)
    assert list(counts) == oracles.igq(total, sizes)


@pytest.mark.parametrize("density", [0.5, 0.05, 0.001])
def test_one_force_acts_on_all_layers_of_igq(density):
    """(1 / density - 1) / size is F in each layer."""
    sizes = np.array([10**6, 3 * 10**6, 10**8])
    counts = densities.igq(tuple((int(size),) for size in sizes), density=density)
    force = (sizes / counts - 1) / sizes
    np.testing.assert_allclose(force, force[0], rtol=1e-3)


def test_igq_of_two_layers_solves_a_quadratic():
    """1 / (1 + F) + 4 / (1 + 4 F) = 2 at F = 1/2, in units of the smaller size."""
    counts = densities.igq(((3 * 10**6,), (12 * 10**6,)), density=0.4)
    assert counts == (2 * 10**6, 4 * 10**6)


@given(density=st.floats(LEAST + 1e-4, 1))
def test_uniform_plus_agrees_with_its_slow_twin(density):
    counts = UNIFORM_PLUS(SHAPES, density=density, paths=PATHS)
    total = round(density * sum(SIZES))
    assert list(counts) == oracles.uniform_plus(total, SIZES, first=3, last=1)


def test_uniform_plus_keeps_the_first_layer_and_a_fifth_of_the_last():
    assert UNIFORM_PLUS(SHAPES, density=0.12, paths=PATHS) == (690, 200, 1079, 4608)
    rule = densities.uniform_plus(first="a", last="c")
    assert rule(((2,), (20,), (11,)), density=7 / 33, paths="abc") == (2, 2, 3)  # 2 is below 20%
    counts = UNIFORM_PLUS(SHAPES, density=0.6, paths=PATHS)
    assert counts[3] == 4608
    np.testing.assert_allclose(np.divide(counts, SIZES)[:3], counts[0] / SIZES[0], atol=1e-3)


@given(density=st.floats(0.01, 1))
def test_smart_ratio_agrees_with_its_slow_twin(density):
    counts = SMART_RATIO(SHAPES, density=density, paths=PATHS)
    total = round(density * sum(SIZES))
    inside = [SIZES[PATHS.index(path)] for path in ORDER]
    assert [counts[PATHS.index(path)] for path in ORDER] == oracles.smart_ratio(total, inside)


def test_smart_ratio_falls_as_twenty_twelve_six_and_keeps_thirty_percent_of_the_classifier():
    """Of five layers, four keep shares of 5 * 6, 4 * 5, 3 * 4 and 2 * 3."""
    rule = densities.smart_ratio(tuple("edcba"))
    shapes = ((10, 10), *((100, 100),) * 4)
    counts = rule(shapes, density=(30 + 6800) / 40_100, paths=tuple("abcde"))
    assert counts == (30, 600, 1200, 2000, 3000)


@pytest.mark.parametrize("rule", [*RULES, UNIFORM_PLUS, SMART_RATIO])
@settings(max_examples=25)
@given(at=st.lists(st.floats(LEAST + 1e-4, 1), min_size=6, max_size=6))
def test_no_count_rises_from_round_to_round_and_each_sum_stays(rule, at):
    at = sorted(at, reverse=True)
    plan = densities.plan(rule, TREE, densities=at)
    assert plan.sum(axis=1).tolist() == [round(density * sum(SIZES)) for density in at]
    assert np.all(np.diff(plan, axis=0) <= 0)
    assert np.all((plan >= 0) & (plan <= SIZES))
    assert tuple(plan[-1]) == densities.counts(rule, TREE, density=at[-1])


@settings(max_examples=25)
@given(totals=st.lists(st.integers(0, 14), min_size=5, max_size=5))
def test_rounds_fall_where_largest_remainder_would_rise(totals):
    """With sizes 2, 6 and 6, it keeps 1 of the first at 11 in all, and 2 at 10."""
    totals = sorted(totals, reverse=True)
    tree = dict(zip("abc", map(np.ones, (2, 6, 6)), strict=True))
    at = [total / 14 for total in totals]
    plan = densities.plan(densities.uniform, tree, densities=at)
    assert densities.uniform(((2,), (6,), (6,)), density=10 / 14) == (2, 4, 4)
    assert densities.uniform(((2,), (6,), (6,)), density=11 / 14) == (1, 5, 5)
    assert densities.plan(densities.uniform, tree, densities=[11 / 14, 10 / 14])[0, 0] == 2
    assert plan.sum(axis=1).tolist() == totals
    assert np.all(np.diff(plan, axis=0) <= 0)


@settings(max_examples=25)
@given(at=st.lists(st.floats(LEAST + 1e-4, 1), min_size=4, max_size=4))
def test_rounds_of_uniform_plus_keep_its_promises(at):
    plan = densities.plan(UNIFORM_PLUS, TREE, densities=sorted(at, reverse=True))
    assert np.all(plan[:, 3] == 4608)
    assert np.all(plan[:, 1] >= 200)


def test_a_layer_that_must_be_dense_is_not_what_makes_up_for_one_that_would_rise():
    tree = dict(zip("abcd", map(np.ones, (50, 2, 6, 6)), strict=True))
    rule = densities.uniform_plus(first="a", last="b")
    plan = densities.plan(rule, tree, densities=[61 / 64, 60 / 64])
    assert plan.tolist() == [[50, 2, 4, 5], [50, 2, 4, 4]]


def test_a_rule_with_an_order_gets_the_paths_from_the_pruner(getkey):
    params = {path: np.ones((4, 5), np.float32) for path in PATHS}
    prune = pruning.pruner(
        criteria.random(),
        density=0.5,
        distribution=densities.uniform_plus(first="Stem", last="Dense_10"),
        schedule=schedules.linear,
        rounds=3,
    )
    kept = prune(params, None, key=getkey())
    assert jax.tree.map(lambda leaf: int(leaf.sum()), kept) == {
        **{"Dense_1": 7, "Dense_10": 7, "Dense_2": 6, "Stem": 20},
    }


@pytest.mark.parametrize("rule", RULES)
def test_scalars_and_layers_without_weights_have_their_place(rule):
    assert rule(((), (0, 4), (3,)), density=0.5) in ((0, 0, 2), (1, 0, 1))
    assert rule(((0,),), density=0.5) == (0,)
    assert rule(((),), density=1.0) == (1,)


def test_layers_without_weights_have_their_place_in_an_order():
    shapes, paths = ((0, 4), (3,), ()), ("a", "b", "c")
    for first, last in itertools.permutations("abc", 2):
        rule = densities.uniform_plus(first=first, last=last)
        assert rule(shapes, density=1, paths=paths) == (0, 3, 1)
    for layers in itertools.permutations("abc"):
        assert sum(densities.smart_ratio(layers)(shapes, density=0.5, paths=paths)) == 2


@pytest.mark.parametrize("rule", [*RULES, *ORDERED])
@pytest.mark.parametrize("density", [-0.1, 1.3, float("nan")])
def test_density_outside_its_range_is_refused(rule, density):
    with pytest.raises(ValueError, match=r"`density` must be in \[0, 1\], got"):
        rule(SHAPES, density=density)


@pytest.mark.parametrize(
    "shapes", [3, "ab", (4, 3), ((2.5,),), ((-1,),), (("a",),), ((np.nan, 2),)]
)
@pytest.mark.parametrize("rule", [*RULES, *ORDERED])
def test_what_is_no_sequence_of_shapes_is_refused(rule, shapes, unchecked):
    with pytest.raises(ValueError, match="`shapes` must be a sequence of tuples of whole numbers"):
        rule(shapes, density=0.5)


def test_a_density_too_low_for_what_a_rule_keeps_is_refused_with_the_least():
    match = r"at least 4808 of 54808 .* all of 'Stem' and a fifth of 'Dense_10', got 0\.05, which"
    with pytest.raises(ValueError, match=match):
        UNIFORM_PLUS(SHAPES, density=0.05, paths=PATHS)
    with pytest.raises(ValueError, match=r"at least 300 of 54808 .* 30% of 'Dense_10', got 0\.001"):
        SMART_RATIO(SHAPES, density=0.001, paths=PATHS)
    assert UNIFORM_PLUS(SHAPES, density=4808 / 54808, paths=PATHS) == (0, 200, 0, 4608)
    assert SMART_RATIO(SHAPES, density=300 / 54808, paths=PATHS) == (0, 300, 0, 0)


@pytest.mark.parametrize("layers", [None, 3, "Stem", ["Stem", 1]])
def test_layers_that_are_no_paths_are_refused(layers, unchecked):
    with pytest.raises(ValueError, match="`layers` must be the paths of two or more layers, in"):
        densities.smart_ratio(layers)
    with pytest.raises(ValueError, match="`first` and `last` must be the paths of two layers, got"):
        densities.uniform_plus(first=layers, last=3)


@pytest.mark.parametrize("layers", [(), ["Stem"], ["Stem", "Dense_1", "Stem"]])
def test_an_order_of_one_layer_or_with_one_twice_is_refused(layers):
    with pytest.raises(ValueError, match="two or more layers, in order, each once, got"):
        densities.smart_ratio(layers)
    with pytest.raises(ValueError, match="two layers, each once, got"):
        densities.uniform_plus(first="Stem", last="Stem")


def test_paths_that_do_not_fit_the_layers_are_named():
    def call(rule, paths=PATHS):
        return rule(SHAPES, density=0.5, paths=paths)

    with pytest.raises(ValueError, match=r"`last` names 'Dnse_10'.* nearest path is 'Dense_10'"):
        call(densities.uniform_plus(first="Stem", last="Dnse_10"))
    with pytest.raises(ValueError, match=r"`first` names 'Stam'.* nearest path is 'Stem'"):
        call(densities.uniform_plus(first="Stam", last="Dense_10"))
    with pytest.raises(ValueError, match=r"`layers` names 'Stam', which is not a layer"):
        call(densities.smart_ratio(("Stam", *ORDER)))
    with pytest.raises(ValueError, match="must name every layer in order, but lacks 'Dense_1'"):
        call(densities.smart_ratio(("Stem", "Dense_2", "Dense_10")))
    with pytest.raises(ValueError, match="`paths` must be one path per layer, 4, got"):
        call(SMART_RATIO, PATHS[:2])


@pytest.mark.parametrize(
    "wrong", [densities.uniform_plus, densities.smart_ratio, "erk", lambda shapes: (1,)]
)
def test_what_is_no_distribution_is_refused_when_the_pruner_is_made(wrong, unchecked):
    match = r"`distribution` must (take|be a function) \(shapes, \*, density\), got"
    with pytest.raises(ValueError, match=match):
        pruning.pruner(criteria.magnitude(), density=0.5, distribution=wrong)


@pytest.mark.parametrize("kept", [(1, 2), (1, 2, 3, 4.5), None, (-1, 2, 3, 4), 7])
def test_counts_of_a_distribution_that_are_not_one_per_layer_are_refused(kept, unchecked):
    with pytest.raises(ValueError, match="`distribution` must return a whole number per layer"):
        densities.counts(lambda shapes, *, density: kept, TREE, density=0.5)


@pytest.mark.parametrize(("at", "match"), [([0.1, 0.5], "fall"), ([], "one entry"), ([2], "0, 1")])
def test_densities_of_rounds_that_do_not_fall_are_refused(at, match):
    with pytest.raises(ValueError, match=rf"`densities` must .*{match}.*, got"):
        densities.plan(densities.erk, TREE, densities=at)
