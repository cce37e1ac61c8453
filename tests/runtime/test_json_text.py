"""What commands print and write is JSON for every reader, not for Python alone."""

import json
import math
import pathlib
import re

import pytest

from mixer.runtime import json_text

ROOT = pathlib.Path(__file__).resolve().parents[2]

# These write text, whole numbers and constants only.
MAY_USE_JSON = {
    "config/run_folder.py", "data/datasets/base.py", "data/datasets/class_folders.py", "data/folders/listing.py",
    "runtime/agreement.py", "runtime/json_text.py", "runtime/libjpeg_lines.py", "runtime/lock.py",
    "training/history.py", "training/integrity.py", "transfer/card_code.py", "transfer/format.py", "transfer/hub.py",
    "transfer/npz.py", "transfer/timm.py",
}  # fmt: skip


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        ({"a": math.inf, "b": [1.5, -math.inf, (math.nan, 2)]}, {"a": None, "b": [1.5, None, [None, 2]]}),
        ({"step": 3, "name": "NaN", "none": None, "yes": True}, {"step": 3, "name": "NaN", "none": None, "yes": True}),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_numbers_that_are_not_finite_are_null(value, expected, indent):
    assert json.loads(json_text.dumps(value, indent), parse_constant=refuse) == expected


def test_finite_numbers_keep_every_bit():
    values = [0.1 + 0.2, 1e-308, 5e-324, -0.0, 1.7976931348623157e308]
    assert [value.hex() for value in json.loads(json_text.dumps(values))] == [value.hex() for value in values]


def test_no_other_file_writes_json_that_may_hold_a_number():
    found = {
        path.relative_to(ROOT / "mixer").as_posix()
        for path in (ROOT / "mixer").rglob("*.py")
        if re.search(r"json\.dumps?\(", path.read_text())
    }
    assert found <= MAY_USE_JSON
