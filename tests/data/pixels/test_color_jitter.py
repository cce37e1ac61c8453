"""Colour jitter against a rotation by SciPy, and what it leaves alone."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mixer.data.pixels.color_jitter import color_jitter

UNCHANGED = [0.5, 0.5, 0.5, 0.5, 0.999]  # draws in the middle; and the last, not grey


def pixels(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)


def draws(**changes):
    names = ("hue", "saturation", "contrast", "brightness", "grey")
    return np.array([changes.get(name, value) for name, value in zip(names, UNCHANGED, strict=True)], np.float32)


def test_draws_in_the_middle_change_nothing():
    np.testing.assert_array_equal(color_jitter(pixels(), draws(), 1.0), pixels())


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_turn_about_the_greys_a_stretch_and_a_shift(seed, strength):
    """In float64: hue turns by up to half a circle, and the others scale as the docstring says."""
    image, random = pixels(seed), np.random.default_rng(seed).uniform(size=5).astype(np.float32)
    random[4] = 0.999
    hue, saturation, contrast, brightness = (2 * np.float64(random[:4]) - 1) * strength
    colours = image.reshape(-1, 3) / 127.5 - 1
    turned = Rotation.from_rotvec(np.pi * hue * np.ones(3) / np.sqrt(3)).apply(colours)
    means = turned.mean(1, keepdims=True)
    changed = np.exp(0.5 * contrast) * (means + np.exp(0.7 * saturation) * (turned - means)) + 0.3 * brightness
    expected = np.clip((changed + 1) * 127.5, 0, 255)
    found = color_jitter(image, random, strength).reshape(-1, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.501


def test_a_third_of_a_circle_exchanges_the_channels():
    third = draws(hue=0.5 + 1 / 3)  # 2 pi / 3 of pi
    np.testing.assert_array_equal(color_jitter(pixels(), third, 1.0), pixels()[..., [2, 0, 1]])


def test_a_fifth_lose_their_colours_and_keep_their_means():
    for draw in np.linspace(0, 0.999, 21):
        found = color_jitter(pixels(), draws(grey=draw, hue=0.8, saturation=0.9), 1.0)
        is_grey = bool((found == found[..., :1]).all())
        assert is_grey == (draw < 0.2)
        if is_grey:
            np.testing.assert_allclose(found[..., 0], pixels().mean(-1), atol=0.51)
    assert (color_jitter(pixels(), draws(grey=0.15), 0.5) == pixels()).all()  # half as many at half the strength


def test_grey_stays_grey():
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    found = color_jitter(grey, draws(hue=0.9, saturation=0.9, contrast=0.2, brightness=0.7), 1.0)
    assert (found == found[..., :1]).all()
    assert (np.diff(found[..., 0].ravel().astype(int)) >= 0).all()
