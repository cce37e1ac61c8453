"""A run loses the permission to write to its folder. tests/chaos (disk) tries a full disk."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import os
import shutil
import subprocess

import pytest
from tiny_run import ROOT, command, data_dir, run  # noqa: F401
from wait_for_line import wait_for

from mixer.training.metrics import read_metrics

# Root may write anywhere. Without these capabilities, root needs permissions like any other user.
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []

pytestmark = pytest.mark.skipif(
    bool(AS_ANYBODY) and not shutil.which("setpriv"), reason="root without setpriv (util-linux) may write anywhere"
)


def set_writable(folder, writable):
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755 if writable else 0o555)


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_a_lost_permission_stops_the_run_or_not(on_error, data_dir, tmp_path):
    settings = {"total_steps": 400, "log_steps": 10, "checkpoint_steps": 100, "eval_steps": 400}
    settings["checkpoint.on_error"] = on_error
    process = subprocess.Popen(
        [*AS_ANYBODY, *command(data_dir, tmp_path, **settings)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    wait_for(process, "step 210/400")
    set_writable(tmp_path, False)
    try:
        if on_error == "continue":
            wait_for(process, "step 320/400")
            set_writable(tmp_path, True)
        complained = process.communicate(timeout=120)[1]
    finally:
        set_writable(tmp_path, True)
    lines = complained.splitlines()
    assert "Traceback" not in complained
    if on_error == "stop":
        assert process.returncode == 1
        assert len(lines) == 1, complained
        assert lines[0].startswith("error: ")
        assert "Permission denied" in lines[0]
        again = run(command(data_dir, tmp_path, **settings), devices=1)
        assert again.returncode == 0, again.stderr
        assert "continuing from step" in again.stdout
    else:
        assert process.returncode == 0, complained
        assert any("heckpoint" in line and "Permission denied" in line for line in lines), complained
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(10, 401, 10))
