"""`make` takes the newest suitable Python that runs, and says what is wrong with one that it cannot take."""

import collections
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.specifiers import SpecifierSet

from scripts import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
Version = collections.namedtuple("Version", "major minor")


def chosen(folder, statuses, *arguments):
    """Returns the Python that make takes where each of these ends with its status."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    for name, status in statuses.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (folder / name).chmod(0o755)
    env = {"PATH": f"{folder}:/usr/bin:/bin"} | {key: value for key, value in os.environ.items() if key == "HOME"}
    printed = subprocess.run(
        ["make", "-n", "install", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=True
    ).stdout
    return printed.split()[0]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ({"python3.13": 0, "python3.12": 0, "python3.11": 0}, "python3.13"),
        ({"python3.13": 127, "python3.12": 0, "python3.11": 0}, "python3.12"),  # found, but does not run
        ({"python3.13": 1, "python3.12": 1, "python3.11": 1, "python3": 0}, "python3"),
        ({"python3.13": 1, "python3.12": 1, "python3.11": 1, "python3": 1}, "python3"),  # and environment.py complains
        ({".venv/bin/python": 0, "python3.13": 0}, ".venv/bin/python"),
    ],
    ids=str,
)
def test_make_takes_the_newest_python_that_runs(statuses, expected, tmp_path):
    assert chosen(tmp_path, statuses) == expected


def test_make_takes_the_python_that_is_given(tmp_path):
    assert chosen(tmp_path, {"python3.13": 0}, "PYTHON=python3.12") == "python3.12"


def test_the_versions_are_those_of_the_package():
    allowed = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    versions = [(3, minor) for minor in range(30) if f"3.{minor}" in allowed]
    assert [versions[0], versions[-1]] == [environment.LOWEST, environment.HIGHEST]


@pytest.mark.parametrize("minor", [10, 14])
def test_another_python_is_refused(minor, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "version_info", Version(3, minor))
    with pytest.raises(SystemExit, match=rf"is Python 3.{minor}; 3.11, 3.12 or 3.13 is needed: make PYTHON="):
        environment.main(str(tmp_path / "venv"))
    assert not (tmp_path / "venv").exists()


def test_an_environment_may_be_for_one_python_only(tmp_path):
    with pytest.raises(SystemExit, match=r"venv is for 3\.9: make PYTHON=python3\.9"):
        environment.main(str(tmp_path / "venv"), only="3.9")
    assert not (tmp_path / "venv").exists()


def test_an_environment_of_another_python_is_kept_and_refused(tmp_path):
    settings = "home = /usr/bin\nversion = 3.9.1\n"
    (tmp_path / "pyvenv.cfg").write_text(settings)
    with pytest.raises(SystemExit, match=r"has Python 3.9, not 3.1\d: remove it first \(rm -r "):
        environment.main(str(tmp_path))
    assert (tmp_path / "pyvenv.cfg").read_text() == settings


def test_an_environment_is_made_once(capfd, monkeypatch, tmp_path):
    folder, calls, run = tmp_path / "venv", [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: calls.append(given) or run(*given, **named))
    environment.main(str(folder))
    assert (folder / "bin/python").exists()
    environment.main(str(folder))
    assert len(calls) == 1
    assert capfd.readouterr().out.splitlines() == [f"{folder}: Python 3.{sys.version_info.minor}"] * 2
