"""Reference networks in Flax Linen, behind the few functions that the library needs.

| network | constructor | params | state |
| --- | --- | --- | --- |
| fully connected | `mlp` | | |
| LeNet-300-100 | `lenet_300_100` | 0.27M | |
| LeNet-5 | `lenet5` | 0.06M | |
| ResNet-20, 32, 56, 110 | `resnet` | 0.27M, 0.46M, 0.85M, 1.7M | batch norm |
| VGG-16, 19 | `vgg` | 14.7M, 20.0M | batch norm |
| vision transformer | `vit` | 2.7M | |

Each returns a `Network`: `init(key) -> params`, `apply(params, inputs) -> outputs`, the paths of
the kernels in order, and, for those with batch norm, `init_state`, `bind` and `step_loss`. Params
are a plain dict without the outer `"params"`. The Linen modules are public, for use inside a
larger model.
"""

from nopr.networks.convolutions import Padding, convolve
from nopr.networks.layers import Activation, Conv, Dense, Initialization
from nopr.networks.lenets import LENET5_INPUT_SHAPE, LeNet5, lenet5
from nopr.networks.perceptrons import MLP, lenet_300_100, mlp
from nopr.networks.record import Inputs, Network, State
from nopr.networks.resnets import ResNet, ResNetBlock, Shortcut, resnet
from nopr.networks.transformers import ViT, ViTBlock, vit
from nopr.networks.vggs import VGG, vgg

__all__ = [
    "LENET5_INPUT_SHAPE",
    "MLP",
    "VGG",
    "Activation",
    "Conv",
    "Dense",
    "Initialization",
    "Inputs",
    "LeNet5",
    "Network",
    "Padding",
    "ResNet",
    "ResNetBlock",
    "Shortcut",
    "State",
    "ViT",
    "ViTBlock",
    "convolve",
    "lenet5",
    "lenet_300_100",
    "mlp",
    "resnet",
    "vgg",
    "vit",
]
