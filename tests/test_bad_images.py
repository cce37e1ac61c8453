"""Images as people have them. Training and evaluation use each file, or count it as unusable."""

import io
import pathlib
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_run import command, run, tiny

from mixer import train
from mixer.runtime.errors import UserError
from mixer.training.metrics import read_metrics


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def header_of_a_bomb() -> bytes:
    """Returns a PNG whose header says that it has 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def zoo() -> dict[str, bytes]:
    """Returns sixteen files by name. An unusable file has the name of its status."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    jpeg, grey = encoded(picture, "JPEG"), encoded(picture.convert("L"), "JPEG")
    table = jpeg.index(b"\xff\xc4") + 5
    frames = [Image.fromarray(np.roll(pixels, shift, 0)) for shift in (0, 9)]
    good = {
        "colour.jpg": jpeg,
        "progressive.jpeg": encoded(picture, "JPEG", progressive=True),
        "grey.jpg": grey[:-2] + b"\x11" * 29 + grey[-2:],  # libjpeg warns of the bytes and skips them
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "sixteen_bits.png": encoded(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG"),
        "palette.png": encoded(picture.convert("P"), "PNG"),
        "transparent.png": encoded(picture.convert("RGBA"), "PNG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "a_png_named.jpg": encoded(picture, "PNG"),
        "a_jpeg_named.png": jpeg,
    }
    bad = {
        "empty.jpg": b"",
        "unknown_format.jpg": b"not a picture",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "undecodable.jpg": jpeg[:table] + b"\xff" * 16 + jpeg[table + 16 :],
        "too_large.png": header_of_a_bomb(),
    }
    return good | bad


BAD = ("empty", "unknown_format", "truncated", "undecodable", "too_large")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder of two classes, with the same sixteen files in training and validation."""
    root = tmp_path_factory.mktemp("zoo")
    for split in ("train", "validation"):
        for i, (name, data) in enumerate(zoo().items()):
            path = root / split / ("cat", "dog")[i % 2] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


# A batch is an epoch: each step reads each file once.
SETTINGS = {"input.dataset": "folder", "total_steps": 3, "eval_steps": 3, "input.crop": "random"}


def test_every_file_is_used_or_counted(folder, tmp_path):
    done = run(command(str(folder), tmp_path, **SETTINGS, **{"input.max_bad_share": 0.5}))
    assert done.returncode == 0, done.stderr
    for line in read_metrics(tmp_path):
        counted = {name: count for name, count in line.items() if name.startswith("train/bad_images/")}
        assert counted == {f"train/bad_images/{kind}": line["step"] for kind in BAD}
    counted = {name: count for name, count in line.items() if name.startswith("val/bad_images/")}
    assert counted == {f"val/bad_images/{kind}": 1 for kind in BAD}
    assert (line["val/count"], line["val/unreadable"]) == (11, 5)
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("images that could not be used: ")]
    assert said == (
        "images that could not be used: in training, as often as met, "
        "3 empty, 3 unknown_format, 3 truncated, 3 undecodable, "
        "3 too_large; in the last evaluation 1 empty, 1 unknown_format, 1 truncated, 1 undecodable, 1 too_large"
    )
    named = [line for line in done.stderr.splitlines() if " cannot be used: " in line]
    assert len(named) == 2 * len(BAD)  # in three epochs
    assert any(f"{folder}/train/" in line and line.endswith("cannot be used: truncated") for line in named)
    assert named[-1].endswith("; no more are named")
    pattern = r"(?m)^libjpeg warned of (\d+) decoded images: .*extraneous bytes before marker \((\d+)\)"
    warned = re.search(pattern, done.stderr)
    assert int(warned[1]) >= int(warned[2]) >= 4  # in three steps and an evaluation
    assert "JPEG data" not in done.stderr


def test_too_many_unusable_images_stop_the_run_in_training_and_in_evaluation(folder, tmp_path):
    strict = {
        **SETTINGS,
        "input.max_bad_share": 0.004,
    }  # of at least a thousand images, so four are allowed
    with pytest.raises(UserError, match=r"^31.25% of 16 images cannot be used \(1 empty, .*more than .*=0.40%: mend"):
        train.train(tiny(str(folder), **strict), tmp_path / "run")
    shutil.copytree(folder, tmp_path / "data")
    for path in (tmp_path / "data" / "train").rglob("*"):
        if path.stem in BAD:
            shutil.copy(folder / "train" / "cat" / "colour.jpg", path)
    with pytest.raises(UserError, match=r"^31.25% of 16 images cannot be used \(1 empty"):
        train.train(tiny(str(tmp_path / "data"), **strict), tmp_path / "other")
    lines = read_metrics(tmp_path / "other")  # the evaluation was at step 3, and what was learned until then is kept
    assert [(line["step"], "val/count" in line) for line in lines] == [(1, False), (2, False), (3, False)]
