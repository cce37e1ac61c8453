"""Few-shot linear regression from frozen features (Section 3 of the paper; details as in the published evaluator).

Arithmetic alone, in float64 on the host: `fewshot_evaluator` brings data and model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mixer.runtime.errors import UserError

_CONSTANT = 100.0  # the feature that carries the bias; as large as this, it is hardly regularised
_LEAST_STD = 1e-5  # added to every standard deviation: a feature may be the same in all examples


class Classifier(NamedTuple):
    """An affine function of features as the model gives them; the standardisation is folded in.

    Attributes:
      kernel: float64 [features, classes].
      bias: float64 [classes].
    """

    kernel: np.ndarray
    bias: np.ndarray


def choose(
    labels: Int[np.ndarray, " examples"], class_names: Sequence[str], shots: int, seed: int
) -> Int[np.ndarray, " chosen"]:
    """Chooses `shots` examples of each class, class after class: [classes * shots], indices into `labels`.

    One generator permutes the examples of the first class, then of the second and so on; the first of each are taken.
    So a choice of more shots holds every choice of fewer, of the same seed.

    Args:
      labels: a class number for each example; -1 for what may not be chosen.
      class_names: a name for each class.
      shots: examples a class.
      seed: of the generator.

    Raises:
      UserError: a class has too few examples. (The published evaluator goes on with those that there are.)
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for number, name in enumerate(class_names):
        members = rng.permutation(np.flatnonzero(labels == number))
        if len(members) < shots:
            raise UserError(
                f"{shots} shots are more than there are examples of class {number} ({name}), {len(members)}: ask for "
                "fewer shots, or choose from a larger split"
            )
        chosen.append(members[:shots])
    return np.concatenate(chosen)


def regress(
    features: Float[np.ndarray, "examples features"], labels: Int[np.ndarray, " examples"], num_classes: int, l2: float
) -> Classifier:
    """Ridge regression of the targets +1 (the example's class) and -1 (every other) on standardised features.

    With X [N, D + 1] the features, standardised over these examples, and a constant, and Y [N, classes] the targets:

        W = (X^T X + l2 I)^-1 X^T Y = X^T (X X^T + l2 I)^-1 Y

    of which the form with the smaller matrix is solved.

    Args:
      features: of the few examples.
      labels: their class numbers.
      num_classes: of the task; a class without an example is always -1.
      l2: above 0; 2^10 as published.
    """
    features = features.astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0) + _LEAST_STD
    X = np.pad((features - mean) / std, ((0, 0), (0, 1)), constant_values=_CONSTANT)
    Y = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
    rows, columns = X.shape
    if rows >= columns:
        W = np.linalg.solve(X.T @ X + l2 * np.eye(columns), X.T @ Y)
    else:
        W = X.T @ np.linalg.solve(X @ X.T + l2 * np.eye(rows), Y)
    kernel = W[:-1] / std[:, None]
    return Classifier(kernel, _CONSTANT * W[-1] - mean @ kernel)


def accuracy(
    classifier: Classifier, features: Float[np.ndarray, "examples features"], labels: Int[np.ndarray, " examples"]
) -> float:
    """The share of examples whose class has the highest score; of equal scores the first counts."""
    return float(np.mean(np.argmax(features @ classifier.kernel + classifier.bias, axis=1) == labels))
