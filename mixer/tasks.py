"""The tasks that a pre-trained model is fine-tuned and evaluated on, a row each; add a row for one of your own."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Task:
    """A dataset and the paper's protocol for it (Section 3; ViT, arXiv 2010.11929, Appendix B.1.1).

    Attributes:
      dataset: its TFDS name.
      num_classes: of the head.
      train: the split of the final runs.
      test: the split that is reported.
      sweep_train: what is left of `train` while the learning rate is chosen.
      sweep_dev: the rest of it, by which the learning rate is chosen.
      steps: of fine-tuning, with batches of 512.
      warmup_steps: neither paper says; those of the published transfer configs.
      learning_rates: the grid. The paper changes ViT's, for the four small tasks, to this; ViT's for ImageNet is it.
      few_shot_train: the split from which few-shot evaluation chooses, where `train` is too large to read for it.
      label_key: the feature with the labels, where it is not found by its type.
      max_labels: the most that an example has.
    """

    dataset: str
    num_classes: int
    train: str
    test: str
    sweep_train: str
    sweep_dev: str
    steps: int
    warmup_steps: int
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.06)
    few_shot_train: str | None = None
    label_key: str | None = None
    max_labels: int | None = None


IMAGENET = Task(
    "imagenet2012", 1000, "train", "validation", "train[:99%]", "train[99%:]", 20_000, 500,
    few_shot_train="train[:65000]",  # at least 30 images a class, as published
)  # fmt: skip

# Those whose average is the paper's "Avg 5".
FIVE = {
    "imagenet2012": IMAGENET,
    "cifar10": Task("cifar10", 10, "train", "test", "train[:98%]", "train[98%:]", 10_000, 500),
    "cifar100": Task("cifar100", 100, "train", "test", "train[:98%]", "train[98%:]", 10_000, 500),
    "oxford_iiit_pet": Task("oxford_iiit_pet", 37, "train", "test", "train[:90%]", "train[90%:]", 500, 100),
    # 2,040 images, half of which TFDS calls validation.
    "oxford_flowers102": Task(
        "oxford_flowers102", 102, "train+validation", "test",
        "train[:90%]+validation[:90%]", "train[90%:]+validation[90%:]", 500, 100,
    ),
}  # fmt: skip

# ImageNet's other test sets: what is fine-tuned is ImageNet. ReaL has several labels an image, or none (then it does
# not count); at most 15, so 32 is room enough.
IMAGENET_TESTS = {
    "imagenet_real": dataclasses.replace(IMAGENET, dataset="imagenet2012_real", label_key="real_label", max_labels=32),
    "imagenet_v2": dataclasses.replace(IMAGENET, dataset="imagenet_v2/matched-frequency", test="test"),
}

_SHORT = {"imagenet": "imagenet2012", "pets": "oxford_iiit_pet", "flowers": "oxford_flowers102"}


def find(name: str) -> tuple[str, Task]:
    """Returns a task's full name and its row; "pets", "flowers" and "imagenet" are short for theirs.

    Raises:
      ValueError: there is no such task.
    """
    known = {**FIVE, **IMAGENET_TESTS}
    full = _SHORT.get(name, name)
    if full not in known:
        raise ValueError(f"task {name!r}: expected one of {', '.join([*known, *_SHORT])}")
    return full, known[full]
