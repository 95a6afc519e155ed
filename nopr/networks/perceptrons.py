"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float, Num

from nopr.networks.choices import check_at_least_one, is_positive_integer
from nopr.networks.layers import Activation, Dense, Initialization, activate
from nopr.networks.record import Network
from nopr.typing import check_choice, check_flags, shown


def mlp(
    widths: Sequence[Any],
    *,
    inputs: int,
    activation: str = "relu",
    initialization: str = "torch",
    use_bias: bool = True,
) -> Network:
    """A fully connected network; inputs of any shape are flattened.

    Args:
      widths: Number of units in each layer, such as (300, 100, 10); the last is the number of
        outputs.
      inputs: Number of input features.
      activation: Activation after every layer but the last: "linear", "relu" or "tanh".
      initialization: Distribution of initial weights: "he", "lecun" or "torch"; see `Dense`.
      use_bias: Whether the layers have biases.

    Returns:
      The network; its params read `{"layer_0": {"kernel": [in, out], "bias": [out]}, ...}`.

    Raises:
      ValueError: If a width is not a positive integer, `inputs` is less than 1, or a name is
        unknown; from `apply`, if the inputs do not have `inputs` features.
    """
    given, widths = widths, tuple(widths) if isinstance(widths, Iterable) else ()
    if not widths or not all(map(is_positive_integer, widths)):
        raise ValueError(f"`widths` must be one or more positive integers, got {shown(given)}.")
    check_at_least_one(inputs=inputs)
    check_choice("activation", activation, Activation)
    check_choice("initialization", initialization, Initialization)
    check_flags(use_bias=use_bias)
    module = MLP(widths, activation, initialization, use_bias)
    return Network(module, (inputs,), tuple(f"layer_{i}/kernel" for i in range(len(widths))))


def lenet_300_100(
    *,
    inputs: int = 784,
    classes: int = 10,
    activation: str = "relu",
    initialization: str = "torch",
) -> Network:
    """LeNet-300-100: an `mlp` of widths (300, 100, classes), with 266,610 params on 28x28 images.

    Args:
      inputs: Number of input features.
      classes: Number of outputs.
      activation: Activation after the hidden layers: "linear", "relu" or "tanh".
      initialization: Distribution of initial weights: "he", "lecun" or "torch"; see `Dense`.

    Raises:
      ValueError: As `mlp`.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition.
    """
    return mlp(
        (300, 100, classes), inputs=inputs, activation=activation, initialization=initialization
    )


class MLP(nn.Module):
    """Dense layers with an activation in between; see `mlp` for the attributes."""

    widths: tuple[int, ...]
    activation: str = "relu"
    initialization: str = "torch"
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: Num[Array, "batch ..."]) -> Float[Array, "batch out"]:
        """Flattens each example and applies the layers."""
        values = inputs.reshape(inputs.shape[0], -1)
        for index, width in enumerate(self.widths):
            values = values if index == 0 else activate(values, self.activation)
            values = Dense(width, self.initialization, self.use_bias, name=f"layer_{index}")(values)
        return values
