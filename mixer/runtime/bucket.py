"""Google Cloud Storage, where epath is not enough.

Libraries reach gs:// through epath, which uses TensorFlow's file system. That one reads 64 MiB ahead in each open file,
asks once or twice for each file's size, and raises errors that are no OSErrors. This module lists a folder with sizes
and checksums in one request for a thousand objects, reads exact byte ranges concurrently, and raises OSErrors.
"""

import contextlib
import errno
import functools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mixer.runtime.errors import first_line

if TYPE_CHECKING:
    from google.cloud import storage

_REQUESTS = 64  # byte ranges that are asked for at a time
_ATTEMPTS = 3  # how often a byte range is asked for, if no answer comes
_SILENCE = 40.0  # seconds after which a byte range is asked for again
_PATIENCE = 120.0  # seconds during which a refused request is repeated


class Object(NamedTuple):
    """What a bucket says of an object: its size in bytes, and the MD5 of its content in base 64.

    Objects that were composed of others have no MD5. In its place stands the CRC32C, which is shorter.
    """

    size: int
    checksum: str


class Range(NamedTuple):
    """A part of a file: from byte `start` to before byte `stop`, or to the end if `stop` is None."""

    path: str
    start: int = 0
    stop: int | None = None


# --------------------------------------------------------------------------------------------------------------- paths


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path is an address, such as gs://bucket/run."""
    return "://" in str(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """Returns a path that does not depend on the current folder. (epath's `resolve` makes a local path of gs://.)"""
    return str(path) if is_remote(path) else str(pathlib.Path(path).absolute())


def split(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Splits gs://bucket/a/key into the bucket's name and the key. Raises OSError for another kind of address."""
    if not str(path).startswith("gs://"):
        raise OSError(errno.ENOTSUP, "only local paths and gs:// are supported", str(path))
    name, _, key = str(path).removeprefix("gs://").partition("/")
    return name, key


# ------------------------------------------------------------------------------------------------------------- objects


def listing(folder: str | os.PathLike[str]) -> dict[str, Object]:
    """Lists all files below a folder, with one request for each thousand.

    Returns:
      For each file its path relative to the folder, ascending; empty if there is no such folder.

    Raises:
      OSError: the bucket cannot be listed.
    """
    name, prefix = _prefix(folder)
    with as_os_errors(folder):
        blobs = list(client().list_blobs(name, prefix=prefix, fields=_FIELDS, **_patiently()))
    return {blob.name[len(prefix) :]: _object(blob) for blob in blobs if not blob.name.endswith("/")}


def children(folder: str | os.PathLike[str]) -> tuple[list[str], dict[str, Object]]:
    """Lists one level of a folder.

    Returns:
      The names of its folders, and its files by name.

    Raises:
      OSError: the bucket cannot be listed.
    """
    name, prefix = _prefix(folder)
    with as_os_errors(folder):
        found = client().list_blobs(name, prefix=prefix, delimiter="/", fields=f"{_FIELDS},prefixes", **_patiently())
        files = {blob.name[len(prefix) :]: _object(blob) for blob in found if not blob.name.endswith("/")}
    return sorted(path[len(prefix) :].rstrip("/") for path in found.prefixes), files


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Tells whether any object lies below a path.

    Raises:
      OSError: the bucket cannot be listed.
    """
    name, prefix = _prefix(path)
    with as_os_errors(path):
        return any(True for _ in client().list_blobs(name, prefix=prefix, max_results=1, **_patiently()))


def exists(path: str | os.PathLike[str]) -> bool:
    """Tells whether there is an object of this name.

    Raises:
      OSError: the bucket cannot be listed.
    """
    name, key = split(path)
    with as_os_errors(path):  # the first in alphabetical order that begins with a name is that one
        found = client().list_blobs(name, prefix=key, max_results=1, **_patiently())
        return any(blob.name == key for blob in found)


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file. A bucket never shows a part of it.

    Raises:
      OSError: it cannot be written.
    """
    name, key = split(path)
    with as_os_errors(path):
        client().bucket(name).blob(key).upload_from_string(data, "application/octet-stream", **_patiently())


def delete(path: str | os.PathLike[str]) -> None:
    """Deletes a file, if it is there.

    Raises:
      OSError: it cannot be deleted.
    """
    name, key = split(path)
    with contextlib.suppress(FileNotFoundError), as_os_errors(path):
        client().bucket(name).blob(key).delete(**_patiently())


def read(ranges: Sequence[Range], check_length: bool = True) -> list[bytes]:
    """Reads parts of files, all at a time.

    Args:
      ranges: the parts.
      check_length: an answer that is too short is an error.

    Raises:
      FileNotFoundError: a file does not exist.
      OSError: a part cannot be read, or the file ends before it.
    """
    futures = [_ask(part) for part in ranges]
    return [_answer(part, future, check_length) for part, future in zip(ranges, futures, strict=True)]


def _ask(part: Range) -> Any:
    name, key = split(part.path)
    whole = part.start == 0 and part.stop is None
    with tensorstore_as_os_errors(part.path):
        return store(name).read(key, byte_range=None if whole else slice(part.start, part.stop))


def _answer(part: Range, future: Any, check_length: bool) -> bytes:
    """Waits for the bytes of a part. A request that stays without answer is repeated."""
    with tensorstore_as_os_errors(part.path):
        for attempt in range(_ATTEMPTS):
            try:
                result = (_ask(part) if attempt else future).result(timeout=_SILENCE)
                break
            except TimeoutError:
                continue
        else:
            raise OSError(errno.EIO, f"no good answer in {_ATTEMPTS * _SILENCE:.0f} seconds", part.path)
    if result.state != "value":
        raise FileNotFoundError(errno.ENOENT, "there is no such file", part.path)
    content: bytes = result.value
    if check_length and part.stop is not None and len(content) != part.stop - part.start:
        raise OSError(errno.EIO, f"the file ends before byte {part.stop}", part.path)
    return content


# -------------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def as_os_errors(path: str | os.PathLike[str] = "") -> Iterator[None]:
    """Turns the errors that Google's and TensorFlow's clients raise within the block into OSErrors.

    Args:
      path: for the message.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(_CLIENTS) or isinstance(error, OSError):
            raise
        raise _os_error(type(error).__name__, error, path) from None


@contextlib.contextmanager
def tensorstore_as_os_errors(path: str) -> Iterator[None]:
    """Does the same for TensorStore, which raises ValueErrors that begin with a status."""
    try:
        yield
    except ValueError as error:
        raise _os_error(str(error).partition(":")[0], error, path) from None


def reason(error: Exception) -> str:
    """Returns what a client says went wrong, without the address of the request."""
    text = str(getattr(error, "message", None) or first_line(error))
    if in_json := re.search(r'\\?"message\\?": \\?"([^"\\]+)', text):
        return in_json[1]
    return re.sub(r"^[A-Z]+ https?://\S+ ", "", text).split(" [")[0][:200]


_CLIENTS = ("google.api_core", "google.auth", "google.cloud", "tensorflow.python.framework.errors")

_NUMBERS = {
    "NotFound": errno.ENOENT, "NotFoundError": errno.ENOENT, "NOT_FOUND": errno.ENOENT,
    "Forbidden": errno.EACCES, "PermissionDeniedError": errno.EACCES, "PERMISSION_DENIED": errno.EACCES,
    "Unauthorized": errno.EACCES, "UnauthenticatedError": errno.EACCES, "UNAUTHENTICATED": errno.EACCES,
}  # fmt: skip


def _os_error(kind: str, error: Exception, path: str | os.PathLike[str]) -> OSError:
    """Returns the OSError for a client's error. Python makes the subclass that fits the number."""
    return OSError(_NUMBERS.get(kind, errno.EIO), reason(error), *([str(path)] if str(path) else []))


# ------------------------------------------------------------------------------------------------------------- clients

_FIELDS = "items(name,size,md5Hash,crc32c),nextPageToken"


@functools.cache
def client() -> "storage.Client":
    """Returns the client of Google's library, which keeps its connections."""
    from google.cloud import storage

    return storage.Client()


@functools.cache
def store(bucket: str) -> Any:
    """Opens TensorStore's view of a bucket, which keeps its connections."""
    import tensorstore

    context = {
        "gcs_request_concurrency": {"limit": _REQUESTS},
        "gcs_request_retries": {"max_retries": 9, "initial_delay": "500ms", "max_delay": "20s"},
    }
    spec = {"driver": "gcs", "bucket": bucket, "context": context}
    try:
        return tensorstore.KvStore.open(spec).result()
    except ValueError as error:
        raise OSError(f"gs://{bucket} cannot be the name of a bucket ({first_line(error)})") from None


def _patiently() -> dict[str, Any]:
    """Returns arguments of a request that is repeated while the bucket is busy or out of reach."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"timeout": _SILENCE, "retry": DEFAULT_RETRY.with_timeout(_PATIENCE)}


def _prefix(folder: str | os.PathLike[str]) -> tuple[str, str]:
    name, key = split(folder)
    return name, f"{key.rstrip('/')}/" if key.strip("/") else ""


def _object(blob: Any) -> Object:
    return Object(int(blob.size), blob.md5_hash or blob.crc32c)
