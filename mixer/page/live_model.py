"""A small model packed for the page, in which it runs: its weights in float16, pictures, and the logits they give."""

import base64
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from mixer import models
from mixer.analysis import samples, units
from mixer.data.pixels import crops
from mixer.runtime.errors import UserError
from mixer.transfer.weights import Weights

MAX_PARAMETERS = 2_000_000  # four megabytes, 5.3 in base64


def rounded(params: Any) -> Any:
    """Returns parameters as the page has them: rounded to float16, as float32."""
    return jax.tree.map(lambda array: array.astype(np.float16).astype(np.float32), params)


def check(weights: Weights, config: ml_collections.ConfigDict) -> None:
    """Checks that a model can be part of a page.

    Args:
      weights: of the model.
      config: as `config.input`.

    Raises:
      UserError: it is no Mixer of the paper's with a head, it is too large, a weight is beyond float16, or its images
        are permuted.
    """
    model = weights.mixer()
    parameters = models.num_parameters(weights.params)
    if model.num_classes == 0:
        raise UserError("it has no head")
    if model.beyond_paper:
        raise UserError(f"the page computes the paper's model only, and this is {models.name_of(model)}")
    if parameters > MAX_PARAMETERS:
        raise UserError(f"it has {parameters:,} parameters; a page holds up to {MAX_PARAMETERS:,}")
    if config.permutation != "none":
        raise UserError("the pixels of its images are permuted (config.input.permutation), which a page does not do")
    with np.errstate(over="ignore"):
        if not all(np.isfinite(array).all() for array in jax.tree.leaves(rounded(weights.params))):
            raise UserError("a weight is too large for float16, in which a page holds weights")


def packed(weights: Weights, drawn: samples.Samples, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns what `unpacked` in weights.js takes, and what the page says of the model.

    Args:
      weights: that pass `check`, of a run.
      drawn: samples, of which the page gets the pictures.
      config: as `config.input`, by which the page crops a picture of the visitor's.
    """
    model, params = weights.mixer(), rounded(weights.params)
    flat = traverse_util.flatten_dict(params, sep="/")
    logits = samples.logits_of(model, params, drawn.pictures)
    difference = float(np.max(np.abs(logits - drawn.logits), initial=0.0))
    data = b"".join(array.astype("<f2").tobytes() for array in flat.values())
    exported = weights.exported()
    return {
        "name": weights.described(),
        "note": f"Its {weights.called}, of step {weights.step:,}, are rounded to float16, which changes the logits of "
        f"the {len(logits)} pictures below by about {difference:.1g} at most.",
        "size": weights.image_size,
        "patch": model.patch_size,
        "blocks": model.num_blocks,
        "classes": weights.shown_names(),
        "probabilities": exported.probabilities,
        "arrays": [(name, array.shape) for name, array in flat.items()],
        "data": base64.b64encode(data).decode(),
        "units": [
            units.in_pairs(units.of_block(params, block, tokens)).tolist()
            for block, tokens in enumerate(model.tokens(weights.image_size)[: model.num_blocks])
        ],
        "logits": [[float(f"{logit:.7g}") for logit in row] for row in logits.tolist()],
        "resize": crops.eval_resize(config),
        "crop": config.eval_crop,
        "exif": config.exif,
        "background": "white" if config.transparent == "white" else "black",  # a browser keeps no colour under it
    }
