"""Which folder is which split: opens the folders of a root, and refuses what cannot be meant as it is."""

import collections
import os
from collections.abc import Mapping
from typing import NamedTuple

from mixer.data.folders import folder_report
from mixer.data.folders.listing import Contents, Lister, readable
from mixer.runtime.errors import UserError

# How the folder of a split may be called, in small or capital letters.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}


class Folders(NamedTuple):
    """A folder that holds class folders, and what each folder in it holds."""

    path: str
    contents: Contents
    inner: dict[str, Contents]

    @property
    def classes(self) -> dict[str, Contents]:
        """The folders that hold images directly."""
        return {name: found for name, found in self.inner.items() if found.images}


class Opened(NamedTuple):
    """A root and its folders.

    Attributes:
      splits: the folder of each split; or under "" the root itself, if it holds the class folders.
      beside: what the root holds besides the folders of splits: its own files under "", and other folders.
    """

    splits: Mapping[str, Folders]
    beside: Mapping[str, Contents]


def open_root(lister: Lister, root: str) -> Opened:
    """Lists a root and decides which of its folders are splits.

    Raises:
      UserError: a folder is named as a split and cannot be used, or is not named so and looks like one.
      OSError: the bucket cannot be listed.
    """
    top = lister.contents(root)
    named = {name: split for name in top.folders if (split := SPLIT_OF.get(name.casefold()))}
    opened = {name: _open(lister, f"{root}/{name}") for name in named}
    if not any(folders.classes for folders in opened.values()):
        whole = _open(lister, root)
        _check_no_flat_validation(whole, named)
        return Opened({"": whole}, {})
    _check_split_folders(root, named, opened)
    order = list(SPLIT_FOLDERS)
    splits = {named[name]: opened[name] for name in sorted(named, key=lambda name: order.index(named[name]))}
    others = {name: _open(lister, f"{root}/{name}") for name in top.folders if name not in named}
    _check_others(root, others, splits)
    return Opened(splits, {"": top} | {name: folders.contents for name, folders in others.items()})


def _open(lister: Lister, path: str) -> Folders:
    contents = lister.contents(path)
    inner = lister.contents_of(f"{path}/{name}" for name in contents.folders)
    return Folders(path, contents, dict(zip(contents.folders, inner, strict=True)))


def _check_no_flat_validation(top: Folders, named: Mapping[str, str]) -> None:
    """Refuses a folder for validation, without class folders in it, among class folders."""
    flat = [name for name, split in named.items() if split == "validation" and name in top.classes]
    if flat or (named and named.keys() >= top.classes.keys() and top.classes):
        name = (flat or list(top.classes))[0]
        raise UserError(f"{_flat(top.path, name, top.inner[name])}, as in train/CLASS/IMAGE, or rename it")


def _check_split_folders(root: str, named: Mapping[str, str], opened: Mapping[str, Folders]) -> None:
    """Checks that each folder that is named as a split can be used, and that there is one for a split."""
    by_split = collections.defaultdict(list)
    for name, split in named.items():
        by_split[split].append(name)
    for split, names in by_split.items():
        if len(names) > 1:
            both = " and ".join(f"{readable(name)}/" for name in names)
            raise UserError(f"{readable(root)}: {both} are both for {split}; keep one, or rename the other")
    train = next((opened[name] for name, split in named.items() if split == "train"), None)
    for name, split in named.items():
        folders = opened[name]
        if folders.contents.images and not folders.classes:
            raise UserError(f"{_flat(root, name, folders.contents)} of the names that training has, or move it away")
        if not folders.classes:
            raise UserError(
                f"{readable(root)}: {readable(name)}/ stands for the {split} split, and no folder in it holds images; "
                "add class folders, or move it away"
            )
        if train and not folders.classes.keys() & train.classes.keys():
            raise UserError(
                f"{readable(root)}: no folder in {readable(name)}/ ({folder_report.named(folders.classes)}) is a class "
                f"of training ({folder_report.named(train.classes)}); sort its images into folders named as the "
                "classes, or move it away"
            )


def _check_others(root: str, others: Mapping[str, Folders], splits: Mapping[str, Folders]) -> None:
    """Refuses folders beside those of the splits that look like one more split, or like classes outside of them."""
    classes = {name for folders in splits.values() for name in folders.classes}
    for name, folders in others.items():
        if classes & folders.classes.keys():
            raise UserError(
                f"{readable(root)}: {readable(name)}/ holds class folders and is not used; name it as a split "
                f"({', '.join(SPLIT_FOLDERS)}), or move it away"
            )
    if "train" not in splits and (outside := [name for name, folders in others.items() if folders.contents.images]):
        used = " and ".join(f"{readable(os.path.basename(folders.path))}/" for folders in splits.values())
        raise UserError(
            f"{readable(root)}: {used} and the class folders {folder_report.named(outside)} stand side by side; move "
            "the class folders into train/"
        )


def _flat(root: str, name: str, found: Contents) -> str:
    return (
        f"{readable(root)}: {readable(name)}/ holds {found.num_images:,} images and no class folders, so their classes "
        "are not known; sort them into class folders"
    )
