"""The pages: their links work, and the files, commands and `make` targets that they name exist."""

import collections
import functools
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from mixer.config import evaluator_settings, settings
from mixer.data.pixels import image_status
from mixer.evaluation import accuracy

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(page for folder in ("docs", "findings") for page in sorted((ROOT / folder).rglob("*.md"))),
]
FOLDERS = ("mixer", "configs", "scripts", "tests", "docs", "findings")

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
FENCE = re.compile(r"^\s*```.*?^\s*```", re.DOTALL | re.MULTILINE)
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*[\w/]")
COMMAND = re.compile(r"python -m ((?:mixer|scripts|tests)[\w.]*)")
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
CONSOLE = "|".join(name.removeprefix("mixer-") for name in SCRIPTS)
CALL = re.compile(
    r"(?:python -m (?P<module>(?:mixer|scripts|tests)[\w.]*)|python (?P<script>scripts/\w+)\.py"
    rf"|(?<![\w/-])mixer-(?P<console>{CONSOLE})\b)(?P<rest>.*)"
)
FLAG = re.compile(r"(?<![\w-])--?([a-zA-Z][\w.-]*)")
MAKE = re.compile(r"(?:^|`)make (?:[A-Z]+=\S+ )*([a-z][a-z-]*)", re.MULTILINE)


def name_of(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: pathlib.Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def code_of(page: pathlib.Path) -> str:
    return "\n".join(CODE.findall(page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_in_code_exist(page):
    for path in PATH.findall(code_of(page)):
        exists = (ROOT / path).exists()
        if page.name == "extending.md":  # it names files for the reader to make
            exists = (ROOT / path).parent.exists()
        assert exists, f"{path} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page):
    for module in COMMAND.findall(code_of(page)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{module} does not exist"


def calls_of(page: pathlib.Path) -> list[tuple[str, list[str]]]:
    """Returns the commands of this project in a page's code: the module of each, and the flags that it is given."""
    found = []
    for line in code_of(page).replace("\\\n", " ").splitlines():
        for call in CALL.finditer(line):
            own, _, trains = re.split(r"[`|;#>&]", call["rest"])[0].partition(" -- ")
            module = (call["module"] or call["script"] or f"mixer.{call['console']}".replace("-", "_")).replace(
                "/", "."
            )
            subcommand = re.match(r"\s+([a-z]\w+)", own) if module == "scripts.prepare" else None
            found.append((f"{module} {subcommand[1]}" if subcommand else module, FLAG.findall(own)))
            found.append(("mixer.train", FLAG.findall(trains)))
    return [(module, flags) for module, flags in found if flags]


@functools.cache
def flags_of(module: str) -> set[str]:
    """Returns the flags that the help of a command shows; the module may be followed by a command of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *module.split(), "-h"]
    text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"--(\[no\])?([\w-]+)", text)
    return {"h", "help"} | {name for _, name in found} | {f"no{name}" for negated, name in found if negated}


@pytest.mark.parametrize("page", [page for page in PAGES if calls_of(page)], ids=name_of)
def test_flags_of_commands_exist(page):
    evaluators = [rf"evaluators\.\w+\.{name}" for name in evaluator_settings.EVALUATOR]
    known = re.compile("|".join([*map(re.escape, settings.SETTINGS), *evaluators, "NAME"]))
    for module, flags in calls_of(page):
        for flag in flags:
            if flag.startswith("config."):
                assert known.fullmatch(flag.removeprefix("config.")), f"{module}: no --{flag}"
            else:
                assert flag in flags_of(module), f"{module}: no --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in MAKE.findall(code_of(page)):
        assert target in targets, f"make {target}: no such target"


def test_every_page_can_be_reached_from_the_readme():
    linked, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        for target in LINK.findall(FENCE.sub("", page.read_text())):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path.suffix == ".md" and path.exists() and path not in linked:
                linked.add(path)
                waiting.append(path)
    assert set(PAGES) - {ROOT / "README.md"} <= linked


def test_the_map_names_every_module_and_no_other():
    """The map in docs/architecture.md has a paragraph for each room, which begins with its folder."""
    rooms = re.search(r"## Rooms\n+```\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
    assert rooms
    paragraphs = re.split(r"^(mixer/\S*)", rooms[1], flags=re.MULTILINE)[1:]
    for folder, text in zip(paragraphs[::2], paragraphs[1::2], strict=True):
        named = set(re.findall(r"(?<![\w/])\w+\.py", text))
        found = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
        assert named == found, folder
    assert set(paragraphs[::2]) == {"mixer/"} | {
        f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / "mixer").glob("*/**/__init__.py")
    }


def test_figures_are_small_enough_for_a_page():
    for figure in (ROOT / "docs/figures").iterdir():
        assert figure.stat().st_size < 100_000


def test_the_findings_are_the_scripts_of_their_table():
    scripts = sorted((ROOT / "findings").glob("*.sh"))
    table = re.findall(r"^\| \[\w+\]\((\w+\.sh)\)", (ROOT / "findings/README.md").read_text(), re.MULTILINE)
    assert table == [script.name for script in scripts]
    assert set(re.findall(r"\w+\.sh", (ROOT / "findings/GUESSES.md").read_text())) == set(table)
    for script in scripts:
        assert os.access(script, os.X_OK), script.name
        text = script.read_text()
        for part in (
            "#!/usr/bin/env bash\n# ",
            "\n# Guess: ",
            "\nset -euo pipefail\nfolder=$(mktemp -d)\ntrap 'rm -rf \"$folder\"' EXIT\n",
            "\n# Output seen on ",
        ):
            assert part in text, f"{script.name} lacks {part!r}"


def test_code_that_a_reader_adds_passes_the_checks():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.M | re.S)
    assert len(blocks) > 8
    assert [line for block in blocks for line in block.splitlines() if len(line) > 120] == []
    modules = [block for block in blocks if block.startswith('"""')]
    assert len(modules) == 4
    for module in modules:
        for check in (["check"], ["format", "--diff"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *check, "--stdin-filename=mixer/new.py", "-"], cwd=ROOT, input=module,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
        exec(compile(module, "new.py", "exec"), {"__name__": "new"})  # what it imports is there


def test_a_folder_of_a_run_belongs_to_one_config():
    """So a reader who follows the pages in turn does not find another model where a command expects its own."""
    configs = collections.defaultdict(set)
    for page in PAGES:
        for line in code_of(page).replace("\\\n", " ").splitlines():
            for call in re.finditer(r"python -m mixer\.train\b([^;|#]*)", line):
                config, workdir = (re.search(rf"--{flag}[ =]([^\s`]+)", call[1]) for flag in ("config", "workdir"))
                if config and workdir and not workdir[1].isupper():
                    configs[workdir[1]].add(config[1].removeprefix("configs/").replace(".py", ""))
    assert len(configs) > 10
    assert {workdir: found for workdir, found in configs.items() if len(found) > 1} == {}


def test_every_metric_of_an_evaluation_is_explained():
    statuses = np.array([4, *[1] * (len(image_status.STATUSES) - 1)])
    sums = {"count": np.array(4), "labelled": np.array(3), "loss": np.array(1.0), "correct": np.array(2),
            "with_loss": np.array(3), "statuses": statuses, "top5": np.array(3)}  # fmt: skip
    of_classes = {"class_count": np.array([2, 1]), "class_correct": np.array([1, 1])}
    kept = [(np.eye(4, 2), np.array([[0], [1], [1], [-1]]))]
    single = accuracy.evaluation_of(sums | of_classes, [], int(statuses.sum()), "a split")
    several = accuracy.evaluation_of(sums, kept, int(statuses.sum()), "a split")
    text = (ROOT / "docs/training.md").read_text()
    for name in single.metrics | several.metrics:
        assert f"`val/{re.sub('bad_images/.*', 'bad_images/KIND', name)}`" in text, name
