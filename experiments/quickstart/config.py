"""Prunes a real network on real data; shows what each mask knows and how trainable it is.

    make demo                     about 2 minutes on two cores
    make demo ARGS="--config.data.name=mnist"   (or fashion_mnist; see the README for the data)

A 64-300-100-10 ReLU net on scikit-learn's digits, 5 seeds vmapped; eight pruners at three
densities; and the exact mask information of the same pruners on the cube task of "No Free Prune"
(arXiv:2402.01089, appendix C.2), H(D) = 10.81 bits.

Expected: at density 0.02 IMP and SynFlow stay within about 4 points of the dense accuracy; global
magnitude, at initialisation and after one short training, starves the middle layer: few of the
weights it keeps are on a path, and accuracy falls below that of random masks. SynFlow, random and
magnitude at init know exactly 0 bits, magnitude after training and IMP up to about 9.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The config of the main job."""
    config = ConfigDict()
    config.experiment = "quickstart"
    config.seed = 0
    config.seeds = 5  # initialisations and data orders, vmapped
    # Seeds in one vmapped call on a device, all by default; it fixes the last bits. With fewer,
    # more devices and hosts share the seeds, not only the methods and densities.
    config.block = config_dict.placeholder(int)
    config.methods = (
        "imp",
        "magnitude_after",
        "units_after",
        "magnitude_init",
        "synflow",
        "grasp",
        "snip",
        "random",
    )

    config.data = ConfigDict()
    config.data.name = "digits"  # digits, mnist, fashion_mnist, or another set of data.load
    config.data.validation = 1 / 6  # of the training part, for selection; from 1 on a count

    config.network = ConfigDict()
    config.network.widths = (300, 100)  # hidden units
    config.network.initialization = "he"  # torch, he or lecun

    config.training = ConfigDict()
    # Of the dense net, and again after pruning; by default 30ep for digits and 3ep for larger sets.
    config.training.length = config_dict.placeholder(str)
    config.training.batch_size = 64
    config.training.learning_rate = 0.05  # at first; falls to 0 along half a cosine
    config.training.momentum = 0.9
    config.training.weight_decay = 1e-4

    config.pruning = ConfigDict()
    config.pruning.densities = (0.2, 0.05, 0.02)  # kept / prunable; of units for whole units
    config.pruning.scoring_examples = 512  # training examples that SNIP and GraSP score on
    config.pruning.synflow_rounds = 100
    config.pruning.imp_removal = 0.2  # removed a round at most; rounds hit every density
    config.pruning.grasp_temperature = 200.0

    config.repair = ConfigDict()
    # Of units, at which OrthP is shown; by default the first of pruning.densities.
    config.repair.density = config_dict.placeholder(float)
    config.repair.gain = 2**0.5  # singular value of the new kernels; sqrt(2) suits ReLU

    config.measuring = ConfigDict()
    config.measuring.inputs = 256  # training images on which Jacobians are taken

    config.information = ConfigDict()
    config.information.initializations = 10
    config.information.imp_initializations = 3  # IMP takes 20 times as long
    config.information.checked = 1  # initialisations on which H(m | D) = 0 is checked
    config.information.law = "distinct"  # of the cube datasets
    config.information.dimension = 3
    config.information.points = 6
    config.information.width = 4  # hidden units
    config.information.steps = 500  # full-batch gradient steps
    config.information.learning_rate = 0.05
    config.information.initialization = "torch"
    return config
