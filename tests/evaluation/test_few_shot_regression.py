"""Few-shot regression, compared with ordinary least squares; and properties of the choice of examples."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.evaluation import few_shot_regression
from mixer.runtime.errors import UserError


def least_squares_scores(features, labels, test, num_classes, l2):
    """Returns the scores of ridge regression by least squares, with sqrt(l2) I appended to X and zeros to Y."""
    features, test = features.astype(np.float64), test.astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-5

    def augmented(x):
        return np.concatenate([(x - mean) / std, np.full((len(x), 1), 100.0)], axis=1)

    X, Y = augmented(features), 2.0 * np.eye(num_classes)[labels] - 1.0
    width = X.shape[1]
    system = np.concatenate([X, np.sqrt(l2) * np.eye(width)])
    W = np.linalg.lstsq(system, np.concatenate([Y, np.zeros((width, num_classes))]), rcond=None)[0]
    return augmented(test) @ W


def task(seed, examples, width, classes):
    """Returns random float32 features around a centre for each class, with very different scales, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples).astype(np.int32)
    centres = rng.normal(size=(classes, width))
    features = (centres[labels] + rng.normal(size=(examples, width))) * 10.0 ** rng.uniform(-2, 2, width)
    return (features + rng.normal(size=width)).astype(np.float32), labels


# ---------------------------------------------------------------------------------------------------------- regression


@settings(max_examples=60)
@given(
    examples=st.integers(1, 60),  # fewer than features, as many, and more
    width=st.integers(1, 60),
    classes=st.integers(1, 7),
    l2=st.sampled_from([1e-3, 1.0, 1024.0]),
    seed=st.integers(0, 10**6),
)
def test_regression_is_least_squares(examples, width, classes, l2, seed):
    features, labels = task(seed, examples + 20, width, classes)
    few, test = features[:examples], features[examples:]
    classifier = few_shot_regression.regress(few, labels[:examples], classes, l2)
    assert (classifier.kernel.shape, classifier.bias.shape) == ((width, classes), (classes,))
    expected = least_squares_scores(few, labels[:examples], test, classes, l2)
    scores = test @ classifier.kernel + classifier.bias
    # A single example has the standard deviation 0, so test features are divided by 1e-5 and become large.
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6 * max(1, np.abs(expected).max()))
    share = np.mean(expected.argmax(axis=1) == labels[examples:])
    assert few_shot_regression.accuracy(classifier, test, labels[examples:]) == pytest.approx(share)


def test_scores_of_many_classes_take_little_memory():
    classes, width = 1500, 8
    features, labels = task(0, 6 * classes, width, classes)
    labels = np.arange(6 * classes, dtype=np.int32) % classes
    tracemalloc.start()
    classifier = few_shot_regression.regress(features, labels, classes, 1.0)
    found = few_shot_regression.accuracy(classifier, features, labels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == np.mean(np.argmax(features @ classifier.kernel + classifier.bias, axis=1) == labels)
    assert most < 0.4 * len(labels) * classes * 8  # bytes of the targets, and of the scores, in float64


@pytest.mark.parametrize("examples", [12, 13, 14, 40])  # 13 features with the constant one: both forms, and the border
def test_both_forms_are_the_same_function(examples):
    features, labels = task(0, examples, 12, 3)
    scores = features @ few_shot_regression.regress(features, labels, 3, 8.0).kernel
    more = np.concatenate([features, np.zeros((examples, 30), np.float32)], axis=1)  # constant features
    np.testing.assert_allclose(more @ few_shot_regression.regress(more, labels, 3, 8.0).kernel, scores, rtol=1e-9)


def test_by_hand():
    """One feature at -1 and 1, standard deviation 1, l2 = 2: W = (2 / (2 + 2), 0) for the second class."""
    classifier = few_shot_regression.regress(np.array([[-1.0], [1.0]]), np.array([0, 1]), 2, 2.0)
    np.testing.assert_allclose(classifier.kernel, [[-0.5, 0.5]], rtol=1e-4)
    np.testing.assert_allclose(classifier.bias, [0, 0], atol=1e-12)


def test_the_bias_is_hardly_regularised():
    """With constant features, the score is the mean of the targets: 2 * share - 1."""
    labels = np.repeat([0, 1], [30, 10])
    classifier = few_shot_regression.regress(np.ones((40, 3), np.float32), labels, 3, 1024.0)
    np.testing.assert_allclose(classifier.bias, [0.5, -0.5, -1.0], rtol=0.01)
    np.testing.assert_array_equal(classifier.kernel, 0)


def test_scale_and_origin_of_features_do_not_matter():
    features, labels = task(1, 200, 20, 5)
    scale, origin = np.logspace(-2, 3, 20), np.linspace(-4, 4, 20)
    moved = features.astype(np.float64) * scale + origin
    accuracies = [
        few_shot_regression.accuracy(few_shot_regression.regress(x[:50], labels[:50], 5, 1024.0), x[50:], labels[50:])
        for x in (features, moved)
    ]
    assert accuracies[0] == accuracies[1] > 0.5


def test_of_equal_scores_the_first_class_is_taken():
    classifier = few_shot_regression.Classifier(np.zeros((2, 3)), np.zeros(3))
    assert few_shot_regression.accuracy(classifier, np.zeros((4, 2), np.float32), np.array([0, 1, 2, 0])) == 0.5


def test_scores_that_are_nan_guess_nothing():
    classifier = few_shot_regression.Classifier(np.eye(2), np.zeros(2))
    features = np.array([[1, 0], [np.nan, 0], [0, np.nan]], np.float32)
    assert few_shot_regression.accuracy(classifier, features, np.array([0, 0, 1])) == pytest.approx(1 / 3)


# -------------------------------------------------------------------------------------------------------------- choice


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(6, 20), min_size=1, max_size=6),
    shots=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_choice_has_this_many_of_each_class(counts, shots, seed):
    names = [str(number) for number in range(len(counts))]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(-1, len(counts)), [3, *counts]))
    chosen = few_shot_regression.choose(labels, names, shots, seed)
    assert len(set(chosen.tolist())) == len(chosen)
    np.testing.assert_array_equal(labels[chosen], np.repeat(np.arange(len(counts)), shots))
    np.testing.assert_array_equal(few_shot_regression.choose(labels, names, shots, seed), chosen)
    more = few_shot_regression.choose(labels, names, 6, seed).reshape(len(counts), 6)
    np.testing.assert_array_equal(more[:, :shots].ravel(), chosen)


def test_the_choice_is_the_published_one():
    """One generator permutes the examples of each class, class after class."""
    labels = np.array([1, 0, 0, 1, 1, 0, 0, 1])
    rng = np.random.default_rng(7)
    expected = [rng.permutation([1, 2, 5, 6])[:2], rng.permutation([0, 3, 4, 7])[:2]]
    np.testing.assert_array_equal(few_shot_regression.choose(labels, ["a", "b"], 2, 7), np.concatenate(expected))
    choices = {tuple(few_shot_regression.choose(np.repeat([0, 1], 50), ["a", "b"], 2, seed)) for seed in range(10)}
    assert len(choices) == 10


@pytest.mark.parametrize(
    ("shots", "line"),
    [(3, r"class 1 \(dog\) has only 2 examples; ask"), (5, r"class 0 \(cat\) has only 4 examples; ask")],
)
def test_too_few_examples_of_a_class(shots, line):
    with pytest.raises(UserError, match=rf"^{shots} shots are too many: {line}"):
        few_shot_regression.choose(np.array([0, 1, 0, -1, 0, 1, 0]), ["cat", "dog"], shots, 0)
