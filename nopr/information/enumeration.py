"""Exact mutual information of masks and data, by running the algorithm on every dataset."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Int64, Key, PyTree, UInt32

from nopr import masks as masks_
from nopr import sweeps, trees
from nopr.information import laws
from nopr.information.entropies import Values
from nopr.information.results import Exact, summarize
from nopr.typing import Algorithm, Masks, check_flags, check_form, check_key, is_key, whole_number

_BLOCK = 2048  # more at once is slower on a CPU: tiny networks no longer fit in its cache
_BLOCK_ELEMENTS = 2**27  # numbers that one block may hold, by default
_COPIES = 8  # of each weight while training: parameters, gradients, moments, scores

# Another value makes JAX trace everything again, even functions that the user jitted.
_tracing = jax.make_user_context(0)


def exact(
    algorithm: Algorithm,
    datasets: PyTree,
    *,
    weights: Values | None = None,
    block: int | None = None,
    batching: sweeps.Batching = "vmap",
    levels: bool = False,
    check: bool = True,
    key: Key[Array, ""] | Key[Array, " keys"],
) -> Exact:
    r"""The mutual information of mask and data, I(m; D | key), by enumeration of the data.

    The algorithm runs on every dataset with the same key, so the law of the mask is known and
    :math:`I = H(m) - H(m \mid D)` is computed, not estimated. It is conditioned on the whole key,
    so it is I(m; D | init) when only the initialization is random.

    A second pass checks that H(m | D) is 0: traced anew and with the datasets in reverse order, it
    must reproduce every mask. Equal datasets must also give equal masks.

    The result is exact for the law that `datasets` and `weights` define. If they are a sample of a
    larger law, the bits are those of the sample: at most log2 of its size, which they reach when
    every dataset has a mask of its own (`Exact.saturated`). Then estimate the entropy instead, for
    instance by `grassberger(law(result.masks).counts)`, or choose a law that can be enumerated.

    Args:
      algorithm: `algorithm(data, *, key) -> masks`, pure. It is compiled once per algorithm object,
        so pass the same object when you call again with another key.
      datasets: All datasets: a pytree with a leading axis of datasets.
      weights: Probability of each dataset, summing to 1; uniform when None.
      block: Number of datasets under one vmap; a last partial block is padded with repeats. By
        default all at once when they are few and small. The block bounds memory, and another block
        may change a mask whose scores tie to within rounding. Blocks run on all devices and
        processes; see `sweeps.run`.
      batching: `"vmap"`, or `"lanes"`, which is many times faster for tiny networks and may also
        change a mask whose scores tie to within rounding.
      levels: Whether each leaf of the masks has a leading axis of levels, such as the rounds of an
        iterative method; each level then gets its own numbers from one run.
      check: Whether to make the second pass. Without it, H(m | D) = 0 is assumed.
      key: Typed key, the same for every dataset; or a vector of keys. For a vector, the same
        program computes the law for each key in turn, with the bytes of a call for that key alone,
        and the numbers, the law and the masks have a leading axis of keys (before that of levels).

    Returns:
      Bits, ceilings, laws and masks, on the host.

    Raises:
      ValueError: If a check fails inside the algorithm, such as that of `masks.top` for scores
        that are not finite (the message lists the datasets); if the algorithm is not a function of
        (data, key); if `datasets` have no common leading axis; if `weights` are not a law; if
        `key` has more than one axis or no key; if the masks are not bool.

    Example:
      One gradient step, then the larger of two weights is kept; four datasets of one point:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from nopr import information, masks
      >>> def algorithm(data, *, key):
      ...     initial = jax.random.normal(key, (2,)) / 10
      ...     return masks.top({"w": jnp.abs(initial - data)}, count=1)
      >>> datasets = jnp.array([[2.0, 1.0], [-2.0, 1.0], [1.0, 2.0], [1.0, -2.0]])
      >>> result = information.exact(algorithm, datasets, key=jax.random.key(0))
      >>> result.bits, result.dataset_entropy_bits, result.saturated
      (1.0, 2.0, False)

    Source: Kumar, Luo and Sellke 2024, arXiv:2402.01089, appendix C.2, where it is sampled.
    """
    remedy = "Make one from a pruner: `algorithms.at_init(pruner, init=...)`."
    check_form(algorithm, "(data, *, key)", name="algorithm", remedy=remedy)
    check_flags(levels=levels, check=check)
    cases = sweeps.case_count(datasets, name="datasets")
    weights = laws.case_weights(weights, cases)
    datasets = jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.asarray(leaf), datasets)
    keys, levels = _keys(key), bool(levels)
    one, checked = _programs(_hashable(algorithm), levels)
    shapes = one.eval_shape(jax.tree.map(lambda leaf: leaf[0], datasets), keys[0])
    _check_masks(shapes, levels)
    block = (
        _default_block(datasets, shapes, cases) if block is None else whole_number("block", block)
    )
    first, dataset = laws.dataset_groups(datasets, cases)
    found = []
    for number, each in enumerate(keys):
        where = f" with key {number}" if key.ndim else ""
        run = functools.partial(_run, checked, datasets, each, block, batching, where)
        masks, words = run(np.arange(cases))
        if check:
            with _tracing(1):
                _, again = run(np.arange(cases)[::-1])
            _check_equal(words, again[::-1], where)
        _check_equal(words, words[first][dataset], where)
        found.append((masks, words))
    masks, words = zip(*found, strict=True)
    return summarize(
        masks, words, weights, dataset, keys=key.ndim > 0, levels=levels, checked=check
    )


def _keys(key: Key[Array, "*keys"]) -> list[Key[Array, ""]]:
    """The keys one by one."""
    if not is_key(key):
        check_key(key)
        return [key]
    if key.ndim > 1 or not key.size:
        raise ValueError(
            f"`key` must be one key, or a vector of at least one, got shape {key.shape}. Flatten "
            "it, or make keys with `jax.random.split`."
        )
    return [key[number] for number in range(len(key))] if key.ndim else [key]


def _run(
    checked: Callable[..., Any],
    datasets: PyTree,
    key: Key[Array, ""],
    block: int,
    batching: sweeps.Batching,
    where: str,
    order: Int64[np.ndarray, " cases"],
) -> tuple[Masks, UInt32[np.ndarray, "cases levels words"]]:
    """The masks of the datasets in `order`, plain and packed, on the host."""
    data = jax.tree.map(lambda leaf: leaf[order], datasets)
    swept = sweeps.run(checked, data, shared=key, block=block, batching=batching)
    error, masks, words = swept.values
    if error.get() is not None:
        found = _messages(error, len(order))
        raise ValueError(
            f"A check failed inside `algorithm` on {len(found)} of {len(order)} datasets, "
            f"{_listing([int(order[case]) for case in found])}{where}: "
            f"{next(iter(found.values()))}. An exact law needs every dataset: make training "
            "stable, or leave these datasets out and give `weights` for the rest."
        )
    return masks, words


@functools.lru_cache(maxsize=16)  # bounded, so that compiled programs are freed
def _programs(algorithm: Callable[..., Masks], levels: bool) -> tuple[Any, Any]:
    """(data, key) -> masks, and the same function with error state and packed words.

    The first is part of the second, and so is traced only once.
    """

    @jax.jit
    def one(data: PyTree, key: Key[Array, ""]) -> Masks:
        return jax.tree.map(jnp.asarray, algorithm(data, key=key))

    def checked(data: PyTree, key: Key[Array, ""]) -> tuple[checkify.Error, Masks, Any]:
        error, kept = checkify.checkify(one, errors=checkify.user_checks)(data, key)
        words = jax.vmap(masks_.pack)(kept) if levels else masks_.pack(kept)[None]
        return error, kept, words

    return one, checked


def _messages(error: checkify.Error, size: int) -> dict[int, str]:
    """The first failed check's message for each failing case; an Error is a pytree over cases."""
    found = {i: jax.tree.map(lambda leaf, i=i: leaf[i], error).get() for i in range(size)}
    return {
        i: " ".join(message.removesuffix("(`check` failed)").split()).rstrip(".")
        for i, message in found.items()
        if message is not None
    }


def _check_equal(
    words: UInt32[np.ndarray, "..."], again: UInt32[np.ndarray, "..."], where: str
) -> None:
    differ = np.flatnonzero(np.any(words != again, axis=(1, 2)))
    if differ.size:
        raise ValueError(
            "`algorithm` must be a function of (data, key), but a second run gave another mask on "
            f"{len(differ)} of {len(words)} datasets, {_listing(differ.tolist())}{where}. Take all "
            "randomness from `key`, and break ties by a fixed rule, as `masks.top` does."
        )


def _check_masks(masks: Masks, levels: bool) -> None:
    """Checks the shapes and dtypes of what `algorithm` returns for one dataset."""
    leaves = jax.tree.leaves(masks)
    if not any(leaf.size for leaf in leaves):
        raise ValueError("`algorithm` must return masks of at least one weight, got none.")
    for path, leaf in zip(trees.paths(masks), leaves, strict=True):
        if leaf.dtype != np.dtype(bool):
            raise ValueError(f"`algorithm` must return bool masks, got {leaf.dtype} at {path!r}.")
    if levels:
        sweeps.case_count(masks, name="masks with `levels=True`")


def _default_block(datasets: PyTree, masks: Masks, cases: int) -> int:
    """The block size for the fewest, most equal blocks that memory allows."""
    elements = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(datasets))
    elements += _COPIES * sum(leaf.size for leaf in jax.tree.leaves(masks))
    most = max(1, min(_BLOCK, _BLOCK_ELEMENTS // elements))
    return -(-cases // -(-cases // most))


def _hashable(algorithm: Callable[..., Masks]) -> Callable[..., Masks]:
    """The algorithm, in a hashable wrapper if necessary; a wrapped one compiles at every call."""
    try:
        hash(algorithm)
    except TypeError:
        return functools.partial(algorithm)
    return algorithm


def _listing(indices: list[int], most: int = 8) -> str:
    indices = sorted(indices)
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return f"at {'index' if len(indices) == 1 else 'indices'} {indices[:most]}{more}"
