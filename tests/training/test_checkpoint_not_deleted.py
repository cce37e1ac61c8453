"""A bucket that refuses to delete an old checkpoint: the new one was written and must not count as a failed one."""

import pytest
from test_checkpoint import assert_same_state, make_state, placed, save_steps
from test_checkpoint_in_bucket import restored, run  # noqa: F401 (a fixture)

from mixer.runtime.errors import UserError
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
