"""The sweep: choice and averages, its table, what it refuses, and the command killed and continued."""

import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from flax import traverse_util

from mixer import models, sweep
from mixer.config import checks, paper, recipe, run_folder, tasks
from mixer.runtime import preemption
from mixer.runtime.errors import DivergedError, UserError
from mixer.sweep import choose
from mixer.transfer import sweep_results
from mixer.transfer.sweep_results import Outcome

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A model of a few thousand parameters and a training of seconds.
TINY = {
    "model.num_blocks": 1,
    "model.hidden_dim": 16,
    "model.channels_mlp_dim": 32,
    "batch_size": 16,
    "total_steps": 4,
    "warmup_steps": 1,
    "log_steps": 1,
    "checkpoint_steps": 1,
}

# One device: a process does not inherit the eight virtual ones of the tests.
ENV = {**os.environ, "XLA_FLAGS": ""}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    """A CIFAR-10 of 200 and 50 grey images, each class of a shade of its own, where TFDS finds it."""
    folder = tmp_path_factory.mktemp("data")
    features = tfds.builder("cifar10", data_dir=folder).info.features

    def examples(count):
        shade = 25 * np.ones((32, 32, 3), np.uint8)
        return [(i, {"id": str(i), "image": i % 10 * shade, "label": i % 10}) for i in range(count)]

    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version="3.0.2",
        features=features,
        split_datasets={"train": examples(200), "test": examples(50)},
        data_dir=folder,
    )
    return str(folder)


# ------------------------------------------------------------------------------------------------ choice and averages


@pytest.mark.parametrize(
    ("grid", "chosen"),
    [
        ({0.003: 0.1, 0.01: 0.3, 0.03: 0.2}, 0.01),
        ({0.003: 0.1, 0.03: 0.3, 0.01: 0.3}, 0.01),  # a tie: the smaller
        ({0.003: 0.1, 0.01: None}, 0.003),
        ({0.003: None, 0.01: 0.0}, 0.01),  # what diverged is worse than what knows nothing
        ({0.003: None, 0.01: None}, None),
    ],
    ids=str,
)
def test_the_choice_of_a_learning_rate(grid, chosen):
    assert choose(grid) == chosen


def outcome(*seeds: float | None, **fields) -> Outcome:
    settings = {"grid": {0.01: 0.5, 0.03: None}, "dev_count": 1_000, "chosen": 0.01, "count": 10_000, **fields}
    return Outcome(seeds=list(seeds), **settings)


def test_mean_and_standard_deviation():
    three = outcome(0.90, 0.92, 0.97)
    assert three.mean == pytest.approx(0.93)
    assert three.std == pytest.approx(np.std([0.90, 0.92, 0.97], ddof=1))
    assert outcome(0.9).std is None


def test_seeds_that_diverged_are_left_out():
    two = outcome(0.90, None, 0.94)
    assert (two.mean, two.std) == (pytest.approx(0.92), pytest.approx(np.std([0.90, 0.94], ddof=1)))
    none = outcome(None, None, count=None)
    assert (none.mean, none.std) == (None, None)


FIVE = {name: outcome(0.90 + i / 100, 0.92 + i / 100) for i, name in enumerate(tasks.AVG5)}


def test_the_average_is_over_all_five_or_none():
    assert sweep_results.average(FIVE) == pytest.approx(0.93)
    assert sweep_results.average({name: FIVE[name] for name in list(FIVE)[1:]}) is None
    assert sweep_results.average({**FIVE, "beans": outcome(0.1)}) == pytest.approx(0.93)
    assert sweep_results.average({**FIVE, "cifar10": outcome(None)}) is None


def cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def test_the_table_has_the_papers_numbers_where_there_are_any():
    head, rule, *rows = cells(sweep_results.table(FIVE, paper.find("B/16", "i21k", 224)))
    assert {len(row) for row in rows} == {len(head)} == {len(rule)}
    assert [row[0] for row in rows] == [*tasks.AVG5, "average of the five"]
    assert [row[head.index("paper")] for row in rows] == ["80.64", "-", "-", "-", "-", "92.50"]
    assert rows[0] == [
        "imagenet2012", "91.00", "1.41", "2", "10,000", "80.64", "0.01", "0.01: 50.00, 0.03: diverged",
    ]  # fmt: skip
    assert rows[-1][1] == "93.00"


def test_the_table_of_one_task_and_one_seed_without_a_choice():
    rows = cells(
        sweep_results.table({"cifar10": outcome(0.5, grid={}, dev_count=None)}, paper.find("B/16", "i21k", 224))
    )
    assert rows[2:] == [["cifar10", "50.00", "-", "1", "10,000", "-", "0.01", "-"]]


def test_the_table_says_what_diverged():
    some, none = outcome(0.5, None, 0.5, grid={}), outcome(None, None, grid={}, count=None)
    rows = cells(sweep_results.table({**FIVE, "cifar10": some, "cifar100": none}, None))
    assert rows[3] == ["cifar10", "50.00", "0.00", "2 (1 diverged)", "10,000", "-", "0.01", "-"]
    assert rows[4] == ["cifar100", "-", "-", "0 (2 diverged)", "-", "-", "0.01", "-"]
    assert rows[-1] == ["average of the five", "-", "-", "-", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("key", "eval_crop", "line"),
    [
        (
            ("L/16", "i21k", 448), "resize_square",
            "Accuracies in per cent, evaluated with eval_crop=resize_square. The paper's are those of Mixer-L/16, "
            "ImageNet-21k, 448 px, 300 epochs, in its Table 2: evaluated with the same crop.",
        ),
        (
            ("H/14", "jft", 448), "resize_small",
            "Accuracies in per cent, evaluated with eval_crop=resize_small. The paper's are those of Mixer-H/14, "
            "JFT-300M, 448 px, 14 epochs, in its Table 2: evaluated with the other crop, resize_square.",
        ),
        (
            None, "resize_small",
            "Accuracies in per cent, evaluated with eval_crop=resize_small. The paper has no row for this model.",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_the_note_names_both_crops(key, eval_crop, line):
    assert sweep_results.note(key and paper.find(*key, eval_crop), eval_crop) == line


def test_the_crop_chooses_the_papers_table():
    config = recipe.finetune("L/16", tasks.TASKS["cifar10"], 448)
    assert sweep._paper_row(config, "i21k").table == 3
    config.input.eval_crop = "resize_square"
    assert sweep._paper_row(config, "i21k").table == 2


@pytest.mark.parametrize(
    ("init_from", "pretraining", "imagenet"),
    [
        ("B/16-i21k", None, 80.64),  # the name says what it comes from
        ("B/16-sam", None, None),
        ("runs/my-i21k", None, None),
        ("runs/my", "jft", 80.00),
        (None, None, None),
    ],
)
def test_what_the_paper_has_to_compare_with(init_from, pretraining, imagenet):
    config = recipe.finetune("B/16", tasks.TASKS["cifar10"], 224)
    config.init_from = init_from
    row = sweep._paper_row(config, pretraining)
    assert (row and row.imagenet) == imagenet


# ------------------------------------------------------------------------------------------------------------ the runs


def make_sweep(data_dir, workdir, rates=(0.01, 0.03), seeds=1, **overrides) -> sweep.Sweep:
    settings = {**TINY, "input.data_dir": data_dir, **overrides}
    spec = str(ROOT / "configs" / "finetune.py:model=s16,size=32")
    return sweep.Sweep(spec, settings, {"cifar10": rates}, seeds, workdir)


def keep(config, workdir, accuracy: float) -> dict[str, float]:
    """Leaves in the folder what a run leaves there, as far as the sweep reads it."""
    workdir.mkdir(parents=True)
    run_folder.save(config, ["a", "b"], workdir)
    if math.isnan(accuracy):
        raise DivergedError("loss or gradient is not finite at step 3 (loss nan): the run stops")
    result = {"step": config.total_steps, "val/accuracy": accuracy, "val/count": 50}
    (workdir / "metrics.jsonl").write_text(json.dumps(result) + "\n")
    return result


def test_every_run_has_its_config(data_dir, tmp_path, monkeypatch):
    """Grid runs on the dev split, then the best rate on the test split; the rest is the recipe's and the user's."""
    seen = {}

    def fake_train(config, workdir, console, stop):
        seen[workdir.name] = config
        return {"val/accuracy": {0.01: 0.2, 0.03: 0.4, 0.06: 0.4}[config.optimizer.learning_rate], "val/count": 50}

    monkeypatch.setattr(sweep, "train", fake_train)
    ((name, found),) = make_sweep(data_dir, tmp_path, rates=(0.06, 0.03, 0.01), ema_decay=0.5).outcomes()
    assert (name, found.chosen, found.seeds) == ("cifar10", 0.03, [0.4])
    assert found.grid == {0.01: 0.2, 0.03: 0.4, 0.06: 0.4}
    assert list(seen) == ["lr_0.01", "lr_0.03", "lr_0.06", "lr_0.03_seed_0"]
    row = tasks.TASKS["cifar10"]
    for folder, config in seen.items():
        expected = (row.train, row.test) if folder.endswith("_seed_0") else (row.sweep_train, row.sweep_dev)
        assert (config.input.train_split, config.input.eval_split) == expected
        assert (config.optimizer.name, config.total_steps, config.ema_decay) == ("momentum", 4, 0.5)
        assert config.is_locked


def test_a_single_learning_rate_is_not_chosen(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train", lambda *_: {"val/accuracy": 0.5, "val/count": 50})
    ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.02,)).outcomes()
    assert (found.grid, found.dev_count, found.chosen, found.count) == ({}, None, 0.02, 50)


def test_where_every_learning_rate_diverges_the_sweep_ends(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train", lambda config, workdir, *_: keep(config, workdir, math.nan))
    with pytest.raises(UserError, match="cifar10: the loss was not finite with any learning rate; give lower"):
        list(make_sweep(data_dir, tmp_path).outcomes())


def test_a_final_run_that_diverges_is_recorded_and_the_sweep_goes_on(data_dir, tmp_path, monkeypatch, capsys):
    accuracies = [0.5, math.nan, 0.7]
    monkeypatch.setattr(sweep, "train", lambda config, workdir, *_: keep(config, workdir, accuracies[config.seed]))
    ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.02,), seeds=3).outcomes()
    assert (found.seeds, found.mean, found.count) == ([0.5, None, 0.7], pytest.approx(0.6), 50)
    assert "[2/3] cifar10, learning rate 0.02, seed 1  diverged: the loss is not finite" in capsys.readouterr().out

    monkeypatch.setattr(sweep, "train", None)  # nothing runs again
    assert list(make_sweep(data_dir, tmp_path, rates=(0.02,), seeds=3).outcomes()) == [("cifar10", found)]
    assert "[2/3] cifar10, learning rate 0.02, seed 1  diverged before" in capsys.readouterr().out

    made_by = {"device": "1 x cpu", "versions": {"jax": "0"}, "command": "python", "eval_crop": "resize_square"}
    sweep_results.write(epath.Path(tmp_path), {"cifar10": found}, paper.find("H/14", "jft", 448), made_by)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["tasks"]["cifar10"]["seeds"] == [0.5, None, 0.7]
    assert (results["eval_crop"], results["paper"]["eval_crop"]) == ("resize_square", "resize_square")
    assert "| cifar10 | 60.00 | 14.14 | 2 (1 diverged) | 50 |" in (tmp_path / "results.md").read_text()


def test_where_every_seed_diverges_there_is_no_accuracy(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "train", lambda config, workdir, *_: keep(config, workdir, math.nan))
    ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.02,), seeds=2).outcomes()
    assert (found.seeds, found.mean, found.count) == ([None, None], None, None)


def test_a_longer_grid_whose_winner_is_another_runs_only_what_is_new(data_dir, tmp_path, monkeypatch):
    ran = []

    def fake_train(config, workdir, console, stop):
        ran.append(workdir.name)
        return keep(config, workdir, config.optimizer.learning_rate)  # the highest is the best

    monkeypatch.setattr(sweep, "train", fake_train)
    ((_, found),) = make_sweep(data_dir, tmp_path).outcomes()
    assert (found.chosen, ran) == (0.03, ["lr_0.01", "lr_0.03", "lr_0.03_seed_0"])
    ran.clear()
    ((_, found),) = make_sweep(data_dir, tmp_path, rates=(0.01, 0.03, 0.06)).outcomes()
    assert (found.chosen, found.seeds, ran) == (0.06, [0.06], ["lr_0.06", "lr_0.06_seed_0"])
    ran.clear()
    ((_, found),) = make_sweep(data_dir, tmp_path).outcomes()
    assert (found.chosen, found.seeds, ran) == (0.03, [0.03], [])


def test_any_other_error_of_a_run_ends_the_sweep(data_dir, tmp_path, monkeypatch):
    def fake_train(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(sweep, "train", fake_train)
    with pytest.raises(UserError, match=r"^cifar10, learning rate 0.01: the disk is full$"):
        list(make_sweep(data_dir, tmp_path).outcomes())


def test_a_sweep_that_is_asked_to_stop_saves_its_run_and_continues_it(data_dir, tmp_path, capsys):
    stopped = make_sweep(data_dir, tmp_path, rates=(0.02,))
    stopped._stop = preemption.Stop(after=2)
    with pytest.raises(preemption.PreemptedError, match="saved at step 2 of 4"):
        list(stopped.outcomes())
    assert not stopped._stop._has_work_to_save
    list(make_sweep(data_dir, tmp_path, rates=(0.02,)).outcomes())
    assert "continuing from step 2" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["lr_0.03", "lr_0.03_seed_0"])
def test_the_folder_of_another_sweep_is_refused_before_anything_runs(data_dir, tmp_path, folder):
    config = recipe.finetune("S/16", tasks.TASKS["cifar10"], 32)
    (tmp_path / "cifar10" / folder).mkdir(parents=True)
    run_folder.save(checks.checked(config), ["a", "b"], tmp_path / "cifar10" / folder)
    with pytest.raises(UserError, match=rf"{folder} holds a run of another config \(.*batch_size: 512 before, 16 now"):
        make_sweep(data_dir, tmp_path)


def test_data_that_is_missing_is_found_before_the_first_tasks_runs(data_dir, tmp_path):
    settings = {**TINY, "input.data_dir": data_dir}
    rates = {"cifar10": [0.01], "oxford_iiit_pet": [0.01]}
    with pytest.raises(UserError, match=r"dataset oxford_iiit_pet in .* is not prepared"):
        sweep.Sweep(str(ROOT / "configs" / "finetune.py"), settings, rates, 1, tmp_path)


def test_a_config_file_that_makes_the_same_of_every_task_is_refused(data_dir, tmp_path):
    file = tmp_path / "deaf.py"
    file.write_text("from mixer import recipe\n\ndef get_config(arguments):\n    return recipe.base()\n")
    with pytest.raises(UserError, match=r"deaf.py ignores its argument task=cifar10; give configs/finetune.py"):
        sweep.Sweep(str(file), {"input.data_dir": data_dir}, {"cifar10": [0.01]}, 1, tmp_path / "runs")


# --------------------------------------------------------------------------------------------------------- the command


def command(data_dir: str, folder: pathlib.Path) -> list[str]:
    """The whole of it on CIFAR-10: from weights for 32 pixels to 64, one learning rate good and one far too high."""
    sizes = {name.removeprefix("model."): size for name, size in TINY.items() if name.startswith("model.")}
    model = models.create("S/16", 10, tokens_mlp_dim=8, **sizes)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    np.savez(folder / "weights.npz", **traverse_util.flatten_dict(params, sep="/"))
    start = {"input.data_dir": data_dir, "optimizer.clip_norm": 0.0, "init_from": folder / "weights.npz"}
    overrides = [f"--config.{name}={value}" for name, value in {**TINY, **start}.items()]
    return [sys.executable, "-m", "mixer.sweep", "--config", "configs/finetune.py:model=s16,size=64", "--tasks=cifar10",
            "--learning_rates=0.01,1e30", "--seeds=2", f"--workdir={folder / 'sweep'}", *overrides]  # fmt: skip


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300, check=False)


def test_a_killed_sweep_continues_and_does_nothing_twice(data_dir, tmp_path):
    arguments, folder = command(data_dir, tmp_path), tmp_path / "sweep"
    process = subprocess.Popen(arguments, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True)
    with process.stdout:
        for line in process.stdout:
            if line.startswith("[3/4] cifar10, learning rate 0.01, seed 0  step 2/4"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait() == -signal.SIGKILL
    done = [folder / "cifar10" / name / "metrics.jsonl" for name in ("lr_0.01", "lr_1e+30")]
    before = [path.stat().st_mtime_ns for path in done]
    assert not (folder / "results.json").exists()

    continued = run(arguments)
    assert continued.returncode == 0, continued.stderr
    assert continued.stderr == ""
    assert [path.stat().st_mtime_ns for path in done] == before
    assert "[1/4] cifar10, learning rate 0.01  done before, accuracy" in continued.stdout
    assert "[2/4] cifar10, learning rate 1e+30  diverged before" in continued.stdout
    assert "[4/4] cifar10, learning rate 0.01, seed 1  step 4/4" in continued.stdout

    # Appendix C widened the token mixing, as the runs' folders say; they are recognised all the same.
    assert run_folder.load_config(folder / "cifar10" / "lr_0.01").model.tokens_mlp_dim == 32

    results = json.loads((folder / "results.json").read_text())
    found = results["tasks"]["cifar10"]
    assert (found["chosen"], found["dev_count"], found["count"], len(found["seeds"])) == (0.01, 4, 50, 2)
    assert set(found["grid"]) == {"0.01", "1e+30"}
    assert found["grid"]["1e+30"] is None
    assert found["std"] == pytest.approx(statistics.stdev(found["seeds"]))
    assert results["overrides"]["total_steps"] == 4
    assert results["average_of_five"] is None
    assert (results["eval_crop"], results["paper"]) == ("resize_small", None)
    markdown = (folder / "results.md").read_text()
    assert f"| cifar10 | {100 * found['mean']:.2f} | {100 * found['std']:.2f} | 2 | 50 | - | 0.01 |" in markdown
    assert markdown.splitlines()[2] in continued.stdout
    assert "evaluated with eval_crop=resize_small. The paper has no row for this model." in markdown


# Imports once, then the command in a fork for each of its command lines.
COMMANDS = """
import json, os, sys
from mixer import sweep
from mixer.config import command_line
for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        os.dup2(1, 2)
        sys.argv = ["mixer/sweep.py", *arguments]
        try:
            command_line.run(sweep.main, sweep.define_flags)
        except SystemExit as end:  # without the seconds that Python needs to take everything down
            print(end.code, flush=True)
            os._exit(1)
        os._exit(0)
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

CONFIG = ["--config", "configs/finetune.py:model=s16,size=32"]
MISTAKES = {
    ("--config.seed=1",): "--config.seed is set by the sweep itself; give --seeds, their number",
    ("--config.optimizer.learning_rate=1",): "--config.optimizer.learning_rate is set by the sweep itself; give --lear",
    ("--config.input.dataset=cifar10",): "--config.input.dataset is set by the sweep itself; give --tasks",
    ("--config.input.eval_split=x",): "--config.input.eval_split is set by the sweep itself; the rows of mixer/config",
    ("--tasks=mnist",): "--tasks: task 'mnist': expected one of imagenet2012, ",
    (
        "--tasks=imagenet_real",
    ): "--tasks: imagenet2012_real is test data alone; tasks to fine-tune on are imagenet2012, ",
    ("--tasks=",): "--tasks: give all, or names joined by commas",
    ("--learning_rates=0.1,fast",): "--learning_rates=0.1,fast: expected numbers above 0, joined by commas",
    ("--learning_rates=0",): "--learning_rates=0: expected numbers above 0",
    ("--pretraining=i21k",): "--pretraining=i21k: the paper has no Mixer-S/16 from ImageNet-21k at 32 pixels; it has ",
    ("--pretraining=sam",): "--pretraining=sam: pre-training data 'sam': expected one of i1k, i21k, jft",
    ("--seeds=0",): "flag --seeds=0: ",
    ("--config.batch_size=few",): "config.batch_size='few': expected a whole number",
    ("cifar10",): "unexpected argument 'cifar10'",
    ("--tasks=folder",): "--tasks: folder has no dev split to choose by; train with configs/finetune.py:task=folder",
    ("--config=configs/finetune.py:task=pets",): "--config configs/finetune.py:task=pets: task is set by the sweep i",
    ("--config=configs/b16_i1k.py",): "--config configs/b16_i1k.py:task=imagenet2012: this config takes no arguments",
}


def test_a_mistake_is_one_line_and_status_1():
    given = [[*([] if arguments[0].startswith("--config=") else CONFIG), *arguments] for arguments in MISTAKES]
    done = run([sys.executable, "-c", COMMANDS, json.dumps(given)])
    lines = done.stdout.splitlines()
    assert lines[1::2] == ["status 1"] * len(MISTAKES), done.stdout
    for line, expected in zip(lines[::2], MISTAKES.values(), strict=True):
        assert line.startswith(f"error: {expected}")


@pytest.mark.slow  # two sweeps
def test_the_command_in_a_bucket_finds_what_is_done_and_writes_the_same_table(bucket_here, data_dir, tmp_path):
    local = command(data_dir, tmp_path)
    remote = [word.replace(f"{tmp_path / 'sweep'}", bucket_here.path("sweep")) for word in local]
    environment = {**ENV, **bucket_here.environment()}
    for arguments in (local, remote, remote):
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.count(", learning rate") == done.stdout.count(" before") == 4
    tables = ((tmp_path / "sweep" / "results.md").read_text(), bucket_here.content("sweep/results.md").decode())
    assert tables[0].split("Made on")[0] == tables[1].split("Made on")[0]
