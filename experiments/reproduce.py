"""Runs the experiments of the papers, one after the other, each resumable on its own.

python -m experiments.reproduce --name=isometry_table|mask_information|...|all [flags of launch]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from absl import flags

PAPERS = {
    "isometry_table": "experiments/isometry_table/config.py",
    "mask_information": "experiments/mask_information/config.py",
    "mask_information_repetition": "experiments/mask_information/config.py:repetition",
}


def main(argv: Sequence[str]) -> int:
    """Runs what `--name` asks for and returns the exit status: the first that is not 0."""
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
        if code in (130, 143):  # Stopped on purpose; the run has said how to go on.
            return code
        status = status or code
    return status


def commands(name: str, extra: Sequence[str] = ()) -> list[list[str]]:
    """The command lines that `name` stands for, with `extra` flags at the end of each.

    Raises:
      ValueError: If there is no experiment of that name.
    """
    if name != "all" and name not in PAPERS:
        choices = ", ".join(sorted([*PAPERS, "all"]))
        raise ValueError(f"`--name` must be one of {choices}, got {name!r}.")
    paths = PAPERS.values() if name == "all" else [PAPERS[name]]
    launch = [sys.executable, "-m", "experiments.launch"]
    return [[*launch, f"--config={path}", *extra] for path in paths]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
