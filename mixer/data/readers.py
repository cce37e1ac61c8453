"""The registry of readers: opens the dataset that a config names.

To add a reader, write a function of (`config.input`, split, cache_dir) that returns a `Source`, and put it into
`READERS` under the name that configs use.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import ml_collections
from etils import epath, epy

from mixer.data.folders import folder
from mixer.data.sources import Source
from mixer.runtime import bucket, bucket_check
from mixer.runtime.errors import UserError

with epy.lazy_imports():  # it imports TensorFlow, which class folders do without
    from mixer.data.records import tfds_dataset

Reader = Callable[[ml_collections.ConfigDict, str, epath.PathLike], Source]

# The key is `config.input.dataset` up to its first slash. Every other name is the name of a TFDS dataset.
READERS: dict[str, Reader] = {"folder": folder.open_split}


def open_source(config: ml_collections.ConfigDict, split: str, cache_dir: epath.PathLike) -> Source:
    """Opens a split of the dataset that `config.input` names.

    Args:
      config: `config.input`.
      split: in the notation of the dataset's reader.
      cache_dir: folder for files that the reader makes and keeps, such as an index.

    Raises:
      MissingDataError: the dataset is not there.
      UserError: the dataset or the split cannot be used, or its place not be read.
    """
    reader = READERS.get(config.dataset.partition("/")[0]) or tfds_dataset.open_split
    name = f"{config.dataset} {split}"
    data_dir = str(config.data_dir or "")
    remote = bucket.is_remote(data_dir)
    if remote:
        bucket_check.check(data_dir)
    try:
        with bucket.as_os_errors(data_dir) if remote else contextlib.nullcontext():
            return dataclasses.replace(reader(config, split, cache_dir), name=name)
    except OSError as error:
        raise UserError(
            f"config.input.data_dir={data_dir}: {error.filename or data_dir or 'a file'} cannot be read or written "
            f"({error.strerror or error}); {'see to the bucket' if remote else 'make it possible'}, then give the same "
            "command again"
        ) from None
