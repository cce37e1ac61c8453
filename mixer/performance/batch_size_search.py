"""Finds the batch size at which a model is fastest. The paper reports images per second and core there (Section 3)."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from mixer.performance import compiling, model_speed
from mixer.runtime.errors import UserError

_WORTH = 1.01  # a larger batch helps if it is at least this many times as fast
_LARGEST = 8192  # images on a core


def fastest(
    variant: str,
    mode: str,
    batch_sizes: Sequence[int] | None,
    measure_at: Callable[[str, str, int], model_speed.Measurement],
    smallest: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> model_speed.Measurement:
    """Measures a model at several batch sizes and returns the fastest measurement.

    Args:
      variant: of the model.
      mode: one of `model_speed.MODES`.
      batch_sizes: images on each core; with None the batch size is doubled as long as that helps, and the first one
        halved until it fits.
      measure_at: from (variant, mode, batch size) to the measurement: `model_speed.measure` or `estimate`,
        with their other arguments bound.
      smallest: the first batch size where batch_sizes is None.
      tell: called with a line for each batch size.

    Raises:
      UserError: no batch fits in memory, or the patches do not tile the image.
    """
    found: list[model_speed.Measurement] = []
    tried = []
    for batch_size in batch_sizes or _automatic(found, smallest):
        tried.append(str(batch_size))
        try:
            one = measure_at(variant, mode, batch_size)
        except compiling.DoesNotFitError as error:
            tell(f"{variant} {mode} at {batch_size}: {error}")
            continue
        tell(f"{variant} {mode} at {batch_size}: {one.images_per_sec_per_core:.4g} images/sec/core")
        found.append(one)
    if not found:
        sizes = ", ".join(tried)
        raise UserError(f"{variant}, {mode}, {sizes} images on a core: more memory is needed than there is")
    best = max(found, key=lambda one: one.images_per_sec_per_core)
    return dataclasses.replace(best, swept={one.batch_size: one.images_per_sec_per_core for one in found})


def _automatic(found: list[model_speed.Measurement], batch_size: int) -> Iterator[int]:
    """Yields batch sizes, each twice the last one. Stops if one does not fit, or after two in a row that did not help.

    If the first does not fit, it yields halves of it until one does. The caller appends a measurement to `found` after
    each batch size that fits.
    """
    while batch_size <= _LARGEST:
        fitting = len(found)
        yield batch_size
        if len(found) == fitting:
            break
        rates = [one.images_per_sec_per_core for one in found]
        if len(rates) > 2 and max(rates[-2:]) < _WORTH * max(rates[:-2]):
            return
        batch_size *= 2
    while not found and batch_size > 1:
        batch_size //= 2
        yield batch_size
