"""Every fault of the campaign, once or a few times; `make faults` tries them many times."""

import fcntl
import os
import pickle
import random
import shutil

import pytest
from campaign import clocks, damage, disks, launches, pairs, stops


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The job without a fault; xdist's workers share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "faults"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = folder / "job.pickle"
        if not kept.exists():
            kept.write_bytes(pickle.dumps(launches.prepare(folder / "job")))
        return pickle.loads(kept.read_bytes())


@pytest.fixture
def rng():
    return random.Random(int(os.environ.get("NOPR_TEST_SEED", "2024")))


# --- Killed and stopped ------------------------------------------------------------------------


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(job, rng):
    stops.killed(job, 1, rng)


def test_stopped_at_any_moment_it_reports_how_to_resume(job, rng):
    stops.stopped(job, 1, rng)


def test_a_second_launch_in_its_directory_is_refused(job, rng):
    stops.doubled(job, 1, rng)


# --- Disks and clocks --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [disks.full, disks.bounded, disks.read_only])
def test_an_unwritable_disk_costs_one_line_and_no_byte(job, rng, fault):
    row = fault(job, 1, rng)
    if not row.tries:
        pytest.skip(row.outcome)


def test_a_clock_set_back_changes_nothing(job, rng):
    clocks.set_back(job, 1, rng)


# --- Damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [damage.chunk, damage.checkpoint])
def test_a_damaged_file_is_reported_and_made_again(job, rng, kind):
    kind(job, 1, rng)


def test_a_damaged_config_is_refused(job, rng):
    damage.configuration(job, 1, rng)


def test_a_chunk_of_other_code_is_reported_and_computed_again(job, rng):
    damage.foreign(job, 1, rng)


# --- Two processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("strike", [pairs.killed, pairs.silent])
def test_when_one_of_two_processes_is_lost_the_other_reports_it(job, rng, strike):
    strike(job, 1, rng)


def test_two_processes_end_in_order_when_both_are_stopped(job, rng):
    pairs.both_stopped(job, 1, rng)


# --- What the campaign holds -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metrics.jsonl", "stages/data.npz"])
def test_the_campaign_notices_a_byte_that_differs(job, name):
    directory = job.new()
    shutil.copytree(job.folder / "whole", directory)
    launches.check_same(job, directory)
    path = directory / name
    path.write_bytes(path.read_bytes()[:-2] + b"?\n")
    with pytest.raises(launches.Failure, match=f"other bytes .*\n{name}: "):
        launches.check_same(job, directory)
    with pytest.raises(launches.Failure, match=f"{name} is wrong"):
        launches.check_part(job, directory)
