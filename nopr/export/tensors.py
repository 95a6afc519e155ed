"""Masks and pruned params in safetensors files, for other programs too."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from nopr.export import files, leaves
from nopr.export.coding import DamageError
from nopr.export.leaves import Arrays, Pruned
from nopr.typing import Masks, Params

PREFIX = "masks/"

_KEY, _FORMAT = "nopr", "pruned params 1"
_WHAT = "a safetensors file of nopr"
_DTYPES = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def save_safetensors(params: Params, masks: Masks, path: str | os.PathLike[str]) -> Path:
    """Saves pruned params and their masks to a safetensors file.

    Each param is a tensor under its path, such as `"params/Dense_0/kernel"`, with zeros where it is
    pruned, so that any reader of safetensors finds the pruned network. Each mask is a tensor of
    bool under `"masks/"` and the same path. The metadata name the format and hold a SHA-256 of the
    tensors, which safetensors itself does not have.

    Args:
      params: Params, of the dtypes that safetensors and NumPy share.
      masks: Their masks.
      path: The file; missing folders are made, and a file that is there is replaced once the new
        one is complete.

    Returns:
      The path.

    Raises:
      ValueError: If the trees do not match, the masks are not bool, a leaf is traced, of another
        dtype, or at a path that begins with `"masks/"`, or two leaves have one path.
      OSError: If the file cannot be written.
      ModuleNotFoundError: If the extra `lab` is not installed.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from safetensors.numpy import load_file
      >>> from nopr import export
      >>> params = {"net": {"w": np.array([1.5, 2.5], np.float32)}}
      >>> masks = {"net": {"w": np.array([True, False])}}
      >>> path = export.save_safetensors(params, masks, f"{tempfile.mkdtemp()}/net.safetensors")
      >>> load_file(path)["net/w"]
      array([1.5, 0. ], dtype=float32)
    """
    target, (values, kept) = files.checked_path(path), leaves.pruned_arrays(params, masks)
    safetensors = _safetensors()
    tensors = {}
    for name, leaf in values.items():
        if leaf.dtype.name not in _DTYPES.values():
            raise ValueError(
                f"`params` must have dtypes such as float32, got {leaf.dtype} at {name!r}. Convert "
                "this leaf, or use `save_pruned`."
            )
        if name.startswith(PREFIX) or name == "__metadata__":
            raise ValueError(
                f"`params` must leave the names of the file alone, got a leaf at {name!r}. Rename "
                "it, or use `save_pruned`."
            )
        pruned = np.where(kept[name], leaf, np.zeros((), leaf.dtype)) if name in kept else leaf
        tensors[name] = np.asarray(pruned, leaf.dtype.newbyteorder("<"), order="C")
    tensors |= {PREFIX + name: np.asarray(mask, order="C") for name, mask in kept.items()}
    metadata = {_KEY: _FORMAT, "sha256": _digest(tensors)}
    return files.write(target, safetensors.numpy.save(tensors, metadata))


def load_safetensors(path: str | os.PathLike[str], *, like: PyTree = None) -> Pruned:
    """Loads pruned params and their masks from a safetensors file of `save_safetensors`.

    Args:
      path: The file.
      like: Params of the same structure and dtypes, as arrays or shapes. Without it, params and
        masks come as nested dicts by the parts of their paths; see `load_masks`.

    Returns:
      The params, 0 where pruned, and the masks, as arrays of NumPy with the dtypes that were saved.

    Raises:
      ValueError: If the file is damaged or none of `save_safetensors`, or does not match `like`.
      OSError: If it cannot be read.
      ModuleNotFoundError: If the extra `lab` is not installed.
    """
    target, safetensors = files.checked_path(path), _safetensors()
    data = target.read_bytes()
    with files.explained(target, _WHAT):
        try:
            found = dict(safetensors.deserialize(data))
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{files.must(target, _WHAT)}, which safetensors cannot read: "
                f"{' '.join(str(error).split())}. Give a whole file of `export.save_safetensors`."
            ) from None
        metadata = _metadata(data)
        if metadata.get(_KEY) != _FORMAT:
            raise ValueError(
                f"{files.must(target, _WHAT)}, which has no metadata `{_KEY}: {_FORMAT}`. Give a "
                "file of `export.save_safetensors`, or read it with safetensors."
            )
        tensors = {name: _array(name, info) for name, info in found.items()}
        if metadata.get("sha256") != _digest(tensors):
            raise DamageError("its tensors do not match its SHA-256")
        kept = {name[len(PREFIX) :]: x for name, x in tensors.items() if name.startswith(PREFIX)}
        values = {name: x for name, x in tensors.items() if not name.startswith(PREFIX)}
        for name, mask in kept.items():
            if mask.dtype != bool or name not in values or values[name].shape != mask.shape:
                raise DamageError(f"the mask at {name!r} is not one of its params")
        if like is not None:
            leaves.check_params(values, like)
    return Pruned(leaves.as_tree(values, like), leaves.as_tree(kept, like))


def _safetensors() -> Any:
    """The functions of safetensors, which is in the extra `lab`."""
    if importlib.util.find_spec("safetensors") is None:
        raise ModuleNotFoundError(
            "A safetensors file needs safetensors, which is not installed. "
            "It comes with the extra `lab`: pip install 'nopr[lab]'."
        )
    import safetensors
    import safetensors.numpy

    return safetensors


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a file that safetensors has read."""
    length = int.from_bytes(data[:8], "little")
    try:
        return json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (ValueError, RecursionError, AttributeError):
        raise DamageError("its header is not JSON") from None


def _array(name: str, info: Mapping[str, Any]) -> np.ndarray:
    if info["dtype"] not in _DTYPES:
        raise DamageError(f"the tensor {name!r} has the unknown dtype {info['dtype']}")
    dtype = jnp.dtype(_DTYPES[info["dtype"]])
    if dtype.name == "bool" and bytes(info["data"]).strip(b"\0\1"):
        raise DamageError(f"the tensor {name!r} is not bool")
    flat = np.frombuffer(info["data"], dtype.newbyteorder("<")).astype(dtype)
    return flat.reshape(info["shape"])


def _digest(tensors: Arrays) -> str:
    """The SHA-256 of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype.name}\0{tensor.shape}\0".encode())
        digest.update(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
