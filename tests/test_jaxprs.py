import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nopr import jaxprs, precision

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
KEY = jax.random.key(0)
TABLE = np.arange(3.0, dtype=np.float32)


@jax.custom_vjp
def given_vjp(x):
    return jnp.sin(x) * 2


given_vjp.defvjp(lambda x: (given_vjp(x), x), lambda x, g: (g * x,))


@jax.custom_jvp
def given_jvp(x):
    return jnp.sin(x) + TABLE


given_jvp.defjvp(lambda primals, tangents: (given_jvp(*primals), tangents[0]))


def nested(x):
    """Calls in branches in loops in loops."""

    def branch(row):
        return jax.lax.scan(lambda c, value: (jnp.tanh(c + given_vjp(value)), c), 0.0, row)[0]

    def body(carry, row):
        on = jax.lax.cond(row[0] > 0, branch, lambda row: row.sum(), row)
        carry = jax.lax.while_loop(lambda c: c < on, lambda c: c + 0.5, carry)
        return carry, jax.checkpoint(given_jvp)(row)

    total, rows = jax.lax.scan(body, 0.0, x)
    return {"total": total, "rows": rows}, jax.jit(lambda x: x @ x.T)(x)


def names(program):
    return {eqn.primitive.name for eqn in jaxprs.equations(program)}


@pytest.mark.parametrize(
    "rules", [None, {"mul": lambda eqn, values: jaxprs.bind(eqn, *values)}], ids=["bound", "walked"]
)
def test_evaluation_through_the_walk_is_the_function(rules):
    program, shape = jaxprs.trace(nested, X)
    assert {"while", "cond", "scan", "dot_general", "sin", "tanh"} <= names(program)
    found = jax.jit(lambda x: jaxprs.evaluate(program, [x], rules))(X)
    expected = jax.jit(nested)(X)
    assert jax.tree.structure(shape) == jax.tree.structure(expected)
    for mine, other in zip(found, jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_derivatives_given_by_hand_stay_where_there_are_no_rules():
    program, _ = jaxprs.trace(given_vjp, X)
    through = jax.grad(lambda x: jaxprs.evaluate(program, [x])[0].sum())(X)
    np.testing.assert_array_equal(through, X)  # and not 2 cos(x)


def test_rules_reach_into_calls_and_take_the_place_of_operations():
    function = jax.jit(lambda x: jax.checkpoint(given_jvp)(x) + given_vjp(x))
    program, _ = jaxprs.trace(function, X)
    found = jaxprs.evaluate(program, [X], {"sin": lambda eqn, values: [jnp.cos(values[0])]})
    np.testing.assert_allclose(found[0], 3 * jnp.cos(X) + TABLE, rtol=1e-6)
    skipped = jaxprs.evaluate(program, [X], {"jit": lambda eqn, values: [jnp.zeros((2, 3))]})
    np.testing.assert_array_equal(skipped[0], np.zeros((2, 3)))


def test_a_fold_carries_any_value_for_every_variable():
    """Here the names of the arguments that a result is made of."""

    def depends(eqn, operands):
        call = jaxprs.called(eqn)
        if call is not None:
            return jaxprs.fold(call, operands, depends, constant=lambda _: frozenset())
        return [frozenset().union(*operands)] * len(eqn.outvars)

    @jax.jit
    def function(x, y, z):
        return x * 2 + TABLE, jax.jit(lambda a, b: (a + b, b))(y, z)

    program, _ = jaxprs.trace(function, X, X, X)
    arguments = [frozenset(name) for name in "xyz"]
    found = jaxprs.fold(program, arguments, depends, constant=lambda _: frozenset())
    assert ["".join(sorted(names)) for names in found] == ["x", "yz", "z"]


def test_programs_within_an_operation_are_found():
    program, _ = jaxprs.trace(lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), X)
    (cond,) = (eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == jaxprs.COND)
    assert [names(branch) for branch in jaxprs.inner(cond)] == [{"cos"}, {"sin"}]
    assert jaxprs.called(cond) is None
    doubled, _ = jaxprs.trace(lambda x: precision.in_double(jnp.sin, x), X)
    assert {precision.IN_DOUBLE, "sin"} <= names(doubled)


def test_constants_become_arguments():
    program, _ = jaxprs.trace(lambda x: x * jnp.asarray(TABLE) + jnp.asarray(TABLE[::-1]), X)
    assert len(program.consts) == 2
    expected = jaxprs.run(program)(X)
    for which, count in ((lambda _: True, 2), (lambda const: float(const[0]) == 0, 1)):
        constants, opened = jaxprs.hoisted(program, which)
        assert (len(constants), len(opened.consts)) == (count, 2 - count)
        np.testing.assert_array_equal(jaxprs.run(opened)(*constants, X), expected)
    zeros = jaxprs.replace_constants(program, [np.zeros(3, np.float32)] * 2)
    np.testing.assert_array_equal(jaxprs.run(zeros)(X)[0], np.zeros((2, 3)))


# --- Digests -----------------------------------------------------------------------------------


def digest(function, *args):
    return jaxprs.digest(jaxprs.trace(function, *(args or (X[0],))).program)


@pytest.mark.long
def test_a_digest_is_of_what_is_computed_whenever_it_was_traced():
    def draw(key):
        return precision.in_double(lambda x: x * 2, jax.random.normal(key))

    def every():
        return [
            digest(jax.jit(lambda y: y * TABLE)),
            digest(lambda x: jax.nn.relu(x) + jnp.ones(3)),
            digest(draw, jax.random.key(0)),
            digest(nested, X),
        ]

    digests = every()
    assert len(set(digests)) == 4
    jax.clear_caches()
    assert every() == digests


def in_context(context, function):
    def entered(x):
        with context():
            return function(x)

    return entered


@pytest.mark.parametrize(
    ("function", "other"),
    [
        (lambda x: x * 2, lambda x: x * 3),
        (lambda x: x - x[::-1], lambda x: x[::-1] - x),
        (lambda x: x * TABLE, lambda x: x * (TABLE + 1)),
        (lambda x: x * jnp.asarray(TABLE), lambda x: x * jnp.asarray(TABLE + 1)),
        (jax.jit(lambda y: y * TABLE), jax.jit(lambda y: y * (TABLE + 1))),
        (
            lambda x: jax.lax.cond(x[0] > 0, lambda: x * TABLE, lambda: x),
            lambda x: jax.lax.cond(x[0] > 0, lambda: x * (TABLE + 1), lambda: x),
        ),
        (
            lambda x: precision.in_double(lambda y: y * 2.5, x),
            lambda x: precision.in_double(lambda y: y * 1.5, x),
        ),
        (lambda x: jax.random.bits(KEY), lambda x: jax.random.bits(jax.random.key(1))),
        (jnp.sin, jnp.cos),
        (
            lambda x: jax.random.bits(KEY, (4,)),
            in_context(
                lambda: jax.threefry_partitionable(False), lambda x: jax.random.bits(KEY, (4,))
            ),
        ),
    ],
)
def test_another_operation_or_constant_gives_another_digest(function, other):
    assert digest(function) != digest(other)


def test_python_code_that_results_depend_on_is_named():
    like = jax.ShapeDtypeStruct((3,), jnp.float32)

    def calls_back(x):
        jax.debug.print("{x}", x=x)
        jax.debug.callback(lambda x: None, x)
        x = jax.lax.scan(
            lambda c, _: (jax.pure_callback(np.sin, like, c), None), x, None, length=2
        )[0]
        return jax.experimental.io_callback(np.sin, like, x)

    assert jaxprs.opaque(jaxprs.trace(calls_back, X[0]).program) == ["io_callback", "pure_callback"]
    assert jaxprs.opaque(jaxprs.trace(nested, X).program) == []
    gradient = jax.grad(lambda x: given_jvp(given_vjp(x)).sum())
    assert jaxprs.opaque(jaxprs.trace(gradient, X).program) == []
    one_by_one = jax.custom_batching.sequential_vmap(jnp.sin)
    assert jaxprs.opaque(jaxprs.trace(one_by_one, X).program) == []
    batched_by_hand = jax.custom_batching.custom_vmap(jnp.sin)
    batched_by_hand.def_vmap(lambda size, batched, x: (jnp.cos(x), True))
    assert jaxprs.opaque(jaxprs.trace(batched_by_hand, X).program) == ["custom_vmap_call"]


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
def test_keys_that_are_made_inside_are_no_python_code_and_their_generator_counts(generator):
    def draw(seed):
        return jax.random.uniform(jax.random.key(seed, impl=generator))

    program = jaxprs.trace(draw, 0).program
    assert jaxprs.opaque(program) == []
    assert jaxprs.digest(program) == jaxprs.digest(jaxprs.trace(draw, 0).program)
    other = jaxprs.trace(lambda seed: jax.random.uniform(jax.random.key(seed)), 0).program
    assert (jaxprs.digest(program) == jaxprs.digest(other)) == (generator == "threefry2x32")
