"""RandAugment (arXiv 1909.13719) as the Mixer paper pre-trains with it (section 3, Table 4), in NumPy and OpenCV.

A pure function of an image and of uniform numbers that the caller draws. Operations and magnitudes are those
of the published code: the AutoAugment file of EfficientNet for TPUs, which big_vision keeps in `pp/archive`.
A level is `magnitude / 10`: the scales were made for levels up to 1; magnitudes 15 and 20 go beyond.

Magnitude 0 is not the identity. AutoContrast, Equalize and Invert have no strength, Solarize inverts
everything, Posterize keeps one bit and the enhancements blend with a factor of 0.1; the others then leave the
image alone.

OpenCV's functions let go of Python's lock, so that the threads of `tf.data` run side by side. It rounds where the
published code truncates; hence the halves that are taken away.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

Image = UInt8[np.ndarray, "height width 3"]

FILL = 128  # gray level where a geometric operation or Cutout leaves no image
PUBLISHED_SIZE = 224  # px, the image size for which the next two are published
TRANSLATE = 100  # px at level 1
CUTOUT = 40  # px at level 1, half the side of the square
# As `tf.image.rgb_to_grayscale`, which goes through [0, 1] and back with a scale of 255.5, then truncates.
LUMA = np.array([[0.2989, 0.5870, 0.1140]], np.float32) * np.float32(255.5 / 255)

_VALUES = np.arange(256)
_DOWN = -0.499  # truncates what is rounded next; a thousandth less than a half, or whole numbers might fall


def _replace(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The image with a new value for each of 0..255, clipped and truncated."""
    return cv2.LUT(image, np.clip(values, 0, 255).astype(np.uint8))


def _blend(degenerate: np.ndarray | float, values: np.ndarray, level: float) -> np.ndarray:
    """From the degenerate image (factor 0) through the image (factor 1) and beyond."""
    return degenerate + _factor(level) * (values - degenerate)


def _factor(level: float) -> float:
    return level * 1.8 + 0.1


def _blend_images(degenerate: Image, image: Image, level: float) -> Image:
    """`_blend`, truncated."""
    return cv2.addWeighted(image, _factor(level), degenerate, 1 - _factor(level), _DOWN)


def _gray(image: Image) -> UInt8[np.ndarray, "height width"]:
    """The luma, truncated."""
    return cv2.transform(image.astype(np.float32), LUMA).astype(np.uint8)


def autocontrast(image: Image) -> Image:
    """Stretches each channel to 0..255; a constant channel stays as it is."""
    matrix = np.zeros((3, 4), np.float32)  # of which OpenCV takes the last column for the offsets
    for channel, values in enumerate(cv2.split(image)):
        low, high, _, _ = cv2.minMaxLoc(values)
        scale = 255 / (high - low) if high > low else 1.0
        matrix[channel, [channel, 3]] = scale, _DOWN - (low * scale if high > low else 0.0)
    return cv2.transform(image, matrix)


def equalize(image: Image) -> Image:
    """Equalizes each channel's histogram in PIL's integer arithmetic; a nearly constant channel stays."""
    return cv2.merge([_equalize_channel(channel) for channel in cv2.split(image)])


def _equalize_channel(channel: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    histogram = np.ravel(cv2.calcHist([channel], [0], None, [256], [0, 256])).astype(np.int64)
    below = np.cumsum(histogram) - histogram
    # PIL counts all pixels but those of the brightest value that occurs.
    step = below[np.flatnonzero(histogram)[-1]] // 255
    return _replace(channel, (below + step // 2) // step) if step else channel


def posterize(image: Image, bits: int) -> Image:
    """Keeps the highest `bits` bits.

    The published shift is undefined for 0 bits (magnitudes below 2.5), where TensorFlow's CPU kernel leaves
    one: so it is here. More than 8 (magnitudes above 22) are all of them.
    """
    dropped = 8 - min(max(bits, 1), 8)
    return image & np.uint8(0xFF >> dropped << dropped)


def solarize(image: Image, threshold: int) -> Image:
    """Inverts the pixels that are not below the threshold.

    The published code compares uint8 with int(level * 256), which wraps around (big_vision issue 110):
    magnitudes 10 and 20 have threshold 0 and invert everything, 15 has 128. Without the wrap all three would
    do nothing. The paper's models must have been trained with it, so it stays.
    """
    return image ^ (image >= threshold % 256) * np.uint8(255)


def solarize_add(image: Image, addition: int) -> Image:
    """Brightens the pixels below 128, up to 255."""
    return cv2.add(image, (image < 128) * np.uint8(min(addition, 255)))


def brightness(image: Image, level: float) -> Image:
    """Blends with black."""
    return _replace(image, _blend(0.0, _VALUES, level))


def contrast(image: Image, level: float) -> Image:
    """Blends with the mean, truncated, of the gray image, as PIL and big_vision do.

    EfficientNet's code, and big_vision's until 2024, took the number of pixels over 256 for the mean by
    mistake: 196 for every image of 224 x 224. The paper's models were probably trained with that; here it
    is repaired.
    """
    return _replace(image, _blend(math.floor(cv2.mean(_gray(image))[0]), _VALUES, level))


def color(image: Image, level: float) -> Image:
    """Blends with the gray image."""
    return _blend_images(cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB), image, level)


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def sharpness(image: Image, level: float) -> Image:
    """Blends with the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; border pixels stay.

    The published convolution is truncated too, but rounding in float32 may leave a smooth area one too low.
    Here thirteenths are rounded from the middle of their thirteen, so that the quotient is exact.
    """
    smooth = cv2.filter2D(image, -1, _SMOOTH, delta=-0.5 + 0.5 / 13)
    out = image.copy()
    inner = np.s_[1:-1, 1:-1]
    if image[inner].size:
        out[inner] = _blend_images(smooth, image, level)[inner]
    return out


_NUDGE = 2.0**-15  # px; OpenCV takes the even one of two pixels that are as near


def warp(image: Image, x_from: tuple[float, float, float], y_from: tuple[float, float, float]) -> Image:
    """Affine warp: out(x, y) is in(x_from · (x, y, 1), y_from · (x, y, 1)), `FILL` outside.

    Of pixels that are as near it is the later one, as published.
    """
    matrix = np.array([x_from, y_from]) + np.array([0, 0, _NUDGE])
    return cv2.warpAffine(
        image, matrix, image.shape[1::-1], flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(FILL, FILL, FILL),
    )  # fmt: skip


def rotate(image: Image, radians: float) -> Image:
    """Turns the image about its centre, counterclockwise for positive angles."""
    cos, sin = math.cos(radians), math.sin(radians)
    y_last, x_last = image.shape[0] - 1, image.shape[1] - 1
    x_offset = (x_last - (cos * x_last - sin * y_last)) / 2
    y_offset = (y_last - (sin * x_last + cos * y_last)) / 2
    return warp(image, (cos, -sin, x_offset), (sin, cos, y_offset))


def translate(image: Image, pixels: float, axis: int) -> Image:
    """out(i) is in(i + pixels) along the axis, `FILL` outside; in px of a 224 px image, rounded."""
    shift = math.floor(pixels * min(image.shape[:2]) / PUBLISHED_SIZE + 0.5)
    out = np.full_like(image, FILL)
    to, source = np.moveaxis(out, axis, 0), np.moveaxis(image, axis, 0)
    kept = max(len(source) - abs(shift), 0)
    to[max(-shift, 0) :][:kept] = source[max(shift, 0) :][:kept]
    return out


def cutout(image: Image, pad: int, centre: np.ndarray) -> Image:
    """Fills a square of side 2 * pad (px of a 224 px image) about centre [y, x] in [0, 1); borders cut it."""
    shape = np.array(image.shape[:2])
    middle = (centre * shape).astype(int)
    half = pad * min(shape) // PUBLISHED_SIZE
    (top, left), (bottom, right) = np.maximum(middle - half, 0), middle + half
    out = image.copy()
    out[top:bottom, left:right] = FILL
    return out


# Takes an image, a level, a random sign (1 or -1) and a random place ([y, x] in [0, 1)).
Operation = Callable[[np.ndarray, float, float, np.ndarray], np.ndarray]

OPERATIONS: dict[str, Operation] = {  # in the published order
    "AutoContrast": lambda image, level, sign, place: autocontrast(image),
    "Equalize": lambda image, level, sign, place: equalize(image),
    "Invert": lambda image, level, sign, place: cv2.bitwise_not(image),
    "Rotate": lambda image, level, sign, place: rotate(image, sign * math.radians(level * 30)),
    "Posterize": lambda image, level, sign, place: posterize(image, int(level * 4)),
    "Solarize": lambda image, level, sign, place: solarize(image, int(level * 256)),
    "Color": lambda image, level, sign, place: color(image, level),
    "Contrast": lambda image, level, sign, place: contrast(image, level),
    "Brightness": lambda image, level, sign, place: brightness(image, level),
    "Sharpness": lambda image, level, sign, place: sharpness(image, level),
    "ShearX": lambda image, level, sign, place: warp(image, (1.0, sign * level * 0.3, 0.0), (0.0, 1.0, 0.0)),
    "ShearY": lambda image, level, sign, place: warp(image, (1.0, 0.0, 0.0), (sign * level * 0.3, 1.0, 0.0)),
    "TranslateX": lambda image, level, sign, place: translate(image, sign * level * TRANSLATE, axis=1),
    "TranslateY": lambda image, level, sign, place: translate(image, sign * level * TRANSLATE, axis=0),
    "Cutout": lambda image, level, sign, place: cutout(image, int(level * CUTOUT), place),
    "SolarizeAdd": lambda image, level, sign, place: solarize_add(image, int(level * 110)),
}
_IN_ORDER = tuple(OPERATIONS.values())


def randaugment(
    image: UInt8[np.ndarray, "height width 3"], draws: Float32[np.ndarray, "layers 4"], magnitude: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Applies one operation for each row of `draws`, picked uniformly among the sixteen.

    Args:
      image: at least 1 x 1 px.
      draws: uniform in [0, 1): the operation, the sign of a geometric one (negative below 0.5), and the centre of
        Cutout as y and x.
      magnitude: at least 0; the paper has 10, 15 or 20. Translate and Cutout, published in pixels, scale with
        the image's shorter side and are as published at 224 px.
    """
    for choice, sign, *place in draws:
        operation = _IN_ORDER[int(choice * len(_IN_ORDER))]
        image = operation(image, magnitude / 10, -1.0 if sign < 0.5 else 1.0, np.array(place))
    return image
