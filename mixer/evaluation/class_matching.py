"""Brings the classes of data to those of a model: by their names, if the data has a part of them or another order."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mixer.data import class_names
from mixer.data.folders import folder_report
from mixer.data.sources import Example, Source
from mixer.evaluation.evaluator import Context
from mixer.runtime.errors import OtherClassesError


def matched(source: Source, context: Context, dataset: str) -> Source:
    """Returns the data with labels that are the model's class numbers.

    The names decide, where both have names. Where the model has none, the data must have as many classes as it, or
    WordNet ids, if the model has as many classes as a published one.

    Args:
      source: the data.
      context: the model, and the names of its classes.
      dataset: as `config.input.dataset`.

    Raises:
      OtherClassesError: the model does not have all classes of the data.
    """
    theirs, ours = context.class_names, source.class_names
    if theirs is None and context.model.num_classes != len(ours):
        theirs = class_names.published(context.model.num_classes)
    # TFDS calls classes without names 0, 1, 2, ... In a folder, these are names that somebody gave.
    names_mean_something = dataset == "folder" or not all(name.isdigit() for name in ours)
    if (
        theirs is None or list(theirs) == list(ours) or len(theirs) != context.model.num_classes
        or not names_mean_something or not set(ours) <= set(theirs)
    ):  # fmt: skip
        check(context._replace(class_names=theirs), ours)
        if theirs is None and names_mean_something:
            said = f"  taken in order: {len(ours):,} classes, of which {context.source} does not give the names"
            return dataclasses.replace(source, report=[*source.report, said])
        return source
    number_of = {name: number for number, name in enumerate(theirs)}
    to_model = [number_of[name] for name in ours]

    def fetch(numbers: np.ndarray) -> list[Example]:
        found = source.fetch(numbers)
        return [Example(image, [to_model[n] if n >= 0 else n for n in labels]) for image, labels in found]

    said = f"  matched by name: {len(ours):,} of the {len(theirs):,} classes of {context.source}"
    return dataclasses.replace(source, class_names=list(theirs), fetch=fetch, report=[*source.report, said])


def check(context: Context, names: Sequence[str]) -> None:
    """Checks that the classes of the data, which have these names, are those of the model, in number and order.

    Raises:
      OtherClassesError: they are not.
    """
    source, num_classes = context.source, context.model.num_classes
    unknown = _unknown(context.class_names, names)
    if num_classes != len(names):
        raise OtherClassesError(
            f"{source} tells {num_classes:,} classes apart, the data has {len(names):,}: fine-tune it "
            f"first (configs/finetune.py), or ask what its features are worth (few-shot evaluation){unknown}"
        )
    for number, (theirs, ours) in enumerate(zip(context.class_names or names, names, strict=True)):
        if theirs != ours:
            raise OtherClassesError(
                f"the classes of {source} are not those of the data: class {number} is {theirs!r} there and "
                f"{ours!r} here{unknown}"
            )


def _unknown(theirs: Sequence[str] | None, ours: Sequence[str]) -> str:
    """Returns which classes of the data the model does not know, and which of its own are nearly called so."""
    missing = [name for name in ours if name not in set(theirs or ours)]
    if not theirs or not missing:
        return ""
    alike = folder_report.alike(theirs)
    shown = folder_report.named(name + folder_report.hint(name, alike) for name in missing)
    return (
        f"; it does not know {len(missing):,} of the data's classes: {shown}; those it knows: "
        f"{folder_report.named(theirs)}"
    )
