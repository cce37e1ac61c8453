"""How a name such as "ViT-B/16" is read: family, widths, patch size."""

import dataclasses
import re
from collections.abc import Mapping
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
