"""The layers of the reference networks and their initialization."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, Num

from nopr.networks.convolutions import Padding, convolve
from nopr.typing import check_choice

Activation: TypeAlias = Literal["linear", "relu", "tanh"]
"""The activation after every hidden layer."""

Initialization: TypeAlias = Literal["he", "lecun", "torch"]
"""The distribution of the initial weights; see `Dense`."""


class Dense(nn.Module):
    """A fully connected layer: `inputs @ kernel + bias`, kernel `[in, out]`.

    Attributes:
      features: Number of outputs.
      initialization: With f inputs per unit, "torch" draws kernel and bias from
        U(-1/sqrt(f), 1/sqrt(f)), PyTorch's default; "he" draws the kernel from N(0, 2/f) and
        "lecun" from N(0, 1/f), with zero biases.
      use_bias: Whether there is a bias.
    """

    features: int
    initialization: str = "torch"
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: Num[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Applies the layer to the last axis."""
        fan_in = inputs.shape[-1]
        kernel = _kernel(self, (fan_in, self.features), fan_in)
        outputs = inputs @ kernel
        return outputs + _bias(self, fan_in) if self.use_bias else outputs


class Conv(nn.Module):
    """A convolution, channels last; kernel `[height, width, in / groups, out]`, as in Flax.

    Attributes:
      features: Number of output channels.
      kernel_size: Height and width of the kernel.
      initialization: As for `Dense`, with f = height x width x input channels / groups.
      use_bias: Whether there is a bias.
      implementation: "xla" calls XLA's convolution; "patches" gathers the patches and multiplies
        them by the kernel, which on a CPU is several times faster inside a loop or a vmap over
        kernels, and takes 3.3 to 3.6 times the memory in training (ResNet-20, a batch of 128: 958
        MiB of temporary memory instead of 288). "auto" chooses "patches" if the default backend is
        the CPU, and "xla" otherwise. They agree to rounding.
      strides: Strides along height and width.
      padding: "VALID" for none, "SAME" for XLA's rule, a number of zeros per side, or (before,
        after) for height and width.
      groups: Number of groups of channels, each convolved on its own.
    """

    features: int
    kernel_size: tuple[int, int] = (5, 5)
    initialization: str = "torch"
    use_bias: bool = True
    implementation: str = "auto"
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "VALID"
    groups: int = 1

    @nn.compact
    def __call__(
        self, inputs: Num[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Applies the layer to images."""
        shape = (*self.kernel_size, inputs.shape[-1] // self.groups, self.features)
        fan_in = math.prod(shape[:3])
        outputs = convolve(
            inputs,
            _kernel(self, shape, fan_in),
            strides=self.strides,
            padding=self.padding,
            groups=self.groups,
            implementation=self.implementation,
        )
        return outputs + _bias(self, fan_in) if self.use_bias else outputs


def batch_norm(values: Array, *, train: bool, name: str) -> Array:
    """Batch normalization, to be called inside a compact Linen module.

    In training it normalizes by the batch and moves the running statistics a tenth of the way;
    otherwise it normalizes by the running statistics. These, the scale (initially 1) and the bias
    (initially 0) have the default float type.
    """
    norm = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, param_dtype=jnp.result_type(float), name=name
    )
    return norm(values)


def activate(values: Array, activation: str) -> Array:
    """Applies an activation by its name."""
    check_choice("activation", activation, Activation)
    if activation == "linear":
        return values
    return nn.relu(values) if activation == "relu" else jnp.tanh(values)


def max_pool(values: Array) -> Array:
    """The largest of each 2x2 window; on a tie the gradient goes to the first, as in PyTorch."""
    largest = values[:, 0::2, 0::2]
    for row, column in ((0, 1), (1, 0), (1, 1)):
        other = values[:, row::2, column::2]
        largest = jnp.where((other > largest) | jnp.isnan(other), other, largest)
    return largest


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1."""
    return max(1, round(channels * width))


def _kernel(layer: Dense | Conv, shape: tuple[int, ...], fan_in: int) -> Array:
    return layer.param("kernel", _draw, shape, fan_in, layer.initialization)


def _bias(layer: Dense | Conv, fan_in: int) -> Array:
    if layer.initialization == "torch":
        return layer.param("bias", _draw, (layer.features,), fan_in, "torch")
    return layer.param("bias", lambda key: jnp.zeros(layer.features))


def _draw(
    key: Key[Array, ""], shape: tuple[int, ...], fan_in: int, initialization: Any
) -> Float[Array, "..."]:
    check_choice("initialization", initialization, Initialization)
    if initialization == "torch":
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    gain = 2.0 if initialization == "he" else 1.0
    return math.sqrt(gain / fan_in) * jax.random.normal(key, shape)
