"""The launcher's whole path: a fake `gcloud`, whose workers really train, from a bucket to a bucket."""

import os
import pathlib
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from fake_cloud import ROOT, Cloud, opened

from mixer.training.checkpoint_reader import load_params
from mixer.training.metrics import read_metrics
from mixer.verify_resume import differences
from tests.bucket.fake_bucket import FakeBucket
from tests.data.making import labelled, pictures, write_dataset

STEPS = 30
SETTINGS = {
    "model.num_blocks": 1,
    "model.hidden_dim": 16,
    "model.tokens_mlp_dim": 8,
    "model.channels_mlp_dim": 32,
    "ema_decay": 0.9,
    "mixup.p": 0.5,
    "mixup.group": 2,
    "input.dataset": "pictures",
    "input.train_split": "train",
    "input.eval_split": "test",
    "input.image_size": 16,
    "input.eval_resize": 16,
    "input.shuffle_block": 16,  # the default in a bucket and on a disk need not be the same
    "batch_size": 32,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 3e-3,
    "total_steps": STEPS,
    "warmup_steps": 2,
    "log_steps": 1,
    "eval_steps": 15,
    "checkpoint_steps": 4,
}

# What uv would install on the workers, which is what the tests have. It runs what was copied to the worker, in the
# current folder. What a host of a slice would find out about the others, it is told.
PYTHON = """\
#!/bin/bash
unset PYTHONPATH JAX_COMPILATION_CACHE_DIR
case " $* " in *" --distributed "*) set -- "$@" {joining} --process_id="${{HOME##*worker}}" ;; esac
exec {python} "$@"
"""

# After a step of the training, the machine shuts down: all processes get SIGTERM, they end, and the slice is lost.
PREEMPTION = """\
until grep -q '^step 9/' worker0/mixer/train.log; do sleep 0.02; done
for home in worker*; do kill -TERM -- "-$(cat $home/mixer/pid)"; done
for home in worker*; do until [ -e $home/mixer/exit_status ]; do sleep 0.02; done; done
touch gone; printf 'SUSPENDING\\nSUSPENDING\\nSUSPENDED\\n' > queue; echo PREEMPTED > node
"""


def flags(data_dir: str) -> list[str]:
    settings = {**SETTINGS, "input.data_dir": data_dir}
    return ["--config=configs/quickstart.py", *(f"--config.{name}={value}" for name, value in settings.items())]


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    write_dataset(tmp_path / "tfds", "tfrecord", {"train": labelled(pictures(72)), "test": labelled(pictures(8))})
    return tmp_path / "tfds"


@pytest.fixture
def cloud(tmp_path: pathlib.Path, bucket_here: FakeBucket) -> Iterator[Cloud]:
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    python = PYTHON.format(
        python=shlex.quote(sys.executable), joining=f"--coordinator=localhost:{port} --num_processes=2"
    )
    (tmp_path / "cloud").mkdir()
    with opened(
        tmp_path / "cloud", python, ("mixer", "configs"), workdir=bucket_here.path("launched/run"),
        train=flags(bucket_here.path("launched/tfds")), workers=bucket_here.environment(), patience=300,
    ) as cloud:  # fmt: skip
        yield cloud


def train_undisturbed(data: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """Trains on this machine's disk, which also leaves the index of the data there."""
    command = [sys.executable, "-m", "mixer.train", *flags(str(data)), f"--workdir={workdir}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return workdir


def check_preempted(cloud: Cloud, straight: pathlib.Path, kind: str, hosts: int) -> list[pathlib.Path]:
    """Trains on two slices, the first of which is preempted. The state must have the bits of the undisturbed run.

    Returns:
      The folder of each host's work, of the first slice and then of the second.
    """
    first, second = cloud.plan(hosts=hosts, events={2: PREEMPTION}), cloud.plan(hosts=hosts)
    result = cloud.run("--spot", "--delete_when_done", kind=kind)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "preempted: relaunch 1 of at most 100" in result.stderr
    assert cloud.changes() == ["create", "scp", "setup", "start", "delete"] * 2
    places = [slice_ / f"worker{worker}" / "mixer" for slice_ in (first, second) for worker in range(hosts)]
    statuses = [int((place / "exit_status").read_text()) for place in places]
    assert statuses == [75] * hosts + [0] * hosts
    logs = [(place / "train.log").read_text() for place in places]
    assert "Traceback" not in "".join(logs)
    saved = int(logs[0].split("asked to stop: saved at step ")[1].split()[0])
    assert 9 <= saved < STEPS
    assert f"continuing from step {saved}\n" in logs[hosts]
    assert load_params(cloud.workdir)[0] == STEPS
    assert [line["step"] for line in read_metrics(cloud.workdir)] == [*range(1, STEPS + 1)]
    assert differences(straight, cloud.workdir) == []
    return places


@pytest.mark.slow  # tests/test_run_in_bucket.py and tests/chaos stop runs in buckets; test_tpu_vm.py tests the launcher
def test_a_preempted_run_in_a_bucket_ends_at_the_same_bits(
    cloud: Cloud, bucket_here: FakeBucket, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    straight = train_undisturbed(data, tmp_path / "straight")
    bucket_here.upload(data, "launched/tfds")
    places = check_preempted(cloud, straight, "v3-8", hosts=1)
    left = {path.name for place in places for path in (place / "source").iterdir()}
    assert left == {"configs", "constraints.txt", "mixer", "scripts"}, "something was written on a worker's disk"


@pytest.mark.slow  # three times two processes
def test_two_hosts_that_are_preempted_end_at_the_same_bits(
    cloud: Cloud, bucket_here: FakeBucket, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    command = [*flags(str(data)), f"--workdir={tmp_path / 'straight'}", "--distributed"]
    pair = [
        subprocess.Popen([str(cloud.root / "python"), "-m", "mixer.train", *command], cwd=ROOT,
                         env={**os.environ, "HOME": str(tmp_path / f"worker{number}")})
        for number in range(2)
    ]  # fmt: skip
    assert [process.wait(300) for process in pair] == [0, 0]
    bucket_here.upload(data, "launched/tfds")
    check_preempted(cloud, tmp_path / "straight", "v4-16", hosts=2)
