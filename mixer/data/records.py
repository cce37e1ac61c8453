"""Random access to the records of a prepared dataset, by record number and in constant time.

ArrayRecord files have an index of their own. For TFRecord files, `tfrecord_index.py` makes one.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from mixer.data import tfrecord_index
from mixer.runtime.errors import UserError

_REMOTE_READS = 32  # concurrent reads of a bucket, where each waits for the network

_Run = tuple[int, int, int]  # (shard, first record in it, number of records): consecutive records of one file
_Records = list[bytes | None]

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
      UserError: a shard is missing or does not have the size that the index says, or the format has no random access.
    """
    instructions = builder.info.splits[split].file_instructions
    starts = np.cumsum([0, *(instruction.take for instruction in instructions)])
    skips = np.array([instruction.skip for instruction in instructions])
    read_runs = _open_shards(builder, instructions, epath.Path(cache_dir))

    def fetch_records(numbers: np.ndarray) -> list[bytes | None]:
        numbers = np.asarray(numbers)
        shard = np.searchsorted(starts, numbers, side="right") - 1
        within = numbers - starts[shard] + skips[shard]
        order = np.lexsort((within, shard))
        records: list[bytes | None] = [None] * len(numbers)
        # Consecutive records are fetched with one read. With a blocked shuffle, such runs are long.
        breaks = np.flatnonzero((np.diff(shard[order]) != 0) | (np.diff(within[order]) != 1)) + 1
        runs = np.split(order, breaks) if len(order) else []
        fetched = read_runs([(int(shard[run[0]]), int(within[run[0]]), len(run)) for run in runs])
        for run, blobs in zip(runs, fetched, strict=True):
            for slot, blob in zip(run, blobs, strict=True):
                records[slot] = blob
        return records

    return int(starts[-1]), fetch_records


def _open_shards(
    builder: tfds.core.DatasetBuilder, instructions: Sequence[Any], cache_dir: epath.Path
) -> Callable[[list[_Run]], list[_Records]]:
    """Checks the files of a split, and returns the function that reads runs of their records.

    Args:
      builder: a prepared dataset.
      instructions: the split's `file_instructions`, one for each file.
      cache_dir: see `open_records`.
    """
    paths = [str(instruction.filename) for instruction in instructions]
    _check_present(paths)
    file_format = builder.info.file_format.value
    if file_format == "tfrecord":
        remote = any("://" in path for path in paths)
        return _with_pool(_tfrecord_reader(_indexed_shards(builder, paths, cache_dir)), remote)
    if file_format == "array_record":
        _check_counts(paths, [instruction.skip + instruction.take for instruction in instructions])
        return _with_pool(_array_record_reader(paths), remote=False)
    raise UserError(
        f"dataset {builder.name}: file format {file_format!r} has no random access; prepare it as tfrecord or "
        "array_record"
    )


def _with_pool(read_run: Callable[[_Run], _Records], remote: bool) -> Callable[[list[_Run]], list[_Records]]:
    """Returns a function that reads several runs, concurrently if they are remote."""
    if not remote:
        return lambda runs: [read_run(run) for run in runs]
    pool = concurrent.futures.ThreadPoolExecutor(_REMOTE_READS, thread_name_prefix="records")
    return lambda runs: list(pool.map(read_run, runs))


def _check_present(paths: Sequence[str]) -> None:
    """Checks that all shards exist. Otherwise a run might notice after days."""
    folders = {os.path.dirname(path) for path in paths}
    present = {str(path) for folder in folders for path in epath.Path(folder).iterdir()}
    missing = sorted(set(paths) - present)
    if missing:
        raise UserError(
            f"{len(missing)} of the dataset's {len(paths)} shards are missing, the first is {missing[0]}: copy or "
            "prepare the dataset again"
        )


# ------------------------------------------------------------------------------------------------------------ TFRecord


def write_index(prepared_dir: epath.PathLike) -> None:
    """Writes the index of every split of a prepared TFRecord dataset into its folder; ArrayRecord needs none."""
    builder = tfds.builder_from_directory(prepared_dir)
    if builder.info.file_format.value == "tfrecord":
        for name, split in builder.info.splits.items():
            if split.num_examples:
                paths = [str(path) for path in split.filepaths]
                offsets = tfrecord_index.make(paths, split.shard_lengths)
                tfrecord_index.save(epath.Path(prepared_dir) / tfrecord_index.file_name(name), offsets)


def _indexed_shards(
    builder: tfds.core.DatasetBuilder, wanted: Sequence[str], cache_dir: epath.Path
) -> list[tuple[str, np.ndarray]]:
    """Loads or makes the index of the wanted files.

    Returns:
      For each file its path, and the offsets of its records followed by its size (int64 [records + 1]).
    """
    folder, dataset = epath.Path(builder.data_path), builder.info.full_name.replace("/", "-")
    found: dict[str, np.ndarray] = {}
    for name, split in builder.info.splits.items():
        paths = [str(path) for path in split.filepaths]
        if set(paths).isdisjoint(wanted):
            continue
        index_name = tfrecord_index.file_name(name)
        places = [folder / index_name, cache_dir / f"{dataset}-{index_name}"]
        offsets = tfrecord_index.load_or_make(places, paths, split.shard_lengths)
        stops = np.cumsum([count + 1 for count in split.shard_lengths])
        found.update(zip(paths, np.split(offsets, stops[:-1]), strict=True))
    for path in wanted:
        size = epath.Path(path).stat().length
        if found[path][-1] != size:
            raise UserError(
                f"{path} holds {size} bytes where its index says {found[path][-1]}: it was cut short or replaced; copy "
                f"it again, or delete the index ({tfrecord_index.file_name('*')}) if the file is right"
            )
    return [(path, found[path]) for path in wanted]


def _tfrecord_reader(shards: list[tuple[str, np.ndarray]]) -> Callable[[_Run], _Records]:
    """Returns the function that reads a run of records from shards as `_indexed_shards` returns them."""

    def read_run(run: _Run) -> _Records:
        shard, first, count = run
        path, offsets = shards[shard]
        bounds = offsets[first : first + count + 1]
        blob = _read_bytes(path, int(bounds[0]), int(bounds[-1] - bounds[0]))
        pairs = zip(bounds[:-1] - bounds[0], bounds[1:] - bounds[0], strict=True)
        return [_verified(blob[start + tfrecord_index.HEADER : stop]) for start, stop in pairs]

    return read_run


def _read_bytes(path: str, start: int, size: int) -> bytes:
    if "://" in path:
        with epath.Path(path).open("rb") as file:
            file.seek(start)
            return file.read(size)
    # The file is opened for each read, which takes about 10 microseconds. A dataset may have thousands of shards, and
    # the operating system limits the number of open files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, start)
    finally:
        os.close(descriptor)


def _verified(payload: bytes) -> bytes | None:
    """Returns a record's data without its checksum, or None if the checksum does not match (TFRecord masks it)."""
    data, stored = payload[: -tfrecord_index.FOOTER], int.from_bytes(payload[-tfrecord_index.FOOTER :], "little")
    crc = google_crc32c.value(data)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return data if masked == stored else None


# --------------------------------------------------------------------------------------------------------- ArrayRecord


def _check_counts(paths: Sequence[str], counts: Sequence[int]) -> None:
    """Checks that each file has at least this many records. A file that is cut short opens as one without records."""
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_READS) as pool:
        for path, found, count in zip(paths, pool.map(_count_array_records, paths), counts, strict=True):
            if found < count:
                raise UserError(
                    f"{path} holds {found} records where at least {count} are expected: it was cut short; copy or "
                    "prepare it again"
                )


def _count_array_records(path: str) -> int:
    return _open_array_record(path).num_records()


def _open_array_record(path: str) -> array_record_module.ArrayRecordReader:
    return array_record_module.ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def _array_record_reader(paths: list[str]) -> Callable[[_Run], _Records]:
    """Returns the function that reads a run of records from these files."""
    readers: dict[int, array_record_module.ArrayRecordReader] = {}

    def read_run(run: _Run) -> _Records:
        shard, first, count = run
        if shard not in readers:
            readers[shard] = _open_array_record(paths[shard])
        try:
            return list(readers[shard].read(first, first + count))
        except (IndexError, RuntimeError, ValueError):  # a record is damaged: find out which one
            if count == 1:
                return [None]
            return [record for i in range(count) for record in read_run((shard, first + i, 1))]

    return read_run
