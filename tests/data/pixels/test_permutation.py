"""Permutations of pixels: by hand, in every way of making a batch, and what is exact about a Mixer under them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_models
from float64 import mixer
from making import encode, evaluate, examples_of, input_config, photo, source_of

from mixer.data import pipeline, plain_images
from mixer.data.pixels import permutation
from mixer.data.sources import Example
from mixer.runtime.errors import UserError

SIZE, PATCH, GRID = 16, 4, 4
KINDS = {"patches": {"permutation_patch": PATCH}, "pixels": {}}


def config_of(kind, **fields):
    return input_config(**{"image_size": SIZE, "permutation": kind, **KINDS[kind], **fields})


def by_hand(image, kind, seed):
    """Moves pixel by pixel."""
    random, moved = np.random.RandomState(seed), np.empty_like(image)
    if kind == "pixels":
        for place, source in enumerate(random.permutation(SIZE**2)):
            moved[divmod(place, SIZE)] = image[divmod(source, SIZE)]
        return moved
    patches, within = random.permutation(GRID**2), random.permutation(PATCH**2)
    for patch, place in itertools.product(range(GRID**2), range(PATCH**2)):
        (row, column), (y, x) = divmod(patch, GRID), divmod(place, PATCH)
        (old_row, old_column), (old_y, old_x) = divmod(patches[patch], GRID), divmod(within[place], PATCH)
        moved[row * PATCH + y, column * PATCH + x] = image[old_row * PATCH + old_y, old_column * PATCH + old_x]
    return moved


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_an_order_is_the_one_made_by_hand(kind, seed):
    config = config_of(kind, permutation_seed=seed)
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    found = permutation.permuted(images, permutation.order_of(config))
    np.testing.assert_array_equal(found, [by_hand(image, kind, seed) for image in images])
    np.testing.assert_array_equal(permutation.permuted(images[0], permutation.order_of(config)), found[0])


def test_the_first_numbers_stay_those_of_trained_models():
    """A run of years ago has to be evaluated under its own permutation."""
    assert permutation.order_of(config_of("pixels"))[:5].tolist() == [158, 83, 170, 101, 150]
    assert permutation.order_of(config_of("patches"))[:5].tolist() == [6, 54, 52, 37, 74]


@pytest.mark.parametrize("kind", KINDS)
def test_training_permutes_what_it_would_give_otherwise(kind):
    """After all augmentation, and for every seed of a run alike."""
    source = source_of(examples_of(12))
    for seed in (1, 2):
        arguments = {"seed": seed, "batch_size": 16, "rows": slice(0, 16), "steps": range(2)}
        plain = pipeline.train_batches(source, input_config(image_size=SIZE, randaugment=2), **arguments)
        found = pipeline.train_batches(source, config_of(kind, randaugment=2), **arguments)
        for one, other in zip(plain, found, strict=True):
            np.testing.assert_array_equal(other["image"], [by_hand(image, kind, 0) for image in one["image"]])
            for name in ("labels", "weight", "status"):
                np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_permutes_with_and_without_tensorflow(kind):
    files = [encode(photo(21 + number, 30, seed=number)) for number in range(5)] + [b"no image"]
    source = source_of([Example(file, (0,)) for file in files])
    (plain,) = evaluate(source, input_config(image_size=SIZE), 8, slice(0, 8))
    (found,) = evaluate(source, config_of(kind), 8, slice(0, 8))
    np.testing.assert_array_equal(found["image"], [by_hand(image, kind, 0) for image in plain["image"]])
    (light,) = plain_images.eval_batches(source, config_of(kind), batch_size=8, rows=slice(0, 8))
    np.testing.assert_array_equal(light["image"], found["image"])
    np.testing.assert_array_equal(light["status"], found["status"])


def test_patches_that_do_not_tile_are_told():
    with pytest.raises(UserError, match=r"images of 20 pixels are not tiled by the patches .* of 8 pixels: give an im"):
        permutation.order_of(config_of("patches", image_size=20, permutation_patch=8))


# ------------------------------------------------------------------------------------------------------ what is exact


def permuted_params(params, patches, within):
    """Permutes the stem's pixels, and the tokens of token mixing: its inputs, outputs and the outputs' biases."""
    found = jax.tree.map(np.copy, params)
    stem = found["stem"]["kernel"]
    found["stem"]["kernel"] = stem.reshape(PATCH**2, 3, -1)[within].reshape(stem.shape)
    for name, block in found.items():
        if name.startswith("MixerBlock"):
            first, second = block["token_mixing"]["Dense_0"], block["token_mixing"]["Dense_1"]
            first["kernel"], second["kernel"] = first["kernel"][patches], second["kernel"][:, patches]
            second["bias"] = second["bias"][patches]
    return found


@pytest.fixture(scope="module")
def exact():
    """Images and parameters, as they are and permuted; and the model."""
    model = random_models.make_model()
    params = random_models.make_params(model, SIZE)
    images = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    order = permutation.order_of(config_of("patches", permutation_seed=3))
    random = np.random.RandomState(3)
    changed = permuted_params(params, random.permutation(GRID**2), random.permutation(PATCH**2))
    return model, params, images / 127.5 - 1, changed, permutation.permuted(images, order) / 127.5 - 1


def test_a_mixer_with_permuted_weights_sees_no_difference(exact):
    model, params, images, changed, shuffled = exact
    expected, found, unmatched = (
        random_models.logits(model, *given)
        for given in ((params, jnp.float32(images)), (changed, jnp.float32(shuffled)), (params, jnp.float32(shuffled)))
    )
    largest = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-5 * largest
    assert np.abs(unmatched - expected).max() > 0.1 * largest


def test_in_float64_the_difference_is_rounding(exact):
    _, params, images, changed, shuffled = exact
    wide = [jax.tree.map(np.float64, tree) for tree in (params, changed)]
    expected, found = (mixer(tree, given, PATCH, 2)[0] for tree, given in zip(wide, (images, shuffled), strict=True))
    assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()
