"""A run of seconds: settings of a tiny model, data to train it on, and its command."""

import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import quickstart
from mixer.config import checks, durations
from mixer.data import datasets
from mixer.training import metrics as run_metrics
from mixer.training.metrics import read_metrics
from tests import commands
from tests.commands import environment

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

# A model of a few thousand parameters on 72 training and 8 validation fractals of 16 pixels.
WIDTHS = {"num_blocks": 2, "hidden_dim": 16, "tokens_mlp_dim": 8, "channels_mlp_dim": 32}
TINY = {
    **{f"model.{name}": width for name, width in WIDTHS.items()},
    "model.dtype": "float32",  # on every machine; the quickstart's own is "auto"
    "input.dataset": "fractals/4x20x16",
    "input.image_size": 16,
    "input.eval_resize": 16,
    "batch_size": 16,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 3e-3,
    "total_steps": 12,
    "warmup_steps": 2,
    "log_steps": 1,
    "eval_steps": 6,
    "checkpoint_steps": 3,
    "metrics.writers": (),  # TensorBoard's takes two seconds of each process; tests/training/test_metrics.py has it
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("data"))
    datasets.prepare_embedded("fractals/4x20x16", folder)
    return folder


def tiny(data_dir: str, **changes) -> ConfigDict:
    config = quickstart.get_config("fractals")
    settings = {**TINY, "input.data_dir": data_dir, **changes}
    config.update_from_flattened_dict(settings)
    return checks.checked(durations.one_unit_each(config, settings))


def command(data_dir: str, workdir: pathlib.Path, *arguments: str, **changes) -> list[str]:
    settings = {**TINY, "input.data_dir": data_dir, **changes}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "mixer.train", "--config", "configs/quickstart.py", f"--workdir={workdir}", *flags,
            *arguments]  # fmt: skip


def run(arguments: list[str], devices: int = 8) -> subprocess.CompletedProcess[str]:
    """Runs a command as `command` gives it, or another program, in a process that sees so many devices."""
    _, option, name, *given = arguments
    if option == "-m":
        return commands.run(name, *given, devices=devices)
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=300, check=False
    )


def deterministic(workdir: pathlib.Path) -> list[dict[str, float]]:
    return [run_metrics.deterministic(row) for row in read_metrics(workdir)]


DROPPING = {
    "model.stochastic_depth": 0.2,
    "model.dropout": 0.1,
    "mixup.p": 0.5,
    "mixup.cutmix": 0.5,
    "mixup.group": 2,
    "ema_decay": 0.9,
}
