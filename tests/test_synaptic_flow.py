"""Pruning at initialization on images: its augmentation, and a tiny run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.synaptic_flow import published
from experiments.synaptic_flow import run as synaptic_flow
from experiments.synaptic_flow.config import Settings, get_config
from nopr.lab import launch, settings

TINY = {
    "data.name": "digits",
    "data.validation": 1300,
    "seeds": 1,
    "methods": ("snip",),
    "network.width": 0.2,
    "training.length": "2ep",
    "training.rates": ((0, 0.05),),
    "training.shift": 1,
    "training.checkpoint_every": "2ep",
    "pruning.densities": (0.3,),
    "pruning.scoring_examples": 16,
    "pruning.rounds": 2,
}
WORDS = [
    "launch",
    "--config=experiments/synaptic_flow/config.py:resnet20",
    *(f"--config.{key}={value}" for key, value in TINY.items()),
]


def test_images_are_shifted_and_mirrored_and_nothing_else():
    images = np.arange(1, 1 + 40 * 4 * 4, dtype=np.float32).reshape(40, 4, 4, 1)
    seen = {}

    def step_loss(params, state, batch, key):
        seen["images"], seen["labels"] = batch
        return jnp.sum(batch[0]), state

    step = synaptic_flow.augmented(step_loss, shift=1, mirror=True)
    step({}, None, (jnp.asarray(images), jnp.arange(40)), jax.random.key(3))
    np.testing.assert_array_equal(seen["labels"], np.arange(40))
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    kinds = set()
    for image, whole in zip(np.asarray(seen["images"]), padded, strict=True):
        windows = {
            (row, column, flip): whole[row : row + 4, column : column + 4][:, :: -1 if flip else 1]
            for row in range(3)
            for column in range(3)
            for flip in (False, True)
        }
        (kind,) = (k for k, window in windows.items() if np.array_equal(window, image))
        kinds.add(kind)
    assert len({kind[:2] for kind in kinds}) == 9
    assert {kind[2] for kind in kinds} == {False, True}
    plain = synaptic_flow.augmented(step_loss, shift=0, mirror=False)
    plain({}, None, (jnp.asarray(images), jnp.arange(40)), jax.random.key(3))
    np.testing.assert_array_equal(seen["images"], images)


def test_methods_that_need_another_training_are_refused():
    config = get_config()
    config.methods = ("snip", "imp")
    with pytest.raises(ValueError, match=r"must be among .*synflow, got 'imp'"):
        settings.read(Settings, config)


def test_the_published_table_has_every_method_and_density():
    assert Settings().pruning.densities == published.DENSITIES
    assert set(published.ACCURACY) == set(Settings().methods)
    assert {len(row) for row in published.ACCURACY.values()} == {3}


@pytest.mark.long
def test_every_network_is_trained_under_its_mask(tmp_path):
    assert launch.main([*WORDS, f"--workdir={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_bytes())
    table = (tmp_path / "run/table.txt").read_text()
    for name in ("dense", "snip/density_0.3"):
        for kind in ("last", "selected", "best"):
            assert 0 <= summary[f"{name}/{kind}_test_accuracy_percent"] <= 100
    sizes = [
        int(word.replace(",", ""))
        for word in table.split()
        if word[:1].isdigit() and word.replace(",", "").isdigit()
    ]
    dense = max(sizes)
    assert f"{round(0.3 * dense):,}" in table
    assert "The published table is of VGG-16 on CIFAR-10." in table
