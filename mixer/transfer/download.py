"""Files from the web. Each is downloaded once and kept in a cache."""

import atexit
import functools
import os
import pathlib
import shutil
import tempfile
import urllib.request

import tqdm

from mixer.runtime import files

_MOST_BYTES = 8 << 30  # the largest Mixer of the paper, H/14, has 1.7 GB


def cache_folder() -> pathlib.Path:
    """Returns the folder in which this project keeps downloads and other files that it can make again.

    Where there is no such folder, as in a container without HOME or with a read-only one, it is a temporary folder.
    """
    try:
        folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mixer"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows the home folder
        return _temporary()
    return folder if os.access(folder, os.W_OK) else _temporary()


@functools.cache
def _temporary() -> pathlib.Path:
    """Makes a folder that is deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="mixer-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


def downloaded(url: str) -> pathlib.Path:
    """Downloads a file into the cache, unless it is there, and returns its path.

    The file gets its name only when it is complete, so an interrupted download is started again.

    Raises:
      OSError: the file cannot be downloaded, or is too large.
    """
    name = url.partition("://")[2]
    if name.startswith("/") or ".." in name.split("/"):  # the file would be outside the cache
        raise OSError("expected an address with a host, and without ..")
    path = cache_folder() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.written_whole(path) as partial:
            _download(url, pathlib.Path(partial), path.name)
    return path


def _download(url: str, path: pathlib.Path, name: str) -> None:
    """Downloads a file to `path`; the progress bar shows `name`."""
    with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm.tqdm.wrapattr(response, "read", total=size or None, desc=name) as body:
            while max(size, file.tell()) <= _MOST_BYTES and (piece := body.read(2**20)):
                file.write(piece)
        if max(size, file.tell()) > _MOST_BYTES:
            raise OSError(
                f"it is larger than {_MOST_BYTES:,} bytes, the most that is downloaded; download it yourself, and give "
                "the path of the file"
            )
        if size and file.tell() != size:
            raise OSError(f"the connection ended after {file.tell():,} of {size:,} bytes; try again")
