"""Slow, obvious twins in NumPy, loops and float64."""

import itertools
import math
import zlib
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


def woodfisher(weights, slopes, damping, block):
    """Scores of a flat list from its examples' gradients, by the recursion of WoodFisher."""
    scores, slopes = np.zeros(len(weights)), np.asarray(slopes, np.float64)
    for start in range(0, len(weights), block):
        part = slice(start, start + block)
        inverse = np.eye(len(weights[part])) / damping
        for slope in slopes[:, part]:
            along = inverse @ slope
            inverse = inverse - np.outer(along, along) / (len(slopes) + slope @ along)
        scores[part] = np.float64(weights[part]) ** 2 / (2 * np.diag(inverse))
    return scores


def restricted(hessian, weights, kept):
    """The optimal brain surgeon's update, by the inverse of the whole matrix, in float64."""
    hessian, found = np.asarray(hessian, np.float64), np.array(weights, np.float64)
    pruned = [i for i in range(len(found)) if not kept[i]]
    if not pruned:
        return found
    inverse = np.linalg.inv(hessian)
    rise = np.linalg.inv(inverse[np.ix_(pruned, pruned)]) @ found[pruned]
    found = found - inverse[:, pruned] @ rise
    found[pruned] = 0.0
    return found


def spectral(kernel, rank):
    """The squares of what is left of a kernel after power iteration, direction by direction."""
    rest = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    found = np.zeros(rest.shape)
    for _ in range(min(rank, *rest.shape)):
        v = np.ones(rest.shape[1]) / 7 + np.arange(rest.shape[1])
        for _ in range(2000):
            v = rest.T @ (rest @ v)
            v = v / np.linalg.norm(v)
        part = np.outer(rest @ v, v)
        found, rest = found + part, rest - part
    return np.square(found).reshape(kernel.shape)


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


def packed_masks(data):
    """The flat masks in a packed file of `export`, by path, one weight at a time."""
    place = 22

    def number():
        nonlocal place
        digits = []
        while not digits or digits[-1] >= 128:
            digits.append(data[place])
            place += 1
        return sum(digit % 128 * 128**i for i, digit in enumerate(digits))

    def take(count):
        nonlocal place
        place += count
        return data[place - count : place]

    header, text = [], b""
    for _ in range(number()):
        text = text[: number()] + take(number())
        sides, kind = divmod(number(), 8)
        assert kind in (1, 5), "masks alone"
        size = int(np.prod([number() for _ in range(sides)], dtype=int))
        header.append((text.decode(), size, number(), number() if kind == 5 else None))
    deflated = {path: length for path, *_, length in header if length is not None}
    short = data[len(data) - sum(deflated.values()) :]
    code, found = data[place : len(data) - len(short)], {}
    for path, length in deflated.items():
        packed, short = zlib.decompress(short[:length]), short[length:]
        found[path] = [packed[i // 8] >> i % 8 & 1 for i in range(8 * len(packed))]
    plans = {}
    for path, size, kept, length in header:
        rare = min(kept, size - kept)
        if length is None and rare:
            split = 0
            while size // rare >= 128 and size // rare >= 2 ** (split + 6):
                split += 1
            long = -(-size // 2**split) + rare if split else size
            plans[path] = (size, rare, split, long)
    vectors, lows = _lanes(code, plans)
    for path, size, kept, length in header:
        if length is None:
            flags = [0] * size
            if path in plans:
                _, rare, split, _ = plans[path]
                ones = [i for i, bit in enumerate(vectors[path]) if bit]
                for i, one in enumerate(ones):
                    high = (one - i) * 2**split if split else one
                    flags[high + sum(lows.pop(0) << bit for bit in range(split))] = 1
                flags = flags if rare == kept else [1 - flag for flag in flags]
            found[path] = flags if path in plans else [int(kept > 0)] * size
    return {path: np.array(found[path][:size], bool) for path, size, *_ in header}


def _lanes(code, plans):
    """The vectors of the leaves and the low bits, from one long list of patterns."""
    by_ones = sorted(range(2**16), key=lambda pattern: (pattern.bit_count(), pattern))
    owners = [path for path, (*_, long) in plans.items() for _ in range(-(-long // 16))]
    lanes = -(-len(owners) // 2**14)
    low_bits = sum(rare * split for _, rare, split, _ in plans.values())
    end = len(code) - -(-low_bits // 8)
    states = [int.from_bytes(code[8 * i : 8 * i + 8], "little") for i in range(lanes)]
    words = [int.from_bytes(code[i : i + 4], "little") for i in range(8 * lanes, end, 4)]
    tables = {}
    for path, (_, rare, _, long) in plans.items():
        each = [
            1 + (2**31 - 2**16) * rare**j * (long - rare) ** (16 - j) // long**16 for j in range(17)
        ]
        each[0] = 2**31 - sum(math.comb(16, j) * each[j] for j in range(1, 17))
        tables[path] = each
    vectors = {path: [] for path in plans}
    for i, path in enumerate(owners):
        state, each = states[i % lanes], tables[path]
        slot, first, ones = state % 2**31, 0, 0
        while slot >= math.comb(16, ones) * each[ones]:
            slot -= math.comb(16, ones) * each[ones]
            first += math.comb(16, ones)
            ones += 1
        pattern = by_ones[first + slot // each[ones]]
        vectors[path] += [pattern >> bit & 1 for bit in range(16)]
        state = each[ones] * (state // 2**31) + slot % each[ones]
        states[i % lanes] = state if state >= 2**31 else state * 2**32 + words.pop(0)
    assert not words
    assert states == [2**31] * lanes
    return vectors, [code[end + i // 8] >> i % 8 & 1 for i in range(low_bits)]


def paths(params, inputs):
    """The paths of a ReLU net: example, output, weights, gate times input, product of weights.

    A path starts at an input, or at a bias, and goes through one unit of each layer after it.
    """
    layers = list(params.values())
    values, gates = np.asarray(inputs, np.float64), []
    for layer in layers:
        values = values @ layer["kernel"] + layer["bias"]
        gates.append(values > 0 if layer is not layers[-1] else np.ones(values.shape, bool))
        values = np.where(gates[-1], values, 0.0)
    sizes = [np.shape(layers[0]["kernel"])[0], *(len(layer["bias"]) for layer in layers)]
    for example, begin in itertools.product(range(len(inputs)), range(len(sizes))):
        for units in itertools.product(*(range(size) for size in sizes[begin:])):
            open_, weights = 1.0 if begin else float(inputs[example][units[0]]), 1.0
            if begin:
                open_ *= gates[begin - 1][example, units[0]]
                weights *= layers[begin - 1]["bias"][units[0]]
            through = []
            for i in range(begin, len(layers)):
                step = units[i - begin], units[i - begin + 1]
                weights *= layers[i]["kernel"][step]
                open_ *= gates[i][example, step[1]]
                through.append((i, step))
            yield example, units[-1], through, open_, weights


def px(params, inputs, gates="paths"):
    """For each weight of a ReLU net, the share of the squared paths through it, path by path.

    With the gates of outputs, a path counts as much as there are squared inputs on the open paths
    to its output that no weight or bias of 0 interrupts.
    """
    scores = [np.zeros(np.shape(layer["kernel"])) for layer in params.values()]
    every, total = list(paths(params, inputs)), 0.0
    data = np.zeros(len(next(reversed(params.values()))["bias"]))
    for _, output, _, gate, value in every:
        data[output] += gate**2 * (value != 0)
    for example, output, through, gate, value in every:
        if gates == "outputs" and example:
            continue  # the weights are the same for all examples
        share = value**2 * (gate**2 if gates == "paths" else data[output])
        total += share
        for i, step in through:
            scores[i][step] += share
    return {name: leaf / total for name, leaf in zip(params, scores, strict=True)}


def back(params, inputs, slopes_of):
    """The gradient by each kernel of a ReLU net of a function of its outputs, by hand."""
    values, before = [np.asarray(inputs, np.float64)], []
    for i, layer in enumerate(params.values()):
        before.append(values[-1] @ layer["kernel"] + layer["bias"])
        last = i == len(params) - 1
        values.append(before[-1] if last else np.maximum(before[-1], 0))
    slopes, found = slopes_of(values[-1]), {}
    for i, (name, layer) in reversed(list(enumerate(params.items()))):
        found[name] = values[i].T @ slopes
        if i:
            slopes = (slopes @ layer["kernel"].T) * (before[i - 1] > 0)
    return {name: found[name] for name in params}


def mse_gradient(params, inputs, targets):
    """The gradient of the mean squared error of a ReLU net by its kernels."""
    return back(params, inputs, lambda outputs: 2 * (outputs - targets) / targets.size)


def ntk_sap(params, kept, inputs, noise, *, eps):
    """The derivative by the masks of the squared change of the outputs under noise."""
    one, two = (
        {
            name: {
                "kernel": np.where(
                    kept[name], layer["kernel"] + step * np.asarray(noise[name], np.float64), 0.0
                ),
                "bias": np.asarray(layer["bias"], np.float64),
            }
            for name, layer in params.items()
        }
        for step in (0.0, eps)
    )
    change = relu_mlp(one, inputs) - relu_mlp(two, inputs)
    first = back(one, inputs, lambda _: 2 * change)
    second = back(two, inputs, lambda _: -2 * change)
    return {
        name: one[name]["kernel"] * first[name] + two[name]["kernel"] * second[name]
        for name in params
    }


def sparsegpt(rows, weights, *, density, block, damping):
    """SparseGPT of one layer [in, out]: each removal solves anew for the weights after it."""
    x, w = np.float64(rows), np.float64(weights)
    hessian = x.T @ x
    hessian += damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    kept, before = np.zeros(w.shape, bool), 0
    for start in range(0, len(w), block):
        end = min(start + block, len(w))
        count = round(density * end * w.shape[1]) - before
        before += count
        rise = [w[j] ** 2 / np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(start, end)]
        flat = np.argsort(-np.ravel(rise), kind="stable")[:count]
        kept[start:end].reshape(-1)[flat] = True
        for j in range(start, end):
            # The best change of the weights after j, if w[j] goes and those before it stay.
            change = np.linalg.solve(hessian[j + 1 :, j + 1 :], hessian[j + 1 :, j])
            for out in np.flatnonzero(~kept[j]):
                w[j + 1 :, out] += change * w[j, out]
                w[j, out] = 0
    return w, kept


def at_tap(inputs, tap, kernel):
    """The pixels of [n, height, width, in] at one place of a SAME window of stride 1."""
    low = [(side - 1) // 2 for side in kernel[:2]]
    gaps = [(0, 0), *((a, side - 1 - a) for a, side in zip(low, kernel[:2], strict=True)), (0, 0)]
    padded = np.pad(np.asarray(inputs), gaps)
    (row, column), (_, height, width, _) = tap, inputs.shape
    return padded[:, row : row + height, column : column + width]
