"""Mixup and CutMix against NumPy, and the laws of what they draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config import recipe
from mixer.training import losses, mixing, step

KEYS = 2000
LARGEST_GAP = 1.95 / np.sqrt(KEYS)  # of Kolmogorov and Smirnov's test: exceeded once in a thousand seeds


def neighbours(rows, group):
    return np.array([row - 1 if row % group else row + group - 1 for row in range(rows)])


@settings(max_examples=25, deadline=None)
@given(
    group=st.sampled_from([2, 4, 8]),
    p=st.sampled_from([0.2, 0.5, 0.8]),
    seed=st.integers(0, 9),
    unreadable=st.sets(st.integers(0, 7)),
)
def test_mixup_equals_numpy(group, p, seed, unreadable):
    rng = np.random.default_rng(seed)
    pictures, targets = rng.integers(0, 256, (8, 2, 2, 3), np.uint8), rng.uniform(size=(8, 5))
    images = pictures / 127.5 - 1
    weight = np.array([row not in unreadable for row in range(8)], np.float32)
    mixed_images, mixed_targets = mixing.mixup(
        jnp.asarray(images, jnp.float32), jnp.asarray(targets, jnp.float32), jnp.asarray(weight),
        jax.random.key(seed), p, group,
    )  # fmt: skip
    neighbour = neighbours(8, group)
    alone = weight[neighbour] == 0
    np.testing.assert_allclose(np.asarray(mixed_images)[alone], images[alone], atol=1e-6)
    np.testing.assert_array_equal(np.asarray(mixed_targets)[alone], np.float32(targets)[alone])
    if alone.all():
        return
    # One lambda explains every row: solve for it in the first, and expect it everywhere.
    row = np.flatnonzero(~alone)[0]
    difference = (targets - targets[neighbour])[row]
    lam = float(np.dot(np.asarray(mixed_targets)[row] - targets[neighbour][row], difference) / np.sum(difference**2))
    assert 0.5 - 1e-6 <= lam <= 1 + 1e-6
    lam = np.where(alone, 1, lam)
    expected = lam[:, None] * targets + (1 - lam)[:, None] * targets[neighbour]
    np.testing.assert_allclose(mixed_targets, expected, atol=1e-5)
    lam = lam[:, None, None, None]
    np.testing.assert_allclose(mixed_images, lam * images + (1 - lam) * images[neighbour], atol=1e-5)


def test_lambda_is_the_larger_part_of_a_beta_draw():
    """Beta(0.5, 0.5), folded at 1/2, has the distribution function 4/pi asin(sqrt(x)) - 1."""
    images = jnp.zeros((2, 1, 1, 3))
    draw = jax.vmap(lambda key: mixing.mixup(images, jnp.eye(2), jnp.ones(2), key, 0.5, 2)[1][0, 0])
    lam = np.sort(draw(jax.random.split(jax.random.key(0), KEYS)))
    expected = 4 / np.pi * np.arcsin(np.sqrt(lam)) - 1
    assert np.abs(expected - np.arange(KEYS) / KEYS).max() < LARGEST_GAP


@settings(max_examples=25, deadline=None)
@given(
    group=st.sampled_from([2, 4, 8]),
    size=st.sampled_from([(4, 4), (6, 3)]),
    seed=st.integers(0, 9),
    unreadable=st.sets(st.integers(0, 7)),
)
def test_cutmix_pastes_one_box_into_all_images(group, size, seed, unreadable):
    rng = np.random.default_rng(seed)
    images, targets = rng.uniform(-1, 1, (8, *size, 3)).astype(np.float32), rng.uniform(size=(8, 5)).astype(np.float32)
    weight = np.array([row not in unreadable for row in range(8)], np.float32)
    key = jax.random.key(seed)
    mixed_images, mixed_targets = mixing.cutmix(*map(jnp.asarray, (images, targets, weight)), key, group)
    inside = np.asarray(mixing.box(key, *size))
    neighbour = neighbours(8, group)
    for row in range(8):
        box = inside & (weight[neighbour[row]] > 0)
        np.testing.assert_array_equal(mixed_images[row], np.where(box[..., None], images[neighbour[row]], images[row]))
        share = box.sum() / box.size
        expected = (1 - share) * targets[row] + share * targets[neighbour[row]]
        np.testing.assert_allclose(mixed_targets[row], expected, atol=1e-6)


def test_the_box_of_cutmix_is_that_of_its_paper():
    """arXiv 1905.04899: a share 1 - lambda ~ U(0, 1) of the area, the image's shape, a uniform centre, cut off.

    Drawn again with NumPy's own generator, on a grid that is fine enough: the areas and places have the same law.
    """
    height, width = 200, 100
    boxes = np.asarray(jax.vmap(lambda key: mixing.box(key, height, width))(jax.random.split(jax.random.key(0), KEYS)))
    rng = np.random.default_rng(0)
    half = np.sqrt(1 - rng.uniform(size=(100 * KEYS, 1))) / 2
    centre = rng.uniform(size=(100 * KEYS, 2))
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half, 1)
    measured = {
        "area": boxes.mean((1, 2)), "top": boxes.any(2).argmax(1) / height, "left": boxes.any(1).argmax(1) / width,
    }  # fmt: skip
    for name, expected in {"area": np.prod(high - low, 1), "top": low[:, 0], "left": low[:, 1]}.items():
        found, expected = np.sort(measured[name]), np.sort(expected)
        at = np.linspace(0, 1, 99)[1:-1]  # of the measure: between any two the shares of both samples agree
        gap = np.abs(np.searchsorted(found, at) / len(found) - np.searchsorted(expected, at) / len(expected)).max()
        assert gap < LARGEST_GAP + 0.005, name  # and half a pixel
    edges = boxes.any(2).sum(1) / height, boxes.any(1).sum(1) / width
    whole = (boxes[:, [0, -1]].any((1, 2)) | boxes[:, :, [0, -1]].any((1, 2))) == 0  # no edge cuts these
    np.testing.assert_allclose(edges[0][whole], edges[1][whole], atol=0.021)  # a pixel at each end


def config_of(**changes):
    config = recipe.base()
    config.mixup.update({"group": 2, **changes})
    return config


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_step_is_cut_or_else_blended(p):
    """Each key gives the batch of one of the two functions, in the shares that the config says."""
    rng = np.random.default_rng(0)
    images, targets = jnp.asarray(rng.uniform(-1, 1, (4, 8, 8, 3)), jnp.float32), jnp.eye(4)
    keys = jax.random.split(jax.random.key(1), KEYS)

    def draw(config):
        return jax.vmap(lambda key: mixing.mixed(images, targets, jnp.ones(4), key, config)[0])(keys)

    blended = draw(config_of(p=p)) if p else jnp.broadcast_to(images, (KEYS, *images.shape))
    both, always = draw(config_of(p=p, cutmix=0.3)), draw(config_of(p=p, cutmix=1.0))
    is_blended, is_cut = ((both == one).all((1, 2, 3, 4)) for one in (blended, always))
    assert (is_blended | is_cut).all()
    assert float((~is_blended).mean()) == pytest.approx(0.3, abs=0.04)  # a box may be empty


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", [{"p": 0.5}, {"cutmix": 1.0}])
def test_images_count_by_their_share_whatever_number_of_labels_they_have(way, seed):
    """Of three labels for the softmax, each has a third of its image's share. An image without one says nothing."""
    rng = np.random.default_rng(seed)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (4, 8, 8, 3), np.uint8)),
        "labels": jnp.asarray([[0, 1, 2], [3, -1, -1], [4, -1, -1], [-1, -1, -1]]),
        "weight": jnp.ones(4),
    }
    config, key = config_of(**way), jax.random.key(seed)
    config.loss = "softmax_xent"
    _, found = step.prepare(batch, 5, key, config)
    config.loss = "sigmoid_xent"
    of_one, whole = step.prepare(batch | {"labels": jnp.arange(4)[:, None]}, 5, key, config)[1][:2, :2], found[:2]
    share = of_one[0, 1]  # of its neighbour, in each image
    assert 0.01 < share < 0.99
    third = (1 - share) / 3
    np.testing.assert_allclose(whole[0], [third, third, third, share, 0], atol=1e-6)
    np.testing.assert_allclose(whole[1], [share / 3, share / 3, share / 3, 1 - share, 0], atol=1e-6)
    np.testing.assert_allclose(found[2:, 4], [1 - share, share], atol=1e-6)
    losses_of = losses.LOSSES["softmax_xent"](jnp.zeros((4, 5)), found)
    np.testing.assert_allclose(losses_of, np.log(5) * np.array([1, 1, 1 - share, share]), rtol=1e-5)


def test_whether_a_run_mixes_and_the_words_of_model_cards():
    described = {
        (0.0, 0.0): (False, "no mixup"),
        (0.5, 0.0): (True, "mixup 0.5"),
        (0.0, 0.25): (True, "no mixup, CutMix in 25% of the steps"),
        (0.2, 0.5): (True, "mixup 0.2, CutMix in 50% of the steps"),
        (0.0, 0.004): (True, "no mixup, CutMix in 0.4% of the steps"),
    }
    for (p, cutmix), expected in described.items():
        config = config_of(p=p, cutmix=cutmix)
        assert (mixing.is_on(config), mixing.described(config)) == expected
