"""The index of TFRecord files: where each record starts, so that a record can be read by its number.

A TFRecord file has no index of its own. This one is made once, by reading the length before each record, and is saved
as a NumPy file. The file is memory-mapped, so opening it takes the same time for a thousand records and for 14 million.
In a bucket, making it reads all bytes, and one process does it for all.

Format of one record: uint64 length, uint32 checksum of the length, the data, uint32 checksum of the data. All numbers
are little-endian.
"""

import concurrent.futures
import contextlib
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

import google_crc32c
import jax
import numpy as np
from etils import epath

from mixer.data.records import shards
from mixer.runtime import bucket, distributed, files
from mixer.runtime.errors import UserError

_log = logging.getLogger(__name__)

HEADER, FOOTER = 12, 4  # bytes before and after a record's data

# A bucket is read with up to 16 requests of 8 MiB at a time, of up to 16 files. This takes 256 MiB of memory at most,
# since parts are joined.
_REQUESTS, _REQUEST_BYTES = 16, 8 << 20
_PROGRESS_SECONDS = 10.0  # between two lines about the progress
_LOOK_SECONDS = 5.0  # between two looks for an index that another process makes


def masked_checksum(data: bytes) -> int:
    """Returns the checksum that a record has of its length or its data: a CRC32C, rotated and shifted."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def file_name(split: str) -> str:
    """Returns the name of the index of a split, in the dataset's folder."""
    return f"index-{split}.npy"


def load_or_make(places: Sequence[epath.Path], paths: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """Loads the index of a split, or makes and saves it. For files in a bucket, process 0 makes it and the others wait.

    Args:
      places: paths where the index may be. It is loaded from the first one that exists. If none does, it is made and
        saved at the first one that can be written.
      paths: the split's TFRecord files.
      counts: the number of records in each file.

    Returns:
      int64 [records + files]: for each file, the offset of each record in bytes, then the file's size.

    Raises:
      UserError: the index is damaged or belongs to other data, a file does not have its number of records, or the other
        processes could not read the index.
      OSError: a bucket cannot be read.
    """
    offsets = _loaded(places, counts)
    if bucket.is_remote(paths[0]):
        _tell_place(places[0])
    if offsets is None and bucket.is_remote(paths[0]):
        offsets = _made_by_process_0(places, paths, counts)
    elif offsets is None:
        _log.info("Indexing %d records in %d files, once.", sum(counts), len(paths))
        offsets = make(paths, counts)
        _save_at_one(places, offsets)  # without a saved index, the next run makes it again
    return offsets


def _loaded(places: Sequence[epath.Path], counts: Sequence[int]) -> np.ndarray | None:
    """Returns the index from the first place that has one; None if no place has."""
    for place in places:
        try:
            offsets = _load(place)
        except FileNotFoundError:
            continue
        if offsets is None or offsets.shape != (sum(counts) + len(counts),):
            raise UserError(f"{place} is not the index of its {sum(counts)} records: delete it, to have it made again")
        return offsets
    return None


def _save_at_one(places: Sequence[epath.Path], offsets: np.ndarray) -> bool:
    """Saves the index at the first place that can be written to. Returns whether there is one."""
    for place in places:
        with contextlib.suppress(OSError):  # such as a read-only folder or a full disk
            if not bucket.is_remote(place):
                place.parent.mkdir(parents=True, exist_ok=True)
            save(place, offsets)
            return True
    return False


def _made_by_process_0(places: Sequence[epath.Path], paths: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """Makes the index of files in a bucket, or waits until another process has made it."""
    while jax.process_index() != 0:
        _check_place(places[0])
        _log.warning("Waiting for process 0, which makes the index %s.", places[0])
        time.sleep(_LOOK_SECONDS)
        if (offsets := _loaded(places, counts)) is not None:
            return offsets
    folder = places[0].parent
    if not any(map(_can_write, places)) and jax.process_count() > 1:  # found out before everything is read
        raise UserError(_not_saved(places))
    _log.warning(
        "%s has no index: all of it is read once, %.1f GB. `python scripts/prepare.py index --dataset %s` does so "
        "beforehand.", folder, sum(shards.sizes(paths).values()) / 1e9, folder,
    )  # fmt: skip
    offsets = make(paths, counts, _log.warning)
    if not _save_at_one(places, offsets):
        if jax.process_count() > 1:
            raise UserError(_not_saved(places))
        _log.warning("The index can be written to neither %s: the next start makes it again.", _either(places))
    return offsets


def _tell_place(place: epath.Path) -> None:
    """Tells the other processes where process 0 has the index, or makes it."""
    processes = distributed.processes()
    if processes.count > 1 and processes.index == 0:
        processes.client.key_value_set(_key(place), str(place), allow_overwrite=True)


def _check_place(place: epath.Path) -> None:
    """Checks that process 0, for whose index this process waits, makes it at this place.

    Raises:
      UserError: it reads a copy of the data elsewhere.
    """
    processes = distributed.processes()
    if processes.count == 1:
        return
    try:
        theirs = processes.client.blocking_key_value_get(_key(place), 1000)
    except jax.errors.JaxRuntimeError:  # it has not come so far
        return
    if theirs != str(place):
        raise UserError(
            f"{place.parent} has no index, and process 0, which makes one, reads {epath.Path(theirs).parent}: run "
            f"`python scripts/prepare.py index --dataset {place.parent}` first, or give process "
            f"{processes.index} that folder"
        )


def _key(place: epath.Path) -> str:
    return f"mixer/index/{'/'.join(place.parts[-3:])}"


def _not_saved(places: Sequence[epath.Path]) -> str:
    return (
        f"the index of {places[0].parent} can be written to neither {_either(places)}, so the other processes cannot "
        f"read it: run `python scripts/prepare.py index --dataset {places[0].parent}` as someone who may write there"
    )


def _either(places: Sequence[epath.Path]) -> str:
    return " nor ".join(str(place.parent) for place in places)


def _can_write(place: epath.Path) -> bool:
    """Tells whether a file can be written beside a place."""
    probe = place.with_name(f".{place.name}.writable")
    try:
        if not bucket.is_remote(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(probe, b"")
    except OSError:
        return False
    with contextlib.suppress(OSError):
        files.delete(probe)
    return True


def save(path: epath.PathLike, offsets: np.ndarray) -> None:
    """Saves the index whole or not at all. Several processes may save the same index.

    Raises:
      OSError: the file cannot be written.
    """
    with files.opened_to_write(path) as file:
        np.save(file, offsets)


def _load(path: epath.Path) -> np.ndarray | None:
    """Maps a local index into memory, or reads a remote one. Returns None if the file is damaged or is no index.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: the bucket cannot be read.
    """
    try:
        if not bucket.is_remote(path):
            offsets: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # np.load would open archives too
        else:
            offsets = np.lib.format.read_array(io.BytesIO(_read_whole(str(path))), allow_pickle=False)
    except (ValueError, EOFError, OverflowError):
        return None
    return offsets if offsets.dtype == np.int64 else None


def _read_whole(path: str) -> bytes:
    """Reads a file of a bucket in parts, all at a time."""
    folder, name = os.path.split(path)
    if (found := bucket.children(folder)[1].get(name)) is None:
        raise FileNotFoundError(path)
    starts = range(0, found.size, _REQUEST_BYTES)
    parts = [bucket.Range(path, start, min(start + _REQUEST_BYTES, found.size)) for start in starts]
    return b"".join(bucket.read(parts))


# -------------------------------------------------------------------------------------------------------------- making


def make(paths: Sequence[str], counts: Sequence[int], report: Callable[[str], None] | None = None) -> np.ndarray:
    """Makes the index by reading the length of every record. See `load_or_make` for arguments, result and errors.

    Args:
      report: is called now and then with a line about the progress; no lines, if not given.
    """
    sizes = shards.sizes(paths)
    progress = _Progress(sum(sizes.values()), report)
    requests = max(1, _REQUESTS // len(paths))  # for each of few files

    def file_offsets(path: str, count: int) -> np.ndarray:
        if bucket.is_remote(path):
            headers = _RemoteHeaders(path, sizes[path], requests, progress)
            offsets = _file_offsets(path, count, sizes[path], headers)
            progress.add(sizes[path] - headers.read_to)
            return offsets
        with open(path, "rb", buffering=1 << 12) as file:

            def header_at(at: int) -> bytes:
                file.seek(at)
                return file.read(HEADER)

            offsets = _file_offsets(path, count, sizes[path], header_at)
        progress.add(sizes[path])
        return offsets

    with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
        return np.concatenate(list(pool.map(file_offsets, paths, counts)))


def _file_offsets(path: str, count: int, size: int, header_at: Callable[[int], bytes]) -> np.ndarray:
    """Returns the offsets of a file's records, then its size: int64 [count + 1].

    Args:
      path: for messages.
      count: number of records.
      size: of the file in bytes.
      header_at: returns the header of the record at an offset, or what there is of it. Offsets ascend.
    """
    offsets = np.zeros(count + 1, np.int64)
    at = 0
    for record in range(count):
        offsets[record] = at
        header = header_at(at)
        at += HEADER + int.from_bytes(header[:8], "little") + FOOTER
        if len(header) < HEADER or at > size:
            raise UserError(
                f"{path} ends within record {record} of {count}: it was cut short; copy or prepare it again"
            )
    if at != size:
        raise UserError(f"{path} holds more than the {count} records of its dataset_info.json; prepare it again")
    offsets[count] = size
    return offsets


class _RemoteHeaders:
    """The headers of a file in a bucket, which is read from its beginning to its end in large parts.

    Attributes:
      read_to: the byte after the last that was read.
    """

    def __init__(self, path: str, size: int, requests: int, progress: "_Progress") -> None:
        """Reads nothing yet.

        Args:
          path: of the file.
          size: of the file in bytes.
          requests: how many parts are read at a time.
          progress: is told of the bytes that were read or skipped.
        """
        self._path, self._size, self._requests, self._progress = path, size, requests, progress
        self._start, self._data, self.read_to = 0, b"", 0

    def __call__(self, at: int) -> bytes:
        """Returns the header at an offset, which must not be smaller than the last one."""
        if at + HEADER > self.read_to:
            starts = range(at, self._size, _REQUEST_BYTES)[: self._requests]
            parts = [bucket.Range(self._path, start, min(start + _REQUEST_BYTES, self._size)) for start in starts]
            self._data = b"".join(bucket.read(parts))
            self._progress.add(at + len(self._data) - self.read_to)
            self._start, self.read_to = at, at + len(self._data)
        return self._data[at - self._start : at - self._start + HEADER]


class _Progress:
    """Says now and then how much is done."""

    def __init__(self, total: int, report: Callable[[str], None] | None) -> None:
        self._total, self._report, self._done = total, report, 0
        self._begin = self._said = time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Counts bytes that are done."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if self._report and now - self._said >= _PROGRESS_SECONDS:
                self._said, share = now, max(self._done, 1) / self._total
                left = (now - self._begin) * (1 - share) / share
                self._report(f"index: {share:.0%} of {self._total / 1e9:.1f} GB, about {left:.0f} s left")
