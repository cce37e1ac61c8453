"""Checkpoints keep every bit, and a damaged checkpoint is noticed and skipped."""

import errno
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.config import recipe
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training import integrity, sharding
from mixer.training.checkpoint import Checkpoints
from mixer.training.checkpoint_reader import load_params
from mixer.training.optimizer import OPTIMIZERS, make_optimizer, make_schedule
from mixer.training.step import TrainState


def make_state(step, ema=True, seed=0):
    """Returns a state with every kind of leaf that a run has, and with values that are easily lost, such as -0.0."""
    rng = np.random.default_rng(1000 * seed + step)
    params = {
        # A kernel so large that Orbax does not store it in its index.
        "head": {"kernel": rng.normal(size=(256, 257)).astype(np.float32), "bias": np.float32([0, -0.0, 1e-45, 3e38])},
        "stem": {"kernel": rng.normal(size=(4, 4, 3, 16)).astype(np.float32), "bias": np.full(16, -0.1, np.float32)},
    }
    params = jax.tree.map(jnp.asarray, params)
    opt_state = ({"mu": jax.tree.map(lambda leaf: leaf / 3, params)}, jnp.int32(step))
    average = jax.tree.map(lambda leaf: leaf * 0.5, params) if ema else None
    bad_images = jnp.arange(7, dtype=jnp.int32) * step
    return TrainState(
        jnp.int32(step), params, opt_state, average, bad_images, jnp.int32(step % 3), jnp.float32([step, 0.1, 3, 2, 1])
    )


def placed(state, mesh, kind):
    """Puts a state on a mesh. Returns it with its shapes and shardings."""
    shapes = jax.eval_shape(lambda: state)
    shardings = sharding.state_sharding(shapes, mesh, kind)
    return jax.device_put(state, shardings), shapes, shardings


def save_steps(folder, steps, keep=(2, 0, 0), ema=True):
    """Saves checkpoints of a run. `steps` gives each step's accuracy or None; `keep` is keep_last, _every and _best."""
    checkpoints = Checkpoints(folder, *keep)
    for step, accuracy in steps.items():
        state = placed(make_state(step, ema), devices.make_mesh(), "data_parallel")[0]
        checkpoints.save(state, {} if accuracy is None else {"val/accuracy": accuracy, "val/loss": 1.0})
    checkpoints.close()


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def assert_same_state(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 10 and 20, saved data parallel on eight devices."""
    folder = tmp_path_factory.mktemp("run")
    save_steps(folder, {10: None, 20: None})
    return folder


@pytest.mark.parametrize("kind", [*sharding.SHARDINGS, "one_device"])
def test_a_state_comes_back_bit_for_bit_with_any_sharding(saved, mesh, one_device, kind):
    mesh, kind = (one_device, "data_parallel") if kind == "one_device" else (mesh, kind)
    _, shapes, shardings = placed(make_state(0), mesh, kind)
    checkpoints = Checkpoints(saved, 2, 0, 0)
    state = checkpoints.restore(shapes, shardings)
    checkpoints.close()
    assert_same_state(state, make_state(20))
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    if kind == "fully_sharded":
        assert state.params["head"]["kernel"].addressable_shards[0].data.shape == (32, 257)


def test_a_checkpoint_of_before_has_no_sums_of_a_line(tmp_path, mesh):
    state = make_state(10)
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    checkpoints.save(placed(state.replace(line_sums=None), mesh, "data_parallel")[0], {})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    _, shapes, shardings = placed(state, mesh, "fully_sharded")
    found = checkpoints.restore(shapes, shardings)
    checkpoints.close()
    assert_same_state(found, state.replace(line_sums=jnp.zeros(5)))
    assert found.line_sums.sharding.is_equivalent_to(shardings.line_sums, 1)


def test_a_fully_sharded_state_without_average_comes_back_on_one_device(tmp_path, mesh, one_device):
    checkpoints = Checkpoints(tmp_path, 1, 0, 0)
    checkpoints.save(placed(make_state(3, ema=False), mesh, "fully_sharded")[0], {})
    checkpoints.close()
    _, shapes, shardings = placed(make_state(0, ema=False), one_device, "data_parallel")
    checkpoints = Checkpoints(tmp_path, 1, 0, 0)
    assert_same_state(checkpoints.restore(shapes, shardings), make_state(3, ema=False))
    checkpoints.close()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_comes_back(tmp_path, mesh, name):
    config = recipe.base().optimizer
    config.name = name
    tx = make_optimizer(config, make_schedule(config, 2, 10), mesh)
    state = make_state(5)
    grads = jax.tree.map(lambda leaf: 1e-3 * jnp.cos(leaf), state.params)
    state = state.replace(opt_state=tx.update(grads, tx.init(state.params), state.params)[1])
    state, shapes, shardings = placed(state, mesh, "fully_sharded")
    checkpoints = Checkpoints(tmp_path, 1, 0, 0)
    checkpoints.save(state, {})
    checkpoints.wait()
    assert_same_state(checkpoints.restore(shapes, shardings), state)
    checkpoints.close()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_an_optimizer_comes_back_where_what_has_no_arrays_has_changed(tmp_path, mesh, name):
    """Weight decay, which may begin or end in the middle of a run, and multipliers, which may freeze a part of it."""
    base = recipe.base().optimizer
    base.name = name
    kinds = [(0.0, None), (0.1, None), (0.0, "stem=0"), (0.1, "stem=0")]
    for before, after in itertools.permutations(range(len(kinds)), 2):
        states = []
        for decay, multipliers in (kinds[before], kinds[after]):
            config = base.copy_and_resolve_references()
            config.weight_decay, config.multipliers = decay, multipliers
            tx = make_optimizer(config, make_schedule(config, 2, 10), mesh)
            state = make_state(5)
            grads = jax.tree.map(lambda leaf: 1e-3 * jnp.cos(leaf), state.params)
            states.append(state.replace(opt_state=tx.update(grads, tx.init(state.params), state.params)[1]))
        folder = tmp_path / f"{before}-{after}"
        checkpoints = Checkpoints(folder, 1, 0, 0)
        checkpoints.save(placed(states[0], mesh, "fully_sharded")[0], {})
        checkpoints.wait()
        found = checkpoints.restore(*placed(states[1], mesh, "fully_sharded")[1:])
        checkpoints.close()
        assert jax.tree.structure(found) == jax.tree.structure(states[1])
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(states[0]), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("ema", [False, True])
def test_load_params(saved, ema):
    params = load_params(saved, ema=ema)[1]
    state = make_state(20)
    assert_same_state(params, state.ema_params if ema else state.params)
    assert {type(leaf) for leaf in jax.tree.leaves(params)} == {np.ndarray}


def test_load_params_without_a_checkpoint_or_an_average(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint with params"):
        load_params(tmp_path / "nowhere")
    save_steps(tmp_path, {1: None}, ema=False)
    with pytest.raises(UserError, match=r"holds no ema_params at step 1: it was trained with config.ema_decay=0"):
        load_params(tmp_path, ema=True)


def test_an_accuracy_that_cannot_be_read_does_not_stop_the_run(tmp_path, mesh, warnings):
    save_steps(tmp_path, {1: 0.9, 2: 0.1}, (2, 0, 1))
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text("")
    save_steps(tmp_path, {3: 0.2, 4: 0.0}, (1, 0, 1))
    assert len([line for line in warnings() if "checkpoints/1/metrics/metrics cannot be read" in line]) == 1
    assert steps_in(tmp_path) == [3, 4]


def test_no_checkpoint_is_none(tmp_path, mesh):
    _, shapes, shardings = placed(make_state(0), mesh, "data_parallel")
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    assert checkpoints.restore(shapes, shardings) is None
    checkpoints.close()


# -------------------------------------------------------------------------------------------------------------- damage


def array_files(folder):
    """Returns the files of large arrays. The number of arrays in a file differs from save to save."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100_000]


def flip_one_bit(path, share=0.5):
    """Flips a bit of the byte that lies this far within the file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 1
    path.write_bytes(bytes(content))


def flip_in_every_array(path):
    content = bytearray(path.read_bytes())
    for place in range(10_000, len(content), 20_000):
        content[place] ^= 128
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[:100])


def delete(path):
    path.unlink()


DAMAGES = {
    "commit mark gone": (delete, lambda folder: [folder / "commit_success.txt"]),
    "list of files gone": (delete, lambda folder: [folder / "files.json"]),
    "list of files unreadable": (truncate, lambda folder: [folder / "files.json"]),
    "metadata unreadable": (truncate, lambda folder: [folder / "_CHECKPOINT_METADATA"]),
    "a bit of the structure flipped": (flip_one_bit, lambda folder: folder.rglob("_METADATA")),
    "bits of arrays flipped": (flip_in_every_array, array_files),
    "arrays truncated": (truncate, array_files),
    "arrays deleted": (delete, array_files),
    "index truncated": (truncate, lambda folder: folder.rglob("manifest.ocdbt")),
    "index deleted": (delete, lambda folder: folder.rglob("manifest.ocdbt")),
    "structure truncated": (truncate, lambda folder: folder.rglob("_METADATA")),
    "folder emptied": (delete, lambda folder: [path for path in folder.rglob("*") if path.is_file()]),
}


@pytest.fixture
def warnings(caplog):
    """Returns the project's own warnings so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("mixer.")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_and_the_run_continues(tmp_path, mesh, warnings, damage):
    save_steps(tmp_path, {10: None, 20: None})
    how, find = DAMAGES[damage]
    for path in (found := list(find(tmp_path / "checkpoints" / "20"))):
        how(path)
    assert found
    assert_same_state(load_params(tmp_path)[1], make_state(10).params)
    _, shapes, shardings = placed(make_state(0), mesh, "data_parallel")
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    assert_same_state(checkpoints.restore(shapes, shardings), make_state(10))
    skipped = [line for line in warnings() if line.startswith("Checkpoint 20 skipped, it cannot be read: ")]
    assert len(skipped) == 2  # by load_params and by restore
    assert all("\n" not in line and "tensorstore_spec" not in line for line in skipped)
    # The run reaches step 20 again, and saves a checkpoint that the next start finds.
    checkpoints.save(placed(make_state(20, seed=1), mesh, "data_parallel")[0], {})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    assert_same_state(checkpoints.restore(shapes, shardings), make_state(20, seed=1))
    checkpoints.close()
    assert steps_in(tmp_path) == [10, 20]


@pytest.mark.parametrize(("small", "reason"), [(1 << 20, "is not what was written"), (0, "its checksum differs")])
def test_one_flipped_bit_is_noticed(tmp_path, mesh, warnings, monkeypatch, small, reason):
    """The file has a checksum, or it is so large that only its arrays have one.

    The file is compressed, and how it is laid out differs from save to save: a bit in one place may leave an array that
    cannot be decompressed. So there are five places, of which each is noticed.
    """
    monkeypatch.setattr(integrity, "_SMALL", small)
    _, shapes, shardings = placed(make_state(0), mesh, "fully_sharded")
    for share in (0.3, 0.4, 0.5, 0.6, 0.7):
        folder = tmp_path / f"{share}"
        save_steps(folder, {10: None, 20: None})
        flip_one_bit(array_files(folder / "checkpoints" / "20")[0], share)
        checkpoints = Checkpoints(folder, 2, 0, 0)
        assert int(checkpoints.restore(shapes, shardings).step) == 10
        checkpoints.close()
    assert len(warnings()) == 5
    assert any(reason in warning for warning in warnings())


def test_a_save_that_was_cut_off_is_not_a_checkpoint(tmp_path, mesh):
    """Orbax writes to a folder with a temporary name and renames it at the end."""
    save_steps(tmp_path, {10: None})
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp" / "default").mkdir(parents=True)
    _, shapes, shardings = placed(make_state(0), mesh, "data_parallel")
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    assert int(checkpoints.restore(shapes, shardings).step) == 10
    checkpoints.close()
    assert_same_state(load_params(tmp_path)[1], make_state(10).params)


@pytest.mark.parametrize("by_tensorstore", [False, True])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_what_a_disk_refuses_for_a_while_is_not_taken_for_damaged_and_deleted(
    tmp_path, mesh, monkeypatch, number, by_tensorstore
):
    save_steps(tmp_path, {10: 0.5, 20: 0.6})
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    _, shapes, shardings = placed(make_state(0), mesh, "data_parallel")
    said = os.strerror(number)

    def refuse(*_, **__):
        if by_tensorstore:
            raise ValueError(f"Error reading: {said} [os_error_code='{number}'] [tensorstore_spec='...")
        raise OSError(number, said)

    with monkeypatch.context() as patch:
        if by_tensorstore:
            patch.setattr(checkpoints._manager, "restore", refuse)
        else:
            patch.setattr(integrity.files, "read_bytes", refuse)
        with pytest.raises(UserError, match=rf"checkpoints/20 cannot be read now \(.*{said}\): try again when the d"):
            checkpoints.restore(shapes, shardings)
    assert steps_in(tmp_path) == [10, 20]
    assert int(checkpoints.restore(shapes, shardings).step) == 20
    checkpoints.close()


def test_when_all_are_damaged_the_run_does_not_start_from_zero(tmp_path, mesh, warnings):
    save_steps(tmp_path, {10: None, 20: None})
    for path in array_files(tmp_path / "checkpoints"):
        flip_in_every_array(path)
    _, shapes, shardings = placed(make_state(0), mesh, "data_parallel")
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    with pytest.raises(UserError, match=r"none of the 2 checkpoints in .* \(steps 10 to 20\)"):
        checkpoints.restore(shapes, shardings)
    checkpoints.close()
    with pytest.raises(UserError, match="holds no checkpoint with params"):
        load_params(tmp_path)
    assert steps_in(tmp_path) == [10, 20]  # nothing is deleted: somebody may repair them


def test_arrays_of_other_shapes_are_named_before_any_is_read(tmp_path, mesh, warnings, capfd):
    save_steps(tmp_path, {10: None})
    wider = make_state(0)
    wider.params["head"]["kernel"] = jnp.zeros((256, 300))
    _, shapes, shardings = placed(wider, mesh, "data_parallel")
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    said = r"are sound, .*: params\.head\.kernel has the shape \(256, 257\) there, and the config asks for \(256, 300\)"
    with pytest.raises(UserError, match=said):
        checkpoints.restore(shapes, shardings)
    checkpoints.close()
    assert warnings() == []
    assert "Traceback" not in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------------- full disks


def fill_disk(patched):
    """Makes the last file of every checkpoint fail for lack of space."""

    def write_list(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    patched.setattr(integrity, "write_list", write_list)


def test_a_full_disk_stops_the_run_and_the_older_checkpoints_remain(tmp_path, mesh, monkeypatch):
    save_steps(tmp_path, {10: None}, (1, 0, 0))
    checkpoints = Checkpoints(tmp_path, 1, 0, 0)
    with monkeypatch.context() as patched:
        fill_disk(patched)
        checkpoints.save(placed(make_state(20), mesh, "data_parallel")[0], {})
        with pytest.raises(
            UserError, match=r"checkpoint 20 could not be written .*No space left.*the older ones remain"
        ):
            checkpoints.wait()
        checkpoints.close()
    assert steps_in(tmp_path) == [10]
    assert_same_state(load_params(tmp_path)[1], make_state(10).params)


def test_a_run_that_continues_in_spite_of_a_full_disk_still_needs_its_last_checkpoint(
    tmp_path, mesh, warnings, monkeypatch
):
    fill_disk(monkeypatch)
    checkpoints = Checkpoints(tmp_path, 1, 0, 0, on_error="continue")
    checkpoints.save(placed(make_state(10), mesh, "data_parallel")[0], {})
    checkpoints.wait()
    (said,) = warnings()
    assert "checkpoint 10 could not be written to" in said
    assert "([Errno 28] No space left on device); the older ones remain" in said
    assert steps_in(tmp_path) == []
    with pytest.raises(UserError, match=r"checkpoint 10 could not be written .*: make it possible and run the same"):
        checkpoints.settle()
    monkeypatch.undo()
    checkpoints.save(placed(make_state(20), mesh, "data_parallel")[0], {})
    checkpoints.settle()
    checkpoints.close()
    assert steps_in(tmp_path) == [20]
