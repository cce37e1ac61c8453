"""Reads records of local ArrayRecord files."""

import concurrent.futures
from collections.abc import Sequence

from array_record.python import array_record_module

from mixer.data.records.shards import ReadStretches, Records, Stretch
from mixer.runtime.errors import UserError

_OPENED = 32  # files that are opened at a time to see how many records they have


def check_counts(paths: Sequence[str], counts: Sequence[int]) -> None:
    """Checks that each file has this many records. A file that is cut short opens as one without records."""
    with concurrent.futures.ThreadPoolExecutor(_OPENED) as pool:
        for path, found, count in zip(paths, pool.map(_count, paths), counts, strict=True):
            if found != count:
                fault = "it was cut short" if found < count else "it is of another dataset than dataset_info.json"
                raise UserError(
                    f"{path} holds {found} records where {count} are expected: {fault}; copy or prepare it again"
                )


def _count(path: str) -> int:
    return int(_open(path).num_records())


def _open(path: str) -> array_record_module.ArrayRecordReader:
    return array_record_module.ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def reader(paths: list[str]) -> ReadStretches:
    """Returns the function that reads stretches of records from these local files."""
    readers: dict[int, array_record_module.ArrayRecordReader] = {}

    def read_stretch(stretch: Stretch) -> Records:
        shard, first, count = stretch
        if shard not in readers:
            readers[shard] = _open(paths[shard])
        try:
            return list(readers[shard].read(first, first + count))
        except (IndexError, RuntimeError, ValueError):  # a record is damaged: find out which one
            if count == 1:
                return [None]
            return [record for i in range(count) for record in read_stretch((shard, first + i, 1))]

    return lambda stretches: [read_stretch(stretch) for stretch in stretches]
