"""A folder of one's own images, as a user meets it: trained on by its path alone, and scored whole by class names."""

import json
import os
import pathlib
import shutil
import subprocess
import unicodedata

import numpy as np
import pytest
from PIL import Image

from mixer.config import run_folder
from mixer.data import readers
from mixer.training.metrics import read_metrics
from tests import commands

COLOURS = {b"caf\xe9": (220, 30, 30), "köter".encode(): (30, 200, 40), b"blue": (30, 40, 220)}
NAMES = {b"caf\xe9": "caf\\xe9", "köter".encode(): "köter", b"blue": "blue"}
SMALL = [
    "--config.model.variant=Ti/4", "--config.model.num_blocks=1", "--config.model.hidden_dim=16",
    "--config.model.tokens_mlp_dim=8", "--config.model.channels_mlp_dim=16", "--config.input.image_size=16",
    "--config.batch_size=8", "--config.total_steps=12", "--config.warmup_steps=2", "--config.eval_steps=12",
]  # fmt: skip


def fill(root: pathlib.Path, counts: dict[bytes, int], seed: int = 0) -> pathlib.Path:
    """Draws pictures of one colour each. A class and a file have names that are no UTF-8."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        folder = os.fsencode(root) + b"/" + name
        os.makedirs(folder, exist_ok=True)
        for number in range(count):
            pixels = np.clip(rng.normal(COLOURS.get(name, (0, 0, 0)), 20, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(os.fsdecode(folder) + f"/{number}\udcff.png", "PNG")
    return root


def command(module: str, *arguments: object, home: pathlib.Path) -> subprocess.CompletedProcess:
    return commands.run(f"mixer.{module}", *arguments, HOME=str(home), devices=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with images and a run that was trained on them."""
    home = tmp_path_factory.mktemp("home")
    fill(home / "pics", dict.fromkeys(COLOURS, 12))
    (home / "pics" / "blue" / "scan.heic").write_bytes(b"x")
    done = command(
        "train", "--config=configs/folder.py", "--config.input.data_dir=~/pics", "--workdir=~/run", *SMALL, home=home
    )
    assert done.returncode == 0, done.stderr
    (home / "said").write_text(done.stdout)
    return home


def test_a_folder_is_enough_and_what_was_found_is_said(home):
    said = (home / "said").read_text()
    assert f"{home}/pics: 3 classes: blue, caf\\xe9, köter\n" in said
    assert "  train: 33 images of 3 classes, in its class folders, without those kept for validation\n" in said
    assert "  validation: 3 images of 3 classes, the share 0.1 of each class in its class folders\n" in said
    assert "  left out: 1 file with another ending: 1 .heic (HEIC cannot be read: convert to JPEG)\n" in said
    assert said.count("left out") == 1
    assert run_folder.load_class_names(home / "run") == ["blue", "caf\\xe9", "köter"]
    assert read_metrics(home / "run")[-1]["val/count"] == 3


def evaluated(home, *command_lines):
    """What `mixer.evaluate` answers to each command line, with the run as its checkpoint."""
    return [command("evaluate", "--checkpoint=~/run", *arguments, home=home) for arguments in command_lines]


def scores(home, *command_lines):
    done = evaluated(home, *command_lines)
    assert not any(one.returncode for one in done), [one.stderr for one in done]
    return [(json.loads(one.stdout), one.stderr) for one in done]


def test_a_held_out_folder_with_a_part_of_the_classes_is_scored_whole(home):
    fill(home / "held", {"köter".encode(): 5}, seed=9)
    fill(home / "held2", {b"caf\xe9": 1, "köter".encode(): 5}, seed=9)
    (found, said), (both, _) = scores(home, ["--data_dir=~/held"], ["--data_dir=~/held2", "--split=all"])
    assert (found["split"], found["count"]) == ("all", 5)
    assert found["accuracy"] == found["class_accuracy"]["köter"]
    assert set(found["class_accuracy"]) == {"köter"}
    assert "  matched by name: 1 of the 3 classes of " in said
    assert f"{home}/held: 1 class: köter\n" in said
    assert both["class_accuracy"]["köter"] == found["accuracy"]
    assert both["count"] == 6


def test_the_runs_own_folder_in_another_place_is_not_scored_on_what_it_was_trained_on(home):
    for name in ("moved", "less", "other"):
        shutil.copytree(home / "pics", home / name, symlinks=True)
    next((home / "less").glob("*/*.png")).unlink()  # most of its images are still the run's
    for path in (home / "other").glob("*/*.png"):  # other images under the same names
        path.write_bytes(path.read_bytes() + b"\0")
    asked = [
        ["--data_dir=~/moved"],
        ["--data_dir=~/moved", "--split=all"],
        ["--data_dir=~/less"],
        ["--data_dir=~/other"],
    ]
    found = scores(home, *asked)
    assert [(one["split"], one["count"]) for one, _ in found] == [
        ("validation", 3), ("all", 36), ("validation", 3), ("all", 36),
    ]  # fmt: skip
    said = found[-1][1]
    assert f"all images of {home}/other are evaluated; if the model was trained on this folder, its split" in said


def test_a_validation_split_that_has_changed_is_told(home):
    """Without a folder for validation, other images are validation where some are gone: images of training."""
    shutil.copytree(home / "pics", home / "changed", symlinks=True)
    config = run_folder.load_config(home / "run").input
    validation = readers.open_source(config, "validation", home / "cache")
    for number in range(validation.num_examples):
        (home / "changed" / os.path.relpath(validation.place(number), home / "pics")).unlink()
    (_, as_before), (found, said) = scores(home, [], ["--data_dir=~/changed"])
    assert (found["split"], found["count"]) == ("validation", 3)
    (line,) = [line for line in said.splitlines() if "has changed" in line]
    assert line.startswith(f"folder validation has changed since the run {home}/run started (the digest of ")
    assert "has changed" not in as_before


def test_few_shot_accuracy_of_another_folder_is_not_measured_on_what_it_learns_from(home):
    fill(home / "few", dict.fromkeys(COLOURS, 20), seed=5)
    few = ["--data_dir=~/few", "--fewshot"]
    own, *refused = evaluated(
        home, [*few, "--shots=2", "--seeds=1"], *([*few, f"--split={split}"] for split in ("train", "all"))
    )
    found = json.loads(own.stdout)
    assert (found["split"], found["train_split"]) == ("validation", "train")
    for split, done in zip(("train", "all"), refused, strict=True):
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"error: --split={split}: it holds the images of train, from")


def test_the_splits_of_a_folder(home):
    for split, count in (("train", 2), ("valid", 3), ("test", 4)):
        fill(home / "splits" / split, dict.fromkeys(COLOURS, count), seed=count)
    asked = {(): 9, ("--split=test",): 12, ("--split=train",): 6, ("--split=all",): 27}
    (home / "link").symlink_to("pics")
    own = [(), ("--data_dir=~/pics/",), ("--data_dir=~/link",)]  # the run's own data
    found = [one for one, _ in scores(home, *(("--data_dir=~/splits", *arguments) for arguments in asked), *own)]
    assert [one["count"] for one in found[: len(asked)]] == list(asked.values())
    assert found[0]["split"] == "validation"
    for one in found[len(asked) :]:
        assert (one["split"], one["count"]) == ("validation", 3)  # what it was evaluated on


def test_names_that_do_not_match_are_told(home):
    other = unicodedata.normalize("NFD", "köter")
    fill(home / "other", {other.encode(): 3, b"blue": 3})
    done = command("evaluate", "--checkpoint=~/run", "--data_dir=~/other", home=home)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert f"1 of the data's classes: {other} (it differs from köter only in case or Unicode form)" in line


def test_a_file_of_weights_is_scored_on_a_folder(home, tmp_path):
    done = command("export", "--checkpoint=~/run", "--to=npz", tmp_path / "own.npz", home=home)
    assert done.returncode == 0, done.stderr
    fill(home / "held3", {b"blue": 4}, seed=3)
    done = command("evaluate", f"--checkpoint={tmp_path}/own.npz", "--task=folder", "--data_dir=~/held3", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["count"] == 4
