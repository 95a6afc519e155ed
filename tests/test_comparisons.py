"""Paired tests over seeds, and their correction."""

import numpy as np
import pytest
from scipy import stats

from nopr.lab import comparisons


def test_the_paired_test_is_that_of_scipy(rng):
    one, other = rng.normal(size=(2, 6))
    found = comparisons.paired(one, other)
    expected = stats.ttest_rel(one, other)
    low, high = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    mean, half, n = found.interval
    np.testing.assert_allclose([mean - half, mean + half, n], [low, high, 6])


@pytest.mark.parametrize(
    ("one", "other", "p_value"),
    [([1.0, 2.0], [0.0, 1.0], 0.0), ([1.0, 2.0], [1.0, 2.0], 1.0), ([3.0], [1.0], 1.0)],
    ids=["all differ by the same", "none differs", "one pair"],
)
def test_pairs_without_spread_have_the_p_values_that_they_deserve(one, other, p_value):
    assert comparisons.paired(one, other).p_value == p_value


def test_results_of_other_seeds_are_refused():
    with pytest.raises(ValueError, match=r"vectors of one length, got shapes \(2,\) and \(3,\)"):
        comparisons.paired([1.0, 2.0], [1.0, 2.0, 3.0])


def test_holm_multiplies_by_what_is_left_and_never_falls():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, made not to fall.
    found = comparisons.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(comparisons.holm([0.6, 0.9]), [1.0, 1.0])
