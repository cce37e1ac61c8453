import io
import os

import numpy as np
import pytest
from making import broken_huffman_table, encode, photo, wrong_checksum
from PIL import Image

from mixer.data.datasets import archives, checked_images
from mixer.data.folders import image_files
from mixer.data.pixels import images
from mixer.data.pixels.image_status import BAD_RECORD, EMPTY, OK, TOO_LARGE, TRUNCATED, UNDECODABLE, UNKNOWN_FORMAT

MAX_PIXELS = 10_000
JPEG, PNG = encode(photo(40, 50), "JPEG"), encode(photo(40, 50), "PNG")


def written(path, data):
    path.write_bytes(data)
    return checked_images.File(str(path), 0, len(data), "")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (JPEG[:-300], TRUNCATED),
        (b"", EMPTY),
        (b"hello", UNKNOWN_FORMAT),
        (broken_huffman_table(JPEG), UNDECODABLE),
        (wrong_checksum(PNG), UNDECODABLE),
        (encode(photo(101, 100), "JPEG"), TOO_LARGE),
    ],
)
def test_what_is_wrong_is_found_by_decoding(tmp_path, data, status):
    files = [written(tmp_path / "a.jpg", JPEG), written(tmp_path / "b.jpg", data), written(tmp_path / "c.png", PNG)]
    good, bad, after = checked_images.read(files, MAX_PIXELS)
    assert bad == (b"", status)
    assert (good, after) == ((JPEG, OK), (PNG, OK))


def test_a_file_that_cannot_be_read_or_is_far_too_large(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(archives.MAX_IMAGE_BYTES + 1)

    def file_bytes(path, old=image_files.file_bytes):
        assert "huge" not in path, "it is read for nothing"
        return old(path)

    monkeypatch.setattr(image_files, "file_bytes", file_bytes)
    files = [
        checked_images.File(str(tmp_path / "pipe.jpg"), 0, 0, ""),
        checked_images.File(str(tmp_path / "huge.jpg"), 0, archives.MAX_IMAGE_BYTES + 1, ""),
        checked_images.File(str(tmp_path / "none.jpg"), 0, 0, ""),
    ]
    assert [found.status for found in checked_images.read(files, MAX_PIXELS)] == [BAD_RECORD, TOO_LARGE, BAD_RECORD]


@pytest.mark.parametrize("file_format", ["WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_become_a_png_of_the_pixels_that_training_sees(tmp_path, file_format):
    data = encode(photo(30, 20), file_format)
    ((image, status),) = checked_images.read([written(tmp_path / "a", data)], MAX_PIXELS)
    assert status == OK
    assert Image.open(io.BytesIO(image)).format == "PNG"
    seen = images.inspect(data, MAX_PIXELS)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(image))).reshape(-1), np.frombuffer(seen.data, np.uint8)
    )


def test_jpegs_and_pngs_that_pillow_decodes_stay_as_they_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(photo(30, 20), "JPEG", exif=exif)
    cmyk = encode(Image.fromarray(photo(30, 20)).convert("CMYK"), "JPEG")
    deep = encode(Image.fromarray(np.arange(0, 60_000, 100, np.uint16).reshape(30, 20)), "PNG")
    files = [written(tmp_path / str(n), data) for n, data in enumerate((turned, cmyk, deep))]
    assert list(checked_images.read(files, MAX_PIXELS)) == [(turned, OK), (cmyk, OK), (deep, OK)]


def test_few_files_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(checked_images, "_GROUP_BYTES", 3 * len(JPEG))
    files = [written(tmp_path / f"{n}.jpg", JPEG) for n in range(30)]
    read = []
    monkeypatch.setattr(
        image_files, "file_bytes", lambda path, old=image_files.file_bytes: read.append(path) or old(path)
    )
    for used, found in enumerate(checked_images.read(files, MAX_PIXELS)):
        assert found == (JPEG, OK)
        assert len(read) <= used + 2 * 3
    assert read == [file.path for file in files]


def test_no_files():
    assert list(checked_images.read([], MAX_PIXELS)) == []
