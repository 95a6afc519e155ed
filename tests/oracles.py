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
    """`total` in proportion to `sizes`, by largest remainder."""
    return rounded([Fraction(total * size, sum(sizes)) for size in sizes], total)


def rounded(quotas, total):
    """The floors of quotas, then one at a time to the largest remainder, the earlier first."""
    counts = [int(quota) for quota in quotas]
    while sum(counts) < total:
        lacks = [quota - count for quota, count in zip(quotas, counts, strict=True)]
        counts[lacks.index(max(lacks))] += 1
    return counts


def filled(amount, weights, sizes):
    """`amount` in proportion to `weights`, no entry over its size: the first k to fill are full."""
    order = sorted(range(len(sizes)), key=lambda i: Fraction(sizes[i]) / max(weights[i], 1e-9))
    for k in range(len(sizes) + 1):
        full, rest = order[:k], order[k:]
        left = Fraction(amount) - sum(sizes[i] for i in full)
        scale = left / sum(weights[i] for i in rest) if rest else Fraction(0)
        if all(scale * weights[i] <= sizes[i] for i in rest):
            return [sizes[i] if i in full else scale * weights[i] for i in range(len(sizes))]
    raise ValueError("more than fits")


def igq(total, sizes):
    """Layer l keeps N / (1 + F N); F between fractions, by 60 halvings."""
    low, high = Fraction(0), Fraction(len(sizes), max(total, 1))
    for _ in range(60):
        force = (low + high) / 2
        if sum(Fraction(n) / (1 + force * n) for n in sizes) > total:
            low = force
        else:
            high = force
    kept = [Fraction(n) / (1 + high * n) for n in sizes]
    return rounded([each * total / sum(kept) for each in kept], total)


def uniform_plus(total, sizes, first, last):
    """The first dense, the last at least a fifth, one density for the others."""
    counts = [sizes[first] if i == first else 0 for i in range(len(sizes))]
    rest = [i for i in range(len(sizes)) if i != first]
    shared = shares(total - sizes[first], [sizes[i] for i in rest])
    if shared[rest.index(last)] * 5 < sizes[last]:
        while counts[last] * 5 < sizes[last]:
            counts[last] += 1
        rest.remove(last)
        shared = shares(total - sizes[first] - counts[last], [sizes[i] for i in rest])
    for i, count in zip(rest, shared, strict=True):
        counts[i] = count
    return counts


def smart_ratio(total, sizes):
    """Sizes in the order of the layers; the last keeps 30%, or what the others have no room for."""
    head = max(Fraction(3, 10) * sizes[-1], Fraction(total - sum(sizes[:-1])))
    after = [len(sizes) - place for place in range(len(sizes) - 1)]  # L - l + 1
    weights = [(k**2 + k) * size for k, size in zip(after, sizes, strict=False)]
    return rounded([*filled(total - head, weights, sizes[:-1]), head], total)


def n_of_m(scores, n, m, alive=None):
    """The n highest of each m consecutive scores of a flat list, the first among equals."""
    alive = [True] * len(scores) if alive is None else alive
    parts = [slice(start, start + m) for start in range(0, len(scores), m)]
    return np.concatenate([top(scores[part], n, alive[part]) for part in parts])


def granules(shape, key):
    """The number of each weight's granule: `key(index)` names granules, numbered by sorted name."""
    names = {index: key(index) for index in np.ndindex(*shape)}
    numbers = {name: number for number, name in enumerate(sorted(set(names.values())))}
    found = np.zeros(shape, int)
    for index, name in names.items():
        found[index] = numbers[name]
    return found


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
