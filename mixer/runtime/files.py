"""Files, local or in a bucket, that are written whole or not at all, and names of folders."""

import contextlib
import errno
import io
import os
import pathlib
import secrets
from collections.abc import Iterator

from etils import epath

from mixer.runtime import bucket
from mixer.runtime.errors import UserError


def expanded(path: str) -> str:
    """Returns a path with the home folder that a ~ or ~name at its start stands for. A shell expands some of them."""
    return os.path.expanduser(path)


def real(path: str) -> str:
    """Returns the one path of all that lead to the same place: absolute, and without links."""
    return path.rstrip("/") if bucket.is_remote(path) else os.path.realpath(path)


@contextlib.contextmanager
def written_whole(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, in the same local folder. At the end renames this file to `path`.

    If the process is killed before the end, the old file remains as it was. The temporary name is random, so several
    processes may write the same file.

    Raises:
      OSError: the file cannot be written.
    """
    final = pathlib.Path(path)
    if final.is_dir():  # else the error would come only after the work
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
    partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
      OSError: the file cannot be written.
    """
    if bucket.is_remote(path):
        bucket.write(path, data)
    else:
        with written_whole(path) as partial:
            partial.write_bytes(data)


@contextlib.contextmanager
def opened_to_write(path: epath.PathLike) -> Iterator[io.BufferedIOBase]:
    """Yields a file that is open in binary mode. At the end it is there whole; after an error it is not there.

    Raises:
      OSError: the file cannot be written.
    """
    if bucket.is_remote(path):
        file = io.BytesIO()
        yield file
        bucket.write(path, file.getvalue())
    else:
        with written_whole(path) as partial, partial.open("wb") as local:
            yield local


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
      OSError: the file cannot be written.
    """
    write_bytes(path, text.encode())


def read_bytes(path: epath.PathLike) -> bytes:
    """Reads a file.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it cannot be read.
    """
    if bucket.is_remote(path):
        return bucket.read([bucket.Range(str(path))])[0]
    return pathlib.Path(path).read_bytes()


def read_text(path: epath.PathLike) -> str:
    """Reads a text file.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it cannot be read.
      ValueError: it is not UTF-8.
    """
    return read_bytes(path).decode()


def exists(path: epath.PathLike) -> bool:
    """Tells whether there is a file.

    Raises:
      OSError: the bucket cannot be read.
    """
    if not bucket.is_remote(path):
        return pathlib.Path(path).is_file()
    try:
        return bucket.exists(path)
    except FileNotFoundError:  # there is no such bucket
        return False


def is_folder(path: epath.PathLike) -> bool:
    """Tells whether there is a folder; in a bucket, one that holds anything.

    Raises:
      OSError: the bucket cannot be read.
    """
    return bucket.is_folder(path) if bucket.is_remote(path) else pathlib.Path(path).is_dir()


def delete(path: epath.PathLike) -> None:
    """Deletes a file, if it is there.

    Raises:
      OSError: it cannot be deleted.
    """
    if bucket.is_remote(path):
        bucket.delete(path)
    else:
        pathlib.Path(path).unlink(missing_ok=True)


def refuse_patterns(path: epath.PathLike, named: str, library: str, signs: str = "[]*?") -> None:
    """Checks that a path has none of the signs that a library takes for a pattern or for a separator.

    Such a library does not find what it has written, or finds the files of other folders.

    Raises:
      UserError: it has one.
    """
    if found := next((sign for sign in str(path) if sign in signs), None):
        raise UserError(
            f"{named}: {library} does not take {found} in the name of a folder as it is; give a folder whose path has "
            f"none of {' '.join(signs)}"
        )
