"""Optimizers and learning-rate schedules: small optax chains.

Weight decay is decoupled (Loshchilov & Hutter, arXiv 1711.05101) and touches kernels only, not biases or
normalisation. `weight_decay` is the paper's number: it is multiplied by the learning rate of the step, so each step
shrinks a kernel by learning_rate * weight_decay of itself. The published code writes the product instead: the paper's
0.1 at learning rate 0.001 is its 1e-4. Both are scaled with the schedule.
"""

from typing import Any

import jax
import ml_collections
import optax
import optax.contrib

DECAYS = ("linear", "cosine", "constant")
OPTIMIZERS = ("adam", "momentum", "muon")


def make_schedule(config: ml_collections.ConfigDict, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """The learning rate of each step: linear from 0 over `warmup_steps`, then config.decay down to `end_factor`."""
    peak, end_factor = config.learning_rate, config.end_factor
    decay_steps = max(total_steps - warmup_steps, 1)
    decays = {
        "linear": optax.linear_schedule(peak, peak * end_factor, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, alpha=end_factor),
        "constant": optax.constant_schedule(peak),
    }
    if warmup_steps == 0:
        return decays[config.decay]
    # Counting from 1: a first step at learning rate 0 would change nothing.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decays[config.decay]], [warmup_steps])


def make_optimizer(config: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clips by global norm, then steps; config is `config.optimizer`."""
    scale = {
        "adam": optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        "momentum": optax.trace(decay=config.beta1),
        "muon": _scale_by_muon(config),
    }[config.name]
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, kernels) if config.weight_decay else optax.identity()
    return optax.chain(clip, scale, decay, optax.scale_by_learning_rate(schedule))


def _scale_by_muon(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for matrices, with momentum 0.95; updates have Adam's size (0.2 RMS, arXiv 2502.16982).

    The rest, which includes the 4-dimensional stem, gets Adam with Nesterov momentum: optax uses that for both.
    """
    muon = optax.contrib.muon(1.0, consistent_rms=0.2, adam_b1=config.beta1, adam_b2=config.beta2, eps=config.epsilon)
    return optax.chain(muon, optax.scale(-1.0))  # the learning rate, which turns the sign, comes last in our chain


def kernels(params: Any) -> Any:
    """Marks the leaves that weight decay touches, by their name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
