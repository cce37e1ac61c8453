"""Folders of the Hugging Face Hub: a `config.json`, as in a run's folder, and the weights beside it."""

import pathlib

from etils import epath

from mixer.runtime import bucket
from mixer.runtime.errors import UserError, first_line

_FILE = "model.safetensors"
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
    if _FILE in names:
        return str(folder / _FILE)
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise UserError(
            f"{source} holds no {_FILE}; {', '.join(pickles)} may hold pickles, which are never loaded: get the model "
            "in the safetensors format"
        )
    return None


def _names(folder: epath.Path) -> set[str]:
    """Returns what a folder holds."""
    if bucket.is_remote(folder):
        folders, found = bucket.children(folder)
        return {*folders, *found}
    return {path.name for path in pathlib.Path(folder).iterdir()}
