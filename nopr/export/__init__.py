"""Masks and pruned params in files: safetensors, and a packed file close to the shortest possible.

`save_masks` and `save_pruned` write a packed file. There a mask that keeps k of n weights takes
log2 C(n, k) bits, which is what the choice of k among n takes, plus at most 2%; or less, if it has
a structure, such as whole filters. `save_safetensors` writes what other programs read.

Files are written whole or not at all, and hold a SHA-256 of their contents. Reading runs nothing
that is in a file, and a file that is damaged or of another kind is a ValueError of one line.
"""

from nopr.export.leaves import Pruned
from nopr.export.packed import load_masks, load_pruned, save_masks, save_pruned
from nopr.export.tensors import load_safetensors, save_safetensors

__all__ = [
    "Pruned",
    "load_masks",
    "load_pruned",
    "load_safetensors",
    "save_masks",
    "save_pruned",
    "save_safetensors",
]
