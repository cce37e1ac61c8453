"""Checkpoints through orbax: written in the background, and restored from the newest that is whole."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from mixer.errors import UserError
from mixer.training.step import TrainState

BEST_METRIC = "val/accuracy"


class Checkpoints:
    """The checkpoints of one run, one folder a step below `workdir`/checkpoints."""

    def __init__(self, workdir: epath.PathLike, keep_last: int, keep_every: int, keep_best: int):
        """Keeps the newest `keep_last`, every one whose step `keep_every` divides, and the `keep_best` most accurate.

        0 for either of the latter two keeps none on that ground.
        """
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep_last)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        if keep_best:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[BEST_METRIC],
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self.folder = epath.Path(workdir).resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
            ),
        )

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Copies the state to the host and returns; the rest happens in the background.

        Args:
          state: of the run, on the devices.
          metrics: of this very step; an accuracy among them makes it a candidate for the best.
        """
        best = {BEST_METRIC: metrics[BEST_METRIC]} if BEST_METRIC in metrics else None
        self._manager.save(int(state.step), args=ocp.args.StandardSave(state), metrics=best, force=True)

    def restore(self, shapes: TrainState, shardings: TrainState) -> TrainState | None:
        """Returns the newest state that can be read, laid out as `shardings` says; None when the run has none yet.

        Raises:
          UserError: there are checkpoints and none can be read. Starting from zero silently would lose the run.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
        )
        for step in steps:
            try:
                return self._manager.restore(step, args=ocp.args.StandardRestore(target))
            except Exception as error:  # orbax raises whatever the damaged part meets
                logging.warning("Checkpoint %d skipped, it cannot be read: %s", step, _first_line(error))
        if steps:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self.folder} can be read (steps {steps[-1]} to {steps[0]}); "
                "restore them from a copy, or give another --workdir to start anew"
            )
        return None

    def wait(self) -> None:
        """Returns when every save has reached the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then stops the background threads."""
        self._manager.close()


def load_params(workdir: epath.PathLike, ema: bool = False) -> Any:
    """Reads the newest parameters of a run as NumPy arrays; the averaged ones if `ema`.

    Raises:
      UserError: the folder holds no checkpoint that can be read and has them.
    """
    folder = epath.Path(workdir).resolve() / "checkpoints"
    steps = sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True) if folder.is_dir() else []
    key = "ema_params" if ema else "params"
    for step in steps:
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                saved = checkpointer.metadata(folder / str(step) / "default").item_metadata.tree[key]
                args = ocp.args.PyTreeRestore(
                    item={key: saved},
                    restore_args={key: jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)},
                    partial_restore=True,
                )
                return checkpointer.restore(folder / str(step) / "default", args=args)[key]
        except Exception as error:
            logging.warning("Checkpoint %d skipped, it cannot be read: %s", step, _first_line(error))
    raise UserError(f"{workdir} holds no checkpoint with {key} that can be read; give the --workdir of an earlier run")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
