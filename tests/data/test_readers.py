"""A config's data is opened by the reader that the config names."""

import numpy as np
from making import input_config

from mixer.data import readers
from mixer.data.records import tfds_dataset
from mixer.data.sources import Example, Source


def test_a_registered_reader_opens_the_datasets_of_its_name(tmp_path, monkeypatch):
    opened = []

    def open_shelf(config, split, cache_dir) -> Source:
        opened.append((config.dataset, split, cache_dir))
        return Source(2, ("a", "b"), 1, False, lambda numbers: [Example(b"", (int(n),)) for n in numbers])

    monkeypatch.setitem(readers.READERS, "shelf", open_shelf)
    source = readers.open_source(input_config(dataset="shelf/top"), "train", tmp_path)
    assert opened == [("shelf/top", "train", tmp_path)]
    assert source.fetch(np.array([1])) == [Example(b"", (1,))]


def test_only_the_part_before_the_slash_names_the_reader(tmp_path, monkeypatch):
    """Every other name is the name of a TFDS dataset."""
    opened = []

    def open_tfds(config, split, cache_dir) -> Source:
        opened.append(config.dataset)
        return Source(0, (), 1, False, lambda numbers: [])

    monkeypatch.setattr(tfds_dataset, "open_split", open_tfds)
    monkeypatch.setitem(readers.READERS, "shelf", None)
    for name in ("shelves", "cifar10", "fractals/3x4x8", "cifar10/shelf"):
        readers.open_source(input_config(dataset=name), "train", tmp_path)
    assert opened == ["shelves", "cifar10", "fractals/3x4x8", "cifar10/shelf"]
