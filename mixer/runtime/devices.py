"""The mesh of devices, and how a batch is placed on it.

The mesh has one axis, "data", over all devices. The rows of a batch are split along this axis.
"""

import collections
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixer.runtime.errors import UserError

# Batches on the devices beside that of a training step that runs: the next step is given to the devices before this one
# ends (train.py), and `device_batches` copies the batch after that.
BATCHES_AHEAD = 2


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of these devices; by default of all devices.

    The devices of a process are neighbours in the mesh, so that the process holds contiguous rows of a batch.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def host_rows(mesh: Mesh, batch_size: int) -> slice:
    """Returns the rows of a global batch that this process's devices hold.

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


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Copies this host's rows to its devices, as its part of the global batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def device_batches(batches: Iterable[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """Copies batches to the devices, one batch ahead.

    The step on one batch and the copy of the next run at the same time.
    """
    ahead: collections.deque[dict[str, jax.Array]] = collections.deque()
    for rows in batches:
        ahead.append(to_devices(rows, mesh))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def to_host(mesh: Mesh, *arrays: jax.Array) -> tuple[np.ndarray, ...]:
    """Copies arrays of the mesh, with any sharding, to the memory of every host."""
    gathered = jax.jit(_same, out_shardings=replicated(mesh))(*arrays)
    return tuple(np.asarray(array) for array in gathered)


def _same(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the arrays. If `to_host` defined this function, JAX would compile it again at each call."""
    return arrays
