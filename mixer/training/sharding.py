"""How the state of a run is placed on the mesh: copied to every device, or split over the devices."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training import mixing

_SMALLEST_SHARDED = 2**14  # elements; gathering a smaller array costs more than keeping it


def _copied(array: jax.ShapeDtypeStruct, mesh: Mesh) -> NamedSharding:
    return devices.replicated(mesh)


def _split(array: jax.ShapeDtypeStruct, mesh: Mesh) -> NamedSharding:
    """Splits an array along the longest axis that the number of devices divides (ZeRO-3, arXiv 1910.02054).

    XLA gathers it where it is used. Small arrays, and arrays without such an axis, are copied.
    """
    axes = [axis for axis, size in enumerate(array.shape) if size % mesh.size == 0]
    if not axes or array.size < _SMALLEST_SHARDED:
        return devices.replicated(mesh)
    longest = max(axes, key=lambda axis: array.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))


# Each returns the sharding of one array, from its shape and the mesh.
SHARDINGS: dict[str, Callable[[jax.ShapeDtypeStruct, Mesh], NamedSharding]] = {
    "data_parallel": _copied,
    "fully_sharded": _split,
}


def state_sharding(shapes: Any, mesh: Mesh, kind: str) -> Any:
    """Returns the shardings of a tree of arrays, given by their shapes; `kind` is a key of `SHARDINGS`."""
    return jax.tree.map(lambda array: SHARDINGS[kind](array, mesh), shapes)


def split_share(shapes: Any, shardings: Any) -> float:
    """Returns the share of the elements of a tree of arrays that are in arrays which the devices split."""
    sizes = [array.size for array in jax.tree.leaves(shapes)]
    split = [not one.is_fully_replicated for one in jax.tree.leaves(shardings)]
    return float(sum(size for size, is_split in zip(sizes, split, strict=True) if is_split) / sum(sizes))


def rows_together(config: ml_collections.ConfigDict) -> int:
    """Returns how many consecutive rows must stay on one device and in one accumulation step.

    With mixup or CutMix these are the rows of a group. Without them, each row is on its own.
    """
    return config.mixup.group if mixing.is_on(config) else 1


def check_divides(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Checks that the devices, the accumulation steps and the groups of mixup divide a run's batch.

    Raises:
      UserError: they do not.
    """
    group = rows_together(config)
    multiple = mesh.size * config.accumulate_steps * group
    if config.batch_size % multiple:
        raise UserError(
            f"config.batch_size={config.batch_size} over {mesh.size} devices and accumulate_steps="
            f"{config.accumulate_steps} must be a multiple of {multiple}"
            + (f", since mixup.group={group} rows stay together" if group > 1 else "")
            + f"; the nearest that is: {max(round(config.batch_size / multiple), 1) * multiple}"
        )
