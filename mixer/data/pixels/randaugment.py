"""RandAugment (arXiv 1909.13719) as the Mixer paper uses it in pre-training (Section 3, Table 4), in NumPy and OpenCV.

It is a pure function of an image and of uniform numbers that the caller draws. Operations and magnitudes are those of
the published code: the AutoAugment file of EfficientNet for TPUs, of which big_vision keeps a copy in `pp/archive`.
The level of an operation is `magnitude / 10`. The scales were made for levels up to 1; the paper's magnitudes 15 and
20 are above.

Magnitude 0 is not the identity: AutoContrast, Equalize and Invert have no strength, Solarize inverts everything,
Posterize keeps one bit, and Color, Contrast, Brightness and Sharpness blend with a factor of 0.1. The other operations
do nothing at magnitude 0.

OpenCV releases Python's lock, so the threads of `tf.data` run at the same time. OpenCV rounds where the published code
truncates. Therefore a half is subtracted before OpenCV rounds.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from mixer.data.pixels.crops import Pixels

FILL = 128  # gray level of pixels that a geometric operation or Cutout leaves empty
PUBLISHED_SIZE = 224  # pixels; the image size for which the next two numbers are published
TRANSLATE = 100  # pixels at level 1
CUTOUT = 40  # pixels at level 1: half the side of the square
# `tf.image.rgb_to_grayscale` converts to [0, 1] and back with a scale of 255.5, and truncates.
LUMA = np.array([[0.2989, 0.5870, 0.1140]], np.float32) * np.float32(255.5 / 255)

_VALUES = np.arange(256)
_DOWN = -0.499  # turns rounding into truncation; with -0.5, rounding errors could lower a whole number by one


def _replace(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Replaces each value v of the image by values[v], clipped and truncated."""
    return cv2.LUT(image, np.clip(values, 0, 255).astype(np.uint8))


def _blend(degenerate: np.ndarray | float, values: np.ndarray, level: float) -> np.ndarray:
    """Interpolates from the degenerate image (factor 0) to the image (factor 1), and extrapolates above 1."""
    return degenerate + _factor(level) * (values - degenerate)


def _factor(level: float) -> float:
    return level * 1.8 + 0.1


def _blend_images(degenerate: Pixels, image: Pixels, level: float) -> Pixels:
    """Blends like `_blend`, clips and truncates."""
    return cv2.addWeighted(image, _factor(level), degenerate, 1 - _factor(level), _DOWN)


def _gray(image: Pixels) -> UInt8[np.ndarray, "height width"]:
    """Returns the luma, truncated."""
    return cv2.transform(image.astype(np.float32), LUMA).astype(np.uint8)


def autocontrast(image: Pixels) -> Pixels:
    """Stretches each channel to 0..255. A constant channel stays as it is."""
    matrix = np.zeros((3, 4), np.float32)  # the last column holds the offsets
    for channel, values in enumerate(cv2.split(image)):
        low, high, _, _ = cv2.minMaxLoc(values)
        scale = 255 / (high - low) if high > low else 1.0
        matrix[channel, [channel, 3]] = scale, _DOWN - (low * scale if high > low else 0.0)
    return cv2.transform(image, matrix)


def equalize(image: Pixels) -> Pixels:
    """Equalizes each channel's histogram in PIL's integer arithmetic. A nearly constant channel stays as it is."""
    return cv2.merge([_equalize_channel(channel) for channel in cv2.split(image)])


def _equalize_channel(channel: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    histogram = np.ravel(cv2.calcHist([channel], [0], None, [256], [0, 256])).astype(np.int64)
    below = np.cumsum(histogram) - histogram
    # PIL counts all pixels, except those with the brightest value in the image.
    step = below[np.flatnonzero(histogram)[-1]] // 255
    return _replace(channel, (below + step // 2) // step) if step else channel


def posterize(image: Pixels, bits: int) -> Pixels:
    """Keeps the highest `bits` bits.

    The published shift is undefined for 0 bits (magnitudes below 2.5). TensorFlow's CPU kernel then keeps one bit, and
    so does this function. For more than 8 bits (magnitudes above 22), it keeps all 8.
    """
    dropped = 8 - min(max(bits, 1), 8)
    return image & np.uint8(0xFF >> dropped << dropped)


def solarize(image: Pixels, threshold: int) -> Pixels:
    """Inverts the pixels at or above the threshold, modulo 256.

    The published code compares uint8 with int(level * 256), which wraps around (big_vision issue 110). So magnitudes 10
    and 20 have the threshold 0 and invert everything; magnitude 15 has 128. Without the wrap, all three would do
    nothing. The paper's models must have been trained with the wrap, so it stays.
    """
    return image ^ (image >= threshold % 256) * np.uint8(255)


def solarize_add(image: Pixels, addition: int) -> Pixels:
    """Brightens the pixels below 128, up to 255."""
    return cv2.add(image, (image < 128) * np.uint8(min(addition, 255)))


def brightness(image: Pixels, level: float) -> Pixels:
    """Blends with black."""
    return _replace(image, _blend(0.0, _VALUES, level))


def pil_mean(image: Pixels) -> float:
    """Returns the truncated mean of the gray image, as PIL's Contrast has it."""
    return math.floor(cv2.mean(_gray(image))[0])


def published_mean(image: Pixels) -> float:
    """Returns what the published code has as the mean: the number of pixels over 256, at most 255.

    That is 196 for every image of 224 x 224 pixels. A sum over the histogram's counts stands where the counts should
    have been weighted with their values. EfficientNet's code has it so, and big_vision's still in May 2025, so the
    paper's models must have been trained with it.
    """
    mean: int = min(image.shape[0] * image.shape[1] // 256, 255)
    return mean


CONTRASTS: dict[str, Callable[[Pixels], float]] = {"pil": pil_mean, "published": published_mean}


def contrast(image: Pixels, level: float, mean: float) -> Pixels:
    """Blends with one gray level."""
    return _replace(image, _blend(mean, _VALUES, level))


def color(image: Pixels, level: float) -> Pixels:
    """Blends with the gray image."""
    return _blend_images(cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB), image, level)


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def sharpness(image: Pixels, level: float) -> Pixels:
    """Blends with the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13. Border pixels stay as they are.

    The published convolution truncates too, but rounding errors of float32 can make a smooth area one level too dark.
    Here the added offset moves each sum to the middle of the interval that truncates to it, so the result is exact.
    """
    smooth = cv2.filter2D(image, -1, _SMOOTH, delta=-0.5 + 0.5 / 13)
    out = image.copy()
    inner = np.s_[1:-1, 1:-1]
    if image[inner].size:
        out[inner] = _blend_images(smooth, image, level)[inner]
    return out


_NUDGE = 2.0**-15  # pixels; between two pixels that are equally near, OpenCV takes the even one


def warp(image: Pixels, x_from: tuple[float, float, float], y_from: tuple[float, float, float]) -> Pixels:
    """Applies an affine warp: out(x, y) = in(x_from · (x, y, 1), y_from · (x, y, 1)), `FILL` outside.

    Between two pixels that are equally near, it takes the second, as the published code does inside the image. At -1/2,
    which negative shears reach, that code rounds to -1, which is outside; here it is pixel 0.
    """
    matrix = np.array([x_from, y_from]) + np.array([0, 0, _NUDGE])
    return cv2.warpAffine(
        image, matrix, image.shape[1::-1], flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(FILL, FILL, FILL),
    )  # fmt: skip


def rotate(image: Pixels, radians: float) -> Pixels:
    """Rotates the image about its centre, counterclockwise for positive angles."""
    cos, sin = math.cos(radians), math.sin(radians)
    y_last, x_last = image.shape[0] - 1, image.shape[1] - 1
    x_offset = (x_last - (cos * x_last - sin * y_last)) / 2
    y_offset = (y_last - (sin * x_last + cos * y_last)) / 2
    return warp(image, (cos, -sin, x_offset), (sin, cos, y_offset))


def translate(image: Pixels, pixels: float, axis: int) -> Pixels:
    """Moves the image along an axis: out(i) = in(i + shift), `FILL` outside.

    `pixels` is the shift in an image of 224 pixels. It is scaled to the image's shorter side and rounded.
    """
    shift = math.floor(pixels * min(image.shape[:2]) / PUBLISHED_SIZE + 0.5)
    out = np.full_like(image, FILL)
    to, source = np.moveaxis(out, axis, 0), np.moveaxis(image, axis, 0)
    kept = max(len(source) - abs(shift), 0)
    to[max(-shift, 0) :][:kept] = source[max(shift, 0) :][:kept]
    return out


def cutout(image: Pixels, pad: int, centre: np.ndarray) -> Pixels:
    """Fills a square around a centre [y, x] in [0, 1). The image's borders cut it off.

    The side is 2 * pad pixels in an image of 224 pixels. It is scaled to the image's shorter side.
    """
    shape = np.array(image.shape[:2])
    middle = (centre * shape).astype(int)
    half = pad * min(shape) // PUBLISHED_SIZE
    (top, left), (bottom, right) = np.maximum(middle - half, 0), middle + half
    out = image.copy()
    out[top:bottom, left:right] = FILL
    return out


# Its arguments are an image, a level, a random sign (1 or -1) and a random place ([y, x] in [0, 1)).
Operation = Callable[[np.ndarray, float, float, np.ndarray], np.ndarray]


def _contrast_by(mean: Callable[[Pixels], float]) -> Operation:
    return lambda image, level, sign, place: contrast(image, level, mean(image))


OPERATIONS: dict[str, Operation] = {  # in the published order
    "AutoContrast": lambda image, level, sign, place: autocontrast(image),
    "Equalize": lambda image, level, sign, place: equalize(image),
    "Invert": lambda image, level, sign, place: cv2.bitwise_not(image),
    "Rotate": lambda image, level, sign, place: rotate(image, sign * math.radians(level * 30)),
    "Posterize": lambda image, level, sign, place: posterize(image, int(level * 4)),
    "Solarize": lambda image, level, sign, place: solarize(image, int(level * 256)),
    "Color": lambda image, level, sign, place: color(image, level),
    "Contrast": _contrast_by(pil_mean),  # `_IN_ORDER` has one for each of `CONTRASTS`
    "Brightness": lambda image, level, sign, place: brightness(image, level),
    "Sharpness": lambda image, level, sign, place: sharpness(image, level),
    "ShearX": lambda image, level, sign, place: warp(image, (1.0, sign * level * 0.3, 0.0), (0.0, 1.0, 0.0)),
    "ShearY": lambda image, level, sign, place: warp(image, (1.0, 0.0, 0.0), (sign * level * 0.3, 1.0, 0.0)),
    "TranslateX": lambda image, level, sign, place: translate(image, sign * level * TRANSLATE, axis=1),
    "TranslateY": lambda image, level, sign, place: translate(image, sign * level * TRANSLATE, axis=0),
    "Cutout": lambda image, level, sign, place: cutout(image, int(level * CUTOUT), place),
    "SolarizeAdd": lambda image, level, sign, place: solarize_add(image, int(level * 110)),
}

_IN_ORDER = {kind: tuple((OPERATIONS | {"Contrast": _contrast_by(mean)}).values()) for kind, mean in CONTRASTS.items()}


def randaugment(
    image: UInt8[np.ndarray, "height width 3"],
    draws: Float32[np.ndarray, "layers 4"],
    magnitude: float,
    contrast: str = "pil",
) -> UInt8[np.ndarray, "height width 3"]:
    """Applies one of the sixteen operations for each layer, chosen uniformly.

    Args:
      image: at least 1 x 1 pixels.
      draws: uniform in [0, 1). For each layer: the choice of the operation, the sign of a geometric operation (negative
        below 0.5), and the centre of Cutout (y, x).
      magnitude: at least 0; the paper uses 10, 15 or 20. Translate and Cutout are published in pixels of a 224-pixel
        image; here they scale with the image's shorter side.
      contrast: one of `CONTRASTS`.
    """
    operations = _IN_ORDER[contrast]
    for choice, sign, *place in draws:
        operation = operations[int(choice * len(operations))]
        image = operation(image, magnitude / 10, -1.0 if sign < 0.5 else 1.0, np.array(place))
    return image
