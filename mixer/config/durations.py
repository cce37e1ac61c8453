"""Durations of a run: in steps, examples or epochs, and all of them in steps."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mixer.config.settings import DURATIONS, UNITS
from mixer.runtime.errors import UserError


def set_duration(config: ConfigDict, name: str, **unit: float) -> None:
    """Sets a duration in one unit and unsets the others, as in set_duration(config, "total", epochs=300)."""
    for u, kind in UNITS.items():
        if f"{name}_{u}" not in config:
            config[f"{name}_{u}"] = placeholder(kind)
        config[f"{name}_{u}"] = kind(unit[u]) if u in unit else None


def one_unit_each(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """Unsets the other units of each duration that the command line gives.

    Raises:
      UserError: it gives one duration in two units.
    """
    for name in DURATIONS:
        fields = [f"{name}_{unit}" for unit in UNITS]
        given = [field for field in fields if overrides.get(field) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} say the same thing in two units; give one of them")
        for field in fields if given else ():
            if field not in given:
                config[field] = None
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
            raise UserError(f"exactly one of {choices} must be set, not {len(given)}")
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
    return _steps({unit: config[f"{name}_{unit}"] for unit in UNITS}, config.batch_size, num_examples)


def evaluator_steps(config: ConfigDict, evaluator: ConfigDict, num_examples: int) -> int:
    """Returns how many steps lie between two evaluations by an evaluator: its own number, or the run's."""
    own = {unit: evaluator[f"every_{unit}"] for unit in UNITS}
    if all(length is None for length in own.values()):
        return steps(config, "eval", num_examples)
    return _steps(own, config.batch_size, num_examples)


def _steps(length: dict[str, Any], batch_size: int, num_examples: int) -> int:
    if length["steps"] is not None:
        return length["steps"]
    examples = length["examples"]
    if examples is None:
        examples = length["epochs"] * num_examples
    return max(round(examples / batch_size), 1) if examples else 0
