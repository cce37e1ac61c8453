"""Random access to the records of a prepared dataset: record number in, bytes out, in constant time.

ArrayRecord files carry an index. TFRecord files do not: theirs is made once, by reading the length that stands before
every record, and kept as a NumPy file that is memory-mapped, so opening it costs the same for a thousand records and
for fourteen million.
"""

import concurrent.futures
import logging
import os
import secrets
from collections.abc import Callable, Sequence

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from mixer.runtime.errors import UserError

_log = logging.getLogger(__name__)

# A TFRecord is: uint64 length, uint32 crc(length), the bytes, uint32 crc(bytes); little-endian, checksums masked.
_HEADER, _FOOTER = 12, 4
_REMOTE_READS = 32  # concurrent reads of a bucket, where each waits for the network

# A run is (shard, first record within it, how many); its records lie side by side.
_Run = tuple[int, int, int]
_Records = list[bytes | None]

Reader = Callable[[np.ndarray], list[bytes | None]]
"""Record numbers (int64 [n]) to their bytes; None stands for a record that is damaged."""


def open_records(builder: tfds.core.DatasetBuilder, split: str, cache_dir: epath.PathLike) -> tuple[int, Reader]:
    """Opens a split of a prepared dataset, sub-splits such as train[:99%] included.

    Args:
      builder: a prepared TFDS dataset, in TFRecord or ArrayRecord format.
      split: a split in TFDS' notation.
      cache_dir: where an index is kept when the dataset's folder cannot be written to.

    Returns:
      The number of records and their reader.

    Raises:
      UserError: a shard is missing, is not of the size that the index says, or the format has no random access.
    """
    instructions = builder.info.splits[split].file_instructions
    takes = [instruction.take for instruction in instructions]
    starts = np.cumsum([0, *takes])
    shard_paths = [str(instruction.filename) for instruction in instructions]
    remote = any("://" in path for path in shard_paths)
    skips = np.array([instruction.skip for instruction in instructions])
    _check_present(shard_paths)

    file_format = builder.info.file_format.value
    if file_format == "tfrecord":
        shards = _indexed_shards(builder, shard_paths, epath.Path(cache_dir))
        read_runs = _with_pool(_read_tfrecords(shards), remote=remote)
    elif file_format == "array_record":
        _check_counts(shard_paths, [instruction.skip + instruction.take for instruction in instructions])
        read_runs = _with_pool(_read_array_records(shard_paths), remote=False)
    else:
        raise UserError(
            f"dataset {builder.name}: file format {file_format!r} has no random access; prepare it as tfrecord or "
            "array_record"
        )

    def read(numbers: np.ndarray) -> list[bytes | None]:
        numbers = np.asarray(numbers)
        shard = np.searchsorted(starts, numbers, side="right") - 1
        within = numbers - starts[shard] + skips[shard]
        order = np.lexsort((within, shard))
        records: list[bytes | None] = [None] * len(numbers)
        # Neighbours on the disk are fetched by one read: that is what a blocked shuffle is for.
        breaks = np.flatnonzero((np.diff(shard[order]) != 0) | (np.diff(within[order]) != 1)) + 1
        runs = np.split(order, breaks) if len(order) else []
        fetched = read_runs([(int(shard[run[0]]), int(within[run[0]]), len(run)) for run in runs])
        for run, blobs in zip(runs, fetched, strict=True):
            for slot, blob in zip(run, blobs, strict=True):
                records[slot] = blob
        return records

    return int(starts[-1]), read


def _with_pool(read_run: Callable[[_Run], _Records], remote: bool) -> Callable[[list[_Run]], list[_Records]]:
    if not remote:
        return lambda runs: [read_run(run) for run in runs]
    pool = concurrent.futures.ThreadPoolExecutor(_REMOTE_READS, thread_name_prefix="records")
    return lambda runs: list(pool.map(read_run, runs))


def _read_tfrecords(shards: list[tuple[str, np.ndarray]]) -> Callable[[_Run], _Records]:
    """Takes each shard's path and its records' starts followed by its size (int64 [records + 1])."""

    def read_run(run: _Run) -> _Records:
        shard, first, count = run
        path, offsets = shards[shard]
        bounds = offsets[first : first + count + 1]
        blob = _read_bytes(path, int(bounds[0]), int(bounds[-1] - bounds[0]))
        pairs = zip(bounds[:-1] - bounds[0], bounds[1:] - bounds[0], strict=True)
        return [_verified(blob[start + _HEADER : stop]) for start, stop in pairs]

    return read_run


def _read_bytes(path: str, start: int, size: int) -> bytes:
    if "://" in path:
        with epath.Path(path).open("rb") as file:
            file.seek(start)
            return file.read(size)
    # Opening costs some 10 microseconds; it keeps a dataset of thousands of shards within the limit on open files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, start)
    finally:
        os.close(descriptor)


def _verified(payload: bytes) -> bytes | None:
    """Splits the checksum off a record's bytes; None when it does not match."""
    data, stored = payload[:-_FOOTER], int.from_bytes(payload[-_FOOTER:], "little")
    crc = google_crc32c.value(data)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return data if masked == stored else None


def _open_array_record(path: str) -> array_record_module.ArrayRecordReader:
    return array_record_module.ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def _check_counts(paths: Sequence[str], counts: Sequence[int]) -> None:
    """A file that lacks its end opens as one without records."""
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_READS) as pool:
        for path, found, count in zip(paths, pool.map(_count_array_records, paths), counts, strict=True):
            if found < count:
                raise UserError(
                    f"{path} holds {found} records where at least {count} are expected: it was cut short; copy or "
                    "prepare it again"
                )


def _count_array_records(path: str) -> int:
    return _open_array_record(path).num_records()


def _read_array_records(paths: list[str]) -> Callable[[_Run], _Records]:
    readers: dict[int, array_record_module.ArrayRecordReader] = {}

    def read_run(run: _Run) -> _Records:
        shard, first, count = run
        if shard not in readers:
            readers[shard] = _open_array_record(paths[shard])
        try:
            return list(readers[shard].read(first, first + count))
        except (IndexError, RuntimeError, ValueError):
            if count == 1:
                return [None]
            return [record for i in range(count) for record in read_run((shard, first + i, 1))]

    return read_run


def _check_present(paths: Sequence[str]) -> None:
    """A shard that is missing is an error now, not on the third day."""
    folders = {os.path.dirname(path) for path in paths}
    present = {str(path) for folder in folders for path in epath.Path(folder).iterdir()}
    missing = sorted(set(paths) - present)
    if missing:
        raise UserError(
            f"{len(missing)} of the dataset's {len(paths)} shards are missing, the first is {missing[0]}: copy or "
            "prepare the dataset again"
        )


def write_index(prepared_dir: epath.PathLike) -> None:
    """Writes the index of every TFRecord split of a prepared dataset into its folder; ArrayRecord needs none."""
    builder = tfds.builder_from_directory(prepared_dir)
    if builder.info.file_format.value == "tfrecord":
        for name, split in builder.info.splits.items():
            if split.num_examples:
                paths = [str(path) for path in split.filepaths]
                _save(epath.Path(prepared_dir) / _index_name(name), _scan(paths, split.shard_lengths))


def _index_name(split: str) -> str:
    return f"index-{split}.npy"


def _indexed_shards(
    builder: tfds.core.DatasetBuilder, wanted: Sequence[str], cache_dir: epath.Path
) -> list[tuple[str, np.ndarray]]:
    """Finds or makes the index of the wanted shards: each one's path and offsets."""
    folder, dataset = epath.Path(builder.data_path), builder.info.full_name.replace("/", "-")
    found: dict[str, np.ndarray] = {}
    for name, split in builder.info.splits.items():
        paths = [str(path) for path in split.filepaths]
        if set(paths).isdisjoint(wanted):
            continue
        places = [folder / _index_name(name), cache_dir / f"{dataset}-{_index_name(name)}"]
        offsets = _load_or_make(places, paths, split.shard_lengths)
        stops = np.cumsum([count + 1 for count in split.shard_lengths])
        found.update(zip(paths, np.split(offsets, stops[:-1]), strict=True))
    for path in wanted:
        size = epath.Path(path).stat().length
        if found[path][-1] != size:
            raise UserError(
                f"{path} holds {size} bytes where its index says {found[path][-1]}: it was cut short or replaced; copy "
                f"it again, or delete the index ({_index_name('*')}) if the file is right"
            )
    return [(path, found[path]) for path in wanted]


def _load_or_make(places: Sequence[epath.Path], paths: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """Loads the index from the first place that has it; else makes it and keeps it in the first that can be written."""
    for place in places:
        if place.exists():
            offsets = _load(place)
            if offsets is None or offsets.shape != (sum(counts) + len(counts),):
                raise UserError(
                    f"{place} is not the index of its {sum(counts)} records: delete it, to have it made again"
                )
            return offsets
    _log.info("Indexing %d records in %d files, once.", sum(counts), len(paths))
    offsets = _scan(paths, counts)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _save(place, offsets)
            break
        except OSError:
            continue
    return offsets


def _load(path: epath.Path) -> np.ndarray | None:
    """Maps the index into memory, or reads it where it is remote; None when it is not one, or half of one."""
    try:
        if "://" not in str(path):
            offsets: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # np.load would open archives too
        else:
            with path.open("rb") as file:
                offsets = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OverflowError):
        return None
    return offsets if offsets.dtype == np.int64 else None


def _save(path: epath.Path, offsets: np.ndarray) -> None:
    """Writes the index whole or not at all, whichever of several processes comes first."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, offsets)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _scan(paths: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """Reads where every record starts, in files of these record counts: each file's offsets, then its size."""
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_READS) as pool:
        return np.concatenate(list(pool.map(_scan_shard, paths, counts)))


def _scan_shard(path: str, count: int) -> np.ndarray:
    offsets = np.zeros(count + 1, np.int64)
    size = epath.Path(path).stat().length
    at = 0
    with open(path, "rb", buffering=1 << 12) if "://" not in path else epath.Path(path).open("rb") as file:
        for record in range(count):
            offsets[record] = at
            file.seek(at)
            header = file.read(_HEADER)
            at += _HEADER + int.from_bytes(header[:8], "little") + _FOOTER
            if len(header) < _HEADER or at > size:
                raise UserError(
                    f"{path} ends within record {record} of {count}: it was cut short; copy or prepare it again"
                )
    if at != size:
        raise UserError(f"{path} holds more than the {count} records of its dataset_info.json; prepare it again")
    offsets[count] = size
    return offsets
