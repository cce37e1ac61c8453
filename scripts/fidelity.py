"""Measures how far the departures from the published code (docs/fidelity.md) change pixels and the first loss.

    python scripts/fidelity.py DIR

DIR is a folder of JPEG photographs.
"""

import argparse
import math
import pathlib
import sys
from typing import Any

import numpy as np
from etils import epy
from PIL import Image

with epy.lazy_imports():  # they take seconds, for which --help does not wait
    import jax
    import jax.numpy as jnp
    import optax

    from mixer import models
    from mixer.config import recipe
    from mixer.data import order, plain_images
    from mixer.data.pixels import crops, randaugment

_SIZE = 224
_FEW = 16  # photographs, for the gradient
_PHOTO = (375, 500)  # height and width in pixels, as most of ImageNet's
_ASPECTS = {"published": (0.75, 1.33), "here": (0.75, 4 / 3)}


def main() -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=pathlib.Path, metavar="DIR", help="a folder of JPEG photographs")
    folder = parser.parse_args().images
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        parser.error(f"{folder} has no JPEG photographs")
    photos = [_photo(path) for path in paths]

    contrasts = (randaugment.published_mean, randaugment.pil_mean)
    pairs = [[randaugment.contrast(photo, 1.5, mean(photo)).astype(float) for mean in contrasts] for photo in photos]
    low, middle, high = np.percentile([np.abs(published - pil).mean() for published, pil in pairs], [10, 50, 90])
    print(f"contrast at magnitude 15, published against pil: {middle:.0f} levels, {low:.0f} to {high:.0f} mostly")

    config, files = recipe.base().input, [path.read_bytes() for path in paths]
    config.image_size = 200
    levels = {}  # on average, in training and in evaluation
    for config.resize_rounding in crops.RESIZE_ROUNDINGS:
        trained = np.mean([crops.resize(photo, np.empty(0), config) for photo in photos])
        levels[config.resize_rounding] = trained, np.mean([plain_images.eval_image(file, config)[0] for file in files])
    for when, rounded, truncated in zip(("training", "evaluation"), levels["round"], levels["truncate"], strict=True):
        print(f"resize in {when}, round against truncate: {rounded - truncated:+.2f} levels")

    turned = sum(Image.open(path).getexif().get(0x0112, 1) > 1 for path in paths)
    print(f"EXIF: {turned} of {len(paths)} photographs are stored turned")

    sizes, draws = np.full((100_000, 2), _PHOTO), order.uniform(0, np.arange(100_000), crops.NUM_DRAWS)
    shares = {}
    for name, config.crop_aspect in _ASPECTS.items():
        shares[name] = crops.inception_window(sizes, draws, config)
    moved = np.abs(shares["published"] - shares["here"]).max(axis=1)
    print(f"aspect 4/3 against 1.33: {np.mean(moved > 0):.0%} of windows move, by {moved.mean():.2f} pixels on average")

    for name, windows in (
        ("here", shares["here"]),
        ("TensorFlow", _tensorflows(20_000)),
        ("torchvision", _torchvisions(20_000)),
    ):
        print(f"crops of 5 to 100%, {name}: {_described(windows)}")

    for classes in (10, 1000, 21_843):
        target = np.eye(1, classes, dtype=np.float32)
        losses = [
            float(optax.sigmoid_binary_cross_entropy(np.full((1, classes), bias, np.float32), target).sum())
            for bias in (-6.9, -10.0, -math.log(classes))
        ]
        print(f"first loss, {classes:,} classes: bias -6.9 {losses[0]:.2f}, -10 {losses[1]:.2f}, -ln {losses[2]:.2f}")

    config.image_size = _SIZE
    images = np.stack([plain_images.eval_image(file, config)[0] for file in files[:_FEW]])
    here, published = _gradient_errors(images / np.float32(127.5) - 1)
    print(f"first gradient of S/32: {here:.2%} off with bfloat16, {published:.2%} with factors of products rounded")


def _gradient_errors(images: np.ndarray) -> list[float]:
    """Returns how far rounding moves the gradient of a fresh S/32, over the float32 gradient's norm.

    First as `model.dtype=bfloat16` computes, then as a TPU computes the published code: all is float32, but the factors
    of products are rounded to bfloat16. The convolution of the stem, whose factors it rounds too, is float32 here.

    Args:
      images: float32 [batch, 224, 224, 3]; each is of a class of its own.
    """
    keys, labels = jax.random.split(jax.random.key(0)), jnp.arange(len(images))
    exact = models.create("S/32", len(images))
    params = exact.init(keys[0], images[:1])["params"]
    kernel = params["head"]["kernel"]
    params["head"]["kernel"] = 0.02 * jax.random.normal(keys[1], kernel.shape)  # from zeros no gradient would pass it

    def loss(params: Any, model: Any) -> Any:
        logits = model.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    rounding = [models.create("S/32", len(images), dtype="bfloat16"), exact.clone(dot_general=_of_rounded_factors)]
    expected, *found = (jax.grad(loss)(params, model) for model in (exact, *rounding))
    differences = [optax.tree.sub(gradient, expected) for gradient in found]
    return [float(optax.tree.norm(of_all) / optax.tree.norm(expected)) for of_all in differences]


def _of_rounded_factors(x: Any, kernel: Any, dimensions: Any, precision: Any = None) -> Any:
    """Multiplies in place of `jax.lax.dot_general` as a TPU does by default, forwards and backwards."""

    @jax.custom_vjp
    def product(x: Any, kernel: Any) -> Any:
        return rounded(x) @ rounded(kernel)

    def rounded(x: Any) -> Any:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)

    def backward(factors: Any, gradient: Any) -> Any:
        x, kernel = map(rounded, factors)
        return rounded(gradient) @ kernel.T, jnp.einsum("...k,...n->kn", x, rounded(gradient))

    product.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), backward)
    return product(x, kernel)


def _photo(path: pathlib.Path) -> np.ndarray:
    """Returns a photograph of 224 x 224 pixels; ends the script if it cannot be read."""
    try:
        return np.asarray(Image.open(path).convert("RGB").resize((_SIZE, _SIZE)))
    except (OSError, ValueError, SyntaxError) as error:
        sys.exit(f"error: {path} cannot be read as a picture ({error}): leave it out")


def _tensorflows(number: int) -> np.ndarray:
    """Draws windows by TensorFlow's operation, which the published code calls: int [n, 4] as those of `crops`."""
    from mixer.data.tensorflow import tf  # only now: it takes seconds

    def window(seed: Any) -> Any:
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            (*_PHOTO, 3), tf.zeros((0, 0, 4)), tf.stack([seed, 7]), min_object_covered=0.0,
            area_range=(0.05, 1.0), aspect_ratio_range=_ASPECTS["here"],
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        return tf.concat([begin[:2], size[:2]], 0)

    seeds = tf.data.Dataset.range(number).map(lambda number: window(tf.cast(number, tf.int32)), tf.data.AUTOTUNE)
    return np.stack(list(seeds.as_numpy_iterator()))


def _torchvisions(number: int) -> np.ndarray:
    """Draws windows by the rule of torchvision's RandomResizedCrop: the area is uniform, the aspect log-uniform.

    After ten windows that do not fit it takes the whole of a photograph with this aspect.
    """
    rng, found = np.random.default_rng(0), []
    for _ in range(number):
        for _ in range(10):
            area = math.prod(_PHOTO) * rng.uniform(0.05, 1)
            aspect = math.exp(rng.uniform(*np.log(_ASPECTS["here"])))
            height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if height <= _PHOTO[0] and width <= _PHOTO[1]:
                top, left = (
                    int(rng.integers(0, whole - side + 1)) for whole, side in zip(_PHOTO, (height, width), strict=True)
                )
                found.append((top, left, height, width))
                break
        else:
            found.append((0, 0, *_PHOTO))
    return np.array(found)


def _described(windows: np.ndarray) -> str:
    top, left, height, width = windows.T
    share = height * width / math.prod(_PHOTO)
    at_edge = (top + height == _PHOTO[0]) | (left + width == _PHOTO[1])
    sizes = f"{share.mean():.3f} of a photograph on average, {share.min():.2%} at least"
    return f"{sizes}; {at_edge.mean():.1%} touch the last row or column"


if __name__ == "__main__":
    main()
