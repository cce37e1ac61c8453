"""The few-shot evaluator, compared with features computed one image at a time, without a mesh, by another head."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from random_models import WIDTHS, make_model, make_params

from mixer.config import recipe
from mixer.data import datasets, sources
from mixer.data.pixels import augment, image_status, images
from mixer.evaluation import evaluators, few_shot, few_shot_regression
from mixer.evaluation.evaluator import Context
from mixer.evaluation.few_shot import FewShot
from mixer.runtime import devices
from mixer.runtime.errors import SeveralLabelsError, UserError
from mixer.training import sharding

PIXELS = 8


def make(dataset, folder, model=None, mesh=None, batch_size=16, reading=iter, **settings):
    """Makes a FewShot for this dataset, in a run whose data is in `folder`."""
    config = recipe.base()
    config.input.image_size, config.input.data_dir = PIXELS, str(folder)
    config.input.label_key, config.input.max_labels = "another", 4  # for the run's own dataset only
    settings = recipe.evaluator_settings("few_shot", dataset=dataset, **{"eval_crop": "resize_square", **settings})
    model = model or make_model(classes=3)  # the head does not matter
    mesh = mesh or devices.make_mesh()
    return FewShot(settings, Context(model, None, "", config.input, mesh, batch_size, folder, reading=reading))


def one_by_one(params, source, config):
    """Returns features, NaN for images that cannot be read, and labels. The head is the identity."""
    model, width = make_model(WIDTHS["hidden_dim"]), WIDTHS["hidden_dim"]
    params = {**params, "head": {"kernel": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}}
    apply = jax.jit(model.apply)
    features, labels = np.full((source.num_examples, width), np.nan), []
    for number in range(source.num_examples):
        (example,) = source.fetch(np.array([number]))
        labels.append(example.labels[0])
        image = images.inspect(example.image, 10**6)
        if image.status == image_status.OK:
            size = tf.constant([image.height, image.width])
            pixels = augment.eval_image(tf.constant(image.data), tf.constant(image.encoding), size, config).numpy()
            features[number] = apply({"params": params}, pixels[None].astype(np.float32) / 127.5 - 1)[0]
    return features, np.array(labels)


def expected_metrics(params, few_shot, name, shots, seeds, l2=1024.0):
    config = few_shot._config
    (features, labels), (test, test_labels) = (
        one_by_one(params, source, config) for source in (few_shot._train, few_shot._test)
    )
    seen = ~np.isnan(test[:, 0])
    metrics = {}
    for count in shots:
        accuracies = []
        for seed in range(seeds):
            rows = few_shot_regression.choose(labels, few_shot._train.class_names, count, seed)
            rows = rows[~np.isnan(features[rows, 0])]
            classifier = few_shot_regression.regress(features[rows], labels[rows], len(few_shot._train.class_names), l2)
            accuracies.append(few_shot_regression.accuracy(classifier, test[seen], test_labels[seen]))
        metrics[f"{name}_{count}shot"] = np.mean(accuracies)
        if seeds > 1:
            metrics[f"{name}_{count}shot_std"] = np.std(accuracies) * np.sqrt(seeds / (seeds - 1))
    return metrics


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    datasets.prepare_embedded("digits/8", str(folder))
    return folder


DIGITS = {"train_split": "train_seed0+train_seed1", "split": "test[:150]", "shots": (1, 4), "seeds": 2}


@pytest.mark.parametrize("kind", sharding.SHARDINGS)
def test_accuracies_are_those_of_features_computed_one_by_one(data_dir, kind, monkeypatch):
    monkeypatch.setattr(sharding, "_SMALLEST_SHARDED", 1)
    params = make_params(make_model(classes=3), PIXELS)
    few_shot = make("digits/8", data_dir, **DIGITS)
    shapes = jax.eval_shape(lambda: params)
    placed = jax.device_put(params, sharding.state_sharding(shapes, devices.make_mesh(), kind))
    metrics = few_shot(placed)
    assert metrics == pytest.approx(expected_metrics(params, few_shot, "digits_8", (1, 4), 2))
    assert 0.1 < metrics["digits_8_1shot"] < metrics["digits_8_4shot"]
    assert few_shot(placed) == metrics


def test_devices_batches_heads_and_scan_do_not_matter(data_dir):
    params = make_params(make_model(classes=3), PIXELS)
    whole = make("digits/8", data_dir, **DIGITS)(params)
    alone = devices.make_mesh(jax.devices()[:1])
    assert make("digits/8", data_dir, mesh=alone, batch_size=7, **DIGITS)(params) == pytest.approx(whole)
    other = make("digits/8", data_dir, make_model(classes=0, scan=True), batch_size=512, **DIGITS)
    assert other({name: part for name, part in params.items() if name != "head"}) == pytest.approx(whole)


def test_reading_the_labels_can_be_watched(data_dir, monkeypatch):
    monkeypatch.setattr(few_shot, "_CHUNK", 128)
    seen = []

    def watched(parts):
        assert len(parts) == 2  # Console.counted shows the time left
        for part in parts:
            seen.append(len(part))
            yield part

    unwatched = make("digits/8", data_dir, **DIGITS)
    watching = make("digits/8", data_dir, reading=watched, **DIGITS)
    assert seen == [128, 72]
    np.testing.assert_array_equal(watching._needed, unwatched._needed)


def test_one_seed_has_no_deviation(data_dir):
    settings = {**DIGITS, "shots": (2,), "seeds": 1, "split": "test[:30]"}
    metrics = make("digits/8", data_dir, **settings)(make_params(make_model(classes=3), PIXELS))
    assert list(metrics) == ["digits_8_2shot"]


def test_other_parameters_have_other_accuracies(data_dir):
    few_shot = make("digits/8", data_dir, **DIGITS)
    one, other = (few_shot(make_params(make_model(classes=3), PIXELS, seed)) for seed in (0, 1))
    assert one != other


# ------------------------------------------------------------------------------------------------------ unreadable


def pictures(folder: pathlib.Path, bad: set[str]) -> None:
    """Makes two splits of three classes of eight noisy images; those in `bad` cannot be read."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(3):
            (folder / split / f"class{label}").mkdir(parents=True)
            for i in range(8):
                path = folder / split / f"class{label}" / f"{i}.png"
                pixels = rng.integers(0, 120, (PIXELS + 2, PIXELS, 3))
                pixels[:, :, label] += 15
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                if f"{split}/{label}/{i}" in bad:
                    path.write_bytes(b"" if i % 2 else b"not a picture")


FOLDER = {"split": "validation", "shots": (2, 8), "seeds": 2, "l2": 0.1}


def test_images_that_cannot_be_read_do_not_count(tmp_path):
    pictures(tmp_path, {"train/0/1", "train/2/4", "train/2/5", "val/1/0", "val/2/7"})
    params = make_params(make_model(classes=3), PIXELS)
    few_shot = make("folder", tmp_path, **FOLDER)
    metrics = few_shot(params)
    assert metrics.pop("folder_unreadable") == 5
    assert {kind: metrics.pop(f"bad_images/{kind}") for kind in ("empty", "unknown_format")} == {
        "empty": 3,
        "unknown_format": 2,
    }
    assert few_shot.num_examples == 24 + len(few_shot._needed)
    expected = expected_metrics(params, few_shot, "folder", (2, 8), 2, l2=0.1)
    assert metrics == pytest.approx(expected)
    assert metrics["folder_8shot"] * 22 == pytest.approx(round(metrics["folder_8shot"] * 22))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_readable_image_is_an_error(tmp_path, split):
    pictures(tmp_path, {f"{split}/{label}/{i}" for label in range(3) for i in range(8)})
    few_shot = make("folder", tmp_path, **FOLDER)
    with pytest.raises(UserError, match=r"^few-shot evaluation: no image of folder can be read$"):
        few_shot(make_params(make_model(classes=3), PIXELS))


def without_labels(source, unlabelled):
    """A source whose examples with these numbers have the label -1, as test splits of TFDS do."""

    def fetch(numbers):
        examples = zip(numbers.tolist(), source.fetch(numbers), strict=True)
        return [example._replace(labels=(-1,)) if n in unlabelled else example for n, example in examples]

    return dataclasses.replace(source, fetch=fetch)


def test_a_test_split_without_labels_has_no_accuracy(tmp_path):
    pictures(tmp_path, set())
    few_shot = make("folder", tmp_path, **FOLDER)
    few_shot._test = without_labels(few_shot._test, set(range(24)))
    line = "few-shot evaluation: folder validation has no labels; give another split"
    with pytest.raises(UserError, match=f"^{line}$"):
        few_shot(make_params(make_model(classes=3), PIXELS))


def test_images_without_a_label_do_not_count(tmp_path):
    pictures(tmp_path, set())
    few_shot = make("folder", tmp_path, **FOLDER)
    params = make_params(make_model(classes=3), PIXELS)
    whole = few_shot(params)
    few_shot._test = without_labels(few_shot._test, {0, 3, 11, 20})
    found = few_shot(params)
    assert found.pop("folder_unlabelled") == 4
    assert "folder_unlabelled" not in whole
    for name in ("folder_2shot", "folder_8shot"):
        assert found[name] * 40 == pytest.approx(round(found[name] * 40))  # of 20 images, for two seeds


def test_a_damaged_record_is_never_chosen(monkeypatch):
    labels = [0, 1, 0, 1, 0, 1]

    def fetch(numbers):
        return [sources.Example(None, ()) if n < 2 else sources.Example(b"file", (labels[n],)) for n in numbers]

    damaged = sources.Source(6, ("a", "b"), 1, False, fetch)
    np.testing.assert_array_equal(few_shot.class_numbers(damaged), [-1, -1, 0, 1, 0, 1])
    monkeypatch.setattr(few_shot, "_CHUNK", 4)
    np.testing.assert_array_equal(few_shot.class_numbers(damaged), [-1, -1, 0, 1, 0, 1])


def test_the_label_is_that_of_the_dataset_whose_images_are_used():
    """A run's own dataset has the run's label_key; another one its own."""
    config = recipe.base()
    config.input.label_key, config.input.dataset = "species", "oxford_iiit_pet"
    for dataset, given, read in ((None, None, "species"), ("cars196", None, None), ("cars196", "make", "make")):
        settings = recipe.evaluator_settings("few_shot", dataset=dataset, label_key=given)
        assert few_shot.input_of(settings, config.input).label_key == read
    config.fewshot.dataset, config.fewshot.label_key = "oxford_iiit_pet", "species"
    assert few_shot.input_of(evaluators.settings_of(config)["fewshot"], config.input).label_key == "species"


# ---------------------------------------------------------------------------------------------------- what users meet


@pytest.mark.parametrize(
    ("dataset", "settings", "line"),
    [
        ("nope", {}, "config.input.dataset='nope': "),
        ("digits/8", {"train_split": "train"}, "split 'train' of digits/8 in "),
        ("digits/8", {**DIGITS, "split": "train"}, "split 'train' of digits/8 in "),
        ("digits/8", {**DIGITS, "shots": (5, 21)}, r"21 shots are too many: class 0 \(0\) has only 20 examples"),
        ("folder", {"data_dir": "/no/folder"}, "config.input.data_dir='/no/folder' is not a folder"),
    ],
)
def test_a_mistake_is_one_line_at_the_start(data_dir, dataset, settings, line):
    with pytest.raises(UserError, match=f"^few-shot evaluation: {line}") as caught:
        make(dataset, data_dir, **settings)
    assert "\n" not in str(caught.value)


def test_several_labels_are_refused(monkeypatch, tmp_path):
    several = sources.Source(6, ("a", "b"), 4, True, lambda numbers: [])
    monkeypatch.setattr("mixer.data.readers.open_source", lambda *of: several)
    with pytest.raises(UserError, match=r"^few-shot evaluation: tags has several labels an example"):
        make("tags", tmp_path)

    def has_more(config, *_):
        raise SeveralLabelsError(f"config.input.max_labels={config.max_labels}")

    monkeypatch.setattr("mixer.data.readers.open_source", has_more)
    with pytest.raises(UserError, match=r"^few-shot evaluation: tags has several labels an example; this"):
        make("tags", tmp_path)
    settings = recipe.evaluator_settings("few_shot", dataset="tags", max_labels=3)
    assert few_shot.input_of(settings, recipe.base().input).max_labels == 3  # it is read, so that this can be said


def test_it_has_its_own_folder_and_evaluation_crop(data_dir, tmp_path):
    few_shot = make("digits/8", tmp_path, data_dir=str(data_dir), **DIGITS)
    config = few_shot._config
    assert (config.dataset, config.data_dir, config.image_size) == ("digits/8", str(data_dir), PIXELS)
    assert (config.eval_crop, config.eval_resize) == ("resize_square", None)
    config = make("digits/8", data_dir, eval_crop="resize_small", eval_resize=12, **DIGITS)._config
    assert (config.data_dir, config.eval_crop, config.eval_resize) == (str(data_dir), "resize_small", 12)


def test_images_that_are_learned_from_and_tested_on_are_refused(data_dir):
    settings = {**DIGITS, "train_split": "test[:150]", "split": "test[100:]", "shots": (5,)}
    with pytest.raises(UserError, match=r"few-shot evaluation: \d+ of the \d+ images that it learns from are in"):
        make("digits/8", data_dir, **settings)
    make("digits/8", data_dir, **{**settings, "split": "test[150:]"})
