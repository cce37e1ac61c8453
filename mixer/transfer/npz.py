"""The published checkpoints' format: an `.npz` of arrays named by their path, such as stem/kernel."""

import io
import re
import zipfile
from typing import Any

import numpy as np
from flax import traverse_util

from mixer.runtime.errors import UserError, first_line

# Where big_vision has the parameters, and where its early versions had them; the optimizer's state may lie beside.
_PREFIXES = ("params/", "opt/target/")


def read(file: io.BufferedIOBase, source: str) -> Any:
    """Reads parameters, nested, float32, from the names of the published files or their older internal layout.

    Args:
      file: opened for reading.
      source: its name, for the messages.

    Raises:
      UserError: it is not an `.npz` of floating-point arrays, or would unpack to more than weights can. Pickled objects
        are never loaded.
    """
    try:
        packed = file.seek(0, io.SEEK_END)
        file.seek(0)
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        _check_unpacks(zipfile.ZipFile(file).infolist(), packed)
        prefix = next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in arrays.files)), "")
        wanted = [name for name in arrays.files if name.startswith(prefix)]
        flat = {name.removeprefix(prefix): np.asarray(arrays[name]) for name in wanted}  # of other files it has bytes
    except Exception as error:  # a damaged file raises whatever its damaged part meets
        reason = "it is a pickle or no .npz at all, and pickles are never loaded" if "pickle" in str(error) else None
        raise UserError(f"{source} cannot be read: {reason or first_line(error)}") from None
    odd = [f"{name}: {array.dtype}" for name, array in flat.items() if not np.issubdtype(array.dtype, np.floating)]
    if odd or not flat:
        raise UserError(f"{source} is not a Mixer's parameters: {'; '.join(odd) or 'it is empty'}")
    flat = {name: np.asarray(array, np.float32) for name, array in flat.items()}
    if any(name.startswith("Mixer/") for name in flat):
        flat = _renamed(flat)
    if folders := sorted(name for name in flat if any(other.startswith(f"{name}/") for other in flat)):
        raise UserError(f"{source} is not a Mixer's parameters: {', '.join(folders)} is an array and a folder")
    return traverse_util.unflatten_dict(flat, sep="/")


# Weights hardly compress; what an optimizer has not used yet, and a head of zeros, do. H/14 has 1.7 GB.
_ALWAYS_READ, _MOST_RATIO = 2 << 30, 10  # bytes unpacked; times the file's own


def _check_unpacks(members: list[zipfile.ZipInfo], packed: int) -> None:
    """Refuses a decompression bomb by what its list of contents says, beyond which `zipfile` unpacks nothing."""
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_ALWAYS_READ, _MOST_RATIO * packed):
        raise ValueError(
            f"its {packed:,} bytes would unpack to {unpacked:,}, where weights come to {_MOST_RATIO} times as many at "
            "most; use a file from another source"
        )
    for member in members:  # of the other methods zipfile unpacks without bounds
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{member.filename} is packed by method {member.compress_type} of zip, where NumPy uses "
                f"{zipfile.ZIP_STORED} and {zipfile.ZIP_DEFLATED}; save it with NumPy"
            )


def write(file: io.BufferedIOBase, params: Any) -> None:
    """Writes parameters under the names of the published checkpoints."""
    np.savez(file, **traverse_util.flatten_dict(params, sep="/"))


# The older internal layout: what the parts of a model were called, its MLPs' layers and its blocks' norms.
_OLDER_PARTS = {
    "Mixer/encoderblock_": "MixerBlock_",
    "Mixer/encoder_norm/": "pre_head_layer_norm/",
    "embedding/": "stem/",
}
_OLDER_DENSE = re.compile(r"(token|channel)_mixing_phase_0/(kernel|bias)([12])$")
_OLDER_NORM = re.compile(r"(MixerBlock_\d+/LayerNorm_)(\d+)(?=/)")


def _renamed(older: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From the older internal names to the published ones; what is not known keeps its name."""
    flat = {}
    for name, array in older.items():
        for old, new in _OLDER_PARTS.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        if _OLDER_DENSE.search(name):  # the kernels have axes of length one
            name = _OLDER_DENSE.sub(lambda m: f"{m[1]}_mixing/Dense_{int(m[3]) - 1}/{m[2]}", name)
            array = array.squeeze()
        flat[name] = array

    # Flax before Linen counted all parts of a block together, so the second norm need not be number 1.
    numbers: dict[str, set[int]] = {}
    for name in flat:
        if norm := _OLDER_NORM.match(name):
            numbers.setdefault(norm[1], set()).add(int(norm[2]))

    def counted(norm: re.Match[str]) -> str:
        return f"{norm[1]}{sorted(numbers[norm[1]]).index(int(norm[2]))}"

    return {_OLDER_NORM.sub(counted, name): array for name, array in flat.items()}
