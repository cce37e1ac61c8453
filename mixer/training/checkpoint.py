"""Checkpoints through orbax: written in the background, and restored from the newest that is whole."""

import dataclasses
import functools
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from mixer.errors import UserError, first_line
from mixer.training.step import TrainState

_log = logging.getLogger(__name__)

BEST_METRIC = "val/accuracy"

_CHECKSUMS = "checksums"


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
            kept.append(_MostAccurate(keep_best))
        self.folder = epath.Path(workdir).resolve() / "checkpoints"
        _forget_damaged_metrics(self.folder)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                # Unused, but without it orbax does not write the metrics, and a restart would forget the best.
                best_fn=lambda metrics: metrics.get(BEST_METRIC, -1.0),
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Copies the state to the host and returns; the rest happens in the background.

        Args:
          state: of the run, on the devices.
          metrics: of this very step; an accuracy among them makes it a candidate for the best.
        """
        best = {BEST_METRIC: metrics[BEST_METRIC]} if BEST_METRIC in metrics else {}
        saved = {**_fields(state), _CHECKSUMS: jax.jit(_checksums, out_shardings=state.step.sharding)(_fields(state))}
        self._manager.save(int(state.step), args=ocp.args.StandardSave(saved), metrics=best, force=True)

    def restore(self, shapes: TrainState, shardings: TrainState) -> TrainState | None:
        """Returns the newest state that can be read, laid out as `shardings` says; None when the run has none yet.

        Newer ones that cannot be read are deleted once an older one could: the run is about to write them again.

        Raises:
          UserError: there are checkpoints and none can be read. Starting from zero silently would lose the run.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        checksums = jax.eval_shape(_checksums, _fields(shapes))
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            {**_fields(shapes), _CHECKSUMS: checksums},
            {**_fields(shardings), _CHECKSUMS: jax.tree.map(lambda _: shardings.step, checksums)},
        )
        args = ocp.args.StandardRestore(target)
        for step, saved in _readable(steps, lambda step: self._manager.restore(step, args=args)):
            for damaged in steps[: steps.index(step)]:
                self._manager.delete(damaged)
            return shapes.replace(**{name: saved[name] for name in _fields(shapes)})
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
    folder, key = epath.Path(workdir).resolve() / "checkpoints", "ema_params" if ema else "params"

    def read(step: int) -> dict[str, Any]:
        tree = manager.item_metadata(step).tree
        if key not in tree:
            raise UserError(f"{workdir} holds no {key} at step {step}: it was trained with config.ema_decay=0")
        wanted = {key: tree[key], _CHECKSUMS: {key: tree[_CHECKSUMS][key]}}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
        return manager.restore(step, args=args)

    if folder.is_dir():
        options = ocp.CheckpointManagerOptions(create=False)
        with ocp.CheckpointManager(folder, item_handlers=ocp.PyTreeCheckpointHandler(), options=options) as manager:
            steps = sorted(manager.all_steps(), reverse=True) if step is None else [step]
            for found, saved in _readable(steps, read):
                return found, saved[key]
    which = "checkpoint" if step is None else f"checkpoint of step {step}"
    raise UserError(f"{workdir} holds no {which} with {key} that can be read; give the --workdir of an earlier run")


def _readable(steps: list[int], read: Callable[[int], dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the steps whose checkpoint can be read and is what was written, with what was read."""
    _ignore_late_readers()
    for step in steps:
        try:
            saved = read(step)
            _compare(saved)
        except UserError:
            raise
        except Exception as error:  # orbax raises whatever the damaged part meets
            reason = first_line(error).partition(" [tensorstore_spec")[0]
            _log.warning("Checkpoint %d skipped, it cannot be read: %s", step, reason)
        else:
            yield step, saved


@functools.cache
def _ignore_late_readers() -> None:
    """orbax gives up at the first array that it cannot read; what is still reading then complains on its own."""
    inner = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        frames = traceback.extract_tb(unraisable.exc_traceback)
        of_orbax = any("orbax" in frame.filename for frame in frames)
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            inner(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _fields(state: TrainState) -> dict[str, Any]:
    """The state's fields that hold arrays: an average need not be kept."""
    return {name: value for name, value in vars(state).items() if jax.tree.leaves(value)}


def _checksums(fields: dict[str, Any]) -> dict[str, Any]:
    """For each field the sum of the bits of each array, modulo 2^32: any one changed bit changes it.

    orbax guards its index and small arrays by checksums of its own, large arrays not.
    """

    def checksum(array: Any) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
        return jnp.sum(bits, dtype=jnp.uint32)

    return {name: jnp.stack([checksum(array) for array in jax.tree.leaves(tree)]) for name, tree in fields.items()}


def _compare(saved: dict[str, Any]) -> None:
    """Raises ValueError if what was read is not what was written."""
    expected = saved[_CHECKSUMS]
    found = jax.jit(_checksums)({name: saved[name] for name in expected})
    for name, values in expected.items():
        if not np.array_equal(values, found[name]):
            raise ValueError(f"{name} is not what was written, its checksum differs")
