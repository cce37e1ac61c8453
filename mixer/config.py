"""From the command line to a checked, locked config; and from a run's folder back to it."""

import difflib
import json
import math
import pathlib
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from mixer import recipe
from mixer.errors import UserError

CONFIG_FILE = "config.json"

DURATIONS = ("total", "warmup", "log", "eval", "checkpoint")

# Fields that take one of a few names.
_CHOICES = {
    "loss": ("sigmoid_xent", "softmax_xent"),
    "sharding": ("data_parallel", "fully_sharded"),
    "model.dtype": ("bfloat16", "float32"),
    "optimizer.name": ("adam", "momentum"),
    "optimizer.decay": ("linear", "cosine", "constant"),
    "input.crop": ("inception", "pad", "resize"),
    "input.eval_crop": ("resize_small", "resize_square"),
}

# Fields that have to lie within bounds, both included.
_BOUNDS = {
    "seed": (0, 2**31 - 1),
    "batch_size": (1, math.inf),
    "accumulate_steps": (1, math.inf),
    "ema_decay": (0, 0.999999),
    "model.dropout": (0, 0.999),
    "model.stochastic_depth": (0, 0.999),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
    "mixup.p": (0, math.inf),
    "mixup.group": (2, math.inf),
    "input.image_size": (1, math.inf),
    "input.validation_share": (0, 0.9),
    "input.randaugment.layers": (0, 16),
    "input.shuffle_block": (1, math.inf),
    "input.shuffle_window": (0, math.inf),
    "input.max_bad_share": (0, 1),
    "checkpoint.keep_last": (1, math.inf),
    "checkpoint.keep_every": (0, math.inf),
    "checkpoint.keep_best": (0, math.inf),
    "profile_steps": (0, math.inf),
}


def parse_flags(argv: list[str]) -> list[str]:
    """Parses a command line with --config FILE[:ARGUMENTS] and any --config.NAME=VALUE; returns the arguments left.

    Raises:
      UserError: a file, name or value that is not right; names the nearest right one.
    """
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname)) from None
    except (flags.Error, TypeError, ValueError, KeyError, AttributeError, OSError, ImportError, SyntaxError) as error:
        raise UserError(_first_line(error)) from None


def from_flags() -> tuple[ConfigDict, str]:
    """Returns the checked config that the flags give, and its file's name without ending."""
    flag = flags.FLAGS["config"]
    if flag.value is None:
        raise UserError("--config is missing: give a file, such as --config configs/quickstart.py")
    config = one_unit_each(flag.value, config_flags.get_override_values(flag))
    return checked(config), pathlib.Path(config_flags.get_config_filename(flag).split(":")[0]).stem


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
    for path, allowed in _CHOICES.items():
        if _get(config, path) not in allowed:
            raise UserError(f"config.{path}={_get(config, path)!r}: expected one of {', '.join(allowed)}")
    for path, (low, high) in _BOUNDS.items():
        if not low <= _get(config, path) <= high:
            upper = "" if high == math.inf else f" and at most {high}"
            raise UserError(f"config.{path}={_get(config, path)}: expected at least {low}{upper}")
    for name in DURATIONS:
        given = [unit for unit in recipe.UNITS if config[f"{name}_{unit}"] is not None]
        if len(given) != 1:
            choices = ", ".join(f"{name}_{unit}" for unit in recipe.UNITS)
            raise UserError(f"exactly one of {choices} must be set, not {len(given)}")
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


def save(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes the config to the run's folder.

    Raises:
      UserError: the folder holds a run of another config.
    """
    text = config.to_json(indent=2, sort_keys=True)
    path = workdir / CONFIG_FILE
    if path.exists():
        before, now = flat(load(workdir)), flat(ConfigDict(json.loads(text)))
        changed = sorted(key for key in {**before, **now} if before.get(key) != now.get(key) and not _harmless(key))
        if changed:
            listed = "; ".join(f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in changed)
            raise UserError(f"{workdir} holds a run of another config ({listed}); give another --workdir, or delete it")
    if jax.process_index() == 0:
        path.write_text(text)


# What may change when a run is continued: where data lies and what is written, not what is computed.
_HARMLESS = (*(f"{name}_{unit}" for name in ("log", "eval", "checkpoint") for unit in recipe.UNITS),
             "checkpoint.", "profile_steps", "input.data_dir", "input.max_bad_share")  # fmt: skip


def _harmless(key: str) -> bool:
    return key.startswith(_HARMLESS)


def load(workdir: epath.PathLike) -> FrozenConfigDict:
    """Reads the config of a run.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    try:
        return FrozenConfigDict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not the config of a run ({_first_line(error)})") from None


def flat(config: ConfigDict | FrozenConfigDict, prefix: str = "") -> dict[str, Any]:
    """All fields by their dotted names; sequences as lists, as JSON has them."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | FrozenConfigDict):
            fields.update(flat(value, f"{prefix}{key}."))
        else:
            fields[prefix + key] = list(value) if isinstance(value, tuple) else value
    return fields


def _get(config: ConfigDict, path: str) -> Any:
    for part in path.split("."):
        config = config[part]
    return config


def _unknown_flag(name: str) -> str:
    """The line for a flag that does not exist, with the nearest that does."""
    config = flags.FLAGS["config"].value
    known = [f"config.{key}" for key in flat(config)] if config is not None else []
    known += [key for key in ("config", "workdir", "inspect", "distributed") if key in flags.FLAGS]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    return f"--{name}: no such setting" + (f"; the nearest is --{nearest[0]}" if nearest else "")


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
