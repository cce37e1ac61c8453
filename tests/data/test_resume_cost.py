"""A restart at step 900,000 with 14 million examples costs as much time, reading and memory as one at step 10."""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from making import encode

from mixer.data import order
from mixer.data.records import records

EXAMPLES, SHARDS, DISTINCT = 14_000_000, 64, 256
BATCH, SEED = 4096, 7
EARLY, LATE = 10, 900_000
REPETITIONS = 5

# A restart in its own process, measured from the end of the imports to the first batch.
RESTART = """
import json, pathlib, sys, time
from mixer.config import recipe
from mixer.data import pipeline, readers

def counters():
    # If there is /proc: bytes read by calls and from the disk, and the largest memory (kB) of this process. The memory
    # that getrusage reports would include the process that started this one.
    files = [path for path in map(pathlib.Path, ("/proc/self/io", "/proc/self/status")) if path.exists()]
    lines = (line.partition(":")[::2] for file in files for line in file.read_text().splitlines())
    return {name: int(value.split()[0]) for name, value in lines if name in ("rchar", "read_bytes", "VmHWM")}

data_dir, step, batch, seed = sys.argv[1], *map(int, sys.argv[2:])
config = recipe.base().input
config.update(dataset="tiny", data_dir=data_dir, image_size=8)
rows = slice(0, batch)
before, start, cpu = counters(), time.perf_counter(), time.process_time()
source = readers.open_source(config, "train", data_dir)
opened = time.perf_counter()
steps = range(step, step + 1)
first = next(pipeline.train_batches(source, config, seed=seed, batch_size=batch, rows=rows, steps=steps))
stop, cpu_stop, after = time.perf_counter(), time.process_time(), counters()
print(json.dumps({
    "seconds": stop - start, "opening": opened - start, "cpu_seconds": cpu_stop - cpu,
    **{name: after[name] - before[name] for name in after}, "peak_kB": after.get("VmHWM"),
    "examples": source.num_examples, "weight": float(first["weight"].sum()), "labels": first["labels"][:, 0].tolist(),
}))
"""


def tfrecord(data: bytes) -> bytes:
    """Returns a record as it is in a file: length, checksum of the length, data, checksum of the data."""

    def checksum(part: bytes) -> bytes:
        crc = google_crc32c.value(part)
        return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")

    length = len(data).to_bytes(8, "little")
    return length + checksum(length) + data + checksum(data)


def distinct_records() -> list[bytes]:
    """Returns one record of each class. Their images have several sizes, so records do not start at regular offsets."""
    random, features = np.random.default_rng(0), tf.train.Features
    found = []
    for label in range(DISTINCT):
        image = encode(random.integers(0, 256, (1 + label % 2, 1 + label % 3, 3), np.uint8))
        example = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                   "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))}  # fmt: skip
        found.append(tfrecord(tf.train.Example(features=features(feature=example)).SerializeToString()))
    return found


@pytest.fixture
def data_dir(tmp_path):
    """Returns the `data_dir` of `tiny`, where record n of each shard has the class n modulo DISTINCT."""
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    each, kinds = EXAMPLES // SHARDS, distinct_records()
    period = b"".join(kinds)
    for shard in range(SHARDS):
        with (folder / f"tiny-train.tfrecord-{shard:05d}-of-{SHARDS:05d}").open("wb") as file:
            file.write(period * (each // DISTINCT))
            file.write(b"".join(kinds[: each % DISTINCT]))
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[each] * SHARDS,
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="tiny", split="train", filetype_suffix="tfrecord"
        ),
    )
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=DISTINCT)}
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split])
    records.write_index(folder)
    yield tmp_path
    shutil.rmtree(tmp_path / "tiny")  # pytest would keep these two gigabytes for three more sessions


def restart(data_dir: pathlib.Path, step: int) -> dict:
    """Measures a restart. It would run out of time if it read all data before its step."""
    command = [sys.executable, "-c", RESTART, str(data_dir), str(step), str(BATCH), str(SEED)]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected_labels(step: int) -> list[int]:
    numbers = order.record_numbers(step * BATCH + np.arange(BATCH), EXAMPLES, SEED)
    return (numbers % (EXAMPLES // SHARDS) % DISTINCT).tolist()


@pytest.mark.slow
def test_a_restart_at_step_900_000_costs_no_more_than_one_at_step_10(data_dir):
    restart(data_dir, EARLY), restart(data_dir, LATE)  # after this, the files are in memory for both
    found = {step: [] for step in (EARLY, LATE)}
    for repetition in range(REPETITIONS):
        for step in (EARLY, LATE) if repetition % 2 else (LATE, EARLY):
            found[step].append(restart(data_dir, step))

    median = {}
    for step, runs in found.items():
        for run in runs:
            assert run["examples"] == EXAMPLES
            assert run["weight"] == BATCH  # every image was read and decoded
            assert run["labels"] == expected_labels(step)
        names = [name for name, value in runs[0].items() if isinstance(value, float | int)]
        median[step] = {name: statistics.median(run[name] for run in runs) for name in names}
        print(f"\nA restart at step {step:,}, medians of {REPETITIONS}:", end=" ")
        print(", ".join(f"{name} {value:,.2f}".removesuffix(".00") for name, value in median[step].items()))
        print("seconds of each:", *(f"{run['seconds']:.2f}" for run in runs))

    early, late, index = median[EARLY], median[LATE], (EXAMPLES + SHARDS) * 8  # bytes
    assert late["seconds"] <= 1.5 * early["seconds"] + 0.5
    assert late["cpu_seconds"] <= 1.5 * early["cpu_seconds"] + 0.2  # CPU time hardly depends on other processes
    if "rchar" in early:
        assert late["VmHWM"] <= 1.1 * early["VmHWM"] + 20_000
        # At most all pages of the index, and a batch.
        assert late["VmHWM"] * 1024 <= index + 100 * 2**20
        assert abs(late["rchar"] - early["rchar"]) <= 0.1 * early["rchar"]
        assert late["rchar"] < index / 10  # the index is opened, and not read
