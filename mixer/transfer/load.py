"""Weights as the start of a run: fitted to its model, laid over its devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from mixer import config as configuration
from mixer.errors import UserError
from mixer.training.step import TrainState
from mixer.transfer.weights import Weights, mismatches


def with_token_width(
    config: ml_collections.ConfigDict, weights: Weights | None, workdir: epath.PathLike
) -> ml_collections.ConfigDict:
    """Sets model.tokens_mlp_dim, where it is left open, to the width that the weights have: extension widens them.

    Args:
      config: of the run.
      weights: those of config.init_from, at the run's image size; None once the run has begun, when they may be gone
        and its folder says what they had.
      workdir: the run's folder.
    """
    if not config.init_from or config.model.tokens_mlp_dim is not None:
        return config
    config = ml_collections.ConfigDict(config)
    before = weights.model() if weights else configuration.load(workdir).model
    config.model.tokens_mlp_dim = before.tokens_mlp_dim
    return config.lock()


def initial_params(
    state: TrainState, weights: Weights, class_names: Sequence[str], shardings: TrainState
) -> TrainState:
    """Puts the weights into a fresh state; the head stays new where the classes differ.

    Raises:
      UserError: anything but the head does not fit.
    """
    same_classes = weights.class_names is None or weights.class_names == list(class_names)
    params = fitted(weights, state.params, keep_head=same_classes)
    # A copy each: the step donates its state, and one buffer cannot be given away twice.
    place = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.params)
    ema_params = None if state.ema_params is None else place(params)
    return state.replace(params=place(params), ema_params=ema_params)


def fitted(weights: Weights, params: Any, keep_head: bool = True) -> Any:
    """Returns the weights with the head of `params` where their shapes differ, or where it is not to be kept.

    Raises:
      UserError: lists every other array that is missing, unexpected or of another shape.
    """
    loaded, head = weights.params, params.get("head")
    if head and not (keep_head and jax.tree.map(jnp.shape, loaded.get("head")) == jax.tree.map(jnp.shape, head)):
        loaded = {**loaded, "head": head}
    if wrong := mismatches(loaded, params):
        ours = dataclasses.replace(weights, params=params)
        raise UserError(
            f"config.init_from={weights.source!r} does not fit this model: it is {weights.described()}, the model is "
            f"{ours.described()}: {'; '.join(wrong)}"
        )
    return loaded
