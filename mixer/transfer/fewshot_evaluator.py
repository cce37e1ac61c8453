"""What a model's features are worth: few-shot linear accuracy on another dataset, or on its own (Section 3)."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from mixer.data import pipeline, sources
from mixer.errors import UserError
from mixer.models import Model
from mixer.training import sharding
from mixer.training.step import normalize
from mixer.transfer import fewshot

_CHUNK = 1024  # records read together for their labels


class FewShot:
    """Few-shot evaluation of any parameters of a model: examples are chosen once, features computed at each call.

    Features are the pre-logits: the mean over tokens behind the last LayerNorm. Images are prepared as in evaluation,
    in both splits. Those that cannot be read count in neither: a class then has fewer shots.
    """

    def __init__(
        self,
        settings: ml_collections.ConfigDict,
        config: ml_collections.ConfigDict,
        model: Model,
        mesh: Mesh,
        *,
        batch_size: int,
        cache_dir: epath.PathLike,
    ):
        """Opens both splits and reads the labels of the one to choose from.

        Args:
          settings: as `config.fewshot`, with a dataset.
          config: as `config.input`: the image size, and what `settings` does not say.
          model: with a head or without.
          mesh: where features are computed.
          batch_size: images at a time, over all devices.
          cache_dir: for what has to be made for the dataset.

        Raises:
          UserError: the data is not there, an example has several labels, or a class has too few examples.
        """
        self._settings, self._config = settings, _input(settings, config)
        self._mesh, self._batch_size, self._rows = mesh, batch_size, sharding.host_rows(mesh, batch_size)
        try:
            self._train = sources.open_source(self._config, settings.train_split, cache_dir)
            self._test = sources.open_source(self._config, settings.test_split, cache_dir)
            if self._train.multi_label:
                raise UserError(f"{settings.dataset} has several labels an example, this evaluation is for one")
            labels = _labels(self._train)
            self._chosen = {
                (shots, seed): fewshot.choose(labels, self._train.class_names, shots, seed)
                for shots in settings.shots
                for seed in range(settings.seeds)
            }
        except UserError as error:
            raise UserError(f"few-shot evaluation: {_in_its_own_names(str(error))}") from None
        self._needed = np.unique(np.concatenate(list(self._chosen.values())))
        headless = model.clone(num_classes=0)

        def features(params: Any, images: jax.Array) -> Any:
            return headless.apply({"params": params}, normalize(images))

        self._features = jax.jit(features)

    def __call__(self, params: Any, through: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> dict[str, float]:
        """Returns fewshot/DATASET_5shot for every number of shots: the mean over seeds of the accuracy.

        Beside it, if there is more than one seed, fewshot/DATASET_5shot_std, the standard deviation over seeds (n - 1
        in the denominator); and if there are any, fewshot/DATASET_unreadable, the images that could not be read.

        Args:
          params: of the model, anywhere on the mesh.
          through: passes each batch on, and may end the evaluation by raising.

        Raises:
          UserError: no image of a split can be read.
        """
        settings, classes = self._settings, len(self._train.class_names)
        few, few_labels, readable = self._run(params, self._train, self._needed, through)
        test, test_labels, test_readable = self._run(params, self._test, np.arange(self._test.num_examples), through)
        test, test_labels = test[test_readable], test_labels[test_readable]

        name = f"fewshot/{settings.dataset.replace('/', '_')}"
        metrics: dict[str, float] = {}
        for shots in settings.shots:
            accuracies = []
            for seed in range(settings.seeds):
                rows = np.searchsorted(self._needed, self._chosen[shots, seed])
                rows = rows[readable[rows]]
                if not (len(rows) and len(test)):
                    raise UserError(f"few-shot evaluation: no image of {settings.dataset} can be read")
                classifier = fewshot.regress(few[rows], few_labels[rows], classes, settings.l2)
                accuracies.append(fewshot.accuracy(classifier, test, test_labels))
            metrics[f"{name}_{shots}shot"] = float(np.mean(accuracies))
            if settings.seeds > 1:
                metrics[f"{name}_{shots}shot_std"] = float(np.std(accuracies, ddof=1))
        if unreadable := int(np.sum(~readable) + np.sum(~test_readable)):
            metrics[f"{name}_unreadable"] = unreadable
        return metrics

    def _run(
        self,
        params: Any,
        source: sources.Source,
        records: np.ndarray,
        through: Callable[[Iterable[Any]], Iterable[Any]],
    ) -> tuple[np.ndarray, ...]:
        """Of these records: features, float32 [records, width]; class numbers, int32 [records]; which are readable."""
        found = []
        batches = pipeline.eval_batches(
            source, self._config, batch_size=self._batch_size, rows=self._rows, records=records
        )
        for rows in through(batches):
            batch = sharding.to_devices(rows, self._mesh)
            features = self._features(params, batch["image"])
            found.append(sharding.to_host(self._mesh, features, batch["labels"], batch["weight"]))
        features, labels, weight = (np.concatenate(part)[: len(records)] for part in zip(*found, strict=True))
        return features, labels[:, 0], weight > 0


def _input(settings: ml_collections.ConfigDict, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The `config.input` of the few-shot data."""
    found = ml_collections.ConfigDict(config)
    found.dataset, found.data_dir = settings.dataset, settings.data_dir or config.data_dir
    found.label_key, found.max_labels = None, 1  # those of config.input are for its own dataset
    found.eval_crop, found.eval_resize = settings.eval_crop, settings.eval_resize
    return found


def _labels(source: sources.Source) -> np.ndarray:
    """The class number of every example, int64 [examples]; -1 where its record is damaged or has none."""
    labels = np.full(source.num_examples, -1)
    for start in range(0, source.num_examples, _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, source.num_examples))
        for number, example in zip(numbers, source.fetch(numbers), strict=True):
            if example.image is not None and len(example.labels):
                labels[number] = example.labels[0]
    return labels


def _in_its_own_names(message: str) -> str:
    """A message about config.input, with the settings that are config.fewshot's own named as such."""
    for name in ("dataset", "data_dir"):
        message = message.replace(f"config.input.{name}", f"config.fewshot.{name}")
    return message
