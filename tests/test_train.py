"""The command itself, as a user runs it: processes, kills, continued runs, and the lines that errors print."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import pathlib
import re
import signal
import socket
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_run import DROPPING, ROOT, command, data_dir, deterministic, run, tiny  # noqa: F401

import mixer.run
from mixer import train
from mixer.config import run_folder
from mixer.data import pipeline
from mixer.evaluation import scoring
from mixer.runtime import preemption
from mixer.runtime.errors import UserError
from mixer.training.checkpoint_reader import load_params
from mixer.training.metrics import read_metrics
from mixer.transfer import loading
from tests.commands import environment


def test_on_a_terminal_what_follows_a_run_stands_below_its_last_line(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(preemption.PreemptedError):
        train.train(tiny(data_dir), tmp_path, stop=preemption.Stop(after=3))
    assert re.search(r"\r\033\[Kstep 3/12 .* left\n$", capsys.readouterr().out)


def test_a_killed_run_continues_to_the_same_bits(data_dir, tmp_path, capsys):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train.train(tiny(data_dir, **DROPPING), straight)

    process = subprocess.Popen(
        command(data_dir, killed, **DROPPING),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process.stdout:
        for line in process.stdout:
            if line.startswith("step 8/12"):
                process.send_signal(signal.SIGKILL)
                break
    process.wait()
    committed = {path.name for path in (killed / "checkpoints").iterdir() if path.name.isdigit()}
    assert "12" not in committed
    assert committed & {"3", "6"}

    continued = run(command(data_dir, killed, **DROPPING))
    assert continued.returncode == 0, continued.stderr
    assert "continuing from step" in continued.stdout
    for ema in (False, True):
        jax.tree.map(np.testing.assert_array_equal, load_params(straight, ema)[1], load_params(killed, ema)[1])
    assert deterministic(straight) == deterministic(killed)
    assert [row["step"] for row in read_metrics(killed)] == list(range(1, 13))

    train.train(tiny(data_dir, **DROPPING), killed)
    assert "is done: it stands at step 12 of 12" in capsys.readouterr().out


def test_the_folder_holds_what_is_needed_later_and_the_console_what_a_person_asks(data_dir, tmp_path):
    done = run(command(data_dir, tmp_path / "run"), devices=1)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    config = run_folder.load_config(tmp_path / "run")
    assert (config.input.image_size, config.input.crop, config.total_steps) == (16, "resize", 12)
    assert len((tmp_path / "run" / run_folder.CLASSES_FILE).read_text().splitlines()) == 4
    last = next(line for line in done.stdout.splitlines() if line.startswith("step 12/12"))
    for word in ("loss", "lr", "grad norm", "images/s/core", "devices wait", "left"):
        assert word in last
    # The count of a Mixer with these widths, added up by hand: stem, two blocks, the last norm, the head.
    block = 2 * 2 * 16 + (4 * 8 + 8 + 8 * 4 + 4) + (16 * 32 + 32 + 32 * 16 + 16)
    parameters = (3 * 64 * 16 + 16) + 2 * block + 2 * 16 + (16 * 4 + 4)
    assert f"{parameters:,} parameters" in done.stdout
    assert "val/count 8" in done.stdout


def test_from_python_a_run_says_nothing_of_libraries_and_a_folder_may_be_in_home(data_dir, tmp_path):
    script = f"""
import logging
import mixer
from mixer.train import train
from tests.tiny_run import tiny
train(tiny({data_dir!r}, total_steps=1, checkpoint_steps=1), "~/run")
print(logging.root.handlers, logging.getLogger("absl").level, mixer.load("~/run").class_names)
train(tiny({data_dir!r}), "")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment(1) | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "[] 0 [" in done.stdout
    assert "absl" not in done.stderr
    assert done.stderr.endswith("UserError: --workdir is empty: give a folder\n")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["run"]


def test_inspect_writes_a_picture_and_nothing_else(data_dir, tmp_path):
    done = run(command(data_dir, tmp_path / "run", "--inspect"), devices=1)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "run" / "inspect.png"
    assert str(path) in done.stdout
    with Image.open(path) as picture:
        assert np.asarray(picture).std() > 10
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_profile_is_traced_on_demand(data_dir, tmp_path):
    done = run(command(data_dir, tmp_path, profile_steps=2))
    assert done.returncode == 0, done.stderr
    assert traced_steps(tmp_path) == [11, 12]


def test_a_profile_is_written_by_a_run_that_is_asked_to_stop_meanwhile(data_dir, tmp_path):
    done = run(command(data_dir, tmp_path, "--stop_after=13", profile_steps=50, total_steps=100))
    assert done.returncode == preemption.EXIT_STATUS, done.stderr
    assert traced_steps(tmp_path) == [11, 12, 13]


def traced_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps that a run's only trace marks for TensorBoard. It traces no call of a Python function."""
    [file] = (workdir / "plugins" / "profile").rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(file))  # keeps the memory of all below
    events = [event for plane in profile.planes for line in plane.lines for event in line.events]
    assert not [event.name for event in events if event.name.startswith("$")]  # as calls are named
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # JAX's class for these values has no module's name
        return sorted(dict(event.stats)["step_num"] for event in events if event.name == "train")


def test_a_stop_between_two_lines_changes_no_line(data_dir, tmp_path):
    """The means of a line are over the steps since the line before, also of those before a stop."""
    settings = {"log_steps": 4, "eval_steps": 12, "checkpoint_steps": 12}
    config = tiny(data_dir, **settings)
    for after in (2, 6, 8):  # before a line, between two, and at one
        with pytest.raises(preemption.PreemptedError):
            train.train(config, tmp_path / "stopped", stop=preemption.Stop(after=after))
    for workdir in (tmp_path / "stopped", tmp_path / "straight"):
        train.train(config, workdir)
    stopped, straight = deterministic(tmp_path / "stopped"), deterministic(tmp_path / "straight")
    assert [line["step"] for line in straight] == [4, 8, 12]
    assert stopped == straight
    train.train(tiny(data_dir, **settings | {"log_steps": 1}), tmp_path / "each")
    each = {line["step"]: line for line in read_metrics(tmp_path / "each")}
    for line in straight:
        steps = range(line["step"] - 3, line["step"] + 1)
        for name in ("train/loss", "train/accuracy"):
            assert line[name] == pytest.approx(np.mean([each[step][name] for step in steps]), rel=1e-5)
        images = line["step"] * config.batch_size
        assert (line["train/images_seen"], line["train/epoch"]) == (images, images / 72)


VIT = {"model.variant": "ViT-Ti/8", "model.hidden_dim": 48, "model.tokens_mlp_dim": None}


def test_a_vit_is_trained_by_the_same_loop(data_dir, tmp_path, capsys):
    train.train(tiny(data_dir, **VIT, sharding="fully_sharded", eval_steps=12), tmp_path)
    assert re.search(r"fully_sharded \(\d+% of the state is split\), float32", capsys.readouterr().out)
    params = load_params(tmp_path)[1]
    assert params["Transformer"]["encoderblock_1"]["MlpBlock_3"]["Dense_0"]["kernel"].shape == (48, 32)
    losses = [row["train/loss"] for row in read_metrics(tmp_path)]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    model = mixer.load(tmp_path)  # and evaluated as any other
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    expected = model.module.apply({"params": params}, jnp.asarray(images / np.float32(127.5) - 1))
    np.testing.assert_allclose(model.logits(images), expected, atol=1e-4)
    weights = loading.load(str(tmp_path))
    config, _ = scoring.input_config(weights, None)
    found, _ = scoring.evaluate(weights, config, "validation", loss="softmax_xent", batch_size=8)
    assert found.metrics["accuracy"] == read_metrics(tmp_path)[-1]["val/accuracy"]
    with pytest.raises(UserError, match=r" is a run of ViT-.*, and this takes a Mixer; mixer.evaluate, mixer.predict"):
        weights.exported()
    with pytest.raises(UserError, match=r"images of 16 pixels, which cannot be brought to image_size=32: Appendix C"):
        weights.at_image_size(32, "extend")
    assert weights.at_image_size(16, "extend").params is weights.params


FEWSHOT = {"fewshot.dataset": "fractals/4x20x16", "fewshot.test_split": "validation", "fewshot.shots": "1,5"}


def test_few_shot_accuracy_beside_every_evaluation(data_dir, tmp_path, capsys):
    train.train(tiny(data_dir, **FEWSHOT | {"fewshot.shots": (1, 5)}), tmp_path / "run")
    said = capsys.readouterr().out
    names = [f"fewshot/fractals_4x20x16_{shots}shot" for shots in (1, 5)]
    rows = [row for row in read_metrics(tmp_path / "run") if names[0] in row]
    assert [row["step"] for row in rows] == [6, 12]
    for name in names:
        assert f"{name} {rows[1][name]:.4f}" in said
        assert 0 < rows[1][name] <= 1
        assert rows[1][f"{name}_std"] >= 0


def test_a_mistake_in_the_few_shot_data_is_one_line_at_the_start(data_dir, tmp_path):
    failed = run(command(data_dir, tmp_path / "run", **FEWSHOT | {"fewshot.shots": "19"}))
    assert failed.returncode == 1
    line = "error: few-shot evaluation: 19 shots are too many: class 0 (0) has only 18 examples; "
    assert failed.stderr.startswith(line)
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(UserError, match=r"^few-shot evaluation: config\.fewshot\.dataset='cifar1': "):
        train.train(tiny(data_dir, **{"fewshot.dataset": "cifar1"}), tmp_path)


@pytest.mark.slow  # tests/training/test_step.py does the same with the step
def test_fully_sharded_equals_data_parallel(data_dir, tmp_path):
    losses = {}
    for kind in ("data_parallel", "fully_sharded"):
        changes = {"sharding": kind, "model.hidden_dim": 64, "model.channels_mlp_dim": 256, "total_steps": 5}
        train.train(tiny(data_dir, **changes), tmp_path / kind)
        losses[kind] = [row["train/loss"] for row in read_metrics(tmp_path / kind)]
    np.testing.assert_allclose(losses["data_parallel"], losses["fully_sharded"], rtol=1e-5)


@pytest.mark.slow  # three processes: half a minute and more
def test_two_processes_train_as_one(data_dir, tmp_path):
    """Two processes of four devices each, joined by jax.distributed, against one process of eight."""
    split = {"sharding": "fully_sharded", "model.hidden_dim": 64, "model.channels_mlp_dim": 256}
    changes = {"total_steps": 5, "stem_init": "whitening", **split, **FEWSHOT}
    one = run(command(data_dir, tmp_path / "one", **changes))
    assert one.returncode == 0, one.stderr
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    joined = ["--distributed", f"--coordinator=localhost:{port}", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            command(data_dir, tmp_path / "two", *joined, f"--process_id={i}", **changes),
            cwd=ROOT, env=environment(4), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    losses = {name: [row["train/loss"] for row in read_metrics(tmp_path / name)] for name in ("one", "two")}
    assert len(losses["one"]) == 5
    np.testing.assert_allclose(losses["two"], losses["one"], rtol=1e-5)
    one, two = (read_metrics(tmp_path / name)[-1] for name in ("one", "two"))
    few_shot = [name for name in one if name.startswith("fewshot/")]
    assert len(few_shot) == 4
    assert [two[name] for name in few_shot] == [one[name] for name in few_shot]


@pytest.mark.slow  # tests/training/test_step.py does the same with the step
def test_accumulating_gradients_equals_the_whole_batch(data_dir, tmp_path, monkeypatch):
    """Evaluation too takes no more images at a time than a part has."""
    evaluated, eval_batches = [], pipeline.eval_batches

    def noted(*arguments, **named):
        evaluated.append(named["batch_size"])
        return eval_batches(*arguments, **named)

    monkeypatch.setattr(pipeline, "eval_batches", noted)
    losses = {}
    for parts in (1, 2):
        config = tiny(data_dir, accumulate_steps=parts, batch_size=32, total_steps=5)
        train.train(config, tmp_path / str(parts))
        losses[parts] = [row[name] for row in read_metrics(tmp_path / str(parts)) for name in row if "loss" in name]
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-5)
    assert evaluated == [32, 16]


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_the_best_evaluation_is_kept_whatever_the_intervals_are(data_dir, tmp_path, monkeypatch, ema_decay, capsys):
    """Evaluations and checkpoints meet at the last step only. A moving average is ranked by its own accuracy."""
    plain, averaged = {3: 0.1, 6: 0.9, 9: 0.2, 12: 0.3, 14: 0.4}, {3: 0.1, 6: 0.2, 9: 0.8, 12: 0.3, 14: 0.4}

    def evaluate(run, due, state, step):
        return {
            "val/accuracy": plain[step],
            "val/count": 8,
            **({"val_ema/accuracy": averaged[step]} if ema_decay else {}),
        }

    monkeypatch.setattr("mixer.run.evaluate", evaluate)
    intervals = {"eval_steps": 3, "checkpoint_steps": 7, "total_steps": 14, "checkpoint.keep_last": 1}
    train.train(tiny(data_dir, **intervals, ema_decay=ema_decay), tmp_path)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ([9, 14] if ema_decay else [6, 14])
    out = capsys.readouterr().out
    assert f"the best 1 kept, by {'val_ema' if ema_decay else 'val'}/accuracy" in out
    best = tmp_path / "checkpoints" / str(kept[0])
    ema = ", with --ema" if ema_decay else ""
    assert out.endswith(f"the most accurate checkpoint is {best}, not the last; --checkpoint takes its path{ema}\n")


# --------------------------------------------------------------------------------------------- what users meet first


def test_an_error_is_one_line_and_status_1(data_dir, tmp_path):
    failed = run(command(data_dir, tmp_path / "run", batch_size=12))
    assert failed.returncode == 1
    assert failed.stderr == (
        "error: config.batch_size=12 over 8 devices and accumulate_steps=1 must be a multiple of 8; "
        "the nearest that is: 16\n"
    )


def test_the_folder_of_another_run_is_refused_with_the_difference(data_dir, tmp_path):
    train.train(tiny(data_dir, total_steps=1), tmp_path)
    before = load_params(tmp_path)[1]
    with pytest.raises(UserError, match=r"holds a run of another config \(seed: 0 before, 1 now\)"):
        train.train(tiny(data_dir, total_steps=1, seed=1), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, before, load_params(tmp_path)[1])


def test_a_folder_that_cannot_be_written_to_is_refused(data_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir .*file/run cannot be written to .*give a folder of your own"):
        train.train(tiny(data_dir), tmp_path / "file" / "run")


def test_a_dataset_that_is_not_prepared_is_named(data_dir, tmp_path):
    config = tiny(str(tmp_path / "empty"), **{"input.dataset": "cifar10"})
    with pytest.raises(UserError, match=r"dataset cifar10 in .*empty is not prepared: .*tfds build cifar10"):
        train.train(config, tmp_path / "run")


def test_mixup_groups_must_fit_the_rows_of_a_device(data_dir, tmp_path):
    config = tiny(data_dir, **{"mixup.p": 0.5, "mixup.group": 8})
    with pytest.raises(UserError, match=r"batch_size=16 over 8 devices .* must be a multiple of 64, since"):
        train.train(config, tmp_path)
