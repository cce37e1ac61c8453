"""Fingerprints: the same data have the same wherever they lie, and what is added, renamed or replaced shows."""

import os
import pathlib
import shutil
import time

import pytest
from PIL import Image

from mixer.config import recipe
from mixer.data import datasets, fingerprint, readers
from mixer.data.folders import folder


def make(root: pathlib.Path) -> pathlib.Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name / f"{number}.png")
    return root


def of_folder(root: pathlib.Path, split: str = "train") -> dict[str, str]:
    config = recipe.base().input
    config.dataset, config.data_dir = "folder", str(root)
    return dict(readers.open_source(config, split, root).fingerprint)


def grow(root):
    with (root / "cat" / "3.png").open("ab") as file:
        file.write(b"0")


CHANGES = {
    "file names": lambda root: (root / "cat" / "1.png").rename(root / "cat" / "1a.png"),
    "file sizes": grow,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_that_is_moved_is_the_same_and_one_that_is_changed_is_not(tmp_path, what):
    before = of_folder(make(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two")
    assert of_folder(tmp_path / "elsewhere" / "two") == before
    assert before.keys() == {"file names", "file sizes"}
    CHANGES[what](tmp_path / "one")
    after = of_folder(tmp_path / "one")
    assert {name for name in before if before[name] != after[name]} == {what}


def test_an_image_more_shows_and_so_does_the_split(tmp_path):
    root = make(tmp_path / "one")
    before = of_folder(root)
    assert before != of_folder(root, "validation")
    shutil.copy(root / "cat" / "1.png", root / "cat" / "7.png")
    assert of_folder(root)["file names"] != before["file names"]


def test_a_bucket_tells_names_alone_and_they_are_those_of_the_disk(bucket_here, tmp_path):
    before = of_folder(make(tmp_path / "one"))
    bucket_here.upload(tmp_path / "one", "pictures")
    config = recipe.base().input
    config.dataset, config.data_dir = "folder", bucket_here.path("pictures")
    assert folder.open_split(config, "train", tmp_path).fingerprint == {"file names": before["file names"]}


def test_names_that_are_not_utf_8_and_files_that_are_gone_are_no_matter(tmp_path):
    name = os.fsdecode(b"/cat/\xff.png")
    assert fingerprint.of_files(str(tmp_path), [f"{tmp_path}{name}"]).keys() == {"file names", "file sizes"}


def test_where_a_part_ends_counts():
    assert fingerprint.digest([b"ab", b"c"]) != fingerprint.digest([b"a", b"bc"])


def of_dataset(data_dir, name="fractals/4x20x16", split="train"):
    config = recipe.base().input
    config.dataset, config.data_dir = name, str(data_dir)
    return dict(readers.open_source(config, split, data_dir).fingerprint)


def test_a_prepared_dataset_is_known_by_its_own_list(tmp_path):
    for place in ("one", "two"):
        datasets.prepare_embedded("fractals/4x20x16", str(tmp_path / place))
    found = of_dataset(tmp_path / "one")
    assert found.keys() == {"list of records"}
    assert found == of_dataset(tmp_path / "two")
    assert found != of_dataset(tmp_path / "one", split="train[:50%]")
    assert found != of_dataset(tmp_path / "one", split="validation")
    datasets.prepare_embedded("fractals/4x21x16", str(tmp_path / "one"))
    assert found != of_dataset(tmp_path / "one", "fractals/4x21x16")


def test_a_million_names_take_a_second_or_a_few():
    """So eleven million take some seconds: the work grows with the number of names, and no faster."""
    paths = [f"/data/train/n{number % 21841:08d}/n{number % 21841:08d}_{number}.JPEG" for number in range(1_000_000)]
    began = time.monotonic()
    fingerprint.of_files("/data/train", paths)
    assert time.monotonic() - began < 10


def test_of_many_files_those_that_are_looked_at_are_spread_over_all(monkeypatch):
    monkeypatch.setattr(fingerprint, "_SIZED", 3)
    assert fingerprint._spread(list("abcdefg")) == ["a", "d", "g"]
    assert fingerprint._spread(list("ab")) == ["a", "b"]
