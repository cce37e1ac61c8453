"""The format of the published checkpoints: an `.npz` file of arrays. Their names are paths, such as stem/kernel."""

import io
import json
import re
import shlex
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mixer import models
from mixer.runtime.errors import UserError, first_line
from mixer.transfer.format import Exported, Format, code_block, quoted
from mixer.transfer.wrappers import without_wrappers

# big_vision puts the parameters below the first, and its early versions below the second. The file may also hold the
# optimizer's state.
_PREFIXES = ("params/", "opt/target/")


def load_params(file: io.BufferedIOBase, source: str) -> Any:
    """Reads parameters with the names of the published files, or with their older internal names.

    Pickled objects are never loaded.

    Args:
      file: open for reading.
      source: its name, for messages.

    Returns:
      Nested float32 arrays under the published names.

    Raises:
      UserError: it is not an `.npz` file of floating-point arrays, or it would unpack to more bytes than weights have.
    """
    try:
        flat = _load_arrays(file)
    except Exception as error:  # a damaged file can raise almost any error: of zipfile, zlib or NumPy
        reason = "it is a pickle or no .npz at all, and pickles are never loaded" if "pickle" in str(error) else None
        raise UserError(f"{source} cannot be read: {reason or first_line(error)}") from None
    flat = {name: _readable(array) for name, array in without_wrappers(flat).items()}
    odd = [f"{name}: {array.dtype}" for name, array in flat.items() if not np.issubdtype(array.dtype, np.floating)]
    if odd or not flat:
        raise UserError(f"{source} is not a Mixer's parameters: {'; '.join(odd) or 'it is empty'}")
    flat = {name: np.asarray(array, np.float32) for name, array in flat.items()}
    if any(name.startswith("Mixer/") for name in flat):
        flat = _with_published_names(flat)
    if folders := sorted(name for name in flat if any(other.startswith(f"{name}/") for other in flat)):
        raise UserError(f"{source} is not a Mixer's parameters: {', '.join(folders)} is an array and a folder")
    return traverse_util.unflatten_dict(flat, sep="/")


def _load_arrays(file: io.BufferedIOBase) -> dict[str, np.ndarray]:
    """Reads the arrays of the model and leaves those of the optimizer."""
    packed = file.seek(0, io.SEEK_END)
    file.seek(0)
    arrays = np.load(file, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array")
    archive = zipfile.ZipFile(file)
    _check_unpacks(archive.infolist(), packed)
    for name in archive.namelist():
        if name.endswith(f"{_NAMED}.npy"):
            archive.read(name)  # a checksum is compared at a member's end, and NumPy does not read names after biases
    prefix = next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in arrays.files)), "")
    wanted = [name for name in arrays.files if name.startswith(prefix)]
    return {name.removeprefix(prefix): np.asarray(arrays[name]) for name in wanted}  # NumPy gives other files as bytes


def _readable(array: np.ndarray) -> np.ndarray:
    """Returns an array as it was saved: NumPy saves bfloat16 as two bytes without a type."""
    return array.view(jnp.bfloat16.dtype).astype(np.float32) if array.dtype == np.dtype("V2") else array


# Trained weights hardly compress. A head of zeros does, and so does the state of an optimizer that took few steps.
# H/14, the largest model of the paper, has 1.7 GB.
_ALWAYS_READ = 2 << 30  # bytes after unpacking
_MOST_RATIO = 10  # bytes after unpacking, for each byte of a larger file


def _check_unpacks(members: list[zipfile.ZipInfo], packed: int) -> None:
    """Refuses a decompression bomb before anything is unpacked.

    The sizes are those in the zip file's list of contents. They can be trusted: `zipfile` never unpacks more than they
    say.

    Args:
      members: the list of contents.
      packed: size of the file in bytes.

    Raises:
      ValueError: the file would unpack to too many bytes, or is packed in a way that NumPy does not use.
    """
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_ALWAYS_READ, _MOST_RATIO * packed):
        raise ValueError(
            f"its {packed:,} bytes would unpack to {unpacked:,}, but weights unpack to at most {_MOST_RATIO} times "
            "their size; use a file from another source"
        )
    for member in members:  # with other methods, zipfile may unpack more than the list of contents says
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{member.filename} is packed by method {member.compress_type} of zip, but NumPy uses only "
                f"{zipfile.ZIP_STORED} and {zipfile.ZIP_DEFLATED}; save it with NumPy"
            )


# The names of the classes follow the biases of the head in the same member: an array of strings after an array of
# numbers, as in a file to which `np.save` wrote twice. The run's settings follow as a third array, one string of JSON;
# where the names are unknown, the second is empty. A member of their own would be a parameter to big_vision, which
# refuses parameters that its model does not have.
_NAMED = "head/bias"


def save_params(
    file: io.BufferedIOBase,
    params: Any,
    class_names: list[str] | None = None,
    carried: dict[str, Any] | None = None,
) -> None:
    """Writes parameters under the names of the published checkpoints, the names of the classes, and settings."""
    texts = [] if class_names is None and carried is None else [np.asarray(class_names or [], np.str_)]
    texts += [] if carried is None else [np.asarray(json.dumps(carried))]
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in traverse_util.flatten_dict(params, sep="/").items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
                for text in texts if name == _NAMED else ():
                    np.lib.format.write_array(member, text, allow_pickle=False)


def load_class_names(file: io.BufferedIOBase) -> list[str] | None:
    """Reads the names of the classes; None if the file has none."""
    names = _following_biases(file, 1)
    return names.tolist() if names is not None and names.ndim == 1 and names.size else None


def load_carried(file: io.BufferedIOBase) -> Any:
    """Reads the settings that the file carries; None if it has none."""
    text = _following_biases(file, 2)
    try:
        return None if text is None or text.ndim else json.loads(text.item())
    except (ValueError, RecursionError):
        return None


def _following_biases(file: io.BufferedIOBase, place: int) -> np.ndarray | None:
    """Returns the array of strings that stands so many places after the biases of the head; None if there is none."""
    with zipfile.ZipFile(file) as archive:
        if f"{_NAMED}.npy" not in archive.namelist():
            return None
        with archive.open(f"{_NAMED}.npy") as member:
            try:
                for _ in range(place):
                    np.lib.format.read_array(member, allow_pickle=False)
                found: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
            except Exception:  # nothing follows, or what no version of this project wrote
                return None
    return found if found.dtype.kind == "U" else None


# Old and new names of modules, for the older internal layout.
_OLDER_MODULES = {
    "Mixer/encoderblock_": "MixerBlock_",
    "Mixer/encoder_norm/": "pre_head_layer_norm/",
    "embedding/": "stem/",
}
_OLDER_DENSE = re.compile(r"(token|channel)_mixing_phase_0/(kernel|bias)([12])$")
_OLDER_NORM = re.compile(r"(MixerBlock_\d+/LayerNorm_)(\d+)(?=/)")


def _with_published_names(older: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replaces the older internal names by the published ones. Keeps names that it does not know."""
    flat = {}
    for name, array in older.items():
        for old, new in _OLDER_MODULES.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        if _OLDER_DENSE.search(name):  # these kernels have extra axes of length one
            name = _OLDER_DENSE.sub(lambda m: f"{m[1]}_mixing/Dense_{int(m[3]) - 1}/{m[2]}", name)
            array = array.squeeze()
        flat[name] = array

    # Flax before Linen numbered all modules of a block together, so the second LayerNorm can have any number.
    numbers: dict[str, set[int]] = {}
    for name in flat:
        if norm := _OLDER_NORM.match(name):
            numbers.setdefault(norm[1], set()).add(int(norm[2]))

    def renumbered(norm: re.Match[str]) -> str:
        return f"{norm[1]}{sorted(numbers[norm[1]]).index(int(norm[2]))}"

    return {_OLDER_NORM.sub(renumbered, name): array for name, array in flat.items()}


def _loading(exported: Exported, file: str) -> list[str]:
    return [
        f"A run of this project can start from it, if its model is {models.name_of(exported.model)}:",
        "",
        *code_block("sh", f"python -m mixer.train --config CONFIG --config.init_from={shlex.quote(file)}"),
        "",
        "Its arrays have the names and axes of the published checkpoints. Code that reads those can read it:",
        "",
        *code_block("python", "import numpy", "", f'stem = numpy.load({quoted(file)})["stem/kernel"]'),
    ]


FORMAT = Format(
    suffix=".npz",
    described="the names and axes of the published MLP-Mixer checkpoints, `.npz`",
    input="float32 [batch, {size}, {size}, 3] in [-1, 1], which is uint8 / 127.5 - 1, {cut}",
    save=lambda file, exported: save_params(file, exported.params, exported.class_names, exported.carried),
    loading=_loading,
    load=load_params,
    load_class_names=load_class_names,
    load_carried=load_carried,
)
