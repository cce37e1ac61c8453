"""What costs a TPU more than one would guess, of the things that a config may ask for.

Measured on the training step of a Mixer-B/16 with two blocks, 64 images a core, for v3 (libtpu 0.0.42.1).
docs/lab/tpu.md has the whole table.
"""

from collections.abc import Callable

import ml_collections


def _drops(config: ml_collections.ConfigDict) -> bool:
    return bool(config.model.dropout)


# Whether a config asks for it, and what a person should know of it.
_CHARGES: tuple[tuple[Callable[[ml_collections.ConfigDict], bool], str], ...] = (
    (
        lambda config: _drops(config) and config.dropout_keys == "threefry",
        "dropout with threefry keys takes 2.8 times the cycles of a step without it (v3, two blocks); the time does "
        "not see that. --config.dropout_keys=rbg takes 1.25 times, but 2.2 times the temporaries",
    ),
    (
        lambda config: (_drops(config) or config.model.stochastic_depth) and config.dropout_keys == "rbg",
        "rbg keys draw other bits on another layout: a run that continues on other devices is not the same run",
    ),
    (
        lambda config: bool(config.model.remat),
        "remat takes 1.23 times the cycles (v3, two blocks) and 0.7 of the temporaries; with many blocks much less",
    ),
    (
        lambda config: bool(config.model.scan and not config.model.remat),
        "scan without remat takes several times the temporaries of blocks that are written out",
    ),
    (
        lambda config: bool(config.model.dtype == "float32"),
        "float32 products are one bfloat16 pass at JAX's default precision; at high and highest they take 2.9 and 5.7 "
        "times the cycles (v3), and the time is the same",
    ),
)


def notes(config: ml_collections.ConfigDict) -> list[str]:
    """Returns a line for each thing of a checked config that costs a TPU more than one would guess."""
    return [words for asks, words in _CHARGES if asks(config)]
