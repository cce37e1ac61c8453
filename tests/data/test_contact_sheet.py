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


def words(lines, more="", names=NAMES):
    """The strip below a picture of 128 pixels."""
    return np.asarray(contact_sheet._strip(128, lines, more))


@pytest.mark.parametrize(
    ("target", "more"), [([1, 1, 0, 0], ""), ([1, 1, 1, 0], "+1"), ([0.4, 0.3, 0.2, 0.1], "+2"), ([0, 0, 0, 0], "")]
)
def test_the_number_of_further_labels_is_said(tmp_path, target, more):
    assert contact_sheet._more(np.array(target, np.float32)) == more
    path = epath.Path(tmp_path / "sheet.png")
    names = ["w" * 60, "x" * 60, "c", "d"]
    contact_sheet.write_sheet(path, np.zeros((1, 128, 128, 3)), np.array([target], np.float32), names, ["ok"])
    drawn = np.asarray(Image.open(path))[128:-4, :128]
    lines = contact_sheet._caption(np.array(target, np.float32), names, "ok")
    np.testing.assert_array_equal(drawn, words(lines, more))
    assert (words(lines, more) != words(lines)).any() == bool(more)  # it is seen though the name is long


def test_wordnet_ids_are_shown_with_their_names(tmp_path):
    path, target = epath.Path(tmp_path / "sheet.png"), np.eye(1, dtype=np.float32)
    drawn = []
    for name in ("n01440764", "tench (n01440764)", "n00000000"):
        contact_sheet.write_sheet(path, np.zeros((1, 128, 128, 3)), target, [name], ["ok"])
        drawn.append(np.asarray(Image.open(path)))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


@pytest.fixture(params=[True, False], ids=["matplotlib", "no matplotlib"])
def fonts(request, monkeypatch):
    """The fonts of a machine with matplotlib and of one without."""
    if not request.param:
        monkeypatch.setattr(contact_sheet.importlib.util, "find_spec", lambda name: None)
    contact_sheet._fonts.cache_clear()
    assert len(contact_sheet._fonts()) == 1 + request.param
    yield contact_sheet._fonts()
    contact_sheet._fonts.cache_clear()


@pytest.mark.parametrize(
    "text", ["bee", "Möwe", "Mo\u0308we", "собака", "狗", "ñandú 狗", "a\tb", "½ ﬁsh", "\U0010ffff", ""]
)
def test_no_character_becomes_a_box(fonts, text):
    font, drawn = contact_sheet._drawable(text)
    box = font.getmask(contact_sheet._NOWHERE)
    for character in drawn:
        mask = font.getmask(character)
        assert (mask.size, bytes(mask)) != (box.size, bytes(box)), character


def test_missing_characters_lose_their_accents_or_become_code_points(fonts):
    rich = len(fonts) > 1
    assert contact_sheet._drawable("bee") == (fonts[0], "bee")
    assert contact_sheet._drawable("Möwe") == (fonts[-1], "Möwe" if rich else "Mowe")
    assert contact_sheet._drawable("Mo\u0308we")[1] in ("Mo\u0308we", "Mowe")
    assert contact_sheet._drawable("狗")[1] == " U+72D7 "
