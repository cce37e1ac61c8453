"""The experiments of the paper at a tiny size, as processes: stopped, killed and continued, with table and picture."""

import json
import pathlib
import signal
import subprocess
import sys

import pytest
from PIL import Image
from tiny_sweep import write_cifar10

from mixer import experiment
from mixer.config import checks, recipe, run_folder
from mixer.data import sources
from mixer.training.metrics import read_metrics
from scripts import permutation, scaling
from tests.commands import environment

pytest.importorskip("sklearn")

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENV = environment(1)

# A script with models of a few thousand parameters, and on fewer and smaller subsets.
TINY = """
import runpy, sys
from mixer import experiment
small = {"num_blocks": 1, "hidden_dim": 12, "channels_mlp_dim": 16}
experiment.MODELS = {
    "Mixer": {"variant": "Ti/8", **small, "tokens_mlp_dim": 8}, "BiT": {"variant": "ViT-Ti/8", **small}
}
script, sys.argv = sys.argv[1], sys.argv[1:]
scope = runpy.run_path(script)
change = scope.get("UPSTREAMS", {})
if change:
    change["fractals"] = change["fractals"]._replace(dataset="fractals/4x40x32")
    scope["main"].__globals__.update(SHARES=(25, 100), EVALUATIONS=2)
sys.modules[scope["main"].__module__] = type(sys)("script")
from mixer.config import command_line
command_line.run(scope["main"], scope["define_flags"])
"""

# Imports once, then the script in a fork for each of its command lines.
MISTAKES = """
import json, os, sys
from mixer.config import command_line
from scripts import permutation
for sys.argv in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        os.dup2(1, 2)
        try:
            command_line.run(permutation.main, permutation.define_flags)
        except SystemExit as end:
            print(end.code, flush=True)
            os._exit(1)
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def command(script, output, **given):
    return [sys.executable, "-c", TINY, f"scripts/{script}.py", *(f"--{name}={value}" for name, value in given.items()),
            f"--output={output}"]  # fmt: skip


def run(arguments, status=0):
    done = subprocess.run(arguments, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def interrupted(arguments, at, by):
    """Runs a command until it prints a line that begins like this, then signals it. Returns its status and output."""
    process = subprocess.Popen(arguments, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True)
    printed = []
    with process.stdout:
        for line in process.stdout:
            printed.append(line)
            if line.startswith(at):
                process.send_signal(by)
                at = "-"
    return process.wait(), "".join(printed)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return write_cifar10(tmp_path_factory.mktemp("data"))


@pytest.mark.slow  # six runs, stopped and killed between; `test_a_mistake_...` starts the script each time
def test_permutation(data_dir, tmp_path):
    folder = tmp_path / "out"
    arguments = command("permutation", folder, data_dir=data_dir, epochs=1.28, seeds=1)  # 4 steps
    status, printed = interrupted(
        arguments, "[2/6] Mixer, patches, and pixels within them, seed 0  step", signal.SIGTERM
    )
    assert status == 75
    assert printed.endswith("of 4; the same command continues\n")
    assert not (folder / "results.json").exists()
    before = (folder / "mixer_none_0" / "metrics.jsonl").stat().st_mtime_ns

    done = run(arguments)
    assert done.stderr == ""
    assert "[1/6] Mixer, as they are, seed 0  done before, accuracy 0." in done.stdout
    assert (folder / "mixer_none_0" / "metrics.jsonl").stat().st_mtime_ns == before
    for model in ("mixer", "bit"):
        for way, patch in (("none", None), ("patches", 4), ("pixels", None)):
            config = run_folder.load_config(folder / f"{model}_{way}_0")
            assert (config.input.permutation, config.input.permutation_patch, config.seed) == (way, patch, 0)
            assert [line["step"] for line in read_metrics(folder / f"{model}_{way}_0")] == [4]
    found = json.loads((folder / "results.json").read_text())
    accuracy = found["accuracy"]["Mixer"]
    assert accuracy["pixels"] == [read_metrics(folder / "mixer_pixels_0")[-1]["val/accuracy"]]
    table = (folder / "results.md").read_text()
    assert table.startswith("| model | pixels permuted")
    assert table in done.stdout + "\n"
    assert f"| Mixer | as they are                     | {100 * accuracy['none'][0]:.1f} " in table
    with Image.open(folder / "permutation.png") as picture:
        assert picture.width > 600


@pytest.mark.slow  # it goes through its runs as the other does
def test_scaling(tmp_path):
    folder = tmp_path / "out"
    arguments = command("scaling", folder, steps=4, seeds=1)
    status, _ = interrupted(arguments, "[3/4] Mixer, 100%, seed 0  step", signal.SIGKILL)
    assert status == -signal.SIGKILL
    done = run(arguments)
    assert "[2/4] BiT, 25%, seed 0  done before, accuracy 0." in done.stdout
    assert "25% are 36 images, of each class " in done.stdout

    found = json.loads((folder / "results.json").read_text())
    assert [of["images"] for of in found["subsets"]] == [36, 144]
    for model in ("Mixer", "BiT"):
        for subset in found["subsets"]:
            run_of = folder / f"{model.lower()}_{subset['share']}_0"
            assert run_folder.load_config(run_of).input.train_split == f"train[:{subset['images']}]"
            lines = [line for line in read_metrics(run_of) if "val/accuracy" in line]
            assert [line["step"] for line in lines] == [0, 2, 4]
            (best,) = found["best"][model][str(subset["share"])]
            untrained, first, second = lines
            assert found["untrained"][model] == [untrained["fewshot/digits_32_5shot"]]
            expected = first if first["val/accuracy"] > second["val/accuracy"] else second
            assert best == {"step": expected["step"], "validation": expected["val/accuracy"],
                            "few_shot": expected["fewshot/digits_32_5shot"]}  # fmt: skip
            assert (run_of / "checkpoints" / str(best["step"])).is_dir()
    assert (folder / "results.md").read_text() in done.stdout + "\n"
    with Image.open(folder / "scaling.png") as picture:
        assert picture.width > 600


def test_a_record_that_cannot_be_read_is_counted_in_no_class(monkeypatch, capsys):
    """It is one of the subset's images all the same: a subset is the beginning of the split."""
    labels = [0, 1, 0, 1, 0, 1, 1, 1]

    def fetch(numbers):
        return [sources.Example(*((None, ()) if n in (1, 5) else (b"file", (labels[n],)))) for n in numbers]

    monkeypatch.setattr(scaling, "_source", lambda: sources.Source(8, ("a", "b"), 1, False, fetch))
    monkeypatch.setattr(scaling, "SHARES", (50, 100))
    assert scaling._subsets() == [scaling.Subset(50, 4, 1, 2), scaling.Subset(100, 8, 3, 3)]
    assert capsys.readouterr().out.splitlines()[0] == "50% are 4 images, of each class 1 to 2"


def test_a_mistake_is_one_line_and_trains_nothing(data_dir, tmp_path):
    other = tmp_path / "other"
    (other / "bit_pixels_0" / "checkpoints" / "5").mkdir(parents=True)
    run_folder.save(checks.checked(recipe.base()), ["a", "b"], other / "bit_pixels_0")
    mistakes = {
        ("--epochs=0",): "error: --epochs=0.0: expected a finite number above 0",
        ("--seeds=0",): "error: flag --seeds=0: ",
        (f"--data_dir={data_dir}", f"--output={other}"): f"error: {other}/bit_pixels_0 holds a run of another config (",
        ("--output=/dev/null",): "error: --output /dev/null cannot be written to (",
    }
    output = f"--output={tmp_path / 'out'}"
    given = [["scripts/permutation.py", output, *arguments] for arguments in mistakes]
    done = run([sys.executable, "-c", MISTAKES, json.dumps(given)])
    lines = done.stdout.splitlines()
    assert lines[1::2] == ["status 1"] * len(mistakes), done.stdout
    for line, expected in zip(lines[::2], mistakes.values(), strict=True):
        assert line.startswith(expected)


def test_a_bar_of_runs_that_all_diverged_says_so():
    accuracies = {model: {way: [0.5] for way in permutation.WAYS} for model in permutation.COMPARED}
    (model, *_), (way, *_) = permutation.COMPARED, permutation.WAYS
    accuracies[model] = accuracies[model] | {way: []}
    (axes,) = permutation._figure(accuracies).axes
    told = [text.get_text() for text in axes.texts]
    assert sorted(told) == [*["50.0"] * (len(told) - 1), "diverged"]
    assert len(told) == len(permutation.COMPARED) * len(permutation.WAYS)


def test_a_spread_is_the_standard_deviation_in_per_cent():
    assert experiment.spread([0.5, 0.52, 0.54], 3) == "52.0 +- 2.0"
    assert experiment.spread([0.5, 0.52, 0.54], 4) == "52.0 +- 2.0 (1 diverged)"
    assert experiment.spread([0.5], 1) == "50.0"
    assert experiment.spread([0.5], 3) == "50.0 (2 diverged)"
    assert experiment.spread([], 2) == "diverged"


def test_a_table_is_aligned():
    assert experiment.table(("a", "long"), [("x", 1), ("yyy", 22)]) == (
        "| a   | long |\n|-----|------|\n| x   | 1    |\n| yyy | 22   |"
    )
