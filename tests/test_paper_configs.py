"""The paper's configs as they stand, from a prepared archive or manifest to the last step; and multi-label data."""

import contextlib
import io
import json
import pathlib
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny_run import SHARED, run, tiny

from mixer import train
from mixer.config import run_folder


def photographs(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Real photographs where some lie beside the checkout, else noise, as JPEG files."""
    if SHARED.is_dir():
        return sorted((SHARED / "imagenet_samples").glob("*.JPEG"))[:count]
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.JPEG" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(path)
    return paths


def train_command(config: str, workdir: pathlib.Path, *arguments: str, devices: int = 1) -> str:
    done = run([sys.executable, "-m", "mixer.train", "--config", config, f"--workdir={workdir}", *arguments], devices)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imagenet21k(folder: pathlib.Path, pictures: list[pathlib.Path]) -> None:
    """Packs pictures as the released archive does, a tar of one tar a class, and prepares it with our command."""
    with tarfile.open(folder / "winter21_whole.tar.gz", "w:gz") as outer:
        for number, members in enumerate((pictures[::2], pictures[1::2]), start=1):
            inner = folder / f"n{number:08d}.tar"
            with tarfile.open(inner, "w") as tar:
                for i, path in enumerate(members):
                    tar.add(path, arcname=f"n{number:08d}_{i}.JPEG")
            outer.add(inner, arcname=f"winter21_whole/{inner.name}")
    (folder / "classes.txt").write_text("n00000001\nn00000002\n")
    prepared = run(
        [sys.executable, "scripts/prepare.py", "imagenet21k", f"--archive={folder / 'winter21_whole.tar.gz'}",
         f"--classes={folder / 'classes.txt'}", f"--data_dir={folder / 'data'}"]
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr


def multilabel(folder: pathlib.Path, pictures: list[pathlib.Path]) -> None:
    """Writes a manifest of pictures with sets of labels, a quarter to validate on, and prepares it."""
    lines = [
        {"image": path.name, "labels": [["a"], ["a", "b"], ["c"]][i % 3], "split": ["validation", "train"][i % 4 > 0]}
        for i, path in enumerate(pictures)
    ]
    (folder / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (folder / "classes.txt").write_text("a\nb\nc\n")
    prepared = run(
        [sys.executable, "scripts/prepare.py", "multilabel", f"--manifest={folder / 'm.jsonl'}",
         f"--classes={folder / 'classes.txt'}", f"--images={pictures[0].parent}", f"--data_dir={folder / 'data'}"]
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr


def test_multi_label_data_gets_its_own_metrics(tmp_path):
    multilabel(tmp_path, photographs(tmp_path / "photographs", 40))
    changes = {"input.dataset": "multilabel", "loss": "sigmoid_xent", "total_steps": 2}
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        metrics = train.train(tiny(str(tmp_path / "data"), **changes), tmp_path / "run")
    assert metrics["val/count"] == 10
    assert 0 < metrics["val/mean_average_precision"] <= 1
    # What is worth nothing stands beside, and the checkpoints are ranked by what is worth more.
    assert 0.3 < metrics["val/baseline_mean_average_precision"] < 0.5
    assert 0.5 < metrics["val/baseline_accuracy"] < 1
    assert "the best 1 kept, by val/mean_average_precision\n" in lines.getvalue()


@pytest.mark.slow  # the whole B/16: about a minute
def test_b16_i21k_from_an_archive_in_the_official_layout(tmp_path):
    """Archive -> our builder -> the whole B/16 at 224 pixels, its RandAugment, mixup and all: three steps of 16."""
    imagenet21k(tmp_path, photographs(tmp_path / "photographs", 40))
    out = train_command(
        "configs/b16_i21k.py", tmp_path / "run", f"--config.input.data_dir={tmp_path / 'data'}",
        "--config.total_steps=3", "--config.warmup_steps=1", "--config.batch_size=16", "--config.log_steps=1",
        "--config.input.train_split=train[:80%]", "--config.input.eval_split=train[80%:]",
    )  # fmt: skip
    assert "59,113,010 parameters" in out  # 59,111,472 and a head of two classes
    assert "step 3/3" in out
    assert "val/count 8" in out
    assert (tmp_path / "run" / run_folder.CLASSES_FILE).read_text().splitlines() == ["n00000001", "n00000002"]


@pytest.mark.slow
def test_h14_jft_as_it_stands(tmp_path):
    """The whole H/14 at 224 pixels on a multi-label manifest: three steps of 2 on one device."""
    multilabel(tmp_path, photographs(tmp_path / "photographs", 12))
    out = train_command(
        "configs/h14_jft.py", tmp_path / "run", f"--config.input.data_dir={tmp_path / 'data'}",
        "--config.total_steps=3", "--config.warmup_steps=1", "--config.batch_size=2", "--config.log_steps=1",
    )  # fmt: skip
    assert "431,073,795 parameters" in out  # 431,069,952 and a head of three classes
    assert "step 3/3" in out
    assert "val/mean_average_precision" in out
