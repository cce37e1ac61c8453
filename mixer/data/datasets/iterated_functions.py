"""Pictures of iterated function systems: finds systems, computes their points and paints them.

An iterated function system is a small set of contracting affine maps. Its attractor is the set of points that one
reaches by applying randomly chosen maps again and again (the chaos game). `fractals.py` names the source.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

MIN_FILLED = 0.2  # the least share of the picture's pixels that a category must fill
# The largest mean log norm of the maps. It is below log(1/1.2), so systems with scaled parameters contract too.
MAX_LOG_STRETCH = -0.2
_AREA_SIZE = 32  # pixels; the filled area is always measured at this size, so categories do not depend on the size
_WALKERS = 128  # points that move at the same time
_BURN_IN = 20  # steps until the points are on the attractor
_POINTS_PER_PIXEL = 4.0
_POINTS_AT_ONCE = 1 << 21  # limits the memory; a point takes about 60 bytes
_STREAM_SYSTEM, _STREAM_ORBIT, _STREAM_INSTANCE = 0, 1, 2  # separate random streams of one category


class System(NamedTuple):
    """An iterated function system.

    Attributes:
      maps: coefficients. Row (a, b, c, d, e, f) maps (x, y) to (ax + by + e, cx + dy + f).
      probabilities: the probability of each map, proportional to |ad - bc|.
    """

    maps: Float[np.ndarray, "maps 6"]
    probabilities: Float[np.ndarray, "maps"]


@functools.lru_cache(maxsize=4096)
def find_system(seed: int, category: int) -> System:
    """Draws random systems until one contracts and its attractor fills at least MIN_FILLED of the pixels."""
    rng = np.random.default_rng([seed, category, _STREAM_SYSTEM])
    while True:
        maps = rng.uniform(-1.0, 1.0, (rng.integers(2, 9), 6))
        linear = maps[:, :4].reshape(-1, 2, 2)
        areas = np.abs(np.linalg.det(linear))
        system = System(maps, areas / areas.sum())
        stretch = np.log(np.linalg.norm(linear, ord=2, axis=(1, 2)))
        if system.probabilities @ stretch > MAX_LOG_STRETCH:
            continue
        x, y = orbit(maps[None], system.probabilities, (seed, category), _AREA_SIZE)
        if filled(count_points(*fit(x, y), _AREA_SIZE))[0] >= MIN_FILLED:
            return system


def draw(seed: int, category: int, instances: range, size: int) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    """Yields the images of some instances of one category, each [size, size, 3]."""
    system = find_system(seed, category)
    at_once = max(1, int(_POINTS_AT_ONCE // (_POINTS_PER_PIXEL * size**2)))
    for first in range(0, len(instances), at_once):
        part = instances[first : first + at_once]
        # Each instance has its own generator, so its draws do not depend on other instances.
        uniform = np.stack([np.random.default_rng([seed, category, _STREAM_INSTANCE, i]).random(_DRAWS) for i in part])
        counts = _count(system, uniform, (seed, category), size)
        yield from paint(counts, uniform[:, _LOOK])


# What the uniform numbers of an instance are used for.
_WEIGHTS, _PLACE, _LOOK, _DRAWS = slice(0, 6), slice(6, 12), slice(12, 32), 32


def _count(
    system: System, uniform: Float[np.ndarray, "n draws"], key: tuple[int, int], size: int
) -> Int[np.ndarray, "n {size} {size}"]:
    """Counts each instance's points per pixel. If the scaled system fills too little, it is scaled less."""
    counts = np.zeros((len(uniform), size, size), np.int64)
    todo = np.arange(len(uniform))
    for strength in (0.2, 0.1, 0.05, 0.0):
        weights = 1.0 + strength * (2.0 * uniform[todo, _WEIGHTS] - 1.0)
        x, y = orbit(system.maps * weights[:, None, :], system.probabilities, key, size)
        counts[todo] = count_points(*fit(x, y, uniform[todo, _PLACE]), size)
        # A quarter of the category's minimum is enough, because an instance may cover only half of the picture. The
        # share of a thin shape is smaller in a larger picture.
        todo = todo[filled(counts[todo]) < MIN_FILLED / 4 * min(1.0, _AREA_SIZE / size)]
        if not len(todo):
            break
    return counts


def orbit(
    maps: Float[np.ndarray, "n maps 6"],
    probabilities: Float[np.ndarray, "maps"],
    key: tuple[int, int],
    size: int,
) -> tuple[Float32[np.ndarray, "points n"], Float32[np.ndarray, "points n"]]:
    """Plays the chaos game for `n` systems at once and returns the x and y coordinates of their points.

    Each step shuffles the walkers and cuts them into one block for each map, in proportion to the probabilities. So a
    map is one multiplication of a block. If each walker chose its own map, its six coefficients would have to be
    gathered. The shuffles depend on the category, and are the same for all its instances.

    Args:
      maps: coefficients of each system's maps.
      probabilities: of the maps, the same for all systems.
      key: (seed, category).
      size: side of the picture in pixels. The number of points is proportional to its square.
    """
    rng = np.random.default_rng([*key, _STREAM_ORBIT])
    cuts = np.rint(np.cumsum(probabilities) * _WALKERS).astype(int)
    blocks = [slice(start, stop) for start, stop in zip([0, *cuts[:-1]], cuts, strict=True)]
    a, b, c, d, e, f = np.moveaxis(maps.astype(np.float32), (2, 1, 0), (0, 1, 2))  # each [maps, n]
    steps = int(np.ceil(_POINTS_PER_PIXEL * size**2 / _WALKERS))
    x, y = np.zeros((2, _WALKERS, len(maps)), np.float32)
    xs, ys = np.empty((2, steps, _WALKERS, len(maps)), np.float32)
    for step in range(-_BURN_IN, steps):
        order = rng.permutation(_WALKERS)
        old_x, old_y = x[order], y[order]
        if step >= 0:
            x, y = xs[step], ys[step]
        for k, block in enumerate(blocks):
            u, v = old_x[block], old_y[block]
            x[block] = a[k] * u + b[k] * v + e[k]
            y[block] = c[k] * u + d[k] * v + f[k]
    return xs.reshape(-1, len(maps)), ys.reshape(-1, len(maps))


def fit(
    x: Float32[np.ndarray, "points n"],
    y: Float32[np.ndarray, "points n"],
    place: Float[np.ndarray, "n 6"] | None = None,
) -> tuple[Float32[np.ndarray, "points n"], Float32[np.ndarray, "points n"]]:
    """Scales each system's points to the unit square. `place`, if given, first rotates and flips, then moves them.

    Args:
      x: coordinates.
      y: coordinates.
      place: uniform numbers in [0, 1): rotation, flip of x, flip of y, scale, and position in x and y.
    """
    if place is not None:
        turn, flip_x, flip_y, scale, left, top = place.T.astype(np.float32)
        angle = (turn - 0.5) * np.float32(np.pi / 6)  # from -15 to 15 degrees
        sign_x, sign_y = np.where(flip_x < 0.5, 1, -1), np.where(flip_y < 0.5, 1, -1)
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = (
            x * (sign_x * cos).astype(np.float32) - y * (sign_y * sin).astype(np.float32),
            x * (sign_x * sin).astype(np.float32) + y * (sign_y * cos).astype(np.float32),
        )
        side = 0.7 + 0.3 * scale  # of the square that the points fill
    fitted = []
    for values in (x, y):
        low, high = values.min(0), values.max(0)
        unit = (values - low) / np.maximum(high - low, np.float32(1e-6))
        fitted.append(unit)
    if place is None:
        return fitted[0], fitted[1]
    return fitted[0] * side + (1 - side) * left, fitted[1] * side + (1 - side) * top


def count_points(
    x: Float32[np.ndarray, "points n"], y: Float32[np.ndarray, "points n"], size: int
) -> Int[np.ndarray, "n {size} {size}"]:
    """Counts the points of each system in each pixel of the unit square."""
    systems = x.shape[1]
    # The points of a diverging system are not finite. They all go to the first pixel, so its filled area is too small.
    column, row = (
        np.nan_to_num(np.minimum(values * size, size - 1), nan=0.0, posinf=0.0, neginf=0.0).astype(np.int32)
        for values in (x, y)
    )
    pixels = (np.arange(systems, dtype=np.int32) * size + row) * size + column
    return np.bincount(pixels.ravel(), minlength=systems * size**2).reshape(systems, size, size)


def filled(counts: Int[np.ndarray, "n h w"]) -> Float[np.ndarray, "n"]:
    """Returns the share of pixels that have a point, for each picture."""
    share: np.ndarray = np.mean(counts > 0, axis=(1, 2))
    return share


def paint(counts: Int[np.ndarray, "n h w"], look: Float[np.ndarray, "n 20"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Paints the counts of points in two colours on a background.

    Half of the instances have a random 3x3 dot at each point, the others a single pixel.

    Args:
      counts: points in each pixel.
      look: uniform numbers in [0, 1). They choose the dots, the gamma, the polarity and the colours.
    """
    choice, gamma, polarity = look[:, 0], look[:, 1], look[:, 2]
    dots = (look[:, 3:12] < 0.5).astype(np.float32)
    dots[choice < 0.5] = 0
    dots[:, 4] = 1  # the point itself
    level = np.log1p(counts.astype(np.float32))
    padded = np.pad(level, ((0, 0), (1, 1), (1, 1)))
    height, width = level.shape[1:]
    for k in range(9):
        shifted = padded[:, k // 3 : k // 3 + height, k % 3 : k % 3 + width]
        level = np.maximum(level, shifted * dots[:, k, None, None])
    level /= np.maximum(level.max(axis=(1, 2), keepdims=True), 1e-6)
    level **= (0.5 + gamma[:, None, None]).astype(np.float32)

    # Two thirds are light on dark. Light and dark differ by at least 0.25 in each channel, so every shape is visible.
    light = (1.0 - 0.5 * look[:, 12:18]).reshape(-1, 2, 3)
    dark = (0.25 * look[:, 12:18]).reshape(-1, 2, 3)
    other = look[:, [18, 19, 12]]
    on_dark = (polarity < 2 / 3)[:, None]
    ground = np.where(on_dark, 0.25 * other, 1.0 - 0.5 * other)
    faint, dense = (np.where(on_dark, light[:, i], dark[:, i]) for i in range(2))
    mix = level[..., None]
    colour = faint[:, None, None] * (1 - mix) + dense[:, None, None] * mix
    ink = np.minimum(1.0, 2.0 * mix)
    painted: np.ndarray = np.rint(255 * (ground[:, None, None] * (1 - ink) + colour * ink))
    return painted.astype(np.uint8)
