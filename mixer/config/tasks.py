"""The tasks on which a pre-trained model is fine-tuned and evaluated, a row each. Add a row for a task of your own."""

import dataclasses

from mixer.runtime.errors import ArgumentError


@dataclasses.dataclass(frozen=True)
class Task:
    """A dataset and the paper's protocol for it (Section 3; ViT, arXiv 2010.11929, Appendix B.1.1).

    Attributes:
      dataset: its TFDS name.
      test: the split on which results are reported.
      train: the split on which the final runs train; None for test data alone, which needs only `dataset` and `test`.
      sweep_train: the part of `train` on which runs train while the learning rate is chosen.
      sweep_dev: the rest of `train`, by which the learning rate is chosen.
      steps: of fine-tuning.
      warmup_steps: from the published transfer configs; neither paper gives them.
      learning_rates: the grid. For the four small tasks the paper replaces ViT's grid by this one, which is also ViT's
        for ImageNet.
      epochs: of fine-tuning, in place of steps, for data of any size; a twentieth of them is warm-up.
      batch_size: of fine-tuning; the paper's.
      few_shot_train: the split from which few-shot evaluation chooses, if `train` is too large to read for that.
      shots: of few-shot evaluation, numbers of images of each class.
      label_key: the feature with the labels, if its type does not identify it.
      max_labels: the most labels that an example has.
    """

    dataset: str
    test: str
    train: str | None = None
    sweep_train: str | None = None
    sweep_dev: str | None = None
    steps: int = 0
    warmup_steps: int = 0
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.06)
    epochs: float | None = None
    batch_size: int = 512
    few_shot_train: str | None = None
    shots: tuple[int, ...] = (1, 5, 10, 25)
    label_key: str | None = None
    max_labels: int | None = None

    def check_trainable(self) -> None:
        """Raises ArgumentError if the task has test data alone."""
        if self.train is None:
            trainable = ", ".join(name for name, task in TASKS.items() if task.train is not None)
            raise ArgumentError(f"{self.dataset} is test data alone; tasks to fine-tune on are {trainable}")


IMAGENET = Task(
    "imagenet2012", "validation", "train", "train[:99%]", "train[99%:]", 20_000, 500,
    few_shot_train="train[:65000]",  # at least 30 images a class, as published
)  # fmt: skip

TASKS = {
    "imagenet2012": IMAGENET,
    "cifar10": Task("cifar10", "test", "train", "train[:98%]", "train[98%:]", 10_000, 500),
    "cifar100": Task("cifar100", "test", "train", "train[:98%]", "train[98%:]", 10_000, 500),
    "oxford_iiit_pet": Task("oxford_iiit_pet", "test", "train", "train[:90%]", "train[90%:]", 500, 100),
    # 2,040 images, 20 of each class; TFDS calls half of them validation.
    "oxford_flowers102": Task(
        "oxford_flowers102", "test", "train+validation",
        "train[:90%]+validation[:90%]", "train[90%:]+validation[90%:]", 500, 100, shots=(1, 5, 10, 20),
    ),
    # One's own images in class folders, not from the paper; chosen as docs/results.md says.
    "folder": Task("folder", "validation", "train", epochs=30, batch_size=64, learning_rates=(0.003, 0.01, 0.03)),
    # ImageNet's other test sets; a model for them is fine-tuned on ImageNet. An image of ReaL has up to 15 labels, or
    # none, and then it does not count.
    "imagenet_real": Task("imagenet2012_real", "validation", label_key="real_label", max_labels=32),
    "imagenet_v2": Task("imagenet_v2/matched-frequency", "test"),
}  # fmt: skip

# The tasks of the paper's "Avg 5".
AVG5 = ("imagenet2012", "cifar10", "cifar100", "oxford_iiit_pet", "oxford_flowers102")

_SHORT = {"imagenet": "imagenet2012", "pets": "oxford_iiit_pet", "flowers": "oxford_flowers102"}


def find(name: str) -> tuple[str, Task]:
    """Returns a task's full name and its row. "pets", "flowers" and "imagenet" are short names.

    Raises:
      ArgumentError: there is no such task.
    """
    full = _SHORT.get(name, name)
    if full not in TASKS:
        raise ArgumentError(f"task {name!r}: expected one of {', '.join([*TASKS, *_SHORT])}")
    return full, TASKS[full]
