"""The whitening stem: its outputs do not correlate, and a run begins with it."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixer.data import pipeline, readers
from mixer.models import layers
from mixer.runtime import preemption
from mixer.runtime.errors import UserError
from mixer.train import train
from mixer.training import whitening
from mixer.training.checkpoint_reader import load_params
from tests.tiny_run import data_dir, deterministic, tiny  # noqa: F401, a fixture


@pytest.fixture(scope="module")
def images():
    """Smooth colour images with some noise, as photographs are: uint8 [64, 16, 16, 3]."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(64, 16, 16, 3)).cumsum(1).cumsum(2)
    shared = steps + 0.5 * steps.mean(-1, keepdims=True)
    return np.clip(127 + 8 * shared + rng.normal(size=shared.shape), 0, 255).astype(np.uint8)


def outputs(kernel, images, side):
    """The tokens of a stem without bias, by a loop over patches in float64: [patches, channels]."""
    tokens = []
    for image in images / 127.5 - 1:
        for top in range(0, image.shape[0], side):
            for left in range(0, image.shape[1], side):
                tokens.append(np.einsum("hwc,hwco->o", image[top : top + side, left : left + side], kernel))
    return np.array(tokens)


@pytest.mark.parametrize(("side", "channels", "number"), [(2, 40, 12), (4, 24, 12), (2, 7, 3)])
def test_the_first_channels_whiten_patches_with_both_signs(images, side, channels, number):
    random = np.random.default_rng(1).normal(size=(side, side, 3, channels)).astype(np.float32)
    kernel = whitening.whitening(random, [images[:40], images[40:]])
    assert (kernel.shape, kernel.dtype) == (random.shape, np.float32)
    np.testing.assert_array_equal(kernel[..., number : 2 * number], -kernel[..., :number])
    np.testing.assert_array_equal(kernel[..., 2 * number :], random[..., 2 * number :])

    tokens = outputs(kernel[..., :number].astype(np.float64), images, side)
    covariance = np.cov(tokens.T, bias=True)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-4)
    # The variance of a direction with the eigenvalue s is s / (s + floor), and the floor 2% of the mean eigenvalue.
    of_patches = np.cov(outputs(np.eye(3 * side**2).reshape(side, side, 3, -1), images, side).T, bias=True)
    values = np.sort(np.linalg.svd(of_patches, compute_uv=False))[::-1]
    expected = values / (values + 0.02 * np.trace(of_patches) / len(values))
    np.testing.assert_allclose(np.diag(covariance), expected[:number], rtol=1e-4)


def test_channels_are_what_the_model_computes(images):
    random = np.zeros((4, 4, 3, 24), np.float32)
    kernel = whitening.whitening(random, [images])

    class Stem(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, x):
            return layers.patch_tokens(x, 4, 24, np.float32, "stem")

    tokens = Stem().apply(
        {"params": {"stem": {"kernel": kernel, "bias": np.zeros(24)}}}, jnp.asarray(images[:2] / 127.5 - 1, jnp.float32)
    )
    np.testing.assert_allclose(tokens.reshape(-1, 24), outputs(kernel, images[:2], 4), atol=1e-4)


def test_no_image_is_one_line():
    with pytest.raises(UserError, match="none of the training images that were tried can be used"):
        whitening.whitening(np.zeros((2, 2, 3, 4), np.float32), [np.zeros((0, 4, 4, 3), np.uint8)])


def test_grey_images_have_a_third_of_the_directions(images):
    random = np.random.default_rng(1).normal(size=(2, 2, 3, 40)).astype(np.float32)
    kernel = whitening.whitening(random, [images[..., :1].repeat(3, axis=-1)])
    np.testing.assert_array_equal(kernel[..., 4:8], -kernel[..., :4])
    np.testing.assert_array_equal(kernel[..., 8:], random[..., 8:])
    tokens = outputs(kernel.astype(np.float64), images[..., :1].repeat(3, axis=-1), 2)
    assert tokens.std(0).min() > 0.1


@pytest.mark.parametrize("value", [0, 77, 255])
def test_images_without_a_detail_are_one_line(value):
    with pytest.raises(UserError, match="all patches of the training images that were tried are alike"):
        whitening.whitening(np.zeros((2, 2, 3, 4), np.float32), [np.full((3, 4, 4, 3), value, np.uint8)])


def test_it_needs_a_mixer_and_a_new_stem():
    vit = {"model.variant": "ViT-S/16", "model.tokens_mlp_dim": None, "model.hidden_dim": 24}
    with pytest.raises(UserError, match=r"stem_init=whitening is for Mixers; .*'ViT-S/16'"):
        tiny("nowhere", stem_init="whitening", **vit)
    with pytest.raises(UserError, match="stem_init='whitening' would not be read: it needs init_from=None"):
        tiny("nowhere", stem_init="whitening", init_from="m.npz")


def test_a_run_begins_with_it_and_so_does_its_average(data_dir, tmp_path, capsys):  # noqa: F811
    options = {"stem_init": "whitening", "optimizer.learning_rate": 0.0, "model.identity_init": True, "ema_decay": 0.9}
    config = tiny(data_dir, **options, total_steps=6)
    train(config, tmp_path / "still")  # which learns nothing, and so ends with the first parameters
    assert "the stem whitens patches, as 72 training images have them" in capsys.readouterr().out
    source = readers.open_source(config.input, "train", tmp_path)
    pictures = [batch["image"] for batch in pipeline.eval_batches(source, config.input, batch_size=8, rows=slice(0, 8))]
    assert len(pictures) == 9
    for average in (False, True):
        kernel = load_params(tmp_path / "still", ema=average)[1]["stem"]["kernel"]
        np.testing.assert_allclose(kernel, whitening.whitening(kernel * 0, pictures), rtol=1e-4, atol=1e-4)


def test_of_many_images_those_that_are_taken_are_spread_over_all(data_dir, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Else the stem would be that of the first class, where images are in the order of their classes."""
    taken, made = [], pipeline.eval_batches

    def eval_batches(*arguments, records=None, **options):
        taken.append(records)
        return made(*arguments, records=records, **options)

    monkeypatch.setattr(whitening, "NUM_IMAGES", 4)
    monkeypatch.setattr(pipeline, "eval_batches", eval_batches)
    train(tiny(data_dir, stem_init="whitening", total_steps=1), tmp_path)
    assert "the stem whitens patches, as 4 training images have them" in capsys.readouterr().out
    np.testing.assert_array_equal(taken[0], [0, 23, 47, 71])


def test_a_stopped_run_ends_at_the_same_bits(data_dir, tmp_path):  # noqa: F811
    config = tiny(data_dir, **{"stem_init": "whitening", "model.identity_init": True})
    train(config, tmp_path / "straight")
    with pytest.raises(preemption.PreemptedError):
        train(config, tmp_path / "stopped", stop=preemption.Stop(3))
    train(config, tmp_path / "stopped")
    assert deterministic(tmp_path / "stopped") == deterministic(tmp_path / "straight")
