"""Runs that are trained one after the other in one process, each an ordinary run in a folder of its own.

A run that is done is not trained again, and one that was interrupted continues.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from etils import epath, epy
from ml_collections import ConfigDict

from mixer.config import durations
from mixer.runtime import files
from mixer.runtime.errors import DivergedError, UserError
from mixer.train import train
from mixer.training.console import Console
from mixer.training.metrics import read_metrics

with epy.lazy_imports():  # they import JAX or TensorFlow, for which --help does not wait
    import mixer.run
    from mixer.config import run_folder
    from mixer.data import readers
    from mixer.runtime import preemption
    from mixer.training import checkpoint_reader, facts, history
    from mixer.transfer import init_from

_SPLITS = ("train_split", "eval_split")


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
      num_examples: for training.
      class_names: in the order of the labels.
      multi_label: whether an example has a set of labels.
      facts: of both splits (see `facts.of_data`), by which other data are known.
    """

    num_examples: int
    class_names: Sequence[str]
    multi_label: bool
    facts: Mapping[str, str]


def opened(config: ConfigDict, cache: epath.PathLike) -> Data:
    """Opens the data of a run, so that what is missing is told before another run begins.

    Raises:
      UserError: it cannot be opened.
    """
    train, evaluated = (readers.open_source(config.input, config.input[split], cache) for split in _SPLITS)
    of_both = facts.of_data(train, {"val": [evaluated]})
    return Data(train.num_examples, train.class_names, train.multi_label, of_both)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a series.

    Attributes:
      title: what the lines that it prints begin with.
      folder: of the run.
      config: from `checks.checked`.
      data: that the config names.
    """

    title: str
    folder: epath.Path
    config: ConfigDict
    data: Data

    @property
    def total_steps(self) -> int:
        """The length of the run. Raises UserError if its warm-up is longer."""
        return durations.all_steps(self.config, self.data.num_examples).total

    @property
    def metric(self) -> str:
        """The accuracy that counts."""
        return mixer.run.best_metric(self.config, multi_label=self.data.multi_label)

    def result(self) -> dict[str, float] | None:
        """Returns the evaluation of the last step; {} if the run diverged, None if it is not done. Compiles nothing.

        Raises:
          UserError: the folder holds a run of another config, or on other data; or the warm-up is longer than the run.
        """
        total = self.total_steps
        diverged = run_folder.diverged(self.folder) is not None
        evaluated = [line for line in read_metrics(self.folder) if line["step"] and "val/count" in line]
        saved = checkpoint_reader.steps_of(self.folder)
        if not (diverged or evaluated or saved):
            return None  # it has nothing to continue, so it may begin anew with another config
        before = history.settings(self.folder)
        config = init_from.with_token_width(self.config, None, before)
        # The folder has the run's own values; these stand in for those that an earlier version did not write.
        undecided = {"input.shuffle_block": 1, "model.dtype": "float32"}
        run_folder.check_same(run_folder.decided(config, before, undecided), self.folder, allow_change=None)
        starts, names = history.since_it_began(history.read(self.folder)), history.class_names(self.folder)
        changes = history.data_changes(starts, names, dict(self.data.facts), self.data.class_names)
        history.check_data(changes, self.folder, allow_change=None)
        tolerated = "max_nonfinite_steps"  # with more of them it may come through
        if diverged and before.get(tolerated, self.config[tolerated]) == self.config[tolerated]:
            return {}
        lines = [line for line in evaluated if line["step"] == total]
        # Metrics are written before a checkpoint, and whoever needs room deletes all checkpoints of a run. A save that
        # was cut off leaves a part of one.
        is_saved = total in saved or not checkpoint_reader.has_part(self.folder)
        return lines[-1] if lines and is_saved else None


class Series:
    """Trains the runs of a series, and tells how far it is."""

    def __init__(self, number: int, stop: preemption.Stop | None = None):
        """Prepares a series.

        Args:
          number: how many runs it has.
          stop: tells when to save and leave; never, if not given.
        """
        self._runs, self._stop = number, stop or preemption.Stop()
        self._number = 0  # of the current run
        self._began: dict[str, PlannedRun] = {}  # a run for each digest of weights from which runs began
        self._dtype: str | None = None  # of the runs so far, which the others take, also on another machine

    def expect(self, runs: Sequence[PlannedRun]) -> None:
        """Notes what some runs began with, so that one which is trained before their turn begins with the same."""
        for run in runs:
            self._dtype = self._dtype or _dtype(run)
            if digest := _digest_of_weights(run, done=run.result() is not None):
                self._began.setdefault(digest, run)

    def finished(self, run: PlannedRun) -> dict[str, float]:
        """Returns the result of the next run, after training it if it is not done; {} if it diverged.

        Raises:
          UserError: it cannot go on.
          PreemptedError: the series was asked to stop, and the run is saved.
        """
        self._number += 1
        prefix = f"[{self._number}/{self._runs}] {run.title}  "
        result = run.result()
        self._check_weights(run, done=result is not None)
        self._dtype = self._dtype or _dtype(run)
        if result is not None:
            _check_accuracy(run, result)
            said = f"done before, accuracy {result[run.metric]:.4f}" if result else "diverged before"
            Console(prefix).keep(said)
            return result
        steps_after = (self._runs - self._number) * run.total_steps  # if the runs to come are as long as this one
        files.delete(run.folder / run_folder.DIVERGED_FILE)  # of an attempt that tolerated less
        config = run.config
        if self._dtype:
            config = run_folder.decided(config, {}, {"model.dtype": self._dtype})
        try:
            result = train(config, run.folder, Console(prefix, steps_after), self._stop)
        except DivergedError as error:
            files.write_text(run.folder / run_folder.DIVERGED_FILE, f"{error}\n")
            Console(prefix).keep("diverged: the loss is not finite")
            return {}
        except UserError as error:
            raise UserError(f"{run.title}: {error}") from None
        finally:
            self._stop.work_ends()
            self._dtype = self._dtype or _dtype(run)
        _check_accuracy(run, result)
        return result

    def _check_weights(self, run: PlannedRun, *, done: bool) -> None:
        """Checks that a run began, or is to begin, from the weights of those before: the file may hold others since.

        Raises:
          UserError: it did not.
        """
        if run.config.init_from is None:
            return
        digest = _digest_of_weights(run, done=done)
        if digest is None:
            if done:  # of an earlier version
                return
            digest = facts.digest_of_weights(init_from.loaded(run.config).params)
        self._began.setdefault(digest, run)
        if len(self._began) > 1:
            first, other = self._began.values()
            raise UserError(
                f"config.init_from={run.config.init_from} holds other weights for {other.folder} than {first.folder} "
                "began from: give those weights again, or another --workdir"
            )


def _check_accuracy(run: PlannedRun, result: dict[str, float]) -> None:
    """Checks that a run that did not diverge has an accuracy.

    Raises:
      UserError: it has none.
    """
    if result and run.metric not in result:
        of_run = run.config.input
        raise UserError(
            f"{run.title}: no image of {of_run.dataset} {of_run.eval_split} has a label, so there is no {run.metric}: "
            "evaluate on a split with labels"
        )


def _dtype(run: PlannedRun) -> str | None:
    """Returns the dtype with which a run began; None if it did not."""
    return history.settings(run.folder).get("model.dtype")


def _digest_of_weights(run: PlannedRun, *, done: bool) -> str | None:
    """Returns the digest of the weights from which a run began; None if it did not, or if that is not known."""
    begun = done or checkpoint_reader.has_checkpoints(run.folder)  # an attempt that saved nothing does not count
    digest = history.first_weights(history.read(run.folder)).get("digest") if begun and run.config.init_from else None
    return None if digest is None else str(digest)
