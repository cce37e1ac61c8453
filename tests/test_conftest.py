"""What tests/conftest.py holds for all tests."""

import pytest

from scripts import preflight_table


def test_a_lazily_imported_module_cannot_be_patched(monkeypatch):
    with pytest.raises(AssertionError, match="import the module itself"):
        monkeypatch.setattr(preflight_table.tpu_topology, "libtpu_version", lambda: "1")
