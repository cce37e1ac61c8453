"""Reads the checkpoints of a run without its devices: parameters and states as NumPy arrays."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from mixer.runtime.errors import UserError, library_logs_silenced, root_logger_kept
from mixer.training import integrity

with root_logger_kept():
    import orbax.checkpoint as ocp


def has_checkpoints(workdir: epath.PathLike) -> bool:
    """Tells whether a run has begun: whether it has checkpoints, whole or damaged.

    Raises:
      UserError: the folder cannot be read.
    """
    return bool(steps_of(workdir))


def has_part(workdir: epath.PathLike) -> bool:
    """Tells whether a run has a checkpoint or a part of one, as a save that was cut off leaves it.

    Raises:
      UserError: the folder cannot be read.
    """
    with _as_user_error(workdir):
        return integrity.has_files(integrity.folder_of(workdir))


def load_params(workdir: epath.PathLike, ema: bool = False, step: int | None = None) -> tuple[int, Any]:
    """Reads the parameters of a run.

    Args:
      workdir: the run's folder.
      ema: read the averaged parameters.
      step: of the checkpoint; by default the newest that is whole.

    Returns:
      The checkpoint's step, and the parameters as NumPy arrays.

    Raises:
      UserError: no checkpoint in the folder can be read, or it has no averaged parameters.
    """
    name = "ema_params" if ema else "params"
    found, saved = _load(workdir, [name], step)
    return found, saved[name]


def load_state(workdir: epath.PathLike) -> tuple[int, dict[str, Any]]:
    """Reads the newest whole state of a run.

    Returns:
      Its step, and the fields of the state by name, as NumPy arrays.

    Raises:
      UserError: no checkpoint in the folder can be read.
    """
    return _load(workdir, None, None)


@library_logs_silenced()
def _load(workdir: epath.PathLike, names: list[str] | None, step: int | None) -> tuple[int, dict[str, Any]]:
    """Reads some fields of a state, or all: those of one step, or of the newest whole checkpoint."""
    folder = integrity.folder_of(workdir)
    if stored := steps_of(workdir):
        options = ocp.CheckpointManagerOptions(create=False, read_only=True)
        handler = integrity.in_all_or_none(ocp.PyTreeCheckpointHandler())
        with ocp.CheckpointManager(folder, item_handlers=handler, options=options) as manager:
            steps = stored[::-1] if step is None else [step]
            for found, saved in integrity.readable(folder, steps, lambda step: _read_fields(manager, step, names)):
                del saved[integrity.CHECKSUMS]
                return found, saved
    which = "checkpoint" if step is None else f"checkpoint of step {step}"
    what = f" with {', '.join(names)}" if names else ""
    raise UserError(f"{workdir} holds no {which}{what} that can be read; give the folder of a run that has saved one")


def _read_fields(manager: ocp.CheckpointManager, step: int, names: list[str] | None) -> dict[str, Any]:
    """Reads fields of one checkpoint, and their checksums, as NumPy arrays.

    Raises:
      UserError: the checkpoint has no such field.
    """
    tree = manager.item_metadata(step).tree
    names = names or list(tree[integrity.CHECKSUMS])
    for name in names:
        if name not in tree:
            folder = epath.Path(manager.directory).parent
            raise UserError(f"{folder} holds no {name} at step {step}: it was trained with config.ema_decay=0")
    wanted = {name: tree[name] for name in names}
    wanted[integrity.CHECKSUMS] = {name: tree[integrity.CHECKSUMS][name] for name in names}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    only = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
    restored: dict[str, Any] = manager.restore(step, args=only)
    return restored


def steps_of(workdir: epath.PathLike) -> list[int]:
    """Returns the steps of a run's checkpoints, ascending. Raises UserError if the folder cannot be read."""
    with _as_user_error(workdir):
        return integrity.steps_of(integrity.folder_of(workdir))


@contextlib.contextmanager
def _as_user_error(workdir: epath.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"the checkpoints in {workdir} cannot be listed ({error.strerror})") from None
