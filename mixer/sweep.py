"""The paper's fine-tuning protocol in one command: learning rate by dev split, then the test split with three seeds.

    python -m mixer.sweep --config configs/finetune.py:model=b16,size=448 --tasks all --workdir runs/sweep \\
        --config.init_from=B/16-i21k --config.input.data_dir=DIR [--config.NAME=VALUE] \\
        [--learning_rates 0.01,0.03] [--seeds 3] [--pretraining i21k]

Each task of mixer/config/tasks.py: a run for every learning rate of its grid, trained on part of the training data and
evaluated on the rest of it; with the best of them, a run for every seed on all training data, evaluated on the test
data. Without config.init_from this is a baseline from scratch. The table, with the paper's numbers beside it, is
printed and kept as results.md and results.json.

Run again, it continues: what is done stays. Runs are in WORKDIR/TASK/lr_RATE and WORKDIR/TASK/lr_RATE_seed_N, each
with up to three checkpoints; --config.checkpoint.keep_last=1 --config.checkpoint.keep_best=0 leaves one.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import math
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epy
from ml_collections import ConfigDict

import mixer
from mixer.config import command_line, help_text, paper, tasks
from mixer.runtime import streams
from mixer.runtime.errors import UserError
from mixer.transfer import sweep_results
from mixer.transfer.published import PUBLISHED
from mixer.transfer.sweep_results import Outcome

with epy.lazy_imports():  # they import JAX or TensorFlow, for which --help does not wait
    import jax

    from mixer import sweep_runs
    from mixer.config import checks, run_folder
    from mixer.performance import paper_runs
    from mixer.runtime import compilation_cache, preemption

# What the sweep itself sets, and what to do instead.
_SET_HERE = {
    "optimizer.learning_rate": "give --learning_rates",
    "seed": "give --seeds, their number",
    "input.dataset": "give --tasks",
    "input.train_split": "the rows of mixer/config/tasks.py have the splits",
    "input.eval_split": "the rows of mixer/config/tasks.py have the splits",
}


def _task_names(names: Sequence[str]) -> list[str]:
    """Returns the full names of tasks; "all" stands for the paper's five."""
    found = []
    for name in tasks.AVG5 if list(names) == ["all"] else names:
        try:
            full, task = tasks.find(name)
        except ValueError:
            raise UserError(f"--tasks: {name!r} is no task; expected {_swept()}, or all") from None
        if task.sweep_dev is None:
            alone = f"; configs/finetune.py:task={name} trains on it without a choice" if task.train else ""
            raise UserError(f"--tasks: {full} has no dev split to choose by; expected {_swept()}{alone}")
        found.append(full)
    if not found:
        raise UserError("--tasks: give all, or names joined by commas")
    return found


def _swept() -> str:
    """Returns the names of the tasks that a sweep can be for."""
    return ", ".join(name for name, task in tasks.TASKS.items() if task.sweep_dev)


def _learning_rates(words: Sequence[str]) -> list[float]:
    try:
        rates = [float(word) for word in words]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"--learning_rates={','.join(words)}: expected numbers above 0, joined by commas")
    return rates


def _paper_row(config: ConfigDict, pretraining: str | None) -> paper.Row | None:
    """Returns the paper's results for this model and its pre-training data; None if the paper has none.

    The pre-training data comes from the name of published weights, from the run that the weights are of, or, if that is
    none of the paper's, from --pretraining.

    Raises:
      UserError: --pretraining names other data than the weights', or such for which the paper has no such model.
    """
    named = config.init_from.rpartition("-")[2] if config.init_from in PUBLISHED else ""
    before = paper_runs.pretraining(config.init_from) if config.init_from and not named else None
    if before:
        named = before.pretraining
    if pretraining and named in paper.DATA and pretraining in paper.DATA and pretraining != named:
        raise UserError(
            f"--pretraining={pretraining}: {config.init_from} was pre-trained on {paper.DATA[named]}; leave it out"
        )
    if changed := [name for name in paper.SIZES if config.model[name] is not None]:
        if pretraining:
            raise UserError(
                f"--pretraining={pretraining}: the paper has no results for a {config.model.variant} with another "
                f"model.{changed[0]}; leave it out"
            )
        return None
    try:
        return paper.find(
            config.model.variant, pretraining or named, config.input.image_size, config.input.eval_crop,
            epochs=before.epochs if before else None,
        )  # fmt: skip
    except ValueError as error:
        if pretraining:
            raise UserError(f"--pretraining={pretraining}: {error}") from None
        return None


def define_flags() -> None:
    """Defines the command's flags."""
    with help_text.group("The runs", "--config finetune:model=b16,size=448 --config.init_from=B/16-i21k"):
        command_line.define_config_flag("finetune with its arguments, all but task")
        flags.DEFINE_list("tasks", ["all"], f"Of {_swept()}; all are the paper's five.")
        flags.DEFINE_string("workdir", "runs/sweep", "The folder of all runs, local or gs://.")
    with help_text.group("The protocol", "--config finetune --tasks pets --learning_rates 0.01,0.03 --seeds 3"):
        flags.DEFINE_list(
            "learning_rates", None, "The grid, in place of the tasks' own; a single rate is used without a choice."
        )
        flags.DEFINE_integer("seeds", 3, "How many final runs.", lower_bound=1)
        flags.DEFINE_string(
            "pretraining", None, "What the weights come from, for the paper's numbers: i1k, i21k or jft."
        )


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    spec, overrides = _spec_and_overrides()
    names = _task_names(given.tasks)
    config = checks.checked(sweep_runs.of_task(spec, overrides, names[0]))
    chosen = None if given.learning_rates is None else _learning_rates(given.learning_rates)
    row = _paper_row(config, given.pretraining)
    workdir = run_folder.make(given.workdir)
    # Several runs are the same program, which is compiled once and then read from here.
    compilation_cache.keep_compiled(workdir / "compiled")
    rates = {name: chosen or tasks.TASKS[name].learning_rates for name in names}
    streams.outlast()
    atexit.register(preemption.ignore)
    stop = preemption.Stop()
    stop.listen()
    sweep = sweep_runs.Sweep(spec, overrides, rates, given.seeds, workdir, stop)
    made_by = {
        "command": shlex.join(["python", "-m", "mixer.sweep", *sys.argv[1:]]),
        "config": spec,
        "overrides": overrides,
        "eval_crop": config.input.eval_crop,
        "averaged": bool(config.ema_decay),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"mixer": mixer.__version__} | {name: importlib.metadata.version(name) for name in ("jax", "flax")},
    }
    if others := sweep_results.other_tasks(workdir, names):
        print(
            f"the table in {workdir} will no longer have {', '.join(others)}: give these to --tasks too; runs that are "
            "done are not trained again"
        )
    outcomes: dict[str, Outcome] = {}
    try:
        for name, outcome in sweep.outcomes():
            outcomes[name] = outcome
            sweep_results.write(workdir, outcomes, row, made_by)
    except preemption.PreemptedError as preempted:
        print(f"{preempted}; the same command continues the sweep")
        sys.exit(preemption.EXIT_STATUS)
    note = sweep_results.note(row, config.input.eval_crop, averaged=bool(config.ema_decay))
    print(f"\n{sweep_results.table(outcomes, row)}\n\n{note}")
    print(f"The table and what made it are in {workdir}/results.md and results.json")


def _spec_and_overrides() -> tuple[str, dict[str, Any]]:
    """Returns the config file with its arguments, and the values that the command line changes.

    Raises:
      UserError: they set what the sweep sets itself.
    """
    spec, overrides = command_line.spec_and_overrides()
    if wrong := [name for name in _SET_HERE if name in overrides]:
        raise UserError(f"--config.{wrong[0]} is set by the sweep itself; {_SET_HERE[wrong[0]]}")
    if "task=" in spec.partition(":")[2]:
        raise UserError(f"--config {spec}: task is set by the sweep itself; give --tasks")
    return spec, overrides


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags)


if __name__ == "__main__":
    run()
