"""Optimizers and learning-rate schedules: two registries of small optax chains.

Weight decay is decoupled (Loshchilov & Hutter, arXiv 1711.05101) and applies to kernels only, not to biases or
normalisation. `weight_decay` is the paper's number. It is multiplied by the learning rate of the step: each step
shrinks a kernel by learning_rate * weight_decay of itself. The published code gives the product instead; its 1e-4 is
the paper's 0.1 at learning rate 0.001. In both, the decay follows the schedule.
"""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax
import optax.contrib

Optimizer = Callable[[ml_collections.ConfigDict], optax.GradientTransformation]
Decay = Callable[[float, float, int], optax.Schedule]


def adam(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, arXiv 1412.6980)."""
    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)


def momentum(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Gradient descent with momentum `beta1`."""
    return optax.trace(decay=config.beta1)


def muon(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Muon (Jordan 2024) with momentum 0.95 for matrices. Its updates have Adam's size (0.2 RMS, arXiv 2502.16982).

    The matrices of untied token mixing lie in one array, and each is orthogonalised by itself. Those of a ViT's
    attention are split into heads, and each is orthogonalised as a whole.

    All other parameters, the four-dimensional stem included, get Adam with Nesterov momentum: optax's Muon gives both
    its parts the same form of momentum.
    """
    both = optax.contrib.muon(
        1.0, consistent_rms=0.2, adam_b1=config.beta1, adam_b2=config.beta2, eps=config.epsilon,
        muon_weight_dimension_numbers=_matrices,
    )  # fmt: skip
    return optax.chain(both, optax.scale(-1.0))  # optax's Muon turns the sign; in our chain the learning rate does


# The axes of flax's attention kernels that its matrices have as rows and as columns.
_ATTENTION = {
    **dict.fromkeys(("query", "key", "value"), ((0,), (1, 2))),  # [width, heads, size]
    "out": ((0, 1), (2,)),  # [heads, size, width]
}


def _matrices(params: Any) -> Any:
    """Returns the axes of each leaf that is a matrix, or a stack of matrices; None for the others."""

    def axes(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        names = [part.key for part in path]
        if names[-1] != "kernel":
            return None
        if leaf.ndim == 2 or "token_mixing" in names:  # untied, a stack: [groups, in, out]
            return optax.contrib.MuonDimensionNumbers(-2, -1)
        of_attention = _ATTENTION.get(names[-2]) if leaf.ndim == 3 else None
        return optax.contrib.MuonDimensionNumbers(*of_attention) if of_attention else None

    return jax.tree_util.tree_map_with_path(axes, params)


# Each makes the transformation of clipped gradients, before weight decay and learning rate, from `config.optimizer`.
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


def make_optimizer(config: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes the optimizer: clip by global norm, scale, decay weights, multiply by the learning rate.

    Args:
      config: `config.optimizer`.
      schedule: of the learning rate.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, kernels) if config.weight_decay else optax.identity()
    return optax.chain(clip, OPTIMIZERS[config.name](config), decay, optax.scale_by_learning_rate(schedule))


def kernels(params: Any) -> Any:
    """Marks the leaves to which weight decay applies: those named "kernel"."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
