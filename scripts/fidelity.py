"""Measures how far the departures from the published code (docs/fidelity.md) change pixels and the first loss.

    python scripts/fidelity.py DIR

DIR is a folder of JPEG photographs.
"""

import argparse
import math
import pathlib

import numpy as np
from etils import epy
from PIL import Image

with epy.lazy_imports():  # they take seconds, for which --help does not wait
    import optax

    from mixer.config import recipe
    from mixer.data import order
    from mixer.data.pixels import crops, randaugment

_SIZE = 224
_ASPECTS = {"published": (0.75, 1.33), "here": (0.75, 4 / 3)}


def main() -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=pathlib.Path, metavar="DIR", help="a folder of JPEG photographs")
    paths = sorted(path for path in parser.parse_args().images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    photos = [np.asarray(Image.open(path).convert("RGB").resize((_SIZE, _SIZE))) for path in paths]

    means = (randaugment.published_mean, randaugment.pil_mean)
    pairs = [[randaugment.contrast(photo, 1.5, mean(photo)).astype(float) for mean in means] for photo in photos]
    low, middle, high = np.percentile([np.abs(published - pil).mean() for published, pil in pairs], [10, 50, 90])
    print(f"contrast at magnitude 15, published against pil: {middle:.0f} levels, {low:.0f} to {high:.0f} mostly")

    exact = [np.asarray(Image.fromarray(photo).convert("F").resize((200, 200))) for photo in photos]
    print(f"resize, round against truncate: {np.mean([np.rint(of) - np.floor(of) for of in exact]):+.2f} levels")

    turned = sum(Image.open(path).getexif().get(0x0112, 1) > 1 for path in paths)
    print(f"EXIF: {turned} of {len(paths)} photographs are stored turned")

    sizes, draws = np.full((100_000, 2), (375, 500)), order.uniform(0, np.arange(100_000), crops.NUM_DRAWS)
    config = recipe.base().input
    shares = {}
    for name, config.crop_aspect in _ASPECTS.items():
        shares[name] = crops.inception_window(sizes, draws, config)
    moved = np.abs(shares["published"] - shares["here"]).max(axis=1)
    print(f"aspect 4/3 against 1.33: {np.mean(moved > 0):.0%} of windows move, by {moved.mean():.2f} pixels on average")

    for classes in (10, 1000, 21_843):
        target = np.eye(1, classes, dtype=np.float32)
        losses = [
            float(optax.sigmoid_binary_cross_entropy(np.full((1, classes), bias, np.float32), target).sum())
            for bias in (-6.9, -10.0, -math.log(classes))
        ]
        print(f"first loss, {classes:,} classes: bias -6.9 {losses[0]:.2f}, -10 {losses[1]:.2f}, -ln {losses[2]:.2f}")


if __name__ == "__main__":
    main()
