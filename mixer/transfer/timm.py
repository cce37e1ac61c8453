"""timm's format: a `safetensors` file with PyTorch's names and axes. Neither torch nor timm is needed here."""

import io
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from mixer import models
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime.errors import UserError, first_line

# Module by module, ours and timm's; a block's stand below its own name.
_MODULES = {"stem": "stem.proj", "pre_head_layer_norm": "norm", "head": "head"}
_BLOCK_MODULES = {
    "LayerNorm_0": "norm1",
    "token_mixing/Dense_0": "mlp_tokens.fc1",
    "token_mixing/Dense_1": "mlp_tokens.fc2",
    "LayerNorm_1": "norm2",
    "channel_mixing/Dense_0": "mlp_channels.fc1",
    "channel_mixing/Dense_1": "mlp_channels.fc2",
}
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16.dtype}
_BLOCK = re.compile(r"(?:MixerBlock_|blocks\.)(\d+)[/.](.+)")


def read(data: bytes, source: str) -> Any:
    """Reads parameters, nested, float32, from the bytes of a `safetensors` file of a `mixer_*` model.

    Args:
      data: the file's.
      source: its name, for the messages.

    Raises:
      UserError: it is no such file.
    """
    try:
        tensors = safetensors.deserialize(data)  # not safetensors.numpy.load, which does not know bfloat16
    except safetensors.SafetensorError as error:
        raise UserError(f"{source} cannot be read as safetensors: {first_line(error)}") from None
    params = {}
    for name, tensor in tensors:
        module, _, leaf = name.rpartition(".")
        ours = _our_module(module)
        if ours is None or leaf not in ("weight", "bias"):
            raise UserError(
                f"{source} is not a timm mixer_* model: it has {name!r}; such a model has "
                "stem.proj, blocks.0.norm1, blocks.0.mlp_tokens.fc1, ..., norm and head"
            )
        if tensor["dtype"] not in _DTYPES:
            raise UserError(f"{source}: {name} is {tensor['dtype']}; expected one of {', '.join(_DTYPES)}")
        try:
            array = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"]).astype(np.float32)
        except ValueError as error:  # safetensors allows shapes that NumPy does not, of a hundred axes or without data
            raise UserError(f"{source}: {name} has a shape that no array can have: {first_line(error)}") from None
        if leaf == "bias":
            params[f"{ours}/bias"] = array
        elif array.ndim == 1:
            params[f"{ours}/scale"] = array
        else:  # PyTorch's axes: outputs, inputs, height, width
            params[f"{ours}/kernel"] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return traverse_util.unflatten_dict(params, sep="/")


def write(file: io.BufferedIOBase, params: Any) -> None:
    """Writes parameters as the state of timm's model."""
    tensors = {}
    for name, array in traverse_util.flatten_dict(params, sep="/").items():
        module, leaf = name.rsplit("/", 1)
        if leaf == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        tensors[f"{_their_module(module)}.{'bias' if leaf == 'bias' else 'weight'}"] = np.ascontiguousarray(array)
    file.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))


def constructor(model: MlpMixer, image_size: int) -> str:
    """The Python expression that makes the model in timm which a file of these parameters fits."""
    variant = models.name_of(model)
    if variant in _NAMED and image_size == 224 and model == models.create(variant, model.num_classes):
        name = f"mixer_{variant.lower().replace('/', '')}_224"
        return f'timm.create_model("{name}", num_classes={model.num_classes})'
    ratios = ", ".join(_ratio(dim, model.hidden_dim) for dim in (model.tokens_mlp_dim, model.channels_mlp_dim))
    return (
        f"timm.models.mlp_mixer.MlpMixer(num_classes={model.num_classes}, img_size={image_size}, "
        f"patch_size={model.patch_size}, num_blocks={model.num_blocks}, embed_dim={model.hidden_dim}, "
        f"mlp_ratio=({ratios}))"
    )


_NAMED = ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16")  # the variants that timm has a name for


def _ratio(dim: int, hidden_dim: int) -> str:
    """A ratio that timm's int(ratio * hidden_dim) brings back to dim."""
    ratio = dim / hidden_dim
    return repr(ratio if int(ratio * hidden_dim) == dim else (dim + 0.5) / hidden_dim)


def _our_module(module: str) -> str | None:
    if block := _BLOCK.fullmatch(module):
        inside = {theirs: ours for ours, theirs in _BLOCK_MODULES.items()}.get(block[2])
        return f"MixerBlock_{block[1]}/{inside}" if inside else None
    return {theirs: ours for ours, theirs in _MODULES.items()}.get(module)


def _their_module(module: str) -> str:
    if block := _BLOCK.fullmatch(module):
        return f"blocks.{block[1]}.{_BLOCK_MODULES[block[2]]}"
    return _MODULES[module]
