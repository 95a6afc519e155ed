"""What the default `where` prunes in a model of each library, leaf by leaf."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nopr import trees

KEY = jax.random.key(0)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Conv(8, (3, 3))(x))
        x = x.reshape(len(x), -1, 8) + nn.Embed(16, 8)(jnp.arange(16))
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, 16, 8))
        x = x + nn.Embed(16, 8, name="position_embeddings")(jnp.arange(16))
        x = jnp.concatenate([self.param("cls", nn.initializers.zeros, (len(x), 1, 8)), x], axis=1)
        x = nn.MultiHeadDotProductAttention(num_heads=2)(x, x)
        x = nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1))(x)
        x = nn.DenseGeneral((2, 4))(x)
        return nn.SpectralNorm(nn.Dense(3))(x, update_stats=False)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs)])
        self.head = nnx.LinearGeneral(8, (2, 4), rngs=rngs)
        self.pos = nnx.Param(jnp.ones((16, 8)))
        self.lora = nnx.LoRA(8, 2, 4, rngs=rngs)


class EquinoxBlock(eqx.Module):
    conv: eqx.nn.Conv2d
    norm1: eqx.nn.LayerNorm
    attn: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    norms: list
    a: eqx.nn.LayerNorm
    pos_embed: eqx.nn.Embedding

    def __init__(self):
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=KEY)
        self.norm1 = eqx.nn.LayerNorm((8, 8, 8))
        self.attn = eqx.nn.MultiheadAttention(2, 8, use_query_bias=True, key=KEY)
        self.mlp = eqx.nn.MLP(8, 4, 8, 1, key=KEY)
        self.norms = [eqx.nn.LayerNorm((8, 8)), eqx.nn.GroupNorm(2, 8)]
        self.a = eqx.nn.LayerNorm((8, 8))
        self.pos_embed = eqx.nn.Embedding(16, 8, key=KEY)


class HaikuInner(hk.Module):
    def __init__(self):
        super().__init__(name="inner")
        self.linear = hk.Linear(4)

    def __call__(self, x):
        return self.linear(x)


def haiku_block(x):
    x = hk.Conv2D(8, 3, data_format="NCHW")(x)
    x = hk.BatchNorm(True, True, 0.9, data_format="NCHW")(x, True)
    x = x.reshape(2, -1, 8) + hk.get_parameter("pos_embs", (16, 8), init=jnp.ones)
    x = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling())(x, x, x)
    x = hk.LayerNorm((-1, -2), True, True, param_axis=(-1, -2))(x)
    return hk.nets.MLP([4])(HaikuInner()(x))


def linen():
    return jax.eval_shape(LinenBlock().init, KEY, jnp.ones((2, 4, 4, 3)))


def nnx_module():
    return nnx.eval_shape(lambda: NnxBlock(nnx.Rngs(0)))


def nnx_state():
    return nnx.state(nnx_module())


def nnx_split():
    return nnx.split(nnx_module(), nnx.Param, ...)[1]


def pure_dict():
    return nnx.to_pure_dict(nnx_state())


def equinox():
    return eqx.filter_eval_shape(EquinoxBlock)


def haiku():
    block = hk.transform_with_state(haiku_block)
    params, state = jax.eval_shape(block.init, KEY, jnp.ones((2, 3, 4, 4)))
    return {"params": params, "state": state}


def plain():
    """A transformer block, its layers stacked for a scan."""
    shapes = {
        "tok_emb": (50, 8),
        "pos_emb": (16, 8),
        "wpe": (16, 8),
        "blocks": {
            "attn": {"qkv_w": (2, 8, 24), "qkv_b": (2, 24), "bias_q": (2, 8), "value": (2, 8, 8)},
            "ln1": {"scale": (2, 8), "offset": (2, 8)},
            "ln_2": {"g": (2, 8), "b": (2, 8)},
            "attn_norm": {"w": (2, 8)},
            "final_norm_weight": (2, 8),
            "mlp": [{"w": (2, 8, 32), "b": (2, 32)}, {"W": (2, 32, 8), "B": (2, 32)}],
        },
        "multiscale": {"kernel": (8, 8)},
        "offset_net": {"w": (8, 8)},
        "scale": {"kernel": (8, 8)},
        "norm_proj": {"w": (8, 8)},
        "rel_pos_bias": (2, 31),
        "class_token": (1, 1, 8),
    }
    return jax.tree.map(np.ones, shapes, is_leaf=lambda shape: isinstance(shape, tuple))


ATTENTION = ["key/kernel", "out/kernel", "query/kernel", "value/kernel"]
NNX = ["conv/kernel", "head/kernel", "lora/lora_a", "lora/lora_b"]
NNX = sorted([*(f"attn/{path}" for path in ATTENTION), *NNX])
CASES = {
    linen: [
        "params/Conv_0/kernel",
        "params/DenseGeneral_0/kernel",
        "params/Dense_0/kernel",
        "params/Embed_0/embedding",
        *(f"params/MultiHeadDotProductAttention_0/{path}" for path in ATTENTION),
    ],
    nnx_state: NNX,
    nnx_module: NNX,
    nnx_split: NNX,
    pure_dict: NNX,
    equinox: [
        "conv/weight",
        *(f"attn/{name}_proj/weight" for name in ("query", "key", "value", "output")),
        *(f"mlp/layers/{i}/weight" for i in (0, 1)),
        "a/weight",  # A norm that its path does not reveal.
    ],
    haiku: [
        "params/conv2_d/w",
        "params/inner/~/linear/w",
        "params/mlp/~/linear_0/w",
        *(f"params/multi_head_attention/{name}/w" for name in ("key", "linear", "query", "value")),
    ],
    plain: [
        "blocks/attn/qkv_w",
        "blocks/attn/value",
        "blocks/mlp/0/w",
        "blocks/mlp/1/B",  # Single letters keep their case: A and B are matrices elsewhere.
        "blocks/mlp/1/W",
        "multiscale/kernel",
        "norm_proj/w",
        "offset_net/w",
        "scale/kernel",
        "tok_emb",
    ],
}
IDS = ["linen", "nnx state", "nnx module", "nnx split", "nnx dict", "equinox", "haiku", "plain"]


@pytest.mark.parametrize(("make", "expected"), CASES.items(), ids=IDS)
def test_exactly_the_weights_of_a_real_model_are_prunable(make, expected):
    assert list(trees.paths(trees.select(make()))) == expected


def test_leaves_excluded_by_name_are_described_with_the_reason():
    table = trees.describe(plain()).splitlines()
    reasons = {line.split()[0]: line.split("no: ")[-1] for line in table if "no: " in line}
    assert reasons["blocks/attn/qkv_b"] == "bias"
    assert reasons["blocks/ln1/scale"] == "scale or offset"
    assert reasons["blocks/attn_norm/w"] == "norm"
    assert reasons["wpe"] == "position embedding"
    assert reasons["class_token"] == "learned token"
    assert table[-1] == "10 of 23 leaves and 2,256 of 2,806 weights are prunable."


def test_a_custom_where_is_described_without_a_reason():
    table = trees.describe(plain(), lambda path, leaf: path == "scale/kernel").splitlines()
    assert [line.split()[0] for line in table if line.endswith("yes")] == ["scale/kernel"]
    assert sum(line.endswith("no") for line in table) == 22
