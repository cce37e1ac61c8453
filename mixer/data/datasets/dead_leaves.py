"""Draws pictures of shapes that lie on each other as fallen leaves do, each with a texture and colours of its own.

Sources: the dead leaves model (Lee, Mumford & Huang, 2001), of which Baradad et al. (arXiv 2106.05963) show that models
can be pre-trained on it. There a leaf has one colour or a natural texture; here textures are sums of warped waves.
"""

import numpy as np
from jaxtyping import Float, UInt8

_LEAVES = (1, 8)  # the fewest and the most of a picture
_WAVES = 8  # of a texture
_FREQUENCIES = (0.6, 12.0)  # of waves, radians over half of the picture
_RADII = (0.15, 0.9)  # of leaves, over half of the picture

Plane = Float[np.ndarray, "size size"]
Colours = Float[np.ndarray, "3 size size"]

# Profiles of a wave, from an angle to -1..1: smooth, with creases, with edges, and skewed.
_PROFILES = (
    np.sin,
    lambda angle: 2 * np.abs(np.sin(angle)) - 1,
    lambda angle: np.tanh(3 * np.sin(angle)),
    lambda angle: np.sin(angle + np.sin(2 * angle)),
)


def picture(seed: int, number: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Draws the picture of that number. It does not depend on the other pictures.

    Args:
      seed: of all pictures.
      number: of the picture, from 0.
      size: of a side in pixels. Pictures of two sizes show the same, but for what is smaller than a pixel.
    """
    rng = np.random.default_rng([seed, number])
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) / size * 2 - 1] * 2, indexing="ij")
    colours = _texture(rng, y, x)
    for _ in range(rng.integers(_LEAVES[0], _LEAVES[1] + 1)):
        inside, shade = _leaf(rng, y, x)
        colours = colours * (1 - inside) + np.clip(_texture(rng, y, x) * shade, 0, 1) * inside
    drawn: np.ndarray = np.rint(colours * 255).astype(np.uint8).transpose(1, 2, 0)
    return drawn


def _leaf(rng: np.random.Generator, y: Plane, x: Plane) -> tuple[Plane, Plane]:
    """Draws a leaf: an ellipse, a rectangle or a star, anywhere in the picture.

    Returns:
      inside: 1 inside, 0 outside, and between them the share of a pixel at the edge.
      shade: the brightness, which grows from one side to the other.
    """
    top, left = rng.uniform(-1, 1, 2)
    radius, stretch = _between(rng, _RADII), np.exp(rng.normal(0, 0.4))
    u, v = _rotated(rng, y - top, x - left)
    u, v = u * stretch, v / stretch
    shape = rng.integers(3)
    distance = np.maximum(np.abs(u), np.abs(v)) if shape == 1 else np.hypot(u, v)
    if shape == 2:
        corners, depth, phase = rng.integers(3, 8), rng.uniform(0.1, 0.5), rng.uniform(0, 2 * np.pi)
        distance = distance * (1 + depth * np.sin(corners * np.arctan2(v, u) + phase))
    slope_u, slope_v = rng.normal(0, 0.25, 2)
    inside = np.clip((radius - distance) * len(y) / 2 + 0.5, 0, 1)
    return inside, 1 + (slope_u * u + slope_v * v) / radius


def _texture(rng: np.random.Generator, y: Plane, x: Plane) -> Colours:
    """Draws a texture that fills the plane: a colour, and waves in brightness and in each channel. In 0..1."""
    brightness, *channels = _waves(rng, y, x)
    colour = rng.uniform(0, 1, 3)
    contrast = rng.normal(0, 1, 3) * np.exp(rng.normal(-1.2, 0.6))
    variety = 0.5 * np.exp(rng.normal(-2.3, 0.7))
    texture = colour[:, None, None] + contrast[:, None, None] * brightness + variety * np.stack(channels)
    in_range: Colours = np.clip(texture, 0, 1)
    return in_range


def _waves(rng: np.random.Generator, y: Plane, x: Plane) -> Float[np.ndarray, "4 size size"]:
    """Draws four sums of the same waves, of about unit variance."""
    frequency, stretch = _between(rng, _FREQUENCIES), np.exp(rng.normal(0, 0.6))
    u, v = _rotated(rng, y, x)
    u, v = u * frequency * stretch, v * frequency / stretch
    for _ in range(rng.integers(3)):  # warps
        amount, (phase, other_phase), (rate, other_rate) = (
            rng.uniform(0.2, 1.2), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.5, 2, 2),
        )  # fmt: skip
        u, v = u + amount * np.sin(rate * v + phase), v + amount * np.sin(other_rate * u + other_phase)
    directions, phases = rng.normal(size=(2, _WAVES, 1, 1)), rng.uniform(0, 2 * np.pi, (_WAVES, 1, 1))
    waves = _PROFILES[rng.integers(len(_PROFILES))](directions[0] * u + directions[1] * v + phases)
    sums: np.ndarray = np.tensordot(rng.normal(size=(4, _WAVES)) / np.sqrt(_WAVES), waves, 1)
    return sums


def _rotated(rng: np.random.Generator, y: Plane, x: Plane) -> tuple[Plane, Plane]:
    angle = rng.uniform(0, np.pi)
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Draws a number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(*np.log(bounds))))
