"""The published checkpoints' format: an `.npz` of arrays named by their path, such as stem/kernel."""

import zipfile
from typing import Any, BinaryIO

import numpy as np
from flax import traverse_util

from mixer.errors import UserError, first_line


def read(file: BinaryIO, source: str) -> Any:
    """Reads parameters, nested, float32, from the names of the published files or their older internal layout.

    Args:
      file: opened for reading.
      source: its name, for the messages.

    Raises:
      UserError: it is not an `.npz` of floating-point arrays. Pickled objects are never loaded.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            flat = {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = "it is a pickle or no .npz at all, and pickles are never loaded" if "pickle" in str(error) else None
        raise UserError(f"{source} cannot be read: {reason or first_line(error)}") from None
    odd = [f"{name}: {array.dtype}" for name, array in flat.items() if not np.issubdtype(array.dtype, np.floating)]
    if odd or not flat:
        raise UserError(f"{source} is not a Mixer's parameters: {'; '.join(odd) or 'it is empty'}")
    flat = {_without_prefix(name): np.asarray(array, np.float32) for name, array in flat.items()}
    try:
        params = traverse_util.unflatten_dict(flat, sep="/")
    except TypeError:  # one name is the folder of another
        raise UserError(f"{source} is not a Mixer's parameters: {', '.join(sorted(flat)[:4])}, ...") from None
    return _renamed(params) if isinstance(params.get("Mixer"), dict) else params


def write(file: BinaryIO, params: Any) -> None:
    """Writes parameters under the names of the published checkpoints."""
    np.savez(file, **traverse_util.flatten_dict(params, sep="/"))


def _without_prefix(name: str) -> str:
    """big_vision writes parameters below params/, its early versions below opt/target/."""
    return name.removeprefix("params/").removeprefix("opt/target/")


# The older internal layout: what the parts of a model, and of a block, were called.
_OLDER_PARTS = {"embedding": "stem", "encoder_norm": "pre_head_layer_norm"}
_OLDER_MLPS = {"token_mixing_phase_0": "token_mixing", "channel_mixing_phase_0": "channel_mixing"}


def _renamed(older: Any) -> Any:
    """From the older internal names to the published ones; what is not known keeps its name."""
    parts = {**older, **older["Mixer"]}
    del parts["Mixer"]
    return {
        _OLDER_PARTS.get(name, name.replace("encoderblock_", "MixerBlock_")): _renamed_block(part)
        if name.startswith("encoderblock_")
        else part
        for name, part in parts.items()
    }


def _renamed_block(older: Any) -> Any:
    # Flax before Linen counted all parts of a block together, so the second norm need not be number 1.
    norms = sorted((name for name in older if name.startswith("LayerNorm_")), key=lambda name: int(name.split("_")[1]))
    block = {f"LayerNorm_{number}": older[name] for number, name in enumerate(norms)}
    for name, part in older.items():
        if name in _OLDER_MLPS:  # the kernels of its dense layers have axes of length one
            leaves = {leaf: array.squeeze() for leaf, array in part.items()}
            block[_OLDER_MLPS[name]] = {
                f"Dense_{number - 1}": {
                    leaf: leaves[f"{leaf}{number}"] for leaf in ("kernel", "bias") if f"{leaf}{number}" in leaves
                }
                for number in (1, 2)
            }
        elif name not in norms:
            block[name] = part
    return block
