"""A file is written whole or not at all."""

import pathlib

import pytest
from etils import epath

from mixer.runtime.files import write_text, written_whole


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_text_replaces_the_one_before(tmp_path):
    path = tmp_path / "config.json"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert names(tmp_path) == ["config.json"]


def test_until_the_end_the_old_file_stands_under_its_name(tmp_path):
    path = epath.Path(tmp_path) / "weights.npz"
    path.write_bytes(b"old")
    with written_whole(path) as partial:
        partial.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        with written_whole(path) as other:  # another process that writes the same file
            assert other != partial
            other.write_bytes(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["weights.npz"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_write_leaves_the_old_file_and_no_partial(tmp_path, exists):
    path = tmp_path / "weights.npz"
    if exists:
        path.write_bytes(b"old")

    def write():
        with written_whole(path) as partial:
            partial.write_bytes(b"ne")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert names(tmp_path) == (["weights.npz"] if exists else [])
    assert not exists or path.read_bytes() == b"old"


def test_a_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(IsADirectoryError, match=str(tmp_path)), written_whole(tmp_path):
        pytest.fail("the work has begun")
    assert list(tmp_path.iterdir()) == []


def test_a_text_of_which_half_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_text(path, "old")

    def half(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "three")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["config.json"]
