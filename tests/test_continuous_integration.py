"""What GitHub Actions and pre-commit run is what the Makefile runs, and the versions agree."""

import pathlib
import re
import shlex
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    requirement
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, group)
    if str(requirement) not in ("jax[tpu]", "jax[cuda12]", "mixer-jax[tpu]", "mixer-jax[quickstart]")  # named elsewhere
]


def recipes() -> dict[str, list[str]]:
    """Returns the lines of each target of the Makefile."""
    found = re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target: [line.strip() for line in lines.splitlines()] for target, lines in found}


def jobs(workflow: pathlib.Path) -> dict[str, dict]:
    return yaml.safe_load(workflow.read_text())["jobs"]


def steps(workflow: pathlib.Path) -> list[dict]:
    return [step for job in jobs(workflow).values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_targets_and_pins_actions_by_major_version(workflow):
    loaded = yaml.load(workflow.read_text(), yaml.BaseLoader)  # a safe loader reads the key `on` as True
    assert set(loaded) >= {"name", "on", "permissions", "jobs"}
    assert loaded["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        if "run" in step:
            make, target = shlex.split(step["run"])
            assert make == "make"
            assert target in recipes()
        else:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_every_python_that_the_package_allows_is_tested():
    allowed = SpecifierSet(PROJECT["requires-python"])
    pythons = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed]
    by_job = {name: job for workflow in WORKFLOWS for name, job in jobs(workflow).items()}
    for name in ("test", "newest"):
        assert by_job[name]["strategy"]["matrix"]["python"] == pythons
    (setup,) = (step for step in by_job["lowest"]["steps"] if "with" in step)
    assert setup["with"]["python-version"] == pythons[0]


def test_pre_commit_runs_what_lint_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"  # of another one, the version would stand in two places
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert entries == [line.replace("$(BIN)", ".venv/bin") for line in recipes()["lint"]]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_a_dependency_has_a_lowest_version_and_the_pinned_one_is_not_lower(requirement):
    assert [bound.operator for bound in requirement.specifier] == [">="]
    pinned = re.findall(rf"^{requirement.name}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned, f"{requirement.name} is missing in constraints.txt: make lock"
    assert all(version in requirement.specifier for version in pinned)


def test_each_python_has_one_version_of_each_library_and_a_later_python_a_later_jax():
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    jax = {}
    for python in ("3.11", "3.12", "3.13"):
        place = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux",
                 "platform_machine": "x86_64", "platform_system": "Linux"}  # fmt: skip
        names = [line.name for line in lines if line.marker is None or line.marker.evaluate(place)]
        assert len(names) == len(set(names))
        (pinned,) = (line for line in lines if line.name == "jax" and line.marker.evaluate(place))
        (jax[python],) = (Version(bound.version) for bound in pinned.specifier)
    assert jax["3.11"] < Version("0.12") <= jax["3.12"] == jax["3.13"]
