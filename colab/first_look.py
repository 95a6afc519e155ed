# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first look at nopr
#
# Two questions about a pruned network, on a CPU and in less than a minute:
#
# - **Are the weights it leaves a good place to start training?** The singular values of the
#   input-output Jacobian, and their repair.
# - **What does its mask know about the data?** The mutual information of mask and data, computed
#   exactly.
#
# Both rest on one idea: *a pruning algorithm is a pure function from (data, key) to a mask.*

# %%
import importlib.util
import subprocess
import sys

REPOSITORY = ""  # in Colab: the address of nopr's repository, as you would clone it

if "google.colab" in sys.modules and importlib.util.find_spec("nopr") is None:
    if not REPOSITORY:
        raise RuntimeError("nopr is not installed. Set `REPOSITORY` in this cell to its address.")
    source = f"nopr[lab] @ git+{REPOSITORY}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)

# %%
# %matplotlib inline
import jax
import numpy as np
import optax
from IPython.display import display

from nopr import (
    algorithms,
    criteria,
    data,
    finetune,
    granularity,
    information,
    isometry,
    masks,
    networks,
    pruning,
    spectra,
    surgery,
    transforms,
    trees,
)
from nopr.lab import plots

# %% [markdown]
# ## 1. From scores to a trained sparse network
#
# Scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels, 360 of them for testing. The
# network is two functions, `init(key)` and `apply(params, inputs)`. The library has no module
# class: an `nnx.State`, an Equinox module or a plain dict works as well.

# %%
digits = data.load("digits")
train, test = tuple(digits.train), tuple(digits.test)
net = networks.mlp((300, 100, 10), inputs=64, initialization="he")
loss = finetune.cross_entropy(net.apply)
params = net.init(jax.random.key(0))

scores = criteria.snip(loss)(params, train, key=jax.random.key(1))
kept = masks.top(scores, density=0.02)
for path, layer in masks.by_layer(kept).items():
    print(f"{path}: {layer.kept:>4} of {layer.size:>6} weights, {layer.density:.1%}")

# %% [markdown]
# The masks are a pytree like the params, `True` where a weight is kept and `None` on what is not
# prunable, here the biases. `top` keeps exactly round(0.02 n) weights, even with ties.
#
# `transforms.keep` wraps any optax transformation so that pruned weights stay exactly 0, under
# momentum, weight decay or Adam. Masks are data, so one compilation serves all of them.


# %%
@jax.jit
def trained(params, kept):
    """The params after 200 full-batch steps under masks."""
    tx = transforms.keep(optax.adam(1e-2), kept)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, train), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = masks.apply(params, kept)
    return jax.lax.scan(step, (start, tx.init(start)), length=200)[0][0]


choices = {
    "random": criteria.random(),
    "magnitude at init": criteria.magnitude(),
    "SNIP": criteria.snip(loss),
}
for name, criterion in choices.items():
    kept = masks.top(criterion(params, train, key=jax.random.key(1)), density=0.02)
    live = surgery.effective_count(kept, net.layers)
    accuracy = finetune.evaluate(net.apply, trained(params, kept), test).accuracy
    print(
        f"{name:<18} {int(masks.count(kept))} weights, {int(live)} of them on a path from an input "
        f"to an output: test accuracy {accuracy:.1%}"
    )

# %% [markdown]
# The second number matters more than the first: a kept weight that is on no path does nothing.
# Magnitude at initialization cuts the network in two, because the kernel with the most inputs has
# the smallest weights. (One seed shows little; `make demo` has eight pruners, three densities, five
# seeds and intervals.)

# %% [markdown]
# ## 2. Dynamical isometry: what removing units does to the Jacobian
#
# A deep linear network is trained, then 80% of the units of each hidden layer are removed, those
# of least mean |w|. The singular values of $\partial f(x) / \partial x$ collapse: what is left is a
# poor place to start finetuning. OrthP replaces each kernel by a semi-orthogonal one, and every
# singular value of a linear network becomes 1, up to rounding, provided its widths never increase.
# (For ReLU, `gain=2**0.5` compensates for the half of the units that are off, and isometry is
# approximate.)

# %%
deep = networks.mlp((100,) * 6 + (10,), inputs=64, activation="linear")
deep_loss = finetune.cross_entropy(deep.apply)
fit = finetune.trainer(deep_loss, optax.sgd(0.01, momentum=0.9), epochs=30, batch_size=64)
initial = deep.init(jax.random.key(0))
dense = fit(initial, None, train, key=jax.random.key(1)).params

prune = pruning.pruner(
    criteria.magnitude(), density=0.2, scope="layer", granularity=granularity.units(deep.layers)
)
units = prune(dense, None, key=jax.random.key(2))
pruned = masks.apply(dense, units)
repaired = isometry.orthogonalize(dense, units)

probe = test[0][:100]
stages = {
    "at initialization": initial,
    "trained": dense,
    "80% of units removed": pruned,
    "repaired by OrthP": repaired,
}
values = {name: spectra.singular_values(deep.apply, p, probe) for name, p in stages.items()}
figure = plots.singular_values(
    values, note="100 test digits, linear 64-100x6-10 net", highlight=["repaired by OrthP"]
)
display(figure)

# %% [markdown]
# Finetuning starts from both, for the same few epochs at the same learning rate. Gradients hardly
# pass through the first; the second trains at once.

# %%
short = finetune.trainer(deep_loss, optax.sgd(0.01, momentum=0.9), epochs=3, batch_size=64)
for name, start in {"pruned": pruned, "pruned, OrthP": repaired}.items():
    tuned = short(start, units, train, key=jax.random.key(3)).params
    found = finetune.evaluate(deep.apply, tuned, test)
    mean = spectra.summarize(spectra.singular_values(deep.apply, tuned, probe)).mean
    print(
        f"{name:<14} mean singular value {mean:.4f} after 3 epochs, "
        f"test accuracy {found.accuracy:.1%}"
    )

# %% [markdown]
# ## 3. What a mask knows, in bits
#
# Take six distinct corners of the cube $\{-1, 1\}^3$ with labels of $\pm 1$: there are 1,792 such
# datasets, so H(D) = 10.81 bits. A 3-4-1 ReLU net has 21 weights, biases included. Given the
# initialization, each algorithm is a function of the dataset: run it on all of them under one
# `vmap`, and the law of its mask is known. I(m; D | init) = H(m | init) is then a sum over that
# law, not an estimate; `exact` also checks H(m | D, init) = 0 by a second pass.
#
# SNIP looks at the gradient at initialization; magnitude pruning looks at the weights after 500
# steps of gradient descent.

# %%
cube = data.synthetic.cube()
tiny = networks.mlp((4, 1), inputs=3)
tiny_loss = finetune.squared_error(tiny.apply)
descend = finetune.gradient_descent(tiny_loss, steps=500, learning_rate=0.05)
pruned_weights = np.arange(1, 21)


def every_level(criterion):
    """A pruner that gives the masks of all levels from one scoring."""
    return pruning.levels(pruning.pruner(criterion), 21 - pruned_weights)


curious = {
    "SNIP at init": algorithms.at_init(
        every_level(criteria.snip(tiny_loss, where=trees.everything)), init=tiny.init
    ),
    "magnitude after training": algorithms.after_training(
        every_level(criteria.magnitude(where=trees.everything)), init=tiny.init, train=descend
    ),
}
curves = {}
for name, algorithm in curious.items():
    result = information.exact(
        algorithm, cube.datasets, weights=cube.weights, levels=True, key=jax.random.key(0)
    )
    curves[name] = {"pruned": pruned_weights, "mean": result.bits}
    best = int(np.argmax(result.bits))
    print(
        f"{name}: at most {result.bits[best]:.2f} bits, with {pruned_weights[best]} of 21 weights "
        f"pruned; {result.distinct[best]} different masks"
    )
display(plots.bits_against_pruned(curves, cube.entropy_bits, n=1))

# %% [markdown]
# Neither mask can know more than H(D), nor more than log2 of the number of masks of its size. A
# mask that knows nothing about the data (random, magnitude at initialization, SynFlow) has exactly
# 0 bits on this scale. What a mask knows counts towards the effective parameters of the network
# that it leaves: p_eff = kept weights + information.
#
# Next: `make demo` for all pruners with intervals, `make reproduce` for the papers' numbers.
