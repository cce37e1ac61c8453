"""Random access to the records of a prepared dataset, by record number and in constant time.

ArrayRecord files have an index of their own. For TFRecord files, `tfrecord_index.py` makes one.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mixer.data.records import array_records, shards, tfrecord_index, tfrecords
from mixer.data.records.shards import ReadStretches
from mixer.runtime import bucket, files
from mixer.runtime.errors import UserError

_log = logging.getLogger(__name__)

FetchRecords = Callable[[np.ndarray], list[bytes | None]]
"""Returns the bytes of the records with these numbers (int64 [n]); None for a damaged record."""


def open_records(builder: tfds.core.DatasetBuilder, split: str, cache_dir: epath.PathLike) -> tuple[int, FetchRecords]:
    """Opens a split of a prepared dataset, or a part of a split such as train[:99%].

    Args:
      builder: a prepared TFDS dataset in TFRecord or ArrayRecord format.
      split: a split in TFDS' notation.
      cache_dir: folder for the index if the dataset's folder is read-only.

    Returns:
      The number of records, and a function that fetches records by their numbers.

    Raises:
      UserError: a shard is missing or does not have the size that the index says, or the format has no random access
        there.
      OSError: the bucket cannot be read.
    """
    instructions = builder.info.splits[split].file_instructions
    starts = np.cumsum([0, *(instruction.take for instruction in instructions)])
    skips = np.array([instruction.skip for instruction in instructions])
    read_stretches = _open_shards(builder, instructions, epath.Path(cache_dir))

    def fetch_records(numbers: np.ndarray) -> list[bytes | None]:
        numbers = np.asarray(numbers)
        shard = np.searchsorted(starts, numbers, side="right") - 1
        within = numbers - starts[shard] + skips[shard]
        order = np.lexsort((within, shard))
        records: list[bytes | None] = [None] * len(numbers)
        # Consecutive records are fetched with one read. With a blocked shuffle, such stretches are long.
        breaks = np.flatnonzero((np.diff(shard[order]) != 0) | (np.diff(within[order]) != 1)) + 1
        stretches = np.split(order, breaks) if len(order) else []
        fetched = read_stretches([(int(shard[of[0]]), int(within[of[0]]), len(of)) for of in stretches])
        for stretch, blobs in zip(stretches, fetched, strict=True):
            for slot, blob in zip(stretch, blobs, strict=True):
                records[slot] = blob
        return records

    return int(starts[-1]), fetch_records


def _open_shards(
    builder: tfds.core.DatasetBuilder, instructions: Sequence[Any], cache_dir: epath.Path
) -> ReadStretches:
    """Checks the files of a split, and returns the function that reads stretches of their records.

    Args:
      builder: a prepared dataset.
      instructions: the split's `file_instructions`, one for each file.
      cache_dir: see `open_records`.
    """
    paths = [str(instruction.filename) for instruction in instructions]
    sizes = shards.sizes(paths)
    file_format = builder.info.file_format.value
    if file_format == "tfrecord":
        indexed = _indexed_shards(builder, sizes, cache_dir)
        return tfrecords.reader([(path, indexed[path]) for path in paths])  # train[:10%]+train[20%:] names a file twice
    if file_format != "array_record":
        raise UserError(
            f"dataset {builder.name}: file format {file_format!r} has no random access; prepare it as tfrecord or "
            "array_record"
        )
    if any(map(bucket.is_remote, paths)):
        raise UserError(
            f"dataset {builder.name} in {builder.data_path}: array_record files cannot be read from a bucket, because "
            "their library asks for all the rest of a file at each read and then breaks off; prepare the dataset as "
            "tfrecord, or copy it to a local disk"
        )
    counts = {
        str(path): count
        for one in builder.info.splits.values()
        for path, count in zip(one.filepaths, one.shard_lengths, strict=True)
    }
    array_records.check_counts(paths, [counts[path] for path in paths])
    return array_records.reader(paths)


def has_index(prepared_dir: epath.PathLike) -> bool:
    """Returns whether a prepared dataset has the index of every split that needs one."""
    builder = tfds.builder_from_directory(prepared_dir)
    names = [name for name, split in builder.info.splits.items() if split.num_examples]
    made = (files.exists(epath.Path(prepared_dir) / tfrecord_index.file_name(name)) for name in names)
    return builder.info.file_format.value != "tfrecord" or all(made)


def write_index(prepared_dir: epath.PathLike, report: Callable[[str], None] | None = None) -> None:
    """Writes the index of every split of a prepared TFRecord dataset into its folder; ArrayRecord needs none.

    Args:
      prepared_dir: the dataset's folder with its version, local or gs://. In a bucket, all bytes are read once.
      report: is called every ten seconds with a line about the progress; by default the line is logged.

    Raises:
      UserError: a file is missing or is damaged.
      OSError: the bucket cannot be read, or the folder not be written to.
    """
    with bucket.as_os_errors(prepared_dir):
        builder = tfds.builder_from_directory(prepared_dir)
    if builder.info.file_format.value == "tfrecord":
        for name, split in builder.info.splits.items():
            if split.num_examples:
                paths = [str(path) for path in split.filepaths]
                offsets = tfrecord_index.make(paths, split.shard_lengths, report or _log.warning)
                tfrecord_index.save(epath.Path(prepared_dir) / tfrecord_index.file_name(name), offsets)


def _indexed_shards(
    builder: tfds.core.DatasetBuilder, sizes: dict[str, int], cache_dir: epath.Path
) -> dict[str, np.ndarray]:
    """Loads or makes the index of some files.

    Args:
      builder: a prepared dataset.
      sizes: the wanted files, and their sizes in bytes.
      cache_dir: see `open_records`.

    Returns:
      For each file's path, the offsets of its records followed by its size (int64 [records + 1]).
    """
    folder, dataset = epath.Path(builder.data_path), builder.info.full_name.replace("/", "-")
    found: dict[str, np.ndarray] = {}
    for name, split in builder.info.splits.items():
        paths = [str(path) for path in split.filepaths]
        if sizes.keys().isdisjoint(paths):
            continue
        index_name = tfrecord_index.file_name(name)
        places = [folder / index_name, cache_dir / f"{dataset}-{index_name}"]
        offsets = tfrecord_index.load_or_make(places, paths, split.shard_lengths)
        stops = np.cumsum([count + 1 for count in split.shard_lengths])
        found.update(zip(paths, np.split(offsets, stops[:-1]), strict=True))
    for path, size in sizes.items():
        if found[path][-1] != size:
            raise UserError(
                f"{path} holds {size} bytes where its index says {found[path][-1]}: it was cut short or replaced; copy "
                f"it again, or delete the index ({tfrecord_index.file_name('*')}) if the file is right"
            )
    return {path: found[path] for path in sizes}
