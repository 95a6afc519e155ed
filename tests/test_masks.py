import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import checkify

from nopr import masks

pytestmark = pytest.mark.usefixtures("strict_promotion")

TIED = st.lists(
    st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1e-45, 1.0, 3e38]), min_size=12, max_size=12
)
ALIVE = st.lists(st.booleans(), min_size=12, max_size=12)
SIZES = (2, 5, 5)
top_jit = jax.jit(lambda scores, k: masks.top(scores, count=k))
top_alive_jit = jax.jit(lambda scores, k, alive: masks.top(scores, count=k, masks=alive))
layers_jit = jax.jit(lambda scores, k: masks.top(scores, count=k, scope="layer"))


def tree(flat):
    flat = jnp.asarray(flat, jnp.float32)
    return {"a": flat[:8].reshape(2, 4), "skip": None, "z": [flat[8:]]}


def flat(kept):
    return np.concatenate([kept["a"].reshape(-1), kept["z"][0]])


@pytest.mark.long
@given(scores=TIED, k=st.integers(0, 12))
def test_top_agrees_with_sorting_when_scores_tie(scores, k):
    expected = oracles.top(scores, k)
    np.testing.assert_array_equal(flat(masks.top(tree(scores), count=k, warn=False)), expected)
    np.testing.assert_array_equal(flat(top_jit(tree(scores), k)), expected)


@given(scores=TIED, alive=ALIVE, k=st.integers(0, 12))
def test_a_removed_weight_never_comes_back(scores, alive, k):
    kept = {"a": np.reshape(alive[:8], (2, 4)), "skip": None, "z": [np.array(alive[8:])]}
    expected = oracles.top(scores, k, alive)
    np.testing.assert_array_equal(flat(top_alive_jit(tree(scores), k, kept)), expected)


@pytest.mark.long
@given(scores=TIED, k=st.integers(0, 12))
def test_layer_shares_are_exact_traced_or_not_under_ties_or_not(scores, k):
    ends = np.cumsum(SIZES)[:-1]
    layers = dict(zip("abc", np.split(np.array(scores, np.float32), ends), strict=True))
    wanted = oracles.shares(k, SIZES)
    expected = {n: oracles.top(s, c) for (n, s), c in zip(layers.items(), wanted, strict=True)}
    by_path = dict(zip("abc", wanted, strict=True))
    for kept in (
        masks.top(layers, count=k, scope="layer", warn=False),
        masks.top(layers, count=by_path, scope="layer"),
        layers_jit(layers, k),
        layers_jit(layers, {path: np.int32(n) for path, n in by_path.items()}),
    ):
        jax.tree.map(np.testing.assert_array_equal, kept, expected)


@given(
    scores=st.lists(
        st.floats(width=64, allow_nan=False, allow_infinity=False), min_size=9, max_size=9
    ),
    k=st.integers(0, 9),
)
def test_float64_scores_are_ranked_in_float64_whatever_the_precision(scores, k):
    array = np.array(scores, np.float64)
    kept = masks.top({"w": array}, count=k)["w"]
    np.testing.assert_array_equal(kept, oracles.top(array, k))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_scores_are_ranked_without_rounding(dtype, rng):
    scores = jnp.asarray(rng.normal(size=200), dtype)
    kept = masks.top({"w": scores}, count=77)["w"]
    np.testing.assert_array_equal(kept, oracles.top(np.asarray(scores, np.float64), 77))


N = 40_000  # more than bisection is used for
MANY = {
    "normal": lambda rng: rng.normal(size=N),
    "powers": lambda rng: rng.normal(size=N) * 10.0 ** rng.uniform(-30, 30, N),
    "subnormal": lambda rng: rng.integers(-3, 4, N) * 1e-45,
    "consecutive": lambda rng: rng.permutation(1 + np.arange(N) * 2.0**-23),
    "with equal upper halves": lambda rng: 1 + rng.integers(0, 30_000, N) * 2.0**-52,
    "with few upper halves": lambda rng: (
        2.0 ** rng.integers(0, 9, N) * (1 + rng.integers(0, 3, N) * 2.0**-52)
    ),
    "of few values": lambda rng: rng.integers(0, 50, N).astype(float),
    "mostly in pairs": lambda rng: rng.integers(0, N // 2, N).astype(float),
    "mostly zero": lambda rng: np.maximum(rng.normal(size=N) - 1, 0),
    "zero of either sign": lambda rng: np.where(rng.random(N) < 0.5, -0.0, 0.0),
    "all equal": lambda rng: np.ones(N),
}
top_many = jax.jit(lambda scores, k, alive: masks.top(scores, count=k, masks=alive, warn=False))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", MANY)
def test_many_scores_are_chosen_as_sorting_does(kind, dtype, rng):
    scores, alive = MANY[kind](rng).astype(dtype), rng.random(N) < 0.6
    for k in (0, 1, 100, N // 3, alive.sum() - 1, alive.sum()):
        with jax.enable_x64(dtype == np.float64):  # otherwise jit makes them float32
            kept = top_many({"w": scores}, k, {"w": alive})["w"]
        np.testing.assert_array_equal(kept, oracles.top(scores, k, alive), err_msg=f"{k=}")


@pytest.mark.long
def test_many_scores_under_vmap_are_chosen_as_in_a_loop(rng):
    scores = np.stack([MANY[kind](rng) for kind in MANY]).astype(np.float32)
    counts = np.arange(len(scores)) * 5000
    kept = jax.vmap(lambda row, k: masks.top({"w": row}, count=k, warn=False)["w"])(scores, counts)
    for row, k, found in zip(scores, counts, kept, strict=True):
        np.testing.assert_array_equal(found, oracles.top(row, k))


@pytest.mark.long
def test_many_scores_can_be_checked_under_vmap_and_differentiated_through(rng):
    rows = rng.normal(size=(2, N)).astype(np.float32)

    def product(row):
        return jnp.sum(masks.apply({"w": row}, masks.top({"w": row}, count=9, warn=False))["w"])

    error, sums = checkify.checkify(jax.vmap(product), errors=checkify.user_checks)(rows)
    assert error.get() is None
    np.testing.assert_allclose(sums, np.sort(rows)[:, -9:].sum(1), rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(product)(rows[0]), oracles.top(rows[0], 9))


def test_nan_of_either_sign_ranks_highest_among_many(rng):
    scores = rng.normal(size=N).astype(np.float32)
    scores[[5, 70]] = np.float32(np.nan), -np.float32(np.nan)
    kept = top_many({"w": scores}, 100, None)["w"]
    expected = oracles.top(np.where(np.isnan(scores), np.inf, scores), 100)
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("k", [0, 1, 5000, 12_345, 20_000])
def test_long_ties_keep_the_first_in_flat_order(k, rng):
    scores = rng.integers(0, 2, size=20_000).astype(np.float32)
    kept = masks.top({"w": scores}, count=k)["w"]
    np.testing.assert_array_equal(kept, oracles.top(scores, k))


@pytest.mark.parametrize("n", [1, 3, 4, 15])
def test_ties_keep_the_first_whatever_the_number_of_weights(n):
    for k in range(n + 1):
        kept = top_jit({"w": jnp.ones(n)}, k)["w"]
        np.testing.assert_array_equal(kept, np.arange(n) < k)


def test_a_count_of_zero_keeps_nothing_even_of_nan_under_a_trace():
    assert not top_jit({"w": jnp.full(3, jnp.nan)}, 0)["w"].any()


def test_constant_scores_keep_the_count_and_not_everything_or_nothing():
    assert int(masks.count(masks.top({"w": np.ones(10, np.float32)}, density=0.2))) == 2


def test_layer_counts_may_be_given_one_by_one():
    scores = {"a": np.arange(4, dtype=np.float32), "b": np.arange(3, dtype=np.float32)}
    kept = masks.top(scores, count=[1, 2], scope="layer")
    np.testing.assert_array_equal(kept["a"], [False, False, False, True])
    np.testing.assert_array_equal(kept["b"], [False, True, True])


def test_densities_may_be_given_by_path():
    scores = {"a": np.arange(40, dtype=np.float32), "b": np.arange(30, dtype=np.float32)}
    kept = masks.top(scores, density={"b": 0.1, "a": 0.5}, scope="layer")
    assert [int(layer.kept) for layer in masks.by_layer(kept).values()] == [20, 3]


@pytest.mark.parametrize(
    ("dtype", "k", "expected"),
    [
        (jnp.uint8, 100, 100),
        (jnp.uint8, 255, 255),
        (jnp.int8, -3, 0),
        (jnp.int16, 300, 300),
        (jnp.uint32, 2**32 - 1, 300),
        (jnp.int32, -1, 0),
    ],
)
def test_a_traced_count_of_any_integer_dtype_is_clipped_and_does_not_wrap(dtype, k, expected):
    scores = {"w": jnp.arange(300.0)}
    assert int(masks.count(top_jit(scores, jnp.asarray(k, dtype)))) == expected
    assert int(masks.count(layers_jit(scores, jnp.asarray(k, dtype)))) == expected


@pytest.mark.parametrize("density", [True, 0.5j, np.array([0.5])], ids=str)
def test_a_traced_density_is_one_real_number(density):
    with pytest.raises(ValueError, match="`density` must be one"):
        jax.jit(lambda d: masks.top({"w": jnp.arange(4.0)}, density=d))(density)


def test_a_traced_float_is_not_a_count():
    with pytest.raises(ValueError, match=r"A traced `count` must be one integer, got float32"):
        top_jit({"w": jnp.arange(5.0)}, jnp.float32(2.7))


@pytest.mark.parametrize("bad", [np.nan, 1.5, -0.1])
def test_a_traced_density_out_of_range_is_flagged_by_checkify(bad):
    scores = {"w": jnp.arange(4.0)}
    check = checkify.checkify(lambda d: masks.top(scores, density=d), errors=checkify.user_checks)
    error, kept = jax.jit(check)(bad)
    assert "`density` must be in [0, 1]" in error.get()
    assert int(masks.count(kept)) == (4 if bad > 1 else 0)


def _shapes(dtype, *paths):
    return {path: jax.ShapeDtypeStruct((2**15, 2**15), dtype) for path in paths}


def test_leaves_past_int32_are_refused_by_name():
    big = {"w": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}
    with pytest.raises(ValueError, match="at most 2147483647 weights, got 2147483648 at 'w'"):
        jax.eval_shape(lambda scores: masks.top(scores, count=5), big)


@pytest.mark.parametrize("budget", [{"count": 5}, {"density": 0.5}], ids=str)
def test_layers_that_are_past_int32_together_share_a_concrete_budget_only(budget):
    big, (name,) = _shapes(jnp.float32, "v", "w"), budget
    kept = jax.eval_shape(lambda scores: masks.top(scores, scope="layer", **budget), big)
    assert kept == _shapes(bool, "v", "w")
    with pytest.raises(ValueError, match=f"A traced `{name}` can be shared by at most 2147483647"):
        jax.eval_shape(lambda s, k: masks.top(s, scope="layer", **{name: k}), big, budget[name])


@pytest.mark.parametrize("use", [masks.count, masks.density])
def test_masks_past_int32_are_counted_by_layer_only(use):
    big = _shapes(bool, "v", "w")
    with pytest.raises(ValueError, match=r"At most 2147483647 .* got 2147483648\. Count layer by"):
        jax.eval_shape(use, big)
    assert jax.eval_shape(lambda kept: masks.by_layer(kept)["w"].kept, big).shape == ()


def test_a_layer_without_weights_keeps_none():
    scores = {"a": np.ones((0, 3), np.float32), "b": np.arange(4, dtype=np.float32)}
    for options in ({"density": 0.5}, {"count": 2}, {"count": {"a": 0, "b": 2}}):
        kept = masks.top(scores, scope="layer", **options)
        np.testing.assert_array_equal(kept["b"], [False, False, True, True])


@pytest.mark.long
def test_density_may_be_traced_and_vmapped():
    scores = {"w": np.arange(40, dtype=np.float32)}
    counts = jax.vmap(lambda d: masks.count(masks.top(scores, density=d)))(
        jnp.array([0.0, 0.25, 0.5, 1.0])
    )
    np.testing.assert_array_equal(counts, [0, 10, 20, 40])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"density": 1.3}, r"`density` must be in \[0, 1\], got 1.3"),
        ({"density": True}, r"`density` must be in \[0, 1\], got True"),
        ({"density": "0.1"}, r"`density` must be in \[0, 1\], got '0.1'"),
        ({"density": -0.1}, r"`density` must be in \[0, 1\], got -0.1"),
        ({"density": float("nan")}, r"`density` must be in \[0, 1\], got nan"),
        ({"count": 13}, "`count` must be a whole number from 0 to 12, the weights alive, got 13"),
        ({"count": -1}, "`count` must be a whole number from 0 to 12, .* got -1"),
        ({"count": 1.5}, "`count` must be a whole number .* got 1.5"),
        ({}, "Give exactly one of `density` and `count`"),
        ({"density": 0.1, "count": 1}, "Give exactly one of `density` and `count`"),
        ({"count": "3"}, "`count` must be a whole number .* got '3'"),
        ({"count": True}, "`count` must be a whole number .* got True"),
        ({"count": 2**32 + 5}, "`count` must be a whole number from 0 to 12, .* got 4294967301"),
        ({"count": 2**70}, "`count` must be a whole number from 0 to 12, .* got 1180591620717411"),
        ({"count": np.nan}, "`count` must be a whole number .* got nan"),
        ({"count": [1, 2]}, "`count` must be one number with scope='global'"),
        ({"count": [1, 2, 3], "scope": "layer"}, "must be one number or 2, one per layer, got 3"),
        ({"count": 99, "scope": "layer"}, "`count` must be a whole number from 0 to 12"),
        ({"count": 2.5, "scope": "layer"}, "`count` must be a whole number .* got 2.5"),
        ({"count": -0.5, "scope": "layer"}, "`count` must be a whole number .* got -0.5"),
        ({"count": "3", "scope": "layer"}, "`count` must be a whole number .* got '3'"),
        ({"count": [1, 2.5], "scope": "layer"}, "from 0 to 4, .* at 'z/0', got 2.5"),
        ({"count": {"a": 1, "z": 1}, "scope": "layer"}, "`count` has 'z', which is not a layer"),
        ({"density": {"a": 0.1}, "scope": "layer"}, "`density` has no entry for 'z/0'"),
        ({"density": [0.1, 1.5], "scope": "layer"}, r"`density` must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_counts_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        masks.top(tree(np.arange(12)), **options)


def test_an_unknown_scope_is_refused(unchecked):
    with pytest.raises(ValueError, match="`scope` must be one of 'global', 'layer'"):
        masks.top(tree(np.arange(12)), density=0.1, scope="galaxy")


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_concrete_scores_that_are_not_finite_raise_and_name_the_leaf(bad):
    scores = tree(np.arange(12))
    scores["z"][0] = scores["z"][0].at[1].set(bad)
    with pytest.raises(ValueError, match="has NaN or infinite values at 'z/0'"):
        masks.top(scores, count=3)


def test_traced_scores_that_are_not_finite_are_flagged_by_checkify_case_by_case():
    scores = jnp.ones((3, 5)).at[1, 2].set(jnp.nan)
    check = checkify.checkify(lambda s: masks.top({"w": s}, count=2), errors=checkify.user_checks)
    error, _ = jax.jit(jax.vmap(check))(scores)
    assert error.get().startswith("at mapped index 1: `scores` has NaN")
    assert "index 0" not in error.get()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_of_either_sign_ranks_highest_under_a_trace(sign):
    scores = jnp.array([1.0, 5.0, 3.0]).at[2].set(jnp.copysign(jnp.float32(jnp.nan), sign))
    np.testing.assert_array_equal(top_jit({"w": scores}, 1)["w"], [False, False, True])


def test_integer_scores_and_empty_trees_are_refused():
    with pytest.raises(ValueError, match="must be floating, got int32 at 'w'"):
        masks.top({"w": np.ones(3, np.int32)}, count=1)
    with pytest.raises(ValueError, match="has no leaf"):
        masks.top({"w": None}, count=1)


def test_masks_that_do_not_match_name_the_leaf():
    with pytest.raises(ValueError, match="`masks` has shape"):
        masks.top({"w": np.ones(3, np.float32)}, count=1, masks={"w": np.ones(4, bool)})


def test_more_than_is_alive_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1, the weights alive, got 2"):
        masks.top({"w": np.ones(2, np.float32)}, count=2, masks={"w": np.array([True, False])})


def test_apply_zeroes_pruned_weights_and_no_other_leaf():
    params = {"kernel": np.array([[1.0, np.nan], [3.0, -4.0]], np.float32), "bias": np.ones(2)}
    kept = {"kernel": np.array([[True, False], [False, True]]), "bias": None}
    applied = masks.apply(params, kept)
    np.testing.assert_array_equal(applied["kernel"], [[1, 0], [0, -4]])
    assert applied["bias"] is params["bias"]
    assert not np.signbit(applied["kernel"]).ravel()[:3].any()


def test_apply_works_on_an_nnx_state_and_names_a_leaf_that_does_not_match():
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    kept = masks.top({"k": jnp.abs(state.kernel[...])}, density=0.5)
    scores = jax.tree.map(lambda x: jnp.abs(x) if x.ndim == 2 else None, state)
    applied = masks.apply(state, masks.top(scores, density=0.5))
    assert int(jnp.sum(applied.kernel[...] != 0)) == int(masks.count(kept)) == 6
    with pytest.raises(ValueError, match=r"shape \(2, 2\) at 'kernel'"):
        masks.apply({"kernel": np.ones((3, 4))}, {"kernel": np.ones((2, 2), bool)})


def test_combine_keeps_what_all_keep_or_what_any_keeps():
    a, b = (
        {"w": np.array(bits), "b": None} for bits in ([True, True, False], [True, False, False])
    )
    np.testing.assert_array_equal(masks.combine(a, b)["w"], [True, False, False])
    np.testing.assert_array_equal(masks.combine(a, b, rule=jnp.logical_or)["w"], a["w"])
    with pytest.raises(ValueError, match="shape"):
        masks.combine(a, {"w": np.ones(2, bool), "b": None})
    with pytest.raises(ValueError, match="at least one mask tree"):
        masks.combine()


def test_counts_and_densities_by_layer_add_up():
    kept = {"a": np.array([[True, False]]), "b": None, "c": np.array([True, True, False])}
    layers = masks.by_layer(kept)
    assert list(layers) == ["a", "c"]
    assert [(int(x.kept), x.size) for x in layers.values()] == [(1, 2), (2, 3)]
    assert int(masks.count(kept)) == 3
    assert masks.size(kept) == 5
    np.testing.assert_allclose(masks.density(kept), 0.6, rtol=1e-6)


def test_shuffle_keeps_the_count_of_each_layer_and_moves_weights(getkey, rng):
    kept = {"a": rng.random((30, 20)) < 0.2, "b": rng.random(50) < 0.5}
    shuffled = masks.shuffle(kept, key=getkey())
    for name in kept:
        assert shuffled[name].sum() == kept[name].sum()
        assert (np.asarray(shuffled[name]) != kept[name]).any()


def test_pack_distinguishes_every_mask_from_every_other():
    codes = [
        tuple(np.asarray(masks.pack({"w": np.array(bits)})).tolist())
        for bits in itertools.product([False, True], repeat=6)
    ]
    assert len(set(codes)) == 64
    long = {"w": np.arange(70) % 3 == 0}
    words = np.asarray(masks.pack(long))
    bits = [bool(words[i // 32] >> np.uint32(i % 32) & np.uint32(1)) for i in range(70)]
    np.testing.assert_array_equal(bits, long["w"])


def test_scores_of_dead_weights_mean_nothing_and_may_be_nan():
    scores = {"w": np.array([1.0, np.nan, 3.0], np.float32)}
    alive = {"w": np.array([True, False, True])}
    kept = masks.top(scores, count=1, masks=alive)["w"]
    np.testing.assert_array_equal(kept, [False, False, True])


@pytest.mark.parametrize("traced", [False, True])
def test_a_layer_without_room_passes_its_share_on_and_the_count_stays(traced):
    scores = {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    alive = {"a": np.array([True, False, False, False]), "b": np.ones(4, bool)}
    choose = lambda k: masks.top(scores, count=k, masks=alive, scope="layer")  # noqa: E731
    kept = (jax.jit(choose) if traced else choose)(4)
    assert [int(layer.kept) for layer in masks.by_layer(kept).values()] == [1, 3]


def test_more_than_all_layers_hold_is_refused():
    scores = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    alive = {"a": np.array([True, False]), "b": np.ones(2, bool)}
    with pytest.raises(ValueError, match="`count` must be a whole number"):
        masks.top(scores, count=4, masks=alive, scope="layer")


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
@pytest.mark.parametrize(
    "use",
    [
        masks.count,
        masks.density,
        masks.by_layer,
        masks.pack,
        masks.emptied,
        masks.combine,
        lambda kept: masks.combine({"w": np.ones(3, bool)}, kept),
        lambda kept: masks.shuffle(kept, key=jax.random.key(0)),
        lambda kept: masks.apply({"w": np.ones(3, np.float32)}, kept),
        lambda kept: masks.top({"w": np.ones(3, np.float32)}, count=1, masks=kept),
    ],
)
def test_masks_that_are_not_bool_are_refused(use, dtype):
    with pytest.raises(ValueError, match=f"`masks` must be bool, got {dtype.__name__} at 'w'"):
        use({"w": np.ones(3, dtype)})


def test_masks_before_params_are_refused_with_the_right_order():
    kept, params = {"w": np.ones(3, bool), "b": None}, {"w": np.ones(3), "b": np.ones(2)}
    with pytest.raises(ValueError, match=r"Params come first: `masks\.apply\(params, masks\)`"):
        masks.apply(kept, params)


def test_two_leaves_at_one_path_are_refused():
    twice = {"a/b": np.ones(2, bool), "a": {"b": np.ones(2, bool)}}
    for use in (masks.by_layer, masks.count, lambda kept: masks.top(kept, count=1)):
        with pytest.raises(ValueError, match="has two leaves at 'a/b'"):
            use(twice)


def test_masked_arrays_are_refused_and_do_not_lose_their_mask():
    values = np.ma.masked_array(np.arange(3, dtype=np.float32), [False, False, True])
    with pytest.raises(ValueError, match="`scores` has a masked array at 'w'"):
        masks.top({"w": values}, count=1)
    with pytest.raises(ValueError, match="`params` has a masked array at 'w'"):
        masks.apply({"w": values}, {"w": np.ones(3, bool)})


# --- Layers that lose everything ----------------------------------------------------------------

STRONG = {"a": np.full(4, 9.0, np.float32), "b": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    "options",
    [{"density": 0.5}, {"count": 3}, {"count": 1, "scope": "layer"}],
    ids=str,
)
def test_a_layer_that_is_emptied_is_named_in_one_warning(options):
    with pytest.warns(UserWarning, match="in 'b'; a kernel without weights cuts the net") as caught:
        masks.top(STRONG, **options)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"count": 0},
        {"density": 0.0},
        {"count": {"a": 2, "b": 0}, "scope": "layer"},
        {"density": [0.5, 0], "scope": "layer"},
        {"count": 3, "masks": {"a": np.ones(4, bool), "b": np.zeros(4, bool)}},
        {"count": 3, "warn": False},
    ],
    ids=str,
)
def test_there_is_no_warning_where_the_loss_was_requested_or_known(options):
    masks.top(STRONG, **options)  # a warning would be an error


def test_emptied_layers_are_flagged_under_a_trace():
    flags = jax.jit(jax.vmap(lambda k: masks.emptied(masks.top(STRONG, count=k))))
    found = flags(jnp.array([0, 3, 5]))
    np.testing.assert_array_equal(found["a"], [True, False, False])
    np.testing.assert_array_equal(found["b"], [True, True, False])


def test_a_density_beyond_what_is_alive_is_refused():
    alive = {"w": np.array([True, False, False, False])}
    with pytest.raises(ValueError, match=r"`density` 0\.5 of 4 weights must be .* to 1, .* got 2"):
        masks.top({"w": np.ones(4, np.float32)}, density=0.5, masks=alive)


@pytest.mark.parametrize("key", [0, None, [3], jnp.zeros(2), jax.random.split(jax.random.key(0))])
def test_a_seed_or_several_keys_in_place_of_a_key_are_refused(key, unchecked):
    with pytest.raises(ValueError, match=r"`key` must be a (single key|key of JAX), got"):
        masks.shuffle({"w": jnp.array([True, False])}, key=key)


def test_keys_of_the_old_kind_shuffle_too(unchecked):
    kept = masks.shuffle({"w": jnp.array([True, False])}, key=jax.random.PRNGKey(0))
    assert masks.count(kept) == 1


def test_the_size_of_what_is_no_mask_is_refused_and_the_density_of_nothing_is_0(unchecked):
    with pytest.raises(ValueError, match="`masks` must hold arrays, got float at ''"):
        masks.size(0.5)
    assert masks.size({"w": jnp.ones((2, 3)), "b": None}) == 6  # scores
    assert masks.density({"w": None}) == 0
    assert masks.by_layer({"w": np.ones((0, 2), bool)})["w"].density == 0


def test_apply_keeps_every_dtype():
    kept = {"w": jnp.array([True, False])}
    for dtype in (bool, jnp.int8, jnp.bfloat16):
        assert masks.apply({"w": jnp.ones(2, dtype), "b": None}, kept)["w"].dtype == dtype


def test_a_rule_that_gives_no_masks_is_refused():
    with pytest.raises(ValueError, match=r"`rule\(masks, others\)` must be bool, got float"):
        masks.combine({"w": np.ones(2, bool)}, {"w": np.ones(2, bool)}, rule=lambda a, b: 0.5)


def test_packing_nothing_is_refused():
    with pytest.raises(ValueError, match="`tree` must have at least one leaf, got none"):
        masks.pack({})
