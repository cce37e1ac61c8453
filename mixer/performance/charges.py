"""What TPUs are charged for by the compiler's cycles, and what its estimate of the seconds does not see.

Measured on the training step of a Mixer-B/16 with two blocks, 64 images a core; docs/lab/tpu.md has the whole table.
"""

from collections.abc import Callable

import ml_collections

_LANES = 128  # a TPU computes with this many columns at once

# Whether a config asks for it, from the config and its number of classes; and what a person should know of it.
_CHARGES: tuple[tuple[Callable[[ml_collections.ConfigDict, int], bool], str], ...] = ()


def notes(config: ml_collections.ConfigDict, num_classes: int) -> list[str]:
    """Returns a line for each thing of a config that costs a TPU more than one would guess."""
    return [words for asks, words in _CHARGES if asks(config, num_classes)]
