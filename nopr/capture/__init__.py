"""What enters each kernel of a network, found in the traced function: no hooks, no declarations.

A kernel is a leaf of the params that a matrix product or a convolution consumes. It is followed
there from the arguments of `apply` through changes of form: reshape, transpose, casts, `jit`,
`jax.checkpoint` and functions with custom derivatives. So the library knows which axes of the leaf
are contracted and which number outputs, for any `apply`: attention's kernels
[in, heads, features] and [heads, features, out] and Equinox's [out, in] need no declaration.

What cannot be followed is refused by the path of the kernel and the name of the operation: kernels
inside loops and branches, kernels changed by arithmetic (such as weight standardization), and
lookups (embeddings). Leave such kernels out with `where`.
"""

from nopr.capture.kernels import kernels, output_axes, walk
from nopr.capture.statistics import nonzero, rows, second_moments, squared_norms
from nopr.capture.uses import Entering, Kernel, Use

__all__ = [
    "Entering",
    "Kernel",
    "Use",
    "kernels",
    "nonzero",
    "output_axes",
    "rows",
    "second_moments",
    "squared_norms",
    "walk",
]
