"""A network as the library sees it: functions of params, and the paths of its kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key, Num, PyTree

from nopr import convolutions, trees
from nopr.typing import Apply, Batch, Loss, Params, StepLoss, check_key

Inputs: TypeAlias = Num[Array | np.ndarray, "batch ..."]
"""Examples along the leading axis."""

State: TypeAlias = PyTree
"""The running statistics of batch normalization, a dict of dicts; empty where there is none."""


@dataclass(frozen=True)
class Network:
    """A network as the library sees it: `init`, `apply`, and the paths of its kernels.

    Params are a dict of dicts of arrays. The running statistics of batch normalization are not
    among them: they are the state. A network with state predicts, and is measured, through `bind`,
    and trains through `step_loss`:

        net = networks.resnet(20)
        params, state = net.init(key), net.init_state()
        train = finetune.trainer(
            net.step_loss(finetune.cross_entropy), tx, ..., stateful=True, state=state
        )
        fitted = train(params, masks, data, key=key)
        finetune.evaluate(net.bind(fitted.state), fitted.params, test)

    Attributes:
      module: The Linen module; a stateful one takes `train=True`.
      input_shape: Shape of one input, without the batch axis.
      kernels: The paths of all kernels, from input to output.
      chain: Whether each kernel reads the outputs of the one before and nothing else.
      stateful: Whether the network has batch normalization.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    kernels: tuple[str, ...]
    chain: bool = True
    stateful: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """The kernels of a chain, for `granularity.units`; empty for any other network."""
        return self.kernels if self.chain else ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The paths of the kernels that make the outputs, which `granularity.filters` must keep."""
        return self.kernels[-1:]

    @property
    def implementation(self) -> Literal["patches", "xla"] | None:
        """How convolutions are computed on this machine; None for a network without any."""
        choice = getattr(self.module, "implementation", None)
        return None if choice is None else convolutions.resolve(choice, name="implementation")

    def init(self, key: Key[Array, ""]) -> Params:
        """Draws the params; vmap-able over keys."""
        check_key(key)
        return self._variables(key)["params"]

    def init_state(self) -> State:
        """The state before any training: means 0 and variances 1, whatever the params."""
        if not self.stateful:
            return {}
        return self._variables(jax.random.key(0))["batch_stats"]

    def apply(self, params: Params, inputs: Inputs) -> Float[Array, "batch out"]:
        """The outputs of a network without state.

        Args:
          params: The params.
          inputs: `[batch, ...]`, each example of `input_shape` or flattened.

        Raises:
          ValueError: If the network has state, or the inputs do not have as many features.
        """
        if self.stateful:
            raise ValueError(
                "`apply` lacks the state of a network with batch normalization. "
                "Use `net.bind(state)`, with `net.init_state()` or the state after training."
            )
        return self.bind({})(params, inputs)

    def bind(self, state: State) -> Apply:
        """`apply(params, inputs)` in inference mode: it normalizes by the running statistics."""

        def apply(params: Params, inputs: Inputs) -> Float[Array, "batch out"]:
            variables = {"params": params, "batch_stats": state} if state else {"params": params}
            return cast(Array, self.module.apply(variables, self._shaped(inputs)))

        return apply

    def train(
        self, params: Params, state: State, inputs: Inputs
    ) -> tuple[Float[Array, "batch out"], State]:
        """The outputs in training mode, and the state moved towards the statistics of the batch.

        With the new state dropped, this is also how scores at initialization are usually computed:
        before training, the running statistics do not normalize, and deep networks saturate.
        """
        if not self.stateful:
            return self.apply(params, inputs), state
        outputs, new = cast(
            tuple[Array, Any],
            self.module.apply(
                {"params": params, "batch_stats": state},
                self._shaped(inputs),
                train=True,
                mutable=["batch_stats"],
            ),
        )
        return outputs, new["batch_stats"]

    def step_loss(self, loss: Callable[[Apply], Loss]) -> StepLoss:
        """What `finetune.trainer(stateful=True)` minimizes, in training mode.

        Args:
          loss: `loss(apply) -> (params, batch) -> scalar`, such as `finetune.cross_entropy`. It
            must call `apply` directly, not under a transformation of its own; if it needs one, use
            `train`.

        Returns:
          `step_loss(params, state, batch, key) -> (loss, state)`; `key` is not used.
        """

        def step_loss(
            params: Params, state: State, batch: Batch, key: Key[Array, ""]
        ) -> tuple[Array, State]:
            del key

            def apply(params: Params, inputs: Inputs) -> Float[Array, "batch out"]:
                nonlocal state
                outputs, state = self.train(params, state, inputs)
                return outputs

            value = loss(apply)(params, batch)
            return value, state

        return step_loss

    def _variables(self, key: Key[Array, ""]) -> Any:
        if not self.stateful:
            return self.module.init(key, jnp.zeros((1, *self.input_shape)))
        # Draws the params alone: a forward pass through a deep network would cost seconds.
        example = jax.ShapeDtypeStruct((1, *self.input_shape), jnp.result_type(float))
        return self.module.lazy_init(key, example)

    def _shaped(self, inputs: Any) -> Array:
        inputs = jnp.asarray(trees.numbers(inputs, "inputs"))
        features = math.prod(self.input_shape)
        if inputs.ndim < 2 or math.prod(inputs.shape[1:]) != features:
            raise ValueError(
                f"`inputs` must be [batch, ...] with {features} features per example, "
                f"got shape {inputs.shape}."
            )
        return inputs.reshape(inputs.shape[0], *self.input_shape)
