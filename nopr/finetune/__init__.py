"""Training under masks as one compiled program, and evaluation on every example.

A training procedure is a pure function `train(params, masks, data, *, key)`. The masks are traced,
so one compilation serves every pruner and density, and `jax.vmap` runs many seeds or datasets at
once with the data shared between them. All procedures return one record, `Fitted`. `advance` runs
the same loop for some epochs, so that the caller can inspect the carry, save it, and continue from
it later; `resume` does so by itself, and ends with the same bits however often it is interrupted.
With a `mesh`, the examples of each batch are split over its `batch` axis.

Calls share a compilation only if they pass the same function objects: create a loss, transformation
or trainer once and reuse it.
"""

from nopr.finetune.batches import epoch_rates, steps_per_epoch
from nopr.finetune.fitted import Carry, Fitted, History, raise_if_not_finite
from nopr.finetune.loop import Monitor, ReadMasks, advance, start
from nopr.finetune.losses import Evaluation, cross_entropy, evaluate, squared_error, stateless
from nopr.finetune.resuming import Keeper, resume
from nopr.finetune.training import gradient_descent, trainer

__all__ = [
    "Carry",
    "Evaluation",
    "Fitted",
    "History",
    "Keeper",
    "Monitor",
    "ReadMasks",
    "advance",
    "cross_entropy",
    "epoch_rates",
    "evaluate",
    "gradient_descent",
    "raise_if_not_finite",
    "resume",
    "squared_error",
    "start",
    "stateless",
    "steps_per_epoch",
    "trainer",
]
