"""Strict flags, keys that show their seed, and where the real data is."""

import gc
import os
from pathlib import Path

# Compiling is most of a small test: it is quick rather than thorough, and its results are kept for
# the other processes and the next run. Programs started by tests inherit this.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
gc.set_threshold(100_000, 50, 100)  # programs are many small objects, and few are garbage

import jax
import jaxtyping
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import settings

mpl.use("Agg")
# Compilation makes the first example slow; this is not a failure.
settings.register_profile("nopr", deadline=None)
settings.load_profile("nopr")


LONG = {  # files that start processes, run whole experiments or compile large programs
    "test_algorithms_resumable",
    "test_bad_input",
    "test_benchmarks",
    "test_checkpoints",
    "test_checkpoints_saver",
    "test_controls",
    "test_criteria_activations",
    "test_criteria_combinators",
    "test_criteria_structured",
    "test_data_parallel",
    "test_data_prepared",
    "test_doctests",
    "test_experiments",
    "test_export",
    "test_faults",
    "test_finding",
    "test_fuzz",
    "test_golden",
    "test_granularity_kernels",
    "test_guides",
    "test_imp_run",
    "test_installing",
    "test_isometry_table",
    "test_lanes",
    "test_launch",
    "test_mask_information",
    "test_networks",
    "test_optimizer_loops",
    "test_notebooks",
    "test_peers",
    "test_plots",
    "test_quickstart",
    "test_records",
    "test_reconstruct_layers",
    "test_report",
    "test_resuming",
    "test_settings",
    "test_stopping",
    "test_sweeps_scale",
}


def pytest_ignore_collect(collection_path, config):
    """`make check` does not import these files either, which takes ten seconds."""
    left_out = config.option.markexpr == "not long" and collection_path.stem in LONG
    return True if left_out else None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in LONG:
            item.add_marker("long")


@pytest.fixture
def getkey():
    """Fresh keys in turn; NOPR_TEST_SEED draws others."""
    seed = int(os.environ.get("NOPR_TEST_SEED", "2024"))
    counter = iter(range(10**6))

    def key():
        return jax.random.fold_in(jax.random.key(seed), next(counter))

    return key


@pytest.fixture
def rng():
    return np.random.default_rng(2024)


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def x64(request):
    """Runs a test in single and in double precision."""
    with jax.enable_x64(request.param):
        yield request.param


@pytest.fixture
def double():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def unchecked(monkeypatch):
    """Leaves annotations unchecked, as outside the test suite, so that our own checks run."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def manual_dir():
    """The folder with the original MNIST and Fashion-MNIST files."""
    return _folder("NOPR_MANUAL_DIR", "the original MNIST and Fashion-MNIST files")


@pytest.fixture(scope="session")
def golden_dir():
    """The folder with scores and masks of released code."""
    return _folder("NOPR_GOLDEN_DIR", "synaptic_flow_masks.npz")


def _folder(variable, what):
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"set {variable} to the folder that holds {what}")
    return Path(value)
