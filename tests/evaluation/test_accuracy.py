"""Evaluation: every example once, and metrics that equal scikit-learn's."""

import tracemalloc

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import random_models
from float64 import LOSSES, mixer, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from small_run import BLOCKS, CLASSES, PATCH, PIXELS, make_batch, make_run

from mixer.data import readers
from mixer.data.pixels import image_status
from mixer.data.sources import Source
from mixer.evaluation import classification, evaluator
from mixer.evaluation.accuracy import evaluation_of, make_eval_step, mean_average_precision
from mixer.runtime import devices, machine
from mixer.runtime.errors import UserError

BATCH = 16


def sklearn_mean_average_precision(scores, labels):
    present = targets(labels, scores.shape[1]).astype(int)
    classes = np.flatnonzero(present.any(axis=0))
    return average_precision_score(present[:, classes], scores[:, classes], average="macro") if len(classes) else 0.0


@settings(max_examples=60, deadline=None)
@given(
    examples=st.integers(2, 40),
    classes=st.integers(1, 6),
    levels=st.sampled_from([2, 5, 10**6]),  # few levels of score make ties
    seed=st.integers(0, 10**6),
)
def test_mean_average_precision_equals_sklearns(examples, classes, levels, seed):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, (examples, classes)) / levels).astype(np.float32)
    labels = rng.integers(-1, classes, (examples, 3)).astype(np.int32)
    expected = sklearn_mean_average_precision(scores, labels)
    cut = examples // 3
    assert mean_average_precision([scores[:cut], scores[cut:]], labels) == pytest.approx(expected, abs=1e-9)


def test_mean_average_precision_by_hand():
    scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.9, 0.0], [0.7, 0.2, 0.0]], np.float32)
    labels = np.array([[0, -1], [1, -1], [0, 1]], np.int32)
    # Class 0 finds its examples in places 1 and 3, class 1 in places 1 and 2; class 2 has none.
    assert mean_average_precision([scores], labels) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert mean_average_precision([scores], np.full((3, 2), -1, np.int32)) == 0.0


def test_metrics_of_several_labels_copy_no_more_than_a_few_classes():
    """The logits may be most of the host's memory."""
    examples, classes = 512, 800
    rng = np.random.default_rng(0)
    scores, labels = np.split(rng.normal(size=(examples, classes)), 8), rng.integers(0, classes, (examples, 3))
    sums = {name: np.array(examples) for name in ("count", "labelled", "loss", "with_loss", "correct")}
    statuses = np.zeros(len(image_status.STATUSES))
    kept = list(zip(scores, np.split(labels, 8), strict=True))
    tracemalloc.start()
    found = evaluation_of(sums | {"statuses": statuses}, kept, examples, "a split")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.metrics["mean_average_precision"] == pytest.approx(
        sklearn_mean_average_precision(np.concatenate(scores), labels)
    )
    assert most < 0.1 * examples * classes * scores[0].itemsize


def split_of(examples, unreadable=(), max_labels=2):
    """Batches as the pipeline gives them: the last padded with weight zero, the unreadable marked and blank."""
    rows = -(-examples // BATCH) * BATCH
    whole = make_batch(rows, max_labels=max_labels)
    padding, bad = np.arange(rows) >= examples, np.isin(np.arange(rows), list(unreadable))
    whole["weight"][padding | bad] = 0
    whole["labels"][padding | bad] = -1
    whole["status"][bad] = 3
    return [{name: column[start : start + BATCH] for name, column in whole.items()} for start in range(0, rows, BATCH)]


@pytest.fixture(scope="module")
def run(mesh):
    run = make_run(mesh)
    return run.model, run.state().params


@pytest.fixture
def evaluate(run, mesh, monkeypatch):
    """Evaluates with `Classification`, whose split is replaced by batches of this file."""

    def evaluation(batches, examples, *, on=mesh, loss="sigmoid_xent", multi_label=True, of=run):
        names = [str(number) for number in range(of[0].num_classes)]
        source = Source(examples, names, 2 if multi_label else 1, multi_label, lambda numbers: [])
        placed = [devices.to_devices(batch, on) for batch in batches]
        monkeypatch.setattr(readers, "open_source", lambda *arguments: source)
        monkeypatch.setattr(evaluator, "split_batches", lambda source, config, context, through: through(placed))
        settings = ml_collections.ConfigDict(
            {"dataset": None, "data_dir": None, "eval_crop": None, "eval_resize": None, "split": "test"}
        )
        context = evaluator.Context(
            of[0], names, loss, ml_collections.ConfigDict({"dataset": "pictures"}), on, BATCH, ""
        )
        params = jax.device_put(jax.device_get(of[1]), devices.replicated(on))
        return classification.Classification(settings, context).evaluate(params)

    return evaluation


def rows_of(run, batches):
    """Logits, labels and weight of all rows, in float64."""
    images, labels, weight = (np.concatenate([b[key] for b in batches]) for key in ("image", "labels", "weight"))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), run[1])
    return mixer(params, images / 127.5 - 1, PATCH, BLOCKS)[0], labels, weight


def numpy_metrics(run, batches, loss="sigmoid_xent"):
    """The averages by their definition, over the rows that count."""
    logits, labels, weight = rows_of(run, batches)
    logits, labels = logits[weight > 0], labels[weight > 0]
    has_loss = np.any(labels >= 0, axis=1) | (loss == "sigmoid_xent")
    hits = [guess in example for guess, example in zip(logits.argmax(axis=1), labels, strict=True)]
    return {
        "loss": LOSSES[loss](logits, targets(labels, CLASSES))[has_loss].mean(),
        "accuracy": np.mean(hits),
        "baseline_accuracy": max(np.mean(np.any(labels == number, axis=1)) for number in range(CLASSES)),
        "mean_average_precision": sklearn_mean_average_precision(logits, labels),
        "baseline_mean_average_precision": sklearn_mean_average_precision(np.zeros_like(logits), labels),
    }


@pytest.mark.parametrize("examples", [1, 5, 16, 37])
def test_every_example_counts_once_on_eight_devices(run, evaluate, examples):
    batches = split_of(examples)
    metrics = evaluate(batches, examples).metrics
    assert (metrics.pop("count"), metrics.pop("unreadable")) == (examples, 0)
    assert metrics == pytest.approx(numpy_metrics(run, batches), rel=1e-5)


def test_the_accuracy_of_a_single_example_is_one_if_the_guess_is_right(run, evaluate):
    batches = split_of(1)
    batches[0]["labels"][0] = rows_of(run, batches)[0][0].argmax()
    assert evaluate(batches, 1).metrics["accuracy"] == 1


def test_unreadable_examples_are_counted_apart(run, evaluate):
    batches = split_of(37, unreadable={0, 20, 36})
    metrics = evaluate(batches, 37).metrics
    assert (metrics.pop("count"), metrics.pop("unreadable"), metrics.pop("bad_images/unknown_format")) == (34, 3, 3)
    assert metrics == pytest.approx(numpy_metrics(run, batches), rel=1e-5)


def test_one_device_and_no_logits_give_the_same(evaluate, one_device):
    batches = split_of(37, unreadable={7})
    alone = evaluate(batches, 37, on=one_device, multi_label=False).metrics
    together = evaluate(batches, 37).metrics
    assert together.pop("mean_average_precision") > 0
    assert together.pop("baseline_mean_average_precision") > 0
    assert together.pop("baseline_accuracy") > 0
    assert alone == pytest.approx(together, rel=1e-6)


def test_a_model_that_gives_one_answer_is_no_better_than_the_baselines(run, evaluate):
    """Two thirds of the images have class 1, so that "first guess among the labels" looks good without any sight."""
    batches = split_of(15, max_labels=2)
    batches[0]["labels"][:] = [[1, -1], [1, 3], [2, -1]] * 5 + [[-1, -1]]
    params = jax.tree.map(np.zeros_like, jax.device_get(run[1]))
    params["head"]["bias"][1] = 1
    metrics = evaluate(batches, 15, of=(run[0], params)).metrics
    assert metrics["accuracy"] == metrics["baseline_accuracy"] == pytest.approx(2 / 3)
    expected = pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    assert (metrics["mean_average_precision"], metrics["baseline_mean_average_precision"]) == (expected, expected)


def test_outputs_that_the_host_cannot_hold_are_told_before_they_are_computed(evaluate, monkeypatch):
    batches = split_of(37)
    monkeypatch.setattr(machine, "available_memory", lambda: 4 * CLASSES * 37)
    assert evaluate(batches, 37).metrics["count"] == 37
    monkeypatch.setattr(machine, "available_memory", lambda: 4 * CLASSES * 37 - 1)
    assert evaluate(batches, 37, multi_label=False).metrics["count"] == 37  # keeps nothing
    with pytest.raises(UserError, match=r"pictures test: .* all outputs for 37 images and .* of at most 36 images"):
        evaluate(batches, 37)
    monkeypatch.setattr(machine, "available_memory", lambda: None)  # macOS
    assert evaluate(batches, 37).metrics["count"] == 37


@pytest.mark.parametrize("expected", [36, 38])
def test_a_wrong_count_is_an_error(evaluate, expected):
    with pytest.raises(RuntimeError, match=f"evaluated 37 \\+ 0 unreadable of {expected} examples"):
        evaluate(split_of(37), expected)


def test_more_images_than_float32_counts_are_counted():
    """2^24 + 1 in float32 is 2^24."""
    sums = [{"count": jnp.float32(n), "classes": jnp.array([n, 1.0]), "bad": jnp.int32(2)} for n in (2**24, 1, 1)]
    found = evaluator.total(iter(sums))
    assert (int(found["count"]), found["classes"].tolist(), int(found["bad"])) == (2**24 + 2, [2**24 + 2, 3], 6)
    assert (found["count"].dtype, found["bad"].dtype) == (np.float64, np.int64)
    assert evaluator.total(iter(sums[:1])) == {**found, "count": 2**24, "bad": 2, "classes": pytest.approx([2**24, 1])}


@pytest.mark.parametrize("max_labels", [1, 2])
def test_a_split_without_a_readable_image_is_an_error(evaluate, max_labels):
    message = r"^no image of pictures test can be read \(3 unknown_format\): mend the data, or give another split$"
    with pytest.raises(UserError, match=message):
        evaluate(split_of(3, unreadable={0, 1, 2}, max_labels=max_labels), 3, multi_label=max_labels == 2)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_image_without_a_label_counts_for_the_loss_of_a_sigmoid_alone(run, evaluate, loss):
    """As in ImageNet ReaL. The softmax of such an image has no loss."""
    batches = split_of(16)
    batches[0]["labels"][:5] = -1
    batches[0]["labels"][5:8, 1] = -1  # one label is enough
    metrics = evaluate(batches, 16, loss=loss).metrics
    assert (metrics.pop("count"), metrics.pop("labelled"), metrics.pop("unreadable")) == (16, 11, 0)
    expected = numpy_metrics(run, batches, loss)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(expected["accuracy"] * 16 / 11, rel=1e-5)


@pytest.mark.parametrize("max_labels", [1, 2])
def test_without_labels_there_is_no_accuracy(evaluate, max_labels):
    batches = split_of(16, max_labels=max_labels)
    for batch in batches:
        batch["labels"][:] = -1
    found = evaluate(batches, 16, multi_label=max_labels == 2)
    assert found.metrics == {"count": 16, "labelled": 0, "unreadable": 0}


def test_accuracy_by_class(run, evaluate):
    batches = split_of(37, unreadable={3, 30}, max_labels=1)
    for batch in batches:
        batch["labels"][batch["labels"] == 2] = 1  # a class without an example
        batch["labels"][batch["labels"] == 3] = 4
    batches[1]["labels"][0] = 3  # and one with a single example
    batches[0]["labels"][:4] = -1  # images whose label is not known, as in some test splits
    found = evaluate(batches, 37, loss="softmax_xent", multi_label=False)

    logits, labels, weight = rows_of(run, batches)
    guesses = logits.argmax(axis=1)
    of_class = [(labels[:, 0] == label) & (weight > 0) for label in range(CLASSES)]
    expected = [np.mean(guesses[rows] == label) if rows.any() else np.nan for label, rows in enumerate(of_class)]
    np.testing.assert_allclose(found.class_accuracy, expected)
    assert np.isnan(expected[2])
    assert found.metrics["mean_per_class_accuracy"] == pytest.approx(np.nanmean(expected))
    labelled = (weight > 0) & (labels[:, 0] >= 0)
    assert found.metrics["accuracy"] == pytest.approx(np.mean((guesses == labels[:, 0])[labelled]))
    assert found.metrics["loss"] == pytest.approx(numpy_metrics(run, batches, "softmax_xent")["loss"], rel=1e-5)


def test_top5_accuracy_of_more_than_five_classes(evaluate):
    model = random_models.make_model(9)
    of = model, random_models.make_params(model, PIXELS)
    batches = split_of(37, unreadable={3, 30}, max_labels=1)
    for seed, batch in enumerate(batches):
        batch["labels"] = np.random.default_rng(seed).integers(0, 9, batch["labels"].shape).astype(np.int32)
        batch["labels"][:2] = -1  # images whose label is not known
    found = evaluate(batches, 37, loss="softmax_xent", multi_label=False, of=of).metrics
    images, labels, weight = (np.concatenate([b[key] for b in batches]) for key in ("image", "labels", "weight"))
    logits = np.asarray(model.apply({"params": of[1]}, jnp.float32(images) / 127.5 - 1))
    counts = (weight > 0) & (labels[:, 0] >= 0)
    five = np.argsort(-logits, axis=1)[:, :5]
    assert found["top5_accuracy"] == pytest.approx(np.mean((five == labels).any(axis=1)[counts]))
    assert found["accuracy"] < found["top5_accuracy"] < 1


def test_logits_that_are_nan_guess_nothing(evaluate):
    model = random_models.make_model(9)
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), random_models.make_params(model, PIXELS)
    )
    batches = split_of(16, max_labels=1)
    batches[0]["labels"][:] = 0
    found = evaluate(batches, 16, loss="softmax_xent", multi_label=False, of=(model, params)).metrics
    assert (found["accuracy"], found["top5_accuracy"], found["mean_per_class_accuracy"]) == (0, 0, 0)


@pytest.mark.parametrize("max_labels", [1, 2])
def test_five_classes_and_several_labels_have_no_top5_accuracy(evaluate, max_labels):
    assert "top5_accuracy" not in evaluate(split_of(16, max_labels=max_labels), 16, multi_label=max_labels == 2).metrics


def test_several_labels_have_no_accuracy_by_class(evaluate):
    found = evaluate(split_of(16), 16)
    assert found.class_accuracy is None
    assert "mean_per_class_accuracy" not in found.metrics


def test_sums_and_logits_are_on_every_device(run, mesh):
    """So every host can read them."""
    step = make_eval_step(run[0], "sigmoid_xent", mesh, keep_logits=True)
    outputs = step(run[1], devices.to_devices(split_of(16)[0], mesh))
    assert outputs[1].shape == (16, CLASSES)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(outputs))
