"""The command line: the experiment, its config, the run directory and the other processes."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from nopr.lab import finding, peers, records

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
_MOST_PATIENCE = 10**6
_MOST_PROCESSES = 2**16


class UsageError(Exception):
    """The command cannot be carried out as written; the message names what to change."""


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    config: ConfigDict
    variant: str
    experiment: str
    code: finding.Code
    workdir: Path
    rerun: bool
    show: bool
    traceback: bool
    peers: peers.Peers | None
    """None for a run of one process."""


def parse(argv: Sequence[str]) -> Command:
    """Reads the command line without starting anything.

    Args:
      argv: Program name and flags.

    Returns:
      The command; its config has all changes applied and is locked.

    Raises:
      UsageError: If the command line cannot be understood; the message is one line.
    """
    for word in argv:
        if any("\ud800" <= letter <= "\udfff" for letter in word):  # bytes that are not text
            raise UsageError(f"The command line must be text in UTF-8, got {word!r}.")
    path, rest = _split_config(list(argv))
    config, variant, code = _load_config(path)
    values = flags.FlagValues()
    for name in ("workdir", "coordinator"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    for name in ("rerun", "show", "traceback", "distributed"):
        flags.DEFINE_bool(name, False, "", flag_values=values)
    for name, default in (("processes", None), ("process", None), ("patience", 30)):
        flags.DEFINE_integer(name, default, "", flag_values=values)
    _check_keys(rest, config)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        extra = values(rest)[1:]
        _check_sizes(values.config)
        experiment = values.config.get("experiment") or finding.name_of(code.config)
        name = records.run_name(experiment, variant, values.config.to_dict())
        workdir = _expanded(values.workdir) if values.workdir else Path("runs") / name
        records.threads()  # refuses an `NPROC` at which XLA would hang
    except Exception as error:
        raise UsageError(one_line(error)) from error
    if extra:
        raise UsageError(f"{extra[0]!r} is not a flag. Flags read like --config.KEY=VALUE.")
    return Command(
        config=values.config,
        variant=variant,
        experiment=experiment,
        code=code,
        workdir=workdir,
        rerun=values.rerun,
        show=values.show,
        traceback=values.traceback,
        peers=_peers(values),
    )


def _expanded(workdir: str) -> Path:
    try:
        return Path(workdir).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"--workdir={workdir} has no known home directory. Set HOME, or give the whole path."
        ) from error


def _peers(values: flags.FlagValues) -> peers.Peers | None:
    """The other processes according to the flags; None for a run of one process."""
    where = (values.coordinator, values.processes, values.process)
    if not values.distributed and where == (None, None, None):
        return None
    if not values.distributed and None in where:
        raise UsageError(
            "--coordinator, --processes and --process go together; on Slurm and TPU --distributed "
            "finds all three."
        )
    for name, most in (("patience", _MOST_PATIENCE), ("processes", _MOST_PROCESSES)):
        value = values[name].value
        if value is not None and not 1 <= value <= most:
            raise UsageError(f"--{name} must be from 1 to {most:,}, got {value}.")
    if None not in where and not 0 <= values.process < values.processes:
        raise UsageError(
            f"--process must be from 0 to {values.processes - 1}, got {values.process}."
        )
    if values.coordinator is not None:
        port = re.fullmatch(r".+:([0-9]{1,5})", values.coordinator)
        if port is None or not 0 < int(port[1]) < 2**16:
            raise UsageError(f"--coordinator must read like HOST:PORT, got {values.coordinator!r}.")
    return peers.Peers(*where, values.patience)


# --- The config --------------------------------------------------------------------------------


def _split_config(argv: list[str]) -> tuple[str, list[str]]:
    """Splits --config=PATH from the command line."""
    for index, word in enumerate(argv):
        if word.startswith(("--config=", "-config=")):
            return word.partition("=")[2], argv[:index] + argv[index + 1 :]
        if word in ("--config", "-config") and index + 1 < len(argv):
            return argv[index + 1], argv[:index] + argv[index + 2 :]
    raise UsageError(
        f"Flag --config is missing: --config=experiments/NAME/config.py. {_config_choices()}"
    )


def _load_config(path: str) -> tuple[ConfigDict, str, finding.Code]:
    name, _, variant = path.partition(":")
    if not Path(name).is_file():
        stem = finding.name_of(Path(name))
        found = {one.name: one.config for one in finding.find()}
        near = difflib.get_close_matches(stem, found, 1)
        hint = f"Did you mean {found[near[0]]}? " if near else ""
        raise UsageError(f"There is no config file {name!r}. {hint}{_config_choices()}")
    try:
        module = finding.load(Path(name))
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise UsageError(f"{name!r} has no function `get_config`.")
        if variant and not inspect.signature(get_config).parameters:
            raise UsageError(f"{name!r} has no variants, got {variant!r}.")
        config = get_config(variant) if variant else get_config()
        if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
            kind = type(config).__name__
            raise UsageError(f"`get_config` of {name!r} must return a ConfigDict, got {kind}.")
        _check_texts(config.to_dict(preserve_field_references=True), name)
        code = finding.code_of(Path(name), module)
    except UsageError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{name!r} is not Python: {one_line(error)}") from error
    except (Exception, SystemExit, GeneratorExit) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UsageError(f"{path!r} is refused: {kind}{one_line(error)}") from error
    if not isinstance(config.get("experiment", ""), str):
        raise UsageError(f"`experiment` must be a name, got {config.experiment!r} in {name!r}.")
    return config, variant, code


def listing(experiments: Sequence[finding.Experiment]) -> str:
    """The experiments, one line each with its summary, and its variants below."""
    if not experiments:
        return f"There are no experiments in {Path.cwd()} or in its folder experiments."
    width = max(len(str(one.config)) for one in experiments)
    lines = []
    for one in experiments:
        lines.append(f"{one.config!s:{width}}  {one.about}".rstrip())
        lines += [f"{one.config}:{variant}" for variant in one.variants]
    return "\n".join(lines)


def _config_choices() -> str:
    names = ", ".join(str(one.config) for one in finding.find())
    return f"Known: {names}." if names else f"There are no experiments in {Path.cwd()}."


def _check_keys(words: list[str], config: ConfigDict) -> None:
    """Refuses an unknown `--config.KEY` with its full name and the nearest right one."""
    known = set(_keys(config))
    for word in words:
        match = _OVERRIDE.match(word)
        if match and match[1] not in known:
            below = [key for key in sorted(known) if key.startswith(f"{match[1]}.")]
            near = below or difflib.get_close_matches(match[1], known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
            raise UsageError(f"There is no config key {match[1]!r}.{hint}")


def _check_sizes(config: ConfigDict) -> None:
    """Refuses integers that no array can hold."""
    for key in _keys(config):
        value = config
        for part in key.split("."):
            value = value[part]
        for each in _numbers(value):
            if not -(2**63) <= each < 2**63:
                raise UsageError(f"--config.{key} must fit into 64 bits, got {each}.")


def _numbers(value: Any) -> Iterator[int]:
    """The integers in a value, and in the tuples and lists of it."""
    if isinstance(value, int):
        yield value
    for each in value if isinstance(value, list | tuple) else ():
        yield from _numbers(each)


def _check_texts(values: Mapping[Any, Any], name: str) -> None:
    """Refuses keys that no flag can name."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise UsageError(f"The keys of the config of {name!r} must be strings, got {key!r}.")
        if isinstance(value, Mapping):
            _check_texts(value, name)


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from _keys(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def one_line(error: BaseException) -> str:
    """The message of an error, on one line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = re.sub(r"\('([^']*)', '[^']*'\)$", r"\1", text)  # absl shows some arguments as tuples
    return " ".join(text.split()) or type(error).__name__
