"""Names of parameters in files that were saved while another object held the model, as PyTorch's wrappers do."""

from typing import TypeVar

Value = TypeVar("Value")

# Of DataParallel, of a training module such as Lightning's, and of torch.compile.
_PREFIXES = ("module.", "model.", "_orig_mod.")


def without_wrappers(flat: dict[str, Value]) -> dict[str, Value]:
    """Returns the same values under names without the prefixes of wrappers, which may be stacked.

    A prefix is removed only if all names have it.
    """
    while flat and (prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in flat)), "")):
        flat = {name.removeprefix(prefix): value for name, value in flat.items()}
    return flat
