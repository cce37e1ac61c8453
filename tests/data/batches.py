"""Batches for tests of the pipeline: made, joined and compared; and images that cannot be used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from making import (
    BATCH,
    broken_huffman_table,
    encode,
    photo,
    wrong_checksum,
)

from mixer.data import pipeline
from mixer.data.pixels import image_status
from mixer.data.pixels.image_status import STATUSES
from mixer.data.sources import Example, Source

KEYS = {"image", "labels", "weight", "status"}


def host_rows(hosts: int) -> list[slice]:
    return [slice(BATCH // hosts * host, BATCH // hosts * (host + 1)) for host in range(hosts)]


def train(
    source: Source, config: Any, steps: range, rows: slice = slice(0, BATCH), seed: int = 5
) -> list[pipeline.Batch]:
    batches = pipeline.train_batches(source, config, seed=seed, batch_size=BATCH, rows=rows, steps=steps)
    return [{key: value.copy() for key, value in batch.items()} for batch in batches]


def assert_same(found: Sequence[pipeline.Batch], expected: Sequence[pipeline.Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == KEYS
        for key in KEYS:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)
            assert one[key].dtype == other[key].dtype


def joined(parts: Sequence[Sequence[pipeline.Batch]]) -> list[pipeline.Batch]:
    """Returns the global batches, given the shares of all hosts."""
    return [{key: np.concatenate([part[key] for part in step]) for key in KEYS} for step in zip(*parts, strict=True)]


JPEG_FILE, PNG_FILE = encode(photo(20, 30), "JPEG"), encode(photo(20, 30))
BAD = {
    "no record": (None, "bad_record"),
    "no bytes": (b"", "empty"),
    "zeros": (b"\0" * 100, "unknown_format"),
    "truncated JPEG": (JPEG_FILE[:-100], "truncated"),
    "too large": (encode(np.zeros((1001, 1000), np.uint8)), "too_large"),
    "broken Huffman table": (broken_huffman_table(JPEG_FILE), "undecodable"),
    "wrong checksum": (wrong_checksum(PNG_FILE), "undecodable"),
}


def with_bad(examples: Sequence[Example], bad: dict[int, str]) -> list[Example]:
    return [Example(BAD[bad[n]][0], example.labels) if n in bad else example for n, example in enumerate(examples)]


def assert_same_but(found: Sequence[pipeline.Batch], expected: Sequence[pipeline.Batch], statuses: np.ndarray) -> None:
    """Checks that rows with status 0 (int [steps, rows]) are equal, and that all others are those of bad images."""
    for batch, whole, status in zip(found, expected, statuses, strict=True):
        np.testing.assert_array_equal(batch["status"], status)
        good = status == image_status.OK
        np.testing.assert_array_equal(batch["weight"], np.where(good, whole["weight"], 0))
        for key in ("image", "labels"):
            np.testing.assert_array_equal(batch[key][good], whole[key][good])
        assert (batch["labels"][~good] == -1).all()


def statuses_of(bad: dict[int, str], numbers: np.ndarray) -> np.ndarray:
    codes = {n: STATUSES.index(BAD[name][1]) for n, name in bad.items()}
    return np.array([[codes.get(int(n), image_status.OK) for n in row] for row in numbers])
