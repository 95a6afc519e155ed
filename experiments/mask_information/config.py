"""How many bits a mask knows of its data, computed exactly.

Paper: "No Free Prune: Information-Theoretic Barriers to Pruning at Initialization", Kumar, Luo and
Sellke, ICML 2024, arXiv:2402.01089, appendix C.2, figure 4 (regression).

    make reproduce NAME=mask_information             about 8 minutes on two cores
    make reproduce NAME=mask_information_repetition  about an hour on two cores

The first draws distinct points: 1,792 datasets, H(D) = 10.81 bits. The second, the variant
`repetition`, draws points with replacement and a label per draw: 54,264 multisets with their
multinomial weights, H(D) = 15.41 bits; IMP and magnitude after training alone take it long.

Expected at 9 and 18 pruned weights (published): IMP 8.80 and 6.15, magnitude after training 8.98
and 8.06, SNIP 7.11 and 4.65, GraSP 5.41 and 2.81; SynFlow and random exactly 0. The paper leaves
open whether points repeat, the initialisation law, the learning rate, the number of steps and of
initialisations, and how it breaks ties; it samples the entropy (32,000 draws, plug-in).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The config; `variant` is "" (distinct points) or "repetition"."""
    laws = {"": "distinct", "repetition": "label_per_draw"}
    if variant not in laws:
        raise ValueError(f"the variant must be 'repetition' or left out, got {variant!r}")
    config = ConfigDict()
    config.experiment = "mask_information"
    config.seed = 0
    config.initializations = 5  # keys, each an initialisation; the interval is over them
    config.methods = ("magnitude_after", "snip", "grasp", "synflow", "random", "imp")

    config.data = ConfigDict()
    config.data.law = laws[variant]  # distinct, label_per_draw or label_per_point
    config.data.dimension = 3  # sides of the cube
    config.data.points = 6  # examples in a dataset

    config.network = ConfigDict()
    config.network.width = 4  # hidden units
    config.network.initialization = "torch"  # torch, he or lecun; open in the paper

    config.training = ConfigDict()
    config.training.steps = 500  # full-batch gradient steps; open in the paper
    config.training.learning_rate = 0.05  # open in the paper

    config.pruning = ConfigDict()
    config.pruning.most = 20  # weights pruned at most, of 21; IMP prunes one a round
    config.pruning.synflow_rounds = 100

    # The second pass of `information.exact`, which checks that H(m | D) is 0, on this many of the
    # initialisations; it doubles the time.
    config.checked = 1

    # What the paper leaves open, one at a time from the values above; empty for none.
    config.sensitivity = ConfigDict()
    config.sensitivity.initializations = 3
    config.sensitivity.initialization = () if variant else ("he", "lecun")
    config.sensitivity.learning_rate = () if variant else (0.01, 0.2)
    config.sensitivity.steps = () if variant else (1000,)
    return config
