import itertools
import math
from collections import Counter
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify

from nopr import criteria, information, masks, pruning

EULER = 0.5772156649015329
ESTIMATORS = (
    information.plug_in,
    information.miller_madow,
    information.grassberger,
    information.chao_shen,
)
KEY = jax.random.key(0)

named = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda f: f.__name__)


# --- entropies -----------------------------------------------------------------------------------


def slow_grassberger(counts):
    """By the sums G(1) = -gamma - ln 2 and G(2n) = G(2n + 1) = G(1) + 2 (1 + 1/3 + ... up to n)."""

    def g(n):
        if n == 1:
            return -EULER - math.log(2)
        if n % 2:
            return g(n - 1)
        return g(1) + sum(2 / odd for odd in range(1, n, 2))

    total = sum(counts)
    nats = math.log(total) - sum(n * g(n) for n in counts if n) / total
    return nats / math.log(2)


def slow_chao_shen(counts):
    """With rational coverage and chances of being seen."""
    total = sum(counts)
    singletons = sum(n == 1 for n in counts)
    coverage = 1 - Fraction(total - 1 if singletons == total else singletons, total)
    bits = 0.0
    for n in filter(None, counts):
        p = coverage * Fraction(n, total)
        bits -= float(p) * math.log2(p) / float(1 - (1 - p) ** total)
    return bits


counts_lists = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any)


@given(counts=counts_lists)
def test_grassberger_agrees_with_the_recursion_of_its_digammas(counts):
    np.testing.assert_allclose(
        information.grassberger(counts), slow_grassberger(counts), rtol=0, atol=1e-12
    )


@given(counts=counts_lists.filter(lambda counts: sum(counts) > 1))
def test_chao_shen_agrees_with_rational_arithmetic(counts):
    np.testing.assert_allclose(
        information.chao_shen(counts), slow_chao_shen(counts), rtol=0, atol=1e-12
    )


def test_plug_in_and_miller_madow_have_their_closed_forms():
    assert information.plug_in([4, 4, 4, 4]) == 2.0
    assert information.plug_in([1, 3]) == pytest.approx(2 - 0.75 * math.log2(3), abs=1e-15)
    assert information.miller_madow([4, 4, 4, 4]) == pytest.approx(2 + 3 / 32 / math.log(2))


def test_one_outcome_has_exactly_zero_bits():
    for found in (information.entropy([0.0, 1.0]), information.plug_in([7]),
                  information.miller_madow([7]), information.chao_shen([7])):  # fmt: skip
        assert found == 0
        assert math.copysign(1, found) == 1


def test_chao_shen_of_nothing_but_singletons_takes_the_coverage_of_one_sample():
    p = 1 / 16  # coverage 1/4, of which each of 4 outcomes has a quarter
    expected = 4 * -p * math.log2(p) / (1 - (1 - p) ** 4)
    assert information.chao_shen([1, 1, 1, 1]) == pytest.approx(expected, rel=1e-14)


@named
def test_estimates_ignore_zeros_and_the_order(estimator):
    assert estimator([0, 5, 1, 0, 2]) == pytest.approx(estimator(np.array([2, 5, 1])), abs=1e-14)


@named
def test_estimates_converge_to_a_known_entropy(estimator, rng):
    law = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    counts = rng.multinomial(10**6, law)
    assert information.entropy(law) == pytest.approx(1.875)
    assert estimator(counts) == pytest.approx(1.875, abs=0.005)


def test_corrections_come_closer_to_the_truth_of_an_undersampled_law_in_their_known_order(rng):
    draws = rng.multinomial(300, np.full(1024, 1 / 1024), size=50)
    plug_in, miller_madow, grassberger, chao_shen = (
        np.mean([estimator(counts) for counts in draws]) for estimator in ESTIMATORS
    )
    assert plug_in < math.log2(300)
    assert plug_in + 0.5 < miller_madow < grassberger < chao_shen < 10.3
    assert abs(chao_shen - 10) < abs(grassberger - 10) < abs(plug_in - 10)


def test_a_negative_estimate_is_not_clamped():
    assert information.grassberger([1, 0]) == pytest.approx((EULER + math.log(2)) / math.log(2))
    assert information.grassberger([2]) < 0


@named
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, -1], "`counts` must not be negative, got -1"),
        ([0.5, 0.5], "`counts` must be whole numbers, got 0.5. For probabilities"),
        ([1.0, np.nan], "`counts` must be finite, got nan"),
        ([0, 0], "`counts` must hold at least one sample, got 2 zeros"),
        ([], "`counts` must be a non-empty vector"),
        (np.ones((2, 2), int), r"`counts` must be a non-empty vector, got shape \(2, 2\)"),
        ([True, False], "`counts` must be numbers, got dtype bool"),
    ],
)
def test_bad_counts_are_refused(estimator, counts, message):
    with pytest.raises(ValueError, match=message):
        estimator(counts)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ([0.5, 0.4], "`probabilities` must sum to 1, got 0.9. Divide"),
        ([1.5, -0.5], "`probabilities` must not be negative"),
        ([np.inf, 0], "`probabilities` must be finite"),
    ],
)
def test_what_is_not_a_law_has_no_entropy(law, message):
    with pytest.raises(ValueError, match=message):
        information.entropy(law)


# --- laws ----------------------------------------------------------------------------------------


def test_law_agrees_with_counting_masks_one_by_one(rng):
    sampled = {"a": rng.random((200, 2, 2)) < 0.6, "b": None, "c": rng.random((200, 1)) < 0.5}
    weights = rng.dirichlet(np.ones(200))
    law = information.law(sampled, weights=weights)
    rows = [(*a.ravel(), *c) for a, c in zip(sampled["a"], sampled["c"], strict=True)]
    assert len(law.counts) == len(set(rows))
    assert sorted(law.counts) == sorted(Counter(rows).values())
    assert np.all(np.diff(law.probabilities) <= 0)
    for outcome, first in enumerate(law.first):
        members = [i for i, row in enumerate(rows) if row == rows[first]]
        assert members[0] == first
        np.testing.assert_array_equal(np.flatnonzero(law.outcomes == outcome), members)
        assert law.probabilities[outcome] == pytest.approx(weights[members].sum())
        words = masks.pack(
            jax.tree.map(lambda leaf, first=first: jnp.asarray(leaf[first]), sampled)
        )
        np.testing.assert_array_equal(law.words[outcome], words)


def test_masks_that_differ_beyond_the_first_word_are_told_apart():
    sampled = np.zeros((3, 70), bool)
    sampled[1, 69] = True
    np.testing.assert_array_equal(information.law(sampled).counts, [2, 1])


def test_law_names_the_leaf_that_is_wrong():
    with pytest.raises(ValueError, match=r"`masks` must share one leading axis, got 3 .* at 'b'"):
        information.law({"a": np.ones((2, 4), bool), "b": np.ones((3, 4), bool)})
    with pytest.raises(ValueError, match="`masks` must be bool, got float64 at 'a'"):
        information.law({"a": np.ones((2, 4))})


@given(size=st.integers(1, 200), share=st.floats(0, 1))
@settings(max_examples=50)
def test_choice_bits_agree_with_exact_binomials(size, share):
    kept = int(share * size)
    expected = math.log2(math.comb(size, kept))
    assert information.choice_bits(size, kept) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_choice_bits_of_several_counts_are_of_all_their_masks_together():
    assert information.choice_bits(10, range(11)) == pytest.approx(10, rel=1e-14)
    assert information.choice_bits(6, [2, 3, 3]) == pytest.approx(math.log2(15 + 20), rel=1e-14)
    million = information.choice_bits(10**6, 5 * 10**5)
    assert million == pytest.approx(10**6 - 0.5 * math.log2(math.pi * 5 * 10**5), rel=1e-11)
    with pytest.raises(ValueError, match=r"`kept` must be in \[0, 6\], got 7"):
        information.choice_bits(6, 7)
    with pytest.raises(ValueError, match=r"`kept` must be whole numbers, at least one, got \[\]"):
        information.choice_bits(6, [])


@pytest.mark.parametrize("size", [math.nan, 10.0, -1, True, "10"])
def test_choice_bits_are_of_a_whole_number_of_weights(size, unchecked):
    with pytest.raises(ValueError, match="`size` must be a whole number of at least 0, got"):
        information.choice_bits(size, [0])


# --- exact ---------------------------------------------------------------------------------------


def every_label(bits):
    return np.array(list(itertools.product((0, 1), repeat=bits)), np.float32)


def encode_three_bits(data, *, key):
    del key
    bits = data[:3] > 0
    return {"kept": jnp.stack([bits, ~bits]), "bias": None}


def ignore_the_data(data, *, key):
    del data
    return {"kernel": masks.top(jax.random.uniform(key, (4, 5)), density=0.3)}


def scores_of(data, *, key):
    return {"kernel": data[:, None] * jax.random.normal(key, (len(data), 3))}


def keep_the_largest(data, *, key):
    return masks.top(jax.tree.map(jnp.abs, scores_of(data, key=key)), count=5)


def test_a_mask_that_encodes_three_bits_of_the_data_has_exactly_three_bits(x64):
    datasets = every_label(6).astype(np.float64 if x64 else np.float32)
    result = information.exact(encode_three_bits, datasets, key=KEY)
    assert result.bits == result.entropy_bits == 3.0
    assert result.conditional_entropy_bits == 0.0
    assert result.dataset_entropy_bits == 6.0
    assert result.choice_ceiling_bits == pytest.approx(math.log2(20))
    assert (result.distinct, result.checked) == (8, True)
    np.testing.assert_array_equal(result.probabilities, np.full(8, 1 / 8))
    np.testing.assert_array_equal(result.kept, np.full(64, 3))
    np.testing.assert_array_equal(result.masks["kept"][:, 0], datasets[:, :3] > 0)
    assert result.masks["bias"] is None


@pytest.mark.parametrize(
    "weights", [None, np.repeat([1 / 49, 0], [49, 15])], ids=["uniform", "weighted"]
)
def test_a_mask_chosen_without_data_has_exactly_zero_bits(weights, x64):
    del x64
    result = information.exact(ignore_the_data, every_label(6), weights=weights, key=KEY)
    assert result.bits == 0
    assert math.copysign(1, result.bits) == 1
    assert result.distinct == 1
    np.testing.assert_array_equal(result.probabilities, [1.0])


def test_weights_give_the_entropy_of_the_weighted_law():
    datasets = every_label(2)
    result = information.exact(
        lambda data, *, key: data[:1] > 0, datasets, weights=[0.25, 0.375, 0.375, 0.0], key=KEY
    )
    assert result.bits == pytest.approx(information.entropy([0.625, 0.375]), rel=1e-14)
    assert result.dataset_entropy_bits == pytest.approx(0.5 + 0.75 * math.log2(8 / 3), rel=1e-14)
    np.testing.assert_allclose(result.probabilities, [0.625, 0.375])


def copy_the_data(data, *, key):
    del key
    return jnp.isin(jnp.arange(64), jnp.sum(data * 2 ** jnp.arange(6)))


def test_saturation_is_reported_and_bits_are_no_more_than_the_sample_can_show():
    sample = every_label(6)[:16]
    found = information.exact(copy_the_data, sample, key=KEY)
    assert found.saturated is True
    assert (found.bits, found.dataset_entropy_bits, found.datasets) == (4.0, 4.0, 16)
    assert repr(found) == (
        "Exact(4 bits over 16 datasets, taken as all there are; H(D) = 4, "
        "log2 C(n,k) = 6; 16 distinct masks; SATURATED: a mask of its own for every dataset, so "
        "bits = H(D); H(m|D) = 0 checked by a second pass)"
    )
    whole = information.exact(encode_three_bits, every_label(6), check=False, key=KEY)
    assert whole.saturated is False
    assert repr(whole) == (
        "Exact(3 bits over 64 datasets, taken as all there are; H(D) = 6, "
        "log2 C(n,k) = 4.32193; 8 distinct masks; not saturated; H(m|D) = 0 not checked by a "
        "second pass)"
    )


def test_saturation_is_over_distinct_datasets_that_occur():
    repeated = np.concatenate([every_label(2)] * 2)
    found = information.exact(lambda data, *, key: data > 0, repeated, key=KEY)
    assert found.saturated
    assert "over 4 distinct of 8 datasets, taken as all there are; " in repr(found)
    same = information.exact(lambda data, *, key: data > 0, np.ones((3, 2)), key=KEY)
    assert same.saturated is False  # H(D) is 0: there is nothing to copy
    assert "1 distinct of 3 datasets" in repr(same)
    weights = [0.5, 0.5, 0.0, 0.0]  # the first bit is 0 wherever there is weight
    last = information.exact(
        lambda data, *, key: data[1:] > 0, every_label(2), weights=weights, key=KEY
    )
    assert (last.saturated, last.datasets, last.distinct) == (True, 2, 2)


def test_a_result_is_a_pytree_whose_repr_survives_whatever_it_is_mapped_to():
    result = information.exact(encode_three_bits, every_label(6), check=False, key=KEY)
    mapped = jax.tree.map(lambda leaf: leaf, result)
    assert isinstance(mapped, information.Exact)
    assert repr(mapped) == repr(result)
    assert "'bits'" in repr(jax.tree_util.tree_map_with_path(lambda path, _: str(path), result))


def test_kept_counts_that_cannot_occur_are_outside_the_ceiling():
    datasets = every_label(2)
    result = information.exact(
        lambda data, *, key: data > 0, datasets, weights=[0.5, 0.25, 0.25, 0.0], key=KEY
    )
    assert result.choice_ceiling_bits == pytest.approx(math.log2(1 + 2))
    assert result.distinct == 3
    np.testing.assert_array_equal(result.kept, [0, 1, 1, 2])


def test_equal_datasets_are_merged_in_the_ceiling():
    datasets = np.repeat(every_label(3), [1, 1, 2, 1, 1, 1, 1, 8], axis=0)
    result = information.exact(encode_three_bits, datasets, key=KEY)
    law = np.array([1, 1, 2, 1, 1, 1, 1, 8]) / 16
    assert result.dataset_entropy_bits == pytest.approx(information.entropy(law), rel=1e-14)
    assert result.bits == pytest.approx(result.dataset_entropy_bits, rel=1e-14)


@pytest.mark.long
@given(
    weights=st.lists(st.integers(0, 5), min_size=32, max_size=32).filter(any),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_bits_stay_below_both_ceilings_and_agree_with_a_loop(weights, seed):
    key, weights = jax.random.key(seed), np.array(weights) / sum(weights)
    datasets = every_label(5) * np.float32(2) - 1 + np.arange(5, dtype=np.float32) / 7
    result = information.exact(keep_the_largest, datasets, weights=weights, check=False, key=key)
    ceiling = min(result.dataset_entropy_bits, result.choice_ceiling_bits)
    assert -1e-12 <= result.bits <= ceiling + 1e-12
    law = Counter()
    for row, weight in zip(datasets, weights, strict=True):
        scores = np.abs(scores_of(row, key=key)["kernel"]).ravel()
        law[frozenset(np.argsort(-scores, kind="stable")[:5].tolist())] += weight
    expected = -sum(p * math.log2(p) for p in law.values() if p)
    assert result.bits == pytest.approx(expected, abs=1e-12)
    assert not result.checked


@pytest.mark.parametrize("block", [1, 3, 32, 50])
def test_blocks_that_do_not_divide_the_datasets_change_nothing(block):
    datasets = every_label(5) + np.arange(5, dtype=np.float32)
    whole = information.exact(keep_the_largest, datasets, key=KEY)
    blocked = information.exact(keep_the_largest, datasets, block=block, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, whole, blocked)
    assert whole.distinct > 2


def test_every_level_of_a_trajectory_gets_its_own_numbers():
    def nested(data, *, key):
        del key
        first = jnp.stack([data[:2] > 0, data[:2] > 1])  # two bits, then none
        second = jnp.stack([data > 0, (data > 0) & (jnp.arange(4) < 1)])
        return {"a": first, "b": second}

    result = information.exact(nested, every_label(4), levels=True, key=KEY)
    np.testing.assert_array_equal(result.bits, [4.0, 1.0])
    np.testing.assert_array_equal(result.conditional_entropy_bits, [0.0, 0.0])
    np.testing.assert_array_equal(result.distinct, [16, 2])
    np.testing.assert_array_equal(result.probabilities[1], [0.5, 0.5, *[0] * 14])
    np.testing.assert_allclose(result.choice_ceiling_bits, [np.log2(1 + 6 + 15 + 20 + 15 + 6 + 1),
                                                            np.log2(1 + 6)])  # fmt: skip
    assert result.outcomes.shape == result.kept.shape == (16, 2)
    np.testing.assert_array_equal(result.saturated, [True, False])
    assert repr(result).startswith("Exact(1 to 4 bits for 2 levels over 16 datasets, ")
    assert "log2 sum_k C(n,k) = " in repr(result)
    assert "SATURATED in 1 of 2" in repr(result)
    assert result.dataset_entropy_bits == 4.0
    for level in range(2):
        alone = information.exact(
            lambda data, *, key, level=level: jax.tree.map(
                lambda m: m[level], nested(data, key=key)
            ),
            every_label(4),
            key=KEY,
        )
        assert alone.bits == result.bits[level]
        np.testing.assert_array_equal(alone.outcomes, result.outcomes[:, level])


def gradient_descent(data, key):
    def loss(params):
        inputs, labels = data
        hidden = jax.nn.relu(inputs @ params["a"] + params["b"][None])
        return jnp.mean((hidden @ params["c"] - labels) ** 2)

    keys = jax.random.split(key, 3)
    params = {
        "a": jax.random.normal(keys[0], (3, 4)),
        "b": jax.random.normal(keys[1], (4,)),
        "c": jax.random.normal(keys[2], (4,)),
    }

    def descend(params, _):
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(loss)(params)), None

    return jax.lax.scan(descend, params, None, length=50)[0]


def magnitude_after_training(data, *, key):
    return masks.top(jax.tree.map(jnp.abs, gradient_descent(data, key)), count=8)


@pytest.mark.long
def test_masks_of_a_trained_net_are_those_of_training_on_each_dataset_alone(rng, x64):
    dtype = np.float64 if x64 else np.float32
    points = np.array(list(itertools.product((-1, 1), repeat=3)), dtype)
    labels = every_label(6).astype(dtype) * 2 - 1
    datasets = (np.repeat(points[None, :6], len(labels), axis=0), labels)
    result = information.exact(magnitude_after_training, datasets, key=jax.random.key(3))
    assert 1 < result.bits < min(result.dataset_entropy_bits, result.choice_ceiling_bits)
    single = jax.jit(magnitude_after_training)
    for case in rng.choice(64, 8, replace=False):
        alone = single((datasets[0][case], labels[case]), key=jax.random.key(3))
        found = jax.tree.map(lambda leaf, case=case: leaf[case], result.masks)
        jax.tree.map(np.testing.assert_array_equal, found, alone)


def test_another_key_compiles_nothing_again():
    traces = []

    def algorithm(data, *, key):
        traces.append(1)
        return keep_the_largest(data, key=key)

    first = information.exact(algorithm, every_label(4), key=KEY)
    assert len(traces) == 2  # the run and its check
    second = information.exact(algorithm, every_label(4) + 1, key=jax.random.key(1))
    assert len(traces) == 2
    assert first.masks["kernel"].shape == second.masks["kernel"].shape


def both_counts(data, *, key):
    scores = jax.tree.map(jnp.abs, scores_of(data, key=key))
    return jax.vmap(lambda count: masks.top(scores, count=count))(jnp.array([5, 3]))


@pytest.mark.parametrize(
    ("algorithm", "levels"), [(keep_the_largest, False), (both_counts, True)], ids=["one", "levels"]
)
def test_a_batch_of_keys_gives_each_key_the_bytes_of_a_call_of_its_own(algorithm, levels):
    datasets, keys = every_label(5) + np.arange(5, dtype=np.float32), jax.random.split(KEY, 3)
    options = {"levels": levels, "block": 20, "weights": np.arange(32) / sum(range(32))}
    found = information.exact(algorithm, datasets, key=keys, **options)
    assert found.bits.shape == ((3, 2) if levels else (3,))
    assert found.masks["kernel"].shape == (3, 32, *((2,) if levels else ()), 5, 3)
    assert (" bits for 3 keys x 2 levels" if levels else " bits for 3 keys over") in repr(found)
    for number, key in enumerate(keys):
        alone = information.exact(algorithm, datasets, key=key, **options)
        for name, mine in alone._asdict().items():
            theirs = getattr(found, name)
            if name in ("dataset_entropy_bits", "datasets", "checked", "cases", "levels"):
                assert theirs == mine
            elif name == "keys":
                assert (theirs, mine) == (3, 1)
            elif name == "probabilities":  # those of other keys may be more
                np.testing.assert_array_equal(theirs[number][..., : np.shape(mine)[-1]], mine)
                np.testing.assert_array_equal(theirs[number].sum(-1), np.sum(mine, -1))
            else:
                jax.tree.map(
                    np.testing.assert_array_equal,
                    jax.tree.map(lambda leaf, number=number: leaf[number], theirs),
                    mine,
                )


def test_a_batch_of_keys_is_traced_once_and_a_failure_names_its_key():
    traces = []

    def algorithm(data, *, key):
        traces.append(1)
        return keep_the_largest(data + jnp.log(jax.random.uniform(key) - 0.3), key=key)

    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    finite = [bool(jax.random.uniform(key) > 0.3) for key in keys]
    assert finite[0]
    assert not all(finite)
    with pytest.raises(ValueError, match=rf"on 16 of 16 .* with key {finite.index(False)}: "):
        information.exact(algorithm, every_label(4), key=keys)
    assert len(traces) == 2
    with pytest.raises(ValueError, match=r"`key` must be one key, or a vector .* shape \(0,\)"):
        information.exact(algorithm, every_label(4), key=keys[:0])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_an_algorithm_with_randomness_of_its_own_is_caught(wrap):
    generator = np.random.default_rng(0)

    @wrap
    def impure(data, *, key):
        return {"kernel": masks.top(scores_of(data, key=key)["kernel"] + generator.random((4, 3)),
                                    count=5)}  # fmt: skip

    with pytest.raises(ValueError, match=r"must be a function of \(data, key\), .* of 16 datasets"):
        information.exact(impure, every_label(4), key=KEY)
    information.exact(impure, every_label(4), check=False, key=KEY)


def test_equal_datasets_with_unequal_masks_are_caught():
    order = itertools.count()

    def by_position(data, *, key):
        del key
        return data > jax.pure_callback(
            lambda x: np.float32(next(order) % 2), jax.ShapeDtypeStruct((), jnp.float32), data[0],
            vmap_method="sequential",
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"another mask on 2 of 4 datasets, at indices \[1, 3\]"):
        information.exact(by_position, np.ones((4, 2), np.float32), check=False, key=KEY)


@pytest.mark.parametrize("block", [None, 5])
def test_datasets_whose_scores_are_not_finite_are_listed(block):
    datasets = every_label(4)
    datasets[6, 1], datasets[15, 3] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"on 2 of 16 datasets, at indices \[6, 15\]: .*kernel"):
        information.exact(keep_the_largest, datasets, block=block, key=KEY)


def test_a_check_inside_a_training_loop_is_reported():
    def diverge(data, *, key):
        del key

        def step(x, _):
            checkify.debug_check(jnp.all(x < 100), "too large")
            return x * 2, None

        return jax.lax.scan(step, data, None, length=6)[0] > 3

    datasets = np.array([[1.0], [4.0], [1.5]], np.float32)
    with pytest.raises(ValueError, match=r"on 1 of 3 datasets, at index \[1\]: too large\. An"):
        information.exact(diverge, datasets, key=KEY)


def test_datasets_may_hold_keys_and_integers():
    def draw(data, *, key):
        noise, label = data
        return jax.random.bits(jax.random.fold_in(noise, label), (8,), jnp.uint8) > 127

    datasets = (
        jax.random.split(KEY, 6)[np.array([0, 0, 1, 2, 3, 4])],
        np.array([0, 1, 0, 0, 0, 0]),
    )
    result = information.exact(draw, datasets, block=4, key=KEY)
    assert result.dataset_entropy_bits == pytest.approx(math.log2(6))
    assert result.distinct == len({mask.tobytes() for mask in result.masks})


@pytest.mark.parametrize(
    ("algorithm", "datasets", "options", "message"),
    [
        (keep_the_largest, (np.ones((3, 2)), np.ones(4)), {},
         r"`datasets` must share one leading axis, got 4 cases at '1' and 3 at '0'\. Close over"),
        (pruning.pruner(criteria.magnitude()), np.ones((3, 2)), {},
         r"must take \(data, \*, key\), got `prune\(.*algorithms.at_init\(pruner, init"),
        (keep_the_largest, np.ones((0, 2)), {}, r"at least one case, got shape \(0, 2\)"),
        (keep_the_largest, {"x": np.float32(1)}, {}, r"got shape \(\) at 'x'"),
        (keep_the_largest, None, {}, "`datasets` must have at least one array, got none"),
        (keep_the_largest, np.ones((4, 2)), {"weights": [0.5, 0.5]},
         "`weights` must have one entry per case, 4, got 2"),
        (keep_the_largest, np.ones((2, 2)), {"weights": [0.5, 0.6]}, "`weights` must sum to 1"),
        (keep_the_largest, np.ones((2, 2)), {"weights": [1.5, -0.5]}, "must not be negative"),
        (keep_the_largest, np.ones((2, 2)), {"block": 0}, "`block` must be a whole number"),
        (lambda data, *, key: {"w": data}, np.ones((2, 2), np.float32), {},
         "`algorithm` must return bool masks, got float32 at 'w'"),
        (lambda data, *, key: {"w": None}, np.ones((2, 2)), {}, "at least one weight, got none"),
        (lambda data, *, key: {"a": data > 0, "b": data[:1] > 0}, np.ones((2, 2)),
         {"levels": True}, "`masks with `levels=True`` must share one leading axis"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(algorithm, datasets, options, message):
    with pytest.raises(ValueError, match=message):
        information.exact(algorithm, datasets, key=KEY, **options)


@pytest.mark.usefixtures("unchecked")
def test_a_seed_in_place_of_a_key_is_refused():
    with pytest.raises(ValueError, match=r"`key` must be a key of JAX, got 0\. Make one"):
        information.exact(keep_the_largest, np.ones((2, 2)), key=0)


@pytest.mark.parametrize("values", [[[1], [2, 3]], "ab", [1, "a"], np.ma.masked_array([1], [1])])
@pytest.mark.parametrize("estimate", [information.plug_in, information.entropy])
def test_what_is_no_vector_of_numbers_is_refused(estimate, values, unchecked):
    with pytest.raises(ValueError, match=r"`(counts|probabilities)` must be"):
        estimate(values)


def test_a_key_of_the_old_kind_is_one_key(unchecked):
    result = information.exact(
        keep_the_largest, np.eye(2, dtype=np.float32), key=jax.random.PRNGKey(0)
    )
    assert result.keys == 1
