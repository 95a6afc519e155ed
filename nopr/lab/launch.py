"""Runs one experiment in a run directory of its own; run again, it resumes or shows its result.

python -m nopr.lab.launch --config=FILE.py[:variant] [flags]

  --config=FILE.py[:variant]  the config: of a folder with a run.py, or a file that defines `run`
  --config.KEY=VALUE          changes one field of it
  --workdir=DIR               where to write; runs/NAME[-variant]-HASH by default
  --rerun                     sets an earlier run aside and begins anew
  --show                      makes the tables, figures and report of a finished run again
  --traceback                 shows where an error was raised
  --list                      lists the experiments here and in experiments/

On several hosts, the same command on each, and

  --coordinator=HOST:PORT     address of process 0
  --processes=N --process=I   number of processes, and the index of this one
  --distributed               instead of these three, on Slurm and TPU: found in the environment
  --patience=SECONDS          silence after which a process counts as lost; 30 by default

The exit status is 0 when the run is done, 1 after an error, 2 for a command that cannot be carried
out, 75 when another process was lost, 130 or 143 when stopped. After the last three the same
command resumes the run.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from nopr import processes
from nopr.lab import finding, peers, records, stopping, terminal

# jax is imported late, so that a bad flag is reported at once.
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
_USER_ERRORS = (ArithmeticError, MemoryError, OSError, ValueError, ModuleNotFoundError)
_FULL = (  # where something wrote that knows nothing of runs
    "The disk is full: what is done is in {}, and is unchanged. "
    "Free some space and run the same command again."
)
_STOPPED = "Stopped; what is done is in {}. The same command resumes from there."
_UNHEARD = "Stopped in the middle of a long call. The same command resumes from what is stored."
_LOST = (
    "Another process of this run was lost; what is done is in {}. "
    "The same command on every host resumes from there."
)
_ALONE = (
    "The other processes did not come within {} seconds. Start the same command on every host, "
    "with the address of process 0 and a --process of its own."
)


class UsageError(Exception):
    """The command cannot be carried out as written; the message names what to change."""


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
    peers: peers.Peers | None
    """None for a run of one process."""


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (with the program's name first) and returns the exit status."""
    if {"--help", "-help", "-h", "--list"} & set(argv[1:]):
        print(listing(finding.find()) if "--list" in argv[1:] else (__doc__ or "").strip())
        return 0
    command = None
    try:
        command = parse(argv)
        _launch(command)
    except (KeyboardInterrupt, stopping.Terminated) as stop:
        peers.end()
        terminal.say(_STOPPED.format(command.workdir) if command else "Stopped.")
        return stopping.status(stop)
    except Exception as error:
        return _failed(error, command, show_place="--traceback" in argv)
    peers.end()
    return 0


def _failed(error: Exception, command: Command | None, *, show_place: bool) -> int:
    """Reports in one line what went wrong, and returns the exit status; raises bugs."""
    peers.end()
    if isinstance(error, peers.AloneError) and command is not None and command.peers is not None:
        line, status = _ALONE.format(10 * command.peers.patience_seconds), peers.LOST
    elif command is not None and processes.is_loss(error):
        line, status = _LOST.format(command.workdir), peers.LOST
    elif isinstance(error, UsageError):
        line, status = _line(error), 2
    elif show_place or not (
        isinstance(error, (*_USER_ERRORS, records.RunError)) or _is_of_jax(error)
    ):
        raise error
    elif command is not None and getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        line, status = _FULL.format(command.workdir), 1
    else:
        line, status = _line(error), 1
    terminal.say(f"error: {line}")
    return status


def _is_of_jax(error: Exception) -> bool:
    """Whether a device refused, as when it has too little memory."""
    return "jax" in sys.modules and isinstance(error, sys.modules["jax"].errors.JaxRuntimeError)


def parse(argv: Sequence[str]) -> Command:
    """Reads the command line without starting anything.

    Args:
      argv: The program's name and the flags.

    Returns:
      The command, its config with all changes made and locked.

    Raises:
      UsageError: For anything that cannot be understood; the message is one line.
    """
    for word in argv:
        if any("\ud800" <= letter <= "\udfff" for letter in word):  # bytes of no text
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
        experiment = values.config.get("experiment") or finding.name_of(code.config)
        name = records.run_name(experiment, variant, values.config.to_dict())
        workdir = Path(values.workdir).expanduser() if values.workdir else Path("runs") / name
        records.threads()  # refuses an `NPROC` at which XLA would hang
    except Exception as error:
        raise UsageError(_line(error)) from error
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


def _peers(values: flags.FlagValues) -> peers.Peers | None:
    """The other processes, as the flags give them; None for a run of one process."""
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
    if values.coordinator is not None:
        port = re.fullmatch(r".+:([0-9]{1,5})", values.coordinator)
        if port is None or not 0 < int(port[1]) < 2**16:
            raise UsageError(f"--coordinator must read like HOST:PORT, got {values.coordinator!r}.")
    return peers.Peers(*where, values.patience)


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
        met = False

        def line() -> str:
            seconds = 10 * command.peers.patience_seconds if command.peers else 0
            return _LOST.format(command.workdir) if met else _ALONE.format(seconds)

        peers.abort_in_one_line(line)
        try:
            peers.connect(command.peers)
        except ValueError as error:
            raise UsageError(str(error)) from error
        met = True
        stopping.listen()  # JAX has taken SIGTERM for a notice of its own
    first = processes.index() == 0
    idle = (command.workdir / "DONE").exists() and not (command.rerun or command.show)
    # What is refused is refused before anything is written or set aside.
    module = None if idle else _checked(command)
    if command.rerun and first:
        previous = records.set_aside(command.workdir)
        if previous is not None:
            print(f"The run that was there is now in {previous}")
    with (
        records.open_run(
            command.workdir,
            config=command.config.to_dict(),
            experiment=command.experiment,
            variant=command.variant,
            sources=[command.code.run],
            reopen=command.show,
        ) as run,
        contextlib.nullcontext() if first else contextlib.redirect_stdout(None),
    ):
        if run.finished:
            _print_finished(command.experiment, run)
        else:
            print(f"{command.experiment}: writing to {run.directory}", flush=True)
            _compute_and_show(command, module or _checked(command), run)
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


def _print_finished(experiment: str, run: records.Run) -> None:
    print(run.table, end="\n\n")
    where = run.report if run.report.exists() else run.directory
    age = " by an earlier version of the code" if run.outdated else ""
    print(f"{experiment} is finished{age}: {where}\nNothing was run; --rerun runs it anew.")


def _prepare_environment(workdir: Path) -> None:
    """What must be settled before jax starts: quiet, and the thread pool of a run that resumes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    before = (records.read_json(workdir / "environment.json") or {}).get("threads")
    known = isinstance(before, int) and 0 < before <= records.MOST_THREADS
    os.environ.setdefault("NPROC", str(before if known else records.threads()))


def run_program() -> None:
    """Carries out the command line of this program and ends it with the exit status."""
    terminal.guard_streams()
    stopping.listen(lambda: terminal.say(_UNHEARD))
    try:
        status = main(sys.argv)
    except Exception:
        traceback.print_exc()
        status = 1
    stopping.ignore()
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)  # a program that JAX was compiling when it was stopped may crash at exit


if __name__ == "__main__":
    run_program()
