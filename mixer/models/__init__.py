"""Models by name: `create("B/16", num_classes=1000)`. This room needs jax, flax and jaxtyping, nothing else.

A model is a Linen module with the attribute `num_classes`. It is called as model(images, train) and has a method
`forward_macs`. Each family has a module of its own, which reads and writes its variants' names.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from mixer.models import bit, mlp_mixer, vit
from mixer.models.bit import BiT
from mixer.models.mlp_mixer import MlpMixer
from mixer.models.vit import VisionTransformer

Model = MlpMixer | VisionTransformer | BiT

# Each family's class, and the module that reads and writes the names of its variants.
FAMILIES: dict[Any, Any] = {MlpMixer: mlp_mixer, VisionTransformer: vit, BiT: bit}

# An option that equals Mixer's default requests nothing, so a model without that option accepts it.
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(MlpMixer)}


class UnknownVariantError(ValueError):
    """No family has a variant of this name."""


def create(variant: str, num_classes: int, **options: Any) -> Any:
    """Makes the model that a variant names, such as "B/16" (Mixer), "ViT-B/16" or "BiT-R50x1".

    Args:
      variant: a name that one of `FAMILIES` can read.
      num_classes: width of the head; 0 for none.
      **options: attributes of the model. A width or depth replaces the variant's; None leaves it.

    Raises:
      UnknownVariantError: there is no such variant.
      ValueError: the model does not have an option.
    """
    family, arguments = _parse(variant)
    given = {key: value for key, value in options.items() if value is not None}
    lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}  # from JSON; no hash
    given |= lists
    known = {field.name for field in dataclasses.fields(family)}
    if unknown := [key for key, value in given.items() if key not in known and value != _DEFAULTS.get(key)]:
        raise ValueError(f"model variant {variant!r} has no {unknown[0]}, which was set to {given[unknown[0]]!r}")
    given = {key: value for key, value in given.items() if key in known}
    return family(num_classes=num_classes, **{**arguments, **given})


def _parse(variant: str) -> tuple[Any, dict[str, Any]]:
    """Returns the model's class, and the attributes that make it this variant."""
    for family, module in FAMILIES.items():
        if (arguments := module.parse(variant)) is not None:
            return family, arguments
    names = "; ".join(module.NAMES for module in FAMILIES.values())
    raise UnknownVariantError(f"model variant {variant!r}: expected one of {names}")


def variant(name: str) -> str:
    """Returns the variant that a short name means; any other name as it is.

    "b16" is B/16, "vit_b16" is ViT-B/16, "bit_r50x1" is BiT-R50x1.
    """
    if short := re.fullmatch(r"(vit_|)([a-z]+)(\d+)", name):
        return f"{'ViT-' if short[1] else ''}{short[2].capitalize()}/{short[3]}"
    if short := re.fullmatch(r"bit_(r\d+x[\d.]+)", name):
        return f"BiT-{short[1].capitalize()}"
    return name


def name_of(model: Any) -> str:
    """Returns the one name of a model, with its family: "Mixer-B/16", "ViT-B/16", "BiT-R50x1".

    A model whose widths are those of no variant has the name of its widths: "Mixer-4x96/4".
    """
    name: str = FAMILIES[type(model)].name_of(model)
    return name


def shapes(model: Any, image_size: int) -> Any:
    """Returns the shapes and dtypes of a model's parameters, nested as they are, without computing any.

    Args:
      model: from `create`.
      image_size: height and width of its images in pixels.

    Raises:
      ValueError: the model's patches do not tile such images.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def num_parameters(params: Any) -> int:
    """Returns how many numbers all arrays of `params` have together; their shapes are enough."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
