"""The arrays of a checkpoint: which it holds, and whether they are those that a run needs."""

from typing import Any

import jax
from etils import epath

from mixer.runtime.errors import UserError
from mixer.training import integrity
from mixer.training.step import TrainState


def fields(state: TrainState) -> dict[str, Any]:
    """Returns the fields of the state that hold arrays. Without config.ema_decay, ema_params holds none."""
    return {name: value for name, value in vars(state).items() if jax.tree.leaves(value)}


def as_stored(shapes: TrainState, metadata: Any) -> TrainState:
    """Returns the shapes of what a checkpoint holds: one of 2026-11 or before has no `line_sums`."""
    names = {array.name for array in jax.tree.leaves(metadata.tree)}
    return shapes if "line_sums" in names else shapes.replace(line_sums=None)


def target(shapes: TrainState, shardings: TrainState) -> dict[str, Any]:
    """Returns shapes, dtypes and shardings of all that a checkpoint holds: the state's fields and their checksums."""
    checksums = jax.eval_shape(integrity.checksums, fields(shapes))
    wanted: dict[str, Any] = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        {**fields(shapes), integrity.CHECKSUMS: checksums},
        {
            **{name: getattr(shardings, name) for name in fields(shapes)},
            integrity.CHECKSUMS: jax.tree.map(lambda _: shardings.step, checksums),
        },
    )
    return wanted


def in_structure(tree: Any, of: Any) -> Any:
    """Returns the leaves of a tree in the structure of another, in which they have the same names.

    Parts of an optimizer that hold no arrays, such as weight decay, have no names. Orbax refuses a state that has them
    where the checkpoint has not, though all its arrays are there.
    """
    named = _named(tree)
    return jax.tree_util.tree_map_with_path(lambda path, _: named[_name(path)], of)


def _named(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    """Returns the name that Orbax gives to a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def check_shapes(metadata: Any, asked_for: dict[str, Any], folder: epath.Path) -> None:
    """Checks that a checkpoint, whose files are whole, has the arrays that the run needs, before any of them is read.

    Orbax would find the first difference while it reads the other arrays, and close its event loop. Then each of them
    prints "Event loop is closed" with a traceback: 2,900 lines for 80 arrays (orbax-checkpoint 0.12.8).

    Raises:
      UserError: an array is missing, is not asked for, or has another shape.
    """
    stored = {array.name: tuple(array.shape) for array in jax.tree.leaves(metadata.tree)}
    asked = {name: tuple(array.shape) for name, array in _named(asked_for).items()}
    stored = {name: shape for name, shape in stored.items() if not name.startswith(f"{integrity.CHECKSUMS}.")}
    differing = [name for name in sorted({*stored, *asked}) if stored.get(name) != asked.get(name)]
    if differing:
        name, more = min(differing, key=lambda name: not name.startswith("params.")), len(differing) - 1
        has = f"has the shape {stored[name]}" if name in stored else "is missing"
        asks = f"for {asked[name]}" if name in asked else "for none"
        raise UserError(
            f"the checkpoints in {folder} are sound, but of a run with other settings: {name} {has} there, and the "
            f"config asks {asks}" + (f" ({more} more differ)" if more else "") + "; give the settings that it began "
            f"with (see {folder.parent}/config.json), or another --workdir for a new run"
        )
