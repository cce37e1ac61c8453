"""How the rows of a batch are placed on the devices."""

import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mixer.runtime import devices
from mixer.runtime.errors import UserError


def unchecked(function):
    """Returns the function without its run-time type check, which refuses stand-ins for devices."""
    return getattr(function, "__wrapped__", function)


def test_the_mesh_puts_the_devices_of_a_process_side_by_side(monkeypatch):
    assert list(devices.make_mesh(jax.devices()[::-1]).devices.flat) == jax.devices()
    monkeypatch.setattr(devices, "Mesh", lambda devices, names, axis_types: devices)
    interleaved = [types.SimpleNamespace(id=number, process_index=number % 2) for number in range(6)]
    assert [device.id for device in unchecked(devices.make_mesh)(interleaved)] == [0, 2, 4, 1, 3, 5]


def test_a_single_host_has_all_rows(mesh, one_device):
    assert devices.host_rows(mesh, 64) == slice(0, 64)
    assert devices.host_rows(one_device, 7) == slice(0, 7)


@pytest.mark.parametrize("process", [0, 1, 2])
def test_hosts_share_the_rows(process, monkeypatch):
    six = np.array([types.SimpleNamespace(process_index=index // 2) for index in range(6)])
    monkeypatch.setattr(jax, "process_index", lambda: process)
    rows = unchecked(devices.host_rows)(types.SimpleNamespace(size=6, devices=six), 48)
    assert rows == slice(16 * process, 16 * (process + 1))


@pytest.mark.parametrize(("batch_size", "nearest"), [(1, 8), (7, 8), (9, 8), (13, 16), (101, 104), (4097, 4096)])
def test_a_batch_that_cannot_be_split_names_the_nearest(mesh, batch_size, nearest):
    with pytest.raises(UserError, match=f"batch_size={batch_size} is not divisible by the 8 devices.*: {nearest}$"):
        devices.host_rows(mesh, batch_size)


def test_rows_are_placed_on_the_devices_in_order(mesh):
    rows = np.arange(32, dtype=np.int32).reshape(16, 2)
    array = devices.to_devices({"rows": rows}, mesh)["rows"]
    np.testing.assert_array_equal(array, rows)
    for device, shard in zip(mesh.devices.flat, array.addressable_shards, strict=True):
        assert shard.device == device
        np.testing.assert_array_equal(shard.data, rows[shard.index])
        assert shard.index[0] == slice(2 * device.id, 2 * device.id + 2)


def test_to_host_gathers_split_and_replicated_arrays(mesh):
    kernel, bias = np.arange(32, dtype=np.float32).reshape(4, 8), np.ones(3, np.float32)
    split = jax.device_put(jnp.asarray(kernel), NamedSharding(mesh, PartitionSpec(None, "data")))
    copied = jax.device_put(jnp.asarray(bias), devices.replicated(mesh))
    for found, expected in zip(devices.to_host(mesh, split, copied), (kernel, bias), strict=True):
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_batches_keep_their_order_and_are_copied_one_ahead(mesh, count):
    read = []

    def source():
        for number in range(count):
            read.append(number)
            yield {"rows": np.full(8, number, np.int32)}

    for number, batch in enumerate(devices.device_batches(source(), mesh)):
        np.testing.assert_array_equal(batch["rows"], np.full(8, number))
        assert read == list(range(min(number + 2, count)))
    assert len(read) == count


def test_beside_the_batch_of_a_running_step_as_many_are_copied_as_pre_flight_counts(mesh, monkeypatch):
    """The first step still runs when the second one is given, as in train.py."""
    copied, most = [], 0
    to_devices = devices.to_devices

    def counting(rows, mesh):
        nonlocal most
        batch = to_devices(rows, mesh)
        copied.append(weakref.ref(batch["rows"]))
        most = max(most, sum(ref() is not None for ref in copied))
        return batch

    monkeypatch.setattr(devices, "to_devices", counting)
    running, rows = None, np.zeros(8, np.int32)
    for batch in devices.device_batches(({"rows": rows} for _ in range(6)), mesh):
        running = batch["rows"]  # the step before has ended
    del running
    assert most == 1 + devices.BATCHES_AHEAD
