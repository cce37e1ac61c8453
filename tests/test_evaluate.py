"""Scoring a checkpoint, as a user runs it; and a run at twice the image size, which starts where Appendix C says."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from absl import flags

from mixer import evaluate
from mixer.config import recipe, run_folder, tasks
from mixer.data import datasets, pipeline, readers
from mixer.evaluation import scoring
from mixer.runtime.errors import UserError
from mixer.training.metrics import read_metrics
from mixer.transfer import loading, npz
from tests import commands
from tests.trained_run import DATASET, make_run


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    datasets.prepare_embedded(DATASET, str(folder))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A trained run of four classes."""
    return make_run(tmp_path_factory.mktemp("run"), data_dir, **{"model.tokens_mlp_dim": 8, "ema_decay": 0.5})


def command(*arguments, **environment):
    return commands.run("mixer.evaluate", *arguments, **environment)


@pytest.mark.parametrize("ema", [False, True])
def test_a_run_scores_what_its_training_measured(run, ema):
    done = command(f"--checkpoint={run}", f"--ema={ema}")
    assert done.returncode == 0, done.stderr
    found, last = json.loads(done.stdout), read_metrics(run)[-1]
    prefix = "val_ema" if ema else "val"
    for name in ("accuracy", "mean_per_class_accuracy", "count", "unreadable"):
        assert found[name] == last[f"{prefix}/{name}"]
    assert found["loss"] == pytest.approx(last[f"{prefix}/loss"], rel=1e-4)
    protocol = {"step": 90, "split": "validation", "eval_crop": "resize_small", "eval_resize": 16}
    assert {name: found[name] for name in protocol} == protocol
    assert set(found["class_accuracy"]) == {"0", "1", "2", "3"}
    assert np.mean(list(found["class_accuracy"].values())) == pytest.approx(found["mean_per_class_accuracy"])
    assert f"accuracy                             {last[f'{prefix}/accuracy']:9.2%}" in done.stderr
    assert "best classes" in done.stderr


def test_a_file_of_the_same_weights_scores_the_same(run, data_dir, tmp_path):
    of_run = loading.load(str(run))
    with (tmp_path / "weights.npz").open("wb") as file:
        npz.save_params(file, of_run.params)
    of_file = loading.load(str(tmp_path / "weights.npz"))
    task = dataclasses.replace(tasks.IMAGENET, dataset=DATASET, test="validation")
    scores = []
    for weights in (of_run, of_file):
        config, split = scoring.input_config(weights, task)
        assert (split, config.image_size) == ("validation", 16)
        # The run's images were evaluated so, and mixer.predict prepares pictures so; this file does not say.
        assert config.eval_resize == (16 if weights is of_run else None)
        config.data_dir, config.eval_resize = str(data_dir), 16
        found, _ = scoring.evaluate(weights, config, split, loss="softmax_xent", batch_size=8)
        scores.append(found.metrics)
    assert scores[0] == scores[1]


def test_classes_that_are_not_those_of_the_data_are_refused(run, data_dir, tmp_path):
    weights = loading.load(str(run))
    config, split = scoring.input_config(weights, None)
    renamed = dataclasses.replace(weights, class_names=["0", "1", "dog", "3"])
    with pytest.raises(
        UserError, match=r"classes of .* are not those of the data: class 2 is 'dog' there and '2' here"
    ):
        scoring.evaluate(renamed, config, split, loss="softmax_xent", batch_size=8)
    head = {"kernel": np.zeros((16, 7), np.float32), "bias": np.zeros(7, np.float32)}
    other = dataclasses.replace(weights, params={**weights.params, "head": head}, class_names=None)
    with pytest.raises(UserError, match="tells 7 classes apart, the data has 4: fine-tune it first"):
        scoring.evaluate(other, config, split, loss="softmax_xent", batch_size=8)


def test_another_image_size_sees_the_same_part_of_a_picture(run):
    weights = loading.load(str(run))
    assert (weights.config.input.eval_resize, weights.image_size) == (16, 16)
    config, _ = scoring.input_config(weights.at_image_size(32, "extend"), None)
    assert (config.eval_resize, config.image_size) == (32, 32)


def test_a_permutation_is_of_one_image_size(run):
    weights = loading.load(str(run))
    permuted = ml_collections.ConfigDict(weights.config.to_dict())
    permuted.input.permutation = "pixels"
    weights = dataclasses.replace(weights, config=ml_collections.FrozenConfigDict(permuted))
    assert scoring.input_config(weights, None)[0].permutation == "pixels"
    with pytest.raises(UserError, match=r"trained on permuted images of 16 pixels .* says nothing of the order at 32"):
        scoring.input_config(weights.at_image_size(32, "extend"), None)


def test_few_shot_accuracy_of_a_run(run):
    """The numbers are held to a computation of their own in tests/transfer; here, that the command asks for them."""
    done = command(f"--checkpoint={run}", "--fewshot", "--shots=2", "--shots=5", "--seeds=2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    asked = {
        "dataset": DATASET,
        "train_split": "train",
        "split": "validation",
        "eval_crop": "resize_square",
        "eval_resize": 18,  # 8/7 of 16, as in a run's own few-shot evaluation; the run's input has 16
        "seeds": 2,
    }
    assert {name: found[name] for name in asked} == asked
    name = "fewshot/fractals_4x40x16"
    assert {key for key in found if key.startswith("fewshot/")} == {
        f"{name}_{shots}shot{suffix}" for shots in (2, 5) for suffix in ("", "_std")
    }
    assert 1 / 4 <= found[f"{name}_5shot"] <= 1
    assert f"{name.replace('_', ' ')} 5shot" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--checkpoint is missing"),
        (["--checkpoint={run}", "--task=pots"], "--task 'pots': expected one of imagenet2012, cifar10"),
        (["--checkpoint={run}", "--image_size=40"], "has weights for images of 16 pixels, which image_size=40 does no"),
        (["--checkpoint={run}", "--eval_resize=8"], "--eval_resize=8 is less than the image size, 16"),
        (["--checkpoint={run}", "--task=flowers"], "dataset oxford_flowers102 in "),
        (["--checkpoint={run}", "--split=tset"], "split 'tset' of fractals/4x40x16"),
        (["--checkpoint={run}/nothing"], "no such file or folder"),
        (["--checkpoint={run}", "--fewshot", "--shots=0"], "--shots=[0] --seeds=3: expected numbers above 0"),
        (["--checkpoint={run}", "--fewshot", "--shots=99"], "99 shots are too many: class 0 "),
        (["--checkpoint={run}", "--task=folder", "--data_dir=/no"], "--data_dir='/no' is not a folder"),
        (
            ["--checkpoint={run}", "--task=folder", "--data_dir=/no", "--fewshot"],
            "--data_dir='/no' is not a folder",
        ),
        (
            ["--checkpoint={run}", "--fewshot", "--task=imagenet_v2"],
            "--fewshot: imagenet_v2/matched-frequency has no im",
        ),
        (["--checkpoint={run}", "--batch_per_core=0"], "--batch_per_core=0: expected at least 1"),
        (["--checkpoint={other}"], "other.npz is not a Mixer's parameters: "),
        (["--checkpoint={run}", "--eval_krop=x"], "--eval_krop: no such flag; the nearest is --eval_crop"),
        (
            ["--checkpoint={run}", "--fewshot", "--split=train"],
            "--split=train: it holds the images of train, from which",
        ),
        (
            ["--checkpoint={run}", "--config.input.data_dir=x"],
            "--config.input.data_dir: this command takes the settings of the run; --help",
        ),
        (["--checkpoint={run}", "--shots=5"], "--shots would not be read without --fewshot; leave it out"),
        (["--checkpoint={run}", "--resize=extend"], "--resize would not be read without --image_size; leave it out"),
    ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, monkeypatch, arguments, line):
    """In this process, for speed: the flags of a command can be read once a process, so each starts from none."""
    other = tmp_path / "other.npz"
    np.savez(other, **{"Transformer/kernel": np.ones((2, 2), np.float32)})
    values = flags.FlagValues()
    for name in dir(flags):
        if name.startswith("DEFINE_"):
            monkeypatch.setattr(flags, name, functools.partial(getattr(flags, name), flag_values=values))
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    evaluate.define_flags()
    with pytest.raises(UserError) as caught:
        evaluate.main(
            evaluate.command_line.parse_flags(["evaluate", *(a.format(run=run, other=other) for a in arguments)])
        )
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def parts_of(images, size):
    return [images[:, top : top + size, left : left + size] for top in (0, size) for left in (0, size)]


@pytest.mark.slow  # tests/transfer/test_resolution.py tests the formula
def test_a_run_at_twice_the_size_starts_where_appendix_c_says_and_improves(run, data_dir, tmp_path):
    """Its head kept, the first logits are the head's of the mean over the four parts' pre-logits."""
    weights = loading.load(str(run))
    small, head = weights.model().clone(num_classes=0), weights.params["head"]
    config = recipe.base().input
    config.update({"dataset": DATASET, "data_dir": str(data_dir), "image_size": 32, "eval_resize": 32})
    source = readers.open_source(config, "validation", tmp_path / "cache")
    (batch,) = pipeline.eval_batches(source, config, batch_size=16, rows=slice(0, 16))
    images = jnp.asarray(batch["image"] / 127.5 - 1, jnp.float32)
    features = [small.apply({"params": weights.params}, part) for part in parts_of(images, 16)]
    logits = np.mean([np.float64(part) for part in features], axis=0) @ head["kernel"] + head["bias"]
    labels = batch["labels"][:, 0]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(16), labels]

    larger = {"init_from": str(run), "input.image_size": 32, "input.eval_resize": 32}
    still = make_run(tmp_path / "still", data_dir, **larger, **{"total_steps": 1, "optimizer.learning_rate": 0.0})
    assert run_folder.load_config(still).model.tokens_mlp_dim == 4 * 8
    start = read_metrics(still)[-1]
    assert start["val/loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert start["val/accuracy"] == np.mean(logits.argmax(axis=1) == labels)

    tuned = make_run(tmp_path / "tuned", data_dir, **larger)
    assert read_metrics(tuned)[-1]["val/loss"] < 0.9 * start["val/loss"]
    # What was block-diagonal may fill: the blocks are a start, not a constraint.
    kernel = loading.load(str(tuned)).params["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"]
    assert kernel.shape == (64, 32)
    assert np.count_nonzero(kernel) > 0.9 * kernel.size
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(np.isfinite(leaf).all()), weights.params))
