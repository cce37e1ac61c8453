"""Token mixing at another image size: extended exactly to a multiple (Appendix C), or resampled (beyond the paper).

The token-mixing MLPs are the one part of a Mixer that knows how many patches an image has. All functions here are
arithmetic on the parameters of a whole model, nested as Flax has them, and leave every other array as it is.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

Mlp = dict[str, dict[str, np.ndarray]]  # the two dense layers of a token-mixing MLP, kernels [S, D_S] and [D_S, S]

METHODS = ("extend", "interpolate")


def grid_of(params: Any) -> int:
    """How many patches the side of an image has, for which these parameters are made.

    Raises:
      ValueError: the number of tokens is no square.
    """
    tokens = len(params["MixerBlock_0"]["token_mixing"]["Dense_1"]["bias"])
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"{tokens} tokens are no square grid of patches")
    return math.isqrt(tokens)


def at_grid(params: Any, grid: int, method: str) -> Any:
    """Brings the parameters to images of `grid` x `grid` patches.

    Args:
      params: of a model.
      grid: patches along a side.
      method: "extend", which takes `grid` to be a multiple of what it was, or "interpolate".

    Raises:
      ValueError: the parameters cannot be brought to this grid.
    """
    before = grid_of(params)
    if grid < 1:
        raise ValueError(f"a grid of {grid} x {grid} patches: expected at least 1 x 1")
    if grid == before:
        return params
    if grid % before == 0 and method == "extend":
        return extend(params, grid // before)
    if method == "interpolate":
        return interpolate(params, grid)
    raise ValueError(f"{grid} x {grid} patches are not a multiple of {before} x {before}")


def extend(params: Any, factor: int) -> Any:
    """Extends to images `factor` times as wide and high (Appendix C of the paper).

    Both token-mixing layers become block-diagonal over the factor x factor spatial parts of the image, each part mixed
    by a copy of the old MLP: D_S grows by factor^2, as S does. A larger image's pre-logits are then the mean of those
    of its parts. Tokens lie row by row over the whole image, so those of a part are not neighbours: the permutation is
    within the new kernels, and the model stays the same program.
    """
    tokens = tokens_of_parts(grid_of(params), factor)
    parts = len(tokens)

    def extended(mlp: Mlp) -> Mlp:
        (w1, b1), (w2, b2) = ((mlp[name]["kernel"], mlp[name]["bias"]) for name in ("Dense_0", "Dense_1"))
        width = len(b1)
        w1_out = np.zeros((parts * len(b2), parts * width), w1.dtype)
        w2_out = np.zeros((parts * width, parts * len(b2)), w2.dtype)
        b2_out = np.zeros(parts * len(b2), b2.dtype)
        for part, rows in enumerate(tokens):
            columns = slice(part * width, (part + 1) * width)
            w1_out[rows, columns] = w1
            w2_out[columns, rows] = w2
            b2_out[rows] = b2
        return {
            "Dense_0": {"kernel": w1_out, "bias": np.tile(b1, parts)},
            "Dense_1": {"kernel": w2_out, "bias": b2_out},
        }

    return _map_token_mixing(params, extended)


def tokens_of_parts(grid: int, factor: int) -> Int[np.ndarray, "parts tokens"]:
    """For each of factor x factor parts of an image, where its tokens lie among those of the whole, row by row."""
    whole = np.arange((factor * grid) ** 2).reshape(factor, grid, factor, grid)
    return whole.transpose(0, 2, 1, 3).reshape(factor**2, grid**2)


def interpolate(params: Any, grid: int) -> Any:
    """Resamples the token-mixing weights bilinearly over the grid of tokens; D_S stays. Not in the paper.

    The first kernel is scaled by (old tokens / new tokens), so that sums over an image keep their size.
    """
    before = grid_of(params)

    def over_grid(array: Float[np.ndarray, "tokens width"]) -> np.ndarray:
        image = array.reshape(before, before, -1)
        return np.asarray(jax.image.resize(image, (grid, grid, image.shape[-1]), "linear")).reshape(grid**2, -1)

    def interpolated(mlp: Mlp) -> Mlp:
        (w1, b1), (w2, b2) = ((mlp[name]["kernel"], mlp[name]["bias"]) for name in ("Dense_0", "Dense_1"))
        return {
            "Dense_0": {"kernel": over_grid(w1) * np.float32((before / grid) ** 2), "bias": b1},
            "Dense_1": {"kernel": over_grid(w2.T).T, "bias": over_grid(b2[:, None])[:, 0]},
        }

    return _map_token_mixing(params, interpolated)


def _map_token_mixing(params: Any, function: Callable[[Mlp], Mlp]) -> Any:
    return {
        name: {**part, "token_mixing": function(part["token_mixing"])} if "token_mixing" in part else part
        for name, part in params.items()
    }
