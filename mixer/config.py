"""A checked, locked config, its durations in steps, and the copy in a run's folder."""

import difflib
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from mixer import models, recipe
from mixer.errors import UserError, first_line
from mixer.files import write_whole

_log = logging.getLogger(__name__)

# In a run's folder.
CONFIG_FILE = "config.json"
CLASSES_FILE = "classes.txt"  # one name a line, in the order of the head's outputs

DURATIONS = ("total", "warmup", "log", "eval", "checkpoint")

# Fields that take one of a few names.
CHOICES = {
    "loss": ("sigmoid_xent", "softmax_xent"),
    "resize": ("extend", "interpolate"),
    "sharding": ("data_parallel", "fully_sharded"),
    "model.dtype": ("bfloat16", "float32"),
    "optimizer.name": ("adam", "momentum", "muon"),
    "optimizer.decay": ("linear", "cosine", "constant"),
    "input.crop": ("inception", "random", "pad", "resize"),
    "input.eval_crop": ("resize_small", "resize_square"),
    "fewshot.eval_crop": ("resize_small", "resize_square"),
    "checkpoint.on_error": ("stop", "continue"),
}

# Fields that have to lie within bounds, both included and infinity never; a field that is not set is not looked at.
_BOUNDS = {
    "seed": (0, 2**31 - 1),
    "batch_size": (1, math.inf),
    "accumulate_steps": (1, math.inf),
    "ema_decay": (0, 0.999999),
    "max_nonfinite_steps": (0, math.inf),
    **{f"warmup_{unit}": (0, math.inf) for unit in recipe.UNITS},
    **{f"model.{width}": (1, math.inf) for width in ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")},
    "model.dropout": (0, 0.999),
    "model.stochastic_depth": (0, 0.999),
    "model.head_bias_init": (-math.inf, math.inf),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.end_factor": (0, math.inf),
    "optimizer.beta1": (0, 0.999999),
    "optimizer.beta2": (0, 0.999999999),
    "optimizer.epsilon": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "mixup.p": (0, math.inf),
    "mixup.group": (2, math.inf),
    "input.image_size": (1, math.inf),
    "input.eval_resize": (1, math.inf),
    "input.max_labels": (1, math.inf),
    "input.max_pixels": (1, math.inf),
    "input.validation_share": (0, 0.9),
    "input.randaugment.layers": (0, 16),
    "input.randaugment.magnitude": (0, math.inf),
    "input.shuffle_block": (1, math.inf),
    "input.shuffle_window": (0, math.inf),
    "input.max_bad_share": (0, 1),
    "fewshot.seeds": (1, math.inf),
    "fewshot.l2": (1e-3, math.inf),
    "fewshot.eval_resize": (1, math.inf),
    "checkpoint.keep_last": (1, math.inf),
    "checkpoint.keep_every": (0, math.inf),
    "checkpoint.keep_best": (0, math.inf),
    "profile_steps": (0, math.inf),
}

# Fields that hold a smallest and a largest value, and what neither may exceed.
_RANGES = {"input.crop_area": 1.0, "input.crop_aspect": math.inf}


def one_unit_each(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """Unsets the units that a duration given on the command line replaces."""
    for name in DURATIONS:
        fields = [f"{name}_{unit}" for unit in recipe.UNITS]
        given = [field for field in fields if overrides.get(field) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} say the same thing in two units; give one of them")
        for field in fields if given else ():
            if field not in given:
                config[field] = None
    return config


def checked(config: ConfigDict) -> ConfigDict:
    """Returns the config locked, its values checked.

    Raises:
      UserError: a value is not among those allowed.
    """
    fields, known = flat(config), flat(recipe.base())
    if missing := sorted(known.keys() - fields.keys()):
        raise UserError(f"config.{missing[0]} is missing: let the config file start from mixer.recipe.base()")
    if unknown := sorted(fields.keys() - known.keys()):
        raise UserError(f"config.{unknown[0]}: no such setting{nearest(unknown[0], list(known))}")
    if fields["init_from"] == "":
        raise UserError("config.init_from is empty: give a run's folder or a file of weights, or leave it out")
    for path, allowed in CHOICES.items():
        if fields[path] not in allowed:
            raise UserError(f"config.{path}={fields[path]!r}: expected one of {', '.join(allowed)}")
    for path, (low, high) in _BOUNDS.items():
        if fields[path] is not None and not (low <= fields[path] <= high and math.isfinite(fields[path])):
            lower = "a finite number" if low == -math.inf else f"at least {low}"
            upper = "" if high == math.inf else f" and at most {high}"
            raise UserError(f"config.{path}={fields[path]}: expected {lower}{upper}")
    for path, most in _RANGES.items():
        if not _is_range(fields[path], most):
            upper = "" if most == math.inf else f", neither above {most:g}"
            raise UserError(
                f"config.{path}={tuple(fields[path])}: expected the smallest and the largest{upper}, such as 0.05,1"
            )
    for name in DURATIONS:
        given = [unit for unit in recipe.UNITS if config[f"{name}_{unit}"] is not None]
        if len(given) != 1:
            choices = ", ".join(f"{name}_{unit}" for unit in recipe.UNITS)
            raise UserError(f"exactly one of {choices} must be set, not {len(given)}")
        path = f"{name}_{given[0]}"
        if name != "warmup" and not 0 < fields[path] < math.inf:
            raise UserError(f"config.{path}={fields[path]}: expected a finite number above 0")
    try:
        patch_size = getattr(models.create(num_classes=0, **config.model), "patch_size", 1)
    except ValueError as error:
        raise UserError(f"config.{'model.variant' if 'expected' in str(error) else 'model'}: {error}") from None
    if config.input.image_size % patch_size:
        raise UserError(
            f"config.input.image_size={config.input.image_size} is not a multiple of the patch size of "
            f"config.model.variant={config.model.variant!r}; the nearest that is: "
            f"{max(round(config.input.image_size / patch_size), 1) * patch_size}"
        )
    if not _is_counts(fields["fewshot.shots"]):
        raise UserError(
            f"config.fewshot.shots={tuple(fields['fewshot.shots'])}: expected whole numbers above 0, such as 5 or 1,5"
        )
    for path in ("input.eval_resize", "fewshot.eval_resize"):
        if fields[path] and fields[path] < config.input.image_size:
            raise UserError(
                f"config.{path}={fields[path]} is smaller than input.image_size={config.input.image_size}, which is "
                "cropped from it"
            )
    if config.accumulate_steps > 1 and config.batch_size % config.accumulate_steps:
        raise UserError(
            f"config.batch_size={config.batch_size} is not divisible by accumulate_steps={config.accumulate_steps}"
        )
    return config.lock()


def steps(config: ConfigDict, name: str, num_examples: int) -> int:
    """A duration in steps, rounded, at least one unless it is zero; an epoch is `num_examples`."""
    if config[f"{name}_steps"] is not None:
        return config[f"{name}_steps"]
    examples = config[f"{name}_examples"]
    if examples is None:
        examples = config[f"{name}_epochs"] * num_examples
    return max(round(examples / config.batch_size), 1) if examples else 0


def check_same(config: ConfigDict, workdir: epath.PathLike, allow_change: bool = False) -> list[str]:
    """Compares the config with that of the run that the folder holds, if there is one.

    Returns:
      Each difference, such as "seed: 0 before, 1 now".

    Raises:
      UserError: they differ in what is computed, and that is not allowed.
    """
    if not (epath.Path(workdir) / CONFIG_FILE).exists():
        return []
    try:
        before = {**flat(recipe.base()), **flat(load(workdir))}  # settings that came after the run began: the defaults
    except UserError as error:
        _log.warning("%s: it is written anew, without a comparison.", error)
        return []
    now = flat(ConfigDict(json.loads(config.to_json())))
    changed = {
        key: f"{key}: {before.get(key)!r} before, {now.get(key)!r} now"
        for key in sorted({**before, **now})
        if before.get(key) != now.get(key)
    }
    if not allow_change and (computed := [text for key, text in changed.items() if not key.startswith(_HARMLESS)]):
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(computed)}): give another --workdir, or "
            "--allow_config_change to continue it with this one"
        )
    return list(changed.values())


def save(config: ConfigDict, class_names: Sequence[str], workdir: epath.PathLike) -> None:
    """Writes the config and the names of the classes to the run's folder."""
    if jax.process_index() == 0:
        write_whole(epath.Path(workdir) / CONFIG_FILE, config.to_json(indent=2, sort_keys=True))
        write_whole(epath.Path(workdir) / CLASSES_FILE, "\n".join(class_names) + "\n")


# What may change when a run is continued: where data lies, how arrays are laid out, when it looks and what it writes,
# not what is computed.
_HARMLESS = (*(f"{name}_{unit}" for name in ("log", "eval", "checkpoint") for unit in recipe.UNITS),
             "checkpoint.", "fewshot.", "profile_steps", "input.data_dir", "input.max_bad_share", "sharding",
             "max_nonfinite_steps")  # fmt: skip


def load(workdir: epath.PathLike) -> FrozenConfigDict:
    """Reads the config of a run.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    try:
        return FrozenConfigDict(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not the config of a run ({first_line(error)})") from None


def flat(config: ConfigDict | FrozenConfigDict, prefix: str = "") -> dict[str, Any]:
    """All fields by their dotted names; sequences as lists, as JSON has them."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | FrozenConfigDict):
            fields.update(flat(value, f"{prefix}{key}."))
        else:
            fields[prefix + key] = list(value) if isinstance(value, tuple) else value
    return fields


def _is_range(value: list[Any], most: float) -> bool:
    return (
        len(value) == 2
        and all(isinstance(bound, int | float) for bound in value)
        and 0 < value[0] <= value[1] <= most
        and value[1] < math.inf
    )


def _is_counts(value: list[Any]) -> bool:
    return bool(value) and all(type(count) is int and count > 0 for count in value)


def nearest(name: str, known: list[str], prefix: str = "config.") -> str:
    """A hint at the known name that is most like an unknown one; empty if none is."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    return f"; the nearest is {prefix}{found[0]}" if found else ""
