"""Runs the experiments that have published numbers, one after another; each can be resumed.

python -m experiments.reproduce --name=NAME[:variant]|all [flags of launch]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from nopr.lab import finding, terminal


def main(argv: Sequence[str]) -> int:
    """Runs the experiments of `--name` and returns the first exit status that is not 0."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print((__doc__ or "").strip())
        return 0
    values = flags.FlagValues()
    flags.DEFINE_string("name", "all", "", flag_values=values)
    try:
        rest = values(list(argv), known_only=True)[1:]
        chosen = commands(values.name, [word for word in rest if word != "--"])
    except (flags.Error, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    status = 0
    for command in chosen:
        print("$ " + " ".join(["python", *command[1:]]), flush=True)
        try:
            code = subprocess.run(command, check=False).returncode
        except KeyboardInterrupt:
            code = 130
        if code in (130, 143):  # stopped on purpose; the run has printed how to resume
            return code
        status = status or code
    return status


def configs(folder: Path = Path()) -> dict[str, str]:
    """The `--config` values, by name, of every experiment with published numbers.

    Args:
      folder: Root of the clone.
    """
    found = {}
    for one in finding.find(folder):
        if one.published:
            found[one.name] = str(one.config)
            found |= {f"{one.name}:{each}": f"{one.config}:{each}" for each in one.variants}
    return found


def commands(name: str, extra: Sequence[str] = ()) -> list[list[str]]:
    """The command lines for `name`, with `extra` flags at the end of each.

    Args:
      name: `all`, the name of an experiment (with all its variants), or `NAME:variant`.
      extra: Flags of launch.

    Raises:
      ValueError: If there is no experiment of that name.
    """
    known = configs()
    chosen = [key for key in known if name in ("all", key, key.partition(":")[0])]
    if not chosen:
        choices = ", ".join(sorted([*known, "all"]))
        raise ValueError(f"`--name` must be one of {choices}, got {name!r}.")
    launch = [sys.executable, "-m", "experiments.launch"]
    return [[*launch, f"--config={known[key]}", *extra] for key in chosen]


if __name__ == "__main__":
    terminal.guard_streams()
    sys.exit(main(sys.argv))
