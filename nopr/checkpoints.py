"""Checkpoints: a pytree on disk, bit for bit, noticed when damaged. The only importer of orbax.

Orbax writes the arrays; beside them lies a manifest of our own with the SHA-256 of every file and
the path, shape and dtype of every leaf, because orbax reads a flipped bit without a word. A
checkpoint is written aside and renamed, so that a half-written one is never seen.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from nopr import trees

_MANIFEST = "manifest.json"
_ARRAYS = "arrays"


def save(directory: str | Path, step: int, tree: PyTree, *, keep: int = 2) -> Path:
    """Saves `tree` as the checkpoint of `step`, and returns when it is safely on the disk.

    Args:
      directory: Holds the checkpoints, one folder a step; made if missing.
      step: Not negative. A checkpoint of the same step is replaced.
      tree: Any pytree of arrays, numbers and typed PRNG keys: params, masks with None leaves,
        optimiser states.
      keep: How many of the newest checkpoints stay, at least 1. With 2, a damaged last one still
        leaves the one before.

    Returns:
      The folder of the checkpoint.

    Raises:
      ValueError: If a leaf is of size 0 (orbax cannot store it) or not an array; names it.
      OSError: If it cannot be written; older checkpoints are untouched.
    """
    if keep < 1:
        raise ValueError(f"`keep` must be at least 1, got {keep}.")
    if step < 0:
        raise ValueError(f"`step` must not be negative, got {step}.")
    rows = _rows(tree)
    if not rows:
        raise ValueError("`tree` must have at least one array, got none.")
    directory = Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(directory)
    aside = directory / f".{step}.new.tmp"
    try:
        _write(aside, step, rows, [_stored(leaf) for leaf in jax.tree.leaves(tree)])
        final = directory / str(step)
        if final.exists():
            os.rename(final, directory / f".{step}.old.tmp")
        os.rename(aside, final)
        _sync(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _remove_unfinished(directory)
    for old in steps(directory)[:-keep]:
        shutil.rmtree(directory / str(old))
    return final


def restore(
    directory: str | Path, target: PyTree, *, say: Callable[[str], Any] | None = None
) -> tuple[int, PyTree] | None:
    """Reads the newest checkpoint that is whole.

    Args:
      directory: Where `save` put them.
      target: A tree of the same leaves, arrays or `jax.ShapeDtypeStruct`s. The result has its
        structure; a leaf is a JAX array on the target's device where the target's is, NumPy or a
        Python number where the target's is.
      say: Called with one line for each damaged checkpoint passed over; prints to stderr by
        default.

    Returns:
      The step and the tree, or None if there is no whole checkpoint.

    Raises:
      ValueError: If the checkpoint is of another tree than `target`; names the leaf.
    """
    directory = Path(directory).absolute()
    for step in reversed(steps(directory)):
        manifest, fault = _verified(directory / str(step))
        if manifest is not None:
            return step, _read(directory / str(step), manifest, target)
        (say or _to_stderr)(
            f"The checkpoint of step {step} in {directory} is damaged ({fault}); "
            "trying the one before."
        )
    return None


def steps(directory: str | Path) -> tuple[int, ...]:
    """The steps that have a checkpoint, ascending, whole or not."""
    directory = Path(directory)
    if not directory.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit()))


# --- Leaves ------------------------------------------------------------------------------------


def _rows(tree: PyTree) -> list[dict[str, Any]]:
    """What the manifest says of each leaf, and what a target must agree with."""
    return [_row(path, leaf) for path, leaf in _leaves(tree)]


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(trees.path_string(path), leaf) for path, leaf in found]


def _row(path: str, leaf: Any) -> dict[str, Any]:
    like = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if not (_is_key(like) or jnp.issubdtype(like.dtype, np.number) or like.dtype == bool):
        raise ValueError(
            f"`tree` must hold arrays and numbers, got {type(leaf).__name__} at {path!r}."
        )
    if 0 in like.shape:
        raise ValueError(
            f"`tree` has a leaf of size 0 at {path!r} (shape {tuple(like.shape)}), which a "
            "checkpoint cannot hold. Leave it out, or put None there."
        )
    return {"path": path, "shape": list(like.shape), "dtype": str(like.dtype)}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> tuple[np.ndarray, str | None]:
    """The array that stands for a leaf, and the generator of a typed PRNG key."""
    if _is_key(leaf):
        return np.asarray(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf))
    return np.asarray(leaf), None


def _read(folder: Path, manifest: dict[str, Any], target: PyTree) -> PyTree:
    for there, here in itertools.zip_longest(manifest["leaves"], _rows(target)):
        if there != here:
            raise ValueError(
                f"The checkpoint {str(folder)!r} does not match `target`: it has "
                f"{_phrase(there)}, where `target` has {_phrase(here)}."
            )
    stored = manifest["stored"]
    like = {
        str(index): jax.ShapeDtypeStruct(row["shape"], np.dtype(row["dtype"]))
        for index, row in enumerate(stored)
    }
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(folder / _ARRAYS, like)
    values = [
        _like(found[str(index)], row["generator"], leaf)
        for index, (row, (_, leaf)) in enumerate(zip(stored, _leaves(target), strict=True))
    ]
    return jax.tree.unflatten(jax.tree.structure(target), values)


def _like(value: Any, generator: str | None, leaf: Any) -> Any:
    """The stored array as the kind of thing that the target has."""
    if generator is not None:
        return jax.random.wrap_key_data(jnp.asarray(value), impl=generator)
    if isinstance(leaf, np.generic):
        return np.asarray(value)[()]
    if isinstance(leaf, np.ndarray):
        return np.asarray(value)
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(np.asarray(value).item())
    return jax.device_put(value, getattr(leaf, "sharding", None))


def _phrase(row: dict[str, Any] | None) -> str:
    if row is None:
        return "no such leaf"
    return f"{row['dtype']}{row['shape']} at {row['path']!r}"


# --- Files -------------------------------------------------------------------------------------


def _write(
    folder: Path, step: int, rows: list[dict[str, Any]], stored: list[tuple[np.ndarray, str | None]]
) -> None:
    """Writes arrays and manifest, and makes every file durable."""
    folder.mkdir()
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = {str(index): array for index, (array, _) in enumerate(stored)}
        checkpointer.save(folder / _ARRAYS, arrays)
    files = sorted(path for path in (folder / _ARRAYS).rglob("*") if path.is_file())
    body = {
        "step": int(step),
        "leaves": rows,
        "stored": [
            {"shape": list(array.shape), "dtype": array.dtype.name, "generator": generator}
            for array, generator in stored
        ],
        "files": {path.relative_to(folder).as_posix(): _sha256(path) for path in files},
    }
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({"digest": _digest(body), **body}, indent=1) + "\n")
    for path in (*files, manifest, *{file.parent for file in files}, folder):
        _sync(path)


def _verified(folder: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        whole = manifest.pop("digest") == _digest(manifest)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        whole, manifest = False, {}
    if not whole:
        return None, f"{_MANIFEST} is missing or altered"
    for name, digest in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return None, f"{name} is missing"
        if _sha256(path) != digest:
            return None, f"{name} is altered"
    return manifest, ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_unfinished(directory: Path) -> None:
    for left in directory.glob(".*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
