"""Checkpoints through orbax: written in the background, and restored from the newest that is whole."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from mixer.runtime.errors import UserError
from mixer.training import integrity
from mixer.training.step import TrainState

_log = logging.getLogger(__name__)

BEST_METRIC = "val/accuracy"


class Checkpoints:
    """The checkpoints of one run, one folder a step below `workdir`/checkpoints."""

    def __init__(
        self, workdir: epath.PathLike, keep_last: int, keep_every: int, keep_best: int, on_error: str = "stop"
    ):
        """Opens the folder.

        Args:
          workdir: the run's folder.
          keep_last: how many of the newest stay.
          keep_every: every one whose step this divides stays; 0 for none.
          keep_best: how many of the most accurate stay; 0 for none.
          on_error: "stop" or "continue", when a checkpoint cannot be written. An older one is deleted only when the one
            that takes its place is committed, so either way those that were there remain.
        """
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep_last)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        if keep_best:
            kept.append(_MostAccurate(keep_best))
        self.folder = epath.Path(workdir).resolve() / "checkpoints"
        self._kept = policies.AnyPreservationPolicy(kept)
        self._stops_on_error = on_error == "stop"
        self._saving: int | None = None  # the step that is being written
        self._problem = ""  # why the newest could not be written
        self._manager: ocp.CheckpointManager | None = self._open()

    def _open(self) -> ocp.CheckpointManager:
        _forget_damaged_metrics(self.folder)
        # Several hosts write a part of each copied array each. On one host that gains nothing, and the slicing has to
        # be compiled before the first save, which may be one that a preemption asks for.
        handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=jax.process_count() > 1)
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                # Unused, but without it orbax does not write the metrics, and a restart would forget the best.
                best_fn=lambda metrics: metrics.get(BEST_METRIC, -1.0),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def _seal(self) -> None:
        """Called by orbax, on one host, when all is written and the folder does not have its final name yet."""
        for folder in self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            integrity.write_list(folder)

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Copies the state to the host and returns; the rest happens in the background.

        Args:
          state: of the run, on the devices.
          metrics: of this very step; an accuracy among them makes it a candidate for the best.

        Raises:
          UserError: this checkpoint or the one before cannot be written, and that is to stop the run.
        """
        self.wait()
        best = {BEST_METRIC: metrics[BEST_METRIC]} if BEST_METRIC in metrics else {}
        saved = {
            **_fields(state),
            integrity.CHECKSUMS: integrity.computed(_fields(state), state.step.sharding),
        }
        self._saving, self._problem = int(state.step), ""
        try:
            self._manager = self._manager or self._open()
            self._manager.save(self._saving, args=ocp.args.StandardSave(saved), metrics=best, force=True)
        except Exception as error:  # orbax raises whatever the file system has to say
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        step, self._saving = self._saving, None
        if self._manager is not None:
            with contextlib.suppress(Exception):  # it says the same again
                self._manager.close()
        self._manager = None  # the next one removes what is left of this attempt
        with contextlib.suppress(OSError):
            for folder in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
                folder.rmtree()
        reason = integrity.reason_of(error)
        self._problem = f"checkpoint {step} could not be written to {self.folder} ({reason}); those before it stand"
        if self._stops_on_error:
            self._raise()
        _log.warning("%s.", self._problem)

    def _raise(self) -> NoReturn:
        raise UserError(
            f"{self._problem}: make it possible and run the same command again; with config.checkpoint.on_error="
            "continue a run goes on without, to its last one"
        ) from None

    def restore(self, shapes: TrainState, shardings: TrainState) -> TrainState | None:
        """Returns the newest state that is whole, laid out as `shardings` says; None when the run has none yet.

        What is not whole is deleted once a whole one was read: the run is about to write it again, or it is what a kill
        left of a deletion.

        Raises:
          UserError: there are checkpoints and none can be read. Starting from zero silently would lose the run.
        """
        manager = self._manager or self._open()
        steps = sorted(manager.all_steps(), reverse=True)
        checksums = jax.eval_shape(integrity.checksums, _fields(shapes))
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            {**_fields(shapes), integrity.CHECKSUMS: checksums},
            {**_fields(shardings), integrity.CHECKSUMS: jax.tree.map(lambda _: shardings.step, checksums)},
        )
        args = ocp.args.StandardRestore(target)
        for step, saved in integrity.readable(self.folder, steps, lambda step: manager.restore(step, args=args)):
            for other in steps:
                if other > step or not integrity.on_all_hosts(not integrity.fault(self.folder / str(other))):
                    manager.delete(other)
            return shapes.replace(**{name: saved[name] for name in _fields(shapes)})
        if steps:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self.folder} can be read (steps {steps[-1]} to {steps[0]}); "
                "restore them from a copy, or give another --workdir to start anew"
            )
        return None

    def check(self) -> None:
        """Looks whether a save in the background has failed; does not wait for one that is under way.

        Raises:
          UserError: it has, and that is to stop the run.
        """
        if self._saving is not None and self._manager is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when every save has reached the disk.

        Raises:
          UserError: it could not, and that is to stop the run.
        """
        if self._manager is not None and self._saving is not None:
            try:
                self._manager.wait_until_finished()
                self._saving = None
            except Exception as error:
                self._failed(error)

    def settle(self) -> None:
        """Waits for the newest, which has to reach the disk whatever `on_error` says: there is none to come.

        Raises:
          UserError: it could not.
        """
        self._stops_on_error = True
        self.wait()
        if self._problem:
            self._raise()

    def close(self) -> None:
        """Waits, then stops the background threads; a save that fails now is only told of."""
        self._stops_on_error = False
        self.wait()
        if self._manager is not None:
            self._manager.close()


def has_checkpoints(workdir: epath.PathLike) -> bool:
    """Whether a run has checkpoints, whole or not: then it has begun."""
    folder = epath.Path(workdir) / "checkpoints"
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


@dataclasses.dataclass(frozen=True)
class _MostAccurate(policies.PreservationPolicy):
    """Keeps the n most accurate; orbax's BestN takes every checkpoint to have been evaluated."""

    n: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: policies.PreservationContext) -> Sequence[bool]:
        evaluated = [info for info in checkpoints if BEST_METRIC in (info.metrics or {})]
        best = {info.step for info in sorted(evaluated, key=lambda info: info.metrics[BEST_METRIC])[-self.n :]}
        return [info.step in best for info in checkpoints]


def _forget_damaged_metrics(folder: epath.Path) -> None:
    """orbax reads every checkpoint's metrics when it starts, and stops at the first that it cannot parse."""
    for path in folder.glob("*/metrics/metrics") if jax.process_index() == 0 else ():
        try:
            json.loads(path.read_text())
        except ValueError:
            _log.warning("The metrics of checkpoint %s cannot be read: it does not count among the best.", path)
            path.unlink()


def load_params(workdir: epath.PathLike, ema: bool = False, step: int | None = None) -> tuple[int, Any]:
    """Reads parameters of a run as NumPy arrays.

    Args:
      workdir: the run's folder.
      ema: the averaged ones.
      step: of which checkpoint; the newest that can be read if not given.

    Returns:
      The checkpoint's step, and the parameters.

    Raises:
      UserError: the folder holds no checkpoint that can be read and has them.
    """
    key = "ema_params" if ema else "params"
    found, saved = _load(workdir, [key], step)
    return found, saved[key]


def load_state(workdir: epath.PathLike) -> tuple[int, dict[str, Any]]:
    """Reads the newest whole state of a run, by the names of its fields, as NumPy arrays; returns its step and it.

    Raises:
      UserError: the folder holds no checkpoint that can be read.
    """
    return _load(workdir, None, None)


def _load(workdir: epath.PathLike, fields: list[str] | None, step: int | None) -> tuple[int, dict[str, Any]]:
    """Reads these fields of a state, or all."""
    folder = epath.Path(workdir).resolve() / "checkpoints"

    def read(step: int) -> dict[str, Any]:
        tree = manager.item_metadata(step).tree
        names = fields or list(tree[integrity.CHECKSUMS])
        for name in names:
            if name not in tree:
                raise UserError(f"{workdir} holds no {name} at step {step}: it was trained with config.ema_decay=0")
        wanted = {name: tree[name] for name in names}
        wanted[integrity.CHECKSUMS] = {name: tree[integrity.CHECKSUMS][name] for name in names}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
        return manager.restore(step, args=args)

    if folder.is_dir():
        options = ocp.CheckpointManagerOptions(create=False)
        with ocp.CheckpointManager(folder, item_handlers=ocp.PyTreeCheckpointHandler(), options=options) as manager:
            steps = sorted(manager.all_steps(), reverse=True) if step is None else [step]
            for found, saved in integrity.readable(folder, steps, read):
                del saved[integrity.CHECKSUMS]
                return found, saved
    which = "checkpoint" if step is None else f"checkpoint of step {step}"
    what = f" with {', '.join(fields)}" if fields else ""
    raise UserError(f"{workdir} holds no {which}{what} that can be read; give the --workdir of an earlier run")


def _fields(state: TrainState) -> dict[str, Any]:
    """The state's fields that hold arrays: an average need not be kept."""
    return {name: value for name, value in vars(state).items() if jax.tree.leaves(value)}
