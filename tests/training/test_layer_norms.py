"""The largest ratio of mean and standard deviation that a LayerNorm gets, and what LayerNorm makes of it."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import make_batch, make_run

from mixer import models
from mixer.training import layer_norms
from mixer.training.step import normalize


def inputs_of_layer_norms(model, params, images):
    """Yields the inputs in float64: LayerNorms in the order of the model's blocks."""
    options = {"capture_intermediates": True, "mutable": ["intermediates"]}
    seen = model.apply({"params": params}, images, **options)[1]["intermediates"]
    x = np.float64(seen["stem"]["__call__"][0]).reshape(len(images), -1, model.hidden_dim)
    for number in range(model.num_blocks):
        yield x
        block = seen[f"MixerBlock_{number}"]
        yield x + np.swapaxes(np.float64(block["token_mixing"]["__call__"][0]), 1, 2)
        x = np.float64(block["__call__"][0])
    yield x


@pytest.mark.parametrize("options", [{}, {"model.scan": True}, {"model.remat": True}], ids=str)
def test_the_ratio_is_the_largest_of_all_inputs(mesh, options):
    run, batch = make_run(mesh, **options), jax.tree.map(jnp.asarray, make_batch(16))
    params = jax.tree.map(np.array, run.state().params)
    params["MixerBlock_1"]["channel_mixing"]["Dense_1"]["bias"] += 3  # the last LayerNorm's input is far from zero
    model = run.model
    plain = model.clone(scan=False, remat=False)
    images = normalize(batch["image"])
    ratios = [
        np.max(np.abs(x.mean(-1)) / np.sqrt(x.var(-1) + 1e-6)) for x in inputs_of_layer_norms(plain, params, images)
    ]
    assert np.argmax(ratios) == len(ratios) - 1
    found = layer_norms.measured(model, mesh, params, batch)
    assert found == {"layer_norm_ratio": pytest.approx(max(ratios), rel=1e-4)}


def test_a_large_ratio_is_a_warning(mesh, caplog):
    run, batch = make_run(mesh), jax.tree.map(jnp.asarray, make_batch(16))
    params = jax.tree.map(np.array, run.state().params)
    with caplog.at_level(logging.WARNING):
        assert layer_norms.measured(run.model, mesh, params, batch)["layer_norm_ratio"] < 100
        assert not caplog.records
        params["MixerBlock_0"]["channel_mixing"]["Dense_1"]["bias"] += 1e4
        assert layer_norms.measured(run.model, mesh, params, batch)["layer_norm_ratio"] > 100
    assert "the input of a LayerNorm has a mean of" in caplog.text
    params["stem"]["bias"] += np.nan
    assert layer_norms.measured(run.model, mesh, params, batch)["layer_norm_ratio"] == np.inf


def test_a_model_without_layer_norms_has_no_ratio(mesh):
    model = models.create("BiT-R14x0.5", 5)
    images = jnp.zeros((8, 32, 32, 3), jnp.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    assert layer_norms.measured(model, mesh, params, {"image": images}) == {}


@pytest.mark.parametrize(("ratio", "least", "most"), [(1, 0, 1e-5), (100, 1e-4, 0.05), (1000, 0.02, 50)])
def test_the_error_of_flax_grows_with_the_ratio(ratio, least, most):
    """Which is why it is measured. Against float64."""
    x = np.random.default_rng(0).normal(size=(500, 512))
    x = np.float32((x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) + ratio)
    exact = np.float64(x)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    layer = nn.LayerNorm(epsilon=1e-6)
    error = np.max(np.abs(np.float64(layer.apply(layer.init(jax.random.key(0), x), x)) - exact))
    assert least <= error < most
