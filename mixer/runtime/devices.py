"""The mesh of devices and how a batch lies on it: one axis over all devices, along which the rows are split."""

import collections
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixer.runtime.errors import UserError


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with the axis "data" over the devices; all devices of JAX if none are given.

    The devices of a process stand side by side, so that its rows of a batch are contiguous.
    """
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Copies an array to every device."""
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
    """Copies batches to the devices, one ahead of the batch in use, so that copying overlaps with computing."""
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
    """The identity. It stands here because JAX would compile a new function at every call of `to_host`."""
    return arrays
