"""Reads weights: from a run's folder, a file in one of the formats, or a folder of the Hugging Face Hub."""

import contextlib
import io
import pathlib
import urllib.error
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from mixer.config import recipe, run_folder
from mixer.config.settings import SETTINGS
from mixer.data import class_names
from mixer.runtime import bucket, bucket_check, files
from mixer.runtime.errors import UserError, first_line
from mixer.training import checkpoint_reader, history
from mixer.transfer import hub, published
from mixer.transfer.download import downloaded
from mixer.transfer.format import CARRIED, Format
from mixer.transfer.formats import FORMATS
from mixer.transfer.weights import Weights

_WEB = ("https://", "http://")


def load(source: str, ema: bool = False) -> Weights:
    """Reads the weights of a model.

    Args:
      source: a run's folder, for its newest checkpoint; one of its checkpoints/STEP; a file in one of the `formats`
        that can be read, such as `.npz`, at a local path, gs:// or https://; a folder of the Hugging Face Hub with
        such a file; or the name of a published checkpoint, such as B/16-i21k.
      ema: read the averaged parameters of a run.

    Raises:
      UserError: `source` is none of these, cannot be read, or has values that are not finite.
    """
    folder = _folder(source)
    within = hub.weights_file(folder, source) if folder else None
    if folder and within is None:
        return _finite(_load_run(folder, source, ema))
    if ema:
        raise UserError(f"{source} is not the folder of a run: it has no averaged parameters")
    location = within or published.PUBLISHED.get(source, source)
    _check_there(location, source)
    readable = {form.suffix: form for form in FORMATS.values() if form.load is not None}
    suffix = pathlib.PurePath(location).suffix
    if suffix not in readable:
        raise UserError(
            f"{source}: expected a run's folder or a file that ends in {' or '.join(readable)}, not "
            f"{suffix or 'this'!r} (files that hold pickles, such as .pth and .bin, are never loaded)"
        )
    with _opened(location) as file:
        weights = _load_file(file, within or source, readable[suffix])
    return _finite(hub.completed(weights, folder) if folder else weights)


def held(source: str) -> str:
    """Returns in words what there is at a source of `load`, without reading it.

    Raises:
      UserError: it cannot be looked at.
    """
    if (folder := _folder(source)) is not None:
        return f"checkpoints of the steps {checkpoint_reader.steps_of(run_folder.of_checkpoint(folder)[0])}"
    return "nothing" if not source.startswith(_WEB) and not files.exists(files.expanded(source)) else "a file"


def _folder(source: str) -> epath.Path | None:
    """Returns the path if it is a folder, else None."""
    if source.startswith(_WEB):
        return None
    bucket_check.check(source)
    path = epath.Path(source) if bucket.is_remote(source) else epath.Path(source).expanduser()
    try:
        return path if files.is_folder(path) else None
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read ({first_line(error)})") from None


def _check_there(location: str, source: str) -> None:
    """Checks that a file is there, if it is not one of the web.

    Raises:
      UserError: it is not; says what is there instead.
    """
    if location.startswith(_WEB):
        return
    path = epath.Path(location) if bucket.is_remote(location) else epath.Path(location).expanduser()
    if files.exists(path):
        return
    run, step = run_folder.of_checkpoint(path)
    if step is not None and (steps := checkpoint_reader.steps_of(run)):
        there = ", ".join(map(str, sorted(steps)))
        raise UserError(f"{source!r}: the run has no checkpoint of step {step}; those of steps {there} are kept")
    raise UserError(f"{source!r}: no such file or folder; {published.suggestion(source)}")


def _load_run(path: epath.Path, source: str, ema: bool) -> Weights:
    path, step = run_folder.of_checkpoint(path)
    step, params = checkpoint_reader.load_params(path, ema, step)
    names = history.class_names(path, step)
    classes = len(params["head"]["bias"]) if "head" in params else 0
    if names is not None and classes not in (0, len(names)):
        raise UserError(
            f"classes.txt of {path} has {len(names):,} names, the model {classes:,} classes: give one name a line"
        )
    return Weights(
        params=jax.tree.map(np.asarray, params),
        source=source,
        config=run_folder.load_config(path),
        class_names=names,
        step=step,
        workdir=path,
        averaged=ema,
    )


def _load_file(file: io.BufferedIOBase, source: str, form: Format) -> Weights:
    assert form.load is not None
    params = form.load(file, source)
    carried = form.load_carried(file) if form.load_carried else None
    names = form.load_class_names(file) if form.load_class_names else None
    if source in published.PUBLISHED and "head" in params:
        names = class_names.published(len(params["head"]["bias"]))
    return Weights(params, source, class_names=_fitting(names, params), carried=_checked(carried))


def _fitting(names: list[str] | None, params: Any) -> list[str] | None:
    """Returns the names of classes if they are as many as the head has; somebody may have given it another."""
    biases = traverse_util.flatten_dict(params, sep="/").get("head/bias")
    return names if names is not None and biases is not None and biases.shape == (len(names),) else None


def _checked(carried: Any) -> dict[str, Any] | None:
    """Returns the settings that a file carries; None if they are not all that this version knows and allows."""
    try:
        for name in CARRIED:
            SETTINGS[name].check(name, carried[name])
        settings = {name: carried[name] for name in CARRIED}
        recipe.base().update_from_flattened_dict(settings)  # raises TypeError for another type
    except (UserError, KeyError, TypeError):
        return None
    return settings


def _finite(weights: Weights) -> Weights:
    """Returns the weights.

    Raises:
      UserError: some are NaN or infinite; names the first array.
    """
    for name, array in traverse_util.flatten_dict(weights.params, sep="/").items():
        if wrong := int(np.size(array) - np.isfinite(array).sum()):
            raise UserError(
                f"{weights.source}: {wrong:,} of the {np.size(array):,} values of {name} are not finite (NaN or "
                "infinite): nothing can be computed with them; give an earlier checkpoint or another file"
            )
    return weights


@contextlib.contextmanager
def _opened(location: str) -> Iterator[io.BufferedIOBase]:
    """Opens a file for reading. A file from the web is downloaded first."""
    try:
        if location.startswith(_WEB):
            file: io.BufferedIOBase = downloaded(location).open("rb")
        elif bucket.is_remote(location):
            file = io.BytesIO(files.read_bytes(location))
        else:
            file = pathlib.Path(location).expanduser().open("rb")
    except (OSError, ValueError) as error:
        unreached = isinstance(error, (urllib.error.URLError, ConnectionError))
        unreached &= not isinstance(error, urllib.error.HTTPError)  # a kind of URLError, but somebody answered
        instead = "; without a network, download it elsewhere and give the path of the file" if unreached else ""
        raise UserError(f"{location} cannot be read ({first_line(error)}){instead}") from None
    with file:
        yield file
