"""Says in a few lines what was found in a folder of class folders, and what was left out: by reason and number."""

import collections
import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from mixer.data.folders.in_both_splits import InBoth
from mixer.data.folders.listing import readable

_NAMED = 5  # classes, folders or endings that a line names
_REMEDIES = {
    ".heic": "HEIC cannot be read: convert to JPEG",
    ".heif": "HEIF cannot be read: convert to JPEG",
    "": "give it its ending, such as .jpg",
}


@dataclasses.dataclass(frozen=True)
class SplitFound:
    """A split: its name, the folder or share that it is, and how many images and classes it has."""

    name: str
    where: str
    images: int
    classes: int


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was found in a folder.

    Attributes:
      root: the folder.
      class_names: the classes.
      splits: the splits.
      deeper: folders within class folders that hold images, and how many.
      others: how many files there are with each ending that is not an image's.
      hidden: how many files and folders begin with a dot.
      outside: folders that hold images beside the class folders or beside the folders of splits, and how many.
      empty: folders in the place of a class folder that hold no images.
      lacking: for each split, how many images it has of classes that are none.
      without_validation: classes that have images, but none for validation; empty if there is no validation at all.
      split_names: classes whose names are usually those of splits.
      everywhere: where the images of all splits lie, in words.
      in_both: what any two splits have in common.
      unused_share: the share for validation that was asked for though a folder is for it; else None.
      kept: how many images were not listed, but are in the listing of an earlier start.
    """

    root: str
    class_names: Sequence[str]
    splits: Sequence[SplitFound]
    deeper: Mapping[str, int]
    others: Mapping[str, int]
    hidden: int
    outside: Mapping[str, int]
    empty: Sequence[str]
    lacking: Mapping[str, Mapping[str, int]]
    without_validation: Sequence[str]
    split_names: Sequence[str]
    everywhere: str
    in_both: Sequence[InBoth]
    unused_share: float | None
    kept: int


def lines(found: Findings, split: str = "") -> list[str]:
    """Returns the report: a line for the folder, one for each split, and one for each reason to leave something out.

    If the split that is read is "all", one line stands in place of those for the splits.
    """
    report = [f"{readable(found.root)}: {_counted(len(found.class_names), 'class')}: {named(found.class_names)}"]
    whole = SplitFound("all", found.everywhere, sum(one.images for one in found.splits), len(found.class_names))
    for one in [whole] if split == "all" else found.splits:
        report.append(f"  {one.name}: {_counted(one.images, 'image')} of {_counted(one.classes, 'class')}, {one.where}")
    report += [f"  left out: {line}" for line in left_out(found)]
    if found.without_validation and split != "all":
        names = found.without_validation
        report.append(f"  without validation images: {_counted(len(names), 'class')}: {named(names)}")
    report += [f"  {line}" for line in _doubts(found)]
    if found.kept:
        report.append(f"  {found.kept:,} names are from the listing of an earlier start, as their folders' times say")
    return report


def left_out(found: Findings) -> list[str]:
    """Returns a line for each reason for which something was left out."""
    reasons = []
    if found.deeper:
        number = _counted(sum(found.deeper.values()), "image")
        reasons.append(
            f"{number} in folders within class folders, which are not read: {_below(found.root, found.deeper)}"
        )
    if found.others:
        reasons.append(with_other_endings(found.others))
    if found.hidden:
        reasons.append(f"{found.hidden:,} hidden files or folders, whose names begin with a dot")
    if found.outside:
        number = _counted(sum(found.outside.values()), "image")
        reasons.append(f"{number} outside the class folders: {_below(found.root, found.outside)}")
    if found.empty:
        folders = [_relative(path, found.root) for path in found.empty]
        reasons.append(f"{_counted(len(folders), 'folder')} without images: {named(folders)}")
    for split, classes in found.lacking.items():
        of_training = alike(found.class_names)
        shown = [name + hint(name, of_training) for name in classes]
        reasons.append(
            f"{_counted(sum(classes.values()), f'{split} image')} of {_counted(len(classes), 'class')} that training "
            f"does not have: {named(shown)}"
        )
    return reasons


def with_other_endings(others: Mapping[str, int]) -> str:
    """Returns a line on files whose endings are not an image's, given how many there are with each."""
    return f"{_counted(sum(others.values()), 'file')} with another ending: {_endings(others)}"


def named(names: Iterable[str]) -> str:
    """Returns the first names of a list, and how many there are more."""
    names = list(names)
    shown = ", ".join(map(readable, names[:_NAMED]))
    return f"{shown} and {len(names) - _NAMED:,} more" if len(names) > _NAMED else shown


def alike(names: Iterable[str]) -> dict[str, str]:
    """Returns the names by what is the same for all that differ only in case or Unicode form; see `hint`."""
    return {_alike_key(name): name for name in names}


def _doubts(found: Findings) -> list[str]:
    """Returns lines on what is used but may not be meant so."""
    doubts = []
    groups = collections.defaultdict(list)
    for name in found.class_names:
        groups[_alike_key(name)].append(name)
    for group in groups.values():
        if len(group) > 1:
            doubts.append(f"{' and '.join(group)} differ only in case or Unicode form, and are {len(group)} classes")
    if found.split_names:
        doubts.append(f"taken as classes, since they hold images and no class folders: {named(found.split_names)}")
    if found.unused_share is not None:
        doubts.append(f"WARNING: validation_share={found.unused_share:g} is not used: a folder is for validation")
    return doubts + [_shared(one) for one in found.in_both if one.images]


def _shared(found: InBoth) -> str:
    first, second = found.splits
    sampled = f" ({found.compared:,} of {found.alike:,} of the same class and name were compared)"
    some, how = ("at least ", sampled) if found.compared < found.alike else ("", "")
    number = f"{_counted(found.images, 'image')} of {first} {'is' if found.images == 1 else 'are'} in {second} too"
    return f"WARNING: {some}{number}, to the byte, such as {readable(found.example)}{how}"


def hint(name: str, known: Mapping[str, str]) -> str:
    """Returns which of the names in `known` this one is, but for case or Unicode form; empty if none."""
    other = known.get(_alike_key(name))
    return "" if other is None else f" (it differs from {other} only in case or Unicode form)"


def _alike_key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _below(root: str, counts: Mapping[str, int]) -> str:
    return named(f"{_relative(path, root)} ({number:,})" for path, number in counts.items())


def _relative(path: str, root: str) -> str:
    return f"{path.removeprefix(root).lstrip('/')}/" if path != root else "its top"


def _endings(others: Mapping[str, int]) -> str:
    def text(ending: str, number: int) -> str:
        remedy = f" ({_REMEDIES[ending]})" if ending in _REMEDIES else ""
        return f"{number:,} {readable(ending) or 'without'}{remedy}"

    return named(text(ending, number) for ending, number in sorted(others.items(), key=lambda item: -item[1]))


def _counted(number: int, what: str) -> str:
    plural = {"class": "classes"}.get(what, f"{what}s")
    return f"{number:,} {what if number == 1 else plural}"
