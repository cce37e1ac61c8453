"""Checkpoints in a bucket keep what checkpoints on a disk keep: every bit, and no work is lost silently."""

import re

import numpy as np
import pytest
from etils import epath
from test_checkpoint import assert_same_state, make_state, placed, save_steps

from mixer.runtime.errors import UserError
from mixer.training import integrity
from mixer.training.checkpoint import Checkpoints
from mixer.training.checkpoint_reader import has_checkpoints, load_params, load_state
from tests.bucket.faults import Fault

OURS = "gcloud-python"  # Orbax reads and writes by TensorFlow and TensorStore


@pytest.fixture
def run(bucket_here, request):
    """The folder of a run in the bucket. Each test has another: TensorFlow remembers for seconds what it has seen."""
    return bucket_here.path(re.sub(r"\W+", "_", request.node.name))


@pytest.fixture
def warnings(caplog):
    """Returns the project's own warnings so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("mixer.")]


def steps_in(bucket, run):
    """Returns the steps of which the bucket holds anything but empty folders."""
    names = (name.removeprefix(f"{key(bucket, run)}/checkpoints/") for name in files_of(bucket, run))
    return sorted({int(name.split("/")[0]) for name in names if "/" in name})


def files_of(bucket, run, folder="checkpoints/"):
    return [name for name in bucket.objects(f"{key(bucket, run)}/{folder}") if not name.endswith("/")]


def key(bucket, run):
    return run.removeprefix(bucket.path() + "/")


def restored(run, mesh, kind="data_parallel"):
    _, shapes, shardings = placed(make_state(0), mesh, kind)
    checkpoints = Checkpoints(run, 2, 0, 0)
    try:
        return checkpoints.restore(shapes, shardings)
    finally:
        checkpoints.close()


@pytest.mark.parametrize("kind", ["data_parallel", "fully_sharded"])
def test_a_state_comes_back_bit_for_bit(run, mesh, kind):
    assert not has_checkpoints(run)
    assert restored(run, mesh) is None
    save_steps(run, {10: None, 20: 0.5})
    assert has_checkpoints(run)
    assert_same_state(restored(run, mesh, kind), make_state(20))
    assert_same_state(load_params(run, ema=True)[1], make_state(20).ema_params)
    assert_same_state(load_params(run, step=10)[1], make_state(10).params)
    assert load_state(run)[0] == 20


def test_which_checkpoints_are_kept(bucket_here, run):
    save_steps(run, {1: 0.5, 2: 0.9, 3: 0.1, 4: None}, (1, 0, 1))
    assert steps_in(bucket_here, run) == [2, 4]


DAMAGES = {
    "list of files gone": (r"/20/files.json", lambda bucket, name: bucket.delete(name)),
    "metadata unreadable": (r"/20/_CHECKPOINT_METADATA", lambda bucket, name: bucket.put(name, b'{"half')),
    "a bit of the structure flipped": (r"/20/.*_METADATA$", lambda bucket, name: bucket.flip(name, 50)),
    "bits of arrays flipped": (r"/20/.*/d/", lambda bucket, name: bucket.flip(name, -9)),
    "arrays truncated": (r"/20/.*/d/", lambda bucket, name: bucket.put(name, bucket.content(name)[:100])),
    "index deleted": (r"/20/.*manifest.ocdbt", lambda bucket, name: bucket.delete(name)),
    # It is sound in itself, and its CRC32C is the same: it ends with its own.
    "index of another save": (
        r"/20/default/manifest.ocdbt",
        lambda bucket, name: bucket.put(name, bucket.content(name.replace("/20/", "/10/"))),
    ),
}


# In test_checkpoint.py all of them are of a disk.
@pytest.mark.parametrize(
    "damage",
    [pytest.param(name, marks=[] if name.startswith(("index", "bits")) else pytest.mark.slow) for name in DAMAGES],
)
def test_a_damaged_checkpoint_is_skipped_and_the_run_continues(bucket_here, run, mesh, warnings, damage):
    save_steps(run, {10: None, 20: None})
    pattern, harm = DAMAGES[damage]
    found = [name for name in files_of(bucket_here, run) if re.search(pattern, name)]
    for name in found:
        harm(bucket_here, name)
    assert found
    assert_same_state(load_params(run)[1], make_state(10).params)
    assert_same_state(restored(run, mesh), make_state(10))
    skipped = [line for line in warnings() if line.startswith("Checkpoint 20 skipped, it cannot be read: ")]
    assert len(skipped) == 2  # by load_params and by restore
    assert all("\n" not in line for line in skipped)
    assert steps_in(bucket_here, run) == [10]
    save_steps(run, {20: None})
    assert_same_state(restored(run, mesh), make_state(20))


@pytest.mark.parametrize("steps", ["20", r"\d+"])
def test_a_checkpoint_that_lacks_only_its_commit_mark_is_complete(bucket_here, run, mesh, steps):
    """The mark is lost, or the process was killed just before it. Orbax' own cleaning would delete such checkpoints."""
    save_steps(run, {10: None, 20: None})
    for name in files_of(bucket_here, run):
        if re.search(f"/{steps}/commit_success.txt", name):
            bucket_here.delete(name)
    assert has_checkpoints(run)
    assert_same_state(restored(run, mesh), make_state(20))
    assert steps_in(bucket_here, run) == [10, 20]


@pytest.mark.parametrize("lost", [r"/manifest\.ocdbt$", r"\d/commit_success.txt|default/_METADATA"])
def test_when_all_are_damaged_the_run_does_not_start_from_zero_and_deletes_none(bucket_here, run, mesh, lost):
    save_steps(run, {10: None, 20: None})
    for name in files_of(bucket_here, run):
        if re.search(lost, name):
            bucket_here.delete(name)
    left = files_of(bucket_here, run)
    assert has_checkpoints(run)
    with pytest.raises(UserError, match=r"none of the 2 checkpoints in .* \(steps 10 to 20\)"):
        restored(run, mesh)
    with pytest.raises(UserError, match="holds no checkpoint with params"):
        load_params(run)
    assert files_of(bucket_here, run) == left


@pytest.mark.parametrize("refused", [r"/files\.json", "checkpoints/20/default", "LIST"])
def test_a_checkpoint_out_of_reach_is_not_taken_for_a_damaged_one_and_deleted(
    bucket_here, run, mesh, monkeypatch, refused
):
    """A permission may be lost for a while. Else the run would go on from an older step, and delete the newer one."""
    save_steps(run, {10: None, 20: None})
    left = files_of(bucket_here, run)
    pattern = r"GET .*prefix=.*checkpoints/20" if refused == "LIST" else f"GET .*{refused}"
    bucket_here.control(fail=[Fault(pattern, status=403)])
    with pytest.raises(UserError, match=r"checkpoints/20 cannot be read now \(.*\): try again when the bucket answers"):
        restored(run, mesh)
    with pytest.raises(UserError, match="cannot be read now"):
        load_params(run)
    bucket_here.control(fail=[])
    assert files_of(bucket_here, run) == left
    assert_same_state(restored(run, mesh), make_state(20))


def test_a_first_save_that_was_cut_off_is_not_a_checkpoint(bucket_here, run, mesh):
    """In a bucket Orbax writes under the checkpoint's own name, and its mark last. A run must then begin anew."""
    save_steps(run, {10: None})
    for name in files_of(bucket_here, run):
        if name.endswith(("/10/commit_success.txt", "files.json")):
            bucket_here.delete(name)
    assert not has_checkpoints(run)
    assert restored(run, mesh) is None
    save_steps(run, {10: None})
    assert_same_state(restored(run, mesh), make_state(10))


def test_a_later_save_that_was_cut_off_leaves_the_one_before(bucket_here, run, mesh):
    save_steps(run, {10: None, 20: None})
    for name in files_of(bucket_here, run):
        if name.endswith(("/20/commit_success.txt", "20/files.json")):
            bucket_here.delete(name)
    assert_same_state(restored(run, mesh), make_state(10))


def test_a_save_costs_a_few_requests_more_than_orbax_own(bucket_here, run, mesh):
    checkpoints = Checkpoints(run, 2, 0, 0)
    for step in (10, 20):
        bucket_here.clear_log()
        checkpoints.save(placed(make_state(step), mesh, "data_parallel")[0], {"val/accuracy": 0.5})
        checkpoints.wait()
        ours = [entry for entry in bucket_here.log() if entry.user_agent.startswith(OURS)]
    checkpoints.close()
    assert 0 < len(ours) <= 5, [(entry.operation, entry.name) for entry in ours]


def test_a_refused_save_stops_the_run_and_the_older_checkpoints_remain(bucket_here, run, mesh, capfd):
    save_steps(run, {10: None})
    bucket_here.control(fail=[Fault("POST .*checkpoints/20/default", status=403)])
    checkpoints = Checkpoints(run, 1, 0, 0)
    with pytest.raises(UserError, match=r"checkpoint 20 could not be written to gs://.*the older ones remain: make"):
        checkpoints.save(placed(make_state(20), mesh, "data_parallel")[0], {})
    checkpoints.close()
    bucket_here.control(fail=[])
    assert_same_state(restored(run, mesh), make_state(10))
    assert "Traceback" not in capfd.readouterr().err


def test_a_bucket_that_refuses_to_be_opened_is_one_line(bucket_here, run):
    bucket_here.control(fail=[Fault("checkpoints", status=403)])
    with pytest.raises(UserError, match=r"the checkpoints in gs://.* cannot be listed"):
        has_checkpoints(run)
    with pytest.raises(UserError, match=r"gs://.*/checkpoints cannot be opened"):
        Checkpoints(run, 1, 0, 0)


def test_the_list_of_a_checkpoint_copied_from_a_bucket_to_a_disk_still_holds(bucket_here, run, tmp_path, mesh):
    save_steps(run, {10: None})
    for name in files_of(bucket_here, run):
        path = tmp_path / name.removeprefix(f"{key(bucket_here, run)}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket_here.content(name))
    copy = epath.Path(tmp_path) / "checkpoints" / "10"
    assert integrity.fault(copy) == ""
    assert_same_state(restored(tmp_path, mesh), make_state(10))
    for path in tmp_path.rglob("manifest.ocdbt"):
        path.write_bytes(np.flip(np.frombuffer(path.read_bytes(), np.uint8)).tobytes())
    assert integrity.fault(copy).endswith("manifest.ocdbt is not what was written")
