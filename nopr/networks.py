"""Small reference networks in Flax Linen, behind the two functions that the library knows.

`mlp` and `lenet5` return a `Network`: `init(key) -> params`, `apply(params, inputs) -> outputs` and
the kernels in order. The params are a plain dict without the outer `"params"`. The modules
themselves are public, for use inside a larger Linen model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key, Num

from nopr.typing import Params

Activation: TypeAlias = Literal["linear", "relu", "tanh"]
"""What follows every hidden layer."""

Initialization: TypeAlias = Literal["he", "lecun", "torch"]
"""The law of the initial weights; see `Dense`."""

Implementation: TypeAlias = Literal["patches", "xla"]
"""How a convolution is computed; see `Conv`."""

Inputs: TypeAlias = Num[Array | np.ndarray, "batch ..."]
"""Examples along the leading axis."""

LENET5_INPUT_SHAPE = (32, 32, 1)
"""The image that `LeNet5` reads: height, width, channels."""


class Network(NamedTuple):
    """A network as the library sees one.

    Attributes:
      init: `init(key) -> params`, a dict of dicts of arrays; vmap-able over keys.
      apply: `apply(params, inputs) -> outputs`, from `[batch, ...]` to `[batch, out]`; pure.
      layers: The paths of the kernels, from input to output.
    """

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[[Params, Inputs], Float[Array, "batch out"]]
    layers: tuple[str, ...]


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
      widths: Units of each layer, whole numbers; the last is the number of outputs:
        (300, 100, 10).
      inputs: Number of input features.
      activation: After every layer but the last: "linear", "relu" or "tanh".
      initialization: "he", "lecun" or "torch"; see `Dense`.
      use_bias: Whether the layers have biases.

    Returns:
      The network; its params read `{"layer_0": {"kernel": [in, out], "bias": [out]}, ...}`.

    Raises:
      ValueError: If a width is no positive integer, `inputs` is less than 1, or a name is unknown;
        from `apply`, if the inputs do not have `inputs` features.
    """
    widths = tuple(widths)
    if not widths or not all(map(_is_positive_integer, widths)):
        raise ValueError(f"`widths` must be one or more positive integers, got {widths}.")
    if inputs < 1:
        raise ValueError(f"`inputs` must be at least 1, got {inputs}.")
    _check_names(activation, initialization)
    module = MLP(widths, activation, initialization, use_bias)
    return _network(module, (inputs,), tuple(f"layer_{i}/kernel" for i in range(len(widths))))


def lenet5(
    *,
    activation: str = "relu",
    initialization: str = "torch",
    classes: int = 10,
    implementation: str | None = None,
) -> Network:
    """LeNet-5 for 32x32 images of one channel, as in the dynamical-isometry papers.

    Convolutions 1-6-16-120 (5x5, no padding), max-pooling by 2 after the first two, then dense
    layers 120-84-classes. The "linear" variant keeps the max-pooling.

    Args:
      activation: After every layer but the last: "linear", "relu" or "tanh".
      initialization: "he", "lecun" or "torch"; see `Dense`.
      classes: Number of outputs.
      implementation: Of the convolutions; see `Conv`.

    Returns:
      The network; inputs are `[batch, 32, 32, 1]` or anything with 1,024 features an example.

    Raises:
      ValueError: If `classes` is less than 1 or a name is unknown; from `apply`, if the inputs do
        not have 1,024 features.
    """
    if classes < 1:
        raise ValueError(f"`classes` must be at least 1, got {classes}.")
    _check_names(activation, initialization)
    if implementation is not None:
        _check_choice("implementation", implementation, Implementation)
    module = LeNet5(classes, activation, initialization, implementation)
    layers = ("conv_0", "conv_1", "conv_2", "dense_0", "dense_1")
    return _network(module, LENET5_INPUT_SHAPE, tuple(f"{layer}/kernel" for layer in layers))


class Dense(nn.Module):
    """A fully connected layer: `inputs @ kernel + bias`, kernel `[in, out]`.

    Attributes:
      features: Number of outputs.
      initialization: With f the inputs of one unit, "torch" draws kernel and bias from
        U(-1/sqrt(f), 1/sqrt(f)), PyTorch's default; "he" the kernel from N(0, 2/f) and "lecun" from
        N(0, 1/f), with zero biases.
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
    """A convolution without padding, stride 1, channels last; kernel `[height, width, in, out]`.

    Attributes:
      features: Number of output channels.
      kernel_size: Height and width of the kernel.
      initialization: As for `Dense`, with f = height x width x input channels.
      use_bias: Whether there is a bias.
      implementation: "xla" calls XLA's convolution; "patches" gathers the patches and multiplies
        them with the kernel, which on a CPU is several times faster inside a loop or a vmap over
        kernels. None takes "patches" where the default backend is the CPU, "xla" elsewhere. They
        agree to rounding.
    """

    features: int
    kernel_size: tuple[int, int] = (5, 5)
    initialization: str = "torch"
    use_bias: bool = True
    implementation: str | None = None

    @nn.compact
    def __call__(
        self, inputs: Num[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Applies the layer to images."""
        shape = (*self.kernel_size, inputs.shape[-1], self.features)
        fan_in = math.prod(shape[:3])
        kernel = _kernel(self, shape, fan_in)
        implementation = self.implementation or _default_implementation()
        _check_choice("implementation", implementation, Implementation)
        convolve = _convolve_patches if implementation == "patches" else _convolve_xla
        outputs = convolve(inputs, kernel)
        return outputs + _bias(self, fan_in) if self.use_bias else outputs


class MLP(nn.Module):
    """Dense layers with an activation between; see `mlp` for the attributes."""

    widths: tuple[int, ...]
    activation: str = "relu"
    initialization: str = "torch"
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: Num[Array, "batch ..."]) -> Float[Array, "batch out"]:
        """Flattens each example and applies the layers."""
        values = inputs.reshape(inputs.shape[0], -1)
        for index, width in enumerate(self.widths):
            values = values if index == 0 else _activate(values, self.activation)
            values = Dense(width, self.initialization, self.use_bias, name=f"layer_{index}")(values)
        return values


class LeNet5(nn.Module):
    """LeNet-5 with max-pooling; see `lenet5` for the attributes."""

    classes: int = 10
    activation: str = "relu"
    initialization: str = "torch"
    implementation: str | None = None

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
            values = _activate(layer(values), self.activation)
            values = _max_pool(values) if index < 2 else values
        values = values.reshape(values.shape[0], -1)
        values = Dense(84, self.initialization, name="dense_0")(values)
        return Dense(self.classes, self.initialization, name="dense_1")(
            _activate(values, self.activation)
        )


def _network(module: nn.Module, shape: tuple[int, ...], layers: tuple[str, ...]) -> Network:
    def init(key: Key[Array, ""]) -> Params:
        return module.init(key, jnp.zeros((1, *shape)))["params"]

    def apply(params: Params, inputs: Inputs) -> Float[Array, "batch out"]:
        outputs = module.apply({"params": params}, _shaped(inputs, shape))
        return cast(Array, outputs)

    return Network(init, apply, layers)


def _shaped(inputs: Any, shape: tuple[int, ...]) -> Array:
    inputs = jnp.asarray(inputs)
    if inputs.ndim < 2 or math.prod(inputs.shape[1:]) != math.prod(shape):
        raise ValueError(
            f"`inputs` must be [batch, ...] with {math.prod(shape)} features an example, "
            f"got shape {inputs.shape}."
        )
    return inputs.reshape(inputs.shape[0], *shape)


def _is_positive_integer(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(value) >= 1


def _check_names(activation: Any, initialization: Any) -> None:
    _check_choice("activation", activation, Activation)
    _check_choice("initialization", initialization, Initialization)


def _check_choice(name: str, value: Any, choices: Any) -> None:
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}.")


def _activate(values: Array, activation: str) -> Array:
    _check_choice("activation", activation, Activation)
    if activation == "linear":
        return values
    return nn.relu(values) if activation == "relu" else jnp.tanh(values)


def _kernel(layer: Dense | Conv, shape: tuple[int, ...], fan_in: int) -> Array:
    return layer.param("kernel", _draw, shape, fan_in, layer.initialization)


def _bias(layer: Dense | Conv, fan_in: int) -> Array:
    if layer.initialization == "torch":
        return layer.param("bias", _draw, (layer.features,), fan_in, "torch")
    return layer.param("bias", lambda key: jnp.zeros(layer.features))


def _draw(
    key: Key[Array, ""], shape: tuple[int, ...], fan_in: int, initialization: str
) -> Float[Array, "..."]:
    _check_choice("initialization", initialization, Initialization)
    if initialization == "torch":
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    gain = 2.0 if initialization == "he" else 1.0
    return math.sqrt(gain / fan_in) * jax.random.normal(key, shape)


def _default_implementation() -> Implementation:
    return "patches" if jax.default_backend() == "cpu" else "xla"


def _convolve_xla(inputs: Array, kernel: Array) -> Array:
    dtype = jnp.promote_types(inputs.dtype, kernel.dtype)
    return jax.lax.conv_general_dilated(
        inputs.astype(dtype),
        kernel.astype(dtype),
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolve_patches(inputs: Array, kernel: Array) -> Array:
    rows, columns, _, features = kernel.shape
    height, width = inputs.shape[1] - rows + 1, inputs.shape[2] - columns + 1
    # In two stages, which takes 2 sqrt(n) slices instead of n: first along a row, then down.
    strips = [inputs[:, :, column : column + width] for column in range(columns)]
    strip = jnp.concatenate(strips, axis=-1)
    patches = jnp.concatenate([strip[:, row : row + height] for row in range(rows)], axis=-1)
    flat = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
    return flat.reshape(-1, height, width, features)


def _max_pool(values: Array) -> Array:
    """The largest of each 2x2 window; on a tie the gradient goes to the first, as in PyTorch."""
    largest = values[:, 0::2, 0::2]
    for row, column in ((0, 1), (1, 0), (1, 1)):
        other = values[:, row::2, column::2]
        largest = jnp.where((other > largest) | jnp.isnan(other), other, largest)
    return largest
