"""Which models can be part of a page. What the page then computes: tests/test_report.py."""

import jax
import numpy as np
import pytest

from mixer.config import recipe
from mixer.models.mlp_mixer import MlpMixer
from mixer.page import live_model
from mixer.runtime.errors import UserError
from mixer.transfer.weights import Weights


def weights(num_classes=3, hidden_dim=8, scale=1.0):
    model = MlpMixer(num_classes, 4, num_blocks=1, hidden_dim=hidden_dim, tokens_mlp_dim=4, channels_mlp_dim=8)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return Weights(jax.tree.map(lambda leaf: np.full(leaf.shape, scale, np.float32), shapes), "runs/x")


def inputs(**settings):
    config = recipe.base().input
    config.update(settings)
    return config


def test_a_small_mixer_can():
    live_model.check(weights(), inputs())


@pytest.mark.parametrize(
    ("of_model", "of_input", "message"),
    [
        ({"num_classes": 0}, {}, "it has no head"),
        ({"hidden_dim": 70_000}, {}, "a page holds up to 2,000,000"),
        ({"scale": 65_520.0}, {}, "too large for float16"),
        ({}, {"permutation": "pixels"}, "are permuted"),
    ],
)
def test_others_cannot_and_it_is_said_why(of_model, of_input, message):
    with pytest.raises(UserError, match=message):
        live_model.check(weights(**of_model), inputs(**of_input))


def test_rounding_is_that_of_float16():
    rounded = live_model.rounded({"a": np.array([1 / 3, 65_504, 1e-7], np.float32)})["a"]
    np.testing.assert_array_equal(rounded, np.array([0.333251953125, 65504, 1.1920928955078125e-07], np.float32))
