"""The results of a fine-tuning sweep: an outcome for each task, and the table with the paper's numbers."""

import dataclasses
import json
import statistics
from collections.abc import Collection
from typing import Any

from etils import epath

from mixer.config import paper, tasks
from mixer.runtime import files, json_text

RESULTS_FILE = "results.json"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a task. Accuracies are shares.

    Attributes:
      grid: accuracy on the dev split by learning rate, None if the run diverged; empty if there was one rate only.
      dev_count: images of the dev split; None if there was one rate only.
      chosen: the learning rate.
      seeds: accuracy on the test split for each seed, from 0; None if the run diverged.
      count: images of the test split; None if all runs diverged.
    """

    grid: dict[float, float | None]
    dev_count: int | None
    chosen: float
    seeds: list[float | None]
    count: int | None

    @property
    def finite(self) -> list[float]:
        """The accuracies of the seeds that did not diverge."""
        return [accuracy for accuracy in self.seeds if accuracy is not None]

    @property
    def mean(self) -> float | None:
        """The mean over the seeds that did not diverge; None if all did."""
        return statistics.mean(self.finite) if self.finite else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation over the seeds that did not diverge; None for fewer than two."""
        return statistics.stdev(self.finite) if len(self.finite) > 1 else None


def average(outcomes: dict[str, Outcome]) -> float | None:
    """The mean accuracy over the paper's five tasks; None while not all are there, or where a task has none."""
    means = [outcomes[name].mean for name in tasks.AVG5 if name in outcomes]
    there = [mean for mean in means if mean is not None]
    return statistics.mean(there) if len(there) == len(tasks.AVG5) else None


def table(outcomes: dict[str, Outcome], row: paper.Row | None) -> str:
    """The outcomes in Markdown, per cent, with the paper's numbers where it has them."""
    lines = [
        "| task | test accuracy | std | seeds | images | paper | learning rate | dev accuracy by learning rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, outcome in outcomes.items():
        grid = ", ".join(
            f"{rate}: {'diverged' if accuracy is None else _percent(accuracy)}"
            for rate, accuracy in outcome.grid.items()
        )
        count = "-" if outcome.count is None else f"{outcome.count:,}"
        published = f"{row.imagenet:.2f}" if row and name == "imagenet2012" else "-"
        lines.append(
            f"| {name} | {_percent(outcome.mean)} | {_percent(outcome.std)} | {_seeds(outcome)} | "
            f"{count} | {published} | {outcome.chosen} | {grid or '-'} |"
        )
    if outcomes.keys() >= set(tasks.AVG5):
        published = f"{row.avg5:.2f}" if row else "-"
        lines.append(f"| average of the five | {_percent(average(outcomes))} | - | - | - | {published} | - | - |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _seeds(outcome: Outcome) -> str:
    """How many seeds the mean is over, and how many it is not."""
    diverged = len(outcome.seeds) - len(outcome.finite)
    return f"{len(outcome.finite)} ({diverged} diverged)" if diverged else str(len(outcome.finite))


def note(row: paper.Row | None, eval_crop: str, averaged: bool = False) -> str:
    """What the numbers of the table are: ours, of averaged parameters or the last ones, and the paper's."""
    ours = f"Accuracies in per cent{' of the averaged parameters' * averaged}, evaluated with eval_crop={eval_crop}."
    if row is None:
        return f"{ours} The paper has no row for this model."
    crop = "the same crop" if row.eval_crop == eval_crop else f"the other crop, {row.eval_crop}"
    return (
        f"{ours} The paper's are those of Mixer-{row.variant}, {paper.DATA[row.pretraining]}, {row.image_size} px, "
        f"{row.epochs} epochs, in its Table {row.table}: evaluated with {crop}."
    )


def other_tasks(workdir: epath.Path, names: Collection[str]) -> list[str]:
    """Returns the tasks of the table in a folder that are not among these; none if there is no table."""
    try:
        return [name for name in json.loads(files.read_text(workdir / RESULTS_FILE))["tasks"] if name not in names]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def write(workdir: epath.Path, outcomes: dict[str, Outcome], row: paper.Row | None, made_by: dict[str, Any]) -> None:
    """Writes results.md and results.json to the folder of the runs.

    Args:
      workdir: the folder.
      outcomes: of the tasks.
      row: of the paper, if it has one.
      made_by: `eval_crop`, `averaged` (parameters), `device`, `versions`, `command`, and more for results.json.
    """
    versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    files.write_text(
        workdir / "results.md",
        f"{table(outcomes, row)}\n\n{note(row, made_by['eval_crop'], made_by['averaged'])}\n\n"
        f"Made on {made_by['device']} with {versions} by:\n\n    {made_by['command']}\n",
    )
    each = {
        name: {**dataclasses.asdict(outcome), "mean": outcome.mean, "std": outcome.std}
        for name, outcome in outcomes.items()
    }
    published = row and {**dataclasses.asdict(row), "eval_crop": row.eval_crop}
    results = {"tasks": each, "average_of_five": average(outcomes), "paper": published, **made_by}
    files.write_text(workdir / RESULTS_FILE, json_text.dumps(results, indent=2) + "\n")
