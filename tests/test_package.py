"""What a source distribution holds."""

import pathlib
import shutil
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "docs", "findings", "mixer", "notebooks", "scripts", "tests")
FILES = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "MANIFEST.in", "README.md", "SECURITY.md",
    "constraints.txt", "pyproject.toml",
)  # fmt: skip


def test_a_source_distribution_is_whole(tmp_path):
    """So that the tests in it run."""
    tree = tmp_path / "tree"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, tree)
    expected = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    done = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        found = {name.partition("/")[2] for name in opened.getnames()}
    assert expected - found == set()
