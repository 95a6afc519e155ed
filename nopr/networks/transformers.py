"""Vision transformers."""

from __future__ import annotations

from typing import cast

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Num

from nopr import convolutions
from nopr.networks.choices import MOST_LAYERS, check_at_least_one, check_images
from nopr.networks.layers import Conv
from nopr.networks.record import Network
from nopr.typing import whole_number


def vit(
    *,
    patch: int = 4,
    dim: int = 192,
    depth: int = 6,
    heads: int = 3,
    hidden: int | None = None,
    classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    implementation: str = "auto",
) -> Network:
    """A small vision transformer, without dropout.

    Patches become tokens through one linear map (a convolution of stride `patch`), and a learned
    position embedding is added. Each block is attention, then two dense layers with GELU; both
    parts follow a layer norm and have a shortcut around them. After a last layer norm, a dense
    layer reads the mean of the tokens. By default there are 2,693,194 params.

    Kernels are drawn from Glorot's uniform distribution, with zero biases, as in the paper's code.
    So is that of the classifier, which the paper starts at zero: then no other kernel would have a
    gradient at initialization. The patches' kernel is drawn from N(0, 1 / fan-in), the position
    embedding from N(0, 0.02^2).

    Args:
      patch: Height and width of a patch.
      dim: Width of a token; a multiple of `heads`.
      depth: Number of blocks.
      heads: Number of attention heads.
      hidden: Units between the two dense layers of a block; 4 x `dim` if None.
      classes: Number of outputs.
      input_shape: Height, width and channels of an image; height and width are multiples of
        `patch`.
      implementation: How convolutions are computed: "auto", "patches" or "xla"; see `Conv`.

    Returns:
      The network, which has no state; params are `patches`, `position_embedding` (not prunable by
      default), `block_1` and so on, each with `norm_1`, `attention` (Linen's, with `query`, `key`,
      `value` and `out`), `norm_2`, `dense_1` and `dense_2`, then `norm` and `classifier`. Block
      numbers have as many digits as `depth`.

    Raises:
      ValueError: If a size is not positive, `heads` does not divide `dim`, or `patch` does not
        divide height and width.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; the mean in place of a class token as in
    Beyer et al. 2022, arXiv:2205.01580.
    """
    hidden = 4 * whole_number("dim", dim) if hidden is None else hidden
    patch, dim, depth, heads, hidden, classes = check_at_least_one(
        patch=patch, dim=dim, depth=depth, heads=heads, hidden=hidden, classes=classes
    )
    whole_number("depth", depth, most=MOST_LAYERS)
    check_images(input_shape)
    if dim % heads:
        raise ValueError(f"`heads` must divide `dim` = {dim}, got {heads}.")
    if input_shape[0] % patch or input_shape[1] % patch:
        raise ValueError(
            f"`patch` must divide height and width of `input_shape` = {tuple(input_shape)}, "
            f"got {patch}."
        )
    convolutions.resolve(implementation, name="implementation")
    module = ViT(patch, dim, depth, heads, hidden, classes, implementation)
    return Network(module, tuple(input_shape), _kernels(module), chain=False)


class ViT(nn.Module):
    """A vision transformer; see `vit` for the attributes."""

    patch: int = 4
    dim: int = 192
    depth: int = 6
    heads: int = 3
    hidden: int = 768
    classes: int = 10
    implementation: str = "auto"

    @nn.compact
    def __call__(
        self, inputs: Num[Array, "batch height width channels"]
    ) -> Float[Array, "batch out"]:
        """Applies the network to images."""
        window = (self.patch, self.patch)
        options = {"implementation": self.implementation, "strides": window, "name": "patches"}
        tokens = Conv(self.dim, window, "lecun", **options)(inputs)
        tokens = tokens.reshape(len(inputs), -1, self.dim)
        tokens = tokens + self.param(
            "position_embedding", _embedding(), tokens.shape[1:], jnp.result_type(float)
        )
        for name in _blocks(self):
            tokens = ViTBlock(self.heads, self.hidden, name=name)(tokens)
        return _dense(self.classes, "classifier")(jnp.mean(_norm("norm")(tokens), axis=1))


class ViTBlock(nn.Module):
    """Attention and two dense layers, each part after a layer norm and with a shortcut around it.

    Attributes:
      heads: Number of attention heads.
      hidden: Units between the dense layers.
    """

    heads: int
    hidden: int

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "batch tokens dim"]:
        """Applies the block to tokens."""
        attention = nn.MultiHeadDotProductAttention(
            self.heads,
            param_dtype=jnp.result_type(float),
            kernel_init=nn.initializers.xavier_uniform(),
            name="attention",
        )
        tokens = tokens + cast(Array, attention(_norm("norm_1")(tokens)))
        values = nn.gelu(_dense(self.hidden, "dense_1")(_norm("norm_2")(tokens)))
        return tokens + _dense(tokens.shape[-1], "dense_2")(values)


def _dense(features: int, name: str) -> nn.Dense:
    glorot = nn.initializers.xavier_uniform()
    return nn.Dense(features, param_dtype=jnp.result_type(float), kernel_init=glorot, name=name)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(param_dtype=jnp.result_type(float), name=name)


def _embedding() -> nn.initializers.Initializer:
    return nn.initializers.normal(0.02)


def _blocks(module: ViT) -> list[str]:
    digits = len(str(module.depth))
    return [f"block_{index:0{digits}}" for index in range(1, module.depth + 1)]


def _kernels(module: ViT) -> tuple[str, ...]:
    parts = [f"attention/{part}" for part in ("query", "key", "value", "out")]
    parts += ["dense_1", "dense_2"]
    inner = [f"{block}/{part}/kernel" for block in _blocks(module) for part in parts]
    return ("patches/kernel", *inner, "classifier/kernel")
