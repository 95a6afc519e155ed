"""VGG networks, in their CIFAR form."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Num

from nopr import convolutions
from nopr.networks.choices import check_at_least_one, check_images, is_positive_integer
from nopr.networks.layers import Conv, Dense, Initialization, batch_norm, max_pool, scaled
from nopr.networks.record import Network
from nopr.typing import check_choice, shown

_REPEATS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)


def vgg(
    depth: int,
    *,
    classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    width: float = 1.0,
    initialization: str = "he",
    implementation: str = "auto",
) -> Network:
    """A VGG network in its CIFAR form: batch norm and one dense layer instead of three.

    3x3 convolutions that pad with one zero on every side and have no biases, each followed by
    batch norm and ReLU, in five groups of 64, 128, 256, 512 and 512 channels; max-pooling by 2
    after each group, the mean over the remaining positions (one for 32x32), and a dense layer.

    Params for ten classes and three input channels: VGG-11 9,228,362, VGG-13 9,413,066,
    VGG-16 14,724,042, VGG-19 20,035,018.

    Args:
      depth: 11, 13, 16 or 19, as the paper counts: with three dense layers.
      classes: Number of outputs.
      input_shape: Height, width and channels of an image; height and width are multiples of 32.
      width: Multiplier of the numbers of channels, which are rounded and at least 1.
      initialization: Distribution of initial kernels: "he", "lecun" or "torch"; see `Dense`. Batch
        norm starts with scale 1 and bias 0.
      implementation: How convolutions are computed: "auto", "patches" or "xla"; see `Conv`.

    Returns:
      The network, which has state and is a chain; kernels are `conv_00/kernel`, `conv_01/kernel`
      and so on, and `classifier/kernel`.

    Raises:
      ValueError: If `depth` or a name is unknown, a size is not positive, or height or width is not
        a multiple of 32.

    Source: Simonyan and Zisserman 2015, arXiv:1409.1556; the CIFAR form as in Liu et al. 2019,
    arXiv:1810.05270.
    """
    if not is_positive_integer(depth) or depth not in _REPEATS:
        known = ", ".join(map(str, _REPEATS))
        raise ValueError(f"`depth` must be one of {known}, got {shown(depth)}.")
    check_at_least_one(classes=classes)
    check_images(input_shape, width)
    if input_shape[0] % 32 or input_shape[1] % 32:
        raise ValueError(
            "`input_shape` must have height and width that are multiples of 32, which five "
            f"poolings halve, got {tuple(input_shape)}. Pad the images."
        )
    check_choice("initialization", initialization, Initialization)
    convolutions.resolve(implementation, name="implementation")
    module = VGG(depth, classes, width, initialization, implementation)
    kernels = [f"conv_{index:02}/kernel" for index in range(sum(_REPEATS[depth]))]
    return Network(module, tuple(input_shape), (*kernels, "classifier/kernel"), stateful=True)


class VGG(nn.Module):
    """A VGG network in its CIFAR form; see `vgg` for the attributes."""

    depth: int = 16
    classes: int = 10
    width: float = 1.0
    initialization: str = "he"
    implementation: str = "auto"

    @nn.compact
    def __call__(
        self, inputs: Num[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch out"]:
        """Applies the network to images."""
        values, index = inputs, 0
        for repeats, channels in zip(_REPEATS[self.depth], _CHANNELS, strict=True):
            for _ in range(repeats):
                layer = Conv(
                    scaled(channels, self.width),
                    (3, 3),
                    self.initialization,
                    use_bias=False,
                    implementation=self.implementation,
                    padding=1,
                    name=f"conv_{index:02}",
                )
                values = nn.relu(batch_norm(layer(values), train=train, name=f"norm_{index:02}"))
                index += 1
            values = max_pool(values)
        values = jnp.mean(values, axis=(1, 2))
        return Dense(self.classes, self.initialization, name="classifier")(values)
