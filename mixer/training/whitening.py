"""A stem that begins by whitening patches: neighbouring pixels are alike, and what tells images apart is small.

The covariance of a set of patches has the eigenvectors v and the eigenvalues s. The filters v / sqrt(s + floor) give
outputs that do not correlate and vary alike. Each comes twice, with either sign, since the MLPs after it treat the
signs differently. Whitening layers began with ZCA (Krizhevsky 2009); those of fast CIFAR-10 training (Jordan, arXiv
2404.00498) have both signs too.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Float32

from mixer.runtime.errors import UserError

NUM_IMAGES = 1024  # that are measured; each has many patches
_FLOOR = 0.02  # of the mean eigenvalue; below it lies noise, as that of JPEG, which would be made as strong as the rest
_VARIES = 1e-6  # of the largest eigenvalue; below it is rounding: grey images have a third of the directions
_FLAT = 1e-10  # a variance; one level in one number of 100,000 makes more


def whitening(
    kernel: Float32[np.ndarray, "side side 3 channels"], batches: Iterable[np.ndarray]
) -> Float32[np.ndarray, "side side 3 channels"]:
    """Returns a stem's kernel whose first channels whiten the patches of images.

    These are the filters with the largest eigenvalues, at most half of the channels, then the same with the other sign.
    A direction in which the patches do not vary has none. Channels for which no filter is left keep those of `kernel`.

    Args:
      kernel: random, of the stem.
      batches: of images, uint8 [batch, height, width, 3], whose sides are multiples of a patch's.

    Raises:
      UserError: there is no image, or all patches are alike.
    """
    side, channels = kernel.shape[0], kernel.shape[-1]
    values, vectors = np.linalg.eigh(_covariance(batches, side))  # from the smallest eigenvalue on
    if values[-1] < _FLAT:
        raise UserError("stem_init=whitening: all patches of the training images that were tried are alike")
    number = min(channels // 2, int((values > _VARIES * values[-1]).sum()))
    filters = (vectors / np.sqrt(values + _FLOOR * values.mean()))[:, ::-1][:, :number]
    both = np.concatenate([filters, -filters], axis=1).reshape(side, side, 3, 2 * number).astype(np.float32)
    return np.concatenate([both, kernel[..., 2 * number :]], axis=-1)


def _covariance(batches: Iterable[np.ndarray], side: int) -> Float[np.ndarray, "pixels pixels"]:
    """Returns the covariance of patches of side x side pixels in [-1, 1], of their 3 side^2 numbers."""
    count, total, products = 0, np.zeros(3 * side**2), np.zeros((3 * side**2, 3 * side**2))
    for images in batches:
        rows, columns = images.shape[1] // side, images.shape[2] // side
        patches = images.reshape(-1, rows, side, columns, side, 3).swapaxes(2, 3).reshape(-1, 3 * side**2)
        scaled = patches / 127.5 - 1
        count, total, products = count + len(scaled), total + scaled.sum(axis=0), products + scaled.T @ scaled
    if count == 0:
        raise UserError("stem_init=whitening: none of the training images that were tried can be used")
    mean = total / count
    covariance: np.ndarray = products / count - np.outer(mean, mean)
    return covariance
