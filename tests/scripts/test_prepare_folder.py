"""`prepare.py folder` and `index`, and what the script does with a bucket. tests/data/datasets has the rest."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from test_prepare import SCRIPT, prepare  # noqa: F401

from tests.bucket.faults import Fault

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUMMARY = """\
Skipped: 2 (1 empty, 1 unknown_format)
They are listed in {data_dir}/mine/1.0.0/rejects.jsonl
Examples: train 36, validation 4
mine is in {data_dir}/mine/1.0.0{there}
To use it, write in the config:
  config.input.dataset = "mine"
  config.input.data_dir = "{data_dir}"
"""
LEFT = "; it was there before and was left as it is: delete that folder to build it again"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes with 40 images of noise, which are 100 kB each, and two files that are no images."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(40):
        (root / "ab"[n % 2]).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (180, 185, 3), np.uint8)).save(root / "ab"[n % 2] / f"{n}.png")
    (root / "a" / "empty.png").write_bytes(b"")
    (root / "b" / "text.jpg").write_bytes(b"hello")
    return root


@pytest.fixture(scope="module")
def whole(prepare, photos, tmp_path_factory):
    """The files of the dataset, prepared without interruption."""
    data_dir = tmp_path_factory.mktemp("whole")
    assert prepare.main(arguments(photos, data_dir)) == 0
    return {path.name: path.read_bytes() for path in (data_dir / "mine/1.0.0").iterdir()}


def arguments(images, data_dir):
    return ["folder", f"--images={images}", f"--data_dir={data_dir}", "--name=mine", "--shard_mib=1"]


def start(code, *argv, **environment):
    """Starts Python with the code, in a folder that is not the project's."""
    return subprocess.Popen(
        [sys.executable, *code, *argv], env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
    )  # fmt: skip


READ = """
import sys, tensorflow_datasets as tfds
builder = tfds.builder("mine", data_dir=sys.argv[1])
examples = [e for split in ("train", "validation") for e in builder.as_dataset(split=split).as_numpy_iterator()]
assert len(examples) == 40 and {e["image"].shape for e in examples} == {(180, 185, 3)}, len(examples)
assert builder.info.features["label"].int2str(int(examples[0]["label"])) in "ab"
assert not any(name.startswith("mixer") for name in sys.modules)
"""


def test_a_dataset_that_tfds_reads_without_our_code(prepare, photos, whole, tmp_path, capsys):
    assert prepare.main(arguments(photos, tmp_path)) == 0
    assert capsys.readouterr().out == SUMMARY.format(data_dir=tmp_path, there="")
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine/1.0.0").iterdir()} == whole
    assert sum(".tfrecord-" in name for name in whole) == 4  # three of training, one of validation
    assert prepare.main(arguments(photos, tmp_path)) == 0
    assert capsys.readouterr().out == SUMMARY.format(data_dir=tmp_path, there=LEFT)
    reader = start(["-c", READ], str(tmp_path))
    _, error = reader.communicate()
    assert reader.returncode == 0, error


HANG = """
import sys, time, runpy
from mixer.data.datasets import dataset_files
write, left = dataset_files.write, iter([True] * 4)
def write_or_wait(*arguments):
    if not next(left, False):
        print("two shards are written", flush=True)
        time.sleep(100)
    write(*arguments)
dataset_files.write = write_or_wait
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_continues(prepare, photos, whole, tmp_path, capsys, number):
    process = start(["-c", HANG], str(SCRIPT), *arguments(photos, tmp_path))
    assert process.stdout.readline() == "two shards are written\n"
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert said.endswith("prepare.py: interrupted; the same command continues\n")
    assert prepare.main(arguments(photos, tmp_path)) == 0
    captured = capsys.readouterr()
    assert captured.out == SUMMARY.format(data_dir=tmp_path, there="")
    assert "Continues: 2 of 4 shards are there." in captured.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine/1.0.0").iterdir()} == whole


def test_errors_are_one_line(prepare, photos, tmp_path, capsys):
    command = arguments(photos, tmp_path / "d")
    cases = {
        "--images nowhere: there is no such folder": [*command, "--images=nowhere"],
        "holds 0 class folders": [*command, f"--images={photos}/a"],
        "--validation_share 1.0: it must be": [*command, "--validation_share=1"],
        "--shard_mib 0: it must be": [*command, "--shard_mib=0"],
        "--name folder: in a config": [*command, "--name=folder"],
        "--name mnist: TFDS already has": [*command, "--name=mnist"],
        "s3://b/x: only local paths and gs://": [*command, "--images=s3://b/x"],
        "is no prepared dataset: give the folder that holds": ["index", f"--dataset={photos}"],
    }
    for message, case in cases.items():
        assert prepare.main(case) == 1, message
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("prepare.py: ")
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_home_folders_and_what_was_found(prepare, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").symlink_to(photos)
    assert prepare.main(arguments("~/photos", "~/d")) == 0
    captured = capsys.readouterr()
    assert captured.out == SUMMARY.format(data_dir=tmp_path / "d", there="")
    assert f"{tmp_path}/photos: 2 classes: a, b\n  train: 38 images of 2 classes, in its class folders" in captured.err


def test_other_images_and_options_are_told_and_so_are_images_in_both_splits(prepare, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for n in range(8):
        path = tmp_path / "own" / ("train", "val")[n >= 6] / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (18, 18, 3), np.uint8)).save(path)
    shutil.copy(tmp_path / "own/val/a/6.png", tmp_path / "own/train/b/leaked.png")
    command = arguments(tmp_path / "own", tmp_path / "d")
    assert prepare.main(command) == 0
    twice = tmp_path / "d/mine/1.0.0/in_several_splits.jsonl"
    said = f"WARNING: 1 training images are in another split too, to the byte: {twice} lists them\n"
    assert said in capsys.readouterr().out
    assert json.loads(twice.read_text()) == {"image": "train/b/leaked.png", "same_as": "val/a/6.png"}
    os.utime(tmp_path / "own/train/a/0.png", (1, 1))
    assert prepare.main(command) == 0
    assert LEFT in capsys.readouterr().out
    assert prepare.main([*command, "--shard_mib=2"]) == 1
    assert (
        "prepared otherwise (bytes of a shard: 1,048,576 before, 2,097,152 now): delete it" in capsys.readouterr().err
    )
    (tmp_path / "own/train/a/0.png").unlink()
    assert prepare.main(command) == 1
    assert "prepared otherwise (digest of the images' paths and sizes: " in capsys.readouterr().err


def test_index(prepare, tmp_path, capsys):
    assert prepare.main(["fractals", "--categories=2", "--instances=4", "--size=8", f"--data_dir={tmp_path}"]) == 0
    folder = tmp_path / "fractals/2x4x8/1.0.0"
    files = {path: path.read_bytes() for path in folder.glob("index-*.npy")}
    assert len(files) == 2
    capsys.readouterr()
    command = ["index", f"--dataset={folder}"]
    assert prepare.main(command) == 0
    assert (
        capsys.readouterr().out
        == f"{folder}: the index of train, validation is there and fits; it was left as it is.\n"
    )
    (folder / "index-train.npy").write_bytes(files[folder / "index-validation.npy"])  # of other records
    (folder / "index-validation.npy").unlink()
    assert prepare.main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"Wrote into {folder}:",
        "  index-train.npy: 6 records in 1 files",
        "  index-validation.npy: 2 records in 1 files",
    ]
    assert {path: path.read_bytes() for path in folder.glob("index-*.npy")} == files
    arrays = tmp_path / "arrays"
    array_record = ["--file_format=array_record", "--categories=2", "--instances=4", "--size=8", f"--data_dir={arrays}"]
    assert prepare.main(["fractals", *array_record]) == 0
    capsys.readouterr()
    assert prepare.main(["index", f"--dataset={arrays}/fractals/2x4x8/1.0.0"]) == 0
    assert "ArrayRecord files have an index of their own; nothing was written" in capsys.readouterr().out
    shutil.rmtree(folder)
    assert prepare.main(command) == 1


def test_a_dataset_without_one_of_its_shards_is_said_to_be_incomplete(prepare, tmp_path, capsys):
    command = ["fractals", "--categories=2", "--instances=4", "--size=8", f"--data_dir={tmp_path}"]
    assert prepare.main(command) == 0
    next((tmp_path / "fractals/2x4x8/1.0.0").glob("*train.tfrecord*")).unlink()
    assert prepare.main(command) == 1
    assert "is incomplete, 1 of its shards are missing: delete it" in capsys.readouterr().err


def test_so_is_one_of_class_folders(prepare, photos, tmp_path, capsys):
    command = ["folder", f"--images={photos}", f"--data_dir={tmp_path}", "--name=mine"]
    assert prepare.main(command) == 0
    next((tmp_path / "mine/1.0.0").glob("*train.tfrecord*")).unlink()
    assert prepare.main(command) == 1
    assert "is incomplete, 1 of its shards are missing: delete it" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- buckets

COMMANDS = """
import json, runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
for command in json.loads(sys.argv[2]):
    print(f"status {main(command)}")
    for stream in (sys.stdout, sys.stderr):
        print("-" * 10, file=stream, flush=True)
"""


def run_commands(bucket, commands):
    """Runs the script's command lines, one after the other in one process. Returns stdout and stderr of each."""
    process = start(["-c", COMMANDS], str(SCRIPT), json.dumps(commands), **bucket.environment())
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    return list(zip(*(text.split("-" * 10 + "\n")[:-1] for text in (out, err)), strict=True))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def in_bucket(bucket, prefix):
    return {name.removeprefix(prefix): bucket.content(name) for name in bucket.objects(prefix)}


def test_from_a_bucket_to_a_bucket_killed_and_continued(photos, whole, bucket):
    bucket.upload(photos, "photos")
    bucket.control(fail=[Fault("POST .*/upload/", status=503, skip=4, hang_seconds=100)])  # in the third shard
    data_dir = bucket.path("tfds")
    command = arguments(bucket.path("photos"), data_dir)
    process = start([str(SCRIPT)], *command, **bucket.environment())
    wait_until(lambda: sum(name.endswith(".progress.json") for name in bucket.objects("tfds/")) == 2)
    process.kill()
    process.communicate()
    bucket.control(fail=[])
    bucket.clear_log()
    index = ["index", f"--dataset={data_dir}/mine/1.0.0"]
    (continued, progress), (there, _), (fits, _), (misspelled, error) = run_commands(
        bucket, [command, command, index, ["index", "--dataset=gs://misspelled/x"]]
    )
    assert continued == SUMMARY.format(data_dir=data_dir, there="") + "status 0\n"
    assert there == SUMMARY.format(data_dir=data_dir, there=LEFT) + "status 0\n"
    assert "Continues: 2 of 4 shards are there." in progress
    assert in_bucket(bucket, "tfds/mine/1.0.0/") == whole  # to the byte as from a local folder to a local folder
    assert "is there and fits" in fits
    assert misspelled == "status 1\n"
    assert "gs://misspelled: there is no such bucket" in error
    reads = [entry.name for entry in bucket.log() if entry.operation == "read" and entry.name.startswith("photos/")]
    assert len(reads) == len(set(reads))  # each image is read once,
    assert 10 < len(reads) < 30  # and not those of the shards that were there


def test_other_datasets_in_a_bucket(photos, bucket, tmp_path):
    bucket.upload(photos, "photos")
    lines = [{"image": f"{'ab'[n % 2]}/{n}.png", "labels": ["ab"[n % 2]]} for n in range(40)]
    lines[0]["image"] = "./a//0.png"  # the same object
    (tmp_path / "good.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines += [{"image": name, "labels": []} for name in ("a/none.png", "a/empty.png", "b/text.jpg")]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bucket.put("classes.txt", b"a\nb\n")
    to = f"--data_dir={bucket.path('tfds')}"
    multilabel = ["multilabel", f"--classes={bucket.path('classes.txt')}", f"--images={bucket.path('photos')}", to]
    multilabel.append("--validation_share=0")
    good = [*multilabel, f"--manifest={tmp_path}/good.jsonl"]
    bad = [*multilabel, f"--manifest={tmp_path}/bad.jsonl", "--name=bad"]
    results = run_commands(
        bucket,
        [
            good,
            bad,
            [*bad, "--skip_bad"],
            ["digits", "--size=8", to],
            ["digits", "--size=8", to],
            ["index", f"--dataset={bucket.path('tfds')}/digits/8/1.0.0"],
            ["digits", "--file_format=array_record", "--size=9", to],
        ],
    )
    assert "Skipped: 0\nMost labels on one image: 1\nExamples: train 40\n" in results[0][0]
    assert "line 41: image cannot be read: there is no gs://" in results[1][1]
    assert "Skipped: 3 (2 not an image, 1 image cannot be read)\n" in results[2][0]
    assert "Examples: train 40\n" in results[2][0]
    assert "test 1,497\n" in results[3][0]
    assert "was left as it is" in results[4][0]
    assert "is there and fits" in results[5][0]
    assert results[6] == ("status 1\n", results[6][1])
    assert "--file_format array_record: such files cannot be written to a bucket" in results[6][1]
    assert not [name for name in bucket.objects() if "incomplete" in name]


def test_a_bucket_that_breaks_off_is_one_line(photos, bucket):
    bucket.upload(photos, "photos")
    bucket.control(fail=[Fault("/o/photos/a/2.png", status=403)])
    ((out, err),) = run_commands(bucket, [arguments(bucket.path("photos"), bucket.path("tfds"))])
    assert out == "status 1\n"
    last = err.strip().splitlines()[-1]
    assert last.startswith("prepare.py: ")
    assert "photos/a/2.png" in last
    assert "Traceback" not in err
