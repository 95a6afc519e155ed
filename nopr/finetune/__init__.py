"""Training under masks as one compiled program, and evaluation of every example.

A training procedure is a pure function `train(params, masks, data, *, key)`. The masks are traced,
so one compilation serves every pruner and density, and `jax.vmap` runs many seeds or datasets at
once with the data shared between them. All procedures return one record, `Fitted`. `advance` is the
same loop for those who want to stop, look, save the carry and continue; `resume` does so for them,
and ends with the same bits however often it is cut off. With a `mesh`, the examples of each batch
are split over its `batch` axis.

A compilation is shared between calls that pass the same functions: make a loss, a transformation or
a trainer once and hand it around.
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
