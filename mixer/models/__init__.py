"""Models by name: `create("B/16", num_classes=1000)`. Needs jax, flax and jaxtyping, nothing else.

A model is a Linen module with an attribute `num_classes`, called as model(images, train), with a method `forward_macs`.
"""

import dataclasses
import re
from typing import Any

from mixer.models.bit import UNITS, BiT
from mixer.models.mlp_mixer import VARIANTS as MIXER_VARIANTS
from mixer.models.mlp_mixer import MlpMixer
from mixer.models.vit import VARIANTS as VIT_VARIANTS
from mixer.models.vit import VisionTransformer

Model = MlpMixer | VisionTransformer | BiT

# What stands before a variant's name, and the model and widths that it means.
_PATCHED: dict[str, tuple[Any, dict[str, Any]]] = {
    "": (MlpMixer, MIXER_VARIANTS),
    "ViT-": (VisionTransformer, VIT_VARIANTS),
}


def create(variant: str, num_classes: int, **options: Any) -> Any:
    """Makes the model that a variant such as "B/16" (Mixer), "ViT-B/16" or "BiT-R50x1" names.

    Args:
      variant: of Mixer and ViT a key of their `VARIANTS` and a patch size in pixels, joined by a slash; of BiT its
        depth and width.
      num_classes: width of the head, 0 for none.
      **options: attributes of the model; a width or depth given here replaces the variant's, None leaves it.

    Raises:
      ValueError: no such variant, or the model does not have an option.
    """
    family, arguments = _parsed(variant)
    given = {key: value for key, value in options.items() if value is not None}
    known = {field.name for field in dataclasses.fields(family)}
    if unknown := [key for key, value in given.items() if key not in known and value != _DEFAULTS.get(key)]:
        raise ValueError(f"model variant {variant!r} has no {unknown[0]}, which was set to {given[unknown[0]]!r}")
    given = {key: value for key, value in given.items() if key in known}
    return family(num_classes=num_classes, **{**arguments, **given})


# An option at Mixer's default asks for nothing, so that a model without it may be given it.
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(MlpMixer)}


def _parsed(variant: str) -> tuple[Any, dict[str, Any]]:
    """The model's class, and the arguments that make it this variant."""
    if (bit := re.fullmatch(r"BiT-R(\d+)x([1-9]\d*)", variant)) and int(bit[1]) in UNITS:
        return BiT, {"units": UNITS[int(bit[1])], "width": int(bit[2])}
    if patched := re.fullmatch(r"(|ViT-)([A-Z][a-z]*)/([1-9]\d*)", variant):
        family, variants = _PATCHED[patched[1]]
        if patched[2] in variants:
            return family, {**dataclasses.asdict(variants[patched[2]]), "patch_size": int(patched[3])}
    raise ValueError(
        f"model variant {variant!r}: expected one of {', '.join(MIXER_VARIANTS)} (Mixer) or "
        f"{', '.join(f'ViT-{name}' for name in VIT_VARIANTS)}, a slash and the patch size in pixels, for example B/16; "
        f"or BiT-R and one of {', '.join(map(str, UNITS))}, an x and the width factor, for example BiT-R50x1"
    )


def variant(name: str) -> str:
    """The variant that a short name means: "B/16" for "b16", "ViT-B/16" for "vit_b16", "BiT-R50x1" for "bit_r50x1".

    Anything else is returned as it is.
    """
    if short := re.fullmatch(r"(vit_|)([a-z]+)(\d+)", name):
        return f"{'ViT-' if short[1] else ''}{short[2].capitalize()}/{short[3]}"
    if short := re.fullmatch(r"bit_(r\d+x\d+)", name):
        return f"BiT-{short[1].capitalize()}"
    return name


def full_name(variant: str) -> str:
    """A variant's name with the model's: "Mixer-B/16", "ViT-B/16"."""
    return variant if "-" in variant else f"Mixer-{variant}"


def name_of(model: Any) -> str:
    """The variant that a Mixer is, such as "B/16"; its widths where it is none of the paper's, whatever D_S is."""
    for name, variant in MIXER_VARIANTS.items():
        widths = (variant.num_blocks, variant.hidden_dim, variant.channels_mlp_dim)
        if widths == (model.num_blocks, model.hidden_dim, model.channels_mlp_dim):
            return f"{name}/{model.patch_size}"
    return f"{model.num_blocks}x{model.hidden_dim}/{model.patch_size}"
