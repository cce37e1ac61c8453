"""The runs of a sweep: for each task a run for every learning rate, then one for every seed with the best of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath, epy
from ml_collections import ConfigDict

from mixer import series
from mixer.config import command_line, config_file, tasks
from mixer.runtime.errors import UserError
from mixer.transfer.sweep_results import Outcome

with epy.lazy_imports():  # they import JAX or TensorFlow, for which --help does not wait
    from mixer.config import checks
    from mixer.runtime import preemption


def choose(grid: dict[float, float | None]) -> float | None:
    """Returns the learning rate with the highest accuracy, the smallest of equals; None if all diverged."""
    done = {rate: accuracy for rate, accuracy in grid.items() if accuracy is not None}
    return min(done, key=lambda rate: (-done[rate], rate), default=None)


def of_task(spec: str, overrides: dict[str, Any], name: str) -> ConfigDict:
    """Returns the config of a task, unchecked.

    Args:
      spec: the config file with its arguments, to which the task is added.
      overrides: values that replace those of the file, by dotted name.
      name: the task's full name.

    Raises:
      UserError: the file does not read its argument task, or raises an error itself.
    """
    path, _, arguments = spec.partition(":")
    config = config_file.run(f"{path}:{arguments}{',' if arguments else ''}task={name}")
    if config.input.dataset != tasks.TASKS[name].dataset:
        raise UserError(f"--config {path} ignores its argument task={name}; give configs/finetune.py")
    return command_line.with_overrides(config, overrides)


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
          UserError: a config is wrong, its data is not there, or a folder holds a run of another config or on other
            data.
        """
        self._spec, self._overrides, self._workdir, self._stop = spec, overrides, epath.Path(workdir), stop
        self._rates, self._seeds = {name: sorted(set(given)) for name, given in rates.items()}, range(num_seeds)
        # Of each task, and whether while its learning rate is chosen.
        self._data = {
            (name, dev): series.opened(self._config(name, self._rates[name][0], 0, dev), self._workdir / "cache")
            for name in rates
            for dev in (True, False)
        }
        for name in rates:
            finals = [run for rate in self._rates[name] for run in self._final_runs(name, rate)]
            for run in (*self._grid_runs(name).values(), *finals):
                run.result()

    def outcomes(self) -> Iterator[tuple[str, Outcome]]:
        """Trains the runs that are not done. Yields the name and outcome of each task as soon as it is complete.

        Raises:
          UserError: a run cannot go on, or every learning rate of a task led to a loss that is not finite.
          PreemptedError: the sweep was asked to stop, and the run that was under way is saved.
        """
        runs = sum((len(rates) if len(rates) > 1 else 0) + len(self._seeds) for rates in self._rates.values())
        of_all = series.Series(runs, self._stop)
        for name, rates in self._rates.items():
            runs_of_grid = self._grid_runs(name)
            of_all.expect([*runs_of_grid.values(), *(run for rate in rates for run in self._final_runs(name, rate))])
            results = {rate: of_all.finished(run) for rate, run in runs_of_grid.items()}
            grid = {rate: result.get(runs_of_grid[rate].metric) for rate, result in results.items()}
            chosen = choose(grid) if grid else rates[0]
            if chosen is None:
                raise UserError(f"{name}: the loss was not finite with any learning rate; give lower --learning_rates")
            final_runs = self._final_runs(name, chosen)
            finals = [of_all.finished(run) for run in final_runs]
            counts = [int(final["val/count"]) for final in finals if final]
            yield (
                name,
                Outcome(
                    grid=grid,
                    dev_count=int(results[chosen]["val/count"]) if grid else None,
                    chosen=chosen,
                    seeds=[final.get(run.metric) for run, final in zip(final_runs, finals, strict=True)],
                    count=counts[0] if counts else None,
                ),
            )

    def _config(self, name: str, rate: float, seed: int, dev: bool) -> ConfigDict:
        """Returns the config of a run: on the dev split if `dev`, to choose the learning rate; else of a final run."""
        task, config = tasks.TASKS[name], of_task(self._spec, self._overrides, name)
        config.input.train_split = task.sweep_train if dev else task.train
        config.input.eval_split = task.sweep_dev if dev else task.test
        config.optimizer.learning_rate, config.seed = rate, seed
        return checks.checked(config)

    def _run(self, name: str, label: str, rate: float, seed: int, dev: bool) -> series.PlannedRun:
        config = self._config(name, rate, seed, dev)
        title = f"{name}, learning rate {rate}" + ("" if dev else f", seed {seed}")
        return series.PlannedRun(title, self._workdir / name / label, config, self._data[name, dev])

    def _grid_runs(self, name: str) -> dict[float, series.PlannedRun]:
        """Returns the runs on the dev split by learning rate; none if there is only one rate."""
        rates = self._rates[name]
        return {rate: self._run(name, f"lr_{rate}", rate, 0, dev=True) for rate in rates if len(rates) > 1}

    def _final_runs(self, name: str, rate: float) -> list[series.PlannedRun]:
        """Returns a run for each seed. Its folder names the learning rate too: with a longer grid another may win."""
        return [self._run(name, f"lr_{rate}_seed_{seed}", rate, seed, dev=False) for seed in self._seeds]
