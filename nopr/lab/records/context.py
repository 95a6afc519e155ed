"""What a result depends on: the config, the code, the versions, the machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
MOST_THREADS = 4096
_SETTINGS = ("default_prng_impl", "threefry_partitionable", "default_matmul_precision")


def digest(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that identify a nested config, whatever the order of its keys.

    Raises:
      ValueError: If a value is not a finite number, a string, a bool, None, or a list of these.
    """
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:10]


def run_name(experiment: str, variant: str, config: Mapping[str, Any]) -> str:
    """The directory name of a run: `experiment-variant-digest`, without an empty variant."""
    words = (*(re.sub(r"[^\w.]+", "_", word) for word in (experiment, variant)), digest(config))
    return "-".join(word for word in words if word)


def threads() -> int:
    """The size of XLA's thread pool on the CPU, which changes the last bits of results.

    It is `NPROC` if set, as the launcher does before JAX starts.

    Raises:
      ValueError: If `NPROC` is set but is not a valid number of threads.
    """
    given = os.environ.get("NPROC", "")
    if given:
        if not re.fullmatch("[0-9]{1,6}", given) or not 1 <= int(given) <= MOST_THREADS:
            raise ValueError(
                f"`NPROC` must be a number of threads from 1 to {MOST_THREADS}, got {given!r}. "
                "Set it to the number of cores, or unset it."
            )
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settings() -> dict[str, Any]:
    """JAX's current settings that change numbers.

    None means JAX's default, or a setting that this version of JAX does not have.
    """
    import jax

    values = {name: getattr(jax.config, f"jax_{name}", None) for name in _SETTINGS}
    plain = (bool, int, str, type(None))
    return {
        "x64": bool(jax.config.read("jax_enable_x64")),
        **{
            name: value if isinstance(value, plain) else str(value)
            for name, value in values.items()
        },
    }


def environment(source: str) -> dict[str, Any]:
    """The environment of a run: versions, commit, code, devices, settings. Starts JAX's devices.

    Args:
      source: Digest of the code, from `source_digest`.
    """
    import jax

    commit, changed = _commit()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "threads": threads(),
        **settings(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "source": source,
        "commit": commit,
        "uncommitted_changes": changed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def context(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an environment that may change the bits of a result."""
    kept = (*_PACKAGES, "threads", "x64", *_SETTINGS, "xla_flags", "source")
    return {key: facts.get(key) for key in kept} | {"device": sorted(set(facts.get("devices", ())))}


def _commit() -> tuple[str | None, bool | None]:
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    try:
        # An installed copy may lie inside the work tree of some other repository.
        if not git("ls-files", here.name):
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def canonical(value: Any, *, name: str = "config") -> str:
    """Compact JSON with sorted keys; raises ValueError for anything but plain data."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must hold plain finite values{_culprit(value)}.") from error


def _culprit(config: Any) -> str:
    for key, value in _flat(config) if isinstance(config, Mapping) else ():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            return f", got {' '.join(repr(value).split())} at {key!r}"
    return ""


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], *, names: tuple[str, str] = ("there", "here")
) -> str:
    """The first keys, as `a.b`, at which two nested mappings differ, with both values."""
    old, new = dict(_flat(there)), dict(_flat(here))
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    old_name, new_name = names
    shown = [
        f"{key} ({old.get(key)!r} {old_name}, {new.get(key)!r} {new_name})" for key in keys[:3]
    ]
    return ", ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
