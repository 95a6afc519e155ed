"""Run in an environment where nopr is installed without extras; checks that all but `lab` works.

python plain_install.py
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sysconfig
from pathlib import Path

import nopr

EXTRA = (
    *("tensorflow_datasets", "sklearn", "matplotlib", "tqdm", "pyarrow", "requests"),
    "safetensors",
)
NEEDS_THE_EXTRA = ("nopr.lab", "nopr.data.elsewhere", "nopr.data.prepared")


def main() -> None:
    present = [name for name in EXTRA if importlib.util.find_spec(name)]
    assert not present, f"A plain install brings {present}."
    installed = Path(sysconfig.get_path("purelib"))
    assert Path(nopr.__file__).is_relative_to(installed), nopr.__file__
    modules = [
        module.name
        for module in pkgutil.walk_packages(nopr.__path__, "nopr.")
        if not module.name.startswith(NEEDS_THE_EXTRA)
    ]
    for name in modules:
        importlib.import_module(name)
    prune_something()
    refuses_in_one_line(lambda: nopr.data.load("digits"), "'digits' needs scikit-learn")
    refuses_in_one_line(lambda: nopr.data.load("mnist"), "'mnist' needs TensorFlow Datasets")
    refuses_in_one_line(lambda: nopr.lab.plots, "`nopr.lab.plots` needs matplotlib")
    refuses_in_one_line(lambda: nopr.export.load_safetensors("net"), "needs safetensors")
    packages = {item.metadata["Name"] for item in importlib.metadata.distributions()} - {"pip"}
    files = (path for path in installed.rglob("*") if path.is_file() and not path.is_symlink())
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    print(f"{len(modules)} modules import; {len(packages)} packages, {megabytes:,.0f} MB")


def prune_something() -> None:
    """The README's path through the science."""
    import jax
    import optax

    from nopr import criteria, finetune, masks, networks, spectra, transforms

    net = networks.mlp((16, 4), inputs=8)
    params = net.init(jax.random.key(0))
    inputs, labels = jax.random.normal(jax.random.key(1), (32, 8)), jax.numpy.arange(32) % 4
    loss = finetune.cross_entropy(net.apply)
    scores = criteria.snip(loss)(params, (inputs, labels), key=jax.random.key(2))
    kept = masks.top(scores, density=0.25)
    assert int(masks.count(kept)) == round(masks.size(kept) * 0.25)
    tx = transforms.keep(optax.adam(1e-3), kept)
    train = finetune.trainer(loss, tx, epochs=2, batch_size=8)
    trained = train(params, kept, (inputs, labels), key=jax.random.key(3))
    assert spectra.singular_values(net.apply, trained.params, inputs).shape == (32, 4)


def refuses_in_one_line(use, said: str) -> None:
    try:
        use()
    except ModuleNotFoundError as error:
        text = str(error)
    else:
        text = "it was not refused"
    assert said in text, text
    assert "nopr[lab]" in text, text
    assert "\n" not in text, text


if __name__ == "__main__":
    main()
