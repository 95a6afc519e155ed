"""LeNet-5."""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float, Num

from nopr import convolutions
from nopr.networks.choices import check_at_least_one
from nopr.networks.layers import Activation, Conv, Dense, Initialization, activate, max_pool
from nopr.networks.record import Network
from nopr.typing import check_choice

LENET5_INPUT_SHAPE = (32, 32, 1)
"""The image that `LeNet5` reads: height, width, channels."""


def lenet5(
    *,
    activation: str = "relu",
    initialization: str = "torch",
    classes: int = 10,
    implementation: str = "auto",
) -> Network:
    """LeNet-5 for 32x32 images of one channel, as in the dynamical-isometry papers.

    Convolutions 1-6-16-120 (5x5, no padding), max-pooling by 2 after the first two, then dense
    layers 120-84-classes; 61,706 params for ten classes. The "linear" variant keeps the
    max-pooling.

    Args:
      activation: Activation after every layer but the last: "linear", "relu" or "tanh".
      initialization: Distribution of initial weights: "he", "lecun" or "torch"; see `Dense`.
      classes: Number of outputs.
      implementation: How convolutions are computed: "auto", "patches" or "xla"; see `Conv`.

    Returns:
      The network; inputs are `[batch, 32, 32, 1]` or anything with 1,024 features per example.

    Raises:
      ValueError: If `classes` is less than 1 or a name is unknown; from `apply`, if the inputs do
        not have 1,024 features.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition.
    """
    check_at_least_one(classes=classes)
    check_choice("activation", activation, Activation)
    check_choice("initialization", initialization, Initialization)
    convolutions.resolve(implementation, name="implementation")
    module = LeNet5(classes, activation, initialization, implementation)
    layers = ("conv_0", "conv_1", "conv_2", "dense_0", "dense_1")
    return Network(module, LENET5_INPUT_SHAPE, tuple(f"{layer}/kernel" for layer in layers))


class LeNet5(nn.Module):
    """LeNet-5 with max-pooling; see `lenet5` for the attributes."""

    classes: int = 10
    activation: str = "relu"
    initialization: str = "torch"
    implementation: str = "auto"

    @nn.compact
    def __call__(self, inputs: Num[Array, "batch 32 32 1"]) -> Float[Array, "batch out"]:
        """Applies the network to images."""
        values = inputs
        for index, channels in enumerate((6, 16, 120)):
            layer = Conv(
                channels,
                initialization=self.initialization,
                implementation=self.implementation,
                name=f"conv_{index}",
            )
            values = activate(layer(values), self.activation)
            values = max_pool(values) if index < 2 else values
        values = values.reshape(values.shape[0], -1)
        values = Dense(84, self.initialization, name="dense_0")(values)
        return Dense(self.classes, self.initialization, name="dense_1")(
            activate(values, self.activation)
        )
