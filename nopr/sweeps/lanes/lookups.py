"""Reading and writing by index.

On a CPU, XLA reads element by element, and writes one element at a time in a loop. If each case has
its own index into a few entries, such as the label in a cross-entropy, comparing the index with
every entry is faster, and runs over whole vectors of cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from nopr.jaxprs import bind
from nopr.sweeps.lanes import rules, sums

ENTRIES = 64
"""Axes with more entries are left to XLA."""


def _gather(eqn: Any, values: rules.Values, batched: rules.Batched) -> list[Any]:
    numbers = eqn.params["dimension_numbers"]
    if not batched[1]:
        offsets = (*numbers.offset_dims, len(eqn.outvars[0].aval.shape))
        return bind(
            eqn,
            *values,
            dimension_numbers=numbers._replace(offset_dims=offsets),
            slice_sizes=(*eqn.params["slice_sizes"], values[0].shape[-1]),
        )
    mode, fill = eqn.params["mode"], eqn.params["fill_value"]
    fills = mode == lax.GatherScatterMode.FILL_OR_DROP
    few = _is_along_one_axis(
        eqn,
        window=numbers.offset_dims,
        dropped=numbers.collapsed_slice_dims,
        indexed=numbers.start_index_map,
        batch=numbers.operand_batching_dims,
        places=numbers.start_indices_batching_dims,
    )
    if not few or set(eqn.params["slice_sizes"]) != {1} or (fills and fill is None):
        return rules.generic(eqn, values, batched)

    def look_up(array: Any, index: Any) -> Any:
        return _look_up(eqn, array, index, fill=fill if fills else None)

    array = values[0] if batched[0] else lax.expand_dims(values[0], (values[0].ndim,))
    return [sums.own_call(look_up)(array, values[1])]


def _look_up(eqn: Any, array: Any, index: Any, *, fill: Any) -> Any:
    """Entries of one axis by index, as in `take_along_axis`, as a chain of selections."""
    numbers, shape = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
    (axis,) = numbers.start_index_map
    count, index = array.shape[axis], jnp.squeeze(index, len(shape))
    dims = [1] * len(shape)
    for place in numbers.start_indices_batching_dims:
        dims[place] = shape[place]
    entries = [
        lax.index_in_dim(array, entry, axis, keepdims=False).reshape(*dims, array.shape[-1])
        for entry in range(count)
    ]
    if fill is None:
        index, result = jnp.clip(index, 0, count - 1), entries[0]
    else:
        result = jnp.asarray(fill, array.dtype)
    for number, entry in enumerate(entries):
        result = jnp.where(index == number, entry, result)
    return result


def _scatter(eqn: Any, values: rules.Values, batched: rules.Batched) -> list[Any]:
    numbers = eqn.params["dimension_numbers"]
    if not batched[1]:
        array, updates = rules.spread_all(values[::2], batched[::2])
        window = (*numbers.update_window_dims, updates.ndim - 1)
        numbers = numbers._replace(update_window_dims=window)
        return bind(eqn, array, values[1], updates, dimension_numbers=numbers)
    places, shape = numbers.scatter_indices_batching_dims, eqn.invars[2].aval.shape
    few = _is_along_one_axis(
        eqn,
        window=numbers.update_window_dims,
        dropped=numbers.inserted_window_dims,
        indexed=numbers.scatter_dims_to_operand_dims,
        batch=numbers.operand_batching_dims,
        places=places,
    )
    one_each = math.prod(shape) == math.prod(shape[place] for place in places)
    if eqn.primitive.name != "scatter-add" or not few or not one_each:
        return rules.generic(eqn, values, batched)
    return [_add_at(eqn, *rules.spread_all(values, batched))]


def _add_at(eqn: Any, array: Any, index: Any, update: Any) -> Any:
    """Adds one number to each row along an axis, at the row's index; transposes the look-up."""
    (axis,) = eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
    shape = (*array.shape[:axis], 1, *array.shape[axis + 1 :])
    index, update = index.reshape(shape), update.reshape(shape)
    if eqn.params["mode"] != lax.GatherScatterMode.FILL_OR_DROP:
        index = jnp.clip(index, 0, array.shape[axis] - 1)
    entries = lax.broadcasted_iota(index.dtype, (*array.shape[:-1], 1), axis)
    return array + jnp.where(index == entries, update, jnp.zeros_like(update))


def _is_along_one_axis(
    eqn: Any,
    *,
    window: Sequence[Any],
    dropped: Sequence[Any],
    indexed: Sequence[Any],
    batch: Sequence[Any],
    places: Sequence[Any],
) -> bool:
    """Whether one axis of few entries is indexed and all others are batch axes of the indices."""
    shape = eqn.invars[0].aval.shape
    rest = [axis for axis in range(len(shape)) if axis not in indexed]
    alone = len(indexed) == 1 and tuple(dropped) == tuple(indexed) and not window
    in_order = list(batch) == rest and list(places) == sorted(places)
    return alone and in_order and 0 < shape[indexed[0]] <= ENTRIES


_SCATTERS = ("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul")

RULES: dict[str, rules.Rule] = {"gather": _gather, **dict.fromkeys(_SCATTERS, _scatter)}
"""By the name of the operation."""
