"""Token mixing at another image size: exact extension to a multiple (Appendix C), or resampling (beyond the paper).

Only the token-mixing MLPs of a Mixer depend on the number of patches. The functions here take the nested parameters of
a whole model, and return all other arrays unchanged.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

Mlp = dict[str, dict[str, np.ndarray]]  # the two dense layers of a token-mixing MLP, kernels [S, D_S] and [D_S, S]


def grid_of(params: Any) -> int:
    """Returns how many patches there are along each side of an image.

    Raises:
      ValueError: the number of tokens is not a square.
    """
    tokens = len(params["MixerBlock_0"]["token_mixing"]["Dense_1"]["bias"])
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"{tokens} tokens are no square grid of patches")
    return math.isqrt(tokens)


def at_grid(params: Any, grid: int, method: str) -> Any:
    """Returns the parameters for images of `grid` x `grid` patches.

    Args:
      params: of a model.
      grid: patches along each side of an image.
      method: a key of `METHODS`.

    Raises:
      ValueError: the method cannot reach this grid.
    """
    if grid < 1:
        raise ValueError(f"a grid of {grid} x {grid} patches: expected at least 1 x 1")
    return params if grid == grid_of(params) else METHODS[method](params, grid)


def extend(params: Any, grid: int) -> Any:
    """Extends the model to images that are K times as wide and as high (Appendix C of the paper).

    The larger image is treated as K x K parts, and each part is mixed by a copy of the old MLP. So both token-mixing
    layers become block-diagonal, and D_S grows by K^2, as S does. The pre-logits of the larger image are then the mean
    of the pre-logits of its parts.

    Tokens are numbered row by row over the whole image, so the tokens of one part are not consecutive. The rows and
    columns of the new kernels are permuted accordingly. The model itself needs no change.

    Raises:
      ValueError: `grid` is not a multiple of the old grid.
    """
    before = grid_of(params)
    if grid % before:
        raise ValueError(f"{grid} x {grid} patches are not a multiple of {before} x {before}")
    tokens = tokens_of_parts(before, grid // before)
    parts = len(tokens)

    def extended(mlp: Mlp) -> Mlp:
        (w1, b1), (w2, b2) = ((mlp[name]["kernel"], mlp[name]["bias"]) for name in ("Dense_0", "Dense_1"))
        width = len(b1)
        w1_out = np.zeros((parts * len(b2), parts * width), w1.dtype)
        w2_out = np.zeros((parts * width, parts * len(b2)), w2.dtype)
        b2_out = np.zeros(parts * len(b2), b2.dtype)
        for part, own_tokens in enumerate(tokens):
            units = slice(part * width, (part + 1) * width)
            w1_out[own_tokens, units] = w1
            w2_out[units, own_tokens] = w2
            b2_out[own_tokens] = b2
        return {
            "Dense_0": {"kernel": w1_out, "bias": np.tile(b1, parts)},
            "Dense_1": {"kernel": w2_out, "bias": b2_out},
        }

    return _map_token_mixing(params, extended)


def tokens_of_parts(grid: int, factor: int) -> Int[np.ndarray, "parts tokens"]:
    """Returns the numbers of the tokens in each of the factor x factor parts of an image.

    Args:
      grid: patches along each side of a part.
      factor: parts along each side of the image.

    Returns:
      Token numbers, counted row by row over the whole image. In each part they are in the order of the old model.
    """
    image = np.arange((factor * grid) ** 2).reshape(factor, grid, factor, grid)
    return image.transpose(0, 2, 1, 3).reshape(factor**2, grid**2)


def interpolate(params: Any, grid: int) -> Any:
    """Resamples the token-mixing weights bilinearly over the grid of tokens. D_S stays the same. Not in the paper.

    The first kernel is multiplied by (old tokens / new tokens), since the first layer sums over all tokens.
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


METHODS = {"extend": extend, "interpolate": interpolate}


def _map_token_mixing(params: Any, function: Callable[[Mlp], Mlp]) -> Any:
    """Applies a function to the token-mixing MLP of each block."""
    return {
        name: {**part, "token_mixing": function(part["token_mixing"])} if "token_mixing" in part else part
        for name, part in params.items()
    }
