"""Runs one experiment in a run directory of its own; run again, it resumes or says it is done.

python -m nopr.lab.launch --config=FILE.py[:variant] [flags]

  --config=FILE.py[:variant]  the config: of a folder with a run.py, or a file that defines `run`
  --config.KEY=VALUE          changes one field of it
  --workdir=DIR               where to write; runs/NAME[-variant]-HASH by default
  --rerun                     sets a run that is there aside and begins anew
  --show                      makes the tables, figures and report of a finished run again
  --traceback                 shows where an error was raised
  --list                      lists the experiments here and in experiments/

On several hosts, the same command on each, and

  --coordinator=HOST:PORT     the address of process 0
  --processes=N --process=I   how many there are, and which one this is
  --distributed               instead of these three, on Slurm and TPU: found in the environment
  --patience=SECONDS          a process that is silent for so long is lost; 30 by default

The exit status is 0 when the run is done, 1 after an error, 2 for a command that cannot be carried
out, 75 when another process was lost, 130 or 143 when stopped. After the last three the same
command resumes the run.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
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
from nopr.lab import finding, records, stopping, supervisor

# jax is imported late, so that a bad flag is told at once.
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
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
    experiment: str
    code: finding.Code
    workdir: Path
    rerun: bool
    show: bool
    traceback: bool
    peers: dict[str, Any] | None
    """The arguments of `processes.connect`; None for a run of one process."""


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (with the program's name first) and returns the exit status."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(__doc__.strip())
        return 0
    if "--list" in argv[1:]:
        print(listing(finding.find()))
        return 0
    try:
        command = parse(argv)
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
        return _guarded(command)
    try:
        with tempfile.TemporaryDirectory(prefix="nopr-") as scratch:
            ended = supervisor.supervise(partial(_supervised, command, scratch))
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


def _supervised(command: Command, scratch: str) -> int:
    """The work of one process of several; its temporary files go, however it ends."""
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    return _guarded(command)


def _guarded(command: Command) -> int:
    """Carries the command out; the exit status, after one line about what went wrong."""
    try:
        _launch(command)
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
    config, variant, code = _load_config(path)
    experiment = config.get("experiment", finding.name_of(Path(path.partition(":")[0])))
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("rerun", False, "", flag_values=values)
    flags.DEFINE_bool("show", False, "", flag_values=values)
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
        experiment = values.config.get("experiment", experiment)
        name = records.run_name(experiment, variant, values.config.to_dict())
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(_line(error)) from error
    if extra:
        raise UsageError(f"{extra[0]!r} is not a flag. Flags read like --config.KEY=VALUE.")
    workdir = Path(values.workdir) if values.workdir else Path("runs") / name
    peers = _peers(values)
    return Command(
        config=values.config,
        variant=variant,
        experiment=experiment,
        code=code,
        workdir=workdir,
        rerun=values.rerun,
        show=values.show,
        traceback=values.traceback,
        peers=peers,
    )


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
        if not isinstance(config, ConfigDict):
            kind = type(config).__name__
            raise UsageError(f"`get_config` of {name!r} must return a ConfigDict, got {kind}.")
        code = finding.code_of(Path(name), module)
    except UsageError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{name!r} is not Python: {_line(error)}") from error
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UsageError(f"{path!r} is refused: {kind}{_line(error)}") from error
    if not isinstance(config.get("experiment", ""), str):
        raise UsageError(f"`experiment` must be a name, got {config.experiment!r} in {name!r}.")
    return config, variant, code


def listing(experiments: Sequence[finding.Experiment]) -> str:
    """The experiments, a line each with what it is about, and its variants below."""
    if not experiments:
        return f"There are no experiments in {Path.cwd()} or in its folder experiments."
    width = max(len(str(one.config)) for one in experiments)
    lines = []
    for one in experiments:
        lines.append(f"{one.config!s:{width}}  {one.about}".rstrip())
        lines += [f"{one.config}:{variant}" for variant in one.variants]
    return "\n".join(lines)


def _config_choices() -> str:
    names = ", ".join(one.name for one in finding.find())
    return f"There are: {names}." if names else f"There are no experiments in {Path.cwd()}."


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


def _launch(command: Command) -> None:
    _prepare_environment(command.workdir)
    if command.peers is not None:
        try:
            processes.connect(**command.peers)
        except ValueError as error:
            raise UsageError(str(error)) from error
        stopping.listen()  # JAX has taken SIGTERM for a notice of its own
    first = processes.index() == 0
    idle = (command.workdir / "DONE").exists() and not (command.rerun or command.show)
    # What is refused is refused before anything is written or set aside.
    module = None if idle else _checked(command)
    if command.rerun and first:
        previous = records.set_aside(command.workdir)
        if previous is not None:
            print(f"The run that was there is now in {previous}")
    with records.open_run(
        command.workdir,
        config=command.config.to_dict(),
        experiment=command.experiment,
        variant=command.variant,
        sources=[command.code.run],
        reopen=command.show,
    ) as run:
        if run.finished:
            if first:
                _tell_finished(command.experiment, run)
            return
        if first:
            print(f"{command.experiment}: writing to {run.directory}", flush=True)
        with contextlib.nullcontext() if first else contextlib.redirect_stdout(None):
            _compute_and_show(command, module or _checked(command), run)
        if first:
            print(f"Done: {run.report if run.report.exists() else run.directory}", flush=True)
    processes.disconnect()


def _checked(command: Command) -> types.ModuleType:
    """The module of the experiment, once its own `check` has found nothing wrong."""
    module = finding.load(command.code.run)
    if not hasattr(module, "run"):
        raise UsageError(f"{str(command.code.run)!r} has no function `run`.")
    if hasattr(module, "check"):
        module.check(command.config)
    return module


def _compute_and_show(command: Command, module: types.ModuleType, run: records.Run) -> None:
    """Runs the experiment, and shows what came out in process 0 alone."""
    results = module.run(command.config, run)
    if processes.index() > 0:
        return
    page = module if command.code.page is None else finding.load(command.code.page)
    show = getattr(page, "show", None)
    run.finish(results if show is None else show(results, command.config, run))


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
