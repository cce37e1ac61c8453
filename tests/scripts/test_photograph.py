"""`scripts/photograph.py` on a page with as much as it looks for."""

import subprocess
import sys

import pytest
from PIL import Image

PAGE = '<h2 id="model">The model at work</h2><ol id="answer"><li>cat</li></ol>'


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture
def photograph(browser, tmp_path):  # the browser only says that there is one
    (tmp_path / "a.html").write_text(PAGE)
    command = [sys.executable, "-m", "scripts.photograph", str(tmp_path / "a.html")]
    return lambda folder: subprocess.run([*command, str(folder)], capture_output=True, text=True)


def test_the_folder_is_made(photograph, tmp_path):
    done = photograph(tmp_path / "new" / "figures")
    assert done.returncode == 0, done.stderr
    sizes = {path.name: size_of(path) for path in (tmp_path / "new" / "figures").iterdir()}
    assert sizes == {
        f"a_{width}_{scheme}.png": (width, height)
        for width, height in ((390, 844), (1280, 900))
        for scheme in ("light", "dark")
    }


def test_what_is_no_folder_is_told_in_one_line(photograph, tmp_path):
    done = photograph(tmp_path / "a.html")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'a.html'} is no folder and cannot become one")
    assert done.stderr.count("\n") == 1
