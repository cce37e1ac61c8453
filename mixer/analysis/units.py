"""Token-mixing units of a Mixer, in numbers: their frequency, their pairs of opposite phase, and how local they are.

A unit is one row of the first dense layer of a block's token mixing: a weight for each token, so an image over the grid
of patches (figures 5 and 6 of the paper). Patterns are compared without their mean, by Pearson's correlation.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from mixer.transfer import resolution

Units = Float[np.ndarray, "units tokens"]


FIGURES_OF_BLOCKS = 3  # the first ones, as in figure 5 of the paper
MAX_UNITS = 4096  # of a block that are compared, since time and memory grow by the square; the paper's have up to 640


class Structure(NamedTuple):
    """How ordered the units of a block are. A median is over the units that were compared.

    Attributes:
      opposite: median of a unit's most negative correlation with another unit; -1 where all come in exact pairs.
      opposite_at_random: the same for random units of the same shape; None where they would be no comparison.
      half_energy_tokens: median number of tokens that hold half of the sum of a unit's squared weights.
      half_energy_at_random: the same for random units of the same shape; None where they would be no comparison.
      compared: how many units were compared: all, or the first `MAX_UNITS`.
      extended: by how much Appendix C made the grid of patches wider, as `extended_by` finds it; 1 if it did not.
    """

    opposite: float
    opposite_at_random: float | None
    half_energy_tokens: float
    half_energy_at_random: float | None
    compared: int
    extended: int = 1


def of_block(params: Any, block: int, tokens: int | None = None) -> Units:
    """Returns the units of a block.

    The models of Appendix A.1 have G times as many: those of each group's MLP, or, where G channels or views are mixed
    at once, a unit's weights for each of them.

    Args:
      params: of a Mixer.
      block: its number, from 0.
      tokens: at its input; as many as its kernel has rows, as in the paper's model, if not given.
    """
    kernel = np.asarray(params[f"MixerBlock_{block}"]["token_mixing"]["Dense_0"]["kernel"])
    tokens = tokens or kernel.shape[-2]
    units: np.ndarray = kernel.reshape(-1, tokens, kernel.shape[-1]).transpose(0, 2, 1).reshape(-1, tokens)
    return units


def of_model(params: Any, tokens: Sequence[int], interpolated: bool = False) -> list[tuple[Units, Structure]]:
    """Returns the units of each block and how ordered they are.

    Args:
      params: of a Mixer.
      tokens: that come into each block.
      interpolated: whether the units were resampled from another grid. They are smooth from that alone, and random ones
        would be no comparison.
    """
    found = [of_block(params, block, number) for block, number in enumerate(tokens)]
    structures = [structure(units, seed=block) for block, units in enumerate(found)]
    if interpolated:
        structures = [one._replace(opposite_at_random=None, half_energy_at_random=None) for one in structures]
    return list(zip(found, structures, strict=True))


def numbers(block: int, units: Units, structure: Structure) -> dict[str, Any]:
    """Returns what a page and a file of numbers say of a block: its number, its size and how ordered its units are."""
    return {"block": block, "units": len(units), "tokens": units.shape[1], **structure._asdict()}


def first(units: Units) -> Float[np.ndarray, "compared tokens"]:
    """Returns all units, or the first `MAX_UNITS`. Of untied token mixing these are the MLPs of the first groups."""
    return units[:MAX_UNITS]


def structure(units: Units, seed: int = 0) -> Structure:
    """Measures the first units of a block, and as many random ones as a new model would have them.

    Of a block that was extended, the random units have as much of their energy in one part of the image as its own.
    """
    extended, compared = extended_by(units), first(units)
    shape = compared.shape if extended == 1 else units.shape
    new = jax.nn.initializers.lecun_normal()(jax.random.key(seed), shape[::-1])
    by_chance = np.asarray(new).T
    if extended > 1:
        by_chance = first(_in_parts(by_chance, units))
    return Structure(
        _median(opposites(compared)[1]), _median(opposites(by_chance)[1]),
        _median(half_energy_tokens(compared)), _median(half_energy_tokens(by_chance)), len(compared), extended,
    )  # fmt: skip


def extended_by(units: Units) -> int:
    """Returns by how much `resolution.extend` has made the grid of a block's units wider; 1 if that is not seen.

    It lets each unit see one of K x K parts of the image, by the unit's number, and training fills in the rest. Where
    random weights have filled the whole grid, a unit's number says nothing of where it looks: in the part of its number
    lies 1/K^2 of its energy on average. More than four standard errors above that count as extended.
    """
    factor = _last_factor(units)
    if factor == 1:
        return 1
    before = resolution.tokens_of_parts(math.isqrt(units.shape[1]) // factor, factor)[0]
    return factor * extended_by(units[: len(units) // factor**2, before])  # it may have been extended before, too


def _last_factor(units: Units) -> int:
    grid, number = math.isqrt(units.shape[1]), len(units)
    found, most = 1, 4.0
    for factor in range(2, grid + 1):
        if grid % factor == 0 and number % factor**2 == 0:
            shares = _own_shares(units, factor)
            error = np.std(shares) / math.sqrt(number)
            errors = (np.mean(shares) - 1 / factor**2) / max(error, np.finfo(np.float64).tiny)
            if errors > most:
                found, most = factor, errors
    return found


def _own_shares(units: Units, factor: int) -> Float[np.ndarray, " units"]:
    """Returns the share of each unit's energy that lies in the part of the image where extension would put it."""
    energy = np.square(units, dtype=np.float64).reshape(factor**2, -1, units.shape[1])
    parts = resolution.tokens_of_parts(math.isqrt(units.shape[1]) // factor, factor)
    own = [np.sum(of_part[:, tokens], axis=1) for of_part, tokens in zip(energy, parts, strict=True)]
    whole = np.maximum(np.sum(energy, axis=2), np.finfo(np.float64).tiny)
    shares: np.ndarray = np.concatenate(own) / whole.reshape(-1)
    return shares


def _in_parts(random: Units, units: Units) -> Units:
    """Scales random units to the share of energy that units of the same shape have in the parts of their numbers."""
    factor = _last_factor(units)
    if factor == 1:
        return random
    chance, share = 1 / factor**2, min(np.mean(_own_shares(units, factor)), 1.0)  # rounding may add a little
    parts = resolution.tokens_of_parts(math.isqrt(units.shape[1]) // factor, factor)
    scaled = random.reshape(factor**2, -1, units.shape[1]) * np.sqrt((1 - share) / (1 - chance))
    for part, tokens in enumerate(parts):
        rows = slice(part * scaled.shape[1], (part + 1) * scaled.shape[1])
        own = _in_parts(random[rows, tokens], units[rows, tokens])
        scaled[part][:, tokens] = own * np.sqrt(share / chance)
    whole: np.ndarray = scaled.reshape(units.shape)
    return whole


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def opposites(units: Units) -> tuple[Int[np.ndarray, " units"], Float[np.ndarray, " units"]]:
    """Finds for each unit the one closest to its negative. A single unit is its own, with the correlation 0.

    Returns:
      The number of that other unit, and their correlation.
    """
    correlation = _correlations(units)
    if len(units) > 1:
        np.fill_diagonal(correlation, np.inf)
    other = np.argmin(correlation, axis=1)
    return other, correlation[np.arange(len(units)), other]


def half_energy_tokens(units: Units) -> Int[np.ndarray, " units"]:
    """Counts the tokens that hold half of a unit's energy, the sum of its squared weights. Fewer are more local."""
    energy = np.sort(np.square(units, dtype=np.float64), axis=1)[:, ::-1]
    held = np.cumsum(energy, axis=1)
    tokens: np.ndarray = 1 + np.sum(held < held[:, -1:] / 2, axis=1)
    return tokens


def mean_frequency(units: Units) -> Float[np.ndarray, " units"]:
    """Computes each unit's frequency: the mean over its power spectrum, in cycles per image. A constant unit has 0."""
    grid = math.isqrt(units.shape[1])
    return frequency_of_images(units.reshape(len(units), grid, grid, 1))


def frequency_of_images(images: Float[np.ndarray, "images height width colours"]) -> Float[np.ndarray, " images"]:
    """Computes the mean frequency of square images in cycles per image, over the power of all their colours."""
    power = np.sum(np.abs(np.fft.fft2(images.astype(np.float64), axes=(1, 2))) ** 2, axis=3)
    along = np.fft.fftfreq(images.shape[1]) * images.shape[1]
    radius = np.hypot(along[:, None], along[None])
    whole = np.sum(power, axis=(1, 2))
    mean: np.ndarray = np.sum(power * radius, axis=(1, 2)) / np.maximum(whole, np.finfo(np.float64).tiny)
    return mean


def in_pairs(units: Units) -> Int[np.ndarray, " units"]:
    """Orders units from low to high frequency, each followed by the unit closest to its negative.

    The paper names such an order without its rule. Here the unit of the lowest frequency that is left comes first, and
    the one that is left and closest to its negative comes next. So late units may be left with a poor partner.
    """
    correlation, frequency = _correlations(units), mean_frequency(units)
    left = list(np.argsort(frequency, kind="stable"))
    order = []
    while left:
        first = left.pop(0)
        order.append(first)
        if left:
            order.append(left.pop(int(np.argmin(correlation[first, left]))))
    return np.array(order)


def _correlations(units: Units) -> Float[np.ndarray, "units units"]:
    """Returns the correlation of each pair; 0 with itself and with a constant unit."""
    centred = units.astype(np.float64) - np.mean(units, axis=1, keepdims=True, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    scaled = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 1e-6 * np.linalg.norm(units))
    correlation: np.ndarray = scaled @ scaled.T
    np.fill_diagonal(correlation, 0.0)
    return correlation
