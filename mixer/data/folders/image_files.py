"""Image files, local or in a bucket: which endings are taken, and their bytes."""

import os
import stat
from collections.abc import Sequence

from mixer.runtime import bucket
from mixer.runtime.errors import UserError, first_line

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
)  # fmt: skip


def files_bytes(paths: Sequence[str]) -> list[bytes | None]:
    """Returns the bytes of files, local or gs://. Those in a bucket are read concurrently.

    Returns:
      None for a file that does not exist; for a local one also if it cannot be read, or is no regular file.

    Raises:
      UserError: a bucket cannot be read. Otherwise all images would be black, one after the other.
    """
    remote = [path for path in paths if path.startswith("gs://")]
    read = dict(zip(remote, _remote_bytes(remote), strict=True)) if remote else {}
    return [read[path] if path in read else file_bytes(path) for path in paths]


def _remote_bytes(paths: Sequence[str]) -> list[bytes | None]:
    """Returns the bytes of files in a bucket; None for one that does not exist."""
    try:
        return list(bucket.read([bucket.Range(path) for path in paths]))
    except FileNotFoundError:
        return [None] if len(paths) == 1 else [data for path in paths for data in _remote_bytes([path])]
    except OSError as error:
        where, why = error.filename or paths[0], error.strerror or first_line(error)
        raise UserError(f"{where} cannot be read ({why}): see to the bucket, then give the command again") from None


def file_bytes(path: str) -> bytes | None:
    """Returns a local file's bytes. None if it cannot be read or is no regular file, such as a pipe."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError):  # ValueError: no file can have this name. One image must not end a run
        return None


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a file. Without O_NONBLOCK, opening a pipe would wait until another process writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
