"""The format of PyTorch's timm: a `safetensors` file with PyTorch's names and axes. Needs neither torch nor timm."""

import io
import json
import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from mixer import models
from mixer.data.pixels import crops, permutation
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime.errors import UserError, first_line
from mixer.transfer.format import Exported, Format, code_block, quoted
from mixer.transfer.wrappers import without_wrappers

# Our names of modules, and timm's. Those in `_BLOCK_MODULES` follow the name of their block.
_MODULES = {"stem": "stem.proj", "pre_head_layer_norm": "norm", "head": "head"}
_BLOCK_MODULES = {
    "LayerNorm_0": "norm1",
    "token_mixing/Dense_0": "mlp_tokens.fc1",
    "token_mixing/Dense_1": "mlp_tokens.fc2",
    "LayerNorm_1": "norm2",
    "channel_mixing/Dense_0": "mlp_channels.fc1",
    "channel_mixing/Dense_1": "mlp_channels.fc2",
}
_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in (("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", jnp.bfloat16))
}
_NAMES_KEY, _CARRIED_KEY = "class_names", "settings"  # of the metadata
_BLOCK = re.compile(r"(?:MixerBlock_|blocks\.)(\d+)[/.](.+)")


def load_params(file: io.BufferedIOBase, source: str) -> Any:
    """Reads parameters from the `safetensors` file of one of timm's `mixer_*` models.

    Args:
      file: open for reading.
      source: its name, for messages.

    Returns:
      Nested float32 arrays under the names of the published checkpoints.

    Raises:
      UserError: it is not such a file.
    """
    try:
        tensors = safetensors.deserialize(file.read())  # safetensors.numpy.load cannot read bfloat16
    except safetensors.SafetensorError as error:
        raise UserError(f"{source} cannot be read as safetensors: {first_line(error)}") from None
    params = {}
    for name, tensor in without_wrappers(dict(tensors)).items():
        module, _, leaf = name.rpartition(".")
        ours = _our_module(module)
        if ours is None or leaf not in ("weight", "bias"):
            raise UserError(
                f"{source} is not a timm mixer_* model: it has {name!r}; such a model has "
                "stem.proj, blocks.0.norm1, blocks.0.mlp_tokens.fc1, ..., norm and head"
            )
        array = _array(f"{source}: {name}", tensor)
        if leaf == "bias":
            params[f"{ours}/bias"] = array
        elif array.ndim == 1:
            params[f"{ours}/scale"] = array
        else:  # PyTorch's axes: outputs, inputs, height, width
            params[f"{ours}/kernel"] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return traverse_util.unflatten_dict(params, sep="/")


def _array(name: str, tensor: dict[str, Any]) -> np.ndarray:
    """Returns a tensor of a `safetensors` file as a float32 array."""
    if tensor["dtype"] not in _DTYPES:
        raise UserError(f"{name} is {tensor['dtype']}; expected one of {', '.join(_DTYPES)}")
    try:
        return np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"]).astype(np.float32)
    except ValueError as error:  # safetensors allows shapes that NumPy refuses: a hundred axes, or no data
        raise UserError(f"{name} has a shape that no array can have: {first_line(error)}") from None


def load_class_names(file: io.BufferedIOBase) -> list[str] | None:
    """Reads the names of the classes from the file's metadata; None if it has none."""
    names = _metadata(file, _NAMES_KEY)
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def _metadata(file: io.BufferedIOBase, key: str) -> Any:
    """Returns an entry of the file's metadata that is JSON; None if there is none."""
    file.seek(0)
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))  # by the definition of the format
    try:
        return json.loads((header.get("__metadata__") or {}).get(key, "null"))
    except (ValueError, RecursionError):  # another program's entry
        return None


def save_params(
    file: io.BufferedIOBase,
    params: Any,
    class_names: list[str] | None = None,
    carried: dict[str, Any] | None = None,
) -> None:
    """Writes parameters as the state dict of timm's model. Names of classes and settings become metadata: JSON."""
    tensors = {}
    for name, array in traverse_util.flatten_dict(params, sep="/").items():
        module, leaf = name.rsplit("/", 1)
        if leaf == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        tensors[f"{_their_module(module)}.{'bias' if leaf == 'bias' else 'weight'}"] = np.ascontiguousarray(array)
    more = {_NAMES_KEY: class_names, _CARRIED_KEY: carried}
    known = {key: json.dumps(value) for key, value in more.items() if value is not None}
    file.write(safetensors.numpy.save(tensors, metadata={"format": "pt", **known}))


def constructor(model: MlpMixer, image_size: int) -> str:
    """Returns the Python expression that makes this model in timm."""
    variant = models.name_of(model).removeprefix("Mixer-")
    if variant in _NAMED and image_size == 224 and model == models.create(variant, model.num_classes):
        name = f"mixer_{variant.lower().replace('/', '')}_224"
        return f'timm.create_model("{name}", num_classes={model.num_classes})'
    ratios = ", ".join(_ratio(dim, model.hidden_dim) for dim in (model.tokens_mlp_dim, model.channels_mlp_dim))
    return (
        f"timm.models.mlp_mixer.MlpMixer(num_classes={model.num_classes}, img_size={image_size}, "
        f"patch_size={model.patch_size}, num_blocks={model.num_blocks}, embed_dim={model.hidden_dim}, "
        f"mlp_ratio=({ratios}))"
    )


def architecture(model: MlpMixer, image_size: int) -> tuple[str, dict[str, Any]]:
    """Returns timm's name of this model, and the arguments with which it is made; both can be written as JSON.

    Raises:
      UserError: timm has no model of these widths by name.
    """
    variant = models.name_of(model).removeprefix("Mixer-")
    if variant not in _NAMED or model.channels_mlp_dim != models.create(variant, 0).channels_mlp_dim:
        raise UserError(
            f"timm has no name for Mixer-{variant}, only for {', '.join(_NAMED)}: export a .safetensors file"
        )
    arguments: dict[str, Any] = {} if image_size == 224 else {"img_size": image_size}
    if model.tokens_mlp_dim != models.create(variant, 0).tokens_mlp_dim:
        dims = (model.tokens_mlp_dim, model.channels_mlp_dim)
        arguments["mlp_ratio"] = [float(_ratio(dim, model.hidden_dim)) for dim in dims]
    return f"mixer_{variant.lower().replace('/', '')}_224", arguments


# The filters of `crops.EVAL_CROPS`, and Pillow's that come closest, by timm's names.
_INTERPOLATIONS = {"area": "box", "bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest"}


def data_config(exported: Exported) -> dict[str, Any]:
    """Returns what timm's transforms need to prepare pictures as nearly as this project does as they can.

    timm cannot permute pixels (`input.permutation`).

    Raises:
      UserError: timm has no such method of resizing.
    """
    crop, size = crops.EVAL_CROPS[exported.images.eval_crop], exported.image_size
    if crop.method not in _INTERPOLATIONS:
        raise UserError(f"timm cannot resize by {crop.method} (input.eval_crop={exported.images.eval_crop})")
    return {
        "input_size": [3, size, size],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": _INTERPOLATIONS[crop.method],
        "crop_pct": _crop_pct(size, crops.eval_resize(exported.images)),
        "crop_mode": "center" if crop.keeps_aspect else "squash",
    }


def _crop_pct(size: int, resize: int) -> float:
    """Returns the share of a picture's side that is cropped, from which timm computes `resize`: floor(size / share)."""
    share = size / resize
    return share if math.floor(size / share) == resize else size / (resize + 0.5)


# For both cards: that of a file, and that of a folder.
FURTHER_TRAINING = (
    "To train it further: timm 1.0.31 drops branches with the probability `drop_path_rate` in every block. Here the "
    "probability grows from 0 in the first block to the given stochastic depth in the last. So the same number drops "
    "twice as much in timm: half of it has the same mean."
)

UNKNOWN_GELU = "which form these weights were trained with is unknown"

_NAMED = ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16")  # the variants that have a name in timm


def _ratio(dim: int, hidden_dim: int) -> str:
    """Returns a ratio from which timm computes `dim` again, as int(ratio * hidden_dim)."""
    ratio = dim / hidden_dim
    return repr(ratio if int(ratio * hidden_dim) == dim else (dim + 0.5) / hidden_dim)


def _our_module(module: str) -> str | None:
    """Returns our name of timm's module; None if a Mixer has no such module."""
    if block := _BLOCK.fullmatch(module):
        inside = {theirs: ours for ours, theirs in _BLOCK_MODULES.items()}.get(block[2])
        return f"MixerBlock_{block[1]}/{inside}" if inside else None
    return {theirs: ours for ours, theirs in _MODULES.items()}.get(module)


def _their_module(module: str) -> str:
    if block := _BLOCK.fullmatch(module):
        return f"blocks.{block[1]}.{_BLOCK_MODULES[block[2]]}"
    return _MODULES[module]


def _loading(exported: Exported, file: str) -> list[str]:
    model_of = constructor(exported.model, exported.image_size)
    if model_of.startswith("timm.create_model("):  # which loads the file itself, and as strictly as load_state_dict
        lines = ["import timm", "", f"model = {model_of.removesuffix(')')}, checkpoint_path={quoted(file)})"]
    else:
        lines = [
            "import timm",
            "from safetensors.torch import load_file",
            "",
            f"model = {model_of}",
            f"model.load_state_dict(load_file({quoted(file)}))",
        ]
    gelu = "these weights were trained with the tanh form"
    if not exported.has_tanh_gelu:
        gelu = UNKNOWN_GELU
    permuted = permutation.described(exported.images)
    return [
        *code_block("python", "import torch", *lines, *_settings(exported), "model.eval()", *computing(exported)),
        "",
        "`pretrained_cfg` is for `timm.data.resolve_model_data_config(model)`, from which "
        "`timm.data.create_transform` prepares pictures nearly as above"
        f"{', but does not permute their pixels' * bool(permuted)}. Without it, timm takes 224 pixels and, for a model "
        "without a name in timm, ImageNet's mean.",
        "",
        "Normalise images with mean 0.5 and standard deviation 0.5 in each channel, which brings 0..1 to [-1, 1].",
        "",
        f"timm computes GELU exactly by default; {gelu}. To have the tanh form, as this project does, give the model "
        "one more argument, after `import functools`:",
        "",
        *code_block("python", 'act_layer=functools.partial(torch.nn.GELU, approximate="tanh")'),
        "",
        "With the tanh form and random weights, logits differed from those of this project by at most 6e-7 of the "
        "largest logit (the tests allow 5e-6), and by 7e-5 with the exact form.",
        "",
        FURTHER_TRAINING,
    ]


def _settings(exported: Exported) -> list[str]:
    """Returns code that sets what timm's transforms read."""
    return [
        "model.pretrained_cfg = {",
        *(f"    {json.dumps(name)}: {json.dumps(value)}," for name, value in data_config(exported).items()),
        "}",
    ]


def computing(exported: Exported) -> list[str]:
    """Returns code that computes `logits` and `probabilities` of `images`."""
    if not exported.probabilities:
        return []
    call = "softmax(-1)" if exported.probabilities == "softmax" else f"{exported.probabilities}()"
    return [
        "with torch.no_grad():",
        "    logits = model(torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1)",
        f"probabilities = logits.{call}.numpy()",
    ]


FORMAT = Format(
    suffix=".safetensors",
    described="PyTorch's `timm`, `.safetensors`",
    input="float32 [batch, 3, {size}, {size}] in [-1, 1], which is uint8 / 127.5 - 1, {cut}",
    save=lambda file, exported: save_params(file, exported.params, exported.class_names, exported.carried),
    loading=_loading,
    computes=True,
    load=load_params,
    load_class_names=load_class_names,
    load_carried=lambda file: _metadata(file, _CARRIED_KEY),
)
