import math

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopr import densities

SHAPES = ((64, 300), (300, 100), (100, 10), (3, 3, 16, 32))
RULES = [densities.uniform, densities.erk]


@pytest.mark.parametrize("rule", RULES)
@given(density=st.floats(0, 1))
def test_counts_sum_exactly_and_fit_their_layers(rule, density):
    counts = rule(SHAPES, density=density)
    sizes = [math.prod(shape) for shape in SHAPES]
    assert sum(counts) == round(density * sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))


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


@given(total=st.integers(0, 12))
def test_uniform_is_exact_where_shares_tie(total):
    counts = densities.uniform(((2,), (5,), (5,)), density=total / 12)
    assert list(counts) == oracles.shares(total, (2, 5, 5))


@pytest.mark.parametrize("rule", RULES)
def test_scalars_and_layers_without_weights_have_their_place(rule):
    assert rule(((), (0, 4), (3,)), density=0.5) in ((0, 0, 2), (1, 0, 1))
    assert rule(((0,),), density=0.5) == (0,)
    assert rule(((),), density=1.0) == (1,)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("density", [-0.1, 1.3, float("nan")])
def test_density_outside_its_range_is_refused(rule, density):
    with pytest.raises(ValueError, match=r"`density` must be in \[0, 1\], got"):
        rule(SHAPES, density=density)


@pytest.mark.parametrize(
    "shapes", [3, "ab", (4, 3), ((2.5,),), ((-1,),), (("a",),), ((np.nan, 2),)]
)
@pytest.mark.parametrize("rule", RULES)
def test_what_is_no_sequence_of_shapes_is_refused(rule, shapes, unchecked):
    with pytest.raises(ValueError, match="`shapes` must be a sequence of tuples of whole numbers"):
        rule(shapes, density=0.5)
