"""The guess after each block, against a model in NumPy that ends there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.analysis import lens
from mixer.config import recipe
from mixer.data import readers
from mixer.data.sources import Source
from mixer.evaluation import evaluator
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from tests import float64

MODEL = MlpMixer(5, patch_size=4, num_blocks=3, hidden_dim=16, tokens_mlp_dim=6, channels_mlp_dim=24)


def random_params(seed=0):
    """Of all arrays, since a new head is zero."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def test_the_lens_is_the_model_that_ends_there():
    params = random_params()
    images = np.random.default_rng(1).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    found = jax.jit(lambda p, x: lens.logits_after_blocks(MODEL, p, x))(params, images)
    exact = jax.tree.map(np.float64, params)
    for blocks in range(4):
        expected, _ = float64.mixer(exact, images.astype(np.float64), 4, blocks)
        np.testing.assert_allclose(found[blocks], expected, atol=2e-5)


def test_the_lens_on_a_pyramid_ends_with_fewer_tokens():
    model = MODEL.clone(pyramid=(4, 1, 1))
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # a new head is zero
    images = np.random.default_rng(1).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    found = jax.jit(lambda p, x: lens.logits_after_blocks(model, p, x))(params, images)
    exact = jax.tree.map(np.float64, params)
    for blocks in range(4):
        expected = float64.ablated_mixer(exact, images.astype(np.float64), 4, blocks, pyramid=(4, 1, 1))
        np.testing.assert_allclose(found[blocks], expected, atol=2e-5)


def test_shared_blocks_are_computed_once():
    """Else a lens on n blocks costs as much as n/2 models."""
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), np.float32)
    params = random_params()
    alone = jax.jit(lambda p, x: MODEL.apply({"params": p}, x)).lower(params, image).compile()
    all_depths = jax.jit(lambda p, x: lens.logits_after_blocks(MODEL, p, x)).lower(params, image).compile()
    assert all_depths.cost_analysis()["flops"] < 1.2 * alone.cost_analysis()["flops"]


def test_logits_that_are_nan_guess_nothing(monkeypatch):
    """As in the accuracy of an evaluation."""
    logits = np.zeros((2, 3, 5), np.float32)
    logits[0, 1] = np.nan
    monkeypatch.setattr(lens, "logits_after_blocks", lambda *arguments: jnp.asarray(logits))
    batch = {
        "image": jnp.zeros((3, 8, 8, 3), jnp.uint8), "labels": jnp.array([[0], [0], [-1]]), "weight": jnp.ones(3),
    }  # fmt: skip
    correct, labelled, usable = lens._counts(MODEL, {}, batch)
    assert (correct.tolist(), float(labelled), float(usable)) == ([1, 2], 2, 3)


def test_a_split_of_which_nothing_can_be_read_is_an_error(mesh, monkeypatch):
    source = Source(8, [str(number) for number in range(5)], 1, False, lambda numbers: [])
    images, labels = np.zeros((8, 8, 8, 3), np.uint8), np.full((8, 1), -1)
    batch = {"image": images, "labels": labels, "weight": np.zeros(8, np.float32)}
    monkeypatch.setattr(readers, "open_source", lambda *arguments: source)
    monkeypatch.setattr(evaluator, "split_batches", lambda *arguments: [devices.to_devices(batch, mesh)])
    context = evaluator.Context(MODEL, source.class_names, "", recipe.base().input, mesh, 8, "")
    found = lens.Lens(recipe.evaluator_settings("classification", split="test"), context)
    with pytest.raises(UserError, match=r"^no image of imagenet2012 test can be read$"):
        found.accuracies(random_params())


@pytest.mark.parametrize(("multi_label", "chance"), [(False, 0.2), (True, None)])
def test_chance_is_known_where_one_class_is_right(mesh, monkeypatch, multi_label, chance):
    names = [str(number) for number in range(5)]
    source = Source(10, names, 2 if multi_label else 1, multi_label, lambda numbers: [])
    monkeypatch.setattr(readers, "open_source", lambda *arguments: source)
    context = evaluator.Context(MODEL, names, "", recipe.base().input, mesh, 8, "")
    assert lens.Lens(recipe.evaluator_settings("classification", split="test"), context).chance == chance
