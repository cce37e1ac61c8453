"""Reads records of TFRecord files, given where each of them starts."""

import itertools
import os
from collections.abc import Sequence

import numpy as np

from mixer.data.records import tfrecord_index
from mixer.data.records.shards import ReadStretches, Records, Stretch
from mixer.runtime import bucket
from mixer.runtime.errors import UserError

_Part = tuple[str, int, int]  # path, first byte, and the byte after the last


def reader(shards: Sequence[tuple[str, np.ndarray]]) -> ReadStretches:
    """Returns the function that reads stretches of records.

    Each stretch is one read; in a bucket, all are under way at a time.

    Args:
      shards: each file's path, and the offsets of its records followed by its size (int64 [records + 1]).
    """
    read = _read_remote if any(bucket.is_remote(path) for path, _ in shards) else _read_local

    def read_stretches(stretches: Sequence[Stretch]) -> list[Records]:
        paths = [shards[shard][0] for shard, _, _ in stretches]
        bounds = [shards[shard][1][first : first + count + 1] for shard, first, count in stretches]
        parts = [(path, int(of[0]), int(of[-1])) for path, of in zip(paths, bounds, strict=True)]
        return [_records(blob, of - of[0]) for blob, of in zip(read(parts), bounds, strict=True)]

    return read_stretches


# Both raise a UserError, because only that reaches the user from within tf.data.


def _read_remote(parts: Sequence[_Part]) -> list[bytes]:
    try:
        return bucket.read([bucket.Range(*part) for part in parts])
    except OSError as error:
        raise UserError(
            f"{error.filename} can no longer be read ({error.strerror}): see to the bucket, then give the same command "
            "again"
        ) from None


def _read_local(parts: Sequence[_Part]) -> list[bytes]:
    found = []
    for path, start, stop in parts:
        try:
            found.append(_read_bytes(path, start, stop))
        except OSError as error:
            raise UserError(
                f"{path} can no longer be read ({error.strerror}): see to the file, then give the same command again"
            ) from None
    return found


def _read_bytes(path: str, start: int, stop: int) -> bytes:
    # The file is opened for each read, which takes about 10 microseconds. A dataset may have thousands of shards, and
    # the operating system limits the number of open files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, stop - start, start)
    finally:
        os.close(descriptor)


def _records(blob: bytes, bounds: np.ndarray) -> Records:
    """Returns the records between these bounds in the bytes of a stretch."""
    return [_verified(blob[start + tfrecord_index.HEADER : stop]) for start, stop in itertools.pairwise(bounds)]


def _verified(payload: bytes) -> bytes | None:
    """Returns a record's data without its checksum, or None if the checksum does not match."""
    data, stored = payload[: -tfrecord_index.FOOTER], int.from_bytes(payload[-tfrecord_index.FOOTER :], "little")
    return data if tfrecord_index.masked_checksum(data) == stored else None
