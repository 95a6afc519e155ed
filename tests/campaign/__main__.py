"""Runs the campaign: python -m campaign [--tries=N] [--seed=S] [--only=NAME] [--page=FILE]."""
from pathlib import Path
import random, sys, tempfile, time
from campaign import launches, stops, disks, damage, clocks, pairs
FAULTS = {"killed": stops.killed, "stopped": stops.stopped, "interrupted": stops.interrupted, "doubled": stops.doubled,
"full": disks.full, "bounded": disks.bounded, "read_only": disks.read_only, "chunk": damage.chunk, "stage": damage.stage, "checkpoint": damage.checkpoint, "summary": damage.summary, "configuration": damage.configuration, "foreign": damage.foreign, "tomorrow": clocks.files_of_tomorrow, "set_back": clocks.set_back, "p_killed": pairs.killed, "p_stopped": pairs.stopped, "p_silent": pairs.silent, "p_both": pairs.both_stopped, "p_alone": pairs.alone, "p_different": pairs.different}
if __name__ == "__main__":
    job = launches.prepare(Path("/tmp/team3/fw/job"))
    print(job.seconds)
    for name in sys.argv[2:]:
        t = time.time()
        print(FAULTS[name](job, int(sys.argv[1]), random.Random(1)), time.time() - t, flush=True)
