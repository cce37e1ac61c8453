"""Checkpoints through Orbax. They are saved in the background, and the newest one that is whole is restored."""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
from etils import epath

from mixer.runtime import bucket, files, json_text
from mixer.runtime.errors import UserError, ignore_closed_loops, root_logger_kept
from mixer.training import checkpoint_arrays, integrity, line_metrics
from mixer.training.step import TrainState

with root_logger_kept():
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, each in `workdir`/checkpoints/STEP."""

    def __init__(
        self,
        workdir: epath.PathLike,
        keep_last: int,
        keep_every: int,
        keep_best: int,
        on_error: str = "stop",
        best_metric: str = "val/accuracy",
    ):
        """Opens the folder.

        Args:
          workdir: the run's folder.
          keep_last: how many of the newest checkpoints to keep.
          keep_every: keep the first checkpoint at or after each multiple of so many steps; 0 for none.
          keep_best: how many of the most accurate checkpoints to keep; 0 for none.
          on_error: what to do when a checkpoint cannot be written: "stop" or "continue". Either way the older
            checkpoints remain, because Orbax deletes a checkpoint only after a newer one is committed.
          best_metric: the metric by which `keep_best` ranks.

        Raises:
          UserError: the folder cannot be read or made.
        """
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep_last)]
        if keep_every:
            kept.append(_FirstOfEvery(keep_every))
        if keep_best:
            kept.append(_MostAccurate(keep_best, best_metric))
        self.folder, self._best_metric = integrity.folder_of(workdir), best_metric
        self._kept = policies.AnyPreservationPolicy(kept)
        self._raises = on_error == "stop"
        self._continues = on_error == "continue"
        self._saving: int | None = None  # the step that is being written
        self._newest: int | None = None  # the step that was saved last
        self._problem = ""  # why the newest checkpoint could not be written
        try:
            with bucket.as_os_errors(self.folder):
                self._manager: ocp.CheckpointManager | None = self._open()
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be opened ({error.strerror}): make it readable and writable"
            ) from None

    def _open(self) -> ocp.CheckpointManager:
        ignore_closed_loops()
        if jax.process_index() == 0:
            if bucket.is_remote(self.folder):
                integrity.commit_complete(self.folder)
            _delete_damaged_metrics(self.folder)
        integrity.on_all_hosts(True)  # the others wait for the first
        # With use_replica_parallel, each host writes a part of a replicated array. On one host this saves no time, but
        # the slices must be compiled before the first save, and a preemption may request that save.
        handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=jax.process_count() > 1)
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
        return ocp.CheckpointManager(
            self.folder,
            item_handlers=integrity.in_all_or_none(ocp.StandardCheckpointHandler()),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                # `most_accurate` ranks by it; the policy does not. Orbax writes the metrics only if there is one, and
                # without them a restarted run would not know its best checkpoints.
                best_fn=lambda metrics: metrics.get(self._best_metric, -1.0),
                # In a bucket, Orbax would also delete checkpoints whose commit mark is lost. There the remains of a
                # save that was cut off stay until the run saves the same step again.
                cleanup_tmp_directories=not bucket.is_remote(self.folder),
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_file_list,
                    # Else, if the folders cannot be made, the threads that wait for them keep the process for minutes.
                    create_directories_asynchronously=False,
                ),
            ),
        )

    def _write_file_list(self) -> None:
        """Lists the checkpoint's files. One host calls it when all is written and the checkpoint not yet committed."""
        for folder in self._unfinished(self._saving):
            integrity.write_list(folder)

    def _unfinished(self, step: int | None) -> list[epath.Path]:
        """Returns the folder of a checkpoint that is being written. In a bucket it has its last name already."""
        if bucket.is_remote(self.folder):
            return [self.folder / str(step)]
        return [path for path in self.folder.iterdir() if path.name.startswith(f"{step}.orbax-checkpoint-tmp")]

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Copies the state to the host and returns. A thread writes the copy. A step is saved only once.

        Args:
          state: of the run, on the devices.
          metrics: of the same step. Only a checkpoint with an accuracy can become one of the best.

        Raises:
          UserError: this checkpoint or the last one cannot be written, and on_error is "stop".
        """
        self.wait()
        if self._newest == (step := int(state.step)):
            return
        accuracy = metrics.get(self._best_metric, math.nan)
        # Orbax would write NaN, which is not JSON.
        best = {self._best_metric: accuracy} if math.isfinite(accuracy) else {}
        fields = checkpoint_arrays.fields(state)
        saved = {**fields, integrity.CHECKSUMS: integrity.computed_checksums(fields, state.step.sharding)}
        self._saving, self._newest, self._problem = step, step, ""
        try:
            self._manager = self._manager or self._open()
            self._manager.save(self._saving, args=ocp.args.StandardSave(saved), metrics=best, force=True)
        except Exception as error:  # Orbax passes on every error of the file system
            self._failed(error)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Gives a checkpoint the accuracy that was measured only later, as after a stop during an evaluation.

        Args:
          step: of the checkpoint; nothing happens if there is none.
          metrics: of this step.

        Raises:
          OSError: it cannot be written.
        """
        accuracy = metrics.get(self._best_metric, math.nan)
        if self._manager is None or step not in self._manager.all_steps() or not math.isfinite(accuracy):
            return
        if jax.process_index() == 0:
            with bucket.as_os_errors(self.folder):
                files.write_text(_accuracy_file(self.folder, step), json_text.dumps({self._best_metric: accuracy}))
        integrity.on_all_hosts(True)  # the others wait for the first
        self._manager.reload()

    def _failed(self, error: Exception) -> None:
        """Removes the part of a checkpoint that was written. Then raises UserError, or warns.

        Orbax also fails if it has written the checkpoint and cannot delete an older one.
        """
        step, self._saving = self._saving, None
        if self._manager is not None:
            with contextlib.suppress(Exception):  # close() raises the same error again
                self._manager.close()
        self._manager = None  # the next save opens a new one, which also deletes temporary folders
        written = False
        with contextlib.suppress(OSError), bucket.as_os_errors():
            if bucket.is_remote(self.folder):
                written = integrity.is_committed(self.folder / str(step))
            else:  # there it gets its name last
                written = step in integrity.steps_of(self.folder)
            for folder in () if written else self._unfinished(step):
                folder.rmtree()
        what = "was written, but an older one could not be deleted from" if written else "could not be written to"
        remain = "" if written else "; the older ones remain"
        problem = f"checkpoint {step} {what} {self.folder} ({integrity.reason_of(error)}){remain}"
        if not (written and self._continues):  # a run that goes on needs no room, not even for its last checkpoint
            self._problem = problem
            if self._raises:
                self._raise()
        _log.warning("%s.", problem)

    def _raise(self) -> NoReturn:
        raise UserError(
            f"{self._problem}: make it possible and run the same command again; with config.checkpoint.on_error="
            "continue a run goes on, unless this checkpoint is the last"
        ) from None

    def restore(self, shapes: TrainState, shardings: TrainState) -> TrainState | None:
        """Returns the newest whole state with these shardings; None if the run has no checkpoint.

        Deletes the other checkpoints that are of no use: those that are newer, because the run will save these steps
        again, and those that are not whole. A process that is killed while it deletes a checkpoint leaves such a one.

        Raises:
          UserError: no checkpoint can be read, or they are those of a run with other arrays. The run must not silently
            start again at step 0.
        """
        manager = self._manager
        assert manager is not None
        steps = integrity.steps_of(self.folder)[::-1]

        def read(step: int) -> dict[str, Any]:
            metadata = manager.item_metadata(step)
            wanted = checkpoint_arrays.as_stored(shapes, metadata)
            checkpoint_arrays.check_shapes(metadata, checkpoint_arrays.fields(wanted), self.folder)
            target = checkpoint_arrays.target(wanted, shardings)
            stored = checkpoint_arrays.in_structure(target, metadata.tree)
            restored = manager.restore(step, args=ocp.args.StandardRestore(stored))
            arrays: dict[str, Any] = checkpoint_arrays.in_structure(restored, target)
            return arrays

        for step, saved in integrity.readable(self.folder, steps, read):
            # Only now, when one could be read. If none can, all remain: somebody may be able to repair one.
            for other in steps:
                if other > step or not integrity.on_all_hosts(not integrity.fault(self.folder / str(other))):
                    self._delete(other)
            if "line_sums" not in saved:
                saved["line_sums"] = jax.jit(line_metrics.no_sums, out_shardings=shardings.line_sums)()
            return shapes.replace(**{name: saved[name] for name in checkpoint_arrays.fields(shapes)})
        if steps:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self.folder} can be read (steps {steps[-1]} to {steps[0]}); "
                "restore them from a copy, or give another --workdir to start a new run"
            )
        return None

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint. Orbax does not know one in a bucket whose commit mark is lost."""
        if self._manager is not None and step in self._manager.all_steps():
            self._manager.delete(step)
        elif jax.process_index() == 0:
            (self.folder / str(step)).rmtree()

    def check(self) -> None:
        """Checks whether a save in the background has failed. Does not wait for a save that is still running.

        Raises:
          UserError: it has failed, and on_error is "stop".
        """
        if self._saving is not None and self._manager is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the newest checkpoint is on the disk.

        Raises:
          UserError: it cannot be written, and on_error is "stop".
        """
        if self._manager is not None and self._saving is not None:
            try:
                self._manager.wait_until_finished()
                self._saving = None
            except Exception as error:
                self._failed(error)

    def forget_accuracies(self) -> None:
        """Forgets how accurate the checkpoints are, as where this will be measured otherwise from here on."""
        if self._manager is None:
            return
        self._manager.close()
        if jax.process_index() == 0:
            for step in integrity.steps_of(self.folder):
                _accuracy_file(self.folder, step).unlink(missing_ok=True)
        self._manager = self._open()

    def most_accurate(self) -> epath.Path | None:
        """Returns the folder of the most accurate checkpoint, the newest of equals; None if none has an accuracy."""
        best = self._manager.best_step() if self._manager else None
        if best is None or self._manager is None or self._best_metric not in (self._manager.metrics(best) or {}):
            return None
        return self.folder / str(best)

    def settle(self) -> None:
        """Waits until the run's last checkpoint is on the disk. From here on `on_error` is "stop".

        Raises:
          UserError: it could not be written.
        """
        self._raises = True
        self.wait()
        if self._problem:
            self._raise()

    def close(self) -> None:
        """Waits for the newest checkpoint and ends the background threads. If the save fails now, it only warns."""
        self._raises = False
        self.wait()
        if self._manager is not None:
            self._manager.close()


@dataclasses.dataclass(frozen=True)
class _MostAccurate(policies.PreservationPolicy):
    """Keeps the n most accurate checkpoints. Orbax's own BestN expects an accuracy in every checkpoint."""

    n: int
    metric: str

    def should_preserve(self, checkpoints: Sequence[Any], *, context: policies.PreservationContext) -> Sequence[bool]:
        evaluated = [info for info in checkpoints if self.metric in (info.metrics or {})]
        best = {info.step for info in sorted(evaluated, key=lambda info: info.metrics[self.metric])[-self.n :]}
        return [info.step in best for info in checkpoints]


@dataclasses.dataclass(frozen=True)
class _FirstOfEvery(policies.PreservationPolicy):
    """Keeps the first checkpoint at or after each multiple of n steps. Orbax's EveryNSteps keeps multiples alone."""

    n: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: policies.PreservationContext) -> Sequence[bool]:
        multiples = [0, *(info.step // self.n for info in checkpoints)]  # each the last one that was reached
        return [reached > before for before, reached in itertools.pairwise(multiples)]


def _accuracy_file(folder: epath.Path, step: int) -> epath.Path:
    """Returns where Orbax keeps the metrics of a checkpoint."""
    return folder / str(step) / "metrics" / "metrics"


def _delete_damaged_metrics(folder: epath.Path) -> None:
    """Deletes the metrics of a checkpoint if they are not JSON.

    Orbax reads the metrics of all checkpoints when it opens the folder, and fails if it cannot parse one.
    """
    for step in integrity.steps_of(folder):
        path = _accuracy_file(folder, step)
        try:
            json.loads(files.read_bytes(path))
        except FileNotFoundError:  # a checkpoint without an accuracy
            continue
        except ValueError:
            _log.warning("The metrics of checkpoint %s cannot be read: it does not count among the best.", path)
            path.unlink()
