"""The commands work as a user without a name, without HOME, and with a HOME that cannot be written."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_run import ROOT, command, data_dir  # noqa: F401

from tests.commands import environment

# A user number that /etc/passwd does not know, as after `docker run --user 4321`. The files are this user's own.
NAMELESS = ["unshare", "--user", "--map-user=4321", "--map-group=4321"]

# Runs commands one after the other; all are this user's.
COMMANDS = """
import json, sys
from tests import commands
for name, *arguments in json.loads(sys.argv[1]):
    done = commands.run(name, *arguments, devices=1)
    print(json.dumps([name, done.returncode, done.stdout, done.stderr]))
"""


def can_be_nameless() -> bool:
    try:
        return subprocess.run([*NAMELESS, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_namespaces = pytest.mark.skipif(not can_be_nameless(), reason="needs unshare(1) and user namespaces")

STAT = """
from etils import epath
from mixer.runtime import owners
owners.do_without()
found = epath.Path("README.md").stat()
print(found.length, found.is_directory)
"""


@needs_namespaces
def test_files_of_an_owner_without_a_name_can_be_looked_at():
    """Also where libraries use epath's `stat`, which asks for the names of owners."""
    done = subprocess.run(
        [*NAMELESS, sys.executable, "-c", STAT], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str((ROOT / "README.md").stat().st_size), "False"]


@needs_namespaces
@pytest.mark.parametrize("home", [None, pytest.param("/proc", marks=pytest.mark.slow)])  # nobody can write in /proc
def test_a_user_without_a_name_trains_evaluates_exports_and_predicts(data_dir, tmp_path, home):
    kept = {name: value for name, value in environment(1).items() if name not in ("HOME", "XDG_CACHE_HOME", "USER")}
    picture, run, exported = (tmp_path / name for name in ("a.png", "run", "a.npz"))
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(picture)
    _, _, *training = command(data_dir, run, total_steps=4, eval_steps=4)
    words = json.dumps([
        training,
        training,
        ["mixer.evaluate", f"--checkpoint={run}"],
        ["mixer.export", f"--checkpoint={run}", "--to=npz", str(exported)],
        ["mixer.predict", f"--checkpoint={exported}", str(picture)],
    ])  # fmt: skip
    done = subprocess.run(
        [*NAMELESS, sys.executable, "-c", COMMANDS, words], cwd=ROOT, env={**kept, "HOME": home} if home else kept,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = []
    for line in done.stdout.splitlines():
        name, status, stdout, stderr = json.loads(line)
        assert status == 0, (name, stderr)
        assert "Traceback" not in stderr
        said.append(stdout)
    _, again, evaluated, _, predicted = said
    assert "continuing from step 4" in again
    assert '"count": 8' in evaluated
    assert "a.png" in predicted
    assert not (ROOT / "~").exists()
