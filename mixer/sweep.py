"""The paper's fine-tuning protocol for several tasks: the learning rate by a dev split, then a few seeds, tested.

Every run is an ordinary `mixer.train.train` in a folder of its own. What is done is not done again: a run's result is
read from its folder.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from mixer import command_line, tasks
from mixer import config as configuration
from mixer.data import sources
from mixer.errors import DivergedError, UserError
from mixer.train import train
from mixer.training.metrics import Console, read_metrics
from mixer.transfer import load

DIVERGED_FILE = "diverged.txt"  # in the folder of a run whose loss was no longer finite: what it said


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out for a task; accuracies are shares.

    Attributes:
      grid: accuracy on the dev split by learning rate, None where the run diverged; empty where there was no choice.
      dev_count: images of the dev split; None where there was no choice.
      chosen: the learning rate.
      seeds: accuracy on the test split, one for each seed from 0; None where the run diverged.
      count: images of the test split; None where all diverged.
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


def choose(grid: dict[float, float | None]) -> float | None:
    """The learning rate with the highest accuracy, of equals the smallest; None if all diverged."""
    done = {rate: accuracy for rate, accuracy in grid.items() if accuracy is not None}
    return min(done, key=lambda rate: (-done[rate], rate), default=None)


@dataclasses.dataclass(frozen=True)
class _Run:
    title: str
    folder: epath.Path
    config: ConfigDict
    total_steps: int

    def result(self) -> dict[str, float] | None:
        """The evaluation of the last step, {} if the run diverged, None if it is not done. Nothing is compiled.

        Raises:
          UserError: the folder holds a run of another config.
        """
        if not (self.folder / configuration.CONFIG_FILE).exists():
            return None
        configuration.check_same(load.with_token_width(self.config, None, self.folder), self.folder)
        if (self.folder / DIVERGED_FILE).exists():
            return {}
        rows = [row for row in read_metrics(self.folder) if row["step"] == self.total_steps and "val/count" in row]
        return rows[-1] if rows else None


class Sweep:
    """The runs of all tasks, checked before the first of them begins."""

    def __init__(
        self,
        spec: str,
        overrides: dict[str, Any],
        rates: Mapping[str, Sequence[float]],
        num_seeds: int,
        workdir: epath.PathLike,
    ):
        """Checks every config, opens every dataset and looks into every folder.

        Args:
          spec: the config file and its arguments, to which the task is added.
          overrides: dotted names and values that replace those of the file.
          rates: each task's learning rates, by its full name.
          num_seeds: how many final runs.
          workdir: the folder of all runs.

        Raises:
          UserError: a config is wrong, its data is not there, or a folder holds a run of another config.
        """
        self._spec, self._overrides, self._workdir = spec, overrides, epath.Path(workdir)
        self._rates, self._seeds = {name: sorted(set(given)) for name, given in rates.items()}, range(num_seeds)
        self._num_examples: dict[
            tuple[str, bool], int
        ] = {}  # to train on: of a task, while its learning rate is chosen
        self._number, self._seconds, self._steps = 0, 0.0, 0  # of the run at work; spent and made in all so far
        for name in rates:
            for dev in (True, False):
                data = self._config(name, self._rates[name][0], 0, dev).input
                for split in (data.eval_split, data.train_split):
                    source = sources.open_source(data, split, self._workdir / "cache")
                self._num_examples[name, dev] = source.num_examples
            finals = [run for rate in self._rates[name] for run in self._final_runs(name, rate)]
            for run in (*self._grid_runs(name).values(), *finals):
                run.result()

    def outcomes(self) -> Iterator[tuple[str, Outcome]]:
        """Runs what is not done; yields the name and outcome of each task once it is.

        Raises:
          UserError: a run cannot go on, or every learning rate of a task led to a loss that is not finite.
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
        """The config of a run: of one for the choice of the learning rate if `dev`, else of a final one."""
        task = tasks.TASKS[name]
        path, _, arguments = self._spec.partition(":")
        config = command_line.run_file(f"{path}:{arguments}{',' if arguments else ''}task={name}")
        if config.input.dataset != task.dataset:
            raise UserError(f"--config {path} does not heed its argument task={name}; give configs/finetune.py")
        config.update_from_flattened_dict(self._overrides)
        config.input.train_split = task.sweep_train if dev else task.train
        config.input.eval_split = task.sweep_dev if dev else task.test
        config.optimizer.learning_rate, config.seed = rate, seed
        return configuration.checked(configuration.one_unit_each(config, self._overrides))

    def _run(self, name: str, label: str, rate: float, seed: int, dev: bool) -> _Run:
        config = self._config(name, rate, seed, dev)
        title = f"{name}, learning rate {rate}" + ("" if dev else f", seed {seed}")
        total_steps = configuration.steps(config, "total", self._num_examples[name, dev])
        return _Run(title, self._workdir / name / label, config, total_steps)

    def _grid_runs(self, name: str) -> dict[float, _Run]:
        """By learning rate; none where there is one alone, which needs no choice."""
        rates = self._rates[name]
        return {rate: self._run(name, f"lr_{rate}", rate, 0, dev=True) for rate in rates if len(rates) > 1}

    def _final_runs(self, name: str, rate: float) -> list[_Run]:
        """One for each seed; the folder names the learning rate too: with a longer grid another one may win."""
        return [self._run(name, f"lr_{rate}_seed_{seed}", rate, seed, dev=False) for seed in self._seeds]

    def _finished(self, run: _Run) -> dict[str, float]:
        """The result of a run, which is brought to its end first if need be; {} if it diverged."""
        self._number += 1
        runs = sum((len(rates) if len(rates) > 1 else 0) + len(self._seeds) for rates in self._rates.values())
        prefix = f"[{self._number}/{runs}] {run.title}  "
        result = run.result()
        if result is not None:
            said = f"done before, accuracy {result['val/accuracy']:.4f}" if result else "diverged before"
            Console(prefix).keep(said)
            return result
        # The runs that follow are taken to be as long as this one, and as fast as those so far.
        left = (runs - self._number) * run.total_steps * self._seconds / max(self._steps, 1)
        before, rows = time.monotonic(), read_metrics(run.folder)
        try:
            result = train(run.config, run.folder, Console(prefix, left))
        except DivergedError as error:
            (run.folder / DIVERGED_FILE).write_text(f"{error}\n")
            Console(prefix).keep("diverged: the loss is not finite")
            return {}
        except UserError as error:
            raise UserError(f"{run.title}: {error}") from None
        self._seconds += time.monotonic() - before
        self._steps += run.total_steps - (int(rows[-1]["step"]) if rows else 0)
        return result
