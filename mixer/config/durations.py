"""Durations of a run: in steps, examples or epochs, and all of them in steps."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mixer.config.settings import DURATIONS, UNITS
from mixer.runtime.errors import ArgumentError, UserError


def set_duration(config: ConfigDict, name: str, **unit: float) -> None:
    """Sets a duration in one unit and unsets the others, as in set_duration(config, "total", epochs=300).

    Raises:
      ArgumentError: there is no such duration, or it is not given in one of the units.
    """
    if name not in DURATIONS:
        raise ArgumentError(f"recipe.duration: {name!r} is none of {', '.join(DURATIONS)}")
    if len(unit) != 1 or not unit.keys() <= UNITS.keys():
        given = ", ".join(unit) or "nothing"
        raise ArgumentError(f"recipe.duration of {name!r}: expected one of {', '.join(UNITS)}, not {given}")
    for u, kind in UNITS.items():
        config[f"{name}_{u}"] = kind(unit[u]) if u in unit else None


def one_unit_each(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """Unsets the other units of each duration that the command line gives, also of an evaluator's own.

    Raises:
      UserError: it gives one duration in two units.
    """
    names = [f"{name}_" for name in DURATIONS] + [f"evaluators.{name}.every_" for name in config.get("evaluators", ())]
    for name in names:
        fields = [name + unit for unit in UNITS]
        given = [field for field in fields if overrides.get(field) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} say the same thing in two units; give one of them")
        for field in fields if given else ():
            if field not in given:
                config.update_from_flattened_dict({field: None})
    return config


def check_units(config: ConfigDict) -> None:
    """Checks that each duration is set in exactly one unit, and each evaluator's own in at most one.

    Raises:
      UserError: it is not.
    """
    for name in DURATIONS:
        given = [unit for unit in UNITS if config[f"{name}_{unit}"] is not None]
        if len(given) != 1:
            choices = ", ".join(f"{name}_{unit}" for unit in UNITS)
            values = " and ".join(f"{name}_{unit}={config[f'{name}_{unit}']}" for unit in given) or "none"
            raise UserError(
                f"exactly one of {choices} must be set; here {values} is: in a config file, "
                f'recipe.duration(config, "{name}", {(given or list(UNITS))[-1]}=...) sets one and unsets the others'
            )
    for name, evaluator in config.evaluators.items():
        given = [f"every_{unit}" for unit in UNITS if evaluator[f"every_{unit}"] is not None]
        if len(given) > 1:
            raise UserError(f"config.evaluators.{name} has {' and '.join(given)}; give one of them")


def steps(config: ConfigDict, name: str, num_examples: int) -> int:
    """Returns a duration in steps, rounded; at least one step unless the duration is zero.

    Args:
      config: of the run.
      name: one of `DURATIONS`.
      num_examples: examples in an epoch.
    """
    exact = _exact({unit: config[f"{name}_{unit}"] for unit in UNITS}, config.batch_size, num_examples)
    return max(round(exact), 1) if exact else 0


def check_warmup(warmup: int, total: int) -> None:
    """Checks that the learning rate reaches its peak within the run, given both durations in steps.

    A run of one step is a try of something else.

    Raises:
      UserError: warm-up is longer than the run.
    """
    if warmup > total > 1:
        raise UserError(
            f"warm-up takes {warmup:,} steps and the run {total:,}, so the learning rate would end at "
            f"{total / warmup:.2%} of config.optimizer.learning_rate: make the run longer, or set config.warmup_steps, "
            f"for example to {total // 10}"
        )


def interval(config: ConfigDict, name: str, num_examples: int) -> float:
    """Returns a duration in steps as `steps` does, but not rounded: for what repeats. At least 1; see `ends_at`."""
    return max(_exact({unit: config[f"{name}_{unit}"] for unit in UNITS}, config.batch_size, num_examples), 1)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The durations of a run in steps; those that repeat are not rounded."""

    total: int
    warmup: int
    log: float
    checkpoint: float


def all_steps(config: ConfigDict, num_examples: int) -> Steps:
    """Returns the durations of a run in steps; see `steps` and `interval`.

    Raises:
      UserError: warm-up is longer than the run.
    """
    found = Steps(
        *(steps(config, name, num_examples) for name in ("total", "warmup")),
        *(interval(config, name, num_examples) for name in ("log", "checkpoint")),
    )
    check_warmup(found.warmup, found.total)
    return found


def evaluator_interval(config: ConfigDict, evaluator: ConfigDict, num_examples: int) -> float:
    """Returns how many steps lie between two evaluations by an evaluator, not rounded: its own number, or the run's."""
    own = {unit: evaluator[f"every_{unit}"] for unit in UNITS}
    if all(length is None for length in own.values()):
        return interval(config, "eval", num_examples)
    return max(_exact(own, config.batch_size, num_examples), 1)


def ends_at(step: int, every: float) -> bool:
    """Returns whether an interval ends at a step: the step is a multiple of `every`, rounded.

    An epoch is seldom a whole number of steps. With 156.25 steps an epoch, the sixth ends at step 938, as does a run of
    six epochs. Six times 156 steps would be 936, and the run would be evaluated at 936 and at 938.
    """
    return step == round(round(step / every) * every)


def _exact(length: dict[str, Any], batch_size: int, num_examples: int) -> float:
    if length["steps"] is not None:
        return int(length["steps"])
    examples = length["examples"]
    if examples is None:
        examples = length["epochs"] * num_examples
    return float(examples / batch_size)
