"""A bucket that refuses to delete an old checkpoint: the new one was written and must not count as a failed one."""

import errno
import re

import jax
import pytest
from etils import epath
from test_checkpoint import assert_same_state, make_state, placed, save_steps
from test_checkpoint_in_bucket import restored, run  # noqa: F401 (a fixture)

from mixer.runtime.errors import UserError
from mixer.training import integrity
from mixer.training.checkpoint import Checkpoints
from tests.bucket.faults import Fault


@pytest.mark.parametrize("times", [1, None], ids=["once", "for good"])
@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_the_new_checkpoint_remains(bucket_here, run, mesh, caplog, on_error, times):  # noqa: F811
    save_steps(run, {10: None})
    bucket_here.control(fail=[Fault("DELETE .*checkpoints/10/", status=403, times=times)])
    checkpoints = Checkpoints(run, 1, 0, 0, on_error)
    checkpoints.save(placed(make_state(20), mesh, "data_parallel")[0], {})
    told = r"checkpoint 20 was written, but an older one could not be deleted from gs://.*/checkpoints \("
    if on_error == "stop":
        with pytest.raises(UserError, match=told):
            checkpoints.wait()
    else:
        checkpoints.wait()
        assert any(record.getMessage().startswith("checkpoint 20 was written") for record in caplog.records)
        if times == 1:  # the next save tries again
            checkpoints.save(placed(make_state(30), mesh, "data_parallel")[0], {})
            checkpoints.settle()
    checkpoints.close()
    bucket_here.control(fail=[])
    assert_same_state(restored(run, mesh), make_state(30 if on_error == "continue" and times == 1 else 20))


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_on_a_disk_too(tmp_path, mesh, monkeypatch, caplog, on_error):
    """A file that another program has open over NFS keeps its folder."""
    checkpoints = Checkpoints(tmp_path, 1, 0, 0, on_error)
    wait = checkpoints._manager.wait_until_finished

    def wait_and_fail():
        wait()
        if (tmp_path / "checkpoints" / "20").exists():
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", wait_and_fail)
    checkpoints.save(placed(make_state(20), mesh, "data_parallel")[0], {})
    told = rf"checkpoint 20 was written, but an older one could not be deleted from {tmp_path}/checkpoints \("
    if on_error == "stop":
        with pytest.raises(UserError, match=told):
            checkpoints.settle()
    else:
        checkpoints.settle()  # a run that is saved ends as one
        assert re.match(told, caplog.records[-1].getMessage())
    checkpoints.close()
    assert integrity.steps_of(epath.Path(tmp_path) / "checkpoints") == [20]


def test_too_little_memory_is_no_fault_of_a_checkpoint(tmp_path, mesh, monkeypatch):
    """Else a whole checkpoint would count as damaged, and be deleted once an older one can be read."""
    save_steps(tmp_path, {10: None, 20: None})

    def fail(*arguments, **named):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    _, shapes, shardings = placed(make_state(0), mesh, "data_parallel")
    checkpoints = Checkpoints(tmp_path, 2, 0, 0)
    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        checkpoints.restore(shapes, shardings)
    checkpoints.close()
    assert integrity.steps_of(epath.Path(tmp_path) / "checkpoints") == [10, 20]
