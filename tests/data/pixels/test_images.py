"""Each kind of file is passed on unchanged, decoded to the right pixels, or refused with the right status."""

import io
import itertools
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import broken_huffman_table, encode, photo, png_of, wrong_checksum
from PIL import Image as PillowImage
from PIL import ImageOps, PngImagePlugin, features

from mixer.data.pixels import augment, images
from mixer.data.pixels.image_status import STATUSES
from mixer.data.pixels.images import JPEG, OK, PNG, RAW, inspect

MOST = 10**6  # pixels
PHOTO = photo(33, 47)
GREY = PHOTO[..., 0]

BLACK_PIXEL = (b"\0\0\0", RAW, 1, 1)


def pixels(image: images.EncodedImage) -> np.ndarray:
    """Returns the pixels of an image that Pillow decoded."""
    assert (image.status, image.encoding) == (OK, RAW)
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def exif(orientation: int, order: str = ">", kind: str = "H") -> bytes:
    """Returns an APP1 segment with one tag."""
    number = {"H": 3, "I": 4}[kind]
    value = struct.pack(order + kind, orientation).ljust(4, b"\0")
    tiff = (
        {">": b"MM", "<": b"II"}[order] + struct.pack(order + "HIHHHI", 42, 8, 1, 0x0112, number, 1) + value + b"\0" * 4
    )
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


# ------------------------------------------------------------------------------------------------------ passed through


@pytest.mark.parametrize(
    "data",
    [
        encode(PHOTO, "JPEG"),
        encode(PHOTO, "JPEG", quality=30, subsampling=2),
        encode(PHOTO, "JPEG", progressive=True),
        encode(PHOTO, "JPEG", optimize=True, comment=b"\xff\xd9"),
        encode(GREY, "JPEG"),
        encode(PHOTO, "JPEG")[:2] + exif(1) + encode(PHOTO, "JPEG")[2:],
        encode(PHOTO, "JPEG")[:2] + exif(1, "<") + encode(PHOTO, "JPEG")[2:],
        encode(PHOTO, "JPEG")[:2] + b"\xff" * 3 + encode(PHOTO, "JPEG")[2:],
        encode(PHOTO, "JPEG") + b"\0" * 100,
    ],
)
def test_a_plain_jpeg_is_passed_on_untouched(data):
    assert inspect(data, MOST) == (data, JPEG, 33, 47, OK)
    assert augment.can_decode(data, JPEG, (33, 47))


@pytest.mark.parametrize("data", [encode(PHOTO), encode(GREY), encode(PHOTO, transparency=(1, 2, 3))])
def test_a_plain_png_is_passed_on_untouched(data):
    assert inspect(data, MOST) == (data, PNG, 33, 47, OK)
    assert augment.can_decode(data, PNG, (33, 47))


# ------------------------------------------------------------------------------------------------------- decoded here


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_applied(orientation, order):
    plain = encode(PHOTO, "JPEG")
    data = plain[:2] + exif(orientation, order) + plain[2:]
    upright = np.asarray(ImageOps.exif_transpose(PillowImage.open(io.BytesIO(data))))
    image = inspect(data, MOST)
    assert (image.height, image.width, image.status) == (*upright.shape[:2], OK)
    assert (image.encoding == JPEG) == (orientation == 1)
    if orientation > 1:
        np.testing.assert_array_equal(pixels(image), upright)
        # Checks Pillow too: each corner of the stored picture is where the definition of the orientation says.
        corner = {2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
        stored = np.asarray(PillowImage.open(io.BytesIO(plain)))
        np.testing.assert_array_equal(pixels(image)[corner], stored[0, 0])


def test_a_png_with_an_orientation_is_turned_too():
    tag = PillowImage.Exif()
    tag[0x0112] = 6
    np.testing.assert_array_equal(pixels(inspect(encode(PHOTO, exif=tag), MOST)), np.rot90(PHOTO, -1))


def xmp_of(form: str, text: str, compressed: bool) -> bytes:
    """Returns a photo of that format with XMP."""
    if form != "PNG":
        return encode(PHOTO, form, xmp=text.encode())
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", text, zip=compressed)
    return encode(PHOTO, form, pnginfo=chunks)


@pytest.mark.parametrize("text", ['<a tiff:Orientation="{}"/>', "<tiff:Orientation>{}</tiff:Orientation>"])
@pytest.mark.parametrize(("form", "compressed"), [("JPEG", False), ("PNG", False), ("PNG", True), ("WEBP", False)])
@pytest.mark.parametrize("orientation", [1, 2, 6, 8])
def test_an_orientation_in_xmp_alone_counts_as_pillow_counts_it(orientation, form, compressed, text):
    data = xmp_of(form, text.format(orientation), compressed)
    stored = PillowImage.open(io.BytesIO(data)).convert("RGB")
    upright = np.asarray(ImageOps.exif_transpose(PillowImage.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(upright, np.asarray(stored)) == (orientation == 1)
    image = inspect(data, MOST)
    assert (image.height, image.width, image.status) == (*upright.shape[:2], OK)
    assert (image.encoding == JPEG) == (form == "JPEG" and orientation == 1)
    if image.encoding != JPEG:
        np.testing.assert_array_equal(pixels(image), upright)
    assert inspect(data, MOST, exif="ignore")[2:] == (33, 47, OK)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_is_ignored_by_option(orientation, form):
    tag = PillowImage.Exif()
    tag[0x0112] = orientation
    data = encode(PHOTO, form, exif=tag)
    image = inspect(data, MOST, exif="ignore")
    assert (image.height, image.width, image.status) == (33, 47, OK)
    if form != "WEBP":
        assert (image.data, image.encoding) == (data, {"JPEG": JPEG, "PNG": PNG}[form])
    else:
        np.testing.assert_array_equal(pixels(image), np.asarray(PillowImage.open(io.BytesIO(data)).convert("RGB")))


DEEP = np.random.default_rng(0).integers(0, 65536, (5, 7), np.uint16)
ALPHA = np.dstack([PHOTO, GREY])


def tiff_of(
    bits: int, kind: int, code: str | None, values: np.ndarray, order: str = "<", photometric: int = 1
) -> bytes:
    """Returns a grey TIFF of any type: bits, SampleFormat and NumPy's code of a value (None packs 12 bits)."""
    height, width = values.shape
    if code is None:
        rows = ["".join(f"{value:012b}" for value in row) for row in values]
        body = b"".join(
            int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows
        )
    else:
        body = values.astype(np.dtype(code).newbyteorder(order)).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(body),
            339: kind}  # fmt: skip
    body += b"\0" * (len(body) % 2)
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8 + len(body))
    return head + body + struct.pack(order + "H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("rgba", encode(ALPHA), PHOTO),
        ("grey and alpha", encode(np.dstack([GREY, GREY])), rgb(GREY)),
        ("palette", encode(PillowImage.fromarray(GREY // 4).convert("P")), rgb(GREY // 4)),
        ("1 bit", encode(PillowImage.fromarray(GREY > 90)), rgb((GREY > 90) * np.uint8(255))),
        ("16-bit grey", encode(DEEP), rgb(np.rint(DEEP / 257).astype(np.uint8))),
        ("16-bit rgb",
         png_of((2, 1, 16, 2), b"\0" + struct.pack(">6H", *(257 * v for v in (0, 7, 128, 255, 254, 1)))),
         np.array([[[0, 7, 128], [255, 254, 1]]], np.uint8)),
        ("bmp", encode(PHOTO, "BMP"), PHOTO),
        ("tiff", encode(PHOTO, "TIFF"), PHOTO),
        ("tiff, compressed", encode(PHOTO, "TIFF", compression="tiff_lzw"), PHOTO),
        ("16-bit tiff", encode(DEEP, "TIFF"), rgb(np.rint(DEEP / 257).astype(np.uint8))),
        ("webp", encode(PHOTO, "WEBP", lossless=True), PHOTO),
        ("webp, alpha", encode(ALPHA, "WEBP", lossless=True, exact=True), PHOTO),
        ("gif", encode(GREY, "GIF"), rgb(GREY)),
        ("gif, animated",
         encode(GREY, "GIF", save_all=True, append_images=[PillowImage.fromarray(255 - GREY)]), rgb(GREY)),
        ("float tiff", encode(DEEP.astype(np.float32) / 65535, "TIFF"), rgb(np.rint(DEEP / 257).astype(np.uint8))),
        ("float tiff, big-endian", tiff_of(32, 3, "f", DEEP / 65535, ">"), rgb(np.rint(DEEP / 257).astype(np.uint8))),
        ("12-bit tiff", tiff_of(12, 1, None, DEEP // 16), rgb(np.rint(DEEP // 16 / 4095 * 255).astype(np.uint8))),
        ("32-bit tiff", tiff_of(32, 1, "I", DEEP.astype(np.uint32) * 65537),
         rgb(np.rint(DEEP / 257).astype(np.uint8))),
        ("16-bit tiff, big-endian", tiff_of(16, 1, "H", DEEP, ">"), rgb(np.rint(DEEP / 257).astype(np.uint8))),
        ("16-bit grey, all black", encode(0 * DEEP), rgb(np.zeros((5, 7), np.uint8))),
        ("8-bit tiff, 0 is white", tiff_of(8, 1, "B", GREY, photometric=0), rgb(255 - GREY)),
        ("16-bit tiff, 0 is white", tiff_of(16, 1, "H", DEEP, photometric=0),
         rgb(255 - np.rint(DEEP / 257).astype(np.uint8))),
        ("float tiff, 0 is white", tiff_of(32, 3, "f", GREY / np.float32(255), photometric=0), rgb(255 - GREY)),
        ("16-bit rgb, all black", png_of((1, 1, 16, 2), b"\0" * 7), rgb(np.zeros((1, 1), np.uint8))),
        ("16-bit rgba, all black", png_of((1, 1, 16, 6), b"\0" * 7 + b"\1\1"), rgb(np.zeros((1, 1), np.uint8))),
        ("webp, animated",
         encode(PHOTO, "WEBP", save_all=True, lossless=True, append_images=[PillowImage.fromarray(255 - PHOTO)]),
         PHOTO),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_other_formats_are_decoded(name, data, expected):
    np.testing.assert_array_equal(pixels(inspect(data, MOST)), expected)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot read AVIF")
def test_avif_is_decoded():
    decoded = pixels(inspect(encode(PHOTO, "AVIF", quality=100, subsampling="4:4:4"), MOST))
    assert np.abs(decoded.astype(int) - PHOTO).max() <= 3
    assert STATUSES[inspect(encode(PHOTO, "AVIF")[:-200], MOST).status] == "undecodable"


DRAWING = np.zeros((6, 9, 4), np.uint8)  # a drawing of dark blue, as many programs save one: the rest is black
DRAWING[2:4, 3:7] = (10, 20, 90, 255)


def two_colours(*palette: tuple[int, int, int]) -> PillowImage.Image:
    image = PillowImage.fromarray(DRAWING[..., 3] // 255, "L").convert("P")
    image.putpalette(np.array(palette, np.uint8).tobytes())
    return image


ON_WHITE = np.where(DRAWING[..., 3:] == 255, DRAWING[..., :3], np.uint8(255))


@pytest.mark.parametrize(
    "data",
    [
        encode(DRAWING), encode(DRAWING, "WEBP", lossless=True, exact=True), encode(DRAWING, "TIFF"),
        encode(DRAWING, "GIF"),
        encode(DRAWING[..., :3], transparency=(0, 0, 0)),  # TensorFlow would decode this one
        encode(two_colours((0, 0, 0), (10, 20, 90)), transparency=0),
    ],
    ids=["png", "webp", "tiff", "gif", "one colour of a png", "palette"],
)  # fmt: skip
def test_a_transparent_drawing_is_laid_on_white_by_option(data):
    np.testing.assert_array_equal(pixels(inspect(data, MOST, "white")), ON_WHITE)
    dropped = inspect(data, MOST)
    if dropped.encoding == RAW:
        np.testing.assert_array_equal(pixels(dropped), DRAWING[..., :3])


@pytest.mark.parametrize("transparent", ["drop", "white"])
def test_a_dark_picture_is_not_bright_where_it_is_transparent(transparent):
    data = png_of((2, 1, 16, 6), b"\0" + struct.pack(">8H", 9, 100, 255, 0, 4000, 9, 9, 65535))
    assert STATUSES[inspect(data, MOST, transparent).status] == "unknown_format"


def test_half_transparent_is_mixed_with_white():
    half = np.full((3, 4, 4), (100, 0, 50, 128), np.uint8)
    expected = np.rint((128.0 * half[..., :3] + 127.0 * 255) / 255)
    assert np.abs(pixels(inspect(encode(half), MOST, "white")) - expected).max() <= 1


def test_white_changes_no_picture_without_transparency():
    for data in (encode(PHOTO), encode(PHOTO, "JPEG"), encode(PHOTO, "BMP"), encode(DEEP)):
        assert inspect(data, MOST, "white") == inspect(data, MOST)


def test_a_cmyk_jpeg_has_its_colours():
    inks = PillowImage.merge("CMYK", [*PillowImage.fromarray(255 - PHOTO).split(), PillowImage.new("L", (47, 33))])
    decoded = pixels(inspect(encode(inks, "JPEG", quality=100, subsampling=0), MOST))
    assert np.abs(decoded.astype(int) - PHOTO).max() <= 4


def test_bytes_after_the_end_marker_do_no_harm():
    data = encode(PHOTO, "JPEG")
    for tail in (b"\0" * 5000, b"\xff\xd8" + b"x" * 3000):
        decoded = pixels(inspect(data + tail, MOST))
        np.testing.assert_array_equal(decoded, np.asarray(PillowImage.open(io.BytesIO(data))))


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (None, "bad_record"),
        (b"", "empty"),
        (b"<html>not found</html>", "unknown_format"),
        (b"\0" * 1000, "unknown_format"),
        (encode(PHOTO, "EPS"), "unknown_format"),  # Pillow would start Ghostscript
        (encode(PHOTO, "PPM"), "unknown_format"),
        # Nothing says which value is white; as colours, these would be black or in part.
        (encode(DEEP.astype(np.float32), "TIFF"), "unknown_format"),
        (encode(np.where(DEEP > 9, np.nan, 0.5).astype(np.float32), "TIFF"), "unknown_format"),
        (encode(GREY.astype(np.int32), "TIFF"), "unknown_format"),
        (tiff_of(32, 1, "I", GREY), "unknown_format"),
        (tiff_of(16, 2, "h", GREY), "unknown_format"),
        (tiff_of(64, 3, "d", DEEP / 65535), "undecodable"),  # Pillow has no such mode
        (encode(DEEP // 17, "TIFF"), "unknown_format"),  # 12 bits in 16
        (encode(DEEP // 17), "unknown_format"),
        (png_of((1, 1, 16, 2), b"\0" + struct.pack(">3H", 0, 100, 4095)), "unknown_format"),
        (png_of((1, 1, 16, 2), b"\0" + struct.pack(">3H", 0, 100, 255)), "unknown_format"),  # 8 bits in 16
        (tiff_of(8, 2, "b", GREY), "unknown_format"),
        (encode(PHOTO, "JPEG")[:-400], "truncated"),
        (encode(PHOTO, "PNG")[:-400], "truncated"),
        (encode(PHOTO, "BMP")[:-400], "truncated"),
        (encode(PHOTO, "TIFF")[:-4000], "truncated"),
        (encode(PHOTO, "WEBP")[:-40], "undecodable"),
        (encode(PHOTO, "JPEG")[:100], "undecodable"),
        (encode(PHOTO, "JPEG", quality=90)[:2], "undecodable"),
        (png_of((0, 5, 8, 2), b""), "undecodable"),
        (png_of((5, 0, 8, 2), b""), "undecodable"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDRIEND1234", "undecodable"),
        (png_of((50_000, 50_000, 8, 2), b""), "too_large"),
        (png_of((2**31 - 1, 2**31 - 1, 8, 6), b""), "too_large"),
        (encode(PHOTO, "BMP")[:18] + struct.pack("<ii", 12_000, 12_000) + encode(PHOTO, "BMP")[26:], "too_large"),
        (encode(PHOTO, "BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + encode(PHOTO, "BMP")[26:], "too_large"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_says_why(data, status):
    image = inspect(data, MOST)
    assert STATUSES[image.status] == status
    assert image[:4] == BLACK_PIXEL


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"])
def test_a_large_image_is_refused_undecoded(file_format, monkeypatch):
    data = encode(GREY, file_format)
    assert inspect(data, 33 * 47).status == OK
    monkeypatch.setattr(images, "_to_rgb", lambda *arguments: pytest.fail("was decoded"))
    assert STATUSES[inspect(data, 33 * 47 - 1).status] == "too_large"


@pytest.mark.parametrize("file_format", ["TIFF", "BMP", "WEBP"])
def test_only_max_pixels_limits_the_size(file_format):
    """Pillow has a limit of its own, 179 million pixels."""
    side = 14_000
    data = {
        "TIFF": lambda: tiff_of(8, 1, "B", np.zeros((1, 1))).replace(
            struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, side)
        ).replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, side)),
        "BMP": lambda: encode(PHOTO, "BMP")[:18] + struct.pack("<ii", side, side) + encode(PHOTO, "BMP")[26:],
        "WEBP": lambda: encode(PHOTO, "WEBP", lossless=True)[:21]
        + struct.pack("<I", (side - 1) | (side - 1) << 14) + encode(PHOTO, "WEBP", lossless=True)[25:],
    }[file_format]()  # fmt: skip
    assert STATUSES[inspect(data, side**2 - 1).status] == "too_large"
    assert STATUSES[inspect(data, side**2).status] != "too_large"


def test_a_jpeg_that_says_it_is_huge_is_refused():
    data = encode(PHOTO, "JPEG")
    at = data.index(struct.pack(">HH", 33, 47))
    assert (
        STATUSES[inspect(data[:at] + struct.pack(">HH", 65_000, 65_000) + data[at + 4 :], MOST).status] == "too_large"
    )


def test_a_file_cut_short_is_never_used_as_if_it_were_whole():
    """A file may be cut off anywhere. If only its end marker or padding is missing, it has all its pixels."""
    for file_format, spare in {"JPEG": 0, "PNG": 22, "GIF": 2, "BMP": 1, "TIFF": 0, "WEBP": 0}.items():
        data = encode(photo(9, 13), file_format)
        whole = np.asarray(PillowImage.open(io.BytesIO(data)).convert("RGB"))
        for size in range(len(data)):
            image = inspect(data[:size], MOST)
            if image.status == OK:
                assert size >= len(data) - spare
                np.testing.assert_array_equal(pixels(image), whole)
            else:
                assert image[:4] == BLACK_PIXEL


@pytest.mark.parametrize(
    ("data", "encoding"), [(broken_huffman_table(encode(PHOTO, "JPEG")), JPEG), (wrong_checksum(encode(PHOTO)), PNG)]
)
def test_what_only_the_decoder_finds_is_passed_on(data, encoding):
    assert inspect(data, MOST)[1:] == (encoding, 33, 47, OK)
    assert not augment.can_decode(data, encoding, (33, 47))


# ------------------------------------------------------------------------------------------------------ whatever comes

FILES = [
    encode(photo(9, 13), file_format, **options)
    for file_format, options in [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {}),
        ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
    ]
]  # fmt: skip
FILES += [FILES[0][:2] + exif(6) + FILES[0][2:], encode(ALPHA), encode(DEEP)]


def check(data: bytes) -> None:
    image = inspect(data, MOST)
    assert 0 <= image.status < len(STATUSES)
    assert 0 < image.height * image.width <= MOST
    assert image.height > 0
    if image.status != OK:
        assert image[:4] == BLACK_PIXEL
    elif image.encoding == RAW:
        assert len(image.data) == image.height * image.width * 3
    else:
        assert image.data == data
    assert isinstance(augment.can_decode(image.data, image.encoding, (image.height, image.width)), bool)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"", *(data[:n] for data in FILES for n in (2, 4, 8, 16, 26))]), st.binary(max_size=300))
def test_random_bytes_never_stop_a_batch(start, data):
    check(start + data)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_damaged_files_never_stop_a_batch(data, changes, cut, is_cut):
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(data)] = value
    check(bytes(damaged[: cut % len(data)] if is_cut else damaged))


def test_headers_damaged_in_any_one_byte_never_stop_a_batch():
    for data, value in itertools.product(FILES[:3], (0, 255)):
        for at in range(min(len(data), 200)):
            check(data[:at] + bytes([value]) + data[at + 1 :])


def test_odd_metadata_does_no_harm():
    """Pillow warns of it. Warning filters belong to the whole process, so threads must not change them."""
    plain, tag = encode(PHOTO, "JPEG"), exif(6)
    odd = plain[:2] + tag[:2] + struct.pack(">H", len(tag) - 12) + tag[4:-10] + plain[2:]
    with pytest.warns(UserWarning, match="EXIF"):
        ImageOps.exif_transpose(PillowImage.open(io.BytesIO(odd)))
    before = list(warnings.filters)
    assert inspect(odd, MOST).status == OK
    assert warnings.filters == before
