"""How rows and parameters lie on eight devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from mixer import models
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training import sharding


def unchecked(function):
    """The function without the run-time type check, which refuses stand-ins for devices."""
    return getattr(function, "__wrapped__", function)


def test_the_mesh_puts_a_processes_devices_side_by_side(monkeypatch):
    assert list(devices.make_mesh(jax.devices()[::-1]).devices.flat) == jax.devices()
    monkeypatch.setattr(sharding, "Mesh", lambda devices, names, axis_types: devices)
    interleaved = [types.SimpleNamespace(id=number, process_index=number % 2) for number in range(6)]
    assert [device.id for device in unchecked(devices.make_mesh)(interleaved)] == [0, 2, 4, 1, 3, 5]


def test_all_rows_are_this_hosts_when_it_is_alone(mesh, one_device):
    assert devices.host_rows(mesh, 64) == slice(0, 64)
    assert devices.host_rows(one_device, 7) == slice(0, 7)


@pytest.mark.parametrize("process", [0, 1, 2])
def test_hosts_share_the_rows(process, monkeypatch):
    devices = np.array([types.SimpleNamespace(process_index=index // 2) for index in range(6)])
    monkeypatch.setattr(jax, "process_index", lambda: process)
    rows = unchecked(devices.host_rows)(types.SimpleNamespace(size=6, devices=devices), 48)
    assert rows == slice(16 * process, 16 * (process + 1))


@pytest.mark.parametrize(("batch_size", "nearest"), [(1, 8), (7, 8), (9, 8), (13, 16), (101, 104), (4097, 4096)])
def test_a_batch_that_cannot_be_split_names_the_nearest(mesh, batch_size, nearest):
    with pytest.raises(UserError, match=f"batch_size={batch_size} is not divisible by the 8 devices.*: {nearest}$"):
        devices.host_rows(mesh, batch_size)


@settings(max_examples=100, deadline=None)
@given(shape=st.lists(st.integers(1, 20) | st.integers(1, 60).map(lambda n: 8 * n), max_size=4))
def test_state_sharding_splits_the_longest_axis_that_divides(shape):
    mesh = devices.make_mesh()
    array = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    assert sharding.state_sharding(array, mesh, "data_parallel").spec == PartitionSpec()
    spec = tuple(sharding.state_sharding(array, mesh, "fully_sharded").spec)
    divisible = [size for size in shape if size % 8 == 0]
    if not divisible or array.size < 2**14:
        assert spec == ()
        return
    (axis,) = (axis for axis, name in enumerate(spec) if name == "data")
    assert set(spec) - {"data"} <= {None}
    assert shape[axis] == max(divisible)


def test_fully_sharded_parameters_take_an_eighth_of_the_memory(mesh):
    """Mixer-B/16 has few arrays that are too small: biases, norms and the token MLP's 196-long axis is one of two."""
    model = models.create("B/16", 1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    placed = sharding.state_sharding(shapes, mesh, "fully_sharded")
    per_device = sum(
        np.prod(place.shard_shape(leaf.shape), dtype=int)
        for leaf, place in zip(jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True)
    )
    whole = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert whole / 8 <= per_device < 1.03 * whole / 8


def test_a_fully_sharded_array_really_lies_in_eight_parts(mesh):
    tree = {"kernel": np.arange(128 * 256, dtype=np.float32).reshape(128, 256), "bias": np.ones(256, np.float32)}
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    placed = jax.device_put(tree, sharding.state_sharding(shapes, mesh, "fully_sharded"))
    assert [shard.data.nbytes for shard in placed["kernel"].addressable_shards] == [tree["kernel"].nbytes // 8] * 8
    assert [shard.data.nbytes for shard in placed["bias"].addressable_shards] == [1024] * 8
    for ours, theirs in zip(devices.to_host(mesh, placed["kernel"], placed["bias"]), tree.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_lie_on_the_devices_in_order(mesh):
    rows = np.arange(32, dtype=np.int32).reshape(16, 2)
    array = devices.to_devices({"rows": rows}, mesh)["rows"]
    np.testing.assert_array_equal(array, rows)
    for device, shard in zip(mesh.devices.flat, array.addressable_shards, strict=True):
        assert shard.device == device
        np.testing.assert_array_equal(shard.data, rows[shard.index])
        assert shard.index[0] == slice(2 * device.id, 2 * device.id + 2)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_batches_keep_their_order_and_are_laid_out_one_ahead(mesh, count):
    read = []

    def source():
        for number in range(count):
            read.append(number)
            yield {"rows": np.full(8, number, np.int32)}

    for number, batch in enumerate(devices.device_batches(source(), mesh)):
        np.testing.assert_array_equal(batch["rows"], np.full(8, number))
        assert read == list(range(min(number + 2, count)))
    assert len(read) == count
