"""Numbers from arXiv:2105.05916, MLP-7 on MNIST."""

ACCURACY_AND_JSV = {
    # MLP-7-Linear, ratio 0.8, 90 epochs: best test accuracy (%) at 1e-2 and 1e-3, mean JSV.
    "l1": (91.36, 90.54, 0.0040),
    "l1_orthp": (92.79, 92.77, 1.0),
}
RATIOS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
JSV = {
    # Mean JSV right after L1 pruning, by pruning ratio.
    "linear": (2.4987, 1.7132, 0.5325, 0.1180, 0.0151, 0.0004),
    "relu": (1.8265, 1.6664, 1.2583, 0.6295, 0.1334, 0.0055),
}
