"""Mixing of the images of a training batch with their neighbours: mixup and CutMix.

An example's neighbour is the one before it within a group of `config.mixup.group` rows; for the first of a group it is
the last. A pair never crosses devices, so mixing needs no communication and does not depend on how many devices there
are. An example whose neighbour is unusable is not mixed.
"""

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float, Key

Images = Float[Array, "batch height width 3"]
Targets = Float[Array, "batch classes"]

_CUTMIX = 2  # folded into a step's key; fold_in 0 and 1 are the two keys that mixup's Beta draw splits from it


def is_on(config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict) -> bool:
    """Returns whether a run mixes images."""
    return bool(config.mixup.p or config.mixup.cutmix)


def described(config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict) -> str:
    """Returns a few words for model cards."""
    blended = f"mixup {config.mixup.p:g}" if config.mixup.p else "no mixup"
    return blended + (f", CutMix in {100 * config.mixup.cutmix:g}% of the steps" if config.mixup.cutmix else "")


def mixed(
    images: Images,
    targets: Targets,
    weight: Float[Array, " batch"],
    key: Key[Array, ""],
    config: ml_collections.ConfigDict,
) -> tuple[Images, Targets]:
    """Mixes a batch as `config.mixup` says. Which of the two ways a step takes is drawn for the batch.

    Args:
      images: in [-1, 1].
      targets: of the loss.
      weight: 0 for an unusable image.
      key: of the step.
      config: of the run.
    """
    settings = config.mixup
    blended = mixup(images, targets, weight, key, settings.p, settings.group) if settings.p else (images, targets)
    if not settings.cutmix:
        return blended
    choice_key, cut_key = jax.random.split(jax.random.fold_in(key, _CUTMIX))
    cut = cutmix(images, targets, weight, cut_key, settings.group)
    is_cut = jax.random.uniform(choice_key) < settings.cutmix
    return jnp.where(is_cut, cut[0], blended[0]), jnp.where(is_cut, cut[1], blended[1])


def mixup(
    images: Images,
    targets: Targets,
    weight: Float[Array, " batch"],
    key: Key[Array, ""],
    p: float,
    group: int,
) -> tuple[Images, Targets]:
    """Blends each example with its neighbour (arXiv 1710.09412), as the published recipe does.

    One lambda ~ Beta(p, p) is drawn for the batch; if it is below 1/2, 1 - lambda is used.

    Args:
      images: in [-1, 1].
      targets: of the loss.
      weight: 0 for an unusable image.
      key: for lambda.
      p: of the Beta distribution.
      group: rows in a group; divides the batch.
    """
    lam = jax.random.beta(key, p, p)
    lam = jnp.maximum(lam, 1 - lam)
    lam = jnp.where(_neighbours(weight, group) > 0, lam, 1.0)  # [batch]
    lam_images, lam_targets = lam[:, None, None, None], lam[:, None]
    return (
        lam_images * images + (1 - lam_images) * _neighbours(images, group),
        lam_targets * targets + (1 - lam_targets) * _neighbours(targets, group),
    )


def cutmix(
    images: Images,
    targets: Targets,
    weight: Float[Array, " batch"],
    key: Key[Array, ""],
    group: int,
) -> tuple[Images, Targets]:
    """Pastes a box of its neighbour into each image (arXiv 1905.04899). Targets are mixed by the area of the box.

    One box is drawn for the batch, see `box`.

    Args:
      images: in [-1, 1].
      targets: of the loss.
      weight: 0 for an unusable image.
      key: for the box.
      group: rows in a group; divides the batch.
    """
    inside = box(key, images.shape[1], images.shape[2])
    share = jnp.mean(inside, dtype=jnp.float32)
    is_mixed = _neighbours(weight, group) > 0  # [batch]
    pasted = is_mixed[:, None, None, None] & inside[None, :, :, None]
    share = jnp.where(is_mixed, share, 0.0)[:, None]
    return (
        jnp.where(pasted, _neighbours(images, group), images),
        (1 - share) * targets + share * _neighbours(targets, group),
    )


def box(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "height width"]:
    """Draws the box of CutMix: True inside.

    It has the shape of the image, and a uniform share of its area. Its centre is uniform in the image, so the image's
    edges may cut off a part of it.
    """
    area_key, centre_key = jax.random.split(key)
    side = jnp.sqrt(jax.random.uniform(area_key))  # over the image's
    row, column = jax.random.uniform(centre_key, (2,))

    def covered(pixels: int, centre: Array) -> Bool[Array, " pixels"]:
        middle: Array = (jnp.arange(pixels) + 0.5) / pixels  # of each pixel
        return jnp.abs(middle - centre) < side / 2

    return covered(height, row)[:, None] & covered(width, column)[None, :]


def _neighbours(x: Array, group: int) -> Array:
    neighbours: Array = jnp.roll(x.reshape(-1, group, *x.shape[1:]), 1, axis=1).reshape(x.shape)
    return neighbours
