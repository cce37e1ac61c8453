"""Token mixing at another image size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import flat, logits, make_model, make_params, nested, same

from mixer import models
from mixer.runtime.errors import UserError
from mixer.transfer import resolution
from mixer.transfer.weights import Weights

PATCH = 4


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def parts_of(images, factor):
    """Cuts each image into factor x factor parts."""
    size = images.shape[1] // factor
    edges = [slice(i * size, (i + 1) * size) for i in range(factor)]
    return [images[:, rows, columns] for rows in edges for columns in edges]


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("grid", [1, 2, 3])
def test_pre_logits_of_a_larger_image_are_the_mean_over_its_parts(grid, factor):
    """Appendix C: the extended model computes the same features for each part as the old model."""
    small = make_model(classes=0, num_blocks=3)
    params = make_params(small, grid * PATCH)
    large = make_model(classes=0, num_blocks=3, tokens_mlp_dim=12 * factor**2)
    images = np.random.default_rng(1).uniform(-1, 1, (2, factor * grid * PATCH, factor * grid * PATCH, 3))
    images = images.astype(np.float32)
    found = logits(large, resolution.extend(params, grid * factor), images)
    expected = np.mean([logits(small, params, part) for part in parts_of(images, factor)], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.std(expected) > 0.1


@given(grid=st.integers(1, 4), factor=st.integers(1, 4))
def test_the_tokens_of_a_part_are_those_of_its_patches(grid, factor):
    """Cuts a picture whose pixels are the numbers of the tokens."""
    picture = np.arange((grid * factor) ** 2).reshape(1, grid * factor, grid * factor)
    expected = [part.ravel() for part in parts_of(picture, factor)]
    np.testing.assert_array_equal(resolution.tokens_of_parts(grid, factor), expected)


@pytest.mark.parametrize(("variant", "expected"), [("S/16", 30_068_352), ("B/16", 86_227_392)])
def test_models_at_448_have_the_papers_parameter_counts(variant, expected):
    """D_S is four times as large. The numbers are computed from the paper's specification, without a head."""
    model = models.create(variant, 0)
    image = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image((1, 224, 224, 3)))["params"]
    extended = resolution.extend(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), 28)
    assert count(extended) == expected
    larger = models.create(variant, 0, tokens_mlp_dim=4 * model.tokens_mlp_dim)
    at_448 = jax.eval_shape(larger.init, jax.random.key(0), image((1, 448, 448, 3)))["params"]
    assert jax.tree.map(jnp.shape, extended) == jax.tree.map(jnp.shape, at_448)


def test_only_token_mixing_changes():
    params = make_params(make_model())
    for changed in (resolution.extend(params, 4), resolution.interpolate(params, 5)):
        for name, array in flat(params).items():
            if "token_mixing" not in name:
                np.testing.assert_array_equal(flat(changed)[name], array)
            assert flat(changed)[name].dtype == np.float32


def resampling(before, after):
    """Returns bilinear resampling of a line of pixels as a float64 matrix [after, before].

    By definition, pixel centres are at (i + 1/2) / length. Pixels are weighted by a triangle whose half-width is the
    larger of the two pixel distances, so that downsampling averages. The weights of each new pixel are divided by their
    sum, which leaves out what is outside the image.
    """
    here = (np.arange(after) + 0.5) * before / after - 0.5
    width = max(1.0, before / after)
    weights = np.maximum(1 - np.abs(here[:, None] - np.arange(before)) / width, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@settings(max_examples=25)
@given(before=st.integers(1, 5), after=st.integers(1, 8), seed=st.integers(0, 99))
def test_interpolation_is_bilinear_and_keeps_the_sum_over_an_image(before, after, seed):
    params = make_params(make_model(num_blocks=1), before * PATCH, seed)
    found = resolution.interpolate(params, after)["MixerBlock_0"]["token_mixing"]
    line = resampling(before, after)
    plane = np.kron(line, line)  # over rows and columns; tokens are numbered row by row
    mlp = jax.tree.map(lambda leaf: leaf.astype(np.float64), params["MixerBlock_0"]["token_mixing"])
    expected = {
        "Dense_0": {"kernel": plane @ mlp["Dense_0"]["kernel"] * before**2 / after**2, "bias": mlp["Dense_0"]["bias"]},
        "Dense_1": {"kernel": mlp["Dense_1"]["kernel"] @ plane.T, "bias": plane @ mlp["Dense_1"]["bias"]},
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_interpolation_to_the_same_grid_changes_nothing():
    params = make_params(make_model(), 12)
    assert same(resolution.interpolate(params, 3), params)


@pytest.mark.parametrize(
    ("method", "grid", "width"),
    [("extend", 4, 48), ("extend", 6, 108), ("interpolate", 1, 12), ("interpolate", 3, 12), ("interpolate", 4, 12)],
)
def test_the_shapes_are_those_of_a_model_at_the_new_size(method, grid, width):
    found = resolution.at_grid(make_params(make_model()), grid, method)
    expected = make_params(make_model(tokens_mlp_dim=width), grid * PATCH)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, expected)
    assert resolution.grid_of(found) == grid


@pytest.mark.parametrize("method", resolution.METHODS)
def test_the_same_grid_changes_nothing(method):
    params = make_params(make_model())
    assert resolution.at_grid(params, 2, method) is params


@pytest.mark.parametrize("grid", [1, 3, 5])
def test_extension_to_a_grid_that_is_not_a_multiple_is_refused(grid):
    with pytest.raises(ValueError, match=f"{grid} x {grid} patches are not a multiple of 2 x 2"):
        resolution.at_grid(make_params(make_model()), grid, "extend")


@pytest.mark.parametrize("method", resolution.METHODS)
@pytest.mark.parametrize("grid", [0, -2])
def test_a_grid_without_patches_is_refused(grid, method):
    with pytest.raises(ValueError, match="expected at least 1 x 1"):
        resolution.at_grid(make_params(make_model()), grid, method)


def test_a_number_of_tokens_that_is_not_a_square_is_refused():
    params = flat(make_params(make_model()))
    params["MixerBlock_0/token_mixing/Dense_1/bias"] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match="5 tokens are no square grid"):
        resolution.grid_of(nested(params))


def test_weights_at_another_image_size_are_a_model_for_it():
    weights = Weights(make_params(make_model()), "m.npz")
    assert weights.image_size == 8
    same = weights.at_image_size(8, "extend")
    assert same.params is weights.params
    assert same.resized_from is None
    larger = weights.at_image_size(16, "extend")
    assert (larger.image_size, larger.model().tokens_mlp_dim, larger.source) == (16, 48, "m.npz")
    resampled = weights.at_image_size(20, "interpolate")
    assert (resampled.image_size, resampled.model().tokens_mlp_dim) == (20, 12)
    assert (larger.resized_from, resampled.resized_from) == (8, 8)


@pytest.mark.parametrize(("size", "method"), [(12, "extend"), (10, "interpolate"), (0, "extend"), (-8, "extend"),
                                              (-4, "interpolate")])  # fmt: skip
def test_the_error_for_an_impossible_image_size_lists_possible_ones(size, method):
    with pytest.raises(UserError) as caught:
        Weights(make_params(make_model()), "m.npz").at_image_size(size, method)
    assert str(caught.value) == (
        "m.npz (Mixer-2x16/4, patches of 4 pixels) has weights for images of 8 pixels, which "
        f"image_size={size} does not fit: possible are 8 and its multiples (16, 24, ..., Appendix C of the paper), or, "
        "beyond the paper, with resize=interpolate any multiple of 4"
    )
