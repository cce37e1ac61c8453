"""What a run's folder says of the run: its config and the names of its classes."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from mixer.config import recipe
from mixer.config.checks import flat, unlocked_copy
from mixer.config.settings import UNITS
from mixer.runtime import bucket, bucket_check, distributed, files
from mixer.runtime.errors import UserError, first_line

_log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
DIVERGED_FILE = "diverged.txt"  # what a run of a series said when it ended because its loss was not finite
CLASSES_FILE = "classes.txt"  # one name a line, in the order of the head's outputs

# Settings that may change when a run is continued, because they do not change what is computed: where data lies, how
# arrays are laid out, what is evaluated and when, what is written.
_HARMLESS = (
    *(f"{name}_{unit}" for name in ("log", "eval", "checkpoint") for unit in UNITS),
    "eval_at_start", "evaluators.", "checkpoint.", "fewshot.", "profile_steps", "input.data_dir", "input.max_bad_share",
    "metrics.", "sharding", "max_nonfinite_steps",
)  # fmt: skip


# Settings that say with which parameters a run begins.
_AT_THE_START = ("init_from", "init_ema", "resize", "stem_init", "model.identity_init", "model.head_bias_init")


def make(workdir: epath.PathLike, flag: str = "--workdir") -> epath.Path:
    """Makes a run's folder, or one for runs; `flag` gives it.

    Raises:
      UserError: it cannot be written to.
    """
    if not os.fspath(workdir):
        raise UserError(f"{flag} is empty: give a folder")
    files.refuse_patterns(workdir, f"{flag} {workdir}", "orbax", "[]*?\\")
    bucket_check.check(workdir, for_run=True)
    path = epath.Path(files.expanded(os.fspath(workdir)))
    try:
        if not bucket.is_remote(path):  # a bucket has no folders
            path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{distributed.processes().index}"  # every process writes its part of a checkpoint
        files.write_text(probe, "")
        files.delete(probe)
    except OSError as error:
        raise UserError(f"{flag} {workdir} cannot be written to ({error}); give a folder of your own") from None
    return path


def of_checkpoint(path: epath.Path) -> tuple[epath.Path, int | None]:
    """Returns a run's folder and the step, given its RUN/checkpoints/STEP; any other path as it is, and None."""
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def save(config: ConfigDict, class_names: Sequence[str], workdir: epath.PathLike, anew: bool = True) -> None:
    """Writes the config and, when the run begins, the names of the classes, by which its checkpoints are read.

    Args:
      config: of the run.
      class_names: of its data.
      workdir: the run's folder.
      anew: whether the run begins, and does not continue.
    """
    if jax.process_index() == 0:
        files.write_text(epath.Path(workdir) / CONFIG_FILE, config.to_json(indent=2, sort_keys=True))
        if anew or not files.exists(epath.Path(workdir) / CLASSES_FILE):
            files.write_text(epath.Path(workdir) / CLASSES_FILE, "\n".join(class_names) + "\n")


def load_config(workdir: epath.PathLike) -> FrozenConfigDict:
    """Reads the config of a run. Settings that did not exist when the run began have their defaults.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    bucket_check.check(workdir)
    try:
        config = FrozenConfigDict(json.loads(files.read_bytes(path)))
        if missing := [name for name in ("model", "input") if name not in config]:
            raise ValueError(f"it has no {missing[0]}")
        return FrozenConfigDict(_completed(config.to_dict(), json.loads(recipe.base().to_json())))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not the config of a run ({first_line(error)})") from None


def _completed(config: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    groups = {name: _completed(of, defaults.get(name, {})) for name, of in config.items() if isinstance(of, dict)}
    return {**defaults, **config, **groups}


# Settings that a config may leave to the run, by the value that does. The run keeps what it began with.
_LEFT_TO_THE_RUN = {"input.shuffle_block": 0, "model.dtype": "auto"}
# Those that the history of a run notes too: token mixing may have the width of the weights of init_from.
DECIDED = (*_LEFT_TO_THE_RUN, "model.tokens_mlp_dim")


def decided(config: ConfigDict, before: Mapping[str, Any], of_new: Mapping[str, Any]) -> ConfigDict:
    """Returns the config with values for the settings that it leaves to the run.

    Args:
      config: of a run, locked.
      before: the values of a run that continues, by name: it keeps them, also if its data moves into a bucket or it
        continues on another machine.
      of_new: the values of a new run, by name.
    """
    now = flat(config)
    left = {name: of_new[name] for name, value in _LEFT_TO_THE_RUN.items() if now[name] == value and name in of_new}
    if not left:
        return config
    left |= {name: before[name] for name in left if before.get(name, now[name]) != now[name]}
    config = unlocked_copy(config)
    config.update_from_flattened_dict(left)
    return config.lock()


def diverged(workdir: epath.PathLike) -> str | None:
    """Returns what a run of a series said when it ended because its loss was not finite; None if it did not."""
    try:
        return files.read_text(epath.Path(workdir) / DIVERGED_FILE).strip()
    except FileNotFoundError:
        return None


def load_class_names(workdir: epath.PathLike) -> list[str] | None:
    """Reads the names of a run's classes; None if the folder has none."""
    try:
        text = files.read_text(epath.Path(workdir) / CLASSES_FILE).replace("\r\n", "\n")  # an editor's on Windows
        return text.removesuffix("\n").split("\n")  # not by splitlines: a name may have characters such as U+2028
    except FileNotFoundError:
        return None


def check_same(config: ConfigDict, workdir: epath.PathLike, allow_change: bool | None = False) -> list[str]:
    """Compares the config with that of the run in the folder, if there is one.

    Args:
      config: of the run, decided.
      workdir: the run's folder.
      allow_change: whether --allow_config_change is given; None where there is no such flag.

    Returns:
      Each difference, such as "seed: 0 before, 1 now".

    Raises:
      UserError: a difference changes what is computed, and that is not allowed, or would not be read any more.
    """
    if not files.exists(epath.Path(workdir) / CONFIG_FILE):
        return []
    try:
        before = flat(load_config(workdir))
    except UserError as error:
        _log.warning("%s: it is written anew, without a comparison.", error)
        return []
    now = flat(ConfigDict(json.loads(config.to_json())))
    changed = {
        key: f"{key}: {before.get(key)!r} before, {now.get(key)!r} now"
        for key in sorted({**before, **now})
        if before.get(key) != now.get(key)
    }
    if config.init_from:
        changed.pop("model.identity_init", None)  # it was allowed and not read
    for name in _AT_THE_START:
        if name in changed:
            raise UserError(
                f"config.{changed[name]}, but a run that continues has parameters and would not read it: leave it as "
                "it was, or start another run with another --workdir"
            )
    if not allow_change and (computed := [text for key, text in changed.items() if not key.startswith(_HARMLESS)]):
        instead = "" if allow_change is None else ", or --allow_config_change to continue it with this one"
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(computed)}): give another folder for it{instead}"
        )
    return list(changed.values())


# What the evaluator val reads, and how.
_OF_EVALUATION = (
    "input.dataset", "input.eval_", "input.exif", "input.image_size", "input.label_key", "input.max_labels",
    "input.max_pixels", "input.permutation", "input.resize_rounding", "input.scaled_decoding", "input.transparent",
    "input.validation_share",
)  # fmt: skip


def changes_evaluation(change: str) -> bool:
    """Returns whether a difference of `check_same`'s gives the evaluator val other images or pixels."""
    return change.startswith(_OF_EVALUATION)


def changes_no_metric(change: str) -> bool:
    """Returns whether steps that are taken again have the same metrics in spite of a difference of `check_same`'s."""
    means = ("log_", "evaluators.", "fewshot.")  # log_*: what is logged is a mean since the line before
    return change.startswith(_HARMLESS) and not change.startswith(means)
