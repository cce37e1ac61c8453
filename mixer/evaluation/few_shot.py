"""Few-shot linear accuracy: how well a model's frozen features separate classes (Section 3 of the paper)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epy

from mixer.config.settings import SETTINGS
from mixer.data.pixels import image_status
from mixer.data.sources import Source
from mixer.evaluation import classification, evaluator, few_shot_regression
from mixer.evaluation.evaluator import Context, Through
from mixer.runtime import devices
from mixer.runtime.errors import MissingDataError, SeveralLabelsError, UserError
from mixer.training.step import normalize

with epy.lazy_imports():  # it imports TensorFlow, which checking a config must not do
    from mixer.data import readers

_CHUNK = 1024  # records that are read together for their labels


class _Computed(NamedTuple):
    """What is known of some records.

    Attributes:
      features: float32 [records, width].
      labels: the first of each, int32 [records]; -1 if it has none.
      status: of each image, int32 [records].
    """

    features: np.ndarray
    labels: np.ndarray
    status: np.ndarray

    @property
    def readable(self) -> np.ndarray:
        """Whether each image can be used."""
        readable: np.ndarray = self.status == image_status.OK
        return readable


class FewShot:
    """An evaluator: fits a linear classifier to the features of a few images of each class, and tests it.

    The features are the pre-logits, which the head gets. The images of both splits are prepared as in evaluation. Those
    of the training split are chosen once; features are computed in every call. Images that cannot be read are left out,
    so a class may have fewer shots.
    """

    def __init__(self, settings: ml_collections.ConfigDict, context: Context):
        """Opens both splits, reads the labels of the training split, and chooses the images.

        Args:
          settings: as `config.evaluators.NAME`.
          context: the model, and the devices that compute it.

        Raises:
          MissingDataError: the dataset is not there.
          UserError: the data cannot be used, an example has several labels, or a class has too few examples.
        """
        self._settings, self._config, self._context = settings, input_of(settings, context.input), context
        try:
            self._train = readers.open_source(self._config, settings.train_split, context.cache_dir)
            self._test = readers.open_source(self._config, settings.split, context.cache_dir)
            if self._train.multi_label:
                raise SeveralLabelsError
            labels = class_numbers(self._train, context.reading)
            self._chosen = {
                (shots, seed): few_shot_regression.choose(labels, self._train.class_names, shots, seed)
                for shots in settings.shots
                for seed in range(settings.seeds)
            }
            self._needed = np.unique(np.concatenate(list(self._chosen.values())))  # the records of all choices
            _check_apart(self._train, self._needed, self._test, settings.split)
        except SeveralLabelsError:
            several = f"{self._config.dataset} has several labels an example; this evaluation needs one"
            raise UserError(f"few-shot evaluation: {several}") from None
        except UserError as error:
            kind = MissingDataError if isinstance(error, MissingDataError) else UserError
            raise kind(f"few-shot evaluation: {error}") from None
        headless = context.model.clone(num_classes=0)

        def features(params: Any, images: jax.Array) -> Any:
            return headless.apply({"params": params}, normalize(images))

        self._features = jax.jit(features)

    @property
    def num_examples(self) -> int:
        """Images that an evaluation reads: the test split, and those that the classifier is fitted to."""
        return self._test.num_examples + len(self._needed)

    @property
    def sources(self) -> Sequence[Source]:
        """The test split, and that which the classifier is fitted to."""
        return [self._test, self._train]

    def __call__(self, params: Any, through: Through = iter) -> dict[str, float]:
        """Returns the accuracy for each number of shots, as DATASET_5shot: the mean over seeds.

        With more than one seed, DATASET_5shot_std is the standard deviation over seeds (n - 1 in the denominator). If
        some images cannot be read, DATASET_unreadable is their number, and bad_images/KIND that of each kind;
        DATASET_unlabelled is the number of test images without a label, which are left out.

        Raises:
          UserError: no image of a split can be read, or none of the test split has a label.
        """
        settings = self._settings
        few = self._compute(params, self._train, self._needed, through)
        test = self._compute(params, self._test, np.arange(self._test.num_examples), through)
        is_used = test.readable & (test.labels >= 0)
        if test.readable.any() and not is_used.any():
            raise UserError(
                f"few-shot evaluation: {self._config.dataset} {settings.split} has no labels; give another split"
            )

        name = self._config.dataset.replace("/", "_")
        metrics: dict[str, float] = {}
        for shots in settings.shots:
            accuracies = self._accuracies(shots, few, test.features[is_used], test.labels[is_used])
            metrics[f"{name}_{shots}shot"] = float(np.mean(accuracies))
            if settings.seeds > 1:
                metrics[f"{name}_{shots}shot_std"] = float(np.std(accuracies, ddof=1))
        if unlabelled := int(np.sum(test.readable & ~is_used)):
            metrics[f"{name}_unlabelled"] = unlabelled
        statuses = np.concatenate([few.status, test.status])
        if unreadable := int(np.sum(statuses != image_status.OK)):
            metrics[f"{name}_unreadable"] = unreadable
        counts = np.bincount(statuses, minlength=len(image_status.STATUSES)).tolist()
        by_kind = zip(image_status.STATUSES[1:], counts[1:], strict=True)
        return metrics | {f"bad_images/{kind}": count for kind, count in by_kind if count}

    def _accuracies(self, shots: int, few: _Computed, test: np.ndarray, labels: np.ndarray) -> list[float]:
        """Returns the accuracy of the classifiers that are fitted to so many images of each class, one for each seed.

        Args:
          shots: one of the settings' shots.
          few: of the records of all choices, in the order of `_needed`.
          test: features of the test images, float32 [images, width].
          labels: their classes.

        Raises:
          UserError: no image that was chosen can be read, or there is no test image.
        """
        accuracies, num_classes = [], len(self._train.class_names)
        for seed in range(self._settings.seeds):
            places = np.searchsorted(self._needed, self._chosen[shots, seed])
            places = places[few.readable[places]]
            if not (len(places) and len(test)):
                raise UserError(f"few-shot evaluation: no image of {self._config.dataset} can be read")
            classifier = few_shot_regression.regress(
                few.features[places], few.labels[places], num_classes, self._settings.l2
            )
            accuracies.append(few_shot_regression.accuracy(classifier, test, labels))
        return accuracies

    def _compute(self, params: Any, source: Source, records: np.ndarray, through: Through) -> _Computed:
        """Computes the features of some records."""
        found = []
        for batch in evaluator.split_batches(source, self._config, self._context, through, records):
            features = self._features(params, batch["image"])
            found.append(devices.to_host(self._context.mesh, features, batch["labels"], batch["status"]))
        features, labels, status = (np.concatenate(part)[: len(records)] for part in zip(*found, strict=True))
        return _Computed(features, labels[:, 0], status)


def input_of(settings: ml_collections.ConfigDict, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns `config.input` with the dataset and the evaluation crop of this evaluator.

    Args:
      settings: as `config.evaluators.NAME`.
      config: `config.input`.
    """
    found = classification.input_of(settings, config)
    found.max_labels = settings.max_labels or 1  # with more, it says that this evaluation needs one
    found.eval_crop = settings.eval_crop or SETTINGS["fewshot.eval_crop"].default
    found.eval_resize = settings.eval_resize
    return found


def _check_apart(train: Source, learned: np.ndarray, test: Source, split: str) -> None:
    """Checks that no image that is learned from is one of the images of the test split.

    Raises:
      UserError: some are.
    """
    if train.place is None or test.place is None:
        return
    places = {train.place(number) for number in learned.tolist()}
    if common := sum(test.place(number) in places for number in range(test.num_examples)):
        raise UserError(
            f"{common:,} of the {len(places):,} images that it learns from are in the test split {split!r} too: give "
            "splits without common images, such as train[:90%] and train[90%:]"
        )


def class_numbers(source: Source, through: Through = iter) -> np.ndarray:
    """Reads the class number of every example, int64 [examples]; -1 if its record is damaged or has no label."""
    labels = np.full(source.num_examples, -1)
    for numbers in through(np.array_split(np.arange(source.num_examples), range(_CHUNK, source.num_examples, _CHUNK))):
        for number, example in zip(numbers, source.fetch(numbers), strict=True):
            if example.image is not None and len(example.labels):
                labels[number] = example.labels[0]
    return labels
