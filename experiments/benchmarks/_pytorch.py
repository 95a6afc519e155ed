"""Many trainings as a PyTorch user would write them, from given params; imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from experiments.benchmarks import _timing
from experiments.benchmarks._timing import Layers


def loop_over_datasets(
    start: Layers, inputs: np.ndarray, labels: np.ndarray, *, steps: int, learning_rate: float
) -> Layers:
    """Full-batch gradient descent on the squared error, one dataset after another."""
    states, x, y = _states(start), torch.tensor(inputs), torch.tensor(labels)
    trained = []
    for case in range(len(x)):
        model = _mlp(start)
        model.load_state_dict({name: state[case] for name, state in states.items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x[case]).squeeze(-1), y[case])
            loss.backward()
            optimizer.step()
        trained.append(model.state_dict())
    return _layers({name: torch.stack([state[name] for state in trained]) for name in states})


def vmap_over_datasets(
    start: Layers, inputs: np.ndarray, labels: np.ndarray, *, steps: int, learning_rate: float
) -> Layers:
    """The same under `torch.func.vmap`, a step at a time."""
    model, params = _mlp(start), _states(start)
    x, y = torch.tensor(inputs), torch.tensor(labels)

    def loss(params: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(model, params, (x,)).squeeze(-1), y)

    gradients = vmap(grad(loss))
    for _ in range(steps):
        found = gradients(params, x, y)
        params = {name: params[name] - learning_rate * found[name] for name in params}
    return _layers(params)


def bmm_over_datasets(
    start: Layers, inputs: np.ndarray, labels: np.ndarray, *, steps: int, learning_rate: float
) -> Layers:
    """The same batched by hand: the net written out once more, as products of stacks."""
    (a, b), (c, d) = ([torch.tensor(leaf) for leaf in layer] for layer in start)
    x, y = torch.tensor(inputs), torch.tensor(labels)[:, :, None]
    params = [leaf.requires_grad_() for leaf in (a, b[:, None], c, d[:, None])]
    a, b, c, d = params
    optimizer = torch.optim.SGD(params, lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = torch.baddbmm(d, torch.relu(torch.baddbmm(b, x, a)), c)
        ((outputs - y) ** 2).mean((1, 2)).sum().backward()
        optimizer.step()
    a, b, c, d = (leaf.detach().numpy() for leaf in params)
    return [(a, b[:, 0]), (c, d[:, 0])]


def loop_over_seeds(
    start: Layers,
    images: np.ndarray,
    labels: np.ndarray,
    orders: np.ndarray,
    *,
    batch_size: int,
    learning_rate: float,
    momentum: float,
) -> Layers:
    """One epoch of SGD on the cross-entropy for each row of `orders`, one after another."""
    states, x, y = _states(start), torch.tensor(images), torch.tensor(labels).long()
    trained = []
    for seed, order in enumerate(torch.tensor(orders)):
        model = _mlp(start)
        model.load_state_dict({name: state[seed] for name, state in states.items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        trained.append(model.state_dict())
    return _layers({name: torch.stack([state[name] for state in trained]) for name in states})


def vmap_over_seeds(
    start: Layers,
    images: np.ndarray,
    labels: np.ndarray,
    orders: np.ndarray,
    *,
    batch_size: int,
    learning_rate: float,
    momentum: float,
) -> Layers:
    """The same under `torch.func.vmap`, a step at a time; SGD works on the stacks as they are."""
    model, params = _mlp(start), _states(start)
    x, y = torch.tensor(images), torch.tensor(labels).long()
    optimizer = torch.optim.SGD(params.values(), lr=learning_rate, momentum=momentum)

    def loss(params: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (x,)), y)

    gradients = vmap(grad(loss))
    for rows in torch.tensor(orders).split(batch_size, dim=1):
        found = gradients(params, x[rows], y[rows])
        for name, leaf in params.items():
            leaf.grad = found[name]
        optimizer.step()
    return _layers(params)


def fastest_threads(run: Callable[[], Any]) -> int:
    """1 or all cores, whichever makes a second call of `run` faster."""
    taken = {}
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        run()
        taken[threads] = _timing.seconds(run)
    return min(taken, key=lambda threads: taken[threads])


def with_threads(run: Callable[[], Any], threads: int) -> Callable[[], Any]:
    """`run` with torch limited to this number of threads."""

    def limited() -> Any:
        torch.set_num_threads(threads)
        return run()

    return limited


def _mlp(start: Layers) -> nn.Sequential:
    """A ReLU net of these widths, with params to be replaced."""
    modules: list[nn.Module] = []
    for kernel, _ in start:
        modules += [nn.Linear(kernel.shape[1], kernel.shape[2]), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def _states(start: Layers) -> dict[str, Tensor]:
    """The params as `_mlp` names them, a leading case axis on each."""
    states = {}
    for index, (kernel, bias) in enumerate(start):
        states[f"{2 * index}.weight"] = torch.tensor(kernel).transpose(1, 2).contiguous()
        states[f"{2 * index}.bias"] = torch.tensor(bias)
    return states


def _layers(states: dict[str, Tensor]) -> Layers:
    count = len(states) // 2
    return [
        (
            states[f"{2 * index}.weight"].transpose(1, 2).detach().numpy(),
            states[f"{2 * index}.bias"].detach().numpy(),
        )
        for index in range(count)
    ]
