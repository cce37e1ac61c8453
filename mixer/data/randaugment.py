"""RandAugment (arXiv 1909.13719) for `tf.data`, as the Mixer paper pre-trains with it (section 3, Table 4).

A pure function of an image and of uniform numbers that the caller draws. Operations and magnitudes are those
of the published code: the AutoAugment file of EfficientNet for TPUs, which big_vision keeps in `pp/archive`.
A level is `magnitude / 10`: the scales were made for levels up to 1; magnitudes 15 and 20 go beyond.

Magnitude 0 is not the identity. AutoContrast, Equalize and Invert have no strength, Solarize inverts
everything, Posterize keeps one bit and the enhancements blend with a factor of 0.1; the others then leave the
image alone.

Written for the host's cores, which decode and crop beside it: half a millisecond of one core for two layers
at 224 px. `tf.where`, `tf.gather` and arithmetic that broadcasts over the three channels cost several times a
pass over the bytes; hence masks that are multiplied, `tf.gather_nd`, and images seen as [height, width * 3].
"""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

FILL = 128  # gray level where a geometric operation or Cutout leaves no image
PUBLISHED_SIZE = 224  # px, the image size for which the next two are published
TRANSLATE = 100  # px at level 1
CUTOUT = 40  # px at level 1, half the side of the square
# As `tf.image.rgb_to_grayscale`, which goes through [0, 1] and back with a scale of 255.5, then truncates.
LUMA = [weight * 255.5 / 255 for weight in (0.2989, 0.5870, 0.1140)]


def _rows(image: tf.Tensor) -> tf.Tensor:
    """[height, width, 3] as [height, width * 3]."""
    return tf.reshape(image, [tf.shape(image)[0], tf.shape(image)[1] * 3])


def _per_channel(values: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """[3] repeated along a row: [width * 3]."""
    return tf.tile(values, [tf.shape(image)[1]])


def _to_bytes(values: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Float32 clipped and, as published, truncated to uint8 in the shape of `image`."""
    return tf.reshape(tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8), tf.shape(image))


def _gray(image: tf.Tensor) -> tf.Tensor:
    """The luma, truncated, in each channel: int32 [height * width, 3]. A matmul beats strided channels."""
    weights = tf.constant([[weight] * 3 for weight in LUMA])
    return tf.cast(tf.matmul(tf.reshape(tf.cast(image, tf.float32), [-1, 3]), weights), tf.int32)


def _blend(degenerate: tf.Tensor, values: tf.Tensor, level: float) -> tf.Tensor:
    """From the degenerate image (factor 0) through the image (factor 1) and beyond; all float32."""
    factor = level * 1.8 + 0.1
    return degenerate + factor * (values - degenerate)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0..255; a constant channel stays as it is."""
    pixels = tf.reshape(image, [-1, 3])
    low = tf.cast(tf.reduce_min(pixels, 0), tf.float32)
    high = tf.cast(tf.reduce_max(pixels, 0), tf.float32)
    scale = tf.where(high > low, 255.0 / (high - low), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    rows = tf.cast(_rows(image), tf.float32)
    return _to_bytes(rows * _per_channel(scale, image) + _per_channel(offset, image), image)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Equalizes each channel's histogram in PIL's integer arithmetic; a nearly constant channel stays."""
    bins = tf.cast(_rows(image), tf.int32) + _per_channel(tf.constant([0, 256, 512]), image)
    histogram = tf.math.bincount(tf.reshape(bins, [-1]), minlength=768, maxlength=768)
    below = tf.cumsum(tf.reshape(histogram, [3, 256]), axis=1, exclusive=True)
    # PIL counts all pixels but those of the brightest value that occurs.
    count = tf.reduce_max(tf.where(below < tf.size(image) // 3, below, 0), axis=1, keepdims=True)
    step = count // 255
    table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    table = tf.cast(tf.where(step == 0, tf.range(256), table), tf.uint8)
    return tf.reshape(tf.gather_nd(tf.reshape(table, [-1]), bins[..., None]), tf.shape(image))


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the highest `bits` bits.

    The published shift is undefined for 0 bits (magnitudes below 2.5), where TensorFlow's CPU kernel leaves
    one: so it is here. More than 8 (magnitudes above 22) are all of them.
    """
    dropped = 8 - min(max(bits, 1), 8)
    return tf.bitwise.bitwise_and(image, tf.constant(0xFF >> dropped << dropped, tf.uint8))


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts the pixels that are not below the threshold.

    The published code compares uint8 with int(level * 256), which wraps around (big_vision issue 110):
    magnitudes 10 and 20 have threshold 0 and invert everything, 15 has 128. Without the wrap all three would
    do nothing. The paper's models must have been trained with it, so it stays.
    """
    bright = tf.cast(image >= threshold % 256, tf.uint8)
    return tf.bitwise.bitwise_xor(image, bright * 255)


def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    """Brightens the pixels below 128, up to 255."""
    dark = tf.cast(image < 128, tf.uint8)
    return image + dark * tf.minimum(255 - image, min(addition, 255))


def color(image: tf.Tensor, level: float) -> tf.Tensor:
    """Blends with the gray image."""
    pixels = tf.cast(tf.reshape(image, [-1, 3]), tf.float32)
    return _to_bytes(_blend(tf.cast(_gray(image), tf.float32), pixels, level), image)


def contrast(image: tf.Tensor, level: float) -> tf.Tensor:
    """Blends with the mean, truncated, of the gray image, as PIL and big_vision do.

    EfficientNet's code, and big_vision's until 2024, took the number of pixels over 256 for the mean by
    mistake: 196 for every image of 224 x 224. The paper's models were probably trained with that; here it
    is repaired.
    """
    mean = tf.reduce_sum(_gray(image)) // tf.size(image)
    return _to_bytes(_blend(tf.cast(mean, tf.float32), tf.cast(image, tf.float32), level), image)


def brightness(image: tf.Tensor, level: float) -> tf.Tensor:
    """Blends with black."""
    return _to_bytes(_blend(tf.constant(0.0), tf.cast(image, tf.float32), level), image)


def sharpness(image: tf.Tensor, level: float) -> tf.Tensor:
    """Blends with the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; border pixels stay.

    The published convolution is truncated too, but rounding in float32 may leave a smooth area one too low.
    Here the sum is of whole numbers and its quotient exact.
    """
    rows = _rows(image)
    values = tf.cast(rows, tf.float32)
    columns = values[:-2] + values[1:-1] + values[2:]
    centre = values[1:-1, 3:-3]
    total = columns[:, :-6] + columns[:, 3:-3] + columns[:, 6:] + 4.0 * centre
    inner = _blend(tf.floor(total / 13.0), centre, level)
    inner = tf.cast(tf.clip_by_value(inner, 0.0, 255.0), tf.uint8)
    # `[1:][-1:]` is the last row, but nothing where the first is also the last; `[3:][-3:]` likewise.
    middle = tf.concat([rows[1:-1, :3], inner, rows[1:-1, 3:][:, -3:]], axis=1)
    return tf.reshape(tf.concat([rows[:1], middle, rows[1:][-1:]], axis=0), tf.shape(image))


def warp(image: tf.Tensor, x_from: list[tf.Tensor | float], y_from: list[tf.Tensor | float]) -> tf.Tensor:
    """Nearest-neighbour affine warp: out(x, y) is in(x_from · (x, y, 1), y_from · (x, y, 1)), `FILL` outside.

    What `ImageProjectiveTransformV3` does, but for ties in rounding, in a quarter of its time: coordinates
    come from a matmul, and whole pixels are gathered instead of channels.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    xs = tf.range(tf.cast(width, tf.float32))
    ys = tf.range(tf.cast(height, tf.float32))
    basis = tf.stack([ys, tf.ones_like(ys)], axis=1)

    def rounded(row: list[tf.Tensor | float], size: tf.Tensor) -> tf.Tensor:
        """Coordinates int32 [height, width] in the framed image; all that lies outside falls on the frame."""
        x_scale, y_scale, offset = row
        coordinates = tf.matmul(basis, tf.stack([tf.zeros_like(xs) + y_scale, x_scale * xs + (offset + 1.5)]))
        return tf.cast(tf.clip_by_value(coordinates, 0.0, tf.cast(size, tf.float32) + 1.0), tf.int32)

    framed = tf.pad(image, [[1, 1], [1, 1], [0, 0]], constant_values=FILL)
    source = rounded(y_from, height) * (width + 2) + rounded(x_from, width)
    return tf.gather_nd(tf.reshape(framed, [-1, 3]), source[..., None])


def rotate(image: tf.Tensor, radians: tf.Tensor) -> tf.Tensor:
    """Turns the image about its centre, counterclockwise for positive angles."""
    cos, sin = tf.cos(radians), tf.sin(radians)
    y_last, x_last = tf.unstack(tf.cast(tf.shape(image)[:2] - 1, tf.float32))
    x_offset = (x_last - (cos * x_last - sin * y_last)) / 2.0
    y_offset = (y_last - (sin * x_last + cos * y_last)) / 2.0
    return warp(image, [cos, -sin, x_offset], [sin, cos, y_offset])


def translate(image: tf.Tensor, pixels: tf.Tensor, axis: int) -> tf.Tensor:
    """out(i) is in(i + pixels) along the axis, `FILL` outside; in px of a 224 px image, rounded."""
    shape, rows = tf.shape(image), _rows(image)
    side = tf.cast(tf.reduce_min(shape[:2]), tf.float32)
    shift = tf.cast(tf.floor(pixels * (side / PUBLISHED_SIZE) + 0.5), tf.int32)
    shift = tf.clip_by_value(shift, -shape[axis], shape[axis]) * tf.constant([[1, 0], [0, 3]][axis])
    begin = tf.maximum(shift, 0)
    kept = tf.slice(rows, begin, tf.shape(rows) - tf.abs(shift))
    moved = tf.pad(kept, tf.stack([tf.maximum(-shift, 0), begin], axis=1), constant_values=FILL)
    return tf.reshape(moved, shape)


def cutout(image: tf.Tensor, pad: int, centre: tf.Tensor) -> tf.Tensor:
    """Fills a square of side 2 * pad (px of a 224 px image) about centre [y, x] in [0, 1); borders cut it."""
    shape = tf.shape(image)[:2]
    middle = tf.cast(centre * tf.cast(shape, tf.float32), tf.int32)
    half = pad * tf.reduce_min(shape) // PUBLISHED_SIZE
    top, left = tf.unstack(tf.maximum(middle - half, 0))
    bottom, right = tf.unstack(tf.minimum(middle + half, shape))
    square = tf.fill([bottom - top, right - left, 3], tf.constant(FILL, tf.uint8))
    band = tf.concat([image[top:bottom, :left], square, image[top:bottom, right:]], axis=1)
    return tf.concat([image[:top], band, image[bottom:]], axis=0)


# Takes an image, a level, a random sign (float32 1 or -1) and a random place (float32 [y, x] in [0, 1)).
Operation = Callable[[tf.Tensor, float, tf.Tensor, tf.Tensor], tf.Tensor]

OPERATIONS: dict[str, Operation] = {  # in the published order
    "AutoContrast": lambda image, level, sign, place: autocontrast(image),
    "Equalize": lambda image, level, sign, place: equalize(image),
    "Invert": lambda image, level, sign, place: 255 - image,
    "Rotate": lambda image, level, sign, place: rotate(image, sign * math.radians(level * 30)),
    "Posterize": lambda image, level, sign, place: posterize(image, int(level * 4)),
    "Solarize": lambda image, level, sign, place: solarize(image, int(level * 256)),
    "Color": lambda image, level, sign, place: color(image, level),
    "Contrast": lambda image, level, sign, place: contrast(image, level),
    "Brightness": lambda image, level, sign, place: brightness(image, level),
    "Sharpness": lambda image, level, sign, place: sharpness(image, level),
    "ShearX": lambda image, level, sign, place: warp(image, [1.0, sign * (level * 0.3), 0.0], [0.0, 1.0, 0.0]),
    "ShearY": lambda image, level, sign, place: warp(image, [1.0, 0.0, 0.0], [sign * (level * 0.3), 1.0, 0.0]),
    "TranslateX": lambda image, level, sign, place: translate(image, sign * (level * TRANSLATE), axis=1),
    "TranslateY": lambda image, level, sign, place: translate(image, sign * (level * TRANSLATE), axis=0),
    "Cutout": lambda image, level, sign, place: cutout(image, int(level * CUTOUT), place),
    "SolarizeAdd": lambda image, level, sign, place: solarize_add(image, int(level * 110)),
}


def _operate(operation: Operation, level: float, image: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """The operation with the sign and the place that a row of `draws` gives."""
    return operation(image, level, tf.where(row[1] < 0.5, -1.0, 1.0), row[2:])


def randaugment(image: tf.Tensor, draws: tf.Tensor, magnitude: float) -> tf.Tensor:
    """Applies one operation for each row of `draws`, picked uniformly among the sixteen.

    Args:
      image: uint8 [height, width, 3], at least 1 x 1 px; the size may be unknown until the graph runs.
      draws: float32 [layers, 4], uniform in [0, 1): the operation, the sign of a geometric one (negative
        below 0.5), and the centre of Cutout as y and x. The graph must know the number of layers.
      magnitude: at least 0; the paper has 10, 15 or 20. Translate and Cutout, published in pixels, scale with
        the image's shorter side and are as published at 224 px.

    Returns:
      uint8 [height, width, 3].
    """
    if magnitude < 0:
        raise ValueError(f"magnitude is {magnitude}; it must be at least 0")
    if image.shape.rank != 3 or image.dtype != tf.uint8:
        raise ValueError(f"image is {image.dtype.name} {image.shape}; it must be uint8 [height, width, 3]")
    if draws.shape.rank != 2 or draws.shape[0] is None or draws.shape[1] != 4:
        raise ValueError(f"draws is {draws.shape}; it must be [layers, 4] with a known number of layers")
    shape = image.shape
    signature = [tf.TensorSpec(shape, tf.uint8), tf.TensorSpec([4], tf.float32)]
    branches = []
    for operation in OPERATIONS.values():
        branch = functools.partial(_operate, operation, magnitude / 10)
        branches.append(tf.function(branch, signature, autograph=False).get_concrete_function())
    for row in tf.unstack(draws):
        choice = tf.cast(row[0] * len(branches), tf.int32)
        # `tf.switch_case` would inline every branch into one graph, whose dead nodes cost 0.1 ms a layer.
        (image,) = tf.raw_ops.StatelessCase(branch_index=choice, input=[image, row], Tout=[tf.uint8], branches=branches)
        image.set_shape(shape)
    return image
