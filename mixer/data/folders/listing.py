"""Lists folders of image files, local or in a bucket, and keeps a long listing for the next start.

A listing of ten million local files takes minutes, and comparing the times of twenty thousand folders takes a second:
a folder's time changes when a file is added, deleted or renamed in it. A bucket's folders have no times, so their
listing is made anew at each start.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mixer.data.folders.image_files import IMAGE_SUFFIXES
from mixer.runtime import bucket, files
from mixer.runtime.errors import UserError

_LISTED = 32  # folders that are listed at a time; those in a bucket with a request for a thousand files each
_KEPT_FROM = 10_000  # images; listing fewer takes no time
_SETTLED = 2 * 10**9  # nanoseconds; a folder that changed so shortly before it was listed may have changed after it too
_HASH_BYTES = 8
_FORMAT = 1
_LINE_ENDS_AND_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories; Cs: bytes that are not UTF-8


class Contents(NamedTuple):
    """What a folder holds.

    Attributes:
      folders: names of its folders, sorted, without hidden ones.
      images: names of its image files, sorted; encoded, and each ended by a zero byte. Ten million of them take a
        quarter of a gigabyte, as objects they would take several.
      others: how many other files there are with each ending, which is in small letters and "" for none.
      hidden: how many files and folders begin with a dot.
    """

    folders: tuple[str, ...]
    images: bytes
    others: dict[str, int]
    hidden: int

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return self.images.count(b"\0")


def encoded(name: str) -> bytes:
    """Returns the bytes of a file's name, which need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def decoded(name: bytes) -> str:
    """Returns the name with these bytes, as Python's functions of files take it."""
    return name.decode("utf-8", "surrogateescape")


def readable(name: str) -> str:
    r"""Returns a name that can be printed and kept in a line of a text file.

    Bytes that are not UTF-8, control characters and ends of lines become \xNN. Names are compared in this form.
    """
    if name.isprintable():
        return name
    return "".join(
        _escaped(letter) if unicodedata.category(letter) in _LINE_ENDS_AND_CONTROLS else letter for letter in name
    )


def _escaped(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in encoded(letter))


class _Known(NamedTuple):
    """What is known of a folder: what changes when it does (empty if that is not known), its contents, and hashes."""

    version: list[int]
    contents: Contents
    hashes: bytes = b""


class Lister:
    """Lists folders. What it has listed once it knows.

    Args:
      root: all folders are below this one.
      cache_dir: where the listing of a large local folder is kept; None keeps nothing. After an error while it is
        written or read, the listing is made anew.
    """

    def __init__(self, root: str, cache_dir: epath.PathLike | None = None):
        self._root = root
        self._file = None
        if cache_dir is not None and not bucket.is_remote(root):
            digest = hashlib.sha256(encoded(os.path.abspath(root))).hexdigest()[:16]
            self._file = epath.Path(cache_dir) / f"folder-{digest}.listing"
        self._kept = _load(self._file) if self._file else {}
        self._known: dict[str, _Known] = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(_LISTED, "lister")

    def __enter__(self) -> "Lister":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        if error[0] is None:
            self._keep()

    @property
    def reused(self) -> int:
        """How many images are known from a kept listing alone."""
        kept = {folder: known.contents for folder, known in self._kept.items()}
        return sum(
            known.contents.num_images for folder, known in self._known.items() if known.contents is kept.get(folder)
        )

    def contents(self, folder: str) -> Contents:
        """Returns what a folder holds; nothing if it is no folder, or a file system's own lost+found.

        Raises:
          UserError: a local folder cannot be listed, so that a class might be missing.
          OSError: the bucket cannot be listed.
        """
        if folder not in self._known:
            self._known[folder] = self._list(folder)
        return self._known[folder].contents

    def hashes(self, folder: str) -> np.ndarray:
        """Returns a hash of the name of each image in a folder, uint64, in their order."""
        contents = self.contents(folder)
        known = self._known[folder]
        if len(known.hashes) != _HASH_BYTES * contents.num_images:
            names = contents.images.split(b"\0")[:-1]
            known = known._replace(hashes=b"".join(hashlib.sha256(name).digest()[:_HASH_BYTES] for name in names))
            self._known[folder] = known
        return np.frombuffer(known.hashes, ">u8")

    def contents_of(self, folders: Iterable[str]) -> list[Contents]:
        """Returns what folders hold. They are listed concurrently."""
        return list(self._pool.map(self.contents, folders))

    def images_below(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yields each folder below a folder that holds images, and how many. Does not follow links to folders."""
        within = [f"{folder}/{name}" for name in self.contents(folder).folders]
        within = [path for path in within if bucket.is_remote(path) or not os.path.islink(path)]
        for path, found in zip(within, self.contents_of(within), strict=True):
            if found.images:
                yield path, found.num_images
            yield from self.images_below(path)

    def _keep(self) -> None:
        """Writes the listing, if it is long and another than the kept one."""
        changed = any(self._kept.get(folder) is not known for folder, known in self._known.items())
        if self._file and changed and sum(known.contents.num_images for known in self._known.values()) >= _KEPT_FROM:
            with contextlib.suppress(OSError):  # without it, the next start lists again
                if not bucket.is_remote(self._file):
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(self._file, _dump(self._known))

    def _list(self, folder: str) -> _Known:
        if bucket.is_remote(folder):
            folders, found = bucket.children(folder)
            return _Known([], _contents(folders, found))
        try:
            # Not the time that a user can set (mtime), which tar and rsync do set.
            status, now = os.stat(folder), time.time_ns()
            version = [status.st_ctime_ns, status.st_ino, status.st_dev]
            kept = self._kept.get(folder)
            if kept and kept.version == version:
                return kept
            with os.scandir(folder) as entries:
                found_folders: list[str] = []
                found_files: list[str] = []
                for entry in entries:
                    (found_folders if _is_folder(entry) else found_files).append(entry.name)
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or os.path.basename(folder) == "lost+found":
                return _Known([], Contents((), b"", {}, 0))
            raise UserError(
                f"{readable(folder)} cannot be listed ({error.strerror}): see to its permissions or its disk, or move "
                "it away"
            ) from None
        settled = now - status.st_ctime_ns > _SETTLED
        return _Known(version if settled else [], _contents(found_folders, found_files))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _contents(folders: Sequence[str], found: Iterable[str]) -> Contents:
    images: list[bytes] = []
    others: collections.Counter[str] = collections.Counter()
    hidden = 0
    for name in found:
        if name.startswith("."):
            hidden += 1
        elif name.lower().endswith(IMAGE_SUFFIXES):
            images.append(encoded(name))
        else:
            others[os.path.splitext(name)[1].lower()] += 1
    shown = [name for name in folders if name and not name.startswith(".")]  # "" lies behind // in a bucket
    hidden += len(folders) - len(shown)
    images.sort()
    return Contents(tuple(sorted(shown)), b"".join(name + b"\0" for name in images), dict(others), hidden)


# ----------------------------------------------------------------------------------------------------- the kept listing


def _dump(known: Mapping[str, _Known]) -> bytes:
    """Returns a listing as bytes: the length of its table, the table as JSON, then the names and hashes of images."""
    kept = {folder: found for folder, found in sorted(known.items()) if found.version}
    rows = [
        [folder, found.version, found.contents.folders, found.contents.others, found.contents.hidden,
         len(found.contents.images), len(found.hashes)]
        for folder, found in kept.items()
    ]  # fmt: skip
    table = json.dumps([_FORMAT, rows]).encode()
    parts = itertools.chain.from_iterable((found.contents.images, found.hashes) for found in kept.values())
    return len(table).to_bytes(8, "little") + table + b"".join(parts)


def _load(file: epath.Path) -> dict[str, _Known]:
    """Reads a listing; an empty one if there is none or it is damaged."""
    try:
        data = files.read_bytes(file)
        start = 8 + int.from_bytes(data[:8], "little")
        version_of_format, rows = json.loads(data[8:start])
        if version_of_format != _FORMAT or start + sum(row[-2] + row[-1] for row in rows) != len(data):
            return {}
        return dict(_rows(rows, data, start))
    except (OSError, ValueError, TypeError, IndexError):
        return {}


def _rows(rows: list[Any], data: bytes, start: int) -> Iterator[tuple[str, _Known]]:
    for folder, version, folders, others, hidden, names, hashes in rows:
        middle, stop = start + names, start + names + hashes
        contents = Contents(tuple(folders), data[start:middle], others, hidden)
        yield folder, _Known(version, contents, data[middle:stop])
        start = stop
