"""Folders of the Hugging Face Hub: a `config.json`, as in a run's folder, and the weights beside it.

timm loads such a folder by `timm.create_model("local-dir:FOLDER", pretrained=True)`, and from the Hub by `hf-hub:`.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from etils import epath

from mixer.runtime import bucket, files
from mixer.runtime.errors import UserError, first_line
from mixer.transfer import timm
from mixer.transfer.format import Exported, code_block, quoted
from mixer.transfer.weights import Weights

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"

# Before the card of a model. The Hub's pages and its search read it.
FRONT_MATTER = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- mlp-mixer
---
"""
_PICKLES = (".bin", ".pth", ".pt")


def weights_file(folder: epath.Path, source: str) -> str | None:
    """Returns the path of the weights in a folder of the Hub; None if the folder is a run's, or neither.

    Args:
      folder: local or in a bucket.
      source: its name, for messages.

    Raises:
      UserError: the weights are pickles alone, or the folder cannot be read.
    """
    try:
        names = _names(folder)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({first_line(error)})") from None
    if "checkpoints" in names:
        return None
    if WEIGHTS_FILE in names:
        return str(folder / WEIGHTS_FILE)
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise UserError(
            f"{source} holds no {WEIGHTS_FILE}; {', '.join(pickles)} may hold pickles, which are never loaded: get the "
            "model in the safetensors format"
        )
    return None


def completed(weights: Weights, folder: epath.Path) -> Weights:
    """Returns a folder's weights with what its `config.json` says: the names of the classes, and the normalisation.

    timm's models are given (x - mean) / std of pixels x in 0..1, ours 2x - 1. The stem takes in the difference.

    Raises:
      UserError: they are not the parameters of a Mixer, or the normalisation is none.
    """
    told, num_classes = _config(folder), weights.model().num_classes
    names, cfg = told.get("label_names"), told.get("pretrained_cfg")
    if weights.class_names is None and _are_names(names, num_classes):
        weights = dataclasses.replace(weights, class_names=names)
    if weights.carried is not None or not isinstance(cfg, dict):  # what this project wrote takes 2x - 1
        return weights
    try:
        mean, std = (np.array(cfg.get(name, [0.5] * 3), np.float64) for name in ("mean", "std"))
        usable = mean.shape == std.shape == (3,) and np.isfinite([mean, std]).all() and (std > 0).all()
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise UserError(f"{folder / CONFIG_FILE}: pretrained_cfg has no mean and std of three channels")
    stem, kernel = weights.params["stem"], np.float64(weights.params["stem"]["kernel"])
    taken_in = {
        "kernel": np.float32(kernel / (2 * std[:, None])),
        "bias": np.float32(stem["bias"] + (kernel * ((0.5 - mean) / std)[:, None]).sum(axis=(0, 1, 2))),
    }
    return dataclasses.replace(weights, params={**weights.params, "stem": taken_in})


def _are_names(found: Any, number: int) -> bool:
    return isinstance(found, list) and len(found) == number and all(isinstance(name, str) for name in found)


def _config(folder: epath.Path) -> dict[str, Any]:
    """Returns what `config.json` says; nothing if it is not there or is no object."""
    try:
        told = json.loads(files.read_bytes(folder / CONFIG_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def timm_config(exported: Exported) -> str:
    """Returns the `config.json` by which timm makes the model and its input.

    Raises:
      UserError: timm has no model of these widths by name, or no way to prepare its images.
    """
    permutation = exported.images.get("permutation", "none")  # a run of an earlier version has no such setting
    if permutation != "none":
        raise UserError(
            f"timm cannot permute pixels, as the model was trained (input.permutation={permutation}): export it to a "
            "file, whose card has the code"
        )
    name, arguments = timm.architecture(exported.model, exported.image_size)
    pretrained = {
        **timm.data_config(exported),
        "fixed_input_size": True,
        "num_classes": exported.model.num_classes,
        "first_conv": "stem.proj",
        "classifier": "head",
    }
    found = {
        "architecture": name,
        "num_classes": exported.model.num_classes,
        "num_features": exported.model.hidden_dim,
        **({"model_args": arguments} if arguments else {}),
        **({"label_names": exported.class_names} if exported.class_names else {}),
        "pretrained_cfg": pretrained,
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def loading(exported: Exported, folder: str) -> list[str]:
    """Returns lines of Markdown that say how timm loads a folder of this name, and computes `images`."""
    tanh = ', act_layer=functools.partial(torch.nn.GELU, approximate="tanh")' if exported.has_tanh_gelu else ""
    lines = [
        *(["import functools", ""] if tanh else []),
        "import timm",
        "import torch",
        "",
        f"model = timm.create_model({quoted(f'local-dir:{folder}')}, pretrained=True{tanh})",
        "model.eval()",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
        *timm.computing(exported),
    ]
    text = [*code_block("python", *lines)]
    if exported.has_tanh_gelu:
        text += [
            "",
            "The weights were trained with the tanh form of GELU. timm 1.0.31 takes it as an argument only, not from "
            "`config.json`. Without it, logits differ by 7e-5 of the largest.",
        ]
    else:
        text += ["", f"The model computes GELU as timm does, exactly; {timm.UNKNOWN_GELU}."]
    return [*text, "", timm.FURTHER_TRAINING]


def files_in(folder: epath.Path) -> list[str]:
    """Returns the sorted names of what a folder holds, but not those that begin with a dot; none if it is not there."""
    try:
        return sorted(name for name in _names(folder) if name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []


def _names(folder: epath.Path) -> set[str]:
    """Returns what a folder holds."""
    if bucket.is_remote(folder):
        folders, found = bucket.children(folder)
        return {*folders, *found}
    return {path.name for path in pathlib.Path(folder).iterdir()}
