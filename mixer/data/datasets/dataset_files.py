"""The files of a dataset that is made shard by shard: local or in a bucket, each written whole or not at all."""

import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from mixer.data.records import tfrecord_index
from mixer.data.tensorflow import tf
from mixer.runtime import bucket, files
from mixer.runtime.errors import UserError

_DELETED = 16  # files that are deleted at a time


def sizes(target: str) -> dict[str, int]:
    """Returns the size of each file in a folder, in bytes; empty if there is no such folder."""
    if bucket.is_remote(target):
        return {name: found.size for name, found in bucket.children(target)[1].items()}
    try:
        with os.scandir(target) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except FileNotFoundError:
        return {}


def read_json(target: str, names: Sequence[str]) -> dict[str, Any]:
    """Reads small files of a folder, those in a bucket all at a time."""
    paths = [os.path.join(target, name) for name in names]
    if bucket.is_remote(target):
        contents = bucket.read([bucket.Range(path) for path in paths])
    else:
        contents = [files.read_bytes(path) for path in paths]
    return {name: json.loads(content) for name, content in zip(names, contents, strict=True)}


def write(target: str, name: str, content: bytes) -> None:
    """Writes a file of a folder whole or not at all. Makes the folder."""
    if not bucket.is_remote(target):
        os.makedirs(target, exist_ok=True)
    files.write_bytes(os.path.join(target, name), content)


def delete(target: str, names: Sequence[str]) -> None:
    """Deletes files of a folder, those in a bucket several at a time."""
    with concurrent.futures.ThreadPoolExecutor(_DELETED) as pool:
        list(pool.map(lambda name: files.delete(os.path.join(target, name)), names))


@contextlib.contextmanager
def lock(data_dir: str, dataset: str, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock file in a local folder while the `with` block runs. A bucket has no lock.

    Raises:
      UserError: another process holds it, and `wait` is False.
    """
    if bucket.is_remote(data_dir):
        yield
        return
    folder = pathlib.Path(data_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{dataset}.lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # released also by the end of the process
        except BlockingIOError:
            raise UserError(
                f"{folder / dataset} is being prepared by another process: wait until it is done, or give another name"
            ) from None
        yield


def record(image: bytes, label: int) -> bytes:
    """Returns a record of a TFRecord file with an encoded image and its class number; see `tfrecord_index`."""
    feature = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    data: bytes = example.SerializeToString(deterministic=True)
    length = len(data).to_bytes(8, "little")
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    return tfrecord_index.masked_checksum(data).to_bytes(4, "little")
