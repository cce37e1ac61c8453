"""The command as a user runs it, also where TensorFlow is not installed."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import commands

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def without_tensorflow(tmp_path):
    """An environment in which TensorFlow, and libraries that need it, cannot be imported."""
    for name in ("tensorflow", "tensorflow_datasets", "clu"):
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError('not installed')\n")
    return {"PYTHONPATH": str(tmp_path)}


QUICK = ("--image_size=32", "--batch_sizes=2,1", "--blocks=2", "--block_seconds=0.01")


def test_a_model_is_measured_without_tensorflow(without_tensorflow):
    command = [sys.executable, "-m", "mixer.benchmark", "--models=ti16", "--modes=inference", "--json", *QUICK]
    env = commands.environment(2) | without_tensorflow
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["device"].items() >= {"kind": "cpu", "cores": 2, "platform": "cpu"}.items()
    assert found["device"]["host_processors"] == len(os.sched_getaffinity(0))
    (one,) = found["rows"]
    assert (one["model"], one["mode"]) == ("Mixer-Ti/16", "inference")
    assert set(one["swept"]) == {"1", "2"}
    assert one["images_per_sec_per_core"] == max(one["swept"].values()) == one["swept"][str(one["batch_size"])]
    assert one["lowest"] <= one["images_per_sec_per_core"] <= one["highest"]
    assert 0 < one["utilisation"] < 1.5  # above 1 if the machine was busy while the peak was measured
    assert "Mixer-Ti/16 inference at 2:" not in done.stderr  # progress names variants as they were given
    assert "Ti/16 inference at 2:" in done.stderr


FULL = """
import sys
from mixer import benchmark
from mixer.performance import compiling, model_speed

def measure(variant, mode, batch_size, **_):
    if variant == "S/16":
        raise compiling.DoesNotFitError(None)
    return model_speed.Measurement(variant, mode, batch_size, 1.0, 1.0, 1.0, 0.0, 1, 1.0, 1.0, None, 1)

model_speed.measure = measure
sys.argv = ["benchmark", "--models=ti16,s16,vit_ti32", "--modes=train", "--batch_sizes=4"]
benchmark.run()
"""


def test_a_model_that_does_not_fit_is_told_and_the_others_are_measured():
    done = subprocess.run(
        [sys.executable, "-c", FULL], cwd=ROOT, env=commands.environment(1), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    first = done.stdout.splitlines()[0]  # on what it was measured
    assert first.startswith("1 x cpu with jax")
    assert f"all of this machine's {len(os.sched_getaffinity(0))} processors" in first
    assert "GFLOP/s" in first
    assert [line.split()[:3] for line in done.stdout.splitlines() if "train" in line] == [
        ["Ti/16", "train", "4"], ["ViT-Ti/32", "train", "4"]
    ]  # fmt: skip
    assert "\nerror: S/16, train, 4 images on a core: more memory is needed than there is\n" in done.stderr


MISTAKES = [
    (
        ["--models=b17x"],
        "error: --models: model variant 'b17x': expected one of Ti, S, B, L, H, a slash and the patch size",
    ),
    (
        ["--models=b16", "--image_size=100"],
        "error: --image_size=100 is not a multiple of the patch size of B/16; the nearest that is: 96",
    ),
    (["--modes=sleep"], "error: --modes=sleep: expected inference or train"),
    (["--batch_sizes=8,none"], "error: --batch_sizes=8,none: expected auto, or numbers above 0, such as 8,16"),
    (["--batch_sizes=0"], "error: --batch_sizes=0: expected auto, or numbers above 0"),
    (["b16"], "error: unexpected argument 'b16'"),
    (["--input"], "error: --config is missing"),
    (["--config=configs/b16_i1k.py"], "error: --config would not be read where models are measured; leave it out"),
    (["--scaling=patches", "--models=b16"], "error: --models would not be read with --scaling patches; leave it out"),
    (["--scaling=tokens", "--output=a.png"], "error: --output would not be read with --scaling tokens; leave it out"),
    (["--scaling=tokens", "--batch_sizes=1,2"], "error: --batch_sizes=1,2: expected one number with --scaling tokens"),
    (["--scaling=tokens", "--models=foo"], "error: --models: model variant 'foo': expected one of Ti, S, B, L, H"),
    (["--scaling=tokens", "--models=bit_r50x1"], "error: --models: BiT-R50x1 has no patches; give a Mixer or a ViT"),
    (["--scaling=patches", "--input"], "error: --scaling would not be read with --input; leave it out"),
    (["--scaling=patches", "--output=no/such/a.png"], "error: --output=no/such/a.png: there is no folder no/such"),
    (
        ["--scaling=patches", "--output=docs"],
        "error: --output=docs: that is a folder; give the name of a file",
    ),
    (["--models="], "error: --models is empty: give for example b16,vit_b16"),
    (["--modes=,"], "error: --modes is empty: give for example inference,train"),
    (["--block_seconds=nan"], "error: --block_seconds=nan: expected a finite number"),
    (["--block_seconds=inf"], "error: --block_seconds=inf: expected a finite number"),
    (["--batch_sizes=\u00b2"], "error: --batch_sizes=\u00b2: expected auto, or numbers above 0"),
    (["--input", "--topology=v3:2x2"], "error: --topology would not be read with --input; leave it out"),
    (["--input", "--accelerator_rate=0"], "error: --accelerator_rate=0: expected a finite number above 0"),
    (["--topology=v3:2x2", "--blocks=3"], "error: --blocks would not be read with --topology, where nothing is"),
    (["--topology=v3:2x2", "--block_seconds=3"], "error: --block_seconds would not be read with --topology,"),
    (["--topology=v9:2x2"], "error: --topology=v9:2x2: expected one of v2, v3, v4, v5e, v5p, v6e, tpu7x, a colon"),
    (["--model=b16"], "error: --model: no such flag; the nearest is --models"),
]


def test_what_is_wrong_is_said_in_one_line():
    for arguments, said in MISTAKES:
        done = commands.run("mixer.benchmark", *arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith(said)


def test_the_input_of_a_run(tmp_path):
    from mixer.data import datasets

    datasets.prepare_embedded("fractals/4x20x16", str(tmp_path))
    done = commands.run(
        "mixer.benchmark",
        "--input", "--json", "--config=configs/quickstart.py", "--config.input.dataset=fractals/4x20x16",
        f"--config.input.data_dir={tmp_path}", "--config.batch_size=16", "--blocks=1", "--block_seconds=0.05",
        "--accelerator_rate=1000000", devices=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accelerator_rate"] == 1e6
    assert found["host_cores_needed"] >= 1
