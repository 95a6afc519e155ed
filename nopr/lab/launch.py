"""Runs one experiment in a run directory of its own; run again, it goes on or says it is done.

python -m experiments.launch --config=experiments/NAME/config.py[:variant] [flags]

  --config=FILE.py[:variant]  the experiment's config
  --config.KEY=VALUE          changes one field of it
  --workdir=DIR               where to write; runs/NAME[-variant]-HASH by default
  --rerun                     sets a run that is there aside and begins anew
  --traceback                 shows where an error was raised

On several hosts, the same command on each, and

  --coordinator=HOST:PORT     the address of process 0
  --processes=N --process=I   how many there are, and which one this is
  --distributed               instead of these three, on Slurm and TPU: the environment tells them
  --patience=SECONDS          a process that is silent for so long is lost; 30 by default

The exit status is 0 when the run is done, 1 after an error, 2 for a command that cannot be carried
out, 75 when another process was lost, 130 or 143 when stopped. After the last three the same
command goes on.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import importlib.util
import inspect
import json
import os
import re
import signal
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from nopr import processes
from nopr.lab import records, stopping, supervisor

# jax is imported late, so that a bad flag is told at once.
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
_EXPERIMENTS = Path("experiments")
_USER_ERRORS = (ValueError, OSError, FloatingPointError, ModuleNotFoundError, records.RunError)
_FULL = (  # where something wrote that knows nothing of runs
    "The disk is full: what is done is in {}, and is unchanged. "
    "Free some space and run the same command again."
)


class UsageError(Exception):
    """The command cannot be carried out as it was written; the message says what to change."""


@dataclass(frozen=True)
class Command:
    """What was asked on the command line."""

    config: ConfigDict
    variant: str
    workdir: Path
    rerun: bool
    traceback: bool
    peers: dict[str, Any] | None
    """The arguments of `processes.connect`; None for a run of one process."""


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (with the program's name first) and returns the exit status."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(__doc__.strip())
        return 0
    try:
        command = parse(argv)
        module = _find_experiment(command.config.experiment)
    except (KeyboardInterrupt, stopping.Terminated) as stop:
        print("Stopped; nothing was begun.", file=sys.stderr)
        return stopping.status(stop)
    except UsageError as error:
        return _fail(error)
    except _USER_ERRORS as error:
        if "--traceback" in argv:
            raise
        return _fail(error)
    if command.peers is None:
        return _guarded(command, module)
    try:
        with tempfile.TemporaryDirectory(prefix="nopr-") as scratch:
            ended = supervisor.supervise(partial(_supervised, command, module, scratch))
    except (KeyboardInterrupt, stopping.Terminated) as stop:
        _tell_stopped(command)
        return stopping.status(stop)
    except OSError as error:
        return _fail(error)
    if ended.code == supervisor.LOST:
        _tell_lost(command, came=ended.came)
    if ended.late:
        _tell_stopped(command)
    if ended.killed_by:
        _tell_killed(command, ended.killed_by)
    return ended.code


def _supervised(command: Command, module: str, scratch: str) -> int:
    """The work of one process of several; its temporary files go, however it ends."""
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    return _guarded(command, module)


def _guarded(command: Command, module: str) -> int:
    """Carries the command out; the exit status, after one line about what went wrong."""
    try:
        _launch(command, module)
    except (KeyboardInterrupt, stopping.Terminated) as stop:
        _tell_stopped(command)
        return stopping.status(stop)
    except Exception as error:
        if command.peers is not None and processes.is_loss(error):
            return supervisor.LOST
        if isinstance(error, UsageError):
            return _fail(error)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) and not command.traceback:
            return _fail(records.RunError(_FULL.format(command.workdir)))
        if command.traceback or not isinstance(error, _USER_ERRORS):
            raise
        return _fail(error)
    return 0


def _tell_stopped(command: Command) -> None:
    print(
        f"Stopped; what is done is in {command.workdir}. The same command goes on from there.",
        file=sys.stderr,
    )


def _tell_killed(command: Command, number: int) -> None:
    why = ", as when memory runs out" if number == signal.SIGKILL else ""
    print(
        f"error: The work was killed by {signal.Signals(number).name}{why}; what is done is in "
        f"{command.workdir}. The same command goes on from there.",
        file=sys.stderr,
    )


def _tell_lost(command: Command, *, came: bool) -> None:
    patience = command.peers["patience_seconds"] if command.peers else 0
    if came:
        print(
            f"error: Another process of this run was lost; what is done is in {command.workdir}. "
            "The same command on every host goes on from there.",
            file=sys.stderr,
        )
    else:
        print(
            f"error: The other processes did not come within {10 * patience} seconds. Start the "
            "same command on every host, with the address of process 0 and a --process of its own.",
            file=sys.stderr,
        )


def parse(argv: Sequence[str]) -> Command:
    """Reads the command line without starting anything.

    Args:
      argv: The program's name and the flags.

    Returns:
      The command, its config with all changes made and locked.

    Raises:
      UsageError: For anything that cannot be understood; the message is one line.
    """
    path, rest = _split_config(list(argv))
    config, variant = _load_config(path)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("rerun", False, "", flag_values=values)
    flags.DEFINE_bool("traceback", False, "", flag_values=values)
    flags.DEFINE_bool("distributed", False, "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("processes", None, "", flag_values=values)
    flags.DEFINE_integer("process", None, "", flag_values=values)
    flags.DEFINE_integer("patience", 30, "", flag_values=values)
    _check_keys(rest, config)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        extra = values(rest)[1:]
        name = records.run_name(values.config.experiment, variant, values.config.to_dict())
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(_line(error)) from error
    if extra:
        raise UsageError(f"{extra[0]!r} is not a flag. Flags read like --config.KEY=VALUE.")
    workdir = Path(values.workdir) if values.workdir else Path("runs") / name
    peers = _peers(values)
    return Command(values.config, variant, workdir, values.rerun, values.traceback, peers)


def _peers(values: flags.FlagValues) -> dict[str, Any] | None:
    """The other processes, as the flags tell them; None for a run of one process."""
    where = (values.coordinator, values.processes, values.process)
    if not values.distributed and where == (None, None, None):
        return None
    if not values.distributed and None in where:
        raise UsageError(
            "--coordinator, --processes and --process go together; on Slurm and TPU --distributed "
            "finds all three."
        )
    if values.patience < 1:
        raise UsageError(f"--patience must be at least 1 second, got {values.patience}.")
    if values.processes is not None and values.processes < 1:
        raise UsageError(f"--processes must be at least 1, got {values.processes}.")
    if None not in where and not 0 <= values.process < values.processes:
        raise UsageError(
            f"--process must be from 0 to {values.processes - 1}, got {values.process}."
        )
    if values.coordinator is not None and not re.fullmatch(r".+:\d+", values.coordinator):
        raise UsageError(f"--coordinator must read like HOST:PORT, got {values.coordinator!r}.")
    return {
        "coordinator": values.coordinator,
        "count": values.processes,
        "index": values.process,
        "patience_seconds": values.patience,
    }


# --- The config --------------------------------------------------------------------------------


def _split_config(argv: list[str]) -> tuple[str, list[str]]:
    """Takes --config=PATH out of the command line."""
    for index, word in enumerate(argv):
        if word.startswith(("--config=", "-config=")):
            return word.partition("=")[2], argv[:index] + argv[index + 1 :]
        if word in ("--config", "-config") and index + 1 < len(argv):
            return argv[index + 1], argv[:index] + argv[index + 2 :]
    raise UsageError(
        f"Flag --config is missing: --config={_EXPERIMENTS}/NAME/config.py. {_config_choices()}"
    )


def _load_config(path: str) -> tuple[ConfigDict, str]:
    name, _, variant = path.partition(":")
    if not Path(name).is_file():
        stem = Path(name).parent.name if Path(name).stem == "config" else Path(name).stem
        near = difflib.get_close_matches(stem, _config_names(), 1)
        hint = f"Did you mean {_EXPERIMENTS / near[0]}/config.py? " if near else ""
        raise UsageError(f"There is no config file {name!r}. {hint}{_config_choices()}")
    get_config = getattr(_load_module(name), "get_config", None)
    if get_config is None:
        raise UsageError(f"{name!r} has no function `get_config`.")
    if variant and not inspect.signature(get_config).parameters:
        raise UsageError(f"{name!r} has no variants, got {variant!r}.")
    try:
        config = get_config(variant) if variant else get_config()
    except (ValueError, KeyError) as error:
        raise UsageError(f"{path!r} is refused: {_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"`get_config` of {name!r} must return a ConfigDict.")
    if "experiment" not in config:
        config.experiment = Path(name).resolve().parent.name
    return config, variant


def _load_module(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"The config file {path!r} must be a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the types of their fields
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{path!r} is not Python: {_line(error)}") from error
    return module


def _config_names() -> list[str]:
    return sorted(path.parent.name for path in _EXPERIMENTS.glob("*/config.py"))


def _config_choices() -> str:
    names = _config_names()
    if not names:
        return f"There are none in {_EXPERIMENTS} under {Path.cwd()}; run this from the repository."
    return f"In {_EXPERIMENTS}: {', '.join(names)}."


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


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from _keys(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = re.sub(r"\('([^']*)', '[^']*'\)$", r"\1", text)  # absl shows some arguments as a tuple.
    return " ".join(text.split()) or type(error).__name__


# --- The run -----------------------------------------------------------------------------------


def _find_experiment(name: str) -> str:
    """The module of an experiment; a name with dots is a module from anywhere."""
    module = name if "." in name else f"experiments.{name}.run"
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UsageError(f"There is no module {module!r} to run; see `experiment` in the config.")
    return module


def _launch(command: Command, module: str) -> None:
    _prepare_environment(command.workdir)
    if command.peers is not None:
        try:
            processes.connect(**command.peers)
        except ValueError as error:
            raise UsageError(str(error)) from error
        stopping.listen()  # JAX has taken SIGTERM for a notice of its own
    first = processes.index() == 0
    if command.rerun and first:
        previous = records.set_aside(command.workdir)
        if previous is not None:
            print(f"The run that was there is now in {previous}")
    origin = importlib.util.find_spec(module)
    with records.open_run(
        command.workdir,
        config=command.config.to_dict(),
        experiment=command.config.experiment,
        variant=command.variant,
        sources=[Path(origin.origin)] if origin is not None and origin.origin else [],
    ) as run:
        if run.finished:
            if first:
                _tell_finished(command.config.experiment, run)
            return
        if first:
            print(f"{command.config.experiment}: writing to {run.directory}", flush=True)
        with contextlib.nullcontext() if first else contextlib.redirect_stdout(None):
            imported = importlib.import_module(module)
            results = imported.run(command.config, run)
            page = importlib.import_module(module.removesuffix("run") + "page")
            run.finish(page.show(results, command.config, run))
        if first:
            print(f"Done: {run.report if run.report.exists() else run.directory}", flush=True)
    processes.disconnect()


def _tell_finished(experiment: str, run: records.Run) -> None:
    print(run.table, end="\n\n")
    where = run.report if run.report.exists() else run.directory
    age = " by an earlier version of the code" if run.outdated else ""
    print(f"{experiment} is finished{age}: {where}\nNothing was run; --rerun runs it anew.")


def _prepare_environment(workdir: Path) -> None:
    """What must be settled before jax starts: quiet, and the thread pool of a run that goes on."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        before = json.loads((workdir / "environment.json").read_bytes())["threads"]
    except (OSError, ValueError, KeyError, TypeError):
        before = None
    known = isinstance(before, int) and before > 0
    os.environ.setdefault("NPROC", str(before if known else records.threads()))


def _fail(error: BaseException) -> int:
    print(f"error: {_line(error)}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def run_program() -> None:
    """Carries out the command line of this program and ends it with the exit status."""
    stopping.listen()
    status = main(sys.argv)
    stopping.ignore()
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)  # a program that JAX was compiling when it was stopped may crash at exit


if __name__ == "__main__":
    run_program()
