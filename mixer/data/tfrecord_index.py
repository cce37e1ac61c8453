"""The index of TFRecord files: where each record starts, so that a record can be read by its number.

A TFRecord file has no index of its own. This one is made once, by reading the length before each record, and is saved
as a NumPy file. The file is memory-mapped, so opening it takes the same time for a thousand records and for 14 million.

Format of one record: uint64 length, uint32 checksum of the length, the data, uint32 checksum of the data. All numbers
are little-endian.
"""

import concurrent.futures
import logging
from collections.abc import Sequence

import numpy as np
from etils import epath

from mixer.runtime import files
from mixer.runtime.errors import UserError

_log = logging.getLogger(__name__)

HEADER, FOOTER = 12, 4  # bytes before and after a record's data
_REMOTE_READS = 32  # concurrent reads of a bucket, where each waits for the network


def file_name(split: str) -> str:
    """Returns the name of the index of a split, in the dataset's folder."""
    return f"index-{split}.npy"


def load_or_make(places: Sequence[epath.Path], paths: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """Loads the index of a split, or makes and saves it.

    Args:
      places: paths where the index may be. It is loaded from the first one that exists. If none does, it is made and
        saved at the first one that can be written.
      paths: the split's TFRecord files.
      counts: the number of records in each file.

    Returns:
      int64 [records + files]: for each file, the offset of each record in bytes, then the file's size.

    Raises:
      UserError: the index is damaged or belongs to other data, or a file does not have its number of records.
    """
    for place in places:
        if place.exists():
            offsets = _load(place)
            if offsets is None or offsets.shape != (sum(counts) + len(counts),):
                raise UserError(
                    f"{place} is not the index of its {sum(counts)} records: delete it, to have it made again"
                )
            return offsets
    _log.info("Indexing %d records in %d files, once.", sum(counts), len(paths))
    offsets = make(paths, counts)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save(place, offsets)
            break
        except OSError:  # such as a read-only folder or a full disk; without a saved index, the next run makes it again
            continue
    return offsets


def make(paths: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """Makes the index by reading the length of every record. See `load_or_make` for arguments, result and errors."""
    with concurrent.futures.ThreadPoolExecutor(_REMOTE_READS) as pool:
        return np.concatenate(list(pool.map(_file_offsets, paths, counts)))


def save(path: epath.Path, offsets: np.ndarray) -> None:
    """Saves the index whole or not at all. Several processes may save the same index.

    Raises:
      OSError: the file cannot be written.
    """
    with files.opened_to_write(path) as file:
        np.save(file, offsets)


def _load(path: epath.Path) -> np.ndarray | None:
    """Maps a local index into memory, or reads a remote one. Returns None if the file is damaged or is no index."""
    try:
        if "://" not in str(path):
            offsets: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # np.load would open archives too
        else:
            with path.open("rb") as file:
                offsets = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OverflowError):
        return None
    return offsets if offsets.dtype == np.int64 else None


def _file_offsets(path: str, count: int) -> np.ndarray:
    """Returns the offsets of a file's records, then its size: int64 [count + 1]."""
    offsets = np.zeros(count + 1, np.int64)
    size = epath.Path(path).stat().length
    at = 0
    with open(path, "rb", buffering=1 << 12) if "://" not in path else epath.Path(path).open("rb") as file:
        for record in range(count):
            offsets[record] = at
            file.seek(at)
            header = file.read(HEADER)
            at += HEADER + int.from_bytes(header[:8], "little") + FOOTER
            if len(header) < HEADER or at > size:
                raise UserError(
                    f"{path} ends within record {record} of {count}: it was cut short; copy or prepare it again"
                )
    if at != size:
        raise UserError(f"{path} holds more than the {count} records of its dataset_info.json; prepare it again")
    offsets[count] = size
    return offsets
