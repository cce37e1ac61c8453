"""Where a run has its folder: on a disk, or in a bucket, where it looks as on a disk."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from tests.bucket.fake_bucket import FakeBucket

MARK = "commit_success.txt"  # the last file of a checkpoint that is written
LIST = "files.json"

_RUN, _DATA = "run", "data"


class InBucket:
    """A run's folder in a fake bucket, with its data beside it."""

    def __init__(self, bucket: FakeBucket):
        self.bucket, self.data_dir = bucket, bucket.path(_DATA)

    def __str__(self) -> str:
        return self.bucket.path(_RUN)

    def bring_data(self, data_dir: pathlib.Path) -> None:
        """Copies the data of a bench into the bucket."""
        self.bucket.upload(data_dir, _DATA)

    def names(self) -> list[str]:
        """Returns all files of the run, relative to its folder. (TensorFlow makes empty objects as folders.)"""
        found = (name.removeprefix(f"{_RUN}/") for name in self.bucket.objects(f"{_RUN}/"))
        return [name for name in found if name and not name.endswith("/")]

    def checkpoint_files(self) -> dict[str, set[str]]:
        """Does what `checkpoint_files` below says, for a bucket: there, an unfinished checkpoint has its last name."""
        folders: dict[str, set[str]] = {}
        for name in self.names():
            top, _, rest = name.partition("/")
            if top == "checkpoints" and "/" in rest:
                step, _, file = rest.partition("/")
                folders.setdefault(step, set()).add(file)
        newest = max((int(step) for step, files in folders.items() if step.isdigit() and MARK in files), default=-1)
        unfinished = {step for step in folders if step.isdigit() and int(step) > newest}
        return {f"{step}.tmp" if step in unfinished else step: files for step, files in folders.items()}

    def download(self, folder: pathlib.Path) -> dict[str, bytes]:
        """Copies the run's files into a folder, instead of those that are there. Returns their bytes by name."""
        shutil.rmtree(folder, ignore_errors=True)
        files = {name: self.bucket.content(f"{_RUN}/{name}") for name in self.names()}
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return files

    @contextlib.contextmanager
    def as_folder(self, folder: pathlib.Path) -> Iterator[pathlib.Path]:
        """Yields a copy of the run. At the end, what was changed or deleted in the copy is so in the bucket."""
        before = self.download(folder)
        yield folder
        for name, data in before.items():
            if not (folder / name).exists():
                self.bucket.delete(f"{_RUN}/{name}")
            elif (now := (folder / name).read_bytes()) != data:
                self.bucket.put(f"{_RUN}/{name}", now)


Place = pathlib.Path | InBucket


def checkpoint_files(place: Place) -> dict[str, set[str]]:
    """Returns the files of each folder below checkpoints. A folder's name has "tmp" in it as long as it is saved."""
    if isinstance(place, InBucket):
        return place.checkpoint_files()
    folder = place / "checkpoints"
    return {entry.name: _files(entry.path) for entry in os.scandir(folder)} if folder.is_dir() else {}


def _files(folder: str) -> set[str]:
    walked = os.walk(folder)  # it ignores folders that vanish meanwhile
    return {os.path.relpath(os.path.join(parent, name), folder) for parent, _, names in walked for name in names}
