"""The paper's fine-tuning protocol in one command: learning rate by dev split, then the test split with three seeds.

    python scripts/sweep.py --config configs/finetune.py:model=b16,size=448 --tasks all --workdir runs/sweep \\
        --config.init_from=B/16-i21k --config.input.data_dir=DIR [--config.NAME=VALUE] \\
        [--learning_rates 0.01,0.03] [--seeds 3] [--pretraining i21k]

Each task of mixer/tasks.py: a run for every learning rate of its grid, trained on part of the training data and
evaluated on the rest of it; with the best of them, a run for every seed on all training data, evaluated on the test
data. Without config.init_from this is a baseline from scratch. The table, with the paper's numbers beside it, is
printed and kept as results.md and results.json.

Run again, it continues: what is done stays. Runs are in WORKDIR/TASK/lr_RATE and WORKDIR/TASK/lr_RATE_seed_N, each
with up to three checkpoints; --config.checkpoint.keep_last=1 --config.checkpoint.keep_best=0 leaves one.
"""

import dataclasses
import importlib.metadata
import json
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from mixer import command_line, paper, startup, tasks
from mixer.errors import UserError, quiet_libraries
from mixer.sweep import Outcome, Sweep
from mixer.transfer.weights import PUBLISHED

# What the sweep itself sets, and what to do instead.
_SET_HERE = {
    "optimizer.learning_rate": "give --learning_rates",
    "seed": "give --seeds, their number",
    "input.dataset": "give --tasks",
    "input.train_split": "the rows of mixer/tasks.py say the splits",
    "input.eval_split": "the rows of mixer/tasks.py say the splits",
}


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


def note(row: paper.Row | None, eval_crop: str) -> str:
    """What the numbers of the table are: ours and the paper's."""
    ours = f"Accuracies in per cent, evaluated with eval_crop={eval_crop}."
    if row is None:
        return f"{ours} The paper has no row for this model."
    crop = "the same crop" if row.eval_crop == eval_crop else f"the other crop, {row.eval_crop}"
    return (
        f"{ours} The paper's are those of Mixer-{row.variant}, {paper.DATA[row.pretraining]}, {row.image_size} px, "
        f"{row.epochs} epochs, in its Table {row.table}: evaluated with {crop}."
    )


def _write(workdir: epath.Path, outcomes: dict[str, Outcome], row: paper.Row | None, made_by: dict[str, Any]) -> None:
    """Writes results.md and results.json."""
    versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    (workdir / "results.md").write_text(
        f"{table(outcomes, row)}\n\n{note(row, made_by['eval_crop'])}\n\n"
        f"Made on {made_by['device']} with {versions} by:\n\n    {made_by['command']}\n"
    )
    each = {
        name: {**dataclasses.asdict(outcome), "mean": outcome.mean, "std": outcome.std}
        for name, outcome in outcomes.items()
    }
    published = row and {**dataclasses.asdict(row), "eval_crop": row.eval_crop}
    results = {"tasks": each, "average_of_five": average(outcomes), "paper": published, **made_by}
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------------- command line


def _task_names(names: Sequence[str]) -> list[str]:
    """The full names of tasks; "all" is the paper's five."""
    found = []
    for name in tasks.AVG5 if list(names) == ["all"] else names:
        try:
            full, task = tasks.find(name)
            task.check_trainable()
        except ValueError as error:
            raise UserError(f"--tasks: {error}") from None
        found.append(full)
    if not found:
        raise UserError("--tasks: give all, or names joined by commas")
    return found


def _learning_rates(words: Sequence[str]) -> list[float]:
    try:
        rates = [float(word) for word in words]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"--learning_rates={','.join(words)}: expected numbers above 0, joined by commas")
    return rates


def _paper_row(config: ConfigDict, pretraining: str | None) -> paper.Row | None:
    """The paper's results for this model, pre-trained on what --pretraining or the name of the weights says."""
    named = config.init_from.rpartition("-")[2] if config.init_from in PUBLISHED else ""
    try:
        return paper.find(config.model.variant, pretraining or named, config.input.image_size, config.input.eval_crop)
    except ValueError as error:
        if pretraining:
            raise UserError(f"--pretraining={pretraining}: {error}") from None
        return None


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "configs/finetune.py with its arguments, all but task.")
    flags.DEFINE_list("tasks", ["all"], "Rows of mixer/tasks.py, or all: the paper's five.")
    flags.DEFINE_list(
        "learning_rates", None, "The grid, in place of the tasks' own; of a single one nothing is chosen."
    )
    flags.DEFINE_integer("seeds", 3, "How many final runs.", lower_bound=1)
    flags.DEFINE_string("pretraining", None, "What the weights come from, for the paper's numbers: i1k, i21k or jft.")
    flags.DEFINE_string("workdir", "runs/sweep", "The folder of all runs, local or gs://.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    quiet_libraries()
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; settings look like --config.NAME=VALUE")
    given = flags.FLAGS
    config, _ = command_line.from_flags()
    spec = config_flags.get_config_filename(given["config"])
    overrides = dict(config_flags.get_override_values(given["config"]))
    if wrong := [name for name in _SET_HERE if name in overrides]:
        raise UserError(f"--config.{wrong[0]} is set by the sweep itself; {_SET_HERE[wrong[0]]}")
    if "task=" in spec.partition(":")[2]:
        raise UserError(f"--config {spec}: task is set by the sweep itself; give --tasks")
    names = _task_names(given.tasks)
    chosen = None if given.learning_rates is None else _learning_rates(given.learning_rates)
    row = _paper_row(config, given.pretraining)
    workdir = epath.Path(given.workdir)
    # Runs that are the same program compile once: evaluations, and a run and its continuation.
    startup.keep_compiled(workdir / "compiled")
    rates = {name: chosen or tasks.TASKS[name].learning_rates for name in names}
    sweep = Sweep(spec, overrides, rates, given.seeds, workdir)
    made_by = {
        "command": shlex.join(["python", "scripts/sweep.py", *sys.argv[1:]]),
        "config": spec,
        "overrides": overrides,
        "eval_crop": config.input.eval_crop,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {name: importlib.metadata.version(name) for name in ("mixer", "jax", "flax")},
    }
    outcomes: dict[str, Outcome] = {}
    for name, outcome in sweep.outcomes():
        outcomes[name] = outcome
        _write(workdir, outcomes, row, made_by)
    print(f"\n{table(outcomes, row)}\n\n{note(row, config.input.eval_crop)}")
    print(f"The table and what made it are in {workdir}/results.md and results.json")


if __name__ == "__main__":
    command_line.run(main, define_flags)
