"""Runs of Appendix A.1's models, as a user has them: training, a continued run, evaluation, prediction, export."""

import html
import json
import sys

import jax
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image
from test_train import run
from tiny_run import DROPPING

import mixer
from mixer.config import checks, config_file, durations
from mixer.data import datasets
from mixer.runtime import preemption
from mixer.train import train
from mixer.training.checkpoint_reader import load_params
from mixer.training.metrics import deterministic, read_metrics

DATASET = "fractals/4x40x32"  # 144 training and 16 validation images of four classes
SHORT = {
    "input.dataset": DATASET, "input.eval_split": "validation", "batch_size": 16, "total_steps": 4, "warmup_steps": 1,
    "log_steps": 1, "eval_steps": 4, "checkpoint_steps": 2,
}  # fmt: skip
SAID = {
    "untied": "Mixer-4x96/4 (untied token mixing x4)",
    "grouped": "Mixer-4x96/4 (grouped token mixing x4)",
    "views": "Mixer-4x96/4 (views token mixing x4)",
    "pyramid": "Mixer-4x96/4 (pyramid 64-16)",
}
# By hand: the stem, four blocks with their norms, channel MLPs and token MLPs, the last norm, a head of four classes.
_BESIDES = (48 * 96 + 96) + 4 * (4 * 96 + 96 * 384 + 384 + 384 * 96 + 96) + 2 * 96 + (96 * 4 + 4)
PARAMETERS = {
    "untied": _BESIDES + 4 * 4 * (64 * 48 + 48 + 48 * 64 + 64),
    "grouped": _BESIDES + 4 * (256 * 48 + 48 + 48 * 256 + 256),
    "views": _BESIDES + 4 * (256 * 48 + 48 + 48 * 256 + 256 + 96 * 96),
    "pyramid": _BESIDES + (64 * 48 + 48 + 48 * 64 + 64) + (64 * 48 + 48 + 48 * 16 + 16) + 2 * (2 * 16 * 48 + 48 + 16),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    datasets.prepare_embedded(DATASET, str(folder))
    return folder


def command(name, *arguments):
    return run([sys.executable, "-m", f"mixer.{name}", *map(str, arguments)], devices=1)


def output_of(name, *arguments):
    done = command(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def trained(ablation, data_dir, folder, **changes):
    """Trains a config as a process, and evaluates the run as another."""
    settings = {**SHORT, "input.data_dir": data_dir, **changes}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    out = output_of("train", f"--config=configs/cifar10_ablation.py:{ablation}", f"--workdir={folder}", *flags)
    assert f"{PARAMETERS[ablation]:,} parameters" in out
    found, last = json.loads(output_of("evaluate", f"--checkpoint={folder}")), read_metrics(folder)[-1]
    assert (found["model"], found["accuracy"], found["count"]) == (SAID[ablation], last["val/accuracy"], 16)
    return last


@pytest.mark.slow  # tests/models/test_token_mixing.py has the models, tests/test_train.py the command
def test_a_run_is_trained_and_evaluated(data_dir, tmp_path):
    assert trained("untied", data_dir, tmp_path / "run")["step"] == 4


@pytest.mark.slow  # ten processes for each of the four
@pytest.mark.parametrize("ablation", SAID)
def test_every_ablation_is_trained_and_used(ablation, data_dir, tmp_path):
    folder = tmp_path / "run"
    last = trained(ablation, data_dir, folder, total_steps=20, warmup_steps=2, eval_steps=20)
    assert last["step"] == 20
    losses = [line["train/loss"] for line in read_metrics(folder)]
    assert np.mean(losses[-5:]) < np.mean(losses[:3])
    found = json.loads(output_of("evaluate", f"--checkpoint={folder}", "--fewshot", "--shots=5"))
    assert found["model"] == SAID[ablation]
    assert 0 < found["fewshot/fractals_4x40x32_5shot"] <= 1

    rng, picture = np.random.default_rng(0), tmp_path / "noise.png"
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(picture)
    predicted = json.loads(output_of("predict", f"--checkpoint={folder}", "--json", "--top=4", picture))
    loaded = mixer.load(folder)
    logits = loaded.logits(loaded.read([picture]))[0]
    assert predicted["top"][0]["class"] == loaded.class_names[int(np.argmax(logits))]

    for form, name in (("npz", "m.npz"), ("timm", "m.safetensors"), ("timm", "folder")):
        refused = command("export", f"--checkpoint={folder}", f"--to={form}", tmp_path / name)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1].startswith(f"error: {SAID[ablation]} cannot be written as .")
        assert not (tmp_path / name).exists()
    figures = output_of("visualize", f"--checkpoint={folder}", f"--output={tmp_path / 'figures'}")
    assert SAID[ablation] in figures
    output_of("report", f"--workdir={folder}", f"--output={tmp_path / 'report.html'}")
    page = html.unescape((tmp_path / "report.html").read_text())
    assert f"not part of this page: the page computes the paper's model only, and this is {SAID[ablation]}" in page
    output_of("export", f"--checkpoint={folder}", "--to=stablehlo", tmp_path / "m.stablehlo")
    assert f"# {SAID[ablation]}, 32 px" in (tmp_path / "m.stablehlo.md").read_text()
    program = jax_export.deserialize(bytearray((tmp_path / "m.stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call(loaded.read([picture]))[0], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # checkpoints take whatever arrays a model has: tests/training/test_checkpoint.py
def test_a_stopped_run_continues_to_the_same_bits(data_dir, tmp_path):
    """Of a model that is untied and a pyramid."""
    settings = {**SHORT, "input.data_dir": str(data_dir), **DROPPING, "model.num_blocks": 2, "model.pyramid": (64, 16)}
    config = config_file.run("configs/cifar10_ablation.py:untied")
    config.update_from_flattened_dict(settings)
    config = checks.checked(durations.one_unit_each(config, settings))
    train(config, tmp_path / "straight")
    with pytest.raises(preemption.PreemptedError):
        train(config, tmp_path / "stopped", stop=preemption.Stop(after=2))
    train(config, tmp_path / "stopped")
    straight, stopped = (tmp_path / name for name in ("straight", "stopped"))
    for ema in (False, True):
        jax.tree.map(np.testing.assert_array_equal, *(load_params(folder, ema)[1] for folder in (straight, stopped)))
    assert [*map(deterministic, read_metrics(stopped))] == [*map(deterministic, read_metrics(straight))]
