"""Optimizers and learning-rate schedules: two registries of small optax chains.

Weight decay is decoupled (Loshchilov & Hutter, arXiv 1711.05101) and applies to kernels only, not to biases or
normalisation. `weight_decay` is the paper's number. It is multiplied by the learning rate of the step: each step
shrinks a kernel by learning_rate * weight_decay of itself. The published code gives the product instead; its 1e-4 is
the paper's 0.1 at learning rate 0.001. In both, the decay follows the schedule.
"""

import fnmatch
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from mixer.runtime.errors import UserError
from mixer.training.muon import are_matrices, scale_by_muon

Optimizer = Callable[[ml_collections.ConfigDict, Mesh], optax.GradientTransformation]
Decay = Callable[[float, float, int], optax.Schedule]


def adam(config: ml_collections.ConfigDict, mesh: Mesh) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, arXiv 1412.6980)."""
    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)


def momentum(config: ml_collections.ConfigDict, mesh: Mesh) -> optax.GradientTransformation:
    """Gradient descent with momentum `beta1`."""
    return optax.trace(decay=config.beta1)


def muon(config: ml_collections.ConfigDict, mesh: Mesh) -> optax.GradientTransformation:
    """Muon for matrices (`muon.py`); Adam, also with Nesterov momentum, for all else, the stem included."""
    for_others = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon, nesterov=True)
    return optax.partition(
        {"muon": scale_by_muon(config.epsilon, mesh), "adam": for_others},
        lambda params: jax.tree.map(lambda is_one: "muon" if is_one else "adam", are_matrices(params)),
    )


# Each makes the transformation of clipped gradients, before weight decay and learning rate, from `config.optimizer` and
# the mesh on which the step runs.
OPTIMIZERS: dict[str, Optimizer] = {"adam": adam, "momentum": momentum, "muon": muon}

# What follows warm-up: a schedule over `steps` steps, from the peak to end_factor times the peak.
DECAYS: dict[str, Decay] = {
    "linear": lambda peak, end_factor, steps: optax.linear_schedule(peak, peak * end_factor, steps),
    "cosine": lambda peak, end_factor, steps: optax.cosine_decay_schedule(peak, steps, alpha=end_factor),
    "constant": lambda peak, end_factor, steps: optax.constant_schedule(peak),
}


def make_schedule(config: ml_collections.ConfigDict, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Makes the schedule from step number to learning rate.

    The rate grows linearly over `warmup_steps`, then follows `config.decay`. Warm-up begins at peak / warmup_steps, or,
    as published, at 0 (`config.warmup_from_zero`): then the first step changes nothing. Decay is the same in both.

    Args:
      config: `config.optimizer`.
      warmup_steps: 0 for no warm-up.
      total_steps: of the run.
    """
    peak = config.learning_rate
    decay = DECAYS[config.decay](peak, config.end_factor, max(total_steps - warmup_steps, 1))
    if warmup_steps == 0:
        return decay
    if config.warmup_from_zero:
        warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    else:
        warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule, mesh: Mesh
) -> optax.GradientTransformation:
    """Makes the optimizer: clip by global norm, scale, decay weights, multiply by learning rate and multipliers.

    Its `init` raises UserError if a multiplier is for no parameter.

    Args:
      config: `config.optimizer`.
      schedule: of the learning rate.
      mesh: the devices of the step.

    Raises:
      UserError: `config.multipliers` is not as it should be.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, kernels) if config.weight_decay else optax.identity()
    multiplied = (_multiplied(config.multipliers),) if config.multipliers else ()
    return optax.chain(
        clip, OPTIMIZERS[config.name](config, mesh), decay, optax.scale_by_learning_rate(schedule), *multiplied
    )


def _multiplied(text: str) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters whose names begin as `text` says; the last that fits counts.

    Weight decay is part of an update, so with 0 a parameter stays as it is.
    """
    factors = [_factor(part) for part in text.split(",")]

    def multiplied(path: Any, leaf: jax.Array) -> jax.Array:
        found = [factor for start, factor in factors if _begins([key.key for key in path], start)]
        if not found:
            return leaf
        return leaf * found[-1] if found[-1] else jnp.zeros_like(leaf)  # zero times infinity is not zero

    def init(params: Any) -> optax.EmptyState:
        names = [[key.key for key in path] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for start, _ in factors:
            if not any(_begins(name, start) for name in names):
                known = ", ".join(sorted({name[0] for name in names}))
                raise UserError(
                    f"config.optimizer.multipliers: no parameter is called {start!r}; they begin with {known}"
                )
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return jax.tree_util.tree_map_with_path(multiplied, updates), state

    return optax.GradientTransformation(init, update)


def _factor(part: str) -> tuple[str, float]:
    """Reads one NAME=FACTOR."""
    name, _, number = part.partition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not (name and 0 <= factor < math.inf):
        raise UserError(
            f"config.optimizer.multipliers: {part!r}: expected NAME=FACTOR with a finite factor of at least 0, joined "
            "by commas, such as stem=0,head=10"
        )
    return name, factor


def _begins(names: list[str], start: str) -> bool:
    """Returns whether a parameter's name, as a list, begins as a text with slashes says; * is any part of a name."""
    parts = start.split("/")
    return len(parts) <= len(names) and all(map(fnmatch.fnmatchcase, names, parts))


def kernels(params: Any) -> Any:
    """Marks the leaves to which weight decay applies: those named "kernel"."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
