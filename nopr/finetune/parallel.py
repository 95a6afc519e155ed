"""Data parallelism: the layout of arrays on a mesh, with batches split over its `batch` axis.

The program over a mesh is that of one device with sharding constraints: the examples of a batch are
split, everything else is replicated. XLA's partitioner divides the work accordingly and preserves
the meaning: means over the batch, its statistics and its noise are those of the whole batch. If the
devices do not divide the batch, the last ones hold fewer examples.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from nopr import jaxprs
from nopr.typing import is_key, shown

AXIS = "batch"
"""The axis of a mesh over which the examples of a batch are split."""

Program = Callable[[PyTree], Any]


def over(mesh: Mesh | None) -> Mesh | None:
    """Checks a mesh, and leaves the sharding along its axes to the compiler.

    Args:
      mesh: Mesh with a `batch` axis; its axes may be explicit, as those of `jax.make_mesh` are.

    Raises:
      ValueError: If it has no such axis.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise ValueError(f"`mesh` must be a jax.sharding.Mesh, got {shown(mesh)}.")
    if AXIS not in mesh.axis_names:
        raise ValueError(f"`mesh` must have an axis {AXIS!r}, got axes {list(mesh.axis_names)}.")
    return Mesh(mesh.devices, mesh.axis_names)


def context(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """A context to trace a program over `mesh` in, without axes that `jax.set_mesh` made explicit.

    Raises:
      ValueError: If a surrounding `shard_map` does not leave the `batch` axis to the compiler.
    """
    around = jax.sharding.get_abstract_mesh()
    if mesh is None or not {AxisType.Explicit, AxisType.Manual} & set(around.axis_types):
        return contextlib.nullcontext()
    if not around.manual_axes:
        return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    kinds = dict(zip(around.axis_names, around.axis_types, strict=True))
    if kinds.get(AXIS) != AxisType.Auto:
        raise ValueError(
            f"A `shard_map` around training with a `mesh` must leave the axis {AXIS!r} to the "
            f"compiler, got {kinds}. Give it the same `jax.sharding.Mesh` and `axis_names` "
            f"without {AXIS!r}."
        )
    return contextlib.nullcontext()


def place(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Replicates each leaf on every device; one already split over the mesh keeps its layout.

    Under a caller's `jit` or `vmap` nothing moves: the constraints of `split` and `whole` suffice.

    Raises:
      ValueError: If the processes of the mesh call this with different leaves.
    """
    leaves, treedef = jax.tree.flatten(tree)
    if mesh is None or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return tree
    targets = [_target(leaf, mesh) for leaf in leaves]
    if len(_processes(mesh)) > 1:
        sent = [leaf for leaf, target in zip(leaves, targets, strict=True) if _sent(leaf, target)]
        _check_same(sent, mesh)
    return jax.tree.unflatten(treedef, [_put(*pair) for pair in zip(leaves, targets, strict=True)])


def split(batch: PyTree, mesh: Mesh | None, program: Program | None = None) -> PyTree:
    """Splits the examples over the `batch` axis, inside a program.

    Any number of examples can be split; the last shares may be smaller or empty. The exception is a
    program with a scatter whose indices are not int32, as in the gradient of a sort: in an uneven
    split, XLA's partitioner aborts the process (`HandleScatter` pads the indices with an int32).
    The uneven batch of such a program is replicated on every device.

    Args:
      batch: The examples.
      mesh: The mesh; None leaves the batch as it is.
      program: `program(batch)`, the computation on the batch; None if the split is even.
    """
    if mesh is None:
        return batch
    uneven = any(len(leaf) % mesh.shape[AXIS] for leaf in jax.tree.leaves(batch))
    if program and uneven and _scatters_by_other_than_int32(jaxprs.trace(program, batch).program):
        return whole(batch, mesh)
    return _constrain(batch, mesh, PartitionSpec(AXIS))


def whole(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Replicates a tree on every device, inside a program."""
    return _constrain(tree, mesh, PartitionSpec())


def rounded_up(count: int, mesh: Mesh | None) -> int:
    """`count`, rounded up to a multiple of the size of the `batch` axis."""
    return count if mesh is None else count + -count % mesh.shape[AXIS]


def _constrain(tree: PyTree, mesh: Mesh | None, spec: PartitionSpec) -> PyTree:
    if mesh is None:
        return tree
    inside = jax.sharding.get_abstract_mesh().manual_axes  # inside a shard_map, its mesh applies
    return jax.lax.with_sharding_constraint(tree, spec if inside else NamedSharding(mesh, spec))


def _scatters_by_other_than_int32(program: jaxprs.Program) -> bool:
    return any(
        eqn.invars[1].aval.dtype != np.int32 and eqn.invars[1].aval.ndim > 1  # several indices
        for eqn in jaxprs.equations(program)
        if eqn.primitive.name.startswith("scatter")
    )


def _target(leaf: Any, mesh: Mesh) -> NamedSharding:
    """The layout of `leaf` if it is split over these devices; otherwise replicated."""
    lies = getattr(leaf, "sharding", None)
    if (
        isinstance(lies, NamedSharding)
        and not lies.is_fully_replicated
        and lies.mesh.axis_names == mesh.axis_names
        and np.array_equal(lies.mesh.devices, mesh.devices)
    ):
        return NamedSharding(mesh, lies.spec)
    return NamedSharding(mesh, PartitionSpec())


def _processes(mesh: Mesh) -> set[int]:
    return {device.process_index for device in mesh.devices.flat}


def _sent(leaf: Any, target: NamedSharding) -> bool:
    """Whether the host sends `leaf`, rather than the devices of the mesh."""
    return not isinstance(leaf, jax.Array) or leaf.sharding.device_set != target.device_set


def _put(leaf: Any, target: NamedSharding) -> Any:
    if target.is_fully_addressable or not _sent(leaf, target):
        return jax.device_put(leaf, target)
    # Across processes `device_put` refuses NaN, and arrays committed to a device of this one.
    if is_key(leaf):
        data = _put(jax.random.key_data(leaf), target)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype))
    return jax.make_array_from_callback(host.shape, target, lambda index: host[index])


def _check_same(leaves: Sequence[Any], mesh: Mesh) -> None:
    """Compares digests: a process with other arrays would train another network."""
    if len(_processes(mesh)) < jax.process_count():
        return  # the digests are gathered from all processes, and the others are not here
    total = hashlib.sha256()
    for leaf in leaves:
        host = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        total.update(f"{host.dtype} {host.shape}\n".encode())
        total.update(host.tobytes())
    mine = np.frombuffer(total.digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(mine))
    others = np.flatnonzero((digests != digests[0]).any(axis=1))
    if others.size:
        raise ValueError(
            "Every process of `mesh` must give the same params, masks, data and key, but those of "
            f"process {others[0]} differ from those of process 0. Make them from one seed."
        )
