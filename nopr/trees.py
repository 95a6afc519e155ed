"""Leaf paths, prunable selection, structure checks, and raveling over prunable leaves.

Leaves that are not prunable are `None`, so `jax.tree.leaves(masks)` is exactly the prunable set,
also under jit, vmap and scan and in an `nnx.State`. There are two maps: `map_prunable`, masks
first, for trees that have the `None`s; and `overlay`, params first, which lays a tree with `None`s
over one without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path, tree_map_with_path
from jaxtyping import Array, PyTree

from nopr.typing import Counts, Masks, Params, Shapes, Where, check_form, shown


def path_string(path: Sequence[Any]) -> str:
    """The key path of a leaf as text, such as `"params/Dense_0/kernel"`.

    A final attribute `value`, in which `nnx.Variable` and `nn.Partitioned` box an array, is left
    out, so that a leaf has the same path in `nnx.state`, its pure form and `nnx.to_pure_dict`.
    """
    path = tuple(path)
    boxed = len(path) > 1 and path[-1] == GetAttrKey("value")
    return keystr(path[:-1] if boxed else path, simple=True, separator="/")


def paths(tree: PyTree) -> tuple[str, ...]:
    """The path of every leaf of `tree`, in leaf order."""
    return tuple(path_string(path) for path, _ in tree_flatten_with_path(tree)[0])


def shapes(tree: PyTree) -> Shapes:
    """The shape of every leaf of `tree`, in leaf order."""
    return tuple(np.shape(leaf) for leaf in jax.tree.leaves(tree))


def by_path(tree: PyTree, name: str) -> dict[str, Any]:
    """The leaves of `tree` by path, in leaf order.

    Args:
      tree: Any pytree.
      name: The name of the tree in errors.

    Raises:
      ValueError: If two leaves have the same path, as in `{"a/b": x, "a": {"b": y}}`, or a leaf is
        a NumPy array of text or objects, or a masked array, whose mask JAX would drop; the message
        names the leaf.
    """
    found = {}
    for path, leaf in tree_flatten_with_path(tree)[0]:
        where = path_string(path)
        if where in found:
            raise ValueError(f"`{name}` has two leaves at {where!r}. Rename one of them.")
        _check_array(leaf, f"`{name}` has", f" at {where!r}")
        found[where] = leaf
    return found


def check_floating(params: Params) -> None:
    """Checks that every leaf is an array or number that a loss can be differentiated by.

    Raises:
      ValueError: If a leaf is something else, such as integers; the message names it.
    """
    for path, leaf in by_path(params, "params").items():
        kind = getattr(leaf, "dtype", type(leaf))
        if not jnp.issubdtype(kind, jnp.inexact):
            raise ValueError(
                f"`params` must be floating to be differentiated by, got {kind} at {path!r}. Leave "
                "such leaves out: close over them, or keep them in the `state` of training."
            )


def numbers(value: Any, name: str) -> Any:
    """A value as an array of numbers: of JAX if it is one, and otherwise of NumPy.

    Raises:
      ValueError: If it is something else, such as text, a key, rows of different lengths, or a
        masked array.
    """
    try:
        array = value if isinstance(value, jax.Array | np.ndarray) else np.asarray(value)
    except (TypeError, ValueError):  # such as rows of different lengths
        array = np.empty((), object)
    _check_array(array, f"`{name}` must be an array of numbers, got", "")
    if not jnp.issubdtype(array.dtype, np.number) and array.dtype != bool:
        raise ValueError(f"`{name}` must be an array of numbers, got {shown(value)}.")
    return array


def is_prunable(path: str, leaf: Any) -> bool:
    """The default `where`: floating leaves of two or more dimensions that are named like weights.

    Biases, scales and offsets, the parameters of normalization layers, position embeddings, learned
    tokens and running statistics are excluded by their names in Linen, NNX, Haiku, Equinox and
    plain dicts, at any shape. Only whole words count, in the last component of the path and then in
    the one before it; indices and a trailing `/value` are ignored. So `multiscale/kernel` and
    `offset_net/w` are prunable, while `qkv_b` and `norm1/weight` are not.

    A path does not show that `self.a = LayerNorm((8, 8))` is a norm, or that `layer/b` is a matrix
    and not a bias. Check with `describe`, and pass your own `where` if this one is wrong.
    """
    return not _why_not(path, leaf)


def everything(path: str, leaf: Any) -> bool:
    """A `where` that takes every floating leaf, biases and norms too."""
    del path
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.floating))


def describe(params: Params, where: Where = is_prunable) -> str:
    """A table of the leaves that will be pruned and those that will not.

    Args:
      params: The parameters.
      where: `where(path, leaf)`, true for a prunable leaf.

    Returns:
      One line per leaf, in leaf order, with its path, shape and size, and the reason if the default
      `where` excludes it; then the totals.

    Example:
      >>> import numpy as np
      >>> from nopr import trees
      >>> attention = {"kernel": np.ones((8, 2, 4)), "bias": np.ones((2, 4))}
      >>> print(trees.describe({"norm": {"scale": np.ones(8)}, "query": attention}))
      path          shape      size  prunable
      norm/scale    (8,)          8  no: fewer than two dimensions
      query/bias    (2, 4)        8  no: bias
      query/kernel  (8, 2, 4)    64  yes
      1 of 3 leaves and 64 of 80 weights are prunable.
    """
    rows, chosen = [("path", "shape", "size", "prunable")], []
    leaves = by_path(params, "params")
    sizes = {path: math.prod(getattr(leaf, "shape", ())) for path, leaf in leaves.items()}
    for path, leaf in leaves.items():
        shape = str(tuple(leaf.shape)) if hasattr(leaf, "shape") else type(leaf).__name__
        if where(path, leaf):
            chosen.append(path)
            verdict = "yes"
        else:
            verdict = f"no: {_why_not(path, leaf)}" if where is is_prunable else "no"
        rows.append((path, shape, f"{sizes[path]:,}", verdict))
    first, second, third = (max(len(row[i]) for row in rows) for i in range(3))
    lines = [f"{p:<{first}}  {s:<{second}}  {n:>{third}}  {v}" for p, s, n, v in rows]
    weights = f"{sum(sizes[path] for path in chosen):,} of {sum(sizes.values()):,} weights"
    return "\n".join([*lines, f"{len(chosen)} of {len(leaves)} leaves and {weights} are prunable."])


def select(params: Params, where: Where = is_prunable) -> Params:
    """Keeps the prunable leaves of `params` and puts None on all others.

    Select before stacking params over seeds: a stacked bias has two dimensions.

    Args:
      params: The parameters.
      where: `where(path, leaf)`, true for a prunable leaf.

    Returns:
      A tree like `params`, None on each leaf that is not prunable.

    Raises:
      ValueError: If nothing is prunable, or two leaves have the same path.
    """
    there = by_path(params, "params")
    check_form(where, "(path, leaf)", name="where", remedy="It is true for a prunable leaf.")
    chosen = tree_map_with_path(
        lambda path, leaf: leaf if where(path_string(path), leaf) else None, params
    )
    if not jax.tree.leaves(chosen):
        raise ValueError(
            f"No leaf of `params` is prunable, of {len(there)} ({_listing(tuple(there))}). "
            "Pass a `where(path, leaf)` that chooses some; `trees.describe` shows the reasons."
        )
    return chosen


def full_masks(params: Params, where: Where = is_prunable) -> Masks:
    """Masks that keep every prunable weight of `params`."""
    return jax.tree.map(lambda leaf: jnp.ones(np.shape(leaf), bool), select(params, where))


def map_prunable(f: Callable[..., Any], masks: PyTree, *rest: PyTree) -> PyTree:
    """Maps `f` over the prunable leaves: those on which `masks` is not None.

    Args:
      f: A function of a leaf of `masks` and the leaves of `rest` at the same path.
      masks: Masks or scores, which give the result its structure.
      rest: Trees like `masks`, or like the params.

    Returns:
      A tree like `masks`, None where that is None.

    Raises:
      ValueError: If a tree of `rest` lacks a prunable leaf, or has one of another shape; the
        message names it. Scalars fit every shape.
    """
    leaves, treedef = tree_flatten_with_path(masks)
    columns = [_prunable_leaves(masks, tree) for tree in rest]
    return jax.tree.unflatten(
        treedef, [f(leaf, *row) for (_, leaf), *row in zip(leaves, *columns, strict=True)]
    )


def overlay(f: Callable[[Any, Any], Any], params: Params, masks: PyTree) -> Params:
    """Maps `f(param, mask)` over the prunable leaves and keeps every other leaf of `params`.

    Raises:
      ValueError: If the trees do not match, or two leaves have the same path; the message names the
        leaf.
    """
    check_matches(masks, params)
    leaves, treedef = tree_flatten_with_path(params)
    found = by_path(masks, "masks")
    values = [
        f(leaf, found[path_string(path)]) if path_string(path) in found else leaf
        for path, leaf in leaves
    ]
    return jax.tree.unflatten(treedef, values)


def check_matches(
    masks: PyTree, params: PyTree, *, name: str = "masks", other: str = "params"
) -> None:
    """Checks that `params` has every leaf of `masks`, with the same shape.

    Raises:
      ValueError: If a leaf is missing or has another shape, or two leaves of a tree have the same
        path; the message names the first of them.
    """
    there = by_path(params, other)
    for where, leaf in by_path(masks, name).items():
        if where not in there:
            raise ValueError(
                f"`{name}` has a leaf at {where!r} that `{other}` lacks; "
                f"`{other}` has {_listing(tuple(there))}."
            )
        if np.shape(leaf) != np.shape(there[where]):
            raise ValueError(
                f"`{name}` has shape {np.shape(leaf)} at {where!r}, where `{other}` has "
                f"{np.shape(there[where])}."
            )


def check_same(tree: PyTree, like: PyTree, *, name: str, other: str) -> None:
    """Checks that two trees have exactly the same leaves, paths and shapes.

    Raises:
      ValueError: If a leaf is missing from either tree or has another shape; the message names the
        first of them.
    """
    check_matches(tree, like, name=name, other=other)
    check_matches(like, tree, name=other, other=name)


def ravel(tree: PyTree) -> tuple[Array, Callable[[Any], PyTree]]:
    """Joins the leaves of `tree` into one vector, in leaf order; also returns the inverse function.

    Unlike `jax.flatten_util.ravel_pytree`, it works on bool leaves with None between them, and the
    inverse keeps the dtype of the vector.
    """
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [numbers(leaf, "tree") for leaf in leaves]
    if not leaves:
        raise ValueError("`tree` must have at least one leaf, got none.")
    shapes = [leaf.shape for leaf in leaves]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def unravel(vector: Any) -> PyTree:
        pieces = jnp.split(vector, ends)
        return jax.tree.unflatten(
            treedef, [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        )

    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), unravel


def largest_remainder(quotas: Sequence[Fraction | int], total: int) -> Counts:
    """Rounds `quotas` to whole numbers that sum to `total`, by largest remainder.

    Each quota is rounded down; the rest goes to the largest fractional parts, the earlier first
    among equals.

    Args:
      quotas: Exact numbers from 0 up. Floats would break ties by their rounding.
      total: The sum of the quotas.

    Raises:
      ValueError: If the quotas do not sum to `total`.
    """
    if sum(quotas) != total:
        raise ValueError(f"`quotas` must sum to `total` = {total}, got {float(sum(quotas))}.")
    counts = [math.floor(quota) for quota in quotas]
    order = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


_BIASES = {"bias", "biases", "bq", "bk", "bv", "bo"}
_SCALES = {"scale", "scales", "offset", "offsets", "shift", "gain", "gamma", "beta", "g"}
_NORMS = {"ln", "bn", "gn", "normalization"}
_LAYERS = {"proj", "projection", "linear", "dense", "conv", "fc", "net", "mlp"}
_WEIGHTS = {"kernel", "weight", "weights", "w"}
_POSITIONS = {"pos", "position", "positions", "positional"}
_POSITION_EMBEDDINGS = {"wpe", "posemb", "posembed", "posembedding"}
_EMBEDDINGS = {"emb", "embs", "embed", "embeds", "embedding", "embeddings", "encoding", "bias"}


def _why_not(path: str, leaf: Any) -> str:
    """Why the default `where` excludes a leaf; empty where it is prunable."""
    if not everything(path, leaf):
        return "not floating"
    if leaf.ndim < 2:
        return "fewer than two dimensions"
    parts = [part for part in path.split("/") if part != "~" and not part.isdigit()]
    if len(parts) > 1 and parts[-1] == "value":  # the array of an `nnx.Variable`
        parts.pop()
    if "batch_stats" in parts:
        return "running statistics"
    owner, name = ([], [], *map(_words, parts))[-2:]
    if path == "b":  # beside `a`, not the bias of a layer
        return ""
    return _by_name(name) or _by_owner(owner)


def _by_name(words: Sequence[str]) -> str:
    """The reason given by the last component, if any."""
    if not words:
        return ""
    if _is_norm(words):
        return "norm"
    if words[-1] in _WEIGHTS:
        return ""
    if _POSITION_EMBEDDINGS.union(_POSITIONS).intersection(words):
        return "position embedding"
    if _BIASES.intersection(words) or ("b" in (words[0], words[-1]) and "lora" not in words):
        return "bias"
    if words[-1] in _SCALES:
        return "scale or offset"
    return "learned token" if words[-1] in ("token", "cls") else ""


def _by_owner(words: Sequence[str]) -> str:
    """The reason given by the last component but one, if any."""
    if _is_norm(words):
        return "norm"
    positions = _POSITIONS.intersection(words) and _EMBEDDINGS.intersection(words)
    if positions or _POSITION_EMBEDDINGS.intersection(words):
        return "position embedding"
    return "running statistics" if words[-1:] == ["ema"] else ""


def _is_norm(words: Sequence[str]) -> bool:
    named = any(word in _NORMS or word.endswith(("norm", "norms")) for word in words)
    return named and not _LAYERS.intersection(words)


def _check_array(leaf: Any, begin: str, end: str) -> None:
    """Checks that a leaf is no array of NumPy that JAX cannot take, or would take for another."""
    if np.ma.isMaskedArray(leaf):
        raise ValueError(
            f"{begin} a masked array{end}, whose mask would be lost. Fill it in with "
            "`.filled(...)`."
        )
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSUMm":
        raise ValueError(f"{begin} an array of dtype {leaf.dtype}{end}. Convert it to numbers.")


def _words(component: str) -> list[str]:
    """The words of a component: `"LayerNorm_0"` is layer, norm. Single letters keep their case."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", component)
    return [word if len(word) == 1 else word.lower() for word in words]


def _prunable_leaves(masks: PyTree, tree: PyTree) -> list[Any]:
    wanted = paths(masks)
    if jax.tree.structure(tree) == jax.tree.structure(masks):
        found = jax.tree.leaves(tree)
    else:
        there = by_path(tree, "rest")
        for path in wanted:
            if path not in there:
                raise ValueError(
                    f"The trees do not match: there is no leaf at {path!r} among "
                    f"{_listing(tuple(there))}."
                )
        found = [there[path] for path in wanted]
    for path, leaf, other in zip(wanted, jax.tree.leaves(masks), found, strict=True):
        _check_shapes(path, leaf, other)
    return found


def _check_shapes(path: str, leaf: Any, other: Any) -> None:
    one, two = (getattr(value, "shape", None) for value in (leaf, other))
    if one and two and one != two:  # both have a shape, and neither is a scalar
        raise ValueError(
            f"The trees do not match: shape {tuple(two)} at {path!r}, where the first tree has "
            f"{tuple(one)}."
        )


def _listing(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
