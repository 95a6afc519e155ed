"""Residual networks, in their CIFAR form."""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Num

from nopr import convolutions
from nopr.networks.choices import (
    MOST_LAYERS,
    check_at_least_one,
    check_images,
    is_positive_integer,
)
from nopr.networks.layers import Conv, Dense, Initialization, batch_norm, scaled
from nopr.networks.record import Network
from nopr.typing import check_choice

Shortcut: TypeAlias = Literal["A", "B"]
"""How a shortcut crosses a change of width; see `resnet`."""


def resnet(
    depth: int,
    *,
    classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    width: float = 1.0,
    shortcut: str = "A",
    initialization: str = "he",
    implementation: str = "auto",
) -> Network:
    """A residual network in its CIFAR form, such as ResNet-20, 32, 44, 56 or 110.

    A convolution, three stages of n = (depth - 2) / 6 blocks with 16, 32 and 64 channels, the mean
    over all positions, and a dense layer. A block is convolution, batch norm, ReLU, convolution,
    batch norm; its input is added, and a ReLU follows. Convolutions are 3x3 without biases and pad
    with one zero on every side; the first of stages two and three has stride 2.

    Params for ten classes and three input channels:

    | depth | shortcut A | shortcut B |
    | ----- | ---------- | ---------- |
    | 20    | 269,722    | 272,474    |
    | 32    | 464,154    | 466,906    |
    | 56    | 853,018    | 855,770    |
    | 110   | 1,727,962  | 1,730,714  |

    Args:
      depth: Number of layers with weights, 6 n + 2.
      classes: Number of outputs.
      input_shape: Height, width and channels of an image.
      width: Multiplier of the numbers of channels, which are rounded and at least 1.
      shortcut: Where channels double, "A" takes every other position and pads with channels of
        zeros, as in the paper's networks for CIFAR; "B" applies a 1x1 convolution of stride 2 and
        batch norm. Elsewhere the shortcut is the identity.
      initialization: Distribution of initial kernels: "he", "lecun" or "torch"; see `Dense`. Batch
        norm starts with scale 1 and bias 0.
      implementation: How convolutions are computed: "auto", "patches" or "xla"; see `Conv`.

    Returns:
      The network, which has state. A kernel's path is, for instance,
      `stage_2_block_1/conv_1/kernel`, and that of the last is `classifier/kernel`. Block numbers
      have as many digits as n, so they sort in order.

    Raises:
      ValueError: If `depth` is not 6 n + 2, a size is not positive, or a name is unknown.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2.
    """
    if not is_positive_integer(depth) or not 8 <= depth <= MOST_LAYERS or depth % 6 != 2:
        raise ValueError(
            f"`depth` must be 6 n + 2 with n at least 1, such as 20, 32, 56 or 110, got {depth}."
        )
    check_at_least_one(classes=classes)
    check_images(input_shape, width)
    check_choice("shortcut", shortcut, Shortcut)
    check_choice("initialization", initialization, Initialization)
    convolutions.resolve(implementation, name="implementation")
    module = ResNet(depth, classes, width, shortcut, initialization, implementation)
    return Network(module, tuple(input_shape), _kernels(module), chain=False, stateful=True)


class ResNet(nn.Module):
    """A residual network in its CIFAR form; see `resnet` for the attributes."""

    depth: int = 20
    classes: int = 10
    width: float = 1.0
    shortcut: str = "A"
    initialization: str = "he"
    implementation: str = "auto"

    @nn.compact
    def __call__(
        self, inputs: Num[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch out"]:
        """Applies the network to images."""
        options = {"initialization": self.initialization, "implementation": self.implementation}
        first = Conv(
            scaled(16, self.width), (3, 3), use_bias=False, padding=1, name="conv", **options
        )
        values = nn.relu(batch_norm(first(inputs), train=train, name="norm"))
        for name, channels, stride in _blocks(self):
            block = ResNetBlock(channels, stride, self.shortcut, name=name, **options)
            values = block(values, train)
        values = jnp.mean(values, axis=(1, 2))
        return Dense(self.classes, self.initialization, name="classifier")(values)


class ResNetBlock(nn.Module):
    """Two convolutions and the shortcut around them; see `resnet`.

    Attributes:
      channels: Number of output channels.
      stride: Stride of the first convolution.
      shortcut: "A" or "B".
      initialization: As for `Conv`.
      implementation: As for `Conv`.
    """

    channels: int
    stride: int = 1
    shortcut: str = "A"
    initialization: str = "he"
    implementation: str = "auto"

    @nn.compact
    def __call__(
        self, inputs: Num[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch out_height out_width out_channels"]:
        """Applies the block to images."""
        values = self._conv(inputs, 3, self.stride, "conv_1")
        values = nn.relu(batch_norm(values, train=train, name="norm_1"))
        values = self._conv(values, 3, 1, "conv_2")
        values = batch_norm(values, train=train, name="norm_2")
        return nn.relu(values + self._around(inputs, train))

    def _around(self, inputs: Array, train: bool) -> Array:
        if self.stride == 1:
            return inputs
        if self.shortcut == "B":
            values = self._conv(inputs, 1, self.stride, "shortcut_conv")
            return batch_norm(values, train=train, name="shortcut_norm")
        added = self.channels - inputs.shape[-1]
        return jnp.pad(inputs[:, :: self.stride, :: self.stride], ((0, 0),) * 3 + ((0, added),))

    def _conv(self, values: Array, size: int, stride: int, name: str) -> Array:
        layer = Conv(
            self.channels,
            (size, size),
            self.initialization,
            use_bias=False,
            implementation=self.implementation,
            strides=(stride, stride),
            padding=size // 2,
            name=name,
        )
        return layer(values)


def _blocks(module: ResNet) -> list[tuple[str, int, int]]:
    """Name, channels and first stride of every block."""
    number = (module.depth - 2) // 6
    digits = len(str(number))
    return [
        (
            f"stage_{stage}_block_{block:0{digits}}",
            scaled(8 * 2**stage, module.width),
            2 if stage > 1 and block == 1 else 1,
        )
        for stage in (1, 2, 3)
        for block in range(1, number + 1)
    ]


def _kernels(module: ResNet) -> tuple[str, ...]:
    paths = ["conv/kernel"]
    for name, _, stride in _blocks(module):
        paths += [f"{name}/conv_1/kernel", f"{name}/conv_2/kernel"]
        if stride > 1 and module.shortcut == "B":
            paths.append(f"{name}/shortcut_conv/kernel")
    return (*paths, "classifier/kernel")
