"""How the state is placed on eight devices, and which batches fit a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from mixer import models
from mixer.config import recipe
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training import sharding


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


def test_the_share_that_is_split_is_told():
    """Seven devices divide no axis of these: both are copied. Of eight each has a part of the kernel."""
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in {"k": (128, 256), "b": (256,)}.items()}
    for number, share in ((7, 0), (8, 128 / 129)):
        mesh = Mesh(np.array(jax.devices()[:number]), "data")
        assert sharding.split_share(shapes, sharding.state_sharding(shapes, mesh, "fully_sharded")) == share
        assert sharding.split_share(shapes, sharding.state_sharding(shapes, mesh, "data_parallel")) == 0


def test_a_fully_sharded_array_is_in_eight_parts(mesh):
    tree = {"kernel": np.arange(128 * 256, dtype=np.float32).reshape(128, 256), "bias": np.ones(256, np.float32)}
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    placed = jax.device_put(tree, sharding.state_sharding(shapes, mesh, "fully_sharded"))
    assert [shard.data.nbytes for shard in placed["kernel"].addressable_shards] == [tree["kernel"].nbytes // 8] * 8
    assert [shard.data.nbytes for shard in placed["bias"].addressable_shards] == [1024] * 8
    for ours, theirs in zip(devices.to_host(mesh, placed["kernel"], placed["bias"]), tree.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("batch_size", "settings", "multiple"),
    [
        (8, {}, None),
        (24, {}, None),
        (12, {}, "of 8"),
        (24, {"accumulate_steps": 3}, None),
        (32, {"accumulate_steps": 3}, "of 24"),
        (24, {"mixup.group": 2}, None),  # without mixup no rows stay together
        (32, {"mixup.p": 0.5, "mixup.group": 4}, None),
        (48, {"mixup.p": 0.5, "mixup.group": 4}, "of 32, since mixup.group=4 rows stay together"),
        (96, {"mixup.p": 0.5, "mixup.group": 4, "accumulate_steps": 3}, None),
        (
            48,
            {"mixup.p": 0.5, "mixup.group": 4, "accumulate_steps": 3},
            "of 96, since mixup.group=4 rows stay together",
        ),
    ],
)
def test_devices_accumulation_and_mixup_must_divide_the_batch(mesh, batch_size, settings, multiple):
    config = recipe.base()
    config.update_from_flattened_dict({"batch_size": batch_size, **settings})
    if multiple is None:
        sharding.check_divides(config, mesh)
        return
    said = f"batch_size={batch_size} over 8 devices.* must be a multiple {multiple};"
    with pytest.raises(UserError, match=said) as told:
        sharding.check_divides(config, mesh)
    config.batch_size = int(str(told.value).rpartition("the nearest that is: ")[2])
    sharding.check_divides(config, mesh)
