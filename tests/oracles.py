"""Slow, obvious twins in NumPy, loops and float64."""

from fractions import Fraction

import numpy as np


def top(scores, k, alive=None):
    """The k highest scores of a flat list, the first among equals; -0.0 equals 0.0."""
    there = [i for i in range(len(scores)) if alive is None or alive[i]]
    order = sorted(there, key=lambda i: (-(scores[i] + 0.0), i))
    kept = np.zeros(len(scores), bool)
    kept[order[:k]] = True
    return kept


def shares(total, sizes):
    """`total` in proportion to `sizes`: the floors, then one at a time to the largest remainder."""
    quotas = [Fraction(total * size, sum(sizes)) for size in sizes]
    counts = [int(quota) for quota in quotas]
    while sum(counts) < total:
        lacks = [quota - count for quota, count in zip(quotas, counts, strict=True)]
        counts[lacks.index(max(lacks))] += 1
    return counts


def lamp(weights):
    """w^2 over the sum of the squares from the layer's largest weight down to it.

    The first of equal magnitudes is the larger.
    """
    squares = np.asarray(weights, np.float64).ravel() ** 2
    scores, total = np.zeros(squares.size), 0.0
    for i in sorted(range(squares.size), key=lambda i: (-squares[i], i)):
        total += squares[i]
        scores[i] = squares[i] / total if squares[i] else 0.0
    return scores.reshape(np.shape(weights))


def rounds(weights, gradient, counts, *, regrow):
    """The masks of each round of FORCE, or without `regrow` of iterative SNIP, on a flat list."""
    kept, found = np.ones(len(weights), bool), []
    for k in counts:
        scores = np.abs(weights * gradient(np.where(kept, weights, 0.0)))
        kept = top(scores, k, None if regrow else kept)
        found.append(kept)
    return found


def fpgm(kernel, alive=None):
    """The sum of each filter's distances to the filters that have a weight alive."""
    alive = np.ones(kernel.shape, bool) if alive is None else alive
    columns = [np.where(alive, kernel, 0.0)[..., i].ravel() for i in range(kernel.shape[-1])]
    there = [alive[..., i].any() for i in range(kernel.shape[-1])]
    return [
        sum(np.linalg.norm(one - other) for other, on in zip(columns, there, strict=True) if on)
        for one in columns
    ]


def relu_mlp(params, inputs):
    """A ReLU net on {"layer_i": {"kernel", "bias"}}, in float64."""
    values = np.asarray(inputs, np.float64)
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        values = values @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        if i < len(params) - 1:
            values = np.maximum(values, 0)
    return values


def central_difference(f, x, step=1e-5):
    """The gradient of a scalar function of an array, one coordinate at a time."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (f(up) - f(down)) / (2 * step)
    return gradient
