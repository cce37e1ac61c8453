"""The commands work as a user without a name, without HOME, and with a HOME that cannot be written."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_run import ROOT, command, data_dir, environment  # noqa: F401

# A user number that /etc/passwd does not know, as after `docker run --user 4321`. The files are this user's own.
NAMELESS = ["unshare", "--user", "--map-user=4321", "--map-group=4321"]


def can_be_nameless() -> bool:
    try:
        return subprocess.run([*NAMELESS, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_be_nameless(), reason="needs unshare(1) and user namespaces")
@pytest.mark.parametrize("home", [None, pytest.param("/proc", marks=pytest.mark.slow)])  # nobody can write in /proc
def test_a_user_without_a_name_trains_evaluates_exports_and_predicts(data_dir, tmp_path, home):
    kept = {name: value for name, value in environment(1).items() if name not in ("HOME", "XDG_CACHE_HOME", "USER")}
    variables = {**kept, "HOME": home} if home else kept

    def run(arguments):
        done = subprocess.run(
            [*NAMELESS, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    run(command(data_dir, tmp_path / "run", total_steps=4, eval_steps=4))
    assert "continuing from step 4" in run(command(data_dir, tmp_path / "run", total_steps=4, eval_steps=4))
    picture = tmp_path / "a.png"
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(picture)
    mixer = [sys.executable, "-m"]
    checkpoint = f"--checkpoint={tmp_path / 'run'}"
    assert '"count": 8' in run([*mixer, "mixer.evaluate", checkpoint])
    run([*mixer, "mixer.export", checkpoint, "--to=npz", str(tmp_path / "a.npz")])
    assert "a.png" in run([*mixer, "mixer.predict", f"--checkpoint={tmp_path / 'a.npz'}", str(picture)])
    assert not (ROOT / "~").exists()
