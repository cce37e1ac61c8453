"""Each picture is in its place, with its caption below."""

import math

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from PIL import Image

from mixer.data import contact_sheet

NAMES = ["ant", "bee", "cat"]


def sheet_of(tmp_path, pictures, targets=None, statuses=None) -> np.ndarray:
    path = epath.Path(tmp_path / "sheet.png")
    count = len(pictures)
    targets = np.eye(3, dtype=np.float32)[np.arange(count) % 3] if targets is None else targets
    contact_sheet.write_sheet(path, pictures, targets, NAMES, statuses or ["ok"] * count)
    return np.asarray(Image.open(path))


def cells(sheet: np.ndarray, count: int, side: int) -> list[np.ndarray]:
    columns = math.ceil(math.sqrt(count))
    height, width = sheet.shape[0] // math.ceil(count / columns), sheet.shape[1] // columns
    assert height > side + 20  # room for two lines
    return [sheet[i // columns * height :][:height, i % columns * width :][:, :width] for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_every_picture_is_shown_as_it_is(tmp_path, count):
    levels = np.random.default_rng(0).integers(0, 256, (count, 160, 160, 3))
    sheet = sheet_of(tmp_path, (levels / 127.5 - 1).astype(np.float32))
    for cell, expected in zip(cells(sheet, count, 160), levels, strict=True):
        np.testing.assert_array_equal(cell[:160, :160], expected)
        assert (cell[160:] < 128).any()  # the caption


def test_small_pictures_are_enlarged(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3))
    sheet = sheet_of(tmp_path, (levels / 127.5 - 1).astype(np.float32))
    for cell, expected in zip(cells(sheet, 4, 128), levels, strict=True):
        np.testing.assert_array_equal(cell[:128:4, :128:4], expected)
        np.testing.assert_array_equal(cell[3:128:4, 3:128:4], expected)


def test_at_most_64_images_are_shown(tmp_path):
    pictures = np.zeros((100, 128, 128, 3), np.float32)
    assert sheet_of(tmp_path, pictures).shape == sheet_of(tmp_path, pictures[:64]).shape


def test_bfloat16_is_accepted(tmp_path):
    levels = np.arange(128 * 128).reshape(128, 128)[None, :, :, None] % 256 * np.ones(3)
    pictures = (levels / 127.5 - 1).astype(ml_dtypes.bfloat16)
    (cell,) = cells(sheet_of(tmp_path, pictures), 1, 128)
    assert np.abs(cell[:128, :128] - levels[0]).max() <= 1


def test_values_out_of_range_are_clipped(tmp_path):
    pictures = np.stack([np.full((128, 128, 3), value, np.float32) for value in (-3, 3)])
    dark, bright = cells(sheet_of(tmp_path, pictures), 2, 128)
    assert (dark[:128, :128] == 0).all()
    assert (bright[:128, :128] == 255).all()


@pytest.mark.parametrize(
    ("target", "status", "caption"),
    [
        ([0, 1, 0], "ok", ["bee"]),
        ([0.3, 0, 0.7], "ok", ["0.70 cat", "0.30 ant"]),
        ([1, 0, 1], "ok", ["ant", "cat"]),
        ([0.2, 0.3, 0.5], "ok", ["0.50 cat", "0.30 bee"]),
        ([0, 0, 0], "ok", []),
        ([0, 0, 0], "truncated", ["(truncated)"]),
    ],
)
def test_captions(target, status, caption):
    assert contact_sheet._caption(np.array(target, np.float32), NAMES, status) == caption


def test_a_long_name_stays_in_its_cell(tmp_path):
    pictures = np.zeros((2, 128, 128, 3), np.float32)
    path = epath.Path(tmp_path / "sheet.png")
    targets = np.eye(2, dtype=np.float32)
    contact_sheet.write_sheet(path, pictures, targets, ["w" * 200, "x"], ["ok", "ok"])
    long = np.asarray(Image.open(path))
    contact_sheet.write_sheet(path, pictures, targets, ["a", "x"], ["ok", "ok"])
    short = np.asarray(Image.open(path))
    np.testing.assert_array_equal(long[:, 132:], short[:, 132:])
    assert (long[:, :132] != short[:, :132]).any()
