"""Evaluation: every example once, and metrics that equal scikit-learn's."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from mixer.data.image_status import STATUSES
from mixer.evaluation.classification import evaluate, make_eval_step, mean_average_precision

BATCH = 16


def sklearn_mean_average_precision(scores, labels):
    present = np.zeros(scores.shape, int)
    for row, example in zip(present, labels, strict=True):
        row[example[example >= 0]] = 1
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
    assert mean_average_precision(scores, labels) == pytest.approx(expected, abs=1e-9)


def test_mean_average_precision_by_hand():
    scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.9, 0.0], [0.7, 0.2, 0.0]], np.float32)
    labels = np.array([[0, -1], [1, -1], [0, 1]], np.int32)
    # Class 0 finds its examples in places 1 and 3, class 1 in places 1 and 2; class 2 has none.
    assert mean_average_precision(scores, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert mean_average_precision(scores, np.full((3, 2), -1, np.int32)) == 0.0


def split_of(small, examples, unreadable=(), max_labels=2):
    """Batches as the pipeline gives them: the last padded with weight zero, the unreadable marked and blank."""
    rows = -(-examples // BATCH) * BATCH
    whole = small.make_batch(rows, max_labels=max_labels)
    padding, bad = np.arange(rows) >= examples, np.isin(np.arange(rows), list(unreadable))
    whole["weight"][padding | bad] = 0
    whole["labels"][padding | bad] = -1
    whole["status"][bad] = 3
    return [{name: column[start : start + BATCH] for name, column in whole.items()} for start in range(0, rows, BATCH)]


@pytest.fixture(scope="module")
def run(small):
    run = small.make_run()
    return run.model, run.init().params


@pytest.fixture(scope="module")
def eval_step(run, mesh):
    return make_eval_step(run[0], "sigmoid_xent", mesh, keep_logits=True)


def numpy_metrics(run, batches):
    """The averages by their definition, over the rows that count."""
    model, params = run
    images, labels, weight = (np.concatenate([b[key] for b in batches]) for key in ("image", "labels", "weight"))
    images, labels = images[weight > 0], labels[weight > 0]
    logits = np.asarray(model.apply({"params": params}, jnp.asarray(images / 127.5 - 1, jnp.float32)), np.float64)
    present = np.zeros(logits.shape)
    for row, example in zip(present, labels, strict=True):
        row[example[example >= 0]] = 1
    loss = np.sum(present * np.logaddexp(0, -logits) + (1 - present) * np.logaddexp(0, logits), axis=1)
    hits = [guess in example for guess, example in zip(logits.argmax(axis=1), labels, strict=True)]
    return {
        "loss": loss.mean(),
        "accuracy": np.mean(hits),
        "mean_average_precision": sklearn_mean_average_precision(logits, labels),
    }


@pytest.mark.parametrize("examples", [5, 16, 37])
def test_every_example_counts_once_on_eight_devices(small, run, eval_step, mesh, examples):
    batches = split_of(small, examples)
    metrics = evaluate(eval_step, run[1], batches, mesh, examples, STATUSES).metrics
    assert (metrics.pop("count"), metrics.pop("unreadable")) == (examples, 0)
    assert metrics == pytest.approx(numpy_metrics(run, batches), rel=1e-5)


def test_unreadable_examples_are_counted_apart(small, run, eval_step, mesh):
    batches = split_of(small, 37, unreadable={0, 20, 36})
    metrics = evaluate(eval_step, run[1], batches, mesh, 37, STATUSES).metrics
    assert (metrics.pop("count"), metrics.pop("unreadable"), metrics.pop("bad_images/unknown_format")) == (34, 3, 3)
    assert metrics == pytest.approx(numpy_metrics(run, batches), rel=1e-5)


def test_one_device_and_no_logits_give_the_same(small, run, eval_step, mesh, one_device):
    step = make_eval_step(run[0], "sigmoid_xent", one_device, keep_logits=False)
    batches = split_of(small, 37, unreadable={7})
    alone = evaluate(step, run[1], batches, one_device, 37, STATUSES).metrics
    together = evaluate(eval_step, run[1], batches, mesh, 37, STATUSES).metrics
    assert together.pop("mean_average_precision") > 0
    assert alone == pytest.approx(together, rel=1e-6)


@pytest.mark.parametrize("expected", [36, 38])
def test_a_wrong_count_is_an_error(small, run, eval_step, mesh, expected):
    with pytest.raises(RuntimeError, match=f"evaluated 37 \\+ 0 unreadable of {expected} examples"):
        evaluate(eval_step, run[1], split_of(small, 37), mesh, expected, STATUSES)


def test_a_split_without_a_readable_image(small, run, eval_step, mesh):
    metrics = evaluate(eval_step, run[1], split_of(small, 3, unreadable={0, 1, 2}), mesh, 3, STATUSES).metrics
    assert metrics == {
        "loss": 0,
        "accuracy": 0,
        "mean_average_precision": 0,
        "count": 0,
        "unreadable": 3,
        "bad_images/unknown_format": 3,
    }


def test_an_image_without_a_label_counts_for_the_loss_alone(small, run, eval_step, mesh):
    """As in ImageNet ReaL."""
    batches = split_of(small, 16)
    batches[0]["labels"][:5] = -1
    metrics = evaluate(eval_step, run[1], batches, mesh, 16, STATUSES).metrics
    assert (metrics.pop("count"), metrics.pop("labelled"), metrics.pop("unreadable")) == (16, 11, 0)
    expected = numpy_metrics(run, batches)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(expected["accuracy"] * 16 / 11, rel=1e-5)


def test_accuracy_by_class(small, run, mesh):
    step = make_eval_step(run[0], "softmax_xent", mesh, keep_logits=False)
    batches = split_of(small, 37, unreadable={3, 30}, max_labels=1)
    for batch in batches:
        batch["labels"][batch["labels"] == 2] = 1  # a class without an example
    batches[0]["labels"][:4] = -1  # images of which the label is not known, as in some test splits
    found = evaluate(step, run[1], batches, mesh, 37, STATUSES)

    model, params = run
    images, labels, weight = (np.concatenate([b[key] for b in batches]) for key in ("image", "labels", "weight"))
    guesses = np.asarray(model.apply({"params": params}, jnp.asarray(images / 127.5 - 1, jnp.float32))).argmax(axis=1)
    of_class = [(labels[:, 0] == label) & (weight > 0) for label in range(small.classes)]
    expected = [np.mean(guesses[rows] == label) if rows.any() else np.nan for label, rows in enumerate(of_class)]
    np.testing.assert_allclose(found.class_accuracy, expected)
    assert np.isnan(expected[2])
    assert found.metrics["mean_per_class_accuracy"] == pytest.approx(np.nanmean(expected))
    labelled = (weight > 0) & (labels[:, 0] >= 0)
    assert found.metrics["accuracy"] == pytest.approx(np.mean((guesses == labels[:, 0])[labelled]))


def test_several_labels_have_no_accuracy_by_class(small, run, eval_step, mesh):
    found = evaluate(eval_step, run[1], split_of(small, 16), mesh, 16, STATUSES)
    assert found.class_accuracy is None
    assert "mean_per_class_accuracy" not in found.metrics
