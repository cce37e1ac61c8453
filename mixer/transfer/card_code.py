"""The code of a model card, which runs as pasted: from picture files to images, and from there to named classes."""

import json
from collections.abc import Sequence

from ml_collections import ConfigDict, FrozenConfigDict

from mixer.data.pixels import crops, permutation
from mixer.transfer.format import code_block

# How code without TensorFlow resizes `image` by an `EvalCrop.method`: definitions, and the line that does it.
# Pillow's box filter gives each pixel to one output, where the average over the area divides it; and its `resize`
# averages where TensorFlow's bilinear looks at two pixels a side, also where it makes an image smaller. Its `transform`
# truncates whole numbers, so each colour is resized in floating point (mode F).
_RESIZING = {
    "area": (
        [
            "def averaged(pixels, size):",
            "    edges, at = numpy.linspace(0, len(pixels), size + 1), numpy.arange(len(pixels))",
            "    share = numpy.minimum(edges[1:, None], at + 1) - numpy.maximum(edges[:-1, None], at)",
            "    return numpy.tensordot(share.clip(0) * size / len(pixels), pixels, 1)",
            "",
            "",
        ],
        "pixels = averaged(averaged(numpy.asarray(image), height).swapaxes(0, 1), width).swapaxes(0, 1)",
    ),
    "bilinear": (
        [
            "def interpolated(band, size):",
            "    place, method = (0, 0, *band.size), Image.Resampling.BILINEAR",
            '    return numpy.asarray(band.convert("F").transform(size, Image.Transform.EXTENT, place, method))',
            "",
            "",
        ],
        "pixels = numpy.stack([interpolated(band, (width, height)) for band in image.split()], 2)",
    ),
}
_FILTERS = {"area": "the average over the area of each pixel", "bilinear": "bilinear, without antialiasing"}
# Code, and words, for each `crops.RESIZE_ROUNDINGS`. The thousandth is for whole numbers that came out a little low.
_ROUNDINGS = {"round": ("pixels.round()", "rounded"), "truncate": ("(pixels + 0.001)", "truncated")}
# Lines of code, and words, for each `images.EXIF` and each `images.TRANSPARENT`.
_TURNING = {
    "rotate": (["    image = ImageOps.exif_transpose(image)"], "turned upright by its EXIF tag, "),
    "ignore": ([], ""),
}
_TRANSPARENCY = {
    "drop": ([], ""),
    "white": (
        [
            "    if image.has_transparency_data:",
            '        white = Image.new("RGBA", image.size, "white")',
            '        image = Image.alpha_composite(white, image.convert("RGBA"))',
        ],
        ", on white where it was transparent",
    ),
}
# Lines of code for each `permutation.PERMUTATIONS` but none; {size}, {grid}, {patch} and so on are numbers.
_PERMUTING = {
    "patches": [
        "random = numpy.random.RandomState({seed})",
        "numbers = numpy.arange({size}**2).reshape({grid}, {patch}, {grid}, {patch}).swapaxes(1, 2)",
        "numbers = numbers.reshape({grid}**2, {patch}**2)",
        "numbers = numbers[random.permutation({grid}**2)][:, random.permutation({patch}**2)]",
        "order = numbers.reshape({grid}, {grid}, {patch}, {patch}).swapaxes(1, 2).ravel()",
        "",
        "",
    ],
    "pixels": ["order = numpy.random.RandomState({seed}).permutation({size}**2)", "", ""],
}
# Measured on 194 photographs of ImageNet, each of another class, with simplejpeg 1.9.0 and Pillow 13.0.0.
_DECODERS = (
    "TensorFlow decodes JPEG by libjpeg-turbo with the fast integer transform (DCT), Pillow with the accurate one. On "
    "photographs Pillow's pixels differ by 1.1 levels of 255 on average, and have this cast: red +1.0, green 0.0, blue "
    "+1.2. TensorFlow's pixels without TensorFlow, before the EXIF tag is applied: "
    "`simplejpeg.decode_jpeg(data, fastdct=True)`."
)
PICTURE = "cat.jpg"  # the file that the code reads


def pictures(config: ConfigDict | FrozenConfigDict) -> list[str]:
    """Returns lines of Markdown with code that reads pictures as `mixer.predict` does; config is `config.input`."""
    crop, size, resize = crops.EVAL_CROPS[config.eval_crop], config.image_size, crops.eval_resize(config)
    if crop.keeps_aspect:
        sides = f"width, height = (max(round(side * ({resize} / min(image.size))), {resize}) for side in image.size)"
    else:
        sides = f"width = height = {resize}"
    with_tensorflow = f'pixels = tensorflow.image.resize(image, (height, width), method="{crop.method}").numpy()'
    definitions, resizing = _RESIZING.get(crop.method, (["import tensorflow", "", ""], with_tensorflow))
    libraries = "Pillow and NumPy alone" if crop.method in _RESIZING else "Pillow, NumPy and TensorFlow"
    turning, turned = _TURNING[config.get("exif", "rotate")]  # a run of an earlier version does not have all settings
    whole, rounded = _ROUNDINGS[config.get("resize_rounding", "round")]
    ordering, permuted = _permuting(config)
    compositing, on_white = _TRANSPARENCY[config.get("transparent", "drop")]
    return [
        f"A picture was {turned}decoded to RGB{on_white}, JPEG and PNG as by TensorFlow and all others by Pillow; "
        f"{crop.described.format(size=resize)} by {_FILTERS.get(crop.method, crop.method)} "
        f'(`tf.image.resize`, method="{crop.method}", {rounded} to uint8); and the central {size}x{size} were '
        f"taken{permuted}. With {libraries}, to within rounding and the decoder of JPEG, uint8 "
        f"[batch, {size}, {size}, 3]:",
        "",
        *code_block(
            "python",
            "import numpy",
            f"from PIL import Image{', ImageOps' if turning else ''}",
            "",
            "",
            *definitions,
            *ordering,
            "def prepared(path):",
            "    image = Image.open(path)",
            '    if image.mode[0] in "IF":',
            '        raise ValueError(f"{path} has more than 8 bits a pixel: scale it to 8, as mixer.predict does")',
            *turning,
            *compositing,
            '    image = image.convert("RGB")',
            f"    {sides}",
            f"    {resizing}",
            f"    left, top = (width - {size}) // 2, (height - {size}) // 2",
            f"    pixels = pixels[top : top + {size}, left : left + {size}]",
            f'    pixels = {whole}.astype("uint8")',
            f"    return {f'pixels.reshape(-1, 3)[order].reshape({size}, {size}, 3)' if ordering else 'pixels'}",
            "",
            "",
            f'images = numpy.stack([prepared(path) for path in ["{PICTURE}"]])',
        ),
        "",
        _DECODERS,
    ]


def _permuting(config: ConfigDict | FrozenConfigDict) -> tuple[list[str], str]:
    """Returns lines of code that define `order`, and words; both are empty if pixels stay where they are."""
    size, patch = config.image_size, config.get("permutation_patch") or 1
    numbers = {"size": size, "patch": patch, "grid": size // patch, "seed": config.get("permutation_seed", 0)}
    lines = [line.format(**numbers) for line in _PERMUTING.get(config.get("permutation", "none"), [])]
    return lines, f", {permutation.described(config)}" if lines else ""


def named(class_names: Sequence[str]) -> list[str]:
    """Returns lines of Markdown with the names of all classes, and code that shows the most probable ones.

    It ranks by logits: probabilities near one, of a sigmoid, may be equal where logits differ.
    """
    return [
        "The classes, in the order of the outputs:",
        "",
        *code_block(
            "python",
            f"class_names = {json.dumps(list(class_names), ensure_ascii=False)}",
            "for scores, shares in zip(numpy.asarray(logits), numpy.asarray(probabilities)):",
            "    for number in numpy.argsort(-scores)[:3]:",
            '        print(f"{shares[number]:.2%} {class_names[number]}")',
        ),
    ]
