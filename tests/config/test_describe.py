"""The settings in words: the page is current, names files that exist, and a run's values are complete."""

import pathlib
import re

import pytest

from mixer.config import checks, describe, recipe
from mixer.config.evaluator_settings import EVALUATOR
from mixer.config.schema import Setting
from mixer.config.settings import DURATIONS, SETTINGS, UNITS

ROOT = pathlib.Path(__file__).parents[2]
ALL = SETTINGS | {f"evaluators.NAME.{name}": setting for name, setting in EVALUATOR.items()}


def test_the_page_is_current():
    assert (ROOT / "docs" / "configuration.md").read_text() == describe.table(), "run `make docs`"


def test_the_page_has_a_row_for_each_setting():
    rows = [line for line in describe.table().splitlines() if line.startswith("| `")]
    assert len(rows) == len(ALL)
    for name in ALL:
        assert any(line.startswith(f"| `{name}` |") for line in rows)
    (row,) = [line for line in rows if line.startswith("| `ema_decay` |")]
    assert "| `0.0` |  | at least 0, at most 0.9999 |" in row


@pytest.mark.parametrize("name", ALL)
def test_the_file_that_reads_a_setting_names_it(name):
    """A setting that nothing reads, or that another file reads, would be found here."""
    setting: Setting = ALL[name]
    text = (ROOT / "mixer" / setting.read_by).read_text()
    word = name.rpartition(".")[2]
    start, _, unit = word.rpartition("_")
    if unit in UNITS and start in (*DURATIONS, "every"):
        word = "every_{unit}" if start == "every" else "{name}_{unit}"  # durations.py puts these names together
    assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), f"{setting.read_by} does not read {name}"


def test_a_runs_values_are_grouped_commented_and_complete():
    config = recipe.imagenet1k("B/16")
    text = describe.values(checks.checked(config))
    lines = text.splitlines()
    for name, value in checks.flat(config).items():
        if name.endswith(tuple(UNITS)) and value is None:  # another unit of a duration
            continue
        assert any(line[2:].startswith(f"{name} = ") and " # " in line for line in lines), name
    assert [line for line in lines if line.startswith("# ")][:3] == ["# The run", "# Model", "# Optimizer"]
    assert any(line.startswith("* mixup.p = 0.5 ") for line in lines)
    assert any(line.startswith("  batch_size = 4096 images ") for line in lines)
    assert any(line.startswith("  total_epochs = 300.0 ") for line in lines)
    assert not any("total_steps" in line for line in lines)
    assert any(line.startswith("  optimizer.name = adam ") for line in lines)
    assert any(line.startswith("* evaluators.v2.dataset = imagenet_v2/matched-frequency ") for line in lines)
