"""The list of a run's evaluators: which there are, when each is due, and what they find.

An evaluator is a name, a kind and settings. The kind builds it, for one model, into a function from parameters to
metrics; the name is the prefix of these metrics. To add a kind, add it to `KINDS`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_collections

from mixer.config import durations
from mixer.config.recipe import evaluator_settings
from mixer.evaluation.classification import Classification
from mixer.evaluation.evaluator import Context, Evaluator, Through
from mixer.evaluation.few_shot import FewShot
from mixer.runtime.errors import MissingDataError, OtherClassesError, UserError
from mixer.training.step import TrainState


class Kind(NamedTuple):
    """A kind of evaluator.

    Attributes:
      build: from its settings and a context to the evaluator.
      averages_too: whether a run evaluates its averaged parameters as well, under the name NAME_ema.
    """

    build: Callable[[ml_collections.ConfigDict, Context], Evaluator]
    averages_too: bool


KINDS = {"classification": Kind(Classification, averages_too=True), "few_shot": Kind(FewShot, averages_too=False)}


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """An evaluator of a run.

    Attributes:
      name: prefix of its metrics.
      kind: a key of `KINDS`.
      every: steps from one evaluation to the next, not rounded: an epoch may end between two steps.
      evaluate: the evaluator.
    """

    name: str
    kind: str
    every: float
    evaluate: Evaluator


def settings_of(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """Returns the settings of a run's evaluators by name: val, fewshot if it has a dataset, and config.evaluators."""
    found = {"val": evaluator_settings("classification", split=config.input.eval_split)}
    if config.fewshot.dataset:
        few = {name: value for name, value in config.fewshot.items() if name != "test_split"}
        found["fewshot"] = evaluator_settings("few_shot", **few, split=config.fewshot.test_split)
    return {**found, **config.evaluators}


def build(
    config: ml_collections.ConfigDict, context: Context, num_examples: int, tell: Callable[[str], None]
) -> list[Scheduled]:
    """Builds the evaluators of a run.

    Args:
      config: of the run.
      context: the model and where it is computed.
      num_examples: examples in an epoch of training.
      tell: called with a line for each optional evaluator that is left out, since its data is not there or has other
        classes than the model.

    Raises:
      UserError: data cannot be used, or is not there and its evaluator is not optional.
    """
    found = []
    for name, settings in settings_of(config).items():
        try:
            evaluate = KINDS[settings.kind].build(settings, context)
        except UserError as error:
            message = _in_own_names(str(error), name, settings)
            if settings.optional and isinstance(error, MissingDataError | OtherClassesError):
                tell(f"evaluator {name} left out: {message}")
                continue
            if name in config.evaluators:
                message = f"config.evaluators.{name}: {message}"
            raise type(error)(message) from None
        every = durations.evaluator_interval(config, settings, num_examples)
        found.append(Scheduled(name, settings.kind, every, evaluate))
    return found


def _in_own_names(message: str, name: str, settings: ml_collections.ConfigDict) -> str:
    """Replaces the names of config.input's settings in a message by the evaluator's own, where it has them."""
    group = {"val": "config.input", "fewshot": "config.fewshot"}.get(name, f"config.evaluators.{name}")
    for setting in ("dataset", "data_dir", "label_key", "max_labels"):
        # What an evaluator with a dataset of its own says of the labels is its own, too, though it be unset.
        of_labels = setting in ("label_key", "max_labels")
        if settings.get(setting) is not None or (of_labels and settings.dataset is not None):
            message = message.replace(f"config.input.{setting}", f"{group}.{setting}")
    return message


def due(evaluators: Sequence[Scheduled], step: int, total_steps: int, at_start: bool) -> list[Scheduled]:
    """Returns the evaluators that are due at a step: all at the last step, and all at step 0 if `at_start`."""
    if step == 0:
        return list(evaluators) if at_start else []
    return [one for one in evaluators if step == total_steps or durations.ends_at(step, one.every)]


def run(evaluators: Sequence[Scheduled], state: TrainState, through: Through = iter) -> dict[str, float]:
    """Runs evaluators on a state's parameters, and on its averaged parameters where their kind asks for it.

    Returns:
      Metrics by name, such as val/accuracy and val_ema/accuracy.
    """
    metrics = {}
    for one in evaluators:
        versions: dict[str, Any] = {one.name: state.params}
        if KINDS[one.kind].averages_too and state.ema_params is not None:
            versions[f"{one.name}_ema"] = state.ema_params
        for name, params in versions.items():
            metrics.update({f"{name}/{key}": value for key, value in one.evaluate(params, through).items()})
    return metrics
