"""ImageNet-21k from its official archive, which is read once from front to back and never unpacked to disk.

The archives (`winter21_whole.tar.gz` with 19,167 classes, `fall11_whole.tar` with 21,841) are tars with one tar for
each class. A class tar is named by its WordNet id, such as `n01440764.tar`, and may be in a folder. It has files named
`n01440764_123.JPEG`. A list of classes, with one WordNet id on each line, gives the classes and their order. Without a
list, they are those of the archive, in the order of their ids.

The JPEGs are stored byte by byte as they are. TFDS shuffles them through temporary files in `data_dir`. So this folder
needs about twice the size of the archive during the preparation.

Source: https://image-net.org/download-images.php; Deng et al., "ImageNet: A Large-Scale Hierarchical Image Database",
CVPR 2009.
"""

import collections
import contextlib
import posixpath
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mixer.data.datasets import archives, base

_CLASS_LINE = re.compile(r"(n\d{8})(?:\s.*)?")  # names may follow, as in mixer/data/class_lists
_NAMED_BY = re.compile(r"(n\d{8})_")  # how the name of an image begins
_REPORT_SECONDS = 30.0

Example = tuple[str, dict[str, Any]]


class Imagenet21k(base.ImportBuilder):
    """Builds the dataset. When it is built, `tfds.builder("imagenet21k", data_dir=...)` reads it from its files.

    Features: `image` (the bytes of the file), `label` (the line of the class in the list, from 0) and `file_name`.
    Split: `train`. After building, `info.metadata` has `skipped` (number of members left out, by reason),
    `classes_not_listed` (class tars that are not in the list), `classes_without_images`, and `truncated` (what is wrong
    with a damaged archive, else "").

    Args:
      archive: path of the archive, local or `gs://`.
      classes: path of the class list; None takes the classes of the archive, which is read once more for them.
      allow_truncated: True keeps what could be read of a damaged archive; False raises.
      name: name of the dataset. Choose another if a folder is to have several.
      report: is called now and then with a line about the progress.
      kwargs: arguments of TFDS builders: `data_dir`, `file_format`.

    Raises:
      ValueError, FileNotFoundError: the class list or the archive cannot be used. This may be raised while building.
      archives.BrokenArchiveError: while building, the archive is damaged.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "imagenet21k"

    def __init__(
        self,
        *,
        archive: str,
        classes: str | None,
        allow_truncated: bool = False,
        name: str = "imagenet21k",
        report: Callable[[str], None] = base.no_report,
        **kwargs: Any,
    ) -> None:
        self._archive = archive
        if classes is None:
            self._classes = _classes_of(archive, report)
        else:
            self._classes = base.read_class_list(classes, "WordNet id such as n01440764", _CLASS_LINE)
        self._allow_truncated = allow_truncated
        super().__init__(name=name, report=report, **kwargs)

    def prepared_from(self) -> dict[str, str]:
        """Returns the size of the archive, a digest of the class list, and the option."""
        return {
            "bytes of the archive": f"{epath.Path(self._archive).stat().length:,}",
            "digest of the class list": base.digest("\n".join(self._classes)),
            "allow_truncated": str(self._allow_truncated),
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="ImageNet-21k, from the official archive.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=self._classes),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://image-net.org",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[Example]:
        images: collections.Counter[str] = collections.Counter()  # number of images of each class
        unlisted: list[str] = []  # class tars that are not in the class list
        truncated = ""
        with archives.open_stream(self._archive) as stream:
            try:
                yield from self._reported(self._examples(stream, unlisted, images), stream, images)
                stream.drain()
            except archives.BrokenArchiveError as error:
                truncated = f"the archive {self._archive} is damaged: {error}"
            except archives.BrokenTarError as error:  # of the outer tar; `_images` catches those of class tars
                truncated = f"the archive {self._archive} is no tar of class tars, or damaged: {error}"
        self._check(truncated, unlisted, images)
        self.info.metadata.update(
            skipped=dict(self.skipped),
            classes_not_listed=unlisted,
            classes_without_images=[name for name in self._classes if not images[name]],
            truncated=truncated,
        )

    def _examples(
        self, stream: archives.Stream, unlisted: list[str], images: collections.Counter[str]
    ) -> Iterator[Example]:
        for class_tar in self._class_tars(stream, unlisted, images):
            yield from self._images(class_tar, images)

    def _reported(
        self, examples: Iterator[Example], stream: archives.Stream, images: collections.Counter[str]
    ) -> Iterator[Example]:
        """Passes the examples on, and reports the progress every 30 seconds."""
        started = reported = time.monotonic()
        for example in examples:
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                self.report(
                    f"class {len(images):,} of {len(self._classes):,}: {images.total():,} images "
                    f"({images.total() / (reported - started):,.0f}/s), {self.skipped.total():,} members skipped, "
                    f"{stream.position / 2**30:,.1f} GiB read"
                )
            yield example

    def _check(self, truncated: str, unlisted: list[str], images: collections.Counter[str]) -> None:
        """Raises an error if the archive is damaged and that is not allowed, or if no image was found."""
        if truncated and not (self._allow_truncated and images.total()):
            advice = "fetch it again" + ("" if not images else ", or keep what was read with --allow_truncated")
            raise archives.BrokenArchiveError(f"{truncated}; {advice}")
        if not images.total():
            found = f" (class tars there: {', '.join(unlisted[:3])} ...)" if unlisted else ""
            raise ValueError(
                f"{self._archive} has no image of any of the {len(self._classes):,} listed classes{found}: "
                f"check that it is the whole archive and that the class list belongs to it"
            )

    def _class_tars(
        self, stream: archives.Stream, unlisted: list[str], images: collections.Counter[str]
    ) -> Iterator[archives.Member]:
        """Yields the tars of the listed classes, adds each class to `images`, and counts all other members."""
        labels = set(self._classes)
        for member in archives.read_tar(stream):
            if member.kind == "directory":
                continue
            stem, suffix = posixpath.splitext(posixpath.basename(member.name))
            if fault := _fault(member):
                self.leave_out(f"class tar: {fault}", member=member.name)
            elif suffix != ".tar":
                self.leave_out("not a class tar", member=member.name)
            elif stem not in labels:
                self.leave_out("class tar: not in the class list", member=member.name)
                unlisted.append(stem)
            elif stem in images:
                self.leave_out("class tar: repeated", member=member.name)
            else:
                images[stem] = 0
                yield member

    def _images(self, class_tar: archives.Member, images: collections.Counter[str]) -> Iterator[Example]:
        """Yields the images of a class tar. If the tar is damaged, it counts this and ends early."""
        wordnet_id = posixpath.basename(class_tar.name).removesuffix(".tar")
        seen: set[str] = set()
        try:
            for member in archives.read_tar(class_tar.data, class_tar.size):
                if member.kind == "directory":
                    continue
                file_name = posixpath.basename(member.name)
                fault = _image_fault(member, file_name, wordnet_id, seen)
                image = b"" if fault else member.data.read(member.size)
                if not fault and not archives.is_image(image):
                    fault = "not an image"
                if fault:
                    self.leave_out(f"image: {fault}", member=f"{class_tar.name}/{member.name}")
                    continue
                seen.add(file_name)
                images[wordnet_id] += 1
                example = {"image": image, "label": wordnet_id, "file_name": file_name}
                yield f"{wordnet_id}/{file_name}", example
        except archives.BrokenTarError:
            self.leave_out("class tar: damaged", member=class_tar.name)


def _classes_of(archive: str, report: Callable[[str], None]) -> list[str]:
    """Returns the classes of an archive: the WordNet ids by which its class tars are named, ascending.

    What is behind a damaged place is not found; building says so.
    """
    report(f"Reading the classes of {archive}; a compressed archive is decompressed once for this.")
    found = set()
    with (
        archives.open_stream(archive) as stream,
        contextlib.suppress(archives.BrokenArchiveError, archives.BrokenTarError),
    ):
        for member in archives.read_tar(stream):
            stem, suffix = posixpath.splitext(posixpath.basename(member.name))
            if suffix == ".tar" and _CLASS_LINE.fullmatch(stem) and not _fault(member):
                found.add(stem)
    if not found:
        raise ValueError(f"{archive} is no tar of class tars: none is named by a WordNet id, such as n01440764.tar")
    return sorted(found)


def _image_fault(member: archives.Member, file_name: str, wordnet_id: str, seen: set[str]) -> str:
    """Returns why a member of a class tar, not read yet, cannot be one of its images, or "" if it can."""
    if fault := _fault(member):
        return fault
    if member.size > archives.MAX_IMAGE_BYTES:
        return f"larger than {archives.MAX_IMAGE_BYTES >> 20} MiB"
    named_by = _NAMED_BY.match(file_name)
    if named_by and named_by[1] != wordnet_id:
        return "named by another class than its tar"
    # TFDS needs different keys, and checks them after the last image, hours later.
    return "repeated" if file_name in seen else ""


def _fault(member: archives.Member) -> str:
    """Returns why this member cannot be a file of the dataset, or "" if it can."""
    if member.kind != "file":
        return "not a regular file" if member.kind == "special" else member.kind
    if archives.unsafe_name(member.name):
        return "unsafe path"
    return "empty" if member.size == 0 else ""
