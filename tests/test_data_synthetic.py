"""Cube datasets against closed forms and against all ordered draws."""

import functools
import itertools
import math
from collections import Counter

import jax
import numpy as np
import pytest

from nopr.data import synthetic

PUBLISHED = [
    ("distinct", 1792, 10.81),
    ("label_per_draw", 54264, 15.41),
    ("label_per_point", 27008, 14.67),
]


def rows(datasets):
    """Each dataset as a sorted tuple of (point, label)."""
    inputs, labels = datasets
    return [
        tuple(sorted((*map(int, point), int(y)) for point, y in zip(x, ys, strict=True)))
        for x, ys in zip(np.asarray(inputs), np.asarray(labels), strict=True)
    ]


def every_draw(dimension, points, law):
    """The probability of each multiset, by walking through all ordered draws."""
    corners = list(itertools.product((-1, 1), repeat=dimension))
    signs = (-1, 1)
    if law == "label_per_point":
        draws = (
            [(*corner, labels[corners.index(corner)]) for corner in chosen]
            for chosen in itertools.product(corners, repeat=points)
            for labels in itertools.product(signs, repeat=len(corners))
        )
    else:
        draws = (
            [(*corner, label) for corner, label in zip(chosen, labels, strict=True)]
            for chosen in itertools.product(corners, repeat=points)
            for labels in itertools.product(signs, repeat=points)
            if law != "distinct" or len(set(chosen)) == points
        )
    counts = Counter(tuple(sorted(draw)) for draw in draws)
    total = sum(counts.values())
    return {dataset: count / total for dataset, count in counts.items()}


@pytest.mark.parametrize(("law", "number", "bits"), PUBLISHED)
def test_six_points_of_the_cube_have_the_published_number_and_entropy(law, number, bits):
    result = synthetic.cube(law=law)
    inputs, labels = result.datasets
    assert inputs.shape == (number, 6, 3)
    assert labels.shape == (number, 6)
    assert inputs.dtype == labels.dtype == np.float32
    assert result.weights.dtype == np.float64
    assert set(np.unique(inputs)) == set(np.unique(labels)) == {-1, 1}
    np.testing.assert_allclose(result.weights.sum(), 1, rtol=1e-13)
    assert round(result.entropy_bits, 2) == bits


def test_distinct_points_have_the_closed_form():
    result = synthetic.cube(dimension=4, points=3)
    number = math.comb(16, 3) * 2**3
    np.testing.assert_array_equal(result.weights, np.full(number, 1 / number))
    np.testing.assert_allclose(result.entropy_bits, math.log2(number), rtol=1e-13)


@pytest.mark.parametrize("law", synthetic.LAWS)
def test_the_weights_are_those_of_all_ordered_draws(law):
    result = synthetic.cube(dimension=2, points=3, law=law)
    expected = every_draw(2, 3, law)
    found = dict(zip(rows(result.datasets), result.weights, strict=True))
    assert found.keys() == expected.keys()
    assert len(found) == len(result.weights)
    for dataset, probability in expected.items():
        np.testing.assert_allclose(found[dataset], probability, rtol=1e-12)


@functools.partial(jax.jit, static_argnames="law")
def sample(key, law):
    return synthetic.sample_cube(4000, dimension=2, points=2, law=law, key=key)


@pytest.mark.parametrize("law", synthetic.LAWS)
def test_samples_follow_the_enumerated_weights(law, getkey):
    result = synthetic.cube(dimension=2, points=2, law=law)
    sampled = sample(getkey(), law)
    index = {row.tobytes(): i for i, row in enumerate(flat(result.datasets))}
    hits = np.bincount([index[row.tobytes()] for row in flat(sampled)], minlength=len(index))
    expected = len(sampled[0]) * result.weights
    chi_squared = np.sum((hits - expected) ** 2 / expected)
    freedom = len(index) - 1
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)


def flat(datasets):
    inputs, labels = map(np.asarray, datasets)
    return np.concatenate([inputs.reshape(len(inputs), -1), labels], axis=1)


def test_sampling_is_pure_in_its_key(getkey):
    key = getkey()
    for first, again, other in zip(
        *(sample(k, "distinct") for k in (key, key, getkey())), strict=True
    ):
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_more_distinct_points_than_corners_are_refused():
    with pytest.raises(ValueError, match=r"`points` must be at most 2\^3 = 8 .* got 9\."):
        synthetic.cube(points=9)
    assert len(synthetic.cube(points=8).weights) == 256


def test_an_unknown_law_lists_the_known_ones():
    with pytest.raises(ValueError, match="distinct, label_per_draw, label_per_point, got 'iid'"):
        synthetic.cube(law="iid")


@pytest.mark.parametrize("option", ["dimension", "points"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(ValueError, match=rf"`{option}` must be .* got 0\."):
        synthetic.cube(**{option: 0})


def test_an_enumeration_too_large_is_refused_before_it_begins():
    with pytest.raises(ValueError, match=r"than the 4194304 .* `sample_cube`"):
        synthetic.cube(dimension=6, points=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 2.5}, "`points` must be a whole number of at least 1, got 2.5"),
        ({"points": 2**40}, "`points` must be a whole number of at most 4,194,304, got"),
        ({"dimension": 2**40}, "`dimension` must be a whole number of at most 29, got"),
        ({"law": ["distinct"]}, "`law` must be one of .*, got \\['distinct'\\]"),
        ({"dimension": 20, "points": 2**20}, "than the 4194304 that can be enumerated"),
    ],
)
def test_sizes_that_would_never_end_are_refused_at_once(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        synthetic.cube(**options)


def test_draws_need_a_whole_number_and_a_key(unchecked):
    with pytest.raises(ValueError, match="`count` must be a whole number of at least 1, got -1"):
        synthetic.sample_cube(-1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="`key` must be a key of JAX, got 0"):
        synthetic.sample_cube(2, key=0)


@pytest.mark.long
def test_small_integer_types_do_not_wrap(unchecked):
    small = synthetic.sample_cube(
        3, dimension=np.uint8(9), points=np.int8(4), key=jax.random.key(0)
    )
    plain = synthetic.sample_cube(3, dimension=9, points=4, key=jax.random.key(0))
    np.testing.assert_array_equal(small[0], plain[0])
