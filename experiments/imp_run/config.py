"""Iterative magnitude pruning of one network, as a long run that survives being killed.

Paper: "The Lottery Ticket Hypothesis", Frankle and Carbin 2019, arXiv:1803.03635: train, prune a
fifth of each layer by magnitude, go back to the initial weights, repeat. (The paper prunes the
output layer at half that rate; here all layers go alike.) Weights of a later epoch come back with
`pruning.rewind`, after Frankle et al. 2019, arXiv:1903.01611.

    python -m experiments.launch --config=experiments/imp_run/config.py --workdir=runs/imp

takes 10 to 30 seconds on two cores. Stop it or kill it at any moment: the same command goes on
from the last checkpoint and ends with the same bytes.

Expected: one 64-300-100-10 ReLU net on scikit-learn's digits, 360 test images. The dense net has
97.5% test accuracy. Down to a twentieth of the weights it stays within about a point, at 1% it is
about 2 points below. It is a single seed, without an interval: differences of a point (4 images)
mean nothing. For intervals see `quickstart`, which vmaps seeds.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of the long run."""
    config = ConfigDict()
    config.experiment = "imp_run"
    config.seed = 0  # of the split, the initialisation and the data order

    config.data = ConfigDict()
    config.data.name = "digits"  # digits, mnist, fashion_mnist, or another set of data.load
    config.data.validation = 1 / 6  # of the training part; from 1 on a count

    config.network = ConfigDict()
    config.network.widths = (300, 100)  # hidden units
    config.network.initialization = "he"  # torch, he or lecun

    config.training = ConfigDict()
    config.training.length = "60ep"  # of each level, those before the rewind epoch included
    config.training.batch_size = 64  # examples
    config.training.learning_rate = 0.05  # at first; falls to 0 along half a cosine
    config.training.momentum = 0.9
    config.training.weight_decay = 1e-4
    config.training.checkpoint_every = "20ep"  # within a level; its end is one too
    config.training.checkpoint_keep = 2  # how many stay; 2 outlast a damaged last one

    config.pruning = ConfigDict()
    config.pruning.levels = 20  # rounds of pruning after the dense level 0
    config.pruning.removal = 0.2  # of the weights that are left, a level
    config.pruning.scope = "layer"  # where weights compete: layer or global
    config.pruning.rewind = "0ep"  # the epoch whose weights come back; 0ep is initialisation
    return config
