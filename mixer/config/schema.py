"""What is said of a setting, and the check of one value against it."""

import dataclasses
import fnmatch
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mixer.runtime.errors import UserError


class Needs(NamedTuple):
    """A condition under which a setting is read.

    Attributes:
      setting: another setting, or a pattern for those of all evaluators, such as "evaluators.*.dataset".
      values: those of its values under which this one is read; without them, any value but 0, None and False.
    """

    setting: str
    values: tuple[Any, ...] = ()

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Whether the condition holds in a config, given by its dotted names."""
        values = [fields[name] for name in fnmatch.filter(fields, self.setting)]
        return any(value in self.values if self.values else bool(value) for value in values)

    def told(self, fields: Mapping[str, Any]) -> str:
        """Returns the condition in words, with what the config has instead."""
        is_one = self.setting in fields
        return f"{self}, which {f'is {fields[self.setting]!r}' if is_one else 'none is'} here"

    def __str__(self) -> str:
        return f"{self.setting}={' or '.join(map(str, self.values))}" if self.values else f"{self.setting} to be set"


class Registry(NamedTuple):
    """A dict of the code whose keys are a setting's allowed values, named by text: "mixer.training.losses:LOSSES".

    It is imported when a value is checked. So a config file does not import the trainer, and a new entry in the dict is
    allowed at once.
    """

    where: str

    def names(self) -> tuple[str, ...]:
        """Returns the allowed values."""
        module, name = self.where.split(":")
        return tuple(getattr(importlib.import_module(module), name))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a run.

    Attributes:
      default: its value in `recipe.base()`; None if it is not set.
      meaning: what it does, for docs/configuration.md.
      read_by: the file below mixer/ that reads it.
      kind: the type of a value that may be None; otherwise the type is the default's.
      unit: of a number.
      low, high: bounds of a number, both allowed. For a range, `high` is the bound of its larger value.
      positive: a number must be above 0.
      choices: the allowed values of a name. If the default is a tuple, a value is a sequence of such names.
      needs: conditions of which one has to hold, or the setting is not read. A value other than the default is then
        an error.
    """

    default: Any
    meaning: str
    read_by: str
    kind: type | None = None
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    positive: bool = False
    choices: Registry | tuple[str, ...] = ()
    needs: tuple[Needs, ...] = ()

    @property
    def allowed_names(self) -> tuple[str, ...]:
        """The allowed values of a name; empty for other settings."""
        return self.choices.names() if isinstance(self.choices, Registry) else self.choices

    def check(self, name: str, value: Any) -> None:
        """Checks a value. None stands for "not set", which settings with a `kind` allow.

        Raises:
          UserError: the value is not allowed; says which are.
        """
        if value == "" and self.kind is str:
            raise UserError(f"config.{name} is empty: give a value, or leave it out")
        if value is None:
            if self.kind is None:
                raise UserError(f"config.{name} is not set: expected {self.allowed()}")
            return
        if self.allowed_names:
            names = value if self.is_names else [value]
            if unknown := [one for one in names if one not in self.allowed_names]:
                raise UserError(f"config.{name}={unknown[0]!r}: expected one of {', '.join(self.allowed_names)}")
        elif self.is_sequence:
            self._check_sequence(name, value)
        elif self.positive and not 0 < value < math.inf:
            raise UserError(f"config.{name}={value}: expected a finite number above 0")
        elif self.is_number and not (self.low <= value <= self.high and math.isfinite(value)):
            lower = "a finite number" if self.low == -math.inf else f"at least {self.low}"
            upper = "" if self.high == math.inf else f" and at most {self.high}"
            raise UserError(f"config.{name}={value}: expected {lower}{upper}")

    @property
    def is_number(self) -> bool:
        """Whether values are numbers."""
        kind = self.kind or type(self.default)
        return kind in (int, float)

    @property
    def is_names(self) -> bool:
        """Whether values are sequences of names."""
        return isinstance(self.default, tuple) and bool(self.choices)

    @property
    def is_sequence(self) -> bool:
        """Whether values are tuples."""
        return tuple in (self.kind, type(self.default))

    @property
    def is_range(self) -> bool:
        """Whether values are pairs of a smallest and a largest number."""
        return isinstance(self.default, tuple) and all(isinstance(bound, float) for bound in self.default)

    def _check_sequence(self, name: str, value: Sequence[Any]) -> None:
        if not self.is_range:
            if not value or not all(type(count) is int and count > 0 for count in value):
                raise UserError(f"config.{name}={tuple(value)}: expected whole numbers above 0, such as 5 or 1,5")
            return
        numbers = len(value) == 2 and all(isinstance(bound, int | float) for bound in value)
        if not (numbers and 0 < value[0] <= value[1] <= self.high and value[1] < math.inf):
            upper = "" if self.high == math.inf else f", neither above {self.high:g}"
            raise UserError(
                f"config.{name}={tuple(value)}: expected the smallest and the largest{upper}, such as 0.05,1"
            )

    def allowed(self) -> str:
        """Returns the allowed values in words, for docs/configuration.md."""
        if self.allowed_names:
            return ("any of " if self.is_names else "") + ", ".join(self.allowed_names)
        if isinstance(self.default, bool):
            return "True, False"
        if self.is_range:
            return "smallest, largest" + ("" if self.high == math.inf else f"; at most {self.high:g}")
        if self.is_sequence:
            return "whole numbers above 0"
        if not self.is_number:
            return "text"
        if self.positive:
            return "above 0"
        low = "" if self.low == -math.inf else f"at least {self.low:g}"
        high = "" if self.high == math.inf else f"at most {self.high:.12g}"
        return ", ".join(part for part in (low, high) if part) or "any number"
