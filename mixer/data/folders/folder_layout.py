"""What a folder of class folders holds: which folder is which split, the classes, and what is left out.

docs/data.md shows the layouts. `folder.py` reads images by this, and `datasets/class_folders.py` makes records.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from mixer.data.folders import folder_report, in_both_splits, split_folders
from mixer.data.folders.folder_report import Findings, SplitFound
from mixer.data.folders.listing import Lister, decoded, readable
from mixer.data.folders.split_folders import SPLIT_FOLDERS, SPLIT_OF, Folders, Opened
from mixer.runtime import bucket
from mixer.runtime.errors import UserError

SPLITS = ("all", *SPLIT_FOLDERS)
DEFAULT_SHARE = 0.1  # of each class, for validation


class Part(NamedTuple):
    """Images of one class in one folder.

    Attributes:
      folder: path of the folder.
      label: number of the class.
      names: of the files, as in `listing.Contents.images`.
    """

    folder: str
    label: int
    names: bytes

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return self.names.count(b"\0")

    def paths(self) -> list[str]:
        """Returns the paths of the images."""
        return [f"{self.folder}/{decoded(name)}" for name in self.names.split(b"\0")[:-1]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a folder holds.

    Attributes:
      parts: the images of each split, in the order of the classes. A split without images is not there.
      found: the classes and all else that the report says.
      validation_share: what was asked for, if no folder is the validation split; else None.
      undivided: whether there are no folders for splits.
    """

    parts: Mapping[str, Sequence[Part]]
    found: Findings
    validation_share: float | None
    undivided: bool

    def of_split(self, split: str) -> Sequence[Part]:
        """Returns the images of a split; "all" are those of all splits.

        Raises:
          UserError: the folder has no such split, or too few classes to be trained on.
        """
        number, root = len(self.found.class_names), readable(self.found.root)
        reasons = folder_report.left_out(self.found)
        why = f" (left out: {'; '.join(reasons)})" if reasons else ""
        if split not in SPLITS:
            raise UserError(f"split {split!r} of a folder: expected {' or '.join(SPLITS)}, as in configs/folder.py")
        if not number or (split == "train" and number < 2 and split in self.parts):
            raise UserError(f"{root} holds {number} class folders with images; at least two are needed{why}")
        if split == "all":
            return [part for parts in self.parts.values() for part in parts]
        if split in self.parts:
            return self.parts[split]
        advice = f"; it has {' and '.join(self.parts)}{why}"
        if split == "validation" and self.validation_share == 0:
            advice = f": set config.input.validation_share above zero, or add a folder validation/{why}"
        elif split == "validation" and self.validation_share:
            advice = f": each class has one image, which training keeps; add images or a folder validation/{why}"
        raise UserError(f"{root} has no images for split {split!r}{advice}")


def find(root: epath.PathLike, validation_share: float, cache_dir: epath.PathLike | None = None) -> Layout:
    """Lists a folder and decides what is what.

    Args:
      root: local or gs://.
      validation_share: share of each class that is kept for validation, if there is no folder for it.
      cache_dir: see `Lister`.

    Raises:
      UserError: a folder for a split cannot be used.
      OSError: the bucket cannot be listed.
    """
    root = os.fspath(root).rstrip("/")
    with Lister(root, cache_dir) as lister:
        return _layout(lister, root, split_folders.open_root(lister, root), validation_share)


def _layout(lister: Lister, root: str, opened: Opened, validation_share: float) -> Layout:
    splits = opened.splits
    train = splits.get("train") or splits.get("")
    classes = sorted(train.classes if train else {name for folders in splits.values() for name in folders.classes})
    label_of = {name: label for label, name in enumerate(classes)}
    divided = train if "validation" not in splits else None
    parts: dict[str, list[Part]] = {}
    for split, folders in splits.items():
        of_split = [
            Part(f"{folders.path}/{name}", label_of[name], found.images)
            for name, found in sorted(folders.classes.items())
            if name in label_of
        ]
        if folders is divided:
            shares = [_divided(part, lister.hashes(part.folder), validation_share) for part in of_split]
            for number, share in enumerate(("train", "validation")):
                parts[share] = [both[number] for both in shares if both[number].names]
        else:
            parts[split] = of_split
    parts = {split: parts[split] for split in SPLIT_FOLDERS if parts.get(split)}
    where = _where(splits, divided, root, validation_share)
    unused = validation_share if "validation" in splits and validation_share not in (0, DEFAULT_SHARE) else None
    found = _findings(lister, root, opened, classes, parts, where, unused)
    return Layout(parts, found, validation_share if divided else None, undivided="" in splits)


def _divided(part: Part, hashes: np.ndarray, share: float) -> tuple[Part, Part]:
    """Divides a class into training and validation, which gets a share: at least one image unless the share is 0.

    The hash of a file's name decides. So a file that is added later moves few others to the other split.
    """
    names = part.names.split(b"\0")[:-1]
    kept = max(round(len(names) * share), 1) if share else 0
    kept = min(kept, len(names) - 1)  # training keeps at least one file
    order = np.argsort(hashes, kind="stable")
    train, validation = (
        part._replace(names=b"".join(names[number] + b"\0" for number in np.sort(numbers).tolist()))
        for numbers in (order[kept:], order[:kept])
    )
    return train, validation


def _findings(
    lister: Lister, root: str, opened: Opened, classes: Sequence[str], parts: Mapping[str, Sequence[Part]],
    where: Mapping[str, str], unused_share: float | None,
) -> Findings:  # fmt: skip
    splits = opened.splits
    names = list(map(readable, classes))
    _check_written_apart(root, names)
    used = [found for folders in splits.values() for found in (folders.contents, *folders.inner.values())]
    used += opened.beside.values()
    others: collections.Counter[str] = collections.Counter()
    for contents in used:
        others.update(contents.others)
    inner = {f"{folders.path}/{name}": found for folders in splits.values() for name, found in folders.inner.items()}
    deeper = {path: list(lister.images_below(path)) if found.folders else [] for path, found in inner.items()}
    validated = {part.label for part in parts.get("validation", ())}
    return Findings(
        root=root,
        class_names=names,
        splits=[
            SplitFound(split, where[split], sum(part.num_images for part in of_split), len(of_split))
            for split, of_split in parts.items()
        ],
        deeper=dict(itertools.chain.from_iterable(deeper.values())),
        others=others,
        hidden=sum(contents.hidden for contents in used),
        outside=_outside(opened, root),
        empty=[path for path, found in inner.items() if not found.images and not deeper[path]],
        lacking=_lacking(splits, classes),
        without_validation=[name for label, name in enumerate(names) if validated and label not in validated],
        split_names=[name for name in names if "" in splits and name.casefold() in SPLIT_OF],
        everywhere=f"in {' and '.join(_name(folders, root) for folders in splits.values())}",
        in_both=[]
        if bucket.is_remote(root)
        else [in_both_splits.find(pair, parts[pair[0]], parts[pair[1]]) for pair in itertools.combinations(parts, 2)],
        unused_share=unused_share,
        kept=lister.reused,
    )


def _outside(opened: Opened, root: str) -> dict[str, int]:
    """Returns how many images lie beside the class folders or beside the folders of splits, by folder."""
    found = {folders.path: folders.contents.num_images for folders in opened.splits.values()}
    found |= {f"{root}/{name}".rstrip("/"): beside.num_images for name, beside in opened.beside.items()}
    return {path: number for path, number in found.items() if number}


def _lacking(splits: Mapping[str, Folders], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Returns how many images each split has of folders that are no class, by folder."""
    known = set(classes)
    found = {
        split: {readable(name): one.num_images for name, one in folders.classes.items() if name not in known}
        for split, folders in splits.items()
    }
    return {split: of_split for split, of_split in found.items() if of_split}


def _check_written_apart(root: str, names: Sequence[str]) -> None:
    """Raises UserError if two class folders, whose bytes differ, are shown by the same name."""
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{readable(root)}: two class folders are written {twice[0]!r}; rename one")


def _where(splits: Mapping[str, Folders], divided: Folders | None, root: str, share: float) -> dict[str, str]:
    """Returns for each split where its images lie, in words."""
    where = {split: f"in {_name(folders, root)}" for split, folders in splits.items()}
    if "test" in where:
        where["test"] += ", not used in training"
    if divided:
        where["train"] = f"in {_name(divided, root)}" + (", without those kept for validation" if share else "")
        where["validation"] = f"the share {share:g} of each class in {_name(divided, root)}"
    return where


def _name(folders: Folders, root: str) -> str:
    return f"{readable(os.path.basename(folders.path))}/" if folders.path != root else "its class folders"
