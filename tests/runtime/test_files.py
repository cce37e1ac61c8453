"""Small files are there whole or not at all."""

import pytest
from etils import epath

from mixer.runtime.files import write_text


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "config.json"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [found.name for found in path.parent.iterdir()] == ["config.json"]

    def half(self, text):
        with open(self, "w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "three")
    assert path.read_text() == "two"
