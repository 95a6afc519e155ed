"""The result tables of Synaptic-Flow (Tanaka et al. 2020, arXiv:2006.05467).

Test accuracy in %, of the best test epoch, means of 3 runs: VGG-16 with batch norm on CIFAR-10.
"""

DENSITIES = (0.1, 0.01, 0.001)
DENSE = 93.5
ACCURACY = {
    "random": (91.2, 79.1, 10.0),
    "magnitude_init": (93.1, 89.8, 10.0),
    "snip": (92.3, 89.2, 76.3),
    "grasp": (91.8, 87.5, 70.9),
    "synflow": (93.3, 90.1, 80.4),
}
