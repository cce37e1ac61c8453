"""config.init_from: a run starts from given weights. They are fitted to its model and placed on its devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from mixer.config import checks, run_folder
from mixer.runtime.errors import UserError
from mixer.training.step import TrainState
from mixer.transfer.mismatch import mismatches
from mixer.transfer.weights import Weights


def with_token_width(
    config: ml_collections.ConfigDict, weights: Weights | None, workdir: epath.PathLike
) -> ml_collections.ConfigDict:
    """Returns the config with the model.tokens_mlp_dim of the weights, if the config does not set it.

    Weights that were extended to a larger image size have wider token-mixing MLPs than their variant.

    Args:
      config: of the run.
      weights: those of config.init_from, at the run's image size. None if the run has a checkpoint: its weights may
        have been deleted, so the width is read from the run's folder.
      workdir: the run's folder.
    """
    if not config.init_from or config.model.tokens_mlp_dim is not None:
        return config
    config = checks.unlocked_copy(config)
    before = weights.model() if weights else run_folder.load_config(workdir).model
    config.model.tokens_mlp_dim = before.tokens_mlp_dim
    return config.lock()


def initial_params(
    state: TrainState, weights: Weights, class_names: Sequence[str], shardings: TrainState
) -> TrainState:
    """Returns a new state with these weights as its parameters. The head stays new if the classes differ.

    Args:
      state: with new parameters.
      weights: at the image size of the run.
      class_names: of the run's data.
      shardings: of the state.

    Raises:
      UserError: arrays other than the head do not fit.
    """
    same_classes = weights.class_names is None or weights.class_names == list(class_names)
    params = fitted(weights, state.params, keep_head=same_classes)
    # Parameters and their average are separate copies: the step donates both, and no buffer can be donated twice.
    place = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.params)
    ema_params = None if state.ema_params is None else place(params)
    return state.replace(params=place(params), ema_params=ema_params)


def fitted(weights: Weights, params: Any, keep_head: bool = True) -> Any:
    """Returns the parameters of the weights for a model with the parameters `params`.

    The head is that of `params` if its shape differs or `keep_head` is False.

    Raises:
      UserError: arrays outside the head are missing, unexpected or of another shape; lists all of them.
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
