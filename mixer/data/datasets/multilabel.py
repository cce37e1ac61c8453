"""Images with any number of labels each, like JFT's, from a manifest (`manifests.py`) and a folder of images.

Lines without a split are divided by `validation_share`; None is a tenth, or nothing if the manifest itself names lines
for validation. No image may be in two lines.
"""

import array
import collections
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mixer.data.datasets import archives, base, manifests
from mixer.data.datasets.manifests import BadLineError, Line
from mixer.runtime import bucket

_DEFAULT_SHARE = 0.1  # of validation, if neither the manifest nor the user says
_GROUP = 64  # images that are read from a bucket at a time

Example = tuple[int, dict[str, Any]]


class Multilabel(base.ImportBuilder):
    """Builds the dataset. When it is built, `tfds.builder(name, data_dir=...)` reads it without this class.

    Features: `image` (the bytes of the file) and `labels` (class numbers). Splits: `train`, and `validation` if any
    line belongs to it. After building, `info.metadata` has `max_labels` (the largest number of labels of an image) and
    `skipped` (number of lines left out, by reason).

    Args:
      manifest: path of the manifest, local or `gs://`.
      classes: path of the class list.
      images: the root folder.
      validation_share: see `manifests.parse_line`, or None.
      skip_bad: True counts and skips lines that cannot be used; False raises at the first.
      name: name of the dataset.
      report: is called now and then with a line about the progress.
      kwargs: arguments of TFDS builders: `data_dir`, `file_format`.

    Raises:
      ValueError, FileNotFoundError: a file or a line cannot be used; the message names it. This may be raised while
        building.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "multilabel"

    def __init__(
        self,
        *,
        manifest: str,
        classes: str,
        images: str,
        validation_share: float | None = 0.0,
        skip_bad: bool = False,
        name: str = "multilabel",
        report: Callable[[str], None] = base.no_report,
        **kwargs: Any,
    ) -> None:
        if not 0 <= (validation_share or 0.0) < 1:
            raise ValueError(f"validation_share is {validation_share}: it must be at least 0 and below 1")
        if not epath.Path(manifest).exists():
            raise FileNotFoundError(f"there is no manifest at {manifest}")
        if not epath.Path(images).is_dir():
            raise FileNotFoundError(f"there is no folder of images at {images}")
        self._manifest = manifest
        self._names = base.read_class_list(classes, "class name", re.compile(".+"))
        self._classes = {name: number for number, name in enumerate(self._names)}
        self._root = images.rstrip("/") if bucket.is_remote(images) else images
        self._asked_share = validation_share
        self._validation_share = validation_share or 0.0
        # Hashes of paths, ascending: of validation, and in each split of those that several lines name.
        self._validated = np.zeros(0, np.uint64)
        self._repeated = {split: np.zeros(0, np.uint64) for split in manifests.SPLITS}
        self._skip_bad = skip_bad
        super().__init__(name=name, report=report, **kwargs)

    def prepared_from(self) -> dict[str, str]:
        """Returns digests of the manifest and of the class list, the options, and where the images are."""
        return {
            "digest of the manifest": base.digest_of_file(self._manifest),
            "digest of the class list": base.digest("\n".join(self._names)),
            "validation_share": "not given" if self._asked_share is None else str(self._asked_share),
            "skip_bad": str(self._skip_bad),
            "images": self._root if bucket.is_remote(self._root) else os.path.abspath(self._root),
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images with any number of labels each.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=self._names)),
                }
            ),
            metadata=tfds.core.MetadataDict(max_labels=0, skipped={}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        # These passes read only the manifest. They find bad lines, and whether there is a validation split, before the
        # images are read for hours. They keep eight bytes of each line.
        hashes = self._hashes()
        if self._asked_share is None and not len(hashes["validation"]):
            self._validation_share = _DEFAULT_SHARE
            hashes = self._hashes()
        self._validated = np.unique(hashes["validation"])
        self._repeated = {split: np.unique(found[1:][found[1:] == found[:-1]]) for split, found in hashes.items()}
        sizes: collections.Counter[str] = collections.Counter()
        for _, line in self._lines(count_bad=True):
            sizes[line.split] += 1
        if not sizes["train"]:
            raise ValueError(f"{self._manifest} has no usable line for the split train")
        return {split: self._generate_examples(split, sizes[split]) for split in manifests.SPLITS if sizes[split]}

    def _hashes(self) -> dict[str, np.ndarray]:
        """Returns the hashes of the paths of each split, ascending."""
        found = {split: array.array("Q") for split in manifests.SPLITS}
        for _, line in self._lines(count_bad=False):
            found[line.split].append(manifests.hash_of(line.image))
        hashes = {split: np.frombuffer(of_split, np.uint64) for split, of_split in found.items()}
        for of_split in hashes.values():
            of_split.sort()
        return hashes

    def _generate_examples(self, split: str, size: int) -> Iterator[Example]:
        used = 0
        lines = ((number, line) for number, line in self._lines(count_bad=False) if line.split == split)
        while group := list(itertools.islice(lines, _GROUP)):
            images = self._read_images([line.image for _, line in group])
            for (number, line), image in zip(group, images, strict=True):
                if isinstance(image, BadLineError):
                    self._reject(number, image, count=True)
                    continue
                used += 1
                if used % 100_000 == 0:
                    self.report(f"{split}: {used:,} of {size:,} images, {self.skipped.total():,} lines skipped")
                metadata = self.info.metadata
                metadata["max_labels"] = max(metadata["max_labels"], len(line.labels))
                yield number, {"image": image, "labels": line.labels}
        if not used:
            raise ValueError(f"none of the {size:,} images for {split} could be read below {self._root}")
        self.info.metadata["skipped"] = dict(self.skipped)

    def _lines(self, count_bad: bool) -> Iterator[tuple[int, Line]]:
        """Yields (number, line) for the lines that can be used. `count_bad`: whether to count the others."""
        with epath.Path(self._manifest).open("rb") as file:
            for number, raw in enumerate(file, start=1):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8", "backslashreplace")
                if not text.strip():
                    continue
                try:
                    line = manifests.parse_line(text, self._classes, self._validation_share)
                    self._check_only_once(line)
                except BadLineError as error:
                    self._reject(number, error, count=count_bad)
                else:
                    yield number, line

    def _check_only_once(self, line: Line) -> None:
        """Refuses a line whose image is in another line, too. Of one for validation, those for training are refused."""
        number = np.uint64(manifests.hash_of(line.image))  # for a Python int, NumPy would compare as float64
        if line.split == "train" and _holds(self._validated, number):
            raise BadLineError("in both splits", f"{line.image!r} is for train here and for validation in another line")
        if _holds(self._repeated[line.split], number):
            raise BadLineError("image in several lines", f"{line.image!r}: give all of its labels in one line")

    def _read_images(self, names: list[str]) -> list[bytes | BadLineError]:
        """Reads images, those in a bucket all at a time. Returns the bytes of each, or why it cannot be used."""
        if not bucket.is_remote(self._root):
            return [self._usable(name, functools.partial(self._read_local, name)) for name in names]
        readable = [name for name in dict.fromkeys(names) if 0 < self._sizes.get(name, 0) <= archives.MAX_IMAGE_BYTES]
        # In a bucket there are no links, which could lead out of the root.
        contents = bucket.read([bucket.Range(f"{self._root}/{name}", 0, self._sizes[name]) for name in readable])
        found = dict(zip(readable, contents, strict=True))
        return [self._usable(name, functools.partial(self._from_bucket, name, found)) for name in names]

    def _usable(self, name: str, read: Callable[[], bytes]) -> bytes | BadLineError:
        """Returns an image that begins like one, or the reason why it cannot be used."""
        try:
            image = read()
        except BadLineError as error:
            return error
        if not archives.is_image(image):
            return BadLineError("not an image", f"{self._root}/{name} ({len(image):,} bytes)")
        return image

    def _from_bucket(self, name: str, found: dict[str, bytes]) -> bytes:
        size = self._sizes.get(name)
        if size is None:
            raise BadLineError("image cannot be read", f"there is no {self._root}/{name}")
        if size > archives.MAX_IMAGE_BYTES:
            raise _too_large(f"{self._root}/{name}")
        return found.get(name, b"")

    def _read_local(self, name: str) -> bytes:
        path = os.path.join(self._root, name)
        try:
            # A link below the root may point outside it.
            if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(self._root), "")):
                raise BadLineError("image outside the root", f"{name!r} is a link to a place outside {self._root}")
            if not os.path.isfile(path):  # reading a pipe would wait forever
                raise BadLineError("image cannot be read", f"{path!r} is not a file")
            with open(path, "rb") as file:
                image = file.read(archives.MAX_IMAGE_BYTES + 1)
        except BadLineError:
            raise
        except (OSError, ValueError) as error:  # ValueError: no file can have this name
            raise BadLineError("image cannot be read", f"{path!r} ({type(error).__name__})") from None
        if len(image) > archives.MAX_IMAGE_BYTES:
            raise _too_large(path)
        return image

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        """The size of each object below the root, from one listing. So no read is larger than it may be."""
        return {name: found.size for name, found in bucket.listing(self._root).items()}

    def _reject(self, number: int, error: BadLineError, count: bool) -> None:
        """Raises an error for a bad line, or counts it if bad lines are skipped and `count` is set."""
        if not self._skip_bad:
            raise ValueError(f"{self._manifest}, line {number}: {error} (--skip_bad leaves such lines out)")
        if count:
            self.leave_out(error.kind, line=number, detail=str(error))


def _too_large(path: str) -> BadLineError:
    return BadLineError(f"larger than {archives.MAX_IMAGE_BYTES >> 20} MiB", f"{path}; make it smaller")


def _holds(ascending: np.ndarray, number: np.uint64) -> bool:
    place = np.searchsorted(ascending, number)
    return bool(place < len(ascending) and ascending[place] == number)
