"""Settings: read whole from a config, refused with one line where something is wrong."""

import importlib
import re
import shlex
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from ml_collections import ConfigDict

from nopr.lab import launch, page, settings


@dataclass(frozen=True)
class Inner:
    rates: tuple[tuple[int, float], ...] = ((0, 0.1),)
    length: settings.Length = "10ep"
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Settings:
    seeds: settings.Count = 3
    share: settings.Share = 0.5
    block: Annotated[int, settings.Range(1)] | None = None
    densities: settings.Densities = (0.5, 0.1)
    quick: bool = False
    inner: Inner = Inner()

    def __post_init__(self):
        if self.quick and self.seeds > 5:
            raise ValueError(f"`seeds` must be at most 5 where `quick`, got {self.seeds}.")


def test_a_config_reads_as_the_settings_it_was_made_of():
    assert settings.read(Settings, settings.config(Settings())) == Settings()
    changed = Settings(seeds=4, block=2, inner=Inner(((0, 1.0), (3, 0.5)), "5it", "b"))
    assert settings.read(Settings, settings.config(changed)) == changed
    assert settings.read(Settings, {"seeds": 2}) == Settings(seeds=2)


def test_what_is_open_takes_its_type_later():
    config = settings.config(Settings())
    config.block = 7
    assert settings.read(Settings, config).block == 7
    with pytest.raises(TypeError):
        config.block = "many"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "There is no setting `seed`. Did you mean `seeds`?"),
        ({"inner.lenght": "1ep"}, "There is no setting `inner.lenght`. Did you mean"),
        ({"seeds": 0}, "`seeds` must be at least 1, got 0."),
        ({"seeds": 2.0}, "`seeds` must be of type int, got 2.0."),
        ({"seeds": True}, "`seeds` must be of type int, got True."),
        ({"seeds": 10**20}, "`seeds` must be at least 1, got 1"),
        ({"share": 1.0}, "`share` must be above 0 and below 1, got 1.0."),
        ({"share": float("nan")}, "`share` must be finite in single precision, got nan."),
        ({"share": 1e-300}, "`share` must be finite in single precision, got 1e-300."),
        ({"inner.rates": ((0, 1e300),)}, "`inner.rates` must be finite in single precision"),
        ({"densities": ()}, "`densities` must hold at least one entry, got none."),
        ({"densities": (0.5, "0.1")}, "`densities` must be of type float, got '0.1'."),
        ({"densities": 0.5}, "`densities` must be a tuple, got 0.5."),
        ({"densities": (0.5, 0)}, "`densities` must be above 0 and at most 1, got 0."),
        ({"inner": 3}, "`inner` must be a section of settings, got 3."),
        ({"inner.rates": ((0, 0.1, 2),)}, "`inner.rates` must hold tuples of 2, got"),
        ({"inner.length": "10"}, "`inner.length` must read like '10ep' or '500it', got '10'."),
        ({"inner.length": f"{10**20}ep"}, "`inner.length` must be at most 2,147,483,647 steps"),
        ({"inner.kind": "c"}, "`inner.kind` must be one of 'a', 'b', got 'c'."),
        ({"quick": True, "seeds": 9}, "`seeds` must be at most 5 where `quick`, got 9."),
    ],
)
def test_what_is_misspelled_mistyped_or_out_of_range_is_refused_by_its_name(changes, message):
    values = settings.config(Settings()).to_dict()
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[last] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.read(Settings, ConfigDict(values))


@pytest.mark.parametrize("name", ["quickstart", "isometry_table", "mask_information", "imp_run"])
def test_the_command_of_a_page_runs_the_same_settings(name):
    module = importlib.import_module(f"experiments.{name}.config")
    asked = module.Settings(seed=5)
    program, *words = shlex.split(page.command(asked))[2:]
    assert program == "nopr.lab.launch"
    assert words == [f"--config=experiments/{name}/config.py", "--config.seed=5"]
    parsed = launch.parse(["launch", *words]).config
    assert settings.read(module.Settings, parsed) == asked


@pytest.mark.parametrize("length", [3, None, "9" * 5000 + "ep", "²ep"])
def test_a_length_that_does_not_read_like_one_is_refused(length, unchecked):
    with pytest.raises(ValueError, match="must read like '10ep' or '500it', got"):
        settings.parse_length(length)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (["batch_size"], "`config` must be a ConfigDict or a dict, got"),
        (
            {"learning_rate": 2**2000},
            "`learning_rate` must be finite in single precision, got 1148130",
        ),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(config, message, unchecked):
    with pytest.raises(ValueError, match=message):
        settings.read(settings.Training, config)
