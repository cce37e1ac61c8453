"""How a name such as "ViT-B/16" is read and written: family, widths, patch size."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any


def parse_patched(name: str, prefix: str, widths: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads "PREFIX WIDTHS/PATCH", such as "ViT-B/16" with the prefix "ViT-".

    Args:
      name: of a variant.
      prefix: of the family's names.
      widths: a dataclass of attributes for each letter.

    Returns:
      The model's attributes, patch_size among them; None if the name is not one of this family.
    """
    found = re.fullmatch(rf"{re.escape(prefix)}([A-Z][a-z]*)/([1-9]\d*)", name)
    if found is None or found[1] not in widths:
        return None
    return {**dataclasses.asdict(widths[found[1]]), "patch_size": int(found[2])}


def patched_name(model: Any, widths: Mapping[str, Any], names: Collection[str]) -> str:
    """Returns the name of a model's widths and patch size, such as "B/16"; "4x96/4" for 4 blocks of 96 channels.

    Args:
      model: with the attributes of `widths`, and `patch_size`.
      widths: a dataclass of attributes for each letter.
      names: the attributes that have to be those of the letter.
    """
    letters = (
        letter for letter, row in widths.items() if all(getattr(model, name) == getattr(row, name) for name in names)
    )
    return f"{next(letters, f'{model.num_blocks}x{model.hidden_dim}')}/{model.patch_size}"
