"""One run: its stages, metrics, table and summary."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nopr import processes
from nopr.lab.records import returned
from nopr.lab.records.context import canonical, context, environment, settings
from nopr.lab.records.files import RunError, explained, plain_scalar, read_json, write_text
from nopr.lab.records.metrics import Metrics
from nopr.lab.records.sources import source_digest
from nopr.lab.records.store import Store, packed, unpacked

_SEALED = ("summary.json", "metrics.jsonl")
_RETURNED = "results"


class Run:
    """An open run directory. Made by `open_run`.

    Attributes:
      directory: The run directory.
      finished: Whether there is a whole summary already, so that nothing remains to be done.
      outdated: Whether it was finished by code other than the present.
      source: Digest of the code that computes its results, or did when it was finished.
    """

    def __init__(
        self,
        directory: Path,
        *,
        config: Any,
        sources: Sequence[str | Path],
        reopen: bool,
        say: Callable[[str], Any],
    ):
        self.directory = directory
        self.say = self._warn = say
        self._kept = directory / "stages"
        self._config = config
        self._sweeps: set[str] = set()
        self._returned = self._read_returned() if reopen else None
        self.source = (self._earlier_source() if reopen else None) or source_digest(*sources)
        self.finished, self.outdated = (False, False) if reopen else self._state()
        self._context: dict[str, Any] = {}
        if not self.finished:
            self._begin(reopen)

    @property
    def context(self) -> dict[str, Any]:
        """What may change the bits of a result: versions, code, kind of device, settings."""
        return self._depends()

    @property
    def figures(self) -> Path:
        """The folder for figures and the CSVs of their numbers."""
        return self._folder("figures")

    def checkpoints(self, name: str) -> Path:
        """The folder for the `nopr.lab.checkpoints` of one part of the run.

        The folder depends on the config, the source and the versions, so that a run never resumes
        from what other code saved. With several processes, process 0 writes there, and the others
        read if the disk is shared.
        """
        depends = canonical({**self._depends(), "config": self._config})
        digest = hashlib.sha256(depends.encode()).hexdigest()[:10]
        folder = self._kept.parent / "checkpoints" / f"{name}-{digest}"
        if not folder.exists() and any(folder.parent.glob(f"{name}-{'?' * 10}")):
            self.say(f"{name}: the checkpoints of other code, settings or threads are not used.")
        return folder

    @property
    def report(self) -> Path:
        """The path of the report."""
        return self.directory / "report.html"

    def stage(
        self,
        name: str,
        compute: Callable[[], Any],
        *,
        code: str = "",
        finite: bool = False,
    ) -> dict[str, Any]:
        """The result of `compute()`, read from disk if an earlier launch has stored it.

        Args:
          name: Name of the stage, unique in the run.
          compute: Function that returns a nested dict (or NamedTuple) of arrays, numbers and
            strings.
          code: Anything else that the result depends on, such as a version or a length. The config,
            the code that the run imports, the versions, the device and JAX's settings for precision
            and random numbers count already.
          finite: Whether NaN and infinities are an error.

        Returns:
          A nested dict of NumPy arrays and scalars, the same whether computed or read.

        Raises:
          ValueError: If a value cannot be stored, or is not finite where it must be.
          RunError: If it cannot be written.
        """
        store = self.store(code=code)
        found = self._of_first(lambda: store.get(name))
        if found is not None:
            self.say(f"{name}: done before, taken from {store.directory / name}.npz")
            return found
        started = time.perf_counter()
        values = compute()
        if finite:
            _check_finite(name, values)
        values = self._of_first(lambda: _kept(store, name, values))
        self.say(f"{name}: done in {time.perf_counter() - started:.1f} s")
        return values

    def _of_first(self, call: Callable[[], dict[str, Any] | None]) -> Any:
        """The result of `call` in process 0, in every process; the others do not call it."""
        if processes.count() == 1:
            return call()
        found = call() if processes.index() == 0 else None
        data = processes.share(b"" if found is None else packed(found))
        return unpacked(data) if data else None

    def store(self, name: str = "", *, code: str = "") -> Store:
        """A store of results under `name`, such as a sweep's chunks; see `stage` for `code`."""
        self._check_unfinished()
        depends = {**self._depends(), "config": self._config, "code": code, "store": name}
        return Store(self._kept / name, context=depends, say=self._warn)

    def sweep_store(self, name: str, *, networks: int, seeds: int) -> Store:
        """Reports that a sweep begins, and returns the store of its chunks.

        Raises:
          ValueError: If another sweep has that name since the run was opened; they would overwrite
            each other's chunks.
        """
        if name in self._sweeps:
            raise ValueError(
                f"The sweeps of a run must differ in name, got {name!r} twice. "
                "Give it `name=` of its own."
            )
        self._sweeps.add(name)
        each = f"{networks} network{'' if networks == 1 else 's'} of {seeds} seed"
        self.say(f"{name}: {each}{' ' if seeds == 1 else 's '}each, stored as they finish")
        return self.store(name)

    def keep(self, results: Any) -> Any:
        """Stores what the experiment returned, to be shown again without computing.

        Args:
          results: Arrays and plain values, in dicts, lists and tuples.

        Returns:
          The results as they are read back, with NumPy arrays; None if they hold anything else,
          which is not stored.
        """
        self._check_unfinished()
        store = Store(self.directory, context=self._depends(), say=self._warn)
        try:
            values = returned.flat(results)
            store.put(_RETURNED, values)
        except ValueError:
            store.remove(_RETURNED)
            return None
        return returned.restored(unpacked(packed(values)))

    def kept(self) -> Any:
        """What an earlier launch stored by `keep`, in a run that was reopened; else None."""
        found = self._of_first(lambda: self._returned)
        return None if found is None else returned.restored(found)

    def metric(self, step: int, split: str, name: str, value: Any) -> None:
        """Records one number; the same (step, split, name) again replaces what was there.

        Args:
          step: Step or epoch of the number.
          split: Part of the data, such as `"train"` or `"test"`.
          name: Name with its unit, such as `"snip/density_0.2/accuracy"`.
          value: Number; NaN and infinities are written as null.

        Record the results of a stage after it rather than inside its `compute`: the metrics are
        then complete however often the run was interrupted.
        """
        self._check_unfinished()
        number = float(value)
        self._metrics.add(int(step), split, name, number if math.isfinite(number) else None)

    def show_table(self, text: str) -> None:
        """Prints the table of results and stores it, to be shown when launched again."""
        write_text(self.directory / "table.txt", text.rstrip("\n") + "\n")
        print(text, flush=True)

    @property
    def table(self) -> str:
        """The table as it was shown; without one, the summary as lines."""
        path = self.directory / "table.txt"
        if path.exists():
            return path.read_text(encoding="utf-8").rstrip("\n")
        summary = self.summary
        width = max(map(len, summary), default=0)
        return "\n".join(f"{name:{width}}  {value}" for name, value in summary.items())

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of a finished run."""
        return json.loads((self.directory / "summary.json").read_bytes())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary and marks the run as finished.

        Args:
          summary: Flat mapping to numbers and strings, with units in the names.

        Raises:
          ValueError: If a value is neither a finite number nor a string; names it.
        """
        plain = {name: _summary_value(name, value) for name, value in summary.items()}
        text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
        write_text(self.directory / "summary.json", text)
        facts = {
            "sha256": {name: self._sha256(name) for name in _SEALED},
            "source": self.source,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_text(self.directory / "DONE", json.dumps(facts, indent=2) + "\n")
        self.finished, self.outdated = True, False

    def _depends(self) -> dict[str, Any]:
        """The context, with JAX's current settings: a `with` may have changed them."""
        return {**self._context, **settings()}

    def _check_unfinished(self) -> None:
        if self.finished:
            raise RunError(
                f"{str(self.directory)!r} is finished and accepts no more results. "
                "Read its summary, or set it aside and run it again."
            )

    def _state(self) -> tuple[bool, bool]:
        facts = self._done()
        return facts is not None, facts is not None and facts.get("source") != self.source

    def _done(self) -> dict[str, Any] | None:
        """The facts noted when the run was finished; None if it is unfinished or damaged."""
        done = self.directory / "DONE"
        if not done.exists():
            return None
        facts = read_json(done) or {}
        for name in _SEALED:
            if self._sha256(name) != (facts.get("sha256") or {}).get(name):
                self.say(f"{self.directory / name} is damaged; making it again.")
                return None
        return facts

    def _sha256(self, name: str) -> str:
        path = self.directory / name
        return hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()

    def _read_returned(self) -> dict[str, Any] | None:
        """What `keep` stored, whatever code it came from."""
        facts = read_json(self.directory / f"{_RETURNED}.json") or {}
        store = Store(self.directory, context=facts.get("context") or {}, say=self._warn)
        return store.get(_RETURNED)

    def _earlier_source(self) -> str | None:
        """The code behind what a reopened run holds, if it is whole: results are still its own."""
        if self._returned is not None:
            facts = (read_json(self.directory / f"{_RETURNED}.json") or {}).get("context")
        else:
            facts = self._done()
        return (facts or {}).get("source")

    def _begin(self, reopen: bool) -> None:
        """Clears what a killed run left half-written and notes what this one runs on."""
        with explained(self.directory):
            for left in filter(Path.is_file, self.directory.rglob(".*.tmp")):
                left.unlink()
            if not reopen:
                (self.directory / "DONE").unlink(missing_ok=True)
        path = self.directory / "environment.json"
        before = read_json(path)
        facts = environment(self.source)
        self._context = context(facts)
        self._metrics = Metrics(self.directory / "metrics.jsonl", self.say)
        same = before is not None and context(before) == self._context
        if before is not None and (self._returned is not None or (reopen and same)):
            return  # it still records where the results came from
        if before is not None and not same:
            self._metrics.clear()
        write_text(path, json.dumps(facts, indent=2) + "\n")

    def _folder(self, name: str) -> Path:
        path = self.directory / name
        with explained(path):
            path.mkdir(exist_ok=True)
        return path


class Member(Run):
    """The run in a process other than 0: it writes to a scratch folder, except chunks.

    Attributes:
      directory: The scratch folder.
      finished: Whether the run is finished, according to process 0.
      outdated: Whether it was finished by code other than the present, according to process 0.
    """

    def __init__(self, scratch: Path, kept: Path, state: Sequence[Any], **options: Any):
        *self._found, self._of_others = state
        super().__init__(scratch, **options)
        warn = self.say
        self._kept = kept
        self._warn = lambda line: warn(f"process {processes.index()}: {line}")
        self.say = lambda line: None

    def show_table(self, text: str) -> None:
        """Does nothing: process 0 shows the table."""

    def _state(self) -> tuple[bool, bool]:
        finished, outdated = self._found
        return finished, outdated

    def _earlier_source(self) -> str | None:
        return self._of_others


def _kept(store: Store, name: str, values: Any) -> dict[str, Any]:
    """Stores a result and returns it as it will be read back."""
    store.put(name, values)
    return unpacked(packed(values))


def _check_finite(name: str, values: Any, path: str = "") -> None:
    import jax.numpy as jnp  # late, so that the launcher starts without it

    values = values._asdict() if hasattr(values, "_asdict") else values
    if isinstance(values, Mapping):
        for key, value in values.items():
            _check_finite(name, value, f"{path}/{key}".lstrip("/"))
        return
    array = np.asarray(values)
    if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"The stage {name!r} has {count} of {array.size} values that are NaN or infinite "
            f"at {path!r}."
        )


def _summary_value(name: str, value: Any) -> float | int | str:
    value = plain_scalar(value) if getattr(value, "size", 1) == 1 else value
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(
        f"`summary` must hold finite numbers and strings, got {value!r} at {name!r}. "
        "Leave out what was not measured, or give the reason in a string."
    )
