"""A long listing is kept for the next start, and whatever has changed since is listed anew."""

import errno
import hashlib
import os
import pathlib
import time

import numpy as np
import pytest
from making import all_of, input_config

from mixer.data.folders import folder_layout, listing
from mixer.data.readers import open_source
from mixer.data.sources import Source
from mixer.runtime.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch) -> pathlib.Path:
    """Three classes of a few empty files, whose listing counts as long and as settled."""
    monkeypatch.setattr(listing, "_KEPT_FROM", 20)
    monkeypatch.setattr(listing, "_SETTLED", -1)
    for name in ("cat", "dog", "k\udcf6ter"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "own" / name / f"{number}.jpg").write_bytes(f"{name}{number}".encode(errors="replace"))
    (tmp_path / "own" / "cat" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "own" / "cat" / "deep" / "er" / "x.jpg").touch()
    (tmp_path / "own" / "cat" / "x.txt").touch()
    return tmp_path / "own"


def opened(root: pathlib.Path, split: str = "train") -> Source:
    return open_source(input_config(dataset="folder", data_dir=str(root)), split, root.parent / "cache")


@pytest.fixture
def listed(monkeypatch) -> list[str]:
    """The folders that are listed, by name."""
    names: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: names.append(os.path.basename(path)) or scandir(path))
    return names


def test_a_kept_listing_gives_the_same_and_lists_nothing(root, listed):
    before = {split: opened(root, split) for split in ("train", "validation", "all")}
    assert len(list((root.parent / "cache").iterdir())) == 1
    listed.clear()
    for split, found in before.items():
        again = opened(root, split)
        assert all_of(again) == all_of(found)
        assert (again.class_names, again.fingerprint) == (found.class_names, found.fingerprint)
        assert again.report[-1].startswith("  31 names are from the listing of an earlier start")
        assert "1 image in folders within class folders" in again.report[2 if split == "all" else 3]
        assert "1 .txt" in again.report[3 if split == "all" else 4]
    assert listed == []


@pytest.mark.parametrize("name", ["dog", "cat/deep"])
def test_a_folder_that_cannot_be_listed_is_no_empty_one(root, monkeypatch, name):
    """Else a class would be missing, and the classes after it have other numbers."""
    scandir = os.scandir

    def refuse(path):
        if path == str(root / name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=rf"/{name} cannot be listed \(Permission denied\): see to its permissions"):
        opened(root)


def test_what_a_file_system_keeps_for_itself_is_no_class(root, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    (root / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert tuple(opened(root).class_names) == ("cat", "dog", "k\\xf6ter")


def test_what_lies_behind_two_slashes_in_a_bucket_is_left_out():
    found = listing._contents(["", "cat", ".git"], ["x.jpg"])
    assert (found.folders, found.hidden) == (("cat",), 2)


CHANGES = {
    "added": lambda root: (root / "dog" / "new.jpg").touch(),
    "deleted": lambda root: (root / "dog" / "3.jpg").unlink(),
    "renamed": lambda root: (root / "dog" / "3.jpg").rename(root / "dog" / "3a.jpg"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_has_changed_is_listed_anew(root, listed, change):
    opened(root)
    times = (root / "dog").stat().st_atime_ns, (root / "dog").stat().st_mtime_ns
    CHANGES[change](root)
    os.utime(root / "dog", ns=times)  # as rsync sets it
    listed.clear()
    found = opened(root, "all")
    assert listed == ["dog"]
    listed.clear()
    assert all_of(opened(root, "all")) == all_of(found)
    assert listed == []
    assert all_of(open_source(input_config(dataset="folder", data_dir=str(root)), "all", root / "no")) == all_of(found)


def test_a_class_that_takes_the_place_of_another_is_seen(root):
    opened(root)
    for old, new in (("cat", "tmp"), ("dog", "cat"), ("tmp", "dog")):
        (root / old).rename(root / new)
    images = [image for image, labels in all_of(opened(root, "all")) if labels == (0,)]
    assert sorted(images) == [f"dog{number}".encode() for number in range(10)]


def test_a_folder_that_has_just_changed_is_not_trusted(root, listed, monkeypatch):
    monkeypatch.setattr(listing, "_SETTLED", 10**12)
    opened(root)
    listed.clear()
    opened(root)
    assert {"cat", "dog"} <= set(listed)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8, b"\2\0\0\0\0\0\0\0[]", None])
def test_a_damaged_listing_is_made_again(root, listed, damage):
    before = opened(root)
    (file,) = (root.parent / "cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if damage is None else damage)
    listed.clear()
    assert all_of(opened(root)) == all_of(before)
    assert "cat" in listed
    assert file.read_bytes() == whole


def test_a_short_listing_and_one_that_cannot_be_kept(root, monkeypatch):
    (root.parent / "cache").write_text("no folder")
    assert opened(root).num_examples == 27
    (root.parent / "cache").unlink()
    monkeypatch.setattr(listing, "_KEPT_FROM", 32)
    opened(root)
    assert not (root.parent / "cache").exists()


def test_a_buckets_listing_is_not_kept(bucket_here, root):
    (root / "k\udcf6ter").rename(root / "koeter")
    bucket_here.upload(root, "own")
    config = input_config(dataset="folder", data_dir=bucket_here.path("own"))
    found = open_source(config, "all", root.parent / "cache")
    assert found.num_examples == 30
    assert found.report[-2:] == [line for line in opened(root, "all").report if "left out" in line]
    (root.parent / "cache" / "x").parent.mkdir(exist_ok=True)
    assert len(list((root.parent / "cache").iterdir())) == 1  # of the local folder


def test_the_hash_of_a_name_decides_its_split(root):
    """The rule of the first release: what was kept for validation then is kept now."""
    layout = folder_layout.find(root, 0.3)
    for part in layout.parts["validation"]:
        names = [f"{number}.jpg" for number in range(10)]
        expected = sorted(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:3])
        assert [os.path.basename(path) for path in part.paths()] == expected


def test_opening_again_is_faster_than_listing(tmp_path):
    """12,000 names within a second of one core; it takes a tenth of that, and eleven million some seconds."""
    for number in range(60):
        (tmp_path / "own" / f"{number}").mkdir(parents=True)
        for image in range(200):
            (tmp_path / "own" / f"{number}" / f"n{number:08d}_{image}.JPEG").touch()
    time.sleep(2.1)  # until the folders count as settled
    config = input_config(dataset="folder", data_dir=str(tmp_path / "own"))
    open_source(config, "train", tmp_path / "cache")
    began = time.process_time()
    layout = folder_layout.find(tmp_path / "own", 0.1, tmp_path / "cache")
    assert sum(part.num_images for part in layout.parts["train"]) == 10_800
    assert layout.found.kept == 12_000
    assert time.process_time() - began < 1
    assert np.all(np.diff([part.label for part in layout.parts["train"]]) == 1)
