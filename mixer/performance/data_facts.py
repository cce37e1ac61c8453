"""Facts of datasets that pre-flight needs without reading them: how many classes, training examples and labels."""

import re
from typing import NamedTuple

import ml_collections

from mixer.config import paper
from mixer.runtime.errors import UserError


class DataFacts(NamedTuple):
    """The facts of a dataset on which a run's steps and their number depend.

    Attributes:
      num_classes: width of the head.
      num_examples: in the training split.
      max_labels: labels of an example, at most.
    """

    num_classes: int
    num_examples: int
    max_labels: int = 1


# By `config.input.dataset`. num_examples is that of the split on which the paper trains: train, or that of _SPLITS.
KNOWN = {
    "imagenet2012": DataFacts(1000, 1_281_167),
    "imagenet21k": DataFacts(21_843, 14_197_122),
    "multilabel": DataFacts(18_291, 300_000_000, max_labels=8),  # JFT-300M's sizes; an image has 1.26 labels on average
    "cifar10": DataFacts(10, 50_000),
    "cifar100": DataFacts(100, 50_000),
    "oxford_iiit_pet": DataFacts(37, 3_680),
    "oxford_flowers102": DataFacts(102, 2_040),
}

_SPLITS = {"oxford_flowers102": "train+validation"}

# Datasets whose classes and sizes depend on what the user prepares. For these, KNOWN has the paper's as defaults.
_OWN = {"imagenet21k", "multilabel"}

# From `config.input.dataset` to a key of `paper.DATA`.
_PAPER_NAMES = {"imagenet2012": "i1k", "imagenet21k": "i21k", "multilabel": "jft"}

# Of two numbers of images, the smaller as a share of the larger, from which on they may be the same data: people make
# ImageNet-21k of 13 to 14 million.
_AS_MANY = 0.9

_PER_CENTS = re.compile(r"train\[:(100|[1-9]\d?)%\]")  # the first per cents of the training split


def of(config: ml_collections.ConfigDict, num_classes: int | None, num_examples: int | None) -> DataFacts:
    """Returns the facts of a config's dataset.

    Args:
      config: of the run.
      num_classes: replaces the number of `KNOWN`; needed for other datasets.
      num_examples: the same for the examples; also needed for other splits than the paper's and its first per cents.

    A dataset that is not in `KNOWN` has one label an image unless config.input.max_labels says how many.

    Raises:
      UserError: a number is needed and not given.
    """
    dataset, split = config.input.dataset, config.input.train_split
    if dataset in KNOWN:
        facts, known = KNOWN[dataset], _known_examples(dataset, split)
        if known is None and not num_examples:
            raise UserError(f"config.input.train_split={split!r} is not known here: give its --num_examples")
        facts = facts._replace(num_examples=known or 0)
    elif num_classes and num_examples:
        facts = DataFacts(num_classes, num_examples)
    else:
        raise UserError(
            f"config.input.dataset={dataset!r} is not known here: give --num_classes and --num_examples and, if its "
            f"images have several labels, --config.input.max_labels (known are {', '.join(KNOWN)})"
        )
    return DataFacts(
        num_classes or facts.num_classes,
        num_examples or facts.num_examples,
        config.input.max_labels or facts.max_labels,
    )


def _known_examples(dataset: str, split: str) -> int | None:
    """Returns the examples in a split of a dataset of `KNOWN`; None for a split of which they are not known."""
    whole, num_examples = _SPLITS.get(dataset, "train"), KNOWN[dataset].num_examples
    if split == whole:
        return num_examples
    part = _PER_CENTS.fullmatch(split)
    return _rounded(num_examples, int(part[1])) if part and whole == "train" else None


def _rounded(num_examples: int, per_cent: int) -> int:
    """Returns the examples of a split's first per cents, rounded as by TensorFlow Datasets: ties to even.

    Its own function is not called, since it imports TensorFlow.
    """
    return round(num_examples * per_cent / 100)


def fixed(config: ml_collections.ConfigDict) -> list[str]:
    """Returns which of "num_classes" and "num_examples" are already certain for a config's dataset."""
    dataset, split = config.input.dataset, config.input.train_split
    if dataset not in KNOWN or dataset in _OWN:
        return []
    return ["num_classes", "num_examples"] if _known_examples(dataset, split) is not None else ["num_classes"]


def paper_row(config: ml_collections.ConfigDict, num_examples: int | None) -> paper.Row | None:
    """Returns the paper's row of a pre-training run: of this model, data, size and number of epochs.

    Args:
      config: of the run.
      num_examples: in its training split; None if that is not known. Any collection may be called "multilabel", as
        JFT-300M is here.

    Returns:
      None if the paper has no such run.
    """
    widths = ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")
    if any(config.model[name] for name in (*widths, "pyramid")) or config.model.token_mixing != "shared":
        return None  # another model than the variant
    if num_examples and config.input.dataset in KNOWN:
        least, most = sorted((KNOWN[config.input.dataset].num_examples, num_examples))
        if least < _AS_MANY * most:
            return None  # other data than the paper's
    run = (config.model.variant, _PAPER_NAMES.get(config.input.dataset), config.total_epochs, config.input.image_size)
    for row in paper.ROWS:
        if run == (row.variant, row.pretraining, row.epochs, row.image_size):
            return row
    return None


def paper_core_days(config: ml_collections.ConfigDict, num_examples: int | None) -> float | None:
    """Returns the TPU-v3 core-days of `paper_row`; None if the paper has no such run."""
    row = paper_row(config, num_examples)
    return row.thousand_core_days * 1000 if row else None
