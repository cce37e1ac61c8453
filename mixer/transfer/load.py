"""Weights in: parameters of an earlier run as the start of a new one."""

from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import traverse_util

from mixer.errors import UserError
from mixer.training.checkpoint import load_params
from mixer.training.step import TrainState


def initial_params(state: TrainState, workdir: epath.PathLike, shardings: TrainState) -> TrainState:
    """Puts the parameters of an earlier run into a fresh state; the head stays new where the classes differ.

    Raises:
      UserError: the folder is not a run, or anything but the head does not fit.
    """
    params = fitted(load_params(workdir), state.params, source=str(workdir))
    # A copy each: the step donates its state, and one buffer cannot be given away twice.
    place = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.params)
    ema_params = None if state.ema_params is None else place(params)
    return state.replace(params=place(params), ema_params=ema_params)


def fitted(loaded: Any, params: Any, source: str) -> Any:
    """Returns `loaded` with the head of `params` where their shapes differ.

    Raises:
      UserError: lists every other array that is missing, unexpected or of another shape.
    """
    ours = traverse_util.flatten_dict(params, sep="/")
    theirs = traverse_util.flatten_dict(loaded, sep="/")
    head = [key for key in ours.keys() & theirs.keys() if key.startswith("head/")]
    if any(theirs[key].shape != ours[key].shape for key in head):
        theirs |= {key: ours[key] for key in head}
    wrong = [f"{key}: missing there" for key in sorted(ours.keys() - theirs.keys())]
    wrong += [f"{key}: not in this model" for key in sorted(theirs.keys() - ours.keys())]
    wrong += [
        f"{key}: {theirs[key].shape} there, {ours[key].shape} here"
        for key in sorted(ours.keys() & theirs.keys())
        if ours[key].shape != theirs[key].shape
    ]
    if wrong:
        raise UserError(f"config.init_from={source!r} does not fit this model: {'; '.join(wrong)}")
    return traverse_util.unflatten_dict(theirs, sep="/")
