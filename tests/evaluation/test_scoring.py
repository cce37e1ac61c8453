"""Scores of weights, through the functions of the commands; tests/test_evaluate.py has those of runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mixer import models
from mixer.config import recipe, tasks
from mixer.data.sources import Source
from mixer.evaluation import classification, few_shot, scoring
from mixer.transfer.weights import Weights


@pytest.mark.parametrize("task_name", ["imagenet_real", "imagenet_v2"])
def test_imagenets_other_test_sets_as_tfds_prepares_them(tmp_path, task_name):
    """A few random images under TFDS' names, versions and features; of a thousand classes."""
    rng = np.random.default_rng(0)
    model = models.create("Ti/8", 1000, num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    pictures = rng.integers(0, 256, (6, 16, 16, 3), np.uint8)
    guess = model.apply({"params": params}, jnp.asarray(pictures / 127.5 - 1, jnp.float32)).argmax(axis=1).tolist()

    label = tfds.features.ClassLabel(num_classes=1000)
    features = {"image": tfds.features.Image(encoding_format="png")}
    if task_name == "imagenet_real":
        name, config, version, split = "imagenet2012_real", None, "1.0.0", "validation"
        features |= {"original_label": label, "real_label": tfds.features.Sequence(label)}
        labels = [[guess[0]], [], [3, guess[2]], [4], [], [5, 6]]  # two of the four with labels are right
        rows = [{"original_label": 8, "real_label": found} for found in labels]
        labelled, accuracy = 4, 2 / 4
    else:
        name, config, version, split = "imagenet_v2", "matched-frequency", "3.0.0", "test"
        features |= {"label": label}
        rows = [{"label": found} for found in (guess[0], 3, 4, guess[3], 5, guess[5])]
        labelled, accuracy = None, 3 / 6
    examples = [{"image": picture, **row} for picture, row in zip(pictures, rows, strict=True)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name, config=config, version=version, features=tfds.features.FeaturesDict(features), data_dir=tmp_path,
        split_datasets={split: list(enumerate(examples))}, disable_shuffling=True,
    )  # fmt: skip

    weights = Weights(params, "random.npz")
    config_input, split = scoring.input_config(weights, tasks.find(task_name)[1])
    config_input.data_dir, config_input.eval_resize = str(tmp_path), 16
    found, _ = scoring.evaluate(weights, config_input, split, loss="softmax_xent", batch_size=8)
    assert (found.metrics["count"], found.metrics.get("labelled")) == (6, labelled)
    assert found.metrics["accuracy"] == pytest.approx(accuracy)


def test_scores_are_computed_with_float32_products(monkeypatch):
    """On a CPU all products of float32 are; TPUs and GPUs round their factors unless they are asked not to."""

    class StoppedError(Exception):
        pass

    class Opened:
        sources, source = (), Source(0, (), 1, False, fetch=list)

        def __init__(self, settings, context):
            pass

        def evaluate(self, params, through):
            raise StoppedError(jax.config.jax_default_matmul_precision)

        __call__ = evaluate

    monkeypatch.setattr(classification, "Classification", Opened)
    monkeypatch.setattr(few_shot, "FewShot", Opened)
    model = models.create("Ti/8", 4, num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    weights = Weights(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes), "zeros.npz")
    config, split = scoring.input_config(weights, tasks.find("cifar10")[1])
    with pytest.raises(StoppedError, match=r"^float32$"):
        scoring.evaluate(weights, config, split, loss="softmax_xent", batch_size=8)
    with pytest.raises(StoppedError, match=r"^float32$"):
        scoring.few_shot(weights, config, recipe.evaluator_settings("few_shot"), batch_size=8)
