"""Settings in words: the table in docs/configuration.md, and the values of one run.

    python -m mixer.config.describe

prints the table, which `make docs` writes.
"""

import argparse
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from etils import epy
from ml_collections import ConfigDict

from mixer.config.evaluator_settings import EVALUATOR
from mixer.config.schema import Setting
from mixer.config.settings import SETTINGS, UNITS

with epy.lazy_imports():  # it imports jax, for which --help does not wait
    from mixer.config import checks

_GROUPS = {
    "": "The run",
    "model": "Model",
    "optimizer": "Optimizer",
    "mixup": "Mixup",
    "input": "Input",
    "fewshot": "The evaluator `fewshot`",
    "checkpoint": "Checkpoints",
    "metrics": "Metrics of training",
    "evaluators": "More evaluators",
}

_INTRODUCTION = """# Configuration

Every setting of a run. This page is written from `mixer/config/settings.py` by `make docs`.

A config file returns `recipe.base()`, which holds these defaults, with some values changed. On the command line
`--config.NAME=VALUE` changes a value. `python -m mixer.train --config FILE --print_config` prints all values of a run.

A duration has three units, of which one is set; setting one on the command line unsets the others. A setting that a run
would not read must keep its default; the column "needs" says when it is read.
"""


def table() -> str:
    """Returns docs/configuration.md."""
    lines = [_INTRODUCTION]
    for group, settings in _grouped(SETTINGS | {f"evaluators.NAME.{name}": of for name, of in EVALUATOR.items()}):
        lines += [f"## {_GROUPS[group]}", ""]
        lines += ["| setting | default | unit | allowed | meaning | needs | read by |", "|---|---|---|---|---|---|---|"]
        for name, of in settings:
            needs = " or ".join(map(str, of.needs))
            default = "not set" if of.default is None else f"`{_text(of.default)}`"
            cells = (f"`{name}`", default, of.unit, of.allowed(), of.meaning, needs, f"`{of.read_by}`")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def values(config: ConfigDict) -> str:
    """Returns every setting of a run with its value and meaning, in groups. A star marks values that were changed.

    Of a duration, the unit that is set is shown.
    """
    fields = checks.flat(config)
    evaluators = {f"evaluators.{name}.{key}": of for name in config.evaluators for key, of in EVALUATOR.items()}
    lines = []
    for group, settings in _grouped(SETTINGS | evaluators):
        lines.append(f"# {_GROUPS[group].replace('`', '')}")
        for name, of in settings:
            value, default = fields[name], list(of.default) if isinstance(of.default, tuple) else of.default
            names_unit = of.unit in UNITS and name.endswith(of.unit)
            if names_unit and value is None:
                continue
            unit = "" if names_unit or value is None else of.unit
            shown = f"{name} = {_text(value)} {unit}".rstrip()
            lines.append(f"{' ' if value == default else '*'} {shown:50} # {of.meaning}")
        lines.append("")
    return "\n".join([*lines, "* not the default"])


def _grouped(settings: Mapping[str, Setting]) -> Iterator[tuple[str, list[tuple[str, Setting]]]]:
    """Yields each group and its settings, in the order of `_GROUPS`."""

    def group(item: tuple[str, Setting]) -> int:
        first = item[0].partition(".")[0] if "." in item[0] else ""
        return list(_GROUPS).index(first)

    for number, items in groupby(sorted(settings.items(), key=group), key=group):
        yield list(_GROUPS)[number], list(items)


def _text(value: Any) -> str:
    return (
        ", ".join(part if isinstance(part, str) else f"{part:.6g}" for part in value)
        if isinstance(value, tuple | list)
        else str(value)
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table(), end="")
