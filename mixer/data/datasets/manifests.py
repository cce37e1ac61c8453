"""The lines of a manifest of images with any number of labels each.

Each line is one image: `{"image": "folder/picture.jpg", "labels": ["cat", "dog"]}`. The path is relative to the root
folder. A label is a name from the class list, or its number (its line, from 0). A line may have `"split": "train"` or
`"split": "validation"`.
"""

import hashlib
import json
import posixpath
from typing import Any, NamedTuple

from mixer.data.datasets import archives

SPLITS = ("train", "validation")


class Line(NamedTuple):
    """One line of the manifest that can be used.

    Attributes:
      image: path below the root folder.
      labels: class numbers, ascending, without duplicates.
      split: "train" or "validation".
    """

    image: str
    labels: list[int]
    split: str


class BadLineError(ValueError):
    """A line of the manifest that cannot be used.

    Attributes:
      kind: a few words, the same for all lines with this fault.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def parse_line(text: str, classes: dict[str, int], validation_share: float) -> Line:
    """Parses one line of a manifest.

    Args:
      text: the line.
      classes: the number of each class name.
      validation_share: probability, 0 to 1, that a line without a split goes to validation. A hash of the image's path
        decides. So an image stays in its split when other lines are added or moved.

    Raises:
      BadLineError: the line cannot be used. The message says why.
    """
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: a line of very many brackets
        raise BadLineError("malformed JSON", str(error)) from None
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise BadLineError("no image", f'{text.strip()[:80]!r} is not an object with "image": "a/path.jpg"')
    if archives.unsafe_name(entry["image"]):
        raise BadLineError("image outside the root", f"{entry['image']!r}; give a path below the root, without ..")
    if not isinstance(entry.get("labels"), list):
        raise BadLineError("no labels", f'the line of {entry["image"]!r} has no "labels": [...]')
    labels = sorted({_class_number(label, classes) for label in entry["labels"]})
    image = posixpath.normpath(entry["image"])  # so that ./a.jpg is the image a.jpg
    default = "validation" if hash_of(image) / 2**64 < validation_share else "train"
    split = entry.get("split", default)
    if split not in SPLITS:
        raise BadLineError("unknown split", f"{split!r}; use one of {', '.join(SPLITS)}")
    return Line(image, labels, split)


def _class_number(label: Any, classes: dict[str, int]) -> int:
    if isinstance(label, str) and label in classes:
        return classes[label]
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(classes):
        if classes.get(str(label), label) != label:
            detail = f"{label} is the number of a class and the name of another: write the name, in quotes"
            raise BadLineError("number that is a name", detail)
        return label
    raise BadLineError("unknown label", f"{label!r} is not among the {len(classes):,} classes of the list")


def hash_of(text: str) -> int:
    """Returns an integer of 64 bits that depends only on the text."""
    digest = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
