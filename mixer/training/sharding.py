"""One mesh axis over all devices: rows of the batch lie along it, and parameters too when fully sharded."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixer.errors import UserError

SHARDINGS = ("data_parallel", "fully_sharded")

_SMALLEST_SHARDED = 2**14  # elements; gathering a smaller array costs more than keeping it


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the axis "data", a process's devices side by side so that its rows of a batch are contiguous."""
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(shapes: Any, mesh: Mesh, kind: str) -> Any:
    """How a tree of arrays (given by their shapes) lies on the mesh.

    "fully_sharded" splits each array's longest axis that the number of devices divides (ZeRO-3, arXiv 1910.02054);
    XLA gathers it where it is used. Arrays too small to gain, or with no such axis, are copied.
    """

    def place(array: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, size in enumerate(array.shape) if size % mesh.size == 0]
        if kind == "data_parallel" or not axes or array.size < _SMALLEST_SHARDED:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))

    return jax.tree.map(place, shapes)


def host_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a global batch that this process's devices hold.

    Raises:
      UserError: the batch cannot be split evenly.
    """
    if batch_size % mesh.size:
        raise UserError(
            f"config.batch_size={batch_size} is not divisible by the {mesh.size} devices; the nearest that is: "
            f"{max(round(batch_size / mesh.size), 1) * mesh.size}"
        )
    per_device = batch_size // mesh.size
    mine = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return slice(mine[0] * per_device, (mine[-1] + 1) * per_device)


def check_parts(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Checks that devices, accumulation and the groups of mixup divide the batch of a run's config.

    Raises:
      UserError: they do not.
    """
    group = config.mixup.group if config.mixup.p else 1
    per_part, left = divmod(config.batch_size, mesh.size * config.accumulate_steps)
    if left or per_part % group:
        raise UserError(
            f"config.batch_size={config.batch_size} over {mesh.size} devices and accumulate_steps="
            f"{config.accumulate_steps} must be a multiple of {mesh.size * config.accumulate_steps * group}"
            + (f", since mixup.group={group} rows stay together" if group > 1 else "")
        )


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Lays this host's rows over its devices, as its part of the global batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def device_batches(batches: Iterable[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """Lays batches over the devices, one ahead of the one in use, so that copying overlaps with computing."""
    ahead: collections.deque[dict[str, jax.Array]] = collections.deque()
    for rows in batches:
        ahead.append(to_devices(rows, mesh))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def to_host(mesh: Mesh, *arrays: jax.Array) -> tuple[np.ndarray, ...]:
    """Copies arrays, however they lie on the mesh, to the memory of every host."""
    gathered = jax.jit(_same, out_shardings=replicated(mesh))(*arrays)
    return tuple(np.asarray(array) for array in gathered)


def _same(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """One function for all calls: for a new one each time, JAX would compile each time."""
    return arrays
