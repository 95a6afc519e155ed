"""SynFlow as a PyTorch user would write it, on the reference networks; imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def synflow(
    forward: Callable[[Weights, Tensor], Tensor],
    start: Mapping[str, np.ndarray],
    prunable: Sequence[str],
    counts: Sequence[int],
    *,
    input_shape: tuple[int, ...],
    dtype: torch.dtype,
) -> dict[str, np.ndarray]:
    """One gradient and one threshold a round; ties at the threshold are pruned.

    Args:
      forward: `forward(weights, inputs)`, with weights named as in `start` and channels last.
      start: The params, as JAX has them.
      prunable: The names of the leaves to prune.
      counts: The weights kept after each round.
      input_shape: The shape of one input.
      dtype: The precision.

    Returns:
      The masks, in the layout of JAX.
    """
    positive = {name: _tensor(leaf).to(dtype).abs() for name, leaf in start.items()}
    masks = {name: torch.ones_like(positive[name]) for name in prunable}
    inputs = torch.ones((1, *input_shape), dtype=dtype)
    size = sum(mask.numel() for mask in masks.values())
    for count in counts:
        leaves = {name: (positive[name] * masks[name]).requires_grad_() for name in prunable}
        flow = forward({**positive, **leaves}, inputs).sum()
        slopes = torch.autograd.grad(flow, list(leaves.values()))
        pairs = zip(leaves.items(), slopes, strict=True)
        scores = {name: (leaf * slope).detach().abs() for (name, leaf), slope in pairs}
        if count < size:
            every = torch.cat([score.flatten() for score in scores.values()])
            threshold = torch.kthvalue(every, size - count).values
            masks = {name: (score > threshold).to(dtype) for name, score in scores.items()}
    return {name: _array(mask) for name, mask in masks.items()}


def lenet_300_100(weights: Weights, inputs: Tensor) -> Tensor:
    values = inputs
    for index in range(3):
        values = F.linear(values, weights[f"layer_{index}/kernel"], weights[f"layer_{index}/bias"])
        values = F.relu(values) if index < 2 else values
    return values


def resnet_20(weights: Weights, inputs: Tensor) -> Tensor:
    values = F.conv2d(inputs.permute(0, 3, 1, 2), weights["conv/kernel"], padding=1)
    values = F.relu(_norm(weights, "norm", values))
    for stage in (1, 2, 3):
        for block in (1, 2, 3):
            values = _block(weights, f"stage_{stage}_block_{block}", values)
    return _classified(weights, values)


def vgg_16(weights: Weights, inputs: Tensor) -> Tensor:
    values = inputs.permute(0, 3, 1, 2)
    for index in range(13):
        values = F.conv2d(values, weights[f"conv_{index:02}/kernel"], padding=1)
        values = F.relu(_norm(weights, f"norm_{index:02}", values))
        values = F.max_pool2d(values, 2) if index in (1, 3, 6, 9, 12) else values
    return _classified(weights, values)


def _block(weights: Weights, name: str, inputs: Tensor) -> Tensor:
    first, second = weights[f"{name}/conv_1/kernel"], weights[f"{name}/conv_2/kernel"]
    added = len(first) - inputs.shape[1]
    stride = 2 if added else 1
    values = F.conv2d(inputs, first, stride=stride, padding=1)
    values = F.relu(_norm(weights, f"{name}/norm_1", values))
    values = _norm(weights, f"{name}/norm_2", F.conv2d(values, second, padding=1))
    around = F.pad(inputs[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, added))
    return F.relu(values + around)


def _norm(weights: Weights, name: str, values: Tensor) -> Tensor:
    """Batch norm in inference mode, at its initial statistics."""
    scale, bias = (weights[f"{name}/{leaf}"][:, None, None] for leaf in ("scale", "bias"))
    return values * (scale / math.sqrt(1 + 1e-5)) + bias


def _classified(weights: Weights, values: Tensor) -> Tensor:
    kernel, bias = weights["classifier/kernel"], weights["classifier/bias"]
    return F.linear(values.mean(dim=(2, 3)), kernel, bias)


def _tensor(leaf: np.ndarray) -> Tensor:
    """From [..., in, out] to [out, in, ...]."""
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(leaf.ndim, (0,))
    return torch.tensor(leaf.transpose(axes).copy())


def _array(tensor: Tensor) -> np.ndarray:
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}[tensor.ndim]
    return tensor.numpy().transpose(axes)


NETWORKS: dict[str, Any] = {
    "LeNet-300-100": lenet_300_100,
    "ResNet-20": resnet_20,
    "VGG-16": vgg_16,
}
