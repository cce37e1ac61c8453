"""Opens the data that a config names, with the reader for its kind."""

from collections.abc import Callable

import ml_collections
from etils import epath

from mixer.data import folder, tfds_dataset
from mixer.data.sources import Source

Reader = Callable[[ml_collections.ConfigDict, str, epath.PathLike], Source]

# By `config.input.dataset`, up to its first slash. Every other name is a TFDS dataset's.
READERS: dict[str, Reader] = {"folder": folder.open_split}


def open_source(config: ml_collections.ConfigDict, split: str, cache_dir: epath.PathLike) -> Source:
    """Opens a split of the dataset that `config.input` names.

    Args:
      config: `config.input`.
      split: in the notation of the dataset's reader.
      cache_dir: keeps what has to be made for the dataset, such as an index.

    Raises:
      MissingDataError: the dataset is not there.
      UserError: it is not as it should be.
    """
    reader = READERS.get(config.dataset.partition("/")[0], tfds_dataset.open_split)
    return reader(config, split, cache_dir)
