"""Evaluation images without TensorFlow are those of the pipeline, pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image

from mixer.config import recipe
from mixer.data import pipeline, plain_images
from mixer.data.pixels import crops, image_status
from mixer.data.sources import Example, Source

simplejpeg = pytest.importorskip("simplejpeg")


def encoded(pixels: np.ndarray, form: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, *channels), np.uint8)


def made() -> dict[str, bytes | None]:
    smooth = np.asarray(Image.fromarray(noise(9, 12, 3)).resize((97, 71), Image.Resampling.BICUBIC))
    jpeg = encoded(smooth, "JPEG")
    damaged = [bytearray(jpeg) for _ in range(6)]  # TensorFlow decodes some of them
    for number, data in enumerate(damaged):
        data[-10 - 40 * number : -8 - 40 * number] = bytes(2)
    png = bytearray(encoded(smooth, "PNG"))
    png[len(png) // 2] ^= 255
    return {
        **{f"jpeg {s}": encoded(smooth, "JPEG", subsampling=s, quality=40 + 25 * s) for s in (0, 1, 2)},
        "progressive": encoded(smooth, "JPEG", progressive=True, quality=75),
        "grey jpeg": encoded(smooth[..., 0], "JPEG"),
        "one pixel": encoded(noise(1, 1, 3), "JPEG"),
        "one line": encoded(noise(1, 300, 3), "PNG"),
        "one long line": encoded(noise(30_000, 1, 3), "PNG"),
        "small": encoded(noise(5, 7, 3), "PNG"),
        "grey png": encoded(noise(40, 31), "PNG"),
        "transparent png": encoded(noise(40, 40, 4), "PNG"),
        "of the very size": encoded(noise(32, 32, 3), "PNG"),
        "webp": encoded(smooth, "WEBP", lossless=True),
        "tiff of 16 bits": encoded(noise(50, 40).astype(np.uint16) * 257, "TIFF"),
        "bytes after the end": jpeg + b"some more",
        **{f"damaged jpeg {number}": bytes(data) for number, data in enumerate(damaged)},
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "damaged png": bytes(png),
        "no image": b"text",
        "empty": b"",
        "missing": None,
    }


def source_of(images: list[bytes | None]) -> Source:
    def fetch(numbers: np.ndarray) -> list[Example]:
        return [Example(images[n], (int(n) % 3,)) for n in numbers]

    return Source(len(images), ("a", "b", "c"), max_labels=1, multi_label=False, fetch=fetch)


def config_of(crop: str, size: int, **settings):
    config = recipe.base().input
    config.update({"eval_crop": crop, "image_size": size, **settings})
    return config


def check_same(source: Source, config, batch_size: int = 8, rows: slice = slice(None), records=None) -> list[dict]:
    arguments = {"batch_size": batch_size, "rows": rows, "records": records}
    plain = list(plain_images.eval_batches(source, config, **arguments))
    theirs = list(pipeline.eval_batches(source, config, **arguments))
    assert len(plain) == len(theirs)
    for ours, other in zip(plain, theirs, strict=True):
        assert ours.keys() == other.keys()
        for name in ours:
            assert ours[name].dtype == other[name].dtype
            np.testing.assert_array_equal(ours[name], other[name], name)
    return plain


@pytest.mark.parametrize("crop", ["resize_small", "resize_square"])
@pytest.mark.parametrize(("size", "resize"), [(32, None), (32, 32), (224, 256)])
def test_every_kind_of_image(crop, size, resize):
    images = made()
    batches = check_same(source_of(list(images.values())), config_of(crop, size, eval_resize=resize))
    statuses = dict(zip(images, np.concatenate([batch["status"] for batch in batches]).tolist(), strict=False))
    bad = {name for name, status in statuses.items() if status != image_status.OK}
    assert {"cut jpeg", "damaged png", "no image", "empty", "missing"} <= bad
    assert not {"webp", "small", "bytes after the end", "grey jpeg"} & bad


@pytest.mark.parametrize("exif", ["rotate", "ignore"])
def test_a_turned_picture_by_option(exif):
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded(np.asarray(Image.fromarray(noise(5, 4, 3)).resize((40, 50))), "JPEG", exif=turned)
    plain = encoded(np.asarray(Image.fromarray(noise(5, 4, 3)).resize((40, 50))), "JPEG")
    (batch,) = check_same(source_of([data, plain]), config_of("resize_small", 32, eval_resize=40, exif=exif), 2)
    assert np.array_equal(*batch["image"]) == (exif == "ignore")


def test_some_of_the_damaged_images_are_left_to_tensorflow():
    refused = 0
    for name, data in made().items():
        if name.startswith("damaged jpeg"):
            try:
                simplejpeg.decode_jpeg(data)
            except ValueError:
                refused += 1
    assert refused


@pytest.mark.parametrize("rounding", crops.RESIZE_ROUNDINGS)
def test_many_sizes(rounding):
    """Sizes at which an area has a share of each of its edges, and such at which it has none."""
    sizes = np.random.default_rng(0).integers(1, 90, (60, 2)).tolist()
    images = [encoded(noise(*size, 3), "PNG") for size in sizes]
    for crop in ("resize_small", "resize_square"):
        check_same(source_of(images), config_of(crop, 24, resize_rounding=rounding))


def test_any_method_of_tensorflow_can_be_that_of_a_crop(monkeypatch):
    cubic = crops.EVAL_CROPS["resize_small"]._replace(method="bicubic")
    monkeypatch.setitem(crops.EVAL_CROPS, "cubic", cubic)
    images = [encoded(noise(*size, 3), "PNG") for size in ((40, 30), (9, 17))]
    check_same(source_of(images), config_of("cubic", 24))


@pytest.mark.parametrize("crop", ["resize_small", "resize_square"])
def test_photographs(shared_data, crop):
    files = sorted((shared_data / "imagenet_samples").glob("*.JPEG"))[:40]
    assert len(files) == 40
    check_same(source_of([file.read_bytes() for file in files]), config_of(crop, 224))


def test_rows_records_and_padding():
    source = source_of(list(made().values()))
    config = config_of("resize_small", 16)
    check_same(source, config, batch_size=8, rows=slice(4, 8))
    batches = check_same(source, config, batch_size=4, records=np.array([3, 1, 4, 1, 5]))
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1, 1, 1], [1, 0, 0, 0]]
    check_same(source, config, batch_size=4, rows=slice(2, 4), records=np.array([3, 1, 4, 1, 5]))
