"""Losses against float64 NumPy, for any number of labels and any size of logit."""

from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import LOSSES, targets
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.training import losses
from mixer.transfer import format as transfer_format

CLASSES = 6


# Rows of three slots: padding (-1) anywhere, the same label twice, none at all.
LABELS = st.lists(st.lists(st.integers(-1, CLASSES - 1), min_size=3, max_size=3), min_size=2, max_size=2)
LOGITS = st.lists(
    st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=CLASSES, max_size=CLASSES),
    min_size=2, max_size=2,
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
@settings(max_examples=60, deadline=None)
@given(labels=LABELS, logits=LOGITS)
def test_equals_float64_numpy(name, labels, logits):
    ones = losses.ones(jnp.asarray(labels, jnp.int32), CLASSES)
    np.testing.assert_array_equal(ones, targets(labels, CLASSES))
    ours = losses.LOSSES[name](jnp.asarray(logits, jnp.float32), ones)
    expected = LOSSES[name](np.asarray(logits, np.float64), targets(labels, CLASSES))
    largest = np.abs(logits).max(initial=1)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6 * largest)


def test_known_values():
    logits = jnp.asarray([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    two = losses.ones(jnp.asarray([[1, 4, -1]]), CLASSES)
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits, two), [6 * np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, two), [np.log(6)], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
@pytest.mark.parametrize("size", [0.0, 100.0, 1e30])
def test_gradients_of_extreme_logits_are_finite(name, size):
    logits = jnp.asarray([[size, -size, 0.0, size, -size, 1.0]])
    ones = losses.ones(jnp.asarray([[1, -1]]), CLASSES)
    gradient = jax.grad(lambda x: jnp.sum(losses.LOSSES[name](x, ones)))(logits)
    assert np.all(np.isfinite(gradient))
    assert np.any(np.asarray(gradient) != 0)


@pytest.mark.parametrize("labels", [[[2, 2, 2]], [[2, -1, -1]], [[-1, 2, -1]]])
def test_repeated_labels_and_padding_count_once(labels):
    one = losses.ones(jnp.asarray([[2]]), CLASSES)
    np.testing.assert_array_equal(losses.ones(jnp.asarray(labels), CLASSES), one)


def test_an_example_without_labels():
    """It is an example of no class for the sigmoid; for the softmax it says nothing."""
    none = losses.ones(jnp.asarray([[-1, -1]]), CLASSES)
    logits = jnp.asarray([[3.0, -2.0, 0.5, 0.0, 1.0, -1.0]])
    expected = np.sum(np.logaddexp(0, np.asarray(logits, np.float64)))
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits, none), [expected], rtol=1e-6)
    np.testing.assert_array_equal(losses.softmax_cross_entropy(logits, none), [0.0])


@settings(max_examples=40, deadline=None)
@given(labels=LABELS, smoothing=st.floats(0, 0.9))
def test_smoothed_targets(labels, smoothing):
    """The sum of an example's targets stays: 1 for one label, 0 for none. Each class gets the same share."""
    plain = targets(np.array(labels), CLASSES)
    total = plain.sum(axis=1, keepdims=True)
    found = np.asarray(losses.smoothed(jnp.asarray(plain, jnp.float32), smoothing), np.float64)
    np.testing.assert_allclose(found.sum(axis=1, keepdims=True), total, rtol=1e-5)
    np.testing.assert_allclose(
        found - (1 - smoothing) * plain, np.repeat(smoothing * total / CLASSES, CLASSES, 1), atol=1e-6
    )


def test_mixed_targets():
    """Mixup makes targets between 0 and 1: both losses are linear in them while they sum to one."""
    logits = jnp.asarray([[0.3, -1.0, 2.0, 0.0, 0.7, -0.2]])
    first, second = (losses.ones(jnp.asarray([[label]]), CLASSES) for label in (0, 3))
    for name, loss in losses.LOSSES.items():
        mixed = loss(logits, 0.7 * first + 0.3 * second)
        expected = 0.7 * loss(logits, first) + 0.3 * loss(logits, second)
        np.testing.assert_allclose(mixed, expected, rtol=1e-5, err_msg=name)


def test_mixed_with_an_example_without_labels():
    """What has no label says nothing to the softmax: the loss is the other's, by its share."""
    logits = jnp.asarray([[0.3, -1.0, 2.0, 0.0, 0.7, -0.2]])
    target = losses.ones(jnp.asarray([[2]]), CLASSES)
    logit = np.asarray(logits, np.float64)
    softmax = losses.softmax_cross_entropy(logits, 0.4 * target)
    np.testing.assert_allclose(softmax, 0.4 * (np.logaddexp.reduce(logit, axis=1) - logit[:, 2]), rtol=1e-6)
    sigmoid = losses.sigmoid_cross_entropy(logits, 0.4 * target)
    np.testing.assert_allclose(sigmoid, np.sum(np.logaddexp(0, logit)) - 0.4 * logit[0, 2], rtol=1e-6)


def test_cards_and_the_page_have_code_for_the_probabilities_of_each_loss():
    assert {loss.assumes for loss in losses.LOSSES.values()} <= losses.PROBABILITIES.keys()
    rows = jnp.asarray([[1.0, -2.0, 0.5], [300.0, 299.0, -300.0]])
    found = {"logits": np.asarray(rows, np.float64), "numpy": np}
    page = (resources.files("mixer") / "page" / "static" / "forward.js").read_text()
    for name, (of_logits, described) in losses.PROBABILITIES.items():
        exec("\n".join(transfer_format.in_numpy(name)), found)
        np.testing.assert_allclose(of_logits(rows), found["probabilities"], rtol=1e-6, atol=1e-30)
        assert name in described
        assert name in page.partition("function probabilities(")[0].rpartition("/**")[2]
