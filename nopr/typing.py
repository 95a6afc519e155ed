"""The types that flow between the functions of the library. Imports nothing from nopr."""

from __future__ import annotations

import contextlib
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

Params: TypeAlias = PyTree
"""Any pytree of arrays: a Flax dict, an `nnx.State`, an Equinox module, a plain dict."""

Batch: TypeAlias = PyTree
"""Any pytree whose leaves share a leading example axis."""

Scores: TypeAlias = PyTree
"""Like the params: a float array on each prunable leaf, None elsewhere; higher = keep."""

Masks: TypeAlias = PyTree
"""Like the params: a bool array on each prunable leaf (True = kept), None elsewhere."""

Shapes: TypeAlias = tuple[tuple[int, ...], ...]
"""The shape of each prunable leaf, in leaf order."""

Counts: TypeAlias = tuple[int, ...]
"""How many weights (or granules) each prunable leaf keeps, in leaf order."""

Scope: TypeAlias = Literal["global", "layer", "output"]
"""Where scores compete: `"global"`, over the whole network; `"layer"`, within each layer; or
`"output"`, among the weights that compute the same output of a layer."""

Axes: TypeAlias = int | Sequence[int] | Mapping[str, Any] | None
"""The option of which axes play a part: one or several, or `{path: axes}`."""

Where: TypeAlias = Callable[[str, Any], bool]
"""`where(path, leaf)`, true for a prunable leaf. A path looks like `"params/Dense_0/kernel"`."""

Apply: TypeAlias = Callable[..., Array]
"""`apply(params, inputs) -> outputs`, both with a leading example axis."""

Loss: TypeAlias = Callable[..., Array]
"""`loss(params, batch) -> scalar`, a mean over the batch."""

StepLoss: TypeAlias = Callable[..., tuple[Array, Any]]
"""`step_loss(params, state, batch, key) -> (loss, state)`, for training with state or noise."""


@runtime_checkable
class Criterion(Protocol):
    """Scores weights. It takes the unmasked params and applies `masks` itself."""

    def __call__(
        self, params: Params, batch: Batch, *, masks: Masks | None = None, key: Key[Array, ""]
    ) -> Scores:
        """Returns the scores of `params` on `batch`; those outside `masks` have no meaning."""
        ...


@runtime_checkable
class Pruner(Protocol):
    """Chooses the weights to keep; `masks` restricts the choice to those still alive."""

    def __call__(
        self,
        params: Params,
        batch: Batch,
        *,
        masks: Masks | None = None,
        count: Any = None,
        key: Key[Array, ""],
    ) -> Masks:
        """Returns the masks; `count`, which may be traced, replaces the pruner's own counts."""
        ...


@runtime_checkable
class Trained(Protocol):
    """The record that training returns, such as `finetune.Fitted`."""

    @property
    def params(self) -> Params:
        """The trained params, 0 where pruned."""
        ...

    @property
    def masks(self) -> Masks | None:
        """Their masks: those given, or those that training changed them to."""
        ...

    @property
    def finite(self) -> Any:
        """Whether losses and params were finite; a bool array."""
        ...


@runtime_checkable
class Train(Protocol):
    """A training procedure: from params and masks to a record of both."""

    def __call__(
        self, params: Params, masks: Masks | None, data: Batch, *, key: Key[Array, ""]
    ) -> Trained | Params:
        """Returns the record, or the trained params alone."""
        ...


@runtime_checkable
class Algorithm(Protocol):
    """A whole pruning procedure: a pure function from (data, key) to masks."""

    def __call__(self, data: Batch, *, key: Key[Array, ""]) -> Masks:
        """Returns the masks; begins with `init_key, run_key = jax.random.split(key)`."""
        ...


class Status(NamedTuple):
    """The progress of a long computation, in its own units: cases of a sweep, epochs of a run."""

    done: int
    """Number finished, including those stored before."""
    total: int
    """Number in all."""
    failures: int = 0
    """Number finished with results that are not finite."""
    loaded: int = 0
    """Number finished that were stored before."""
    seconds: float = 0.0
    """Time since the first unit that was not stored began; in a sweep, without compiling."""

    @property
    def per_second(self) -> float:
        """The rate of this computation, without what was stored before; 0 at first."""
        return (self.done - self.loaded) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """The time for the rest at this rate; infinite at first."""
        rate = self.per_second
        return (self.total - self.done) / rate if rate > 0 else float("inf")


Progress: TypeAlias = Callable[[Status], Any]
"""The callback of a long computation."""


class LayerCount(NamedTuple):
    """Kept and prunable weights of one layer."""

    kept: Any
    size: int
    density: Any


def takes(function: Callable[..., Any], form: str) -> bool:
    """Whether a function can be called in a form such as `"(data, *, key)"`, by its signature.

    What follows `*` goes by name. A function without a signature may take anything.
    """
    positional, _, named = form.strip("()").partition("*")
    values = [part for part in positional.split(",") if part.strip()]
    names = {part.strip(): None for part in named.split(",") if part.strip()}
    try:
        inspect.signature(function).bind(*values, **names)
    except TypeError:
        return False
    except ValueError:  # without a signature
        return True
    return True


def check_form(function: Any, form: str, *, name: str, remedy: str) -> None:
    """Checks that an argument is a function that can be called in a form; see `takes`.

    Args:
      function: The argument.
      form: How it will be called, such as `"(data, *, key)"`.
      name: The name of the argument.
      remedy: The second sentence of the error.

    Raises:
      ValueError: If it is not a function, or its signature does not accept the form.
    """
    if not callable(function):
        found = type(function).__name__
        raise ValueError(f"`{name}` must be a function {form}, got a {found}. {remedy}")
    if not takes(function, form):
        found = f"{function_name(function)}{inspect.signature(function)}"
        raise ValueError(f"`{name}` must take {form}, got `{found}`. {remedy}")


def check_apply(apply: Any) -> None:
    """Checks that an argument is the function of a network, and not the network.

    Raises:
      ValueError: If it is something else.
    """
    remedy = "Give the function that computes the outputs, such as `net.apply`."
    if hasattr(apply, "apply"):  # a network, which may be called with two arguments too
        found = type(apply).__name__
        raise ValueError(f"`apply` must be a function (params, inputs), got a {found}. {remedy}")
    check_form(apply, "(params, inputs)", name="apply", remedy=remedy)


def check_loss(loss: Any) -> None:
    """Checks that an argument is a loss, and not a constructor that was not called.

    Raises:
      ValueError: If its signature does not accept (params, batch).
    """
    remedy = "Make one from a network's `apply`, such as `finetune.cross_entropy(apply)`."
    check_form(loss, "(params, batch)", name="loss", remedy=remedy)


def function_name(function: Any) -> str:
    """The name of a function, or of the type of what is called like one."""
    return getattr(function, "__name__", type(function).__name__)


def check_loss_value(value: Any, *, name: str = "loss") -> Any:
    """Checks that what a loss returned is a real scalar, and returns it.

    Raises:
      ValueError: If it is something else.
    """
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", ())
    floating = isinstance(value, float) if dtype is None else jnp.issubdtype(dtype, jnp.floating)
    if not floating or shape != ():
        found = shown(value) if dtype is None else f"{dtype} of shape {shape}"
        raise ValueError(
            f"`{name}` must return a scalar, got {found}. Make one of a network's `apply`, "
            "such as `finetune.cross_entropy(apply)`."
        )
    return value


def check_key(key: Any) -> None:
    """Checks that a key is one of JAX, and not a seed or several keys.

    Raises:
      ValueError: If it is something else.
    """
    if not is_key(key) and not getattr(key, "dtype", None) == "uint32":  # as `PRNGKey` makes them
        raise ValueError(
            f"`key` must be a key of JAX, got {shown(key)}. Make one: `jax.random.key(0)`."
        )
    axes = key.ndim if is_key(key) else key.ndim - 1
    if axes:
        raise ValueError(
            f"`key` must be a single key, got an array of shape {key.shape}. Take one of them, or "
            "map over them with `jax.vmap`."
        )


def is_key(value: Any) -> bool:
    """Whether a value is an array of typed PRNG keys."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def whole_number(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """The value of an option that counts something, of any integer type.

    Raises:
      ValueError: If it is not a whole number from `least` to `most`.
    """
    try:
        whole = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = least - 1
    if whole < least or (most is not None and whole > most):
        limit = f"at least {least}" if whole < least else f"at most {most:,}"
        raise ValueError(f"`{name}` must be a whole number of {limit}, got {shown(value)}.")
    return whole


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Checks that an option is one of the strings of a Literal type.

    Raises:
      ValueError: If it is not.
    """
    known = get_args(choices)
    if not isinstance(value, str) or value not in known:
        listed = ", ".join(map(repr, known))
        raise ValueError(f"`{name}` must be one of {listed}, got {shown(value)}.")


def axes_of(
    given: Any, path: str, shape: tuple[int, ...], *, default: Any, role: str, argument: str
) -> tuple[int, ...]:
    """The axes of one leaf, from an option for all leaves or `{path: axes}`, counted from 0.

    Args:
      given: An axis or several, `{path: axes}`, or None.
      path: The path of the leaf.
      shape: Its shape.
      default: The axes of a leaf for which none are given.
      role: What the axes do, for errors.
      argument: The name of the option.

    Raises:
      ValueError: If none are given for a leaf of three dimensions, or the leaf lacks one of them.
    """
    asked = given.get(path) if isinstance(given, Mapping) else given
    if asked is None and len(shape) == 3:
        raise ValueError(
            f"`{argument}` must be given for {path!r}: a kernel of three dimensions, {shape}, may "
            f"be one of a 1-D convolution or of attention. Pass `{argument}={{{path!r}: ...}}`, "
            f"{role}."
        )
    asked = default if asked is None else asked
    several = _several(asked)
    places = [int(a) % len(shape) for a in several if -len(shape) <= a < len(shape)]
    if len(set(places)) < len(several):
        raise ValueError(
            f"`{argument}` must be axes of the leaf at {path!r}, of shape {shape}, got "
            f"{shown(asked)}. Give others, or leave it out with `where`."
        )
    return tuple(places)


def check_axes(given: Any, *, argument: str) -> tuple[str, ...]:
    """Checks that an option is axes, or `{path: axes}`, or None; returns the paths.

    Raises:
      ValueError: If it is something else.
    """
    named = dict(given) if isinstance(given, Mapping) else {}
    values = [given] if not isinstance(given, Mapping) and given is not None else named.values()
    if not all(isinstance(path, str) for path in named) or not all(map(_several, values)):
        raise ValueError(
            f"`{argument}` must be whole numbers, or {{path: whole numbers}}, got {shown(given)}."
        )
    return tuple(named)


def _several(axes: Any) -> tuple[int, ...]:
    """One axis or several as a tuple; empty if they are not whole numbers."""
    several = tuple(axes) if isinstance(axes, list | tuple) else (axes,)
    whole = [isinstance(a, int | np.integer) and not isinstance(a, bool) for a in several]
    return several if all(whole) else ()


def check_flags(**flags: Any) -> None:
    """Checks that options are True or False, since text such as `"no"` would count as True.

    Raises:
      ValueError: If one is something else; the message has the first of them.
    """
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"`{name}` must be True or False, got {shown(value)}.")


@contextlib.contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Errors of a user's function as one line, with the original as its cause.

    Args:
      what: The beginning of the line, such as "`apply` failed on inputs of shape (1, 3)".
      remedy: Its last sentence.

    Raises:
      ValueError: If the code within raises.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        text = text if len(text) <= 200 else f"{text[:200]}..."
        raise ValueError(f"{what}: {text.rstrip('.')}. {remedy}") from error


def is_real(value: Any) -> bool:
    """Whether a value is one finite number, not traced: of Python, or an array of no dimensions."""
    if isinstance(value, bool | str | jax.core.Tracer):
        return False
    try:
        return getattr(value, "ndim", 0) == 0 and math.isfinite(value)
    except (OverflowError, TypeError, ValueError):
        return False


def shown(value: Any, most: int = 80) -> str:
    """A value in one line of an error."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."
