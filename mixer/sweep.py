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
import dataclasses
import importlib.metadata
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath, epy
from ml_collections import ConfigDict, config_flags

import mixer
from mixer.config import command_line, durations, help_text, paper, tasks
from mixer.runtime import bucket_check, files, streams
from mixer.runtime.errors import DivergedError, UserError
from mixer.train import train
from mixer.training.console import Console
from mixer.training.metrics import read_metrics
from mixer.transfer import sweep_results
from mixer.transfer.published import PUBLISHED
from mixer.transfer.sweep_results import Outcome

with epy.lazy_imports():  # they import JAX or TensorFlow, for which --help does not wait
    import jax

    from mixer.config import checks, run_folder
    from mixer.data import readers
    from mixer.runtime import compilation_cache, preemption
    from mixer.transfer import init_from

DIVERGED_FILE = "diverged.txt"  # in the folder of a run whose loss was no longer finite: what it said

# What the sweep itself sets, and what to do instead.
_SET_HERE = {
    "optimizer.learning_rate": "give --learning_rates",
    "seed": "give --seeds, their number",
    "input.dataset": "give --tasks",
    "input.train_split": "the rows of mixer/config/tasks.py have the splits",
    "input.eval_split": "the rows of mixer/config/tasks.py have the splits",
}


def choose(grid: dict[float, float | None]) -> float | None:
    """Returns the learning rate with the highest accuracy, the smallest of equals; None if all diverged."""
    done = {rate: accuracy for rate, accuracy in grid.items() if accuracy is not None}
    return min(done, key=lambda rate: (-done[rate], rate), default=None)


@dataclasses.dataclass(frozen=True)
class _Run:
    """One training run of the sweep."""

    title: str
    folder: epath.Path
    config: ConfigDict
    total_steps: int

    def result(self) -> dict[str, float] | None:
        """Returns the evaluation of the last step; {} if the run diverged, None if it is not done. Compiles nothing.

        Raises:
          UserError: the folder holds a run of another config.
        """
        if not files.exists(self.folder / run_folder.CONFIG_FILE):
            return None
        config = init_from.with_token_width(self.config, None, self.folder)
        run_folder.check_same(run_folder.with_shuffle_block(config, self.folder, otherwise=1), self.folder)
        if files.exists(self.folder / DIVERGED_FILE):
            return {}
        lines = [line for line in read_metrics(self.folder) if line["step"] == self.total_steps and "val/count" in line]
        return lines[-1] if lines else None


class Sweep:
    """The runs of all tasks. All of them are checked before the first one starts."""

    def __init__(
        self,
        spec: str,
        overrides: dict[str, Any],
        rates: Mapping[str, Sequence[float]],
        num_seeds: int,
        workdir: epath.PathLike,
        stop: preemption.Stop | None = None,
    ):
        """Checks every config, opens every dataset, and reads the results that are there.

        Args:
          spec: the config file with its arguments; the task is added to them.
          overrides: values that replace those of the file, by dotted name.
          rates: the learning rates of each task, by its full name.
          num_seeds: how many final runs each task has.
          workdir: the folder of all runs.
          stop: tells when to save and leave; never, if not given.

        Raises:
          UserError: a config is wrong, its data is not there, or a folder holds a run of another config.
        """
        self._spec, self._overrides, self._workdir = spec, overrides, epath.Path(workdir)
        self._stop = stop or preemption.Stop()
        self._rates, self._seeds = {name: sorted(set(given)) for name, given in rates.items()}, range(num_seeds)
        # Training images of each task, and whether while its learning rate is chosen.
        self._num_examples: dict[tuple[str, bool], int] = {}
        self._number, self._seconds, self._steps = 0, 0.0, 0  # number of the current run; time and steps spent so far
        for name in rates:
            for dev in (True, False):
                data = self._config(name, self._rates[name][0], 0, dev).input
                for split in (data.eval_split, data.train_split):
                    source = readers.open_source(data, split, self._workdir / "cache")
                self._num_examples[name, dev] = source.num_examples
            finals = [run for rate in self._rates[name] for run in self._final_runs(name, rate)]
            for run in (*self._grid_runs(name).values(), *finals):
                run.result()

    def outcomes(self) -> Iterator[tuple[str, Outcome]]:
        """Trains the runs that are not done. Yields the name and outcome of each task as soon as it is complete.

        Raises:
          UserError: a run cannot go on, or every learning rate of a task led to a loss that is not finite.
          PreemptedError: the sweep was asked to stop, and the run that was under way is saved.
        """
        for name, rates in self._rates.items():
            results = {rate: self._finished(run) for rate, run in self._grid_runs(name).items()}
            grid = {rate: result.get("val/accuracy") for rate, result in results.items()}
            chosen = choose(grid) if grid else rates[0]
            if chosen is None:
                raise UserError(f"{name}: the loss was not finite with any learning rate; give lower --learning_rates")
            finals = [self._finished(run) for run in self._final_runs(name, chosen)]
            counts = [int(final["val/count"]) for final in finals if final]
            yield (
                name,
                Outcome(
                    grid=grid,
                    dev_count=int(results[chosen]["val/count"]) if grid else None,
                    chosen=chosen,
                    seeds=[final.get("val/accuracy") for final in finals],
                    count=counts[0] if counts else None,
                ),
            )

    def _config(self, name: str, rate: float, seed: int, dev: bool) -> ConfigDict:
        """Returns the config of a run: on the dev split if `dev`, to choose the learning rate; else of a final run."""
        task = tasks.TASKS[name]
        path, _, arguments = self._spec.partition(":")
        config = command_line.run_file(f"{path}:{arguments}{',' if arguments else ''}task={name}")
        if config.input.dataset != task.dataset:
            raise UserError(f"--config {path} ignores its argument task={name}; give configs/finetune.py")
        config.update_from_flattened_dict(self._overrides)
        config.input.train_split = task.sweep_train if dev else task.train
        config.input.eval_split = task.sweep_dev if dev else task.test
        config.optimizer.learning_rate, config.seed = rate, seed
        return checks.checked(durations.one_unit_each(config, self._overrides))

    def _run(self, name: str, label: str, rate: float, seed: int, dev: bool) -> _Run:
        config = self._config(name, rate, seed, dev)
        title = f"{name}, learning rate {rate}" + ("" if dev else f", seed {seed}")
        total_steps = durations.steps(config, "total", self._num_examples[name, dev])
        return _Run(title, self._workdir / name / label, config, total_steps)

    def _grid_runs(self, name: str) -> dict[float, _Run]:
        """Returns the runs on the dev split by learning rate; none if there is only one rate."""
        rates = self._rates[name]
        return {rate: self._run(name, f"lr_{rate}", rate, 0, dev=True) for rate in rates if len(rates) > 1}

    def _final_runs(self, name: str, rate: float) -> list[_Run]:
        """Returns a run for each seed. Its folder names the learning rate too: with a longer grid another may win."""
        return [self._run(name, f"lr_{rate}_seed_{seed}", rate, seed, dev=False) for seed in self._seeds]

    def _finished(self, run: _Run) -> dict[str, float]:
        """Returns the result of a run, after training it if it is not done; {} if it diverged."""
        self._number += 1
        runs = sum((len(rates) if len(rates) > 1 else 0) + len(self._seeds) for rates in self._rates.values())
        prefix = f"[{self._number}/{runs}] {run.title}  "
        result = run.result()
        if result is not None:
            said = f"done before, accuracy {result['val/accuracy']:.4f}" if result else "diverged before"
            Console(prefix).keep(said)
            return result
        # This assumes that the runs to come are as long as this one and as fast as those before.
        left = (runs - self._number) * run.total_steps * self._seconds / max(self._steps, 1)
        before, lines = time.monotonic(), read_metrics(run.folder)
        try:
            result = train(run.config, run.folder, Console(prefix, left), self._stop)
        except DivergedError as error:
            files.write_text(run.folder / DIVERGED_FILE, f"{error}\n")
            Console(prefix).keep("diverged: the loss is not finite")
            return {}
        except UserError as error:
            raise UserError(f"{run.title}: {error}") from None
        finally:
            self._stop.work_ends()
        self._seconds += time.monotonic() - before
        self._steps += run.total_steps - (int(lines[-1]["step"]) if lines else 0)
        return result


# ------------------------------------------------------------------------------------------------------- command line


def _task_names(names: Sequence[str]) -> list[str]:
    """Returns the full names of tasks; "all" stands for the paper's five."""
    found = []
    for name in tasks.AVG5 if list(names) == ["all"] else names:
        try:
            full, task = tasks.find(name)
            task.check_trainable()
            if task.sweep_dev is None:
                raise ValueError(f"{full} has no dev split to choose by; train with configs/finetune.py:task={name}")
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
    """Returns the paper's results for this model and its pre-training data; None if the paper has none.

    The pre-training data comes from --pretraining, or from the name of published weights.
    """
    named = config.init_from.rpartition("-")[2] if config.init_from in PUBLISHED else ""
    try:
        return paper.find(config.model.variant, pretraining or named, config.input.image_size, config.input.eval_crop)
    except ValueError as error:
        if pretraining:
            raise UserError(f"--pretraining={pretraining}: {error}") from None
        return None


def define_flags() -> None:
    """Defines the command's flags."""
    with help_text.group("The runs", "--config finetune:model=b16,size=448 --config.init_from=B/16-i21k"):
        command_line.define_config_flag("finetune with its arguments, all but task")
        flags.DEFINE_list("tasks", ["all"], f"Of {', '.join(tasks.TASKS)}; or all: the paper's five.")
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
    config, _ = command_line.from_flags()
    spec, overrides = _spec_and_overrides()
    names = _task_names(given.tasks)
    chosen = None if given.learning_rates is None else _learning_rates(given.learning_rates)
    row = _paper_row(config, given.pretraining)
    bucket_check.check(given.workdir, for_run=True)
    workdir = epath.Path(given.workdir)
    # Several runs are the same program, which is compiled once and then read from here.
    compilation_cache.keep_compiled(workdir / "compiled")
    rates = {name: chosen or tasks.TASKS[name].learning_rates for name in names}
    streams.outlast()
    atexit.register(preemption.ignore)
    stop = preemption.Stop()
    stop.listen()
    sweep = Sweep(spec, overrides, rates, given.seeds, workdir, stop)
    made_by = {
        "command": shlex.join(["python", "-m", "mixer.sweep", *sys.argv[1:]]),
        "config": spec,
        "overrides": overrides,
        "eval_crop": config.input.eval_crop,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"mixer": mixer.__version__} | {name: importlib.metadata.version(name) for name in ("jax", "flax")},
    }
    outcomes: dict[str, Outcome] = {}
    try:
        for name, outcome in sweep.outcomes():
            outcomes[name] = outcome
            sweep_results.write(workdir, outcomes, row, made_by)
    except preemption.PreemptedError as preempted:
        print(f"{preempted}; the same command continues the sweep")
        sys.exit(preemption.EXIT_STATUS)
    print(f"\n{sweep_results.table(outcomes, row)}\n\n{sweep_results.note(row, config.input.eval_crop)}")
    print(f"The table and what made it are in {workdir}/results.md and results.json")


def _spec_and_overrides() -> tuple[str, dict[str, Any]]:
    """Returns the config file with its arguments, and the values that the command line changes.

    Raises:
      UserError: they set what the sweep sets itself.
    """
    flag = flags.FLAGS["config"]
    spec, overrides = config_flags.get_config_filename(flag), dict(config_flags.get_override_values(flag))
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
