"""The registry of augmentations: each has its own draws, and a new one does not change the draws of the others."""

import itertools
import math

import numpy as np
import pytest
from making import encode, input_config, photo
from reference_pixels import draws_of, train

from mixer.data.pixels import augment, augmentations, crops, images
from mixer.data.pixels.augmentations import AUGMENTATIONS, Augmentation
from mixer.data.pixels.color_jitter import color_jitter
from mixer.data.pixels.randaugment import randaugment

CONFIGS = {
    "plain": {},
    "no flips": {"flip": False},
    "randaugment": {"randaugment": 2},
    "colour jitter": {"randaugment": 1, "color_jitter": 0.5},
}


def inverted(num_draws: int = 3, seen: list | None = None) -> Augmentation:
    """Returns an augmentation that inverts every image, and records its draws in `seen`."""

    def invert(image, draws, config):
        if seen is not None:
            seen.append(draws)
        return 255 - image

    return Augmentation(lambda config: num_draws, invert, lambda config: "inverted")


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_every_draw_belongs_to_one_augmentation_or_to_the_crop(fields):
    config = input_config(**fields)
    slices = augmentations.draw_slices(config)
    assert set(slices) == {*AUGMENTATIONS, "crop"}
    mine = [np.arange(augmentations.num_draws(config))[part].tolist() for part in slices.values()]
    assert list(itertools.chain(*mine)) == list(range(augmentations.num_draws(config)))
    assert slices["crop"].stop - slices["crop"].start == crops.NUM_DRAWS


def test_the_draws_are_those_of_earlier_versions():
    """A change here would change the batches of every run."""
    assert augmentations.draw_slices(input_config(randaugment=2)) == {
        "flip": slice(0, 1), "crop": slice(1, 25), "randaugment": slice(25, 33), "color_jitter": slice(33, 33),
    }  # fmt: skip


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_new_augmentation_moves_no_draws(monkeypatch, fields):
    config = input_config(**fields)
    before = augmentations.draw_slices(config)
    monkeypatch.setitem(AUGMENTATIONS, "invert", inverted())
    stop = max(part.stop for part in before.values())
    assert augmentations.draw_slices(config) == before | {"invert": slice(stop, stop + 3)}


def test_a_new_augmentation_comes_last_and_gets_its_own_draws(monkeypatch):
    config, seen = input_config(randaugment=1), []
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    old = augmentations.draw_slices(config)
    draws = np.random.default_rng(1).random(augmentations.num_draws(config) + 3, np.float32)
    before = augmentations.augment(image, draws, old, config)
    monkeypatch.setitem(AUGMENTATIONS, "invert", inverted(3, seen))
    found = augmentations.augment(image, draws, augmentations.draw_slices(config), config)
    np.testing.assert_array_equal(found, 255 - before)
    np.testing.assert_array_equal(seen, draws[None, -3:])


def test_an_augmentation_without_draws_is_off(monkeypatch):
    config = input_config(flip=False)
    monkeypatch.setitem(AUGMENTATIONS, "invert", inverted(0))
    image = np.zeros((16, 16, 3), np.uint8)
    draws = np.zeros(augmentations.num_draws(config), np.float32)
    found = augmentations.augment(image, draws, augmentations.draw_slices(config), config)
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_every_augmentation_is_described(name, fields):
    assert AUGMENTATIONS[name].described(input_config(**fields)).strip()


@pytest.mark.parametrize(
    ("fields", "described"),
    [
        ({}, ["flips", "no RandAugment", "no colour jitter"]),
        (
            {"flip": False, "randaugment": 2},
            ["no flips", "RandAugment of 2 layers, magnitude 10", "no colour jitter"],
        ),
        ({"color_jitter": 0.5}, ["flips", "no RandAugment", "colour jitter 0.5"]),
    ],
)
def test_the_descriptions_follow_the_config(fields, described):
    config = input_config(**fields)
    assert [one.described(config) for one in AUGMENTATIONS.values()] == described


@pytest.mark.parametrize(("draw", "flipped"), [(0.0, False), (0.49999997, False), (0.5, True), (0.99999994, True)])
def test_a_draw_of_one_half_or_more_mirrors_left_to_right(draw, flipped):
    image = photo(5, 5)
    found = augmentations.flip(image, np.array([draw], np.float32), input_config())
    np.testing.assert_array_equal(found, image[:, ::-1] if flipped else image)


def test_without_flip_none_is_flipped():
    config = input_config(flip=False)
    pixels = photo(16, 16)
    for draws in draws_of(config, 8):
        np.testing.assert_array_equal(
            train(encode(pixels), images.PNG, (16, 16), (0, 0, 16, 16), draws, config), pixels
        )


def test_half_are_flipped_whatever_the_window():
    config = input_config()
    draws = draws_of(config, 20_000)
    windows = augment.crop_windows(np.tile([300, 300], (20_000, 1)), draws, config)
    flipped = draws[:, 0] >= 0.5
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / math.sqrt(20_000)
    for column in windows.T:
        assert abs(np.corrcoef(flipped, column)[0, 1]) < 5 / math.sqrt(20_000)


def test_colour_jitter_comes_after_randaugment_and_has_draws_of_its_own():
    plain, jittered = input_config(randaugment=1), input_config(randaugment=1, color_jitter=0.7)
    draws = np.random.default_rng(1).random(augmentations.num_draws(jittered), np.float32)
    before = augmentations.augment(photo(16, 16), draws, augmentations.draw_slices(plain), plain)
    found = augmentations.augment(photo(16, 16), draws, augmentations.draw_slices(jittered), jittered)
    np.testing.assert_array_equal(found, color_jitter(before, draws[-5:], 0.7))
    assert (found != before).any()


def test_randaugment_comes_after_the_crop_and_has_draws_of_its_own():
    plain, augmented = input_config(), input_config(randaugment=2)
    assert augmentations.num_draws(augmented) == augmentations.num_draws(plain) + 8
    file, of = encode(photo(40, 40)), (images.PNG, (40, 40), (3, 4, 30, 30))
    changed = 0
    for row in draws_of(augmented, 20):
        before = train(file, *of, row[: augmentations.num_draws(plain)], plain)
        found = train(file, *of, row, augmented)
        layers = row[augmentations.num_draws(plain) :].reshape(2, 4)
        np.testing.assert_array_equal(found, randaugment(before, layers, 10.0))
        changed += (found != before).any()
    assert changed > 10
