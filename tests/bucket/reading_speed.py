"""Measures reading from the fake bucket: python -m tests.bucket.reading_speed --photos DIR

Makes TFRecords in two shards of the photographs in DIR, puts them into a fake bucket in a process of its own, and reads
batches of 256 as in training, without decoding them. Each line of the table is a latency of the bucket and a block of
the shuffle. Requests and bytes are counted from the bucket's log.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from mixer.config import recipe
from mixer.data import pipeline, readers, sources
from mixer.data.records import records
from tests.bucket.fake_bucket import FakeBucket

_BATCH = 256
_HEADINGS = ("latency ms", "block", "images/s", "requests/image", "fetched kB/image", "in flight", "answered ms")
_COLUMNS = "{:>10} {:>6} {:>10} {:>15} {:>16} {:>10} {:>12}".format


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bucket.reading_speed", description=__doc__)
    parser.add_argument("--photos", type=pathlib.Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--records", type=int, default=3200, help="how many are made of them")
    parser.add_argument("--latencies_ms", type=float, nargs="+", default=[30, 500])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=8, help="that each line is measured")
    given = parser.parse_args()
    with FakeBucket() as bucket, bucket.here(), tempfile.TemporaryDirectory() as folder:
        mean_size = _write_dataset(pathlib.Path(folder), given.photos, given.records)
        bucket.upload(pathlib.Path(folder), "tfds")
        source = readers.open_source(_input(bucket, 1), "train", folder)
        print(f"{source.num_examples:,} images of {mean_size / 1e3:.1f} kB in two shards; batches of {_BATCH}")
        print(
            _COLUMNS(
                "latency ms", "block", "images/s", "requests/image", "fetched kB/image", "in flight", "answered ms"
            )
        )
        for latency in given.latencies_ms:
            bucket.control(latency_ms=latency)
            for block in given.blocks:
                print(_line(bucket, source, latency, block, given.seconds), flush=True)


def _write_dataset(data_dir: pathlib.Path, photos: pathlib.Path, count: int) -> float:
    """Prepares `count` records of the photographs, again and again. Returns the mean size of an image in bytes."""
    files = [path.read_bytes() for path in sorted(photos.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg")]
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    examples = [(i, {"image": files[i % len(files)], "label": i % 2}) for i in range(count)]
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name="photos", version="1.0.0", features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples}, data_dir=data_dir,
        download_config=tfds.download.DownloadConfig(num_shards=2),
    )  # fmt: skip
    records.write_index(data_dir / "photos/1.0.0")
    return statistics.mean(len(example["image"]) for _, example in examples)


def _input(bucket: FakeBucket, block: int) -> ConfigDict:
    config = recipe.base().input
    config.dataset, config.data_dir, config.shuffle_block = "photos", bucket.path("tfds"), block
    return config


def _line(bucket: FakeBucket, source: sources.Source, latency: float, block: int, seconds: float) -> str:
    """Reads for some seconds. Requests and bytes are those that were answered in this time."""
    groups = _groups(source, _input(bucket, block))
    per_batch = _BATCH // 8
    for _ in range(8 * per_batch):  # connections are opened, and what was first read ahead is used up
        next(groups)
    bucket.clear_log()
    start, images = time.time(), 0
    while (passed := time.time() - start) < seconds:
        for _ in range(per_batch):
            next(groups)
        images += _BATCH
    entries = [entry for entry in bucket.log() if start <= entry.time + entry.seconds <= start + passed]
    groups.close()
    return _COLUMNS(
        f"{latency:g}", block, f"{images / passed:,.0f}", f"{len(entries) / images:.3f}",
        f"{sum(entry.sent for entry in entries) / images / 1e3:.1f}",
        f"{statistics.median(entry.in_flight for entry in entries):.0f}",
        f"{1e3 * statistics.median(entry.seconds for entry in entries):.0f}",
    )  # fmt: skip


def _groups(source: sources.Source, config: ConfigDict) -> Iterator[pipeline.Batch]:
    """Yields groups of eight images, as they go to decoding in training."""
    rows, many = slice(0, _BATCH), range(1_000_000)

    def dataset(steps: range, verify: bool) -> tf.data.Dataset:
        return pipeline.train_examples(source, config, seed=0, batch_size=_BATCH, rows=rows, steps=steps, verify=verify)

    return pipeline.batches_of(dataset, many)


if __name__ == "__main__":
    main()
