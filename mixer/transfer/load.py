"""Weights as the start of a run: brought to the run's image size, fitted to its model, laid over its devices."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from mixer import config as configuration
from mixer import models
from mixer.errors import UserError
from mixer.training.step import TrainState
from mixer.transfer import resolution
from mixer.transfer.weights import Weights, mismatches


def with_token_width(
    config: ml_collections.ConfigDict, weights: Weights | None, workdir: epath.PathLike
) -> ml_collections.ConfigDict:
    """Sets model.tokens_mlp_dim, where it is left open, to what the weights have once they are at the image size.

    Args:
      config: of the run.
      weights: those of config.init_from; None once the run has begun: they may be gone, its folder says what they had.
      workdir: the run's folder.

    Raises:
      UserError: the weights cannot be brought to this image size.
    """
    if not config.init_from or config.model.tokens_mlp_dim is not None:
        return config
    if weights is None:
        width = configuration.load(workdir).model.tokens_mlp_dim
    else:
        before, grid = resolution.grid_of(weights.params), _grid(config)
        width = weights.model().tokens_mlp_dim
        if config.resize == "extend" and grid % before:
            raise UserError(_what_is_possible(weights, config))
        width = resolution.tokens_mlp_dim(width, before, grid, config.resize)
    config = ml_collections.ConfigDict(config)
    config.model.tokens_mlp_dim = width
    return config.lock()


def initial_params(
    state: TrainState,
    weights: Weights,
    config: ml_collections.ConfigDict,
    class_names: Sequence[str],
    shardings: TrainState,
) -> TrainState:
    """Puts the weights into a fresh state; the head stays new where the classes differ.

    Raises:
      UserError: anything but the head does not fit.
    """
    try:
        params = resolution.at_grid(weights.params, _grid(config), config.resize)
    except ValueError:
        raise UserError(_what_is_possible(weights, config)) from None
    same_classes = weights.class_names is None or weights.class_names == list(class_names)
    params = fitted(params, state.params, weights.source, keep_head=same_classes)
    # A copy each: the step donates its state, and one buffer cannot be given away twice.
    place = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.params)
    ema_params = None if state.ema_params is None else place(params)
    return state.replace(params=place(params), ema_params=ema_params)


def fitted(loaded: Any, params: Any, source: str, keep_head: bool = True) -> Any:
    """Returns `loaded` with the head of `params` where their shapes differ, or where it is not to be kept.

    Raises:
      UserError: lists every other array that is missing, unexpected or of another shape.
    """
    new_head = "head" in params and (
        not keep_head or jax.tree.map(jnp.shape, loaded.get("head")) != jax.tree.map(jnp.shape, params["head"])
    )
    loaded = {**loaded, "head": params["head"]} if new_head else loaded
    if wrong := mismatches(loaded, params):
        raise UserError(f"config.init_from={source!r} does not fit this model: {'; '.join(wrong)}")
    return loaded


def _grid(config: ml_collections.ConfigDict) -> int:
    return config.input.image_size // models.create(config.model.variant, 0).patch_size


def _what_is_possible(weights: Weights, config: ml_collections.ConfigDict) -> str:
    size, patch = weights.image_size, weights.image_size // resolution.grid_of(weights.params)
    return (
        f"config.init_from={weights.source!r} has weights for images of {size} pixels, which do not fit "
        f"config.input.image_size={config.input.image_size}; possible are {size} and its multiples ({2 * size}, "
        f"{3 * size}, ..., Appendix C of the paper), or with config.resize=interpolate, beyond the paper, any multiple "
        f"of {patch}"
    )
