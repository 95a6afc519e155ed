import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental import checkify
from lanes_cases import FUNCTIONS, X, Y, tripled, twice

from nopr import jaxprs
from nopr.sweeps import lanes
from nopr.sweeps.lanes import interpreter, sums

QUICK = {"xla_backend_optimization_level": 0}  # halves the time; values are what is compared


def plain(leaf):
    """A leaf as NumPy compares it; keys by their bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def assert_close(found, expected, tolerance=3e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        if plain(mine).dtype.kind in "biu":
            np.testing.assert_array_equal(plain(mine), plain(other))
        else:
            close = 1e-2 if mine.dtype == jnp.bfloat16 else tolerance
            wide = [plain(leaf).astype(np.complex128) for leaf in (mine, other)]
            np.testing.assert_allclose(*wide, rtol=close, atol=close)


@pytest.mark.parametrize(("function", "in_axes", "args"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_it_gives_what_vmap_gives(function, in_axes, args):
    found, expected = (
        jax.jit(way(function, in_axes)).lower(*args).compile(QUICK)(*args)
        for way in (lanes.vmap, jax.vmap)
    )
    assert_close(found, expected)


def test_every_rule_is_tried_above():
    tried = set()

    for function, in_axes, args in FUNCTIONS.values():
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        pairs = zip(args, axes, strict=True)
        one = [jax.tree.map(lambda x: x[0], arg) if axis == 0 else arg for arg, axis in pairs]
        program, _ = jaxprs.trace(lambda *_, f=function, one=one: f(*one))
        tried.update(eqn.primitive.name for eqn in jaxprs.equations(program))
        assert jaxprs.opaque(program) == []
    assert set(interpreter.RULES) | set(interpreter.CONTROL) <= tried


def pair_of(make, *args):
    """What `make(vmap)` gives for ours and for JAX's."""
    return [jax.jit(make(vmap))(*args) for vmap in (lanes.vmap, jax.vmap)]


@pytest.mark.parametrize(
    "make",
    [
        lambda vmap: vmap(vmap(jnp.outer, (0, None)), (None, 0)),
        lambda vmap: jax.vmap(vmap(jnp.outer, (0, None)), (None, 0)),
        lambda vmap: vmap(jax.vmap(jnp.outer, (0, None)), (None, 0)),
        lambda vmap: lambda x, y: lax.map(lambda row: vmap(jnp.vdot, (None, 0))(row, y), x),
        lambda vmap: jax.jacfwd(lambda x, y: vmap(jnp.outer)(x, y).sum(0)),
    ],
    ids=["in itself", "in vmap", "around vmap", "in a loop", "in a derivative"],
)
def test_it_nests(make):
    assert_close(*pair_of(make, X[0], X[1]))


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.relu,  # its derivative at 0 is given by hand, and 0
        jax.checkpoint(lambda x: jnp.sin(jnp.sin(x) @ x.T)),
        lambda x: jnp.tanh(x @ x.T).sum() + jax.nn.logsumexp(x) + x.max(),
        lambda x: tripled(x, 3)[0],
        twice,
        lambda x: lax.cond(x[0, 0] > 0, jnp.sqrt, jnp.sin, x[0, 0]),
        lambda x: lax.scan(lambda c, row: (jnp.tanh(c + row), c.sum()), x[0], x),
    ],
    ids=["relu", "remat", "network", "custom_jvp", "custom_vjp", "cond", "scan"],
)
def test_derivatives_from_outside_are_those_of_vmap(function):
    def make(vmap):
        def total(x):
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(vmap(function)(x)))

        return jax.value_and_grad(total)

    assert_close(*pair_of(make, X.at[0, 0].set(0.0)))


def test_double_precision_stays_double(double):
    x, y = (np.asarray(leaf, np.float64) for leaf in (X, Y))
    found, expected = pair_of(lambda vmap: vmap(jax.value_and_grad(wave)), x, y)
    assert_close(found, expected, tolerance=1e-13)


def wave(x, y):
    return jnp.mean(jnp.tanh(x @ y) ** 2)


def test_what_all_cases_share_reaches_the_function_as_it_is():
    found = lanes.vmap(lambda x, n, name: {name: x[:n]}, (0, None, None))(X, 2, "rows")
    np.testing.assert_array_equal(found["rows"], X[:, :2])


def test_outside_jit_it_gives_the_same():
    found = lanes.vmap(lambda x, y: jnp.tanh(x @ y))(np.asarray(X), Y)
    assert_close(found, jax.vmap(lambda x, y: jnp.tanh(x @ y))(X, Y))


@pytest.mark.parametrize("inside", [True, False])
def test_a_check_that_fails_is_reported(inside):
    def check(x):
        checkify.debug_check(jnp.all(x < 1.5), "too large")
        return x @ x.T

    def checkified(f):
        return checkify.checkify(f, errors=checkify.user_checks)

    run = lanes.vmap(checkified(check)) if inside else checkified(lanes.vmap(check))
    error, found = jax.jit(run)(X)
    assert "too large" in error.get()
    np.testing.assert_allclose(found, X @ X.mT, rtol=1e-5, atol=1e-6)
    assert jax.jit(run)(X / 10)[0].get() is None


def test_callbacks_see_every_case_once():
    seen = []

    def told(x):
        jax.debug.callback(lambda s: seen.append(float(s)), x[0, 0])
        return x

    jax.block_until_ready(jax.jit(lanes.vmap(told))(X))
    jax.effects_barrier()
    assert sorted(seen) == sorted(X[:, 0, 0].tolist())


AWKWARD = 37  # cases: no multiple of any vector


def delicate(x, y, label):
    params = {"w": y, "b": x[0, :2]}

    def loss(params):
        logits = jnp.tanh(x @ params["w"] + params["b"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    def step(params, _):
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params)), None

    wide = jnp.sin(jnp.outer(x, jnp.arange(70.0)))
    row = x[0, :3] * 1.7 + 0.3
    curves = [f(row) * row + x.sum() for f in (jnp.arctan, jnp.sin, jnp.exp, jax.nn.softmax)]
    return lax.scan(step, params, None, length=20)[0], curves, wide.sum(0), wide @ wide[0]


def awkward_cases():
    keys = jax.random.split(jax.random.key(7), 3)
    labels = jax.random.randint(keys[2], (AWKWARD, 3), 0, 2)
    x, y = (
        jax.random.normal(k, (AWKWARD, *s)) for k, s in zip(keys, [(3, 4), (4, 2)], strict=False)
    )
    return tuple(np.asarray(leaf) for leaf in (x, y, labels))


DELICATE = jax.jit(lanes.vmap(delicate))


@settings(max_examples=20)
@given(st.lists(st.integers(0, AWKWARD - 1), min_size=AWKWARD, max_size=AWKWARD))
def test_no_bit_of_a_case_depends_on_its_place_or_on_the_other_cases(order):
    cases = awkward_cases()
    first = jax.tree.map(np.asarray, DELICATE(*cases))
    moved = DELICATE(*(leaf[np.array(order)] for leaf in cases))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[np.array(order)], b), first, moved)


def compiled_text(function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(lanes.vmap(function)).lower(*args).compile().as_text()


def test_small_products_become_multiply_adds_and_large_ones_stay_products():
    small = compiled_text(jnp.matmul, (64, 3, 4), (64, 4, 2))
    assert " dot(" not in small
    assert " call(" in small  # its own, or it would be fused into every reader
    large = compiled_text(jnp.matmul, (16, 3, sums.TERMS + 1), (16, sums.TERMS + 1, 2))
    assert " dot(" in large


def test_cases_lie_along_the_last_axis_in_loops():
    def train(x, y):
        return lax.scan(lambda w, _: (w - 0.1 * jnp.tanh(x.T @ (x @ w)), None), y, None, length=9)[
            0
        ]

    text = compiled_text(train, (64, 3, 4), (64, 4, 2))
    loop = [line for line in text.splitlines() if "while/body" in line]
    assert any("f32[4,2,64]" in line for line in loop)
    assert not any("f32[64," in line for line in loop)


@pytest.mark.parametrize(
    ("in_axes", "args", "match"),
    [
        (1, (X,), "`in_axes` must be 0, None or a tuple of these, got 1"),
        ((0, -1), (X, X), r"`in_axes` must be .*, got \(0, -1\)"),
        ([0], (X,), r"got \[0\]"),
        (True, (X,), "got True"),
        (None, (X,), "`in_axes` must have a 0 for some argument, got None"),
        ((None, None), (X, X), r"got \(None, None\)"),
        ((0, None), (X,), r"an entry for each argument, got \(0, None\) for 1"),
        (0, ({"a": X, "b": X[:2]},), "`args` must share .*, got 2 cases at '0/b' and 5 at '0/a'"),
        (0, (X, X[:4]), "got 4 cases at '1' and 5 at '0'"),
        (0, (X, 3.0), r"a leading axis of at least one case, got shape \(\) at '1'"),
        (0, (None,), "`args` must have at least one array, got none"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(in_axes, args, match):
    with pytest.raises(ValueError, match=match):
        lanes.vmap(lambda *args: args[0], in_axes)(*args)


def test_mutable_arrays_are_refused():
    def mutates(x):
        ref = jax.new_ref(x)
        ref[...] = x + 1
        return ref[...]

    with pytest.raises(NotImplementedError, match="supports no mutable arrays, got 'new_ref'"):
        jax.jit(lanes.vmap(mutates))(X)
