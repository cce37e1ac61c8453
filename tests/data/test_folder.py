"""The reader for a folder of class folders: which files are images, and how they are divided into splits."""

import os
import pathlib

import pytest
from making import all_of, complaint, encode, input_config, photo

from mixer.data.folder import files_bytes
from mixer.data.readers import open_source
from mixer.data.sources import Source


def fill(root: pathlib.Path, counts: dict[str, int], seed: int = 0) -> None:
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / name / f"{name.rpartition('/')[2]}{seed}_{i}.png").write_bytes(encode(photo(3, 4, i)))


def open_folder(root: pathlib.Path, split: str, **fields) -> Source:
    return open_source(input_config(dataset="folder", data_dir=str(root), **fields), split, root / "cache")


def names_in(source: Source, root: pathlib.Path) -> set[tuple[str, str]]:
    """Returns (class, file name) of each example. Each file gets its own content first, which identifies it."""
    by_content = {}
    for path in root.rglob("*.png"):
        path.write_bytes(encode(photo(3, 4)) + path.name.encode())
        by_content[path.read_bytes()] = path.name
    return {(source.class_names[labels[0]], by_content[image]) for image, labels in all_of(source)}


def test_a_folder_of_class_folders_is_divided(tmp_path):
    fill(tmp_path, {"cat": 40, "dog": 20, "eel": 1, "fox": 2})
    train, validation = (open_folder(tmp_path, split) for split in ("train", "validation"))
    assert train.class_names == validation.class_names == ["cat", "dog", "eel", "fox"]
    seen, kept = names_in(train, tmp_path), names_in(validation, tmp_path)
    assert not seen & kept
    assert len(seen | kept) == 63
    assert all(file.startswith(name) for name, file in seen | kept)
    counts = {name: sum(1 for cls, _ in kept if cls == name) for name in train.class_names}
    assert counts == {"cat": 4, "dog": 2, "eel": 0, "fox": 1}
    assert all_of(open_folder(tmp_path, "train")) == all_of(train)


def test_a_new_image_moves_no_other_but_one_at_the_margin(tmp_path):
    fill(tmp_path, {"cat": 40, "dog": 20})
    before = names_in(open_folder(tmp_path, "validation"), tmp_path)
    for i in range(6):
        fill(tmp_path, {"cat": 1}, seed=i + 1)
        after = names_in(open_folder(tmp_path, "validation"), tmp_path)
        assert len(before - after) <= 1
        assert len(after - before) <= 1
        before = after


def test_the_share_of_validation(tmp_path):
    fill(tmp_path, {"cat": 40, "dog": 20})
    assert open_folder(tmp_path, "validation", validation_share=0.5).num_examples == 30
    assert open_folder(tmp_path, "train", validation_share=0.0).num_examples == 60
    said = complaint(tmp_path, "validation", dataset="folder", validation_share=0.0)
    assert "no images for split 'validation': set config.input.validation_share above zero" in said


@pytest.mark.parametrize("name", ["validation", "val", "test"])
def test_split_folders_are_taken_as_they_are(tmp_path, name):
    fill(tmp_path, {"train/cat": 5, "train/dog": 4, f"{name}/cat": 2, f"{name}/dog": 1, f"{name}/extra": 3})
    assert names_in(open_folder(tmp_path, "train"), tmp_path / "train") == {
        *(("cat", f"cat0_{i}.png") for i in range(5)),
        *(("dog", f"dog0_{i}.png") for i in range(4)),
    }
    validation = open_folder(tmp_path, "validation")
    assert validation.num_examples == 3
    assert [labels for _, labels in all_of(validation)] == [(0,), (0,), (1,)]


def test_a_train_folder_alone_is_divided(tmp_path):
    fill(tmp_path, {"train/cat": 10, "train/dog": 10})
    assert open_folder(tmp_path, "train").num_examples == 18
    validation = open_folder(tmp_path, "validation")
    assert validation.num_examples == 2
    assert None not in [image for image, _ in all_of(validation)]


def test_a_validation_folder_alone_is_left_aside(tmp_path):
    fill(tmp_path, {"cat": 10, "dog": 10, "val/cat": 3, "val/dog": 3})
    validation = open_folder(tmp_path, "validation")
    assert validation.class_names == ["cat", "dog"]
    assert validation.num_examples == 2
    assert None not in [image for image, _ in all_of(validation)]


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"car": 5, "train": 5, "test": 5})
    assert open_folder(tmp_path, "train").class_names == ["car", "test", "train"]


def test_hidden_and_other_files_do_not_count(tmp_path):
    fill(tmp_path, {"cat": 3, "dog": 3, ".git": 2, "cat/nested": 2, "empty": 0})
    for name in ("cat/._cat0_0.png", "cat/.hidden.jpg", "cat/notes.txt", "readme.md", "cat/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dog" / "LOUD.JPEG").write_bytes(b"y")
    source = open_folder(tmp_path, "train", validation_share=0.0)
    assert source.class_names == ["cat", "dog"]
    assert source.num_examples == 7


def test_a_wrong_ending_or_a_vanished_file_stops_nothing(tmp_path):
    fill(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "cat" / "cat0_0.png").write_bytes(encode(photo(5, 5), "JPEG"))
    source = open_folder(tmp_path, "train", validation_share=0.0)
    (tmp_path / "cat" / "cat0_1.png").unlink()
    images = [image for image, _ in all_of(source)]
    assert images[0] == encode(photo(5, 5), "JPEG")
    assert [image is None for image in images] == [False, True, False, False, False, False]


@pytest.mark.parametrize("path", ["nothing.png", "", "a\0b.png", "ftp://host/b.png"])
def test_a_file_that_cannot_be_read_is_none_after_any_exception(tmp_path, path):
    assert files_bytes([path if "://" in path else f"{tmp_path}/{path}"]) == [None]


def test_a_pipe_or_a_device_is_no_image_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    assert files_bytes([f"{tmp_path}/{name}.png" for name in ("pipe", "endless")]) == [None, None]


def test_folders_that_cannot_be_used(tmp_path):
    assert "is not a folder" in complaint(tmp_path / "nothing", dataset="folder")
    assert "is not a folder" in complaint(tmp_path, dataset="folder", data_dir=None)
    assert "holds 0 class folders" in complaint(tmp_path, dataset="folder")
    fill(tmp_path, {"cat": 3, "dog": 0})
    assert "holds 1 class folders" in complaint(tmp_path, dataset="folder")
    fill(tmp_path, {"dog": 1})
    assert "expected train or validation" in complaint(tmp_path, "test", dataset="folder")
