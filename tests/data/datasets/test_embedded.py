import threading

import pytest
import tensorflow_datasets as tfds

from mixer.data import datasets
from mixer.data.datasets import dataset_files
from mixer.data.records import records
from mixer.runtime.errors import UserError


def test_is_embedded():
    assert datasets.is_embedded("digits")
    assert datasets.is_embedded("fractals/64x200x32")
    assert datasets.is_embedded("leaves")
    assert not datasets.is_embedded("imagenet2012")
    assert not datasets.is_embedded("fractals_of_mine/1")


def test_prepares_once_and_writes_the_index(tmp_path, monkeypatch):
    indexed, write_index = [], records.write_index

    def noted(folder):
        indexed.append(folder)
        write_index(folder)

    monkeypatch.setattr(records, "write_index", noted)
    threads = [
        threading.Thread(target=datasets.prepare_embedded, args=("fractals/2x4x8", str(tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert indexed == [str(tmp_path / "fractals/2x4x8/1.0.0")]
    assert tfds.builder("fractals/2x4x8", data_dir=tmp_path).info.splits["train"].num_examples == 6


def test_default_configs_are_found_by_the_bare_name(tmp_path):
    datasets.prepare_embedded("digits", str(tmp_path))
    assert (tmp_path / "digits/32/1.0.0").is_dir()
    assert tfds.builder("digits", data_dir=tmp_path).info.features["image"].shape == (32, 32, 3)


def test_a_prepared_dataset_may_be_in_a_read_only_folder(tmp_path, monkeypatch):
    datasets.prepare_embedded("fractals/2x4x8", str(tmp_path))

    def refuse(*_):
        raise OSError("read-only file system")

    monkeypatch.setattr(dataset_files.fcntl, "flock", refuse)
    datasets.prepare_embedded("fractals/2x4x8", str(tmp_path))
    with pytest.raises(OSError, match="read-only"):
        datasets.prepare_embedded("fractals/3x4x8", str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "fractals/x", "leaves/3x40x16", "digits/a/b", ""])
def test_wrong_names_are_named(tmp_path, name):
    with pytest.raises(UserError, match=name or "not an embedded dataset"):
        datasets.prepare_embedded(name, str(tmp_path))
    assert not list(tmp_path.iterdir())
