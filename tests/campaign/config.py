"""The job that faults are tried on; see run.py."""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.experiment = "job"
    config.seed = 0
    config.rate = 0.1  # learning rate of the sweep
    config.cases = 80  # networks in the sweep, in chunks of 4
    config.levels = 3  # of pruning in the long run, each of 4 epochs, a checkpoint after each
    return config
