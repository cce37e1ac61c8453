"""-h and --help of every command: at once, with status 0, and with all of its own flags and no others."""

import json
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "export",
    "sweep",
    "verify_resume",
    "benchmark",
    "preflight",
    "visualize",
    "report",
]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
PREPARED = re.findall(r"(?m)^    python scripts/prepare\.py (\w+)", (ROOT / "scripts/prepare.py").read_text())
CALLED = [
    *([f"scripts/{name}.py"] for name in SCRIPTS),
    *(["scripts/prepare.py", name] for name in PREPARED),
    ["-m", "mixer.config.describe"],
]

# Prints the flags of a command, and for each group what its example sets.
FLAGS = """
import importlib, json, shlex, sys
from absl import flags
from mixer.config import help_text
command = importlib.import_module(sys.argv[1])
theirs = set(flags.FLAGS)
command.define_flags()
own = [name for name in flags.FLAGS if name not in theirs and not name.startswith("config.")]
examples = {}
for title, example, names in help_text._groups:
    words = [word for word in shlex.split(example) if not word.startswith("--config")]
    flags.FLAGS([sys.argv[1], *words], known_only=False)
    examples[title] = [name for name in names if flags.FLAGS[name].present or f"--{name}" in example]
    flags.FLAGS.unparse_flags()
print(json.dumps([own, examples]))
"""


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_is_short_and_whole(name):
    text, seconds = run("-m", f"mixer.{name}", "--checkpoint", "x", "-h")
    assert seconds < 1
    own, examples = json.loads(run("-c", FLAGS, f"mixer.{name}")[0])
    assert re.findall(r"(?m)^  --(?:\[no\])?(\w+)", text) == own
    assert all(examples.values()), "the example of a group uses none of its flags"
    for title in examples:
        assert f"\n\n{title}:\n  --" in text
    assert text.count(f"\n  for example: python -m mixer.{name} --") == len(examples)
    assert not re.search(r"(?m)^.{121}", text)
    assert "/" not in text.split("\n")[0].split("`")[0]  # what it does, and not the path of a source file


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_waits_for_no_large_library(name):
    script = (
        "import sys, runpy, atexit\n"
        f"sys.argv = ['{name}', '--help']\n"
        "atexit.register(lambda: print(*({'jax', 'tensorflow', 'orbax', 'flax'} & sys.modules.keys())))\n"
        f"runpy.run_module('mixer.{name}', run_name='__main__')\n"
    )
    assert run("-c", script)[0].splitlines()[-1] == ""


@pytest.mark.parametrize("called", CALLED, ids=" ".join)
def test_the_help_of_a_script(called):
    """Also without what the script needs besides: timm and torch are not in the environment of tests."""
    text, seconds = run(*called, "-h")
    assert run(*called, "--help")[0] == text
    assert seconds < 1
    script, *rest = called
    module = rest[0] if script == "-m" else script.removesuffix(".py").replace("/", ".")
    example = rf"-m {module}\b" if script == "-m" or not rest else " ".join(called)
    assert re.search(rf"(?m)^    python ({example}|{script})", text) or f"usage: python {script}" in text
    for flag in re.split(r"\n(?=  -)", text.partition("\noptions:\n")[2]):
        assert not flag or re.search(r"\S {2,}\S|\n {10,}\S", flag.strip()), f"{flag.strip()}: what does it do?"


def test_the_names_of_formats_and_registries_are_those_of_the_registries():
    from mixer import benchmark, evaluate
    from mixer.data.pixels import crops
    from mixer.performance import model_speed
    from mixer.transfer import formats, resolution

    assert list(resolution.METHODS) == evaluate._RESIZES
    assert list(crops.EVAL_CROPS) == evaluate._EVAL_CROPS
    assert list(model_speed.MODES) == benchmark._MODES
    assert f"{{{','.join(model_speed.MODES)}}}" in run("scripts/against_timm.py", "--help")[0]
    text = run("-m", "mixer.export", "--help")[0]
    for name, form in formats.FORMATS.items():
        assert name in text
        assert form.suffix in text


def test_a_reader_that_has_enough_of_the_help_is_no_error():
    """As in `--help | head -1`; the pipe is closed before the command writes."""
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "mixer.train", "--help"],
        cwd=ROOT, stdout=written, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(written)
    assert (done.returncode, done.stderr) == (0, "")
