"""Models by name: `create("mlp_mixer", "B/16", num_classes=1000)`. Needs jax, flax and jaxtyping, nothing else."""

import dataclasses
import re
from typing import Any

from mixer.models import mlp_mixer


def create(variant: str, num_classes: int, **options: Any) -> mlp_mixer.MlpMixer:
    """Makes the model that a variant such as "B/16" names.

    Args:
      variant: a key of `mlp_mixer.VARIANTS` and a patch size in pixels, joined by a slash.
      num_classes: width of the head, 0 for none.
      **options: attributes of `MlpMixer`; a width or depth given here replaces the variant's, None leaves it.

    Raises:
      ValueError: no such variant.
    """
    name, _, patch_size = variant.partition("/")
    if name not in mlp_mixer.VARIANTS or not patch_size.isdigit() or int(patch_size) == 0:
        raise ValueError(
            f"model variant {variant!r}: expected one of {', '.join(mlp_mixer.VARIANTS)}, a slash and the patch size "
            "in pixels, for example B/16"
        )
    widths = dataclasses.asdict(mlp_mixer.VARIANTS[name])
    given = {key: value for key, value in options.items() if value is not None}
    return mlp_mixer.MlpMixer(num_classes=num_classes, patch_size=int(patch_size), **{**widths, **given})


def variant(name: str) -> str:
    """The variant that a short name such as "b16" means: "B/16". Anything else is returned as it is."""
    short = re.fullmatch(r"([a-z]+)(\d+)", name)
    return f"{short[1].capitalize()}/{short[2]}" if short else name


def name_of(model: mlp_mixer.MlpMixer) -> str:
    """The variant that a model is, such as "B/16"; its widths where it is none of the paper's, whatever D_S is."""
    for name, variant in mlp_mixer.VARIANTS.items():
        widths = (variant.num_blocks, variant.hidden_dim, variant.channels_mlp_dim)
        if widths == (model.num_blocks, model.hidden_dim, model.channels_mlp_dim):
            return f"{name}/{model.patch_size}"
    return f"{model.num_blocks}x{model.hidden_dim}/{model.patch_size}"
