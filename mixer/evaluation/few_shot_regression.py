"""Few-shot linear regression from frozen features (Section 3 of the paper; details as in the published evaluator).

This is only the arithmetic, in float64 on the host. `few_shot.py` applies it to data and a model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mixer.runtime.errors import UserError

_CONSTANT = 100.0  # the constant feature, whose weight is the bias; it is large, so the bias is hardly regularised
_SCORED_AT_ONCE = 1024  # examples; with the scores of all, the host's memory might not do
_LEAST_STD = 1e-5  # added to each standard deviation, which is 0 if a feature has the same value in all examples


class Classifier(NamedTuple):
    """An affine function from the model's features to a score for each class. It includes the standardisation.

    Attributes:
      kernel: float64 [features, classes].
      bias: float64 [classes].
    """

    kernel: np.ndarray
    bias: np.ndarray


def choose(
    labels: Int[np.ndarray, " examples"], class_names: Sequence[str], shots: int, seed: int
) -> Int[np.ndarray, " chosen"]:
    """Chooses `shots` examples of each class at random.

    One generator permutes the examples of each class, class after class. The first `shots` of each permutation are
    chosen. So, with the same seed, a choice of more shots includes every choice of fewer shots.

    Args:
      labels: the class number of each example; -1 for an example that must not be chosen.
      class_names: a name for each class.
      shots: examples of each class.
      seed: of the generator.

    Returns:
      [classes * shots], indices into `labels`, class after class.

    Raises:
      UserError: a class has too few examples. (The published evaluator then uses all examples of this class.)
    """
    rng = np.random.default_rng(seed)
    by_class = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[by_class], np.arange(len(class_names) + 1))
    chosen = []
    for number, name in enumerate(class_names):
        members = rng.permutation(by_class[ends[number] : ends[number + 1]])
        if len(members) < shots:
            raise UserError(
                f"{shots} shots are too many: class {number} ({name}) has only {len(members)} examples; ask for fewer "
                "(--shots of mixer.evaluate, shots in a config), or in a config choose from a larger train_split"
            )
        chosen.append(members[:shots])
    return np.concatenate(chosen)


def regress(
    features: Float[np.ndarray, "examples features"], labels: Int[np.ndarray, " examples"], num_classes: int, l2: float
) -> Classifier:
    """Fits a linear classifier by ridge regression on standardised features.

    X [N, D + 1] are the features, standardised over these examples, and a constant. Y [N, classes] are the targets: +1
    for the class of the example and -1 for all others. The solution is

        W = (X^T X + l2 I)^-1 X^T Y = X^T (X X^T + l2 I)^-1 Y

    and it is computed in the form that has the smaller matrix. Y is made in the second form alone, where examples are
    few: column c of X^T Y is twice the sum of the rows of class c less that of all rows.

    Args:
      features: of the few examples.
      labels: their class numbers.
      num_classes: of the task. A class without examples has the target -1 everywhere.
      l2: above 0; 2^10 as published.
    """
    features = features.astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0) + _LEAST_STD
    X = np.pad((features - mean) / std, ((0, 0), (0, 1)), constant_values=_CONSTANT)
    num_examples, num_features = X.shape
    if num_examples >= num_features:
        of_class = np.zeros((num_classes, num_features))
        np.add.at(of_class, labels, X)
        W = np.linalg.solve(X.T @ X + l2 * np.eye(num_features), (2 * of_class - X.sum(axis=0)).T)
    else:
        Y = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
        W = X.T @ np.linalg.solve(X @ X.T + l2 * np.eye(num_examples), Y)
    kernel = W[:-1] / std[:, None]
    return Classifier(kernel, _CONSTANT * W[-1] - mean @ kernel)


def accuracy(
    classifier: Classifier, features: Float[np.ndarray, "examples features"], labels: Int[np.ndarray, " examples"]
) -> float:
    """Returns the share of examples whose class has the highest score. Of equal scores, the first class is taken.

    Scores that are not numbers guess nothing.
    """
    hits = 0
    for start in range(0, len(labels), _SCORED_AT_ONCE):
        rows = slice(start, start + _SCORED_AT_ONCE)
        scores = features[rows] @ classifier.kernel + classifier.bias
        hits += np.sum((np.argmax(scores, axis=1) == labels[rows]) & ~np.isnan(scores).any(axis=1))
    return float(hits / len(labels))
