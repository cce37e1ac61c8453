"""The datasets prepared by this project itself; those that need no download are made when first asked for.

Each is an ordinary TFDS dataset once it is prepared: `tfds.builder(name, data_dir=...)` reads it from its
files, with or without these modules.
"""

import contextlib
import fcntl
import io
import pathlib
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds

from mixer.data import records
from mixer.data.datasets import base
from mixer.data.datasets.digits import Digits
from mixer.data.datasets.fractals import Fractals
from mixer.runtime.errors import UserError

EMBEDDED: dict[str, type[base.Builder]] = {"digits": Digits, "fractals": Fractals}


def is_embedded(name: str) -> bool:
    """Whether `name`, as in "fractals/64x200x32" or "digits", can be made without a download."""
    return name.partition("/")[0] in EMBEDDED


def prepare_embedded(name: str, data_dir: str) -> None:
    """Makes an embedded dataset below `data_dir` unless it is there already, whole.

    Of several processes on a machine one makes it and the others wait.

    Raises:
        UserError: there is no such dataset, the config in its name has another form, or it is the digits and there is
            no scikit-learn.
    """
    dataset, _, config = name.partition("/")
    if dataset not in EMBEDDED:
        raise UserError(f"{name!r} is no embedded dataset; those are {', '.join(EMBEDDED)}")
    try:
        builder = EMBEDDED[dataset](config=config or None, data_dir=data_dir)
        if builder.is_prepared():  # without the lock: the folder may be one that cannot be written to
            return
        tfds.disable_progress_bar()
        with _alone(data_dir, dataset), contextlib.redirect_stderr(io.StringIO()):  # seconds, nothing to report
            prepare(builder)
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from None


def prepare(builder: base.Builder) -> None:
    """Builds the dataset and its index unless it is there; the folder gets its name only when it is whole."""
    if builder.is_prepared():
        return
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints its progress there, beside what a command answers
        builder.download_and_prepare()
    records.write_index(str(builder.data_dir))


@contextlib.contextmanager
def _alone(data_dir: str, dataset: str) -> Iterator[None]:
    """Holds a lock among the processes that see this folder; none where it is in a bucket."""
    if "://" in data_dir:
        yield
        return
    folder = pathlib.Path(data_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{dataset}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed when the file is closed, also by a crash
        yield
