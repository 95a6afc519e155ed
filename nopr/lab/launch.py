"""Runs one experiment in a run directory of its own; run again, it resumes or shows its result.

python -m nopr.lab.launch --config=FILE.py[:variant] [flags]

  --config=FILE.py[:variant]  the config: of a folder with a run.py, or a file that defines `run`
  --config.KEY=VALUE          changes one field of it
  --workdir=DIR               where to write; runs/NAME[-variant]-HASH by default
  --rerun                     sets an earlier run aside and starts afresh
  --show                      draws the tables, figures and report of a finished run again from
                              what its `run` returned, whatever has changed in the code since; if
                              that was more than arrays and plain values in dicts, lists and
                              tuples, it is not stored, and `run` runs again on the stored stages
  --traceback                 shows the traceback of an error
  --list                      lists the experiments here and in experiments/

On several hosts, the same command on each, and

  --coordinator=HOST:PORT     address of process 0
  --processes=N --process=I   number of processes, and the index of this one
  --distributed               finds these three in the environment, on Slurm and TPU
  --patience=SECONDS          silence after which a process counts as lost; 30 by default

The exit status is 0 when the run is done, 1 after an error, 2 for a command that cannot be carried
out or a setting that is refused, 75 when another process was lost, 130 or 143 when stopped. After
the last three the same command resumes the run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path

from nopr import processes
from nopr.lab import finding, peers, records, stopping, terminal
from nopr.lab.commands import Command, UsageError, listing, one_line, parse

# jax is imported late, so that a bad flag is reported at once.
_USER_ERRORS = (ArithmeticError, MemoryError, OSError, ValueError, ModuleNotFoundError)
_FULL = (  # for writes by code that knows nothing of runs
    "The disk is full: what is done is in {}, and is unchanged. "
    "Free some space and run the same command again."
)
_STOPPED = "Stopped; what is done is in {}. The same command resumes from there."
_UNHEARD = "Stopped without waiting longer. The same command resumes from what is stored."
_LOST = (
    "Another process of this run was lost; what is done is in {}. "
    "The same command on every host resumes from there."
)
_ALONE = (
    "The other processes did not join within {} seconds. Start the same command on every host, "
    "with the address of process 0 and a --process of its own."
)


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit status."""
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
    """Reports a failure in one line and returns the exit status; re-raises bugs."""
    peers.end()
    if isinstance(error, peers.AloneError) and command is not None and command.peers is not None:
        line, status = _ALONE.format(10 * command.peers.patience_seconds), peers.LOST
    elif command is not None and processes.is_loss(error):
        line, status = _LOST.format(command.workdir), peers.LOST
    elif isinstance(error, UsageError):
        line, status = one_line(error), 2
    elif show_place or not (
        isinstance(error, (*_USER_ERRORS, records.RunError)) or _is_of_jax(error)
    ):
        raise error
    elif command is not None and getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        line, status = _FULL.format(command.workdir), 1
    else:
        line, status = f"{one_line(error)}{_place(error, command)}", 1
    terminal.say(f"error: {line}")
    return status


def _place(error: Exception, command: Command | None) -> str:
    """The line of the experiment's own code that raised the error; nothing if nopr raised it."""
    *_, (frame, number) = traceback.walk_tb(error.__traceback__)
    path = Path(frame.f_code.co_filename)
    if command is None or path.parent.resolve() != command.code.run.parent.resolve():
        return ""
    kind = type(error).__name__
    return f" ({kind} in {path.name}, line {number}; --traceback shows more)"


def _is_of_jax(error: Exception) -> bool:
    """Whether the error is JAX's own, such as too little memory on a device."""
    return "jax" in sys.modules and isinstance(error, sys.modules["jax"].errors.JaxRuntimeError)


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
        stopping.listen()  # JAX has installed its own handler of SIGTERM
    first = processes.index() == 0
    idle = _is_done(command) and not (command.rerun or command.show)
    # Bad settings are refused before anything is written or set aside.
    module = None if idle else _checked(command)
    if command.rerun and first:
        previous = records.set_aside(command.workdir)
        if previous is not None:
            print(f"The previous run is now in {previous}")
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
        if run.finished and first:
            _print_finished(command.experiment, run)
        elif not run.finished:
            print(f"{command.experiment}: writing to {run.directory}", flush=True)
            _compute_and_show(command, module or _checked(command), run)
            print(f"Done: {run.report if run.report.exists() else run.directory}", flush=True)
    processes.disconnect()


def _is_done(command: Command) -> bool:
    """Whether this same config seems to be finished there, so that it need not be checked."""
    there = (records.read_json(command.workdir / "config.json") or {}).get("config")
    same = there is not None and records.digest(there) == records.digest(command.config.to_dict())
    return same and (command.workdir / "DONE").exists()


def _checked(command: Command) -> types.ModuleType:
    """The experiment's module, after its own `check` has passed."""
    module = finding.load(command.code.run)
    if not hasattr(module, "run"):
        raise UsageError(f"{str(command.code.run)!r} has no function `run`.")
    try:
        if hasattr(module, "check"):
            module.check(command.config)
    except ValueError as error:
        if command.traceback:
            raise
        raise UsageError(one_line(error)) from error
    return module


def _compute_and_show(command: Command, module: types.ModuleType, run: records.Run) -> None:
    """Runs the experiment, and shows its results in process 0 alone."""
    kept = run.kept() if command.show else None
    if kept is None and command.show:
        run.say("What `run` returned is not stored: it runs again on its stored stages.")
    results = module.run(command.config, run) if kept is None else kept
    if results is None:
        raise ValueError(f"`run` in {str(command.code.run)!r} must return its results, got None.")
    if processes.index() > 0:
        return
    page = module if command.code.page is None else finding.load(command.code.page)
    show = getattr(page, "show", None)
    if show is None:
        run.finish(results)
        return
    kept = run.keep(results) if kept is None else kept
    try:
        run.finish(show(results if kept is None else kept, command.config, run))
    except Exception:
        if kept is not None:
            run.say("The results are stored: once `show` is fixed, --show needs no computing.")
        raise


def _print_finished(experiment: str, run: records.Run) -> None:
    print(run.table, end="\n\n")
    where = run.report if run.report.exists() else run.directory
    age = " by an earlier version of the code" if run.outdated else ""
    print(f"{experiment} is finished{age}: {where}")
    print("Nothing was run; --show draws it again, --rerun runs it anew.")


def _prepare_environment(workdir: Path) -> None:
    """Sets what must precede the start of JAX: quiet logs, and the threads of a resumed run."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    before = (records.read_json(workdir / "environment.json") or {}).get("threads")
    known = type(before) is int and 0 < before <= records.MOST_THREADS
    os.environ.setdefault("NPROC", str(before if known else records.threads()))


def run_program() -> None:
    """Runs the command line of this program and exits with its status."""
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
