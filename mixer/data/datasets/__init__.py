"""Datasets that this project prepares itself. The embedded ones need no download and are made when first opened.

A prepared dataset is an ordinary TFDS dataset: `tfds.builder(name, data_dir=...)` reads it from its files, with or
without this project.
"""

import contextlib
import io
import sys

import tensorflow_datasets as tfds

from mixer.data.datasets import base, dataset_files
from mixer.data.datasets.digits import Digits
from mixer.data.datasets.fractals import Fractals
from mixer.data.datasets.leaves import Leaves
from mixer.data.records import records
from mixer.runtime.errors import UserError

EMBEDDED: dict[str, type[base.Builder]] = {"digits": Digits, "fractals": Fractals, "leaves": Leaves}


def is_embedded(name: str) -> bool:
    """Returns whether `name`, such as "fractals/64x200x32" or "digits", is an embedded dataset."""
    return name.partition("/")[0] in EMBEDDED


def prepare_embedded(name: str, data_dir: str) -> None:
    """Makes an embedded dataset below `data_dir`, unless it is there and whole.

    If several processes of a machine call this, one makes the dataset and the others wait.

    Raises:
      UserError: there is no such dataset, its config has another form, or scikit-learn is missing for the digits.
    """
    dataset, _, config = name.partition("/")
    if dataset not in EMBEDDED:
        raise UserError(f"{name!r} is not an embedded dataset; use one of {', '.join(EMBEDDED)}")
    try:
        builder = EMBEDDED[dataset](config=config or None, data_dir=data_dir)
        if builder.is_prepared():  # before the lock, because the folder may be read-only
            return
        tfds.disable_progress_bar()
        with dataset_files.lock(data_dir, dataset), contextlib.redirect_stderr(io.StringIO()):
            prepare(builder)  # takes seconds: no progress needed
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from None


def prepare(builder: base.Builder) -> None:
    """Builds a dataset, unless it is there, and its index. The folder gets its name when all but the index is there."""
    if not builder.is_prepared():
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for a command's answer, not for TFDS' progress
            builder.download_and_prepare()
    if not records.has_index(str(builder.data_dir)):
        records.write_index(str(builder.data_dir))
