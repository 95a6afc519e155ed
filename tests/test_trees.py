from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from nopr import trees

PARAMS = {
    "conv": {"kernel": np.ones((3, 3, 1, 2), np.float32), "bias": np.ones(2, np.float32)},
    "pos_embed": np.ones((4, 5), np.float32),
    "steps": np.ones((2, 2), np.int32),
    "dense": [{"kernel": np.ones((2, 4), np.float32)}, None],
}


def test_default_selection_takes_floating_matrices_and_leaves_out_position_embeddings():
    assert trees.paths(trees.select(PARAMS)) == ("conv/kernel", "dense/0/kernel")


def test_everything_takes_biases_too_but_no_integers():
    chosen = trees.paths(trees.select(PARAMS, trees.everything))
    assert chosen == ("conv/bias", "conv/kernel", "dense/0/kernel", "pos_embed")


def test_selection_of_nothing_is_refused_and_lists_what_there_is():
    with pytest.raises(ValueError, match=r"No leaf of `params` is prunable, of 2 \('a', 'b'\)"):
        trees.select({"a": np.ones(3), "b": np.ones(2)})


def test_selection_works_on_an_nnx_state():
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    masks = trees.full_masks(state)
    assert trees.paths(masks) == ("kernel",)
    assert isinstance(masks, nnx.State)


def test_map_prunable_skips_none_and_accepts_full_params():
    masks = trees.full_masks(PARAMS)
    scaled = trees.map_prunable(lambda m, p: 2 * p * m, masks, PARAMS)
    assert trees.paths(scaled) == trees.paths(masks)
    np.testing.assert_array_equal(scaled["dense"][0]["kernel"], 2 * np.ones((2, 4)))


def test_map_prunable_names_the_leaf_that_is_missing():
    with pytest.raises(ValueError, match="no leaf at 'b' among 'a'"):
        trees.map_prunable(lambda a, b: a, {"a": 1.0, "b": 2.0}, {"a": 1.0})


@pytest.mark.parametrize("rest", [{"a": np.ones((2, 1))}, {"a": np.ones((2, 1)), "b": np.ones(3)}])
def test_map_prunable_names_the_leaf_of_another_shape(rest):
    with pytest.raises(ValueError, match=r"shape \(2, 1\) at 'a', where the first tree has \(2,\)"):
        trees.map_prunable(lambda a, b: a * b, {"a": np.ones(2)}, rest)


@pytest.mark.parametrize("value", [2.0, np.float32(2), np.array(2.0)], ids=["float", "np", "array"])
def test_map_prunable_takes_scalars_on_either_side(value):
    array = np.ones((2, 3))
    for one, two in ((array, value), (value, array)):
        found = trees.map_prunable(lambda a, b: a * b, {"a": one}, {"a": two})
        np.testing.assert_array_equal(found["a"], 2 * array)


def test_two_leaves_at_one_path_are_refused_by_name():
    one, two = {"a/b": np.ones(2)}, {"a/b": np.ones(2), "a": {"b": np.zeros(2)}}
    with pytest.raises(ValueError, match="`params` has two leaves at 'a/b'"):
        trees.check_matches(one, two)
    with pytest.raises(ValueError, match="`masks` has two leaves at 'a/b'"):
        trees.check_matches(two, one)
    with pytest.raises(ValueError, match="`params` has two leaves at 'a/b'"):
        trees.overlay(lambda p, m: p, two, two)
    with pytest.raises(ValueError, match="`rest` has two leaves at 'a/b'"):
        trees.map_prunable(lambda m, p: p, one, two)


def test_overlay_changes_prunable_leaves_only():
    masks = trees.full_masks(PARAMS)
    changed = trees.overlay(lambda p, m: p + 1, PARAMS, masks)
    assert jax.tree.structure(changed) == jax.tree.structure(PARAMS)
    np.testing.assert_array_equal(changed["conv"]["kernel"], 2 * np.ones((3, 3, 1, 2)))
    assert changed["conv"]["bias"] is PARAMS["conv"]["bias"]


@pytest.mark.parametrize(
    ("masks", "match"),
    [
        ({"b": np.ones(2)}, "`masks` has a leaf at 'b' that `params` lacks"),
        ({"a": np.ones(3)}, r"`masks` has shape \(3,\) at 'a', where `params` has \(2,\)"),
    ],
)
def test_trees_that_do_not_match_name_the_leaf(masks, match):
    with pytest.raises(ValueError, match=match):
        trees.overlay(lambda p, m: p, {"a": np.ones(2)}, masks)


def test_check_same_finds_a_leaf_missing_on_either_side():
    one, two = {"a": np.ones(2)}, {"a": np.ones(2), "b": np.ones(1)}
    for left, right in ((one, two), (two, one)):
        with pytest.raises(ValueError, match="has a leaf at 'b' that"):
            trees.check_same(left, right, name="left", other="right")


def test_ravel_and_its_way_back_are_inverse():
    tree = {"b": jnp.arange(6).reshape(2, 3) > 2, "a": None, "c": jnp.arange(2) > 0}
    vector, unravel = trees.ravel(tree)
    assert vector.dtype == bool
    jax.tree.map(np.testing.assert_array_equal, unravel(vector), tree)
    jax.tree.map(np.testing.assert_array_equal, unravel(vector * 2.5)["c"], np.array([0, 2.5]))


@given(
    sizes=st.lists(st.integers(1, 40), min_size=4, max_size=4),
    share=st.floats(0, 1, allow_nan=False),
)
def test_largest_remainder_is_exact(sizes, share):
    total = round(share * sum(sizes))
    quotas = [Fraction(total * size, sum(sizes)) for size in sizes]
    assert list(trees.largest_remainder(quotas, total)) == oracles.shares(total, sizes)


def test_largest_remainder_gives_to_the_earlier_of_equals():
    quotas = [Fraction(4 * size, 12) for size in (2, 5, 5)]  # 2/3, 5/3, 5/3: floats break the tie
    assert trees.largest_remainder(quotas, 4) == (1, 2, 1)


def test_largest_remainder_refuses_quotas_that_do_not_sum_to_the_total():
    with pytest.raises(ValueError, match=r"must sum to `total` = 9, got 2\.0"):
        trees.largest_remainder([1, 1], 9)


@pytest.mark.parametrize("kind", [object, str])
def test_arrays_of_objects_and_text_are_refused_by_name(kind):
    with pytest.raises(ValueError, match=r"`params` has an array of dtype .* at 'w'. Convert it"):
        trees.by_path({"w": np.array(["1", "2"], kind)}, "params")


@pytest.mark.parametrize("value", ["text", [[1], [2, 3]], None, {}, jax.random.key(0), print])
def test_what_is_no_array_of_numbers_is_refused(value):
    with pytest.raises(ValueError, match="`inputs` must be an array of numbers, got"):
        trees.numbers(value, "inputs")


def test_masked_arrays_are_no_arrays_of_numbers():
    with pytest.raises(ValueError, match="got a masked array, whose mask would be lost"):
        trees.numbers(np.ma.masked_array([1, 2], [0, 1]), "inputs")
