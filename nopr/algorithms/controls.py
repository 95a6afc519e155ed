"""The controls of a mask: shuffled, on redrawn weights, by inverted scores, and random."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
from jaxtyping import Array, Key

from nopr import criteria, sweeps, trees
from nopr import masks as masks_
from nopr.algorithms.pure import Init, MadeOf, check_parts, starting_params
from nopr.typing import (
    Algorithm,
    Batch,
    Criterion,
    Masks,
    Params,
    Train,
    check_choice,
    check_flags,
    check_form,
    shown,
    takes,
)

Branch: TypeAlias = Literal["chosen", "shuffled", "redrawn", "inverted", "random"]
"""The mask as it was chosen, and its four controls."""

_STREAM = 0x6374726C  # folded into the key, so that controls draw other numbers than algorithms do


class Start(NamedTuple):
    """Where a training begins."""

    params: Params
    """The params, not yet masked."""
    masks: Masks
    """The masks to train under."""


Build: TypeAlias = Callable[[Criterion], Algorithm]
Begin: TypeAlias = Callable[..., Start]


def controls(
    criterion: Criterion,
    build: Build,
    *,
    init: Init,
    rewind: Train | None = None,
    levels: bool = False,
) -> Callable[..., dict[str, Start]]:
    """The mask that an algorithm chooses, beside its four controls.

    If a control trains as well as the chosen mask, the method found no more than what the control
    preserves:

    - `"shuffled"`: each mask shuffled within its layer, which preserves the layers' counts;
    - `"redrawn"`: the same masks with newly drawn weights;
    - `"inverted"`: the masks that the algorithm chooses by negated scores;
    - `"random"`: random masks with the same count in each layer, drawn from the key and the counts
      alone.

    Shuffled and random masks have the same law, and train alike; but given the key, a shuffled mask
    still knows what the chosen one knows of the data, and a random one only its counts. Both move
    single weights, and so break up the filters or units of a structured mask. Where these differ
    in size, inverted masks keep another number of weights than the chosen ones.

    Args:
      criterion: The criterion to control.
      build: `build(criterion) -> Algorithm`, called with the criterion and with its inverse.
      init: `init(key) -> params`, as given to the algorithm.
      rewind: The one given to `imp`, which must be given here too: trains from `init` to the step
        that trainings start from. None for training from initialization.
      levels: Whether the algorithm returns masks of many levels, along a leading axis, as with
        `imp(levels=True)` or `pruning.levels`. Each level then has controls of its own, and the
        masks of every branch have the axis; the params, which are the same for all, have not.

    Returns:
      `(data, *, key) -> {branch: Start}`, with `"chosen"` first. It works under jit and vmap, and
      uses the key as the algorithm does: `"chosen"` has the masks of `build(criterion)` and the
      params on which they were chosen, or to which they were rewound.

    Raises:
      ValueError: If an argument is not a function of the stated form, `rewind` is not the one that
        the algorithm was built with, or the algorithm does not rewind the weights. From the
        function, if the masks of the algorithm have levels where `levels` is False, or have none
        where it is True.

    Example:
      >>> import jax
      >>> from nopr import algorithms, criteria, networks, pruning
      >>> net = networks.mlp((16, 2), inputs=4)
      >>> def build(criterion):
      ...     return algorithms.at_init(pruning.pruner(criterion, density=0.5), init=net.init)
      >>> run = algorithms.controls(criteria.magnitude(), build, init=net.init)
      >>> found = run(None, key=jax.random.key(0))
      >>> list(found)
      ['chosen', 'shuffled', 'redrawn', 'inverted', 'random']

    Source: Frankle et al. 2021, "Pruning Neural Networks at Initialization: Why Are We Missing the
    Mark?", arXiv:2009.08576.
    """
    parts = _parts(criterion, build, init, rewind, levels)

    def run(data: Batch, *, key: Key[Array, ""]) -> dict[str, Start]:
        chosen = parts["chosen"](data, key=key)
        return {
            "chosen": chosen,
            **{name: parts[name](data, chosen=chosen, key=key) for name in _CONTROLS},
        }

    return run


def branch(
    name: Branch,
    criterion: Criterion,
    build: Build,
    *,
    init: Init,
    rewind: Train | None = None,
    levels: bool = False,
) -> Begin:
    """One of the results of `controls` alone, by name, as an experiment's config has it.

    Args:
      name: `"chosen"`, `"shuffled"`, `"redrawn"`, `"inverted"` or `"random"`.
      criterion: The criterion to control.
      build: `build(criterion) -> Algorithm`.
      init: `init(key) -> params`, as given to the algorithm.
      rewind: As given to `imp`; None for training from initialization.
      levels: Whether the algorithm returns masks of many levels; see `controls`.

    Returns:
      `(data, *, key) -> Start`, equal to the result of `controls` under that name.

    Raises:
      ValueError: If there is no branch of that name, or for the reasons of `controls`.
    """
    check_choice("name", name, Branch)
    parts = _parts(criterion, build, init, rewind, levels)

    def run(data: Batch, *, key: Key[Array, ""]) -> Start:
        if name == "chosen":
            return parts[name](data, key=key)
        needs_masks = name != "inverted"
        chosen = parts["chosen"](data, key=key) if needs_masks else None
        return parts[name](data, chosen=chosen, key=key)

    return run


_CONTROLS = get_args(Branch)[1:]


def _parts(
    criterion: Criterion, build: Build, init: Init, rewind: Train | None, levels: bool
) -> dict[str, Callable[..., Start]]:
    """How each branch is made, by name; the controls take the chosen start."""
    criteria.check(criterion)
    check_flags(levels=levels)
    check_form(build, "(criterion)", name="build", remedy="It returns an Algorithm.")
    check_parts(init=init, **({} if rewind is None else {"rewind": rewind}))
    start = partial(starting_params, init=init, rewind=rewind)
    algorithm = _built(build, criterion, rewind)
    inverted = _built(build, criteria.invert(criterion), rewind)

    def each(control: Callable[..., Masks], masks: Masks, key: Key[Array, ""]) -> Masks:
        if not levels:
            return control(masks, key)
        count = sweeps.case_count(masks, name="masks")
        return jax.vmap(control)(masks, jax.random.split(key, count))

    def own(key: Key[Array, ""], index: int) -> Key[Array, ""]:
        return jax.random.split(jax.random.fold_in(key, _STREAM), 3)[index]

    def chosen(data: Batch, *, key: Key[Array, ""]) -> Start:
        found = Start(start(data, key=key), algorithm(data, key=key))
        _check_levels(found, levels)
        return found

    def shuffled(data: Batch, *, chosen: Start, key: Key[Array, ""]) -> Start:
        return chosen._replace(masks=each(_shuffled, chosen.masks, own(key, 0)))

    def redrawn(data: Batch, *, chosen: Start, key: Key[Array, ""]) -> Start:
        return chosen._replace(params=start(data, key=own(key, 1)))

    def inverse(data: Batch, *, chosen: Any, key: Key[Array, ""]) -> Start:
        found = Start(start(data, key=key), inverted(data, key=key))
        _check_levels(found, levels)
        return found

    def random(data: Batch, *, chosen: Start, key: Key[Array, ""]) -> Start:
        return chosen._replace(masks=each(_random, chosen.masks, own(key, 2)))

    return {
        "chosen": chosen,
        "shuffled": shuffled,
        "redrawn": redrawn,
        "inverted": inverse,
        "random": random,
    }


def _check_levels(start: Start, levels: bool) -> None:
    """Checks that masks have the axis of levels if they should, and only then."""
    leaves = trees.by_path(start.params, "params")
    for path, mask in trees.by_path(start.masks, "masks").items():
        own = getattr(leaves.get(path), "shape", None)
        if own is not None and (mask.shape[1:] if levels else mask.shape) != own:
            given = "must have a leading axis of levels" if levels else "must be like the params"
            raise ValueError(
                f"The masks of the algorithm {given} with levels={levels}, got shape {mask.shape} "
                f"at {path!r}, whose weights have {own}. Give levels={not levels}, or change what "
                "`build` returns."
            )


def _shuffled(masks: Masks, key: Key[Array, ""]) -> Masks:
    return masks_.shuffle(masks, key=key)


def _random(masks: Masks, key: Key[Array, ""]) -> Masks:
    counts = {path: layer.kept for path, layer in masks_.by_layer(masks).items()}
    noise = criteria.random(where=lambda path, leaf: True)(masks, None, key=key)
    return masks_.top(noise, count=counts, scope="layer", warn=False)


def _built(build: Build, criterion: Criterion, rewind: Train | None) -> Algorithm:
    algorithm = build(criterion)
    if not callable(algorithm) or not takes(algorithm, "(data, *, key)"):
        raise ValueError(
            f"`build` must return an Algorithm, a function (data, *, key), got {shown(algorithm)}. "
            "Make one, such as `algorithms.at_init(pruning.pruner(criterion, ...), init=init)`."
        )
    made = getattr(algorithm, "made_of", MadeOf(rewind))  # one of yours is trusted
    if made.rewind != rewind:
        raise ValueError(
            "`rewind` must be the one that the algorithm was built with, "
            f"{shown(made.rewind)}, got {shown(rewind)}. Give both the same function."
        )
    if made.retrain != "weight_rewinding":
        raise ValueError(
            "`build` must return an algorithm that rewinds the weights, to which controls return "
            f"too, got one with `retrain={made.retrain!r}`."
        )
    return algorithm
