"""Functions of one case on which `lanes.vmap` must agree with `jax.vmap`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import checkify

from nopr import criteria, finetune, masks, networks, precision

CASES = 5
KEY = jax.random.key(0)


def draw(number, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, number), (CASES, *shape))


X = draw(0, 3, 4)
Y = draw(1, 4, 2)
V = draw(3, 4)
S = draw(4)
N = jnp.array([[0, 2], [1, 1], [2, 3], [3, 0], [-1, 9]])
COUNT = jnp.array([0, 3, 1, 7, 2])
B = X > 0
KEYS = jax.random.split(KEY, CASES)
SHARED = jnp.arange(12.0).reshape(3, 4) / 7 - 0.5


class Pair(NamedTuple):
    first: Any
    second: Any


def unary(x, n):
    small, big = jnp.tanh(x) * 0.9, jnp.abs(x) + 1.1
    f, g = (
        (jnp.exp, jnp.exp2, jnp.expm1, jnp.sin, jnp.cos, jnp.tan, jnp.tanh, jnp.arctan, jnp.sinh),
        (jnp.log, jnp.log1p, jnp.sqrt, lax.rsqrt, jnp.cbrt, jnp.arccosh, lax.digamma, lax.lgamma),
    )
    return (
        [h(x) for h in (*f, jnp.cosh, jnp.arcsinh, jax.nn.sigmoid, lax.erf, lax.erfc, jnp.square)],
        [h(big) for h in g],
        [h(small) for h in (jnp.arcsin, jnp.arccos, jnp.arctanh, lax.erf_inv)],
        [h(x * 3) for h in (jnp.floor, jnp.ceil, jnp.round, jnp.sign, jnp.abs, jnp.negative)],
        [
            lax.bessel_i0e(x),
            lax.bessel_i1e(x),
            jnp.isfinite(x),
            x**3,
            x**-2,
            jnp.array(x, copy=True),
        ],
        [~n, lax.population_count(n), lax.clz(n), -n, jnp.logical_not(n)],
        x.astype(jnp.bfloat16).astype(jnp.float32),
        lax.reduce_precision(x, 5, 7),
        lax.stop_gradient(x),
    )


def binary(x, v, s, n, shared):
    return (
        [f(x, v) for f in (jnp.add, jnp.subtract, jnp.multiply, jnp.divide, jnp.maximum)],
        [f(shared, v) for f in (jnp.minimum, jnp.arctan2, jnp.less, jnp.equal, jnp.hypot)],
        [f(x, s) for f in (jnp.greater_equal, jnp.not_equal, jnp.logaddexp, jnp.nextafter)],
        [f(s, shared) for f in (jnp.less_equal, jnp.greater, jnp.remainder, jnp.copysign)],
        [jnp.power(jnp.abs(x), s), 2.0**x, x * 3, 3 / x, s + 1, s * s],
        [f(n, n[::-1]) for f in (jnp.bitwise_and, jnp.bitwise_or, jnp.bitwise_xor)],
        [n << 2, n >> 1, lax.shift_right_logical(n, jnp.ones_like(n)), n % 3, n // 2],
        [x[:, :1] * v[None], lax.igamma(jnp.abs(x) + 1, jnp.abs(shared) + 1)],
        [lax.complex(x, shared), jnp.abs(lax.complex(x, x)), jnp.conj(lax.complex(x, x) * 1j)],
        [lax.complex(x, shared).real, lax.complex(shared, x).imag, lax.igammac(x**2, x**2)],
        jax.scipy.special.betainc(jnp.abs(x) + 1, 2.0, jax.nn.sigmoid(s)),
        jax.scipy.special.zeta(jnp.abs(x) + 2, 1.5),
        jax.scipy.special.polygamma(1, jnp.abs(x) + 1),
    )


def choices(x, b, s, shared):
    return (
        jnp.where(b, x, shared),
        jnp.where(b, 1.0, 0.0),
        jnp.where(s > 0, x, shared),
        jnp.where(shared > 0, x, s),
        lax.select_n(b, shared, shared + 1),
        lax.select_n((x * 3).astype(int).clip(0, 2), x, shared, x + 1),
        jnp.clip(x, s - 1, s + 1),
        jnp.clip(shared, -0.1, s),
        lax.clamp(-0.2, x, 0.3),
        jax.nn.relu(x),
    )


def shapes(x, v, shared):
    return (
        [x.reshape(2, 6), x.ravel(), x.T, x[None], x[:, None, :, None], jnp.squeeze(x[:1])],
        [x[1:3, ::2], x[::-1], x[..., -1], x[0], jnp.flip(x, 1), jnp.roll(x, 1, 1)],
        [jnp.concatenate([x, shared]), jnp.stack([v, shared[0]], 1), jnp.append(v, 1.0)],
        [jnp.pad(x, ((1, 0), (0, 2))), lax.pad(x, 0.5, ((0, -1, 1), (2, 0, 0)))],
        [lax.pad(shared, v[0], ((0, 1, 0), (0, 0, 0))), jnp.tile(v, (2, 2)), jnp.repeat(v, 2)],
        [jnp.broadcast_to(v, (2, 3, 4)), jnp.split(x, 2, axis=1), jnp.moveaxis(x[None], 0, 2)],
        [lax.bitcast_convert_type(x, jnp.int32), lax.bitcast_convert_type(x, jnp.uint8)],
        [jnp.diag(v), jnp.tril(x), jnp.outer(v, v), jnp.zeros_like(x), jnp.eye(3) * v[0]],
        lax.reshape(x, (12,), dimensions=(1, 0)),
        jnp.zeros((0, 4)) + v,
    )


def reductions(x, b, n, shared):
    long = jnp.concatenate([x.ravel()] * 30)
    return (
        [f(x) for f in (jnp.sum, jnp.prod, jnp.max, jnp.min, jnp.mean, jnp.var, jnp.argmax)],
        [f(x, axis=1) for f in (jnp.sum, jnp.prod, jnp.max, jnp.min, jnp.argmin, jnp.std)],
        [f(x, axis=0, keepdims=True) for f in (jnp.sum, jnp.argmax, jax.nn.logsumexp)],
        [f(b, axis=0) for f in (jnp.any, jnp.all, jnp.sum)],
        [jnp.sum(n), jnp.max(n), jnp.bitwise_or.reduce(n), lax.reduce_xor(n, axes=(0,))],
        [f(x, axis=1) for f in (jnp.cumsum, jnp.cumprod, lax.cummax, lax.cummin)],
        [lax.cumlogsumexp(x, axis=0, reverse=True), jax.nn.softmax(x), jax.nn.log_softmax(x, 0)],
        [long.sum(), long.max(), long.reshape(18, 20).sum(0), jnp.sum(x[:0], axis=0)],
        [long.reshape(18, 20).max(1), (long > 1).any(), long[:100].sum(), long[:35].max()],
        [(x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5), jnp.linalg.norm(x), jnp.median(x)],
        lax.reduce((x, shared), (0.0, 1.0), lambda a, b: (a[0] + b[0], a[1] * b[1]), (0,)),
        lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 2), "VALID"),
    )


def contractions(x, y, v, n, shared):
    bf, more, narrow = jnp.bfloat16, jnp.arange(70.0), x.astype(jnp.bfloat16)
    waves = jnp.sin(jnp.outer(more[:30], v[0] + more[:13]))
    ones = jnp.ones(60, bf)
    spike = ones.at[0].set((256 + 0 * v[0]).astype(bf))  # where bfloat16 forgets to count by one
    return (
        [x @ y, x @ v, v @ y, v @ v, shared @ y, x @ shared.T, shared @ v, x.T @ x],
        [jnp.einsum("ij,kj->ik", x, shared), jnp.einsum("ij,ij->i", x, shared), jnp.outer(v, x)],
        [jnp.einsum("ij,ij->", x, x), jnp.einsum("bij,bjk->bik", x[None] * 2, y[None])],
        [jnp.einsum("abc,cda->bd", x[:, :2, None] + v, y[:, :, None] - x[:, 0]), jnp.vdot(x, x)],
        [lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)],
        [n @ n.T, n.astype(jnp.int8)[None] @ n.astype(jnp.int8)[:, None], (n > 0) @ (n > 1)],
        [narrow @ y.astype(bf), jnp.dot(narrow, y.astype(bf), preferred_element_type=jnp.float32)],
        [x[:0] @ y, x[:, :0] @ y[:0], (x + 1j) @ y, jnp.kron(v, v)],
        [jnp.sin(more * v[0]) @ more, jnp.einsum("i,ij->j", more, jnp.outer(more, v))],
        [
            waves @ waves.T,
            jnp.einsum("ik,ki->k", waves, waves.T),
            waves.T[:9] @ waves,
            spike @ ones,
        ],
    )


def indices(x, v, n, shared):
    first, two = n[0], n[:2]
    rows = jnp.array([2, 0])
    return (
        [x[1], x[rows], x[rows, rows + 1], x[:, rows], jnp.take(x, rows, axis=1), x[..., None]],
        [v[first], x[n.clip(0, 2)], shared[n.clip(0, 2)], jnp.take(v, n), x[rows, n.clip(0, 3)]],
        [jnp.take_along_axis(x[:2], two[:, None], 1), jnp.take_along_axis(x, rows[:, None], 0)],
        [jnp.take_along_axis(shared[:2], two[:, None] % 4, 1, mode="clip")],
        [jnp.take_along_axis(x[:2], two[:, None], 1, mode=m) for m in ("fill", "clip")],
        [jnp.take_along_axis(x, (x * 2).astype(int) % 4, 1), jnp.take_along_axis(n, n % 2, 0)],
        [jnp.take_along_axis(jnp.sin(jnp.arange(80.0) * v[0])[None], n[None], 1)],
        [x.at[1].set(0.0), x.at[rows].add(1.0), shared.at[rows].multiply(v[0]), v.at[0].max(9.0)],
        jax.vmap(lambda row, place: row.at[place].add(1.0))(x[:2], n),
        [v.at[first].set(7.0), v.at[n].add(1.0), shared.at[:, first].add(v[:3]), v.at[n].min(0.0)],
        [lax.dynamic_slice(x, (first, 0), (2, 2)), lax.dynamic_slice(x, (1, 2), (2, 2))],
        [lax.dynamic_update_slice(shared, x[:1], (1, 0)), lax.dynamic_slice(v, n[:1], (2,))],
        [lax.dynamic_update_slice(x, shared[:1], (first, 0)), jax.nn.one_hot(n, 4)],
        [jnp.sort(x), jnp.argsort(x, 0), lax.top_k(v, 2), jnp.searchsorted(jnp.sort(v), v[:2])],
        [lax.sort((x, shared), dimension=0), jnp.unique(n, size=3), jnp.nonzero(n, size=2)],
    )


def look_up_loss(x, n):
    def loss(x):
        return optax.softmax_cross_entropy_with_integer_labels(x[:2], n % 4).mean()

    return jax.value_and_grad(loss)(x), jax.grad(lambda x: x[jnp.arange(2), n % 4].sum())(x)


def algebra(x):
    square = x @ x.T + 3 * jnp.eye(3)
    return (
        [jnp.linalg.inv(square), jnp.linalg.cholesky(square), jnp.linalg.det(square)],
        [jnp.linalg.svd(x, compute_uv=False), jnp.linalg.eigvalsh(square)],
        [jnp.linalg.solve(square, x), jax.scipy.linalg.expm(x[:, :3] / 3), jnp.fft.rfft(x)],
    )


def convolution(x, y):
    image, kernel = x[None, :, :, None], y.reshape(2, 2, 1, 2)
    out = lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    patches = networks.Conv(2, (2, 2), implementation="patches")
    params = {"params": {"kernel": kernel, "bias": y[0]}}
    pooled = lax.reduce_window(out, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    return (
        out,
        pooled,
        patches.apply(params, image),
        jax.grad(lambda k: (k * pooled[0, 0, 0]).sum())(y),
    )


def randomness(key, s):
    one, two = jax.random.split(key)
    folded = jax.random.fold_in(one, 3)
    chosen = jnp.where(s > 0, one, two)
    return (
        [jax.random.key_data(k) for k in (one, folded, chosen)],
        jax.random.bits(folded, (3,)),
        jax.random.permutation(two, 6),
        jax.random.randint(one, (2, 2), 0, 9),
        jax.random.bernoulli(two, 0.3, (4,)),
        jax.random.uniform(chosen, (3,)),
        jax.random.normal(jax.random.split(one, 3)[1], ()),
        jax.random.categorical(two, jnp.arange(3.0) * s),
        lax.scan(lambda k, _: tuple(jax.random.split(k)), key, None, length=2),
        lax.while_loop(
            lambda k: jax.random.uniform(k) > 0.5, lambda k: jax.random.split(k)[0], key
        ),
    )


def scans(x, v, shared):
    def step(carry, row):
        count, total, fixed = carry
        return (count + 1, total * 0.5 + row, fixed), (count, total.sum(), fixed)

    start = (0, jnp.zeros(4), jnp.ones(2))
    late = (v, jnp.zeros(4), jnp.zeros(4))  # the third has cases only after two rounds
    return (
        lax.scan(step, start, x),
        lax.scan(step, start, shared),
        lax.scan(step, start, x, reverse=True, unroll=2),
        lax.scan(lambda c, _: ((c[0], c[0], c[1]), None), late, None, length=3)[0],
        lax.scan(lambda c, _: (c + 1, None), 0, None, length=3),
        lax.map(lambda row: row @ v, x),
        lax.map(lambda row: row @ v, shared, batch_size=2),
        lax.associative_scan(jnp.add, x),
        jax.vmap(lambda row: jnp.sin(row) @ v)(x),
        lax.scan(lambda c, r: lax.scan(lambda c, a: (c + a * r.sum(), c), c, r), 0.0, x),
    )


def loops(x, s, count):
    def step(state):
        number, total = state
        return number + 1, total * 0.5 - 0.01 * s**2

    return (
        lax.while_loop(lambda state: state[0] < 3, step, (0, x)),
        lax.while_loop(lambda state: state[0] < count, step, (0, x)),
        lax.while_loop(lambda state: jnp.sum(state[1]) > 0.2, step, (0, jnp.ones(2) - s)),
        lax.while_loop(lambda state: state[0] < 3, lambda state: (state[0] + 1, 1.0), (0, 0.0)),
        lax.fori_loop(0, 4, lambda i, total: total + i * x, x),
        lax.fori_loop(0, count, lambda i, total: total + i, 0),
        jax.custom_batching.sequential_vmap(lambda x, n: (jnp.sin(x).sum(0), n + 1))(x, count),
    )


def branches(x, s, count, flag):
    def inner(x):
        return lax.scan(lambda c, row: (c + row.sum(), jnp.cumsum(row)), 0.0, x)

    def outer(x):
        return x.sum() * s, x * 2

    return (
        lax.cond(s > 0, inner, outer, x),
        lax.cond(flag[0] > 0, inner, outer, x),
        lax.cond(flag[0] > 0, lambda: 1.0, lambda: s),
        lax.cond(s > 0, lambda: 1.0, lambda: 2.0),
        lax.cond(flag[0] > 9, lambda x: (1.0, 2.0), lambda x: (x.sum(), 3.0), x),
        lax.switch(count, [jnp.sin, jnp.cos, lambda x: x * s], x),
        lax.switch(flag[1].astype(int), [jnp.sin, jnp.cos], x),
        lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
        jax.grad(lambda s: lax.cond(s > 0, jnp.sqrt, lambda s: s * 2, s))(s),
    )


@jax.custom_vjp
def twice(x):
    return x @ x.T


twice.defvjp(lambda x: (twice(x), x), lambda x, g: (g @ x * 7,))


@jax.custom_jvp
def tripled(x, n):
    return x * 2, n


@tripled.defjvp
def _(primals, tangents):
    return tripled(*primals), (tangents[0] * 3, np.zeros(np.shape(primals[1]), jax.dtypes.float0))


def network(x, y, v):
    return jnp.sum(jnp.tanh(x @ y) ** 2) + jax.nn.gelu(v).sum() + jax.nn.logsumexp(x)


def derivatives(x, y, v, n):
    return (
        jax.value_and_grad(network, argnums=(0, 1, 2))(x, y, v),
        jax.hessian(network, argnums=2)(x, y, v),
        jax.jacfwd(lambda v: x @ v)(v),
        jax.jacrev(lambda v: jax.nn.softmax(x * v))(v),
        jax.jvp(jnp.linalg.norm, (x,), (x + 1,)),
        jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ y)))(x)))(x),
        jax.checkpoint(lambda x: jnp.sin(x @ y))(x),
        jax.grad(lambda x: twice(x).sum())(x),
        twice(x),
        jax.grad(lambda x: tripled(x, n)[0].sum())(x),
        tripled(x, n),
        jax.nn.relu(x),
        lax.optimization_barrier((x, n)),
        jax.linearize(lambda x: jnp.sin(x @ y), x)[1](x),
    )


def trees(pair, options):
    both = Pair(pair.first * options["scale"], None)
    return both, {"none": None, "int": pair.second + 1, "bool": pair.second > 1}, [options["flag"]]


def constants(x):
    return 1, 2.5, True, np.arange(3), jnp.ones(2), x, None, (), jnp.eye(2) @ jnp.eye(2)


def checked(x):
    checkify.debug_check(jnp.all(x < 99), "too large")
    return lax.cond(x[0, 0] > 0, lambda: x, lambda: -x)


def doubled(x, y):
    def shares(total):
        return jnp.round((total - x) * 1e12).astype(int) + (y @ y.T)[0, 0].astype(int)

    total = precision.in_double(lambda x: x.astype(jnp.float64) @ jnp.eye(4) + 3e-12, x)
    return precision.in_double(shares, total), total


NETWORK = networks.mlp((4, 2), inputs=4)
LOSS = finetune.squared_error(NETWORK.apply)
CLASSES = finetune.cross_entropy(networks.mlp((4, 2), inputs=4, activation="tanh").apply)
DESCENT = finetune.gradient_descent(LOSS, steps=7, learning_rate=0.1)
ADAM = finetune.gradient_descent(CLASSES, steps=7, tx=optax.adam(0.05))
TRAINER = finetune.trainer(LOSS, optax.sgd(0.1, momentum=0.9), epochs=2, batch_size=2)


def pruned(x, y, key):
    params, batch = NETWORK.init(key), (x, y[:3])
    scores = criteria.snip(LOSS)(params, batch)
    flow = criteria.synflow(NETWORK.apply, input_shape=(4,))(params, None)
    kept = masks.top(scores, density=0.5)
    return scores, kept, flow, masks.top(flow, density=0.3), masks.pack(kept)


def trained(x, y, key, kept):
    params, batch = NETWORK.init(key), (x, y[:3])
    return _without_key(DESCENT(params, kept, batch)), TRAINER(params, kept, batch, key=key).params


def _without_key(fitted):
    return fitted._replace(key=None)


def classified(x, y, key, kept):
    labels = (y[:3, 0] > 0).astype(int)
    fitted = ADAM(NETWORK.init(key), kept, (x, labels))
    return _without_key(fitted), _without_key(DESCENT(NETWORK.init(key), None, (x, y[:3])))


KEPT = jax.vmap(lambda x, y, k: pruned(x, y, k)[1])(X, Y, KEYS)

FUNCTIONS = {
    "unary": (unary, 0, (X, N)),
    "binary": (binary, (0, 0, 0, 0, None), (X, V, S, N, SHARED)),
    "choices": (choices, (0, 0, 0, None), (X, B, S, SHARED)),
    "shapes": (shapes, (0, 0, None), (X, V, SHARED)),
    "reductions": (reductions, (0, 0, 0, None), (X, B, N, SHARED)),
    "contractions": (contractions, (0, 0, 0, 0, None), (X, Y, V, N, SHARED)),
    "indices": (indices, (0, 0, 0, None), (X, V, N, SHARED)),
    "look-up loss": (look_up_loss, 0, (X, N)),
    "algebra": (algebra, 0, (X,)),
    "convolution": (convolution, 0, (X, Y)),
    "randomness": (randomness, 0, (KEYS, S)),
    "randomness, shared": (lambda key, s: jax.random.normal(key, (3,)) * s, (None, 0), (KEY, S)),
    "scans": (scans, (0, 0, None), (X, V, SHARED)),
    "loops": (loops, 0, (X, S, COUNT)),
    "branches": (branches, (0, 0, 0, None), (X, S, COUNT, S)),
    "derivatives": (derivatives, 0, (X, Y, V, N)),
    "derivatives, shared": (derivatives, (0, None, 0, None), (X, Y[0], V, N[0])),
    "trees": (trees, (0, None), (Pair(X, COUNT), {"scale": 2, "flag": True, "none": None})),
    "constants": (constants, 0, (X,)),
    "checks": (checked, 0, (X,)),
    "double": (doubled, (0, None), (X, Y[0])),
    "pruning": (pruned, 0, (X, Y, KEYS)),
    "training": (trained, 0, (X, Y, KEYS, KEPT)),
    "training, shared": (classified, (None, 0, None, 0), (X[0], Y, KEY, KEPT)),
}
