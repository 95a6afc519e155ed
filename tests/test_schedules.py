import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopr import schedules

ALL = [schedules.one_shot, schedules.linear, schedules.exponential, schedules.cubic]


@pytest.mark.parametrize("make", ALL)
def test_schedules_start_at_the_initial_density_fall_and_end_at_the_target(make):
    at = make(density=0.05, steps=10, initial=0.8)
    values = [at(step) for step in range(13)]
    assert [values[0], *values[10:]] == [0.8, 0.05, 0.05, 0.05]
    assert np.all(np.diff(values) <= 0)


@pytest.mark.parametrize("make", ALL)
@given(ends=st.tuples(st.floats(0, 1), st.floats(0.01, 1)), steps=st.integers(1, 50))
def test_every_schedule_ends_at_exactly_its_density(make, ends, steps):
    density, initial = min(ends), max(ends)
    assert make(density=density, steps=steps, initial=initial)(steps) == density


def test_linear_falls_by_equal_differences_and_exponential_by_equal_ratios():
    linear = schedules.linear(density=0.2, steps=4)
    exponential = schedules.exponential(density=0.01, steps=100)
    np.testing.assert_allclose([linear(t) for t in range(5)], [1, 0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose([exponential(t) for t in (50, 100)], [0.1, 0.01])


def test_cubic_is_the_formula_of_gradual_magnitude_pruning():
    at = schedules.cubic(density=0.1, steps=8)
    sparsity = [0.9 + (0 - 0.9) * (1 - t / 8) ** 3 for t in range(9)]
    np.testing.assert_allclose([at(t) for t in range(9)], 1 - np.array(sparsity))


def test_one_shot_waits_for_its_last_step():
    at = schedules.one_shot(density=0.3, steps=2)
    assert [at(0), at(1), at(2)] == [1.0, 1.0, 0.3]


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"density": 1.3, "steps": 2}, r"`density` must be in \[0, 1\], got 1.3"),
        ({"density": "0.5", "steps": 2}, r"`density` must be in \[0, 1\], got '0.5'"),
        ({"density": 0.5, "steps": 0}, "`steps` must be a whole number of at least 1, got 0"),
        ({"density": 0.5, "steps": 2, "initial": 0.3}, "at least `density`, got 0.3"),
    ],
)
def test_bad_schedules_are_refused(make, options, match, unchecked):
    with pytest.raises(ValueError, match=match):
        make(**options)
