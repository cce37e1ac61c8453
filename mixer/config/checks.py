"""Checks a whole config: the value of every setting, and what settings say of each other."""

import copy
import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from mixer import models
from mixer.config import durations
from mixer.config.evaluator_settings import EVALUATOR
from mixer.config.schema import Needs, Setting
from mixer.config.settings import SETTINGS
from mixer.models import layers
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime import files
from mixer.runtime.errors import UserError

_EVALUATORS = "evaluators."


def checked(config: ConfigDict) -> ConfigDict:
    """Returns the config locked and with home folders for ~, if nothing is wrong with it.

    Raises:
      UserError: a setting is missing or unknown, has a value that is not allowed or that the run would not read, or
        does not go together with another.
    """
    fields = flat(config)
    of_home = {name: value for name, value in fields.items() if isinstance(value, str) and value.startswith("~")}
    with config.unlocked():
        config.update_from_flattened_dict({name: files.expanded(value) for name, value in of_home.items()})
    fields = flat(config)
    settings = _settings_of(fields)
    for name, setting in settings.items():
        setting.check(name, fields[name])
    durations.check_units(config)
    _check_evaluator_names(config)
    _check_read(fields, settings)
    _check_model(config)
    _check_input(fields)
    if config.mixup.p and config.mixup.cutmix == 1:
        raise UserError(
            f"config.mixup.p={config.mixup.p!r} would not be read: with mixup.cutmix=1 no step blends images; "
            "give a smaller share, or leave mixup.p at 0.0"
        )
    if config.batch_size % config.accumulate_steps:
        raise UserError(
            f"config.batch_size={config.batch_size} is not divisible by accumulate_steps={config.accumulate_steps}"
        )
    return config.lock()


def _settings_of(fields: Mapping[str, Any]) -> dict[str, Setting]:
    """Returns the declared setting of every field of a config.

    Raises:
      UserError: a setting is missing or unknown.
    """
    names = sorted({name.split(".")[1] for name in fields if name.startswith(_EVALUATORS)})
    known = SETTINGS | {f"{_EVALUATORS}{name}.{key}": of for name in names for key, of in EVALUATOR.items()}
    if missing := sorted(known.keys() - fields.keys()):
        start = "recipe.evaluator_settings()" if missing[0].startswith(_EVALUATORS) else "mixer.recipe.base()"
        raise UserError(f"config.{missing[0]} is missing: let the config file start from {start}")
    if unknown := sorted(fields.keys() - known.keys()):
        raise UserError(f"config.{unknown[0]}: no such setting{nearest(unknown[0], list(known))}")
    return known


def _check_read(fields: Mapping[str, Any], settings: Mapping[str, Setting]) -> None:
    """Refuses a setting that was changed and that the run would not read."""
    for name, needs in _unread(fields, settings).items():
        wanted = " or ".join(need.told(fields) for need in needs)
        raise UserError(
            f"config.{name}={fields[name]!r} would not be read: it needs {wanted}; leave it at "
            f"{settings[name].default!r}"
        )


def reset_unread(config: ConfigDict, before: Mapping[str, Any], given: Collection[str]) -> None:
    """Gives settings their defaults that a config file set and that the command line's values leave unread.

    Args:
      config: with the values of the command line; changed in place.
      before: the fields of the config as the file made it.
      given: names of the settings that the command line sets.
    """
    of_file = _unread(before, _settings_of(before))
    while names := [n for n in _unread(flat(config), _settings_of(flat(config))) if n not in (*of_file, *given)]:
        defaults = {name: _settings_of(before)[name].default for name in names}
        with config.ignore_type():
            config.update_from_flattened_dict(defaults)


def _unread(fields: Mapping[str, Any], settings: Mapping[str, Setting]) -> dict[str, list[Needs]]:
    """Returns the settings that were changed and that the run would not read, with what each of them needs."""
    found = {}
    for name, setting in settings.items():
        group = f"{name.rpartition('.')[0]}." if name.startswith(_EVALUATORS) else ""
        needs = [need._replace(setting=group + need.setting) for need in setting.needs]
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        if needs and fields[name] != default and not any(need.holds(fields) for need in needs):
            found[name] = needs
    return found


def _check_evaluator_names(config: ConfigDict) -> None:
    for name in config.evaluators:
        if name in ("train", "val", "fewshot") or name.endswith("_ema") or "/" in name:
            raise UserError(
                f"config.evaluators.{name}: train, val, fewshot, names with a slash and names that end in _ema stand "
                "for other metrics; give it another name"
            )


def _check_model(config: ConfigDict) -> None:
    try:
        model = models.create(num_classes=0, **config.model)
    except models.UnknownVariantError as error:
        raise UserError(f"config.model.variant: {error}") from None
    except ValueError as error:
        raise UserError(f"config.model: {error}") from None
    if config.model.stochastic_depth and getattr(model, "num_blocks", 2) == 1:
        raise UserError(
            f"config.model.stochastic_depth={config.model.stochastic_depth} would not be read: it grows from 0 in the "
            "first block, and this model has no other"
        )
    if config.stem_init == "whitening" and not isinstance(model, MlpMixer):
        raise UserError(
            f"config.stem_init=whitening is for Mixers; config.model.variant={config.model.variant!r} is none"
        )
    size, patch_size = config.input.image_size, getattr(model, "patch_size", 1)
    try:
        layers.check_patches(size, size, patch_size)
    except ValueError:
        raise UserError(
            f"config.input.image_size={size} is not a multiple of the patch size of "
            f"config.model.variant={config.model.variant!r}; the nearest that is: "
            f"{layers.nearest_multiple(size, patch_size)}"
        ) from None
    try:
        model.forward_macs(size)  # raises if a pyramid cannot start from this size
    except ValueError as error:
        raise UserError(f"config.model.{error}") from None


def _check_input(fields: Mapping[str, Any]) -> None:
    size = fields["input.image_size"]
    for name, value in fields.items():
        if name.endswith(".eval_resize") and value and value < size:
            raise UserError(f"config.{name}={value} is smaller than input.image_size={size}, which is cropped from it")
    patch = fields["input.permutation_patch"]
    if fields["input.permutation"] == "patches" and (patch is None or size % patch):
        wrong = " is not set" if patch is None else f"={patch} does not divide input.image_size={size}"
        raise UserError(
            f"config.input.permutation_patch{wrong}: input.permutation=patches needs the side of patches that tile the "
            "image, such as the model's"
        )


def flat(config: ConfigDict | FrozenConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns all fields by their dotted names; sequences as lists, which is how JSON has them."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | FrozenConfigDict):
            fields.update(flat(value, f"{prefix}{key}."))
        else:
            fields[prefix + key] = list(value) if isinstance(value, tuple) else value
    return fields


def unlocked_copy(config: ConfigDict) -> ConfigDict:
    """Returns a copy that can be changed without a change of the original.

    ConfigDict(config) would share nested groups, and optional values that are unset, with the original (ml_collections
    1.1).
    """
    return copy.deepcopy(config).unlock()


def nearest(name: str, known: list[str], prefix: str = "config.") -> str:
    """Returns a hint at the known name that is most like an unknown one; empty if none is."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    return f"; the nearest is {prefix}{found[0]}" if found else ""
