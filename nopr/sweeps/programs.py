"""The program of a sweep: traced once from a function of one case, compiled once per block size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from nopr import jaxprs, trees
from nopr.sweeps import lanes
from nopr.sweeps.cases import Hosted, rebuilt, shape_of_one
from nopr.typing import is_key

RUNS = "runs"
Batching: TypeAlias = Literal["vmap", "lanes"]


def trace(function: Callable[..., PyTree], cases: Hosted, shared: PyTree) -> jaxprs.Traced:
    """Traces `function` for one case, once per function object and shapes."""
    args = (shape_of_one(cases),) if shared is None else (shape_of_one(cases), shared)
    found = _jitted(function).trace(*args)
    for path, leaf in zip(
        trees.paths(found.out_info), jax.tree.leaves(found.out_info), strict=True
    ):
        if is_key(leaf):
            raise ValueError(
                f"`function` must return arrays, got typed keys at {path!r}. Return their "
                "`jax.random.key_data`."
            )
    return jaxprs.Traced(found.jaxpr, found.out_info)


def runs_mesh(mesh: Mesh | None) -> Mesh:
    """The part of a mesh on this process; by default, one axis with all of its devices.

    Raises:
      ValueError: If the mesh has no axis `runs`, or no device of this process.
    """
    if mesh is None:
        return Mesh(np.array(jax.local_devices()), (RUNS,))
    if not isinstance(mesh, Mesh):
        raise ValueError(f"`mesh` must be a jax.sharding.Mesh, got {type(mesh).__name__}.")
    if RUNS not in mesh.axis_names:
        raise ValueError(f"`mesh` must have an axis 'runs', got axes {list(mesh.axis_names)}.")
    return mesh.local_mesh


class Program(NamedTuple):
    """A compiled program that runs one block of cases on each device of the `runs` axis."""

    compiled: Any
    mesh: Mesh

    def __call__(self, leaves: list[np.ndarray], shared: list[Any]) -> list[np.ndarray]:
        """The results of one block per device, on the host."""
        taken = jax.device_put(leaves, NamedSharding(self.mesh, P(RUNS)))
        return [np.asarray(leaf) for leaf in self.compiled(taken, shared)]

    def place(self, shared: PyTree) -> list[Any]:
        """Places what all cases share on every device."""
        return jax.device_put(jax.tree.leaves(shared), NamedSharding(self.mesh, P()))

    @property
    def memory_bytes(self) -> int:
        """Memory that a call takes on each device: arguments, results and temporaries."""
        found = self.compiled.memory_analysis()
        if found is None:  # pragma: no cover - a backend without the analysis
            return 0
        return (
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            + found.temp_size_in_bytes
            - found.alias_size_in_bytes
        )


def compiled(
    traced: jaxprs.Traced,
    cases: Hosted,
    shared: PyTree,
    *,
    block: int,
    mesh: Mesh,
    batching: Batching,
) -> Program:
    """The program for blocks of this size, compiled once per trace."""
    shapes = tuple((leaf.shape[1:], leaf.dtype) for leaf in cases.leaves)
    like = tuple((leaf.shape, leaf.dtype) for leaf in map(jax.typeof, jax.tree.leaves(shared)))
    return _compiled(traced.program, cases.generators, shapes, like, block, mesh, batching)


@functools.lru_cache(maxsize=32)  # bounded, so that compiled programs are freed
def _compiled(
    program: jaxprs.Program,  # compared by identity
    generators: tuple[Any, ...],
    shapes: tuple[Any, ...],
    shared: tuple[Any, ...],
    block: int,
    mesh: Mesh,
    batching: Batching,
) -> Program:
    one = jaxprs.run(_on_host(program))
    like = Hosted([], generators, jax.tree.structure([0] * len(generators)))
    mapped = lanes.vmap if batching == "lanes" else jax.vmap

    def blockwise(leaves: list[Any], shared: list[Any]) -> list[Any]:
        keys = rebuilt(like, leaves)
        return mapped(lambda case, shared: one(*case, *shared), in_axes=(0, None))(keys, shared)

    # Without check_vma=False the program, and its last bits, would depend on the number of devices.
    sharded = jax.shard_map(
        blockwise, mesh=mesh, in_specs=(P(RUNS), P()), out_specs=P(RUNS), check_vma=False
    )
    rows, whole = NamedSharding(mesh, P(RUNS)), NamedSharding(mesh, P())
    size = block * mesh.shape[RUNS]
    args = (
        [jax.ShapeDtypeStruct((size, *shape), dtype, sharding=rows) for shape, dtype in shapes],
        [jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape, dtype in shared],
    )
    return Program(jax.jit(sharded).lower(*args).compile(), mesh)


@functools.lru_cache(maxsize=32)
def _jitted(function: Callable[..., PyTree]) -> Any:
    return jax.jit(function)


def _on_host(program: jaxprs.Program) -> jaxprs.Program:
    """The program with its constants as NumPy arrays, which are not bound to a device."""
    return jaxprs.replace_constants(
        program,
        [
            np.asarray(const) if isinstance(const, jax.Array) and not is_key(const) else const
            for const in program.consts
        ],
    )
