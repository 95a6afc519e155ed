"""Settings of an experiment: frozen dataclasses, checked as a whole before the first step.

A dataclass states the fields, their types, ranges and defaults once. `config` turns it into the
`ConfigDict` that the command line changes; `read` turns that back into the dataclass and refuses
fields that are misspelled, of the wrong type or out of range:

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Settings:
    ...     seeds: Count = 3
    ...     densities: tuple[Density, ...] = (0.2, 0.05)
    >>> asked = config(Settings())
    >>> asked.densities = (0.2, 1.5)
    >>> read(Settings, asked)
    Traceback (most recent call last):
    ValueError: `densities` must be above 0 and at most 1, got 1.5.

Rules that involve several fields belong in `__post_init__`. Nothing here imports jax, so that a bad
flag is refused at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict, config_dict

T = TypeVar("T")
_MOST = 2**31 - 1
_TINIEST, _LARGEST = 2.0**-126, 2.0**128 * (1 - 2.0**-24)  # of float32
_LENGTH = re.compile(r"\s*([0-9]{1,99}(?:\.[0-9]{1,99})?)\s*(ep|it)\s*")


@dataclass(frozen=True)
class Range:
    """The range of a field's numbers, for `Annotated`.

    Attributes:
      low: Least number.
      high: Greatest number.
      above: Whether `low` itself is refused.
      below: Whether `high` itself is refused.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __call__(self, name: str, value: float) -> None:
        """Refuses a number outside the range."""
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        if not (low and high):
            raise ValueError(f"`{name}` must be {self}, got {value}.")

    def __str__(self) -> str:
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        high = f"below {self.high}" if self.below else f"at most {self.high}"
        if self.high in (math.inf, _MOST):
            return low
        return f"{low} and {high}"


def parse_length(length: str) -> tuple[Fraction, str]:
    """The number and the unit of a length such as `"10ep"` or `"500it"`.

    Raises:
      ValueError: If `length` does not read so.
    """
    match = _LENGTH.fullmatch(length) if isinstance(length, str) else None
    if match is None or (match[2] == "it" and "." in match[1]):
        raise ValueError(f"A length must read like '10ep' or '500it', got {length!r:.80}.")
    return Fraction(match[1]), match[2]


def _check_length(name: str, value: str) -> None:
    try:
        number, _ = parse_length(value)
    except ValueError:
        raise ValueError(f"`{name}` must read like '10ep' or '500it', got {value!r:.80}.") from None
    if number > _MOST:
        raise ValueError(f"`{name}` must be at most {_MOST:,} steps, got {value!r}.")


def _check_not_zero(name: str, value: str) -> None:
    if not parse_length(value)[0]:
        raise ValueError(f"`{name}` must be at least 1ep, got {value!r}.")


Count = Annotated[int, Range(1, _MOST)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Width = Annotated[int, Range(1, 2**20)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Density = Annotated[float, Range(0, 1, above=True)]
Share = Annotated[float, Range(0, 1, above=True, below=True)]
Length = Annotated[str, _check_length]
"""How long to train: `"10ep"` or `"500it"`, never two at once."""


def _check_some(name: str, value: tuple[Any, ...]) -> None:
    if not value:
        raise ValueError(f"`{name}` must hold at least one entry, got none.")


Method = Literal[
    "imp",
    "magnitude_after",
    "units_after",
    "magnitude_init",
    "synflow",
    "grasp",
    "snip",
    "random",
    "lamp_init",
    "iterative_snip",
    "force",
    "prospr",
    "px",
    "px_paths",
    "ntk_sap",
    "lamp_after",
    "taylor_after",
    "obd_after",
    "woodfisher_after",
    "spectral_after",
    "wanda_after",
    "movement_after",
    "fpgm_after",
    "apoz_after",
]
"""The pruners that `nopr.lab.methods` knows by name."""
WHOLE_UNITS = ("units_after", "fpgm_after", "apoz_after")
"""Those of them that remove whole units, the same share of each hidden layer."""
Methods = Annotated[tuple[Method, ...], _check_some]
Densities = Annotated[tuple[Density, ...], _check_some]
Widths = Annotated[tuple[Width, ...], _check_some]


@dataclass(frozen=True)
class Data:
    """A dataset, with examples held out to select an epoch on."""

    name: str = "digits"  # digits, mnist, fashion_mnist, or another dataset of `data.load`
    validation: Positive = 1 / 6  # share held out of training; from 1 up, a count
    pad: Annotated[int, Range(0, 64)] = 0  # pixels on each side


@dataclass(frozen=True)
class Training:
    """SGD with momentum; the learning rate falls to 0 along half a cosine."""

    length: Annotated[Length, _check_not_zero] | None = None  # 30ep for digits, 3ep for larger sets
    batch_size: Count = 64  # examples
    learning_rate: Positive = 0.05  # initial
    momentum: Annotated[float, Range(0, 1, below=True)] = 0.9
    weight_decay: NotNegative = 1e-4


def config(settings: Any) -> ConfigDict:
    """The `ConfigDict` of a dataclass of settings; None becomes a typed placeholder."""
    found = ConfigDict()
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            value = config(value)
        elif value is None:
            kind = next(kind for kind in get_args(hints[field.name]) if kind is not types.NoneType)
            value = config_dict.placeholder(kind)
        found[field.name] = value
    return found


def read(kind: type[T], config: ConfigDict | Mapping[str, Any]) -> T:
    """The settings that a config asks for.

    Args:
      kind: Frozen dataclass; its fields are annotated with int, float, str, bool, a `Literal`,
        a tuple, another dataclass, one of these or None, or an `Annotated` with checks
        `check(name, value)`, such as `Range`.
      config: Values; a field that is left out takes its default.

    Raises:
      ValueError: For the first field that is misspelled, of the wrong type or out of range, with
        its full name and value.
    """
    if not isinstance(config, ConfigDict | Mapping):
        raise ValueError(f"`config` must be a ConfigDict or a dict, got {config!r}.")
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    values.pop("experiment", None)
    return _read(kind, values, "")


def _read(kind: Any, values: Mapping[str, Any], prefix: str) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, 1)
            hint = f"Did you mean `{prefix}{near[0]}`?" if near else f"Known: {', '.join(hints)}."
            raise ValueError(f"There is no setting `{prefix}{name}`. {hint}")
    return kind(**{n: _value(hints[n], value, f"{prefix}{n}") for n, value in values.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    """`value` as `kind`, with all its numbers and strings checked."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"`{name}` must be a section of settings, got {value!r}.")
        return _read(kind, value, f"{name}.")
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = _value(args[0], value, name)
        for check in args[1:]:
            check(name, value)
        return value
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        return None if value is None else _value(inner, value, name)
    if origin is Literal:
        if value not in args:
            choices = ", ".join(sorted(map(repr, args)))
            raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ValueError(f"`{name}` must be a tuple, got {value!r}.")
        kinds = [args[0]] * len(value) if args[-1] is ... else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"`{name}` must hold tuples of {len(kinds)}, got {value!r}.")
        return tuple(_value(k, v, name) for k, v in zip(kinds, value, strict=True))
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"`{name}` must be of type {kind.__name__}, got {value!r}.")
    if kind is float and value and not _TINIEST <= abs(value) <= _LARGEST:
        raise ValueError(f"`{name}` must be finite in single precision, got {value!r:.80}.")
    return value
