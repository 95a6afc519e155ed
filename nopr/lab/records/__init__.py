"""Run directories: the config, environment, results and finished stages of a run.

A directory belongs to one config, and to one process at a time. Files are written to a temporary
file and renamed, and metrics are sealed line by line, so that a run can be killed at any moment, or
fill the disk, without harm to what was there. Long work is cut into stages (and sweeps into
chunks); a finished stage is a file with its SHA-256 and the code and machine it came from, and is
computed again if any of these differ.

    with records.open_run("runs/quickstart", config=config, experiment="quickstart") as run:
        if not run.finished:
            trained = run.stage("training", lambda: train_all(config))
            run.metric(10, "test", "snip/accuracy", trained["accuracy"][-1])
            run.finish({"snip_test_accuracy": trained["accuracy"][-1]})
"""

from nopr.lab.records.context import MOST_THREADS, digest, environment, run_name, threads
from nopr.lab.records.files import RunError, read_json, write_bytes, write_csv, write_text
from nopr.lab.records.opening import open_run, set_aside
from nopr.lab.records.run import Run
from nopr.lab.records.sources import source_digest
from nopr.lab.records.store import Store

__all__ = [
    "MOST_THREADS",
    "Run",
    "RunError",
    "Store",
    "digest",
    "environment",
    "open_run",
    "read_json",
    "run_name",
    "set_aside",
    "source_digest",
    "threads",
    "write_bytes",
    "write_csv",
    "write_text",
]
