"""The packed file: masks close to log2 C(n, k) bits, alone or with the params that they leave."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PyTree

from nopr.export import coding, files, layout, leaves
from nopr.export.coding import Choice, DamageError
from nopr.export.layout import Leaf, Sections
from nopr.export.leaves import Arrays, Pruned
from nopr.typing import Masks, Params


def save_masks(masks: Masks, path: str | os.PathLike[str]) -> Path:
    r"""Saves masks to a packed file of close to the fewest bits that a choice of weights can take.

    The file takes at most :math:`1.02 \sum_l \log_2 \binom{n_l}{k_l}` bits plus 64 bytes a leaf,
    where leaf l keeps k of n weights. The 64 bytes hold a path of 22 characters in a file of
    one leaf, and otherwise of 30 on average, beyond what it shares with the path before; longer
    ones add their length. Masks with structure, such as whole filters, can take much less.

    Args:
      masks: Masks, concrete and with at least one leaf.
      path: The file; missing folders are made, and a file that is there is replaced once the new
        one is complete.

    Returns:
      The path.

    Raises:
      ValueError: If the masks are not bool, are traced, or have no leaf, two leaves at one path, or
        more than 2,147,483,647 weights.
      OSError: If the file cannot be written.

    Example:
      >>> import tempfile
      >>> import jax
      >>> import numpy as np
      >>> from nopr import export, masks
      >>> scores = {"w": np.random.default_rng(0).random((300, 100), np.float32), "b": None}
      >>> kept = masks.top(scores, density=0.01)
      >>> path = export.save_masks(kept, f"{tempfile.mkdtemp()}/kept.nopr")
      >>> path.stat().st_size  # log2 C(30000, 300) bits are 303 bytes
      340
      >>> jax.tree.map(np.array_equal, export.load_masks(path, like=kept), kept)
      {'b': None, 'w': True}

    Source: See `nopr.export.coding`.
    """
    target, kept = files.checked_path(path), leaves.mask_arrays(masks)
    return files.write(target, _contents({}, kept, kept))


def load_masks(path: str | os.PathLike[str], *, like: PyTree = None) -> Masks:
    """Loads the masks of a packed file, of `save_masks` or `save_pruned`.

    Args:
      path: The file.
      like: Masks or params of the same structure, as arrays or shapes. Leaves of the params that
        have no mask become None. Without it, masks come as nested dicts by the parts of their
        paths: `"layers/0/w"` at `["layers"]["0"]["w"]`, whatever the tree was, and without the
        Nones. Give it if you do not trust the file: its shapes are then checked before anything of
        their size is made.

    Returns:
      The masks, as arrays of NumPy.

    Raises:
      ValueError: If the file is damaged or no packed file, or does not match `like`.
      OSError: If it cannot be read.
    """
    target = files.checked_path(path)
    with files.explained(target, layout.WHAT):
        header, sections = layout.read(target)
        masked = [leaf for leaf in header if leaf.kept is not None]
        if like is not None:
            there = leaves.check_like({leaf.path: leaf.shape for leaf in masked}, like)
            known = {leaf.path for leaf in masked}
            for name, leaf in there.items():
                if name not in known and getattr(leaf, "dtype", None) == np.dtype(bool):
                    raise ValueError(
                        f"`like` must match the file, got a mask at {name!r}, where the file has "
                        "none."
                    )
        return leaves.as_tree(_masks(masked, sections), like)


def save_pruned(params: Params, masks: Masks, path: str | os.PathLike[str]) -> Path:
    """Saves pruned params to a packed file: the masks, the kept values, and other leaves whole.

    The masks take as much as in a file of `save_masks`; values take their bytes, and those of
    pruned weights are left out.

    Args:
      params: Params, arrays of numbers of a dtype in `nopr.export.layout.DTYPES`.
      masks: Their masks.
      path: The file; missing folders are made, and a file that is there is replaced once the new
        one is complete.

    Returns:
      The path.

    Raises:
      ValueError: If the trees do not match, the masks are not bool, a leaf is traced or of another
        dtype, two leaves have one path, or there are more than 2,147,483,647 weights.
      OSError: If the file cannot be written.
    """
    target, (values, kept) = files.checked_path(path), leaves.pruned_arrays(params, masks)
    for name, leaf in values.items():
        if leaf.dtype.name not in layout.DTYPES:
            raise ValueError(
                f"`params` must have dtypes such as float32, got {leaf.dtype} at {name!r}. Convert "
                "this leaf."
            )
    return files.write(target, _contents(values, kept, values))


def load_pruned(path: str | os.PathLike[str], *, like: PyTree = None) -> Pruned:
    """Loads pruned params and their masks from a packed file of `save_pruned`.

    Args:
      path: The file.
      like: Params of the same structure and dtypes, as arrays or shapes. Without it, params and
        masks come as nested dicts by the parts of their paths; see `load_masks`.

    Returns:
      The params, 0 where pruned, and the masks, as arrays of NumPy with the dtypes that were saved.

    Raises:
      ValueError: If the file is damaged, no packed file or one of masks alone, or does not match
        `like`.
      OSError: If it cannot be read.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from nopr import export
      >>> params = {"w": np.array([1.5, 2.5, 3.5], np.float32), "b": np.array([0.5, 0.0])}
      >>> masks = {"w": np.array([True, False, True]), "b": None}
      >>> path = export.save_pruned(params, masks, f"{tempfile.mkdtemp()}/net.nopr")
      >>> loaded = export.load_pruned(path, like=params)
      >>> loaded.params["w"], loaded.masks["b"]
      (array([1.5, 0. , 3.5], dtype=float32), None)
    """
    target = files.checked_path(path)
    with files.explained(target, layout.WHAT):
        header, sections = layout.read(target)
        if any(leaf.dtype is None for leaf in header):
            raise ValueError(
                f"{files.must(target, 'a file of `save_pruned`')}, which has masks alone. Read it "
                "with `load_masks`."
            )
        if like is not None:
            leaves.check_params({leaf.path: leaf for leaf in header}, like)
        kept = _masks([leaf for leaf in header if leaf.kept is not None], sections)
        values = {
            leaf.path: _values(leaf, kept.get(leaf.path), data)
            for leaf, data in zip(header, sections.values, strict=True)
        }
    return Pruned(leaves.as_tree(values, like), leaves.as_tree(kept, like))


# --- Contents -----------------------------------------------------------------------------------


def _contents(values: Arrays, kept: Arrays, order: Arrays) -> bytes:
    """The whole file: of masks, and of values if there are any."""
    header = [Leaf(path, leaf.shape, None, None, None) for path, leaf in order.items()]
    try:
        layout.check_sizes(header)
    except DamageError as error:
        name = "params" if values else "masks"
        raise ValueError(f"`{name}` must fit a packed file, but {error}. Save fewer.") from None
    header, coded, deflated, data = [], [], [], []
    for path, leaf in order.items():
        mask = kept[path].reshape(-1) if path in kept else None
        short = None if mask is None else _deflated(mask)
        if short is not None:
            deflated.append(short)
        elif mask is not None:
            coded.append(mask)
        if values:
            chosen = leaf.reshape(-1) if mask is None else leaf.reshape(-1)[mask]
            data.append(chosen.astype(leaf.dtype.newbyteorder("<")).tobytes())
        header.append(
            Leaf(
                path,
                leaf.shape,
                dtype=leaf.dtype.name if values else None,
                kept=None if mask is None else int(np.count_nonzero(mask)),
                deflated=None if short is None else len(short),
            )
        )
    return layout.written(header, [coding.encode(coded), *deflated, *data])


def _deflated(mask: Bool[np.ndarray, " _"]) -> bytes | None:
    """The bits of a mask with structure, if they take less than the code."""
    data = zlib.compress(np.packbits(mask, bitorder="little").tobytes())
    return data if 8 * len(data) < Choice(mask.size, int(np.count_nonzero(mask))).bits else None


def _masks(header: Sequence[Leaf], sections: Sections) -> Arrays:
    coded = [leaf for leaf in header if leaf.deflated is None]
    choices = [Choice(leaf.size, leaf.kept or 0) for leaf in coded]
    flat = dict(
        zip((leaf.path for leaf in coded), coding.decode(sections.code, choices), strict=True)
    )
    for leaf in header:
        if leaf.deflated is not None:
            flat[leaf.path] = _inflated(leaf, sections.deflated[leaf.path])
    return {leaf.path: flat[leaf.path].reshape(leaf.shape) for leaf in header}


def _inflated(leaf: Leaf, data: bytes) -> Bool[np.ndarray, " _"]:
    length, inflate = -(-leaf.size // 8), zlib.decompressobj()
    try:
        found = inflate.decompress(data, length + 1)
    except zlib.error:
        found = b""
    if len(found) != length or not inflate.eof or inflate.unused_data:
        raise DamageError(f"the mask at {leaf.path!r} cannot be inflated")
    bits = np.unpackbits(np.frombuffer(found, np.uint8), bitorder="little").view(bool)
    if np.count_nonzero(bits) != leaf.kept or bits[leaf.size :].any():
        raise DamageError(f"the mask at {leaf.path!r} does not fit its count")
    return bits[: leaf.size].copy()


def _values(leaf: Leaf, mask: Bool[np.ndarray, "..."] | None, data: bytes) -> np.ndarray:
    dtype = jnp.dtype(leaf.dtype)
    if dtype.name == "bool" and data.strip(b"\0\1"):
        raise DamageError(f"the values at {leaf.path!r} are not bool")
    found = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    if mask is None:
        return found.reshape(leaf.shape)
    values = np.zeros(leaf.shape, dtype)
    values[mask] = found
    return values
