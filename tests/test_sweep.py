"""The command of a sweep: killed and continued, in a bucket, what it refuses, and what it compares with."""

import json
import pathlib
import signal
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny_sweep import TINY, write_cifar10

from mixer import models, sweep
from mixer.config import checks, recipe, run_folder, tasks
from mixer.runtime.errors import UserError
from tests import commands

ROOT = pathlib.Path(__file__).resolve().parents[1]

# One device: a process does not inherit the eight virtual ones of the tests.
ENV = commands.environment(1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return write_cifar10(tmp_path_factory.mktemp("data"))


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


def test_the_paper_has_what_the_run_of_the_weights_says(tmp_path):
    run = recipe.jft("L/16", epochs=7, learning_rate=1e-3)
    run_folder.make(tmp_path)
    run_folder.save(checks.checked(run), ["a class"], tmp_path)
    config = recipe.finetune("L/16", tasks.TASKS["cifar10"], 224)
    for config.init_from in (str(tmp_path), f"{tmp_path}/checkpoints/100"):
        assert sweep._paper_row(config, None).imagenet == 84.05  # not that of 14 epochs, 84.82
        assert sweep._paper_row(config, "jft").imagenet == 84.05
        with pytest.raises(UserError, match=r"--pretraining=i21k: .* was pre-trained on JFT-300M; leave it out"):
            sweep._paper_row(config, "i21k")
    config.input.image_size = 448  # in the paper of 14 epochs alone
    assert sweep._paper_row(config, None) is None
    with pytest.raises(UserError, match="the paper has no Mixer-L/16 from 7 epochs of JFT-300M at 448 pixels"):
        sweep._paper_row(config, "jft")


def test_the_paper_has_nothing_for_another_model_of_a_variants_name():
    config = recipe.finetune("B/16", tasks.TASKS["cifar10"], 224)
    config.model.num_blocks = 2
    config.init_from = "B/16-i21k"
    assert sweep._paper_row(config, None) is None
    with pytest.raises(UserError, match=r"no results for a B/16 with another model\.num_blocks; leave it out"):
        sweep._paper_row(config, "i21k")


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
    _, _, name, *given = arguments
    return commands.run(name, *given, devices=1)


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

    (folder / "results.json").write_text('{"tasks": {"oxford_iiit_pet": {}, "cifar10": {}}}')  # of another sweep
    continued = run(arguments)
    assert continued.returncode == 0, continued.stderr
    assert "will no longer have oxford_iiit_pet: give these to --tasks too" in continued.stdout
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


CONFIG = ["--config", "configs/finetune.py:model=s16,size=32"]
MISTAKES = {
    ("--config.seed=1",): "--config.seed is set by the sweep itself; give --seeds, their number",
    ("--config.optimizer.learning_rate=1",): "--config.optimizer.learning_rate is set by the sweep itself; give --lear",
    ("--config.input.dataset=cifar10",): "--config.input.dataset is set by the sweep itself; give --tasks",
    ("--config.input.eval_split=x",): "--config.input.eval_split is set by the sweep itself; the rows of mixer/config",
    ("--tasks=mnist",): f"--tasks: 'mnist' is no task; expected {', '.join(tasks.AVG5)}, or all\n",
    ("--tasks=imagenet_real",): (
        f"--tasks: imagenet_real has no dev split to choose by; expected {', '.join(tasks.AVG5)}\n"
    ),
    ("--tasks=",): "--tasks: give all, or names joined by commas",
    ("--learning_rates=0.1,fast",): "--learning_rates=0.1,fast: expected numbers above 0, joined by commas",
    ("--learning_rates=0",): "--learning_rates=0: expected numbers above 0",
    # Only the named task is checked: that of CIFAR-10 in this file would be refused at 64 pixels.
    (
        "--config=configs/finetune_small.py",
        "--tasks=pets",
        "--config.input.image_size=64",
        "--config.input.data_dir=/nowhere",
    ): "dataset oxford_iiit_pet in /nowhere is not prepared",
    ("--pretraining=i21k",): "--pretraining=i21k: the paper has no Mixer-S/16 from ImageNet-21k at 32 pixels; it has ",
    ("--pretraining=sam",): "--pretraining=sam: pre-training data 'sam': expected one of i1k, i21k, jft",
    ("--seeds=0",): "flag --seeds=0: ",
    ("--config.batch_size=few",): "config.batch_size='few': expected a whole number",
    ("cifar10",): "unexpected argument 'cifar10'",
    ("--workdir=/dev/null",): "--workdir /dev/null cannot be written to (",
    ("--tasks=folder",): (
        f"--tasks: folder has no dev split to choose by; expected {', '.join(tasks.AVG5)}; configs/finetune.py:task=fol"
    ),
    ("--config=configs/finetune.py:task=pets",): "--config configs/finetune.py:task=pets: task is set by the sweep i",
    ("--config=configs/b16_i1k.py",): "--config configs/b16_i1k.py:task=imagenet2012: this config takes no arguments",
}


def test_a_mistake_is_one_line_and_status_1():
    for arguments, expected in MISTAKES.items():
        config = [] if arguments[0].startswith("--config=") else CONFIG
        done = commands.run("mixer.sweep", *config, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: {expected}")


@pytest.mark.slow  # two sweeps
def test_the_command_in_a_bucket_finds_what_is_done_and_writes_the_same_table(bucket_here, data_dir, tmp_path):
    local = command(data_dir, tmp_path)
    remote = [word.replace(f"{tmp_path / 'sweep'}", bucket_here.path("sweep")) for word in local]
    variables = {**ENV, **bucket_here.environment()}
    for arguments in (local, remote, remote):
        done = subprocess.run(
            arguments, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.count(", learning rate") == done.stdout.count(" before") == 4
    tables = ((tmp_path / "sweep" / "results.md").read_text(), bucket_here.content("sweep/results.md").decode())
    assert tables[0].split("Made on")[0] == tables[1].split("Made on")[0]
