"""Evaluates a classifier on a split: every example once, on all devices."""

from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from etils import epy

from mixer.config.checks import unlocked_copy
from mixer.data.sources import Source
from mixer.evaluation import accuracy, class_matching, evaluator
from mixer.evaluation.evaluator import Context, Through
from mixer.runtime import devices, machine
from mixer.runtime.errors import UserError

with epy.lazy_imports():  # it imports TensorFlow, which checking a config must not do
    from mixer.data import readers

LOGIT_BYTES = 4  # float32; average precision needs the logits of all images at once


class Classification:
    """An evaluator: loss, accuracy and related metrics on one split (see `accuracy.Evaluation`).

    Attributes:
      source: the split.
    """

    def __init__(self, settings: ml_collections.ConfigDict, context: Context):
        """Opens the split.

        Args:
          settings: as `config.evaluators.NAME`.
          context: the model and the mesh.

        Raises:
          MissingDataError: the dataset was not found.
          OtherClassesError: the classes of the data are not the model's.
          UserError: the data cannot be used, or are too many for the host's memory.
        """
        self._config, self._split, self._context = input_of(settings, context.input), settings.split, context
        source = readers.open_source(self._config, settings.split, context.cache_dir)
        self.source = class_matching.matched(source, context, self._config.dataset)
        keep_logits = self.source.multi_label
        if keep_logits:
            _check_memory(self.source.num_examples, context.model.num_classes, f"{self._config.dataset} {self._split}")
        self._step = accuracy.make_eval_step(context.model, context.loss, context.mesh, keep_logits)

    @property
    def num_examples(self) -> int:
        """Images in the split."""
        return self.source.num_examples

    @property
    def sources(self) -> Sequence[Source]:
        """The split."""
        return [self.source]

    def __call__(self, params: Any, through: Through = iter) -> dict[str, float]:
        """Returns the metrics of these parameters."""
        return self.evaluate(params, through).metrics

    def evaluate(self, params: Any, through: Through = iter) -> accuracy.Evaluation:
        """Returns the metrics of these parameters, and the accuracy of each class.

        For multi-label data each host keeps the logits.

        Raises:
          UserError: no image of the split can be read.
          RuntimeError: an example was left out or counted twice.
        """
        kept = []

        def sums_of_batches() -> Iterator[accuracy.Sums]:
            for batch in evaluator.split_batches(self.source, self._config, self._context, through):
                sums, logits = self._step(params, batch)
                if logits is not None:
                    scores, labels, weight = devices.to_host(
                        self._context.mesh, logits, batch["labels"], batch["weight"]
                    )
                    kept.append((scores[weight > 0], labels[weight > 0]))
                yield sums

        sums, split = evaluator.total(sums_of_batches()), f"{self._config.dataset} {self._split}"
        return accuracy.evaluation_of(sums, kept, self.source.num_examples, split)


def input_of(settings: ml_collections.ConfigDict, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the run's `config.input` with the evaluator's own settings in place of the run's, where it has them.

    The label settings belong to a dataset. If the evaluator has a dataset of its own, the run's are not used.
    """
    found = unlocked_copy(config)
    if settings.dataset is not None:
        found.update({name: settings[name] for name in ("dataset", "label_key", "max_labels")})
    for name in ("data_dir", "eval_crop", "eval_resize"):
        if settings[name] is not None:
            found[name] = settings[name]
    return found


def _check_memory(num_examples: int, num_classes: int, where: str) -> None:
    """Checks that the logits of a split, which average precision needs all at once, fit in the host's memory.

    Raises:
      UserError: they do not.
    """
    needed, available = num_examples * num_classes * LOGIT_BYTES, machine.available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"{where}: average precision needs all outputs for {num_examples:,} images and {num_classes:,} classes at "
            f"once; they take {needed / 2**30:,.1f} GiB of each host's memory, and {available / 2**30:,.1f} are "
            f"available: evaluate on a split of at most {available // (num_classes * LOGIT_BYTES):,} images"
        )
