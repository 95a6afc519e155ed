import hashlib
import io
import sys
import tracemalloc
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from nopr import export, information, masks, trees

SAVE_MASKS, LOAD_MASKS = export.save_masks, export.load_masks
KINDS = ("random", "first", "spread", "filters")
FORMS = {
    "packed": (export.save_pruned, export.load_pruned),
    "safetensors": (export.save_safetensors, export.load_safetensors),
}


def chosen(size, kept, kind="random", seed=0):
    """A flat mask with so many kept."""
    rng, mask = np.random.default_rng(seed), np.zeros(size, bool)
    if kind == "random":
        mask[rng.choice(size, kept, replace=False)] = True
    elif kind == "first":
        mask[:kept] = True
    elif kind == "spread":
        mask[np.arange(kept) * max(1, size // max(kept, 1))] = True
    else:  # columns of a matrix with 8 of them, and what is left at the end
        whole = mask[: size // 8 * 8].reshape(-1, 8)
        columns = kept // max(len(whole), 1)
        whole[:, :columns] = True
        mask[np.flatnonzero(~mask)[: kept - columns * len(whole)]] = True
    return mask


def counts(size):
    """Numbers to keep: the ends, the middle, and both sides of where positions are split."""
    some = (0, 1, 2, size // 300, size // 129, size // 128, size // 127, size // 9, size // 2)
    return sorted({k for each in some for k in (each, size - each) if 0 <= k <= size})


def bound(*leaves):
    """The most bytes that masks may take: 2% more than the choice of weights, and 64 a leaf."""
    bits = sum(information.choice_bits(x.size, int(x.sum())) for x in leaves)
    return 1.02 * bits / 8 + 64 * len(leaves)


def check_same(got, wanted):
    """Same structure, shapes, dtypes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def network():
    """Params and masks with what leaves can be: None, empty, scalar, half precision, whole."""
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((16, 40)).astype(np.float32)
    params = {
        "layers": [
            {"w": jnp.asarray(kernel), "b": jnp.arange(3)},
            {"w": jnp.asarray(kernel, jnp.bfloat16), "b": None},
        ],
        "a/b": np.float32(2.5),
        "double": rng.standard_normal((5, 3)),
        "empty": np.zeros((0, 3), np.float32),
        "scale": jnp.float32(3.0),
        "flags": np.array([True, False]),
        "small": jnp.arange(6, dtype=jnp.float8_e4m3fn).reshape(2, 3),
    }
    kept = {
        "layers": [
            {"w": jnp.asarray(kernel > 1.0), "b": None},
            {"w": jnp.asarray(kernel < -1.0), "b": None},
        ],
        "a/b": None,
        "double": np.ones((5, 3), bool),
        "empty": np.zeros((0, 3), bool),
        "scale": jnp.array(False),
        "flags": None,
        "small": np.array([[True, False, True], [False, False, True]]),
    }
    return params, kept


# --- Bits and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 100, 128, 129, 300, 2000, 30_000])
def test_every_bit_comes_back_and_the_file_is_within_its_bound(size, kind, tmp_path):
    for kept in counts(size):
        mask = chosen(size, kept, kind)
        path = SAVE_MASKS({"params/Dense_0/kernels": mask.reshape(1, -1)}, tmp_path / "m")
        (found,) = jax.tree.leaves(LOAD_MASKS(path))
        assert found.dtype == bool
        np.testing.assert_array_equal(found, mask.reshape(1, -1))
        assert path.stat().st_size <= bound(mask)


@pytest.mark.parametrize("density", [0, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("size", [10_000, pytest.param(2_000_000, marks=pytest.mark.long)])
def test_masks_of_any_density_are_within_their_bound(size, density, tmp_path):
    for kind in KINDS:
        mask = chosen(size, round(size * density), kind)
        path = SAVE_MASKS({"w": mask}, tmp_path / "m")
        np.testing.assert_array_equal(LOAD_MASKS(path)["w"], mask)
        assert path.stat().st_size <= bound(mask)


def test_many_small_leaves_share_their_paths_and_their_code(tmp_path):
    tree = {}
    for block in range(12):
        for name in ("query", "key", "value", "out"):
            mask = chosen(64, (block + 3) % 17, seed=block)
            path = f"params/encoder/layers_{block}/attention/{name}/kernel"
            tree[path] = mask.reshape(4, 2, 8)
    size = SAVE_MASKS(tree, tmp_path / "m").stat().st_size
    assert size <= bound(*tree.values())
    assert size < 35 * len(tree)


@pytest.mark.parametrize("size", [40, 5000, pytest.param(600_000, marks=pytest.mark.long)])
def test_a_decoder_of_one_weight_at_a_time_reads_the_same(size, tmp_path):
    tree = {
        f"{kept} {kind}": chosen(size, kept, kind, seed=kept)
        for kept in counts(size)[::3]
        for kind in KINDS[:: 3 if size > 5000 else 1]
    }
    found = oracles.packed_masks(SAVE_MASKS(tree, tmp_path / "m").read_bytes())
    assert list(found) == sorted(tree)
    for path, mask in tree.items():
        np.testing.assert_array_equal(found[path], mask)


@settings(max_examples=50)
@given(data=st.data())
def test_any_mask_comes_back(data, tmp_path_factory):
    leaves = st.lists(st.booleans(), max_size=70).map(lambda x: np.array(x, bool))
    tree = data.draw(st.dictionaries(st.text("ab/ é", max_size=4), leaves, min_size=1, max_size=4))
    path = SAVE_MASKS(tree, tmp_path_factory.getbasetemp() / "any")
    check_same(LOAD_MASKS(path, like=tree), tree)


def test_a_mask_of_whole_filters_takes_a_fraction_of_its_choice_of_weights(tmp_path):
    filters = np.broadcast_to(np.arange(64) % 3 == 0, (3, 3, 32, 64))
    size = SAVE_MASKS({"w": filters}, tmp_path / "m").stat().st_size
    assert size < 0.03 * bound(filters)


def test_the_same_masks_give_the_same_bytes_whatever_their_memory(tmp_path):
    mask = chosen(600, 60).reshape(20, 30)
    files = [
        SAVE_MASKS({"w": form}, tmp_path / "m").read_bytes()
        for form in (mask, np.asfortranarray(mask), jnp.asarray(mask), mask[::-1][::-1])
    ]
    assert len(set(files)) == 1


# --- Trees and values ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_pruned_params_come_back_with_their_dtypes_and_bits(form, tmp_path):
    (save, load), (params, kept) = FORMS[form], network()
    loaded = load(save(params, kept, tmp_path / "net"), like=params)
    flags, found = trees.by_path(kept, "masks"), trees.by_path(loaded.params, "params")
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    for path, leaf in trees.by_path(params, "params").items():
        wanted = np.array(leaf)
        wanted[~np.asarray(flags.get(path, np.ones(wanted.shape, bool)))] = 0
        check_same(found[path], wanted)
    check_same(loaded.masks, kept)


@pytest.mark.parametrize("form", FORMS)
def test_values_keep_every_bit_where_they_are_kept_and_are_0_elsewhere(form, tmp_path):
    bits = np.array([0x7FC00001, 0x80000000, 0xFF800000, 1, 0x7F800001], np.uint32)
    save, load = FORMS[form]
    kept = {"w": np.array([True, True, True, True, False])}
    path = save({"w": bits.view(np.float32)}, kept, tmp_path / "net")
    found = load(path).params["w"].view(np.uint32)
    np.testing.assert_array_equal(found, bits * [1, 1, 1, 1, 0])


@pytest.mark.parametrize("form", FORMS)
def test_without_like_trees_are_nested_by_the_parts_of_their_paths(form, tmp_path):
    (save, load), (params, kept) = FORMS[form], network()
    loaded = load(save(params, kept, tmp_path / "net"))
    assert loaded.params["a"]["b"] == 2.5
    assert set(loaded.params["layers"]) == {"0", "1"}
    assert set(loaded.masks) == {"layers", "double", "empty", "scale", "small"}
    np.testing.assert_array_equal(loaded.masks["layers"]["1"]["w"], kept["layers"][1]["w"])


def test_masks_come_back_in_the_trees_of_flax(tmp_path):
    model = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    linen = nn.Dense(5).init(jax.random.key(0), jnp.ones((1, 6)))
    for params in (nnx.state(model, nnx.Param), linen):
        kept = jax.tree.map(lambda leaf: leaf > 0 if leaf.ndim > 1 else None, params)
        path = export.save_pruned(params, kept, tmp_path / "net")
        for like in (kept, params, jax.eval_shape(lambda tree: tree, params)):
            check_same(LOAD_MASKS(path, like=like), kept)
        check_same(export.load_pruned(path, like=params).params, masks.apply(params, kept))


def test_a_tree_of_one_array_comes_back_as_that_array(tmp_path):
    mask = np.array([True, False])
    path = SAVE_MASKS(mask, tmp_path / "m")
    np.testing.assert_array_equal(LOAD_MASKS(path), mask)
    np.testing.assert_array_equal(LOAD_MASKS(path, like=mask), mask)


@pytest.mark.parametrize("form", FORMS)
def test_twelve_layers_come_back_in_their_order(form, tmp_path):  # "10" sorts before "2"
    save, load = FORMS[form]
    params = [{"w": np.full((2, 3), i, np.float32)} for i in range(12)]
    kept = [{"w": chosen(6, i % 6, "first").reshape(2, 3)} for i in range(12)]
    loaded = load(save(params, kept, tmp_path / "net"), like=params)
    check_same(loaded.params, masks.apply(params, kept))
    check_same(loaded.masks, kept)


def test_leaves_above_others_need_a_tree_to_come_back_in(tmp_path):
    for first, second in (("a", "a/b"), ("a/b", "a/b/c")):
        tree = {first: np.array([True]), second: np.array([False, True])}
        path = SAVE_MASKS(tree, tmp_path / "m")
        with pytest.raises(ValueError, match=f"`like` must be given .* '{second}' and one above"):
            LOAD_MASKS(path)
        check_same(LOAD_MASKS(path, like=tree), tree)


def test_a_path_of_very_many_parts_needs_a_tree_to_come_back_in(tmp_path):
    for parts in (100, 101):
        tree = {"/".join(["a"] * parts): np.array([True])}
        path = SAVE_MASKS(tree, tmp_path / "m")
        check_same(LOAD_MASKS(path, like=tree), tree)
    with pytest.raises(ValueError, match="`like` must be given for a path of more than 100 parts"):
        LOAD_MASKS(path)


def test_another_program_finds_the_pruned_network_under_the_same_names(tmp_path):
    params, kept = network()
    params, kept = ({"layers": tree["layers"][:1]} for tree in (params, kept))
    found = load_file(export.save_safetensors(params, kept, tmp_path / "net"))
    assert set(found) == {"layers/0/w", "layers/0/b", "masks/layers/0/w"}
    weights, mask = params["layers"][0]["w"], kept["layers"][0]["w"]
    np.testing.assert_array_equal(found["layers/0/w"], weights * mask)
    np.testing.assert_array_equal(found["masks/layers/0/w"], mask)


# --- What does not match ------------------------------------------------------------------------

W, MASK = np.ones((2, 3), np.float32), np.array([[True, False, True]] * 2)


@pytest.mark.parametrize(
    ("like", "match"),
    [
        ({"v": MASK}, "`like` must have every leaf of the file, got none at 'w'"),
        ({"w": MASK.T}, r"shape \(3, 2\) at 'w', where the file has \(2, 3\)"),
        ({"w": MASK, "v": MASK}, "got a mask at 'v', where the file has none"),
        ({"w": MASK, "a/b": MASK, "a": {"b": MASK}}, "`like` has two leaves at 'a/b'"),
        ({}, "`like` must have every leaf of the file, got none at 'w'"),
    ],
)
def test_masks_that_do_not_match_are_refused_by_name(like, match, tmp_path):
    path = SAVE_MASKS({"w": MASK}, tmp_path / "m")
    with pytest.raises(ValueError, match=match):
        LOAD_MASKS(path, like=like)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("like", "match"),
    [
        ({"w": W}, "`like` must have every leaf of the file, got none at 'b'"),
        ({"w": W.T, "b": W}, r"shape \(3, 2\) at 'w', where the file has \(2, 3\)"),
        ({"w": W, "b": W, "v": W}, "no other leaves than the file, got one at 'v'"),
        ({"w": W.astype(np.float16), "b": W}, "got float16 at 'w', where the file has float32"),
        ({"w": jnp.bfloat16(W), "b": W}, "got bfloat16 at 'w', where the file has float32"),
    ],
)
def test_params_that_do_not_match_are_refused_by_name(form, like, match, tmp_path):
    save, load = FORMS[form]
    path = save({"w": W, "b": W}, {"w": MASK, "b": None}, tmp_path / "net")
    with pytest.raises(ValueError, match=match):
        load(path, like=like)


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({}, "`masks` must have a leaf, got none"),
        ({"w": None}, "`masks` must have a leaf, got none"),
        ({"w": W}, "`masks` must be bool, got float32 at 'w'"),
        ({"w": 3}, "`masks` must be bool, got int at 'w'"),
        ({"a/b": MASK, "a": {"b": MASK}}, "`masks` has two leaves at 'a/b'"),
        ({"\ud800": MASK}, "`masks` must have paths of text"),
        ({"w": np.broadcast_to(True, (2**16, 2**15))}, "there are more than 2,147,483,647 weights"),
    ],
)
def test_masks_that_no_file_can_hold_are_refused(tree, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        SAVE_MASKS(tree, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("params", "kept", "match"),
    [
        ({"v": W}, {"w": MASK}, "`masks` has a leaf at 'w' that `params` lacks"),
        ({"w": W.T}, {"w": MASK}, r"`masks` has shape \(2, 3\) at 'w', where `params` has"),
        ({"w": W, "t": "text"}, {"w": MASK}, "`params` must be an array of numbers.* It is at 't'"),
        ({"w": jnp.ones((2, 3), jnp.int4)}, {"w": MASK}, "must have dtypes .* got int4 at 'w'"),
        ({"w": W}, {"w": None}, "`masks` must have a leaf, got none"),
        ({"w": np.ma.masked_array(W)}, {"w": MASK}, "`params` has a masked array at 'w'"),
    ],
)
def test_params_that_no_file_can_hold_are_refused(form, params, kept, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        FORMS[form][0](params, kept, tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["masks/w", "__metadata__"])
def test_params_at_the_names_of_the_file_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"`params` must leave the names .* '{name}'"):
        export.save_safetensors({"w": W, name: W}, {"w": MASK}, tmp_path / "net")


def test_traced_masks_and_params_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`masks` must hold values to be saved, got a traced"):
        jax.jit(lambda kept: SAVE_MASKS({"w": kept}, tmp_path / "m"))(MASK)
    with pytest.raises(ValueError, match="`params` must hold values to be saved, got a traced"):
        jax.jit(lambda w: export.save_pruned({"w": w}, {"w": MASK}, tmp_path / "m"))(W)


@pytest.mark.parametrize("path", [3, None, "", True, b"bytes", "a\0b"])
def test_what_is_no_path_is_refused(path, unchecked):
    for use in (lambda: SAVE_MASKS({"w": MASK}, path), lambda: LOAD_MASKS(path)):
        with pytest.raises(ValueError, match="`path` must be the path of a file, got"):
            use()


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for use in (
        lambda: export.save_safetensors({"w": W}, {"w": MASK}, tmp_path / "net"),
        lambda: export.load_safetensors(tmp_path / "net"),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'nopr\[lab\]'"):
            use()


# --- Writing ------------------------------------------------------------------------------------


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = SAVE_MASKS({"w": MASK}, tmp_path / "folder" / "m")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device; it was not written.*folder/m'"):
        SAVE_MASKS({"w": ~MASK}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_replaces_the_old_one(tmp_path):
    path = SAVE_MASKS({"w": MASK}, tmp_path / "m")
    np.testing.assert_array_equal(LOAD_MASKS(SAVE_MASKS({"w": ~MASK}, str(path)))["w"], ~MASK)
    assert list(tmp_path.iterdir()) == [path]


# --- Damage and hostile files -------------------------------------------------------------------

DAMAGED = r"^`path` must be .*, got '.*', which [^\n]*\.$"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small file in each form, with coded and deflated masks and values."""
    folder = tmp_path_factory.mktemp("whole")
    params = {"v": np.arange(12, dtype=np.float32), "w": np.ones(800, np.float16)}
    kept = {"v": np.arange(12) % 3 == 0, "w": np.arange(800) < 400}
    paths = {form: save(params, kept, folder / form) for form, (save, _) in FORMS.items()}
    return {form: path.read_bytes() for form, path in paths.items()}


def refused(load, path, data):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=DAMAGED):
        load(path)


@pytest.mark.parametrize("form", FORMS)
def test_every_flipped_bit_is_noticed_in_the_first_and_last_bytes(form, whole, tmp_path):
    data = bytearray(whole[form])
    for place in {*range(min(len(data), 300)), *range(len(data) - 50, len(data))}:
        data[place] ^= 1 << place % 8
        refused(FORMS[form][1], tmp_path / "net", bytes(data))
        data[place] ^= 1 << place % 8


@pytest.mark.parametrize("form", FORMS)
@given(draw=st.data())
def test_a_flipped_bit_anywhere_is_noticed(form, draw, whole, tmp_path_factory):
    data = bytearray(whole[form])
    place = draw.draw(st.integers(0, 8 * len(data) - 1))
    data[place // 8] ^= 1 << place % 8
    refused(FORMS[form][1], tmp_path_factory.getbasetemp() / "flipped", bytes(data))


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_or_longer_is_noticed(form, whole, tmp_path):
    data = whole[form]
    for end in {*range(100), *range(100, len(data), 37), len(data) - 1}:
        refused(FORMS[form][1], tmp_path / "net", data[:end])
    refused(FORMS[form][1], tmp_path / "net", data + b"\0")


def number(value):
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + number(value // 128)


def leaf(path, shape, *rest, kind=1, shared=0):
    numbers = [8 * len(shape) + kind, *shape, *rest]
    return number(shared) + number(len(path)) + path + b"".join(map(number, numbers))


def sealed(*parts):
    """A file with these contents and the right SHA-256."""
    start, body = b"\x93nopr\x01", b"".join(parts)
    return start + hashlib.sha256(start + body).digest()[:16] + body


STATE = (2**31).to_bytes(8, "little")
ZEROS, BOMB = zlib.compress(bytes(10**6)), zlib.compress(bytes(7 * 10**7), 1)
HOSTILE = {
    "no leaves": ([number(0)], "it has no mask"),
    "values alone": ([number(1), leaf(b"w", (0,), 11, kind=2)], "it has no mask"),
    "a huge number of leaves": ([number(2**60)], "ends too early"),
    "a huge path": ([number(1), number(0), number(2**60), b"w"], "ends too early"),
    "a number without end": ([b"\xff" * 20], "a number that is too large"),
    "a path that shares too much": ([number(1), leaf(b"w", (1,), 0, shared=3)], "shares more"),
    "a path that is no text": ([number(1), leaf(b"\xff", (1,), 0)], "a path is not text"),
    "two leaves at one path": (
        [number(2), leaf(b"w", (1,), 0), leaf(b"w", (1,), 0)],
        "two leaves at 'w'",
    ),
    "paths that share 60,000 letters": (
        [number(2000), leaf(b"x" * 60_000, (1,), 0)]
        + [leaf(b"%d" % i, (1,), 0, shared=60_000) for i in range(1999)],
        "paths have more than 16,777,216 bytes",
    ),
    "10^15 weights": ([number(1), leaf(b"w", (10**15,), 0)], "more than 2,147,483,647 weights"),
    "10^15 weights of 0": ([number(1), leaf(b"w", (0, 10**15), 0)], "more than 2,147,483,647"),
    "10^30 weights": ([number(1), leaf(b"w", (10**15, 10**15), 0)], "more than 2,147,483,647"),
    "many leaves of many weights": (
        [number(3), *[leaf(name, (2**30,), 0) for name in (b"u", b"v", b"w")]],
        "more than 2,147,483,647 weights, at 'v'",
    ),
    "many dimensions": ([number(1), leaf(b"w", (1,) * 65, 0)], "'w' is of an unknown kind"),
    "an unknown kind": ([number(1), leaf(b"w", (1,), 0, 0, kind=4)], "'w' is of an unknown kind"),
    "an unknown dtype": ([number(1), leaf(b"w", (1,), 99, 0, kind=3)], "of an unknown dtype"),
    "more kept than there are": ([number(1), leaf(b"w", (3,), 4)], "keeps 4 of 3 weights at 'w'"),
    "half of 2^31 kept in a few bytes": (
        [number(1), leaf(b"w", (2**31 - 1,), 2**30), STATE],
        "its counts do not fit the length",
    ),
    "half of 2^29 kept in a file of their states": (
        [number(1), leaf(b"w", (2**29,), 2**28), STATE * 2**11],
        "its counts do not fit the length",
    ),
    "no code": ([number(1), leaf(b"w", (30,), 4)], "its counts do not fit the length"),
    "a code of nothing": ([number(1), leaf(b"w", (30,), 0), STATE], "counts do not fit the length"),
    "a code that ends early": (
        [number(1), leaf(b"w", (60,), 30), STATE],
        "its masks end too early",
    ),
    "a code that goes on": (
        [number(1), leaf(b"w", (30,), 1), bytes([255] * 20)],
        "do not end where their code does",
    ),
    "a mask of another count": (
        [number(1), leaf(b"w", (10,), 5), (2**47).to_bytes(8, "little")],
        "its counts do not fit its masks",
    ),
    "a weight behind the last": (
        [number(1), leaf(b"w", (10,), 5), (2**47 + 6884 * 2**15).to_bytes(8, "little")],
        "its counts do not fit its masks",
    ),
    "a deflated mask that is longer than the file": (
        [number(1), leaf(b"w", (80,), 4, 10**12, kind=5)],
        "its lengths do not add up",
    ),
    "a deflated mask that is something else": (
        [number(1), leaf(b"w", (80,), 4, 10, kind=5), b"0123456789"],
        "'w' cannot be inflated",
    ),
    "a deflated mask that inflates to more": (
        [number(1), leaf(b"w", (80,), 0, len(BOMB), kind=5), BOMB],
        "'w' cannot be inflated",
    ),
    "a deflated mask that inflates to less": (
        [number(1), leaf(b"w", (2**31 - 1,), 0, len(ZEROS), kind=5), ZEROS],
        "'w' cannot be inflated",
    ),
    "a deflated mask of another count": (
        [number(1), leaf(b"w", (8 * 10**6,), 1, len(ZEROS), kind=5), ZEROS],
        "'w' does not fit its count",
    ),
    "values that are not there": (
        [number(1), leaf(b"w", (10**9,), 11, 10**9, kind=3)],
        "its lengths do not add up",
    ),
    "bools that are neither": (
        [number(1), leaf(b"w", (2,), 0, 2, kind=3), b"\1\2"],
        "values at 'w' are not bool",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_without_memory_for_its_claims(name, tmp_path):
    contents, match = HOSTILE[name]
    path = tmp_path / "hostile"
    path.write_bytes(sealed(*contents))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"which is damaged: .*{match}.* Copy it again"):
            (export.load_pruned if "value" in match else LOAD_MASKS)(path)
        assert tracemalloc.get_traced_memory()[1] < 60 * 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kept", "low", "match"),
    [
        ([8, 9], 0 + 8 * 0, "hold a position twice or out of range"),
        ([8, 9], 1 + 8 * 0, "hold a position twice or out of range"),
        ([8, 1000], 0 + 8 * 7, "hold a position twice or out of range"),
        ([8, 9], 0 + 8 * 1 + 64, "its low bits do not end in zeros"),
    ],
)
def test_low_bits_of_impossible_positions_are_refused(kept, low, match, tmp_path):
    mask = np.isin(np.arange(1001), kept)  # the low bits of a position are 3, at the end
    path = SAVE_MASKS({"w": mask}, tmp_path / "m")
    path.write_bytes(sealed(path.read_bytes()[22:-1], bytes([low])))
    with pytest.raises(ValueError, match=match):
        LOAD_MASKS(path)


@given(draw=st.data())
def test_a_hostile_file_gives_masks_or_one_line(draw, whole, tmp_path_factory):
    body = bytearray(whole["packed"][22:])
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, min(len(body), 60) - 1))
        body[place] = draw.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "sealed"
    path.write_bytes(sealed(bytes(body)))
    for load in (LOAD_MASKS, export.load_pruned):
        try:
            load(path)
        except ValueError as error:
            said = str(error)
        else:
            said = ""
        assert "\n" not in said


def npz():
    data = io.BytesIO()
    np.savez(data, w=MASK)
    return data.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93no", b"nopr is a library", npz(), bytes(10**6)],
    ids=lambda data: str(data[:9]),
)
def test_a_file_that_is_not_ours_is_refused_in_one_line(data, tmp_path):
    path = tmp_path / "other"
    path.write_bytes(data)
    for load in (LOAD_MASKS, export.load_pruned):
        with pytest.raises(
            ValueError, match=r"`path` must be a packed file .* which begins with b"
        ):
            load(path)
    with pytest.raises(ValueError, match=r"which safetensors cannot read: .* Give a whole file of"):
        export.load_safetensors(path)


def test_a_file_of_the_other_form_or_of_masks_alone_is_refused(whole, tmp_path):
    (tmp_path / "s").write_bytes(whole["safetensors"])
    (tmp_path / "p").write_bytes(whole["packed"])
    for load, name in ((LOAD_MASKS, "s"), (export.load_safetensors, "p")):
        with pytest.raises(ValueError, match=DAMAGED):
            load(tmp_path / name)
    path = SAVE_MASKS({"w": MASK}, tmp_path / "m")
    with pytest.raises(ValueError, match=r"which has masks alone\. Read it with `load_masks`"):
        export.load_pruned(path)


def test_a_file_of_a_later_version_asks_for_a_later_library(tmp_path):
    start, body = b"\x93nopr\x02", b"anything"
    data = start + hashlib.sha256(start + body).digest()[:16] + body
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(ValueError, match=r"version 1, got .* of version 2\. Update nopr"):
        LOAD_MASKS(tmp_path / "m")


def test_a_file_that_is_not_there_is_named(tmp_path):
    for load in (LOAD_MASKS, export.load_pruned, export.load_safetensors):
        with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*nowhere"):
            load(tmp_path / "nowhere")


def with_metadata(tensors, path, **metadata):
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype.name}\0{tensor.shape}\0".encode() + tensor.tobytes())
    said = {"nopr": "pruned params 1", "sha256": digest.hexdigest()}
    save_file(tensors, path, {**said, **metadata})


@pytest.mark.parametrize(
    ("tensors", "metadata", "match"),
    [
        ({"w": W}, {"nopr": "params 7"}, "which has no metadata `nopr: pruned params 1`"),
        ({"w": W}, {"sha256": "0"}, "its tensors do not match its SHA-256"),
        ({"w": W, "masks/v": MASK}, {}, "the mask at 'v' is not one of its params"),
        ({"w": W, "masks/w": W}, {}, "the mask at 'w' is not one of its params"),
        ({"w": W, "masks/w": MASK[:1]}, {}, "the mask at 'w' is not one of its params"),
        ({"w": W.astype(np.complex64)}, {}, "the tensor 'w' has the unknown dtype C64"),
    ],
)
def test_safetensors_of_others_are_refused_in_one_line(tensors, metadata, match, tmp_path):
    with_metadata(tensors, tmp_path / "net", **metadata)
    with pytest.raises(ValueError, match=f"`path` must be a safetensors file of nopr.*{match}"):
        export.load_safetensors(tmp_path / "net")
