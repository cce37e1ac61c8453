"""The training step: one pure function of (state, batch), jitted by the loop and compiled ahead of time by pre-flight.

uint8 images -> [-1, 1] -> mixup -> model -> loss -> gradients -> clip and update -> moving average
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, UInt8

from mixer.models import Model
from mixer.training import losses, sharding

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """All that a checkpoint holds; everything else is a function of config and step.

    The leaves are arrays, or in their stead shapes or shardings.

    Attributes:
      step: steps taken, and the number of the batch to come; it stands still once the run has diverged. int32 [].
      params: the model's, float32.
      opt_state: the optimizer's.
      ema_params: exponential moving average of params; None without one.
      bad_images: images that could not be used so far, by status. int32 [statuses].
      nonfinite_steps: steps so far whose loss or gradient was not finite. int32 [].
    """

    step: Any
    params: Any
    opt_state: Any
    ema_params: Any
    bad_images: Any
    nonfinite_steps: Any


def init_state(
    model: Model, tx: optax.GradientTransformation, config: ml_collections.ConfigDict, num_statuses: int
) -> TrainState:
    """The state before the first step, drawn from config.seed."""
    size = config.input.image_size
    params = model.init(jax.random.key(config.seed), jnp.zeros((1, size, size, 3)))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema_params=params if config.ema_decay else None,
        bad_images=jnp.zeros(num_statuses, jnp.int32),
        nonfinite_steps=jnp.zeros((), jnp.int32),
    )


def normalize(images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
    """Brings 0..255 to [-1, 1], the range that the published checkpoints expect."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def mixup(
    images: UInt8[Array, "batch height width 3"],
    targets: Float[Array, "batch classes"],
    weight: Float[Array, " batch"],
    key: Key[Array, ""],
    p: float,
    group: int,
) -> tuple[Float[Array, "batch height width 3"], Float[Array, "batch classes"]]:
    """Mixes each example with its neighbour (arXiv 1710.09412), as the published recipe does.

    One lambda ~ Beta(p, p) a batch, never below 1/2. The neighbour is the previous example within groups of `group`
    rows, the first one's being the last: a pair never crosses a device, so mixing costs no communication and no device
    count changes it. A neighbour that could not be read leaves the example as it is. Returns images in [-1, 1].
    """
    lam = jax.random.beta(key, p, p)
    lam = jnp.maximum(lam, 1 - lam)

    def neighbour(x: Array) -> Array:
        return jnp.roll(x.reshape(-1, group, *x.shape[1:]), 1, axis=1).reshape(x.shape)

    lam = jnp.where(neighbour(weight) > 0, lam, 1.0)  # [batch]
    lam_images, lam_targets = lam[:, None, None, None], lam[:, None]
    return (
        lam_images * normalize(images) + (1 - lam_images) * normalize(neighbour(images)),
        lam_targets * targets + (1 - lam_targets) * neighbour(targets),
    )


def prepare(
    batch: Batch, num_classes: int, key: Key[Array, ""], config: ml_collections.ConfigDict
) -> tuple[Float[Array, "batch height width 3"], Float[Array, "batch classes"]]:
    """What the model sees of a training batch: images in [-1, 1] and targets, mixed if the config says so."""
    images, targets = batch["image"], losses.targets(batch["labels"], num_classes)
    if config.mixup.p:
        return mixup(images, targets, batch["weight"], key, config.mixup.p, config.mixup.group)
    return normalize(images), targets


def make_train_step(
    model: Model,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ml_collections.ConfigDict,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds the step.

    A step whose loss or gradient is not finite changes neither parameters nor optimizer and is counted. Beyond
    config.max_nonfinite_steps of them the state stands still, step and all, whatever batches follow: the loop need not
    look at every step, and what it saves is finite.

    With accumulate_steps = a > 1 the batch is taken in a parts, whose gradients add up to those of the whole; each
    device's rows are split in a, so no row moves.

    On a mesh the head's parameters are gathered before they are used: by itself XLA gathers the gradient of the logits
    instead where the head is split along its channels.
    """
    loss_fn = losses.LOSSES[config.loss]

    def part_loss(params: Any, part: Batch, mixup_key: Array, dropout_key: Array, total_weight: Array) -> Array:
        if mesh is not None:
            head = jax.lax.with_sharding_constraint(params["head"], sharding.replicated(mesh))
            params = {**params, "head": head}
        images, targets = prepare(part, model.num_classes, mixup_key, config)
        logits: Any = model.apply({"params": params}, images, train=True, rngs={"dropout": dropout_key})
        return jnp.sum(loss_fn(logits, targets) * part["weight"]) / total_weight

    def gradients(params: Any, batch: Batch, key: Array) -> tuple[Array, Any]:
        mixup_key, dropout_key = jax.random.split(key)
        total_weight = jnp.maximum(jnp.sum(batch["weight"]), 1.0)
        grad_fn = jax.value_and_grad(part_loss)
        if config.accumulate_steps == 1:
            return grad_fn(params, batch, mixup_key, dropout_key, total_weight)

        def add_part(total: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
            number, part = numbered
            part_key = jax.random.fold_in(dropout_key, number)
            return jax.tree.map(jnp.add, total, grad_fn(params, part, mixup_key, part_key, total_weight)), None

        parts = split_batch(batch, config.accumulate_steps, config.mixup.group)
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add_part, zeros, (jnp.arange(config.accumulate_steps), parts))[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss, grads = gradients(state.params, batch, key)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if config.ema_decay:
            ema_params = optax.incremental_update(params, state.ema_params, 1 - config.ema_decay)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        nonfinite_steps = state.nonfinite_steps + jnp.where(finite, 0, 1)
        diverged = nonfinite_steps > config.max_nonfinite_steps
        stepped = state.replace(params=params, opt_state=opt_state, ema_params=ema_params)
        state_out = jax.tree.map(lambda new, old: jnp.where(finite & ~diverged, new, old), stepped, state)
        statuses = jnp.arange(len(state.bad_images))
        bad_now = jnp.sum((batch["status"][:, None] == statuses[None, 1:]).astype(jnp.int32), axis=0)
        state_out = state_out.replace(
            step=state.step + jnp.where(diverged, 0, 1),
            bad_images=state.bad_images.at[1:].add(jnp.where(diverged, 0, bad_now)),
            nonfinite_steps=nonfinite_steps,
        )
        metrics = {
            "loss": loss,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(state_out.params),
            "bad_images": state_out.bad_images,
            "nonfinite_steps": nonfinite_steps,
            "diverged": diverged,
            "step": state_out.step,
        }
        return state_out, metrics

    return train_step


def jit_train_step(
    model: Model,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ml_collections.ConfigDict,
    shardings: TrainState,
    mesh: Mesh,
) -> Any:
    """The step as it runs on a mesh: the state, which lies as `shardings` say, is given away for the next."""
    return jax.jit(
        make_train_step(model, tx, schedule, config, mesh),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def split_batch(batch: Batch, parts: int, group: int) -> Batch:
    """Reshapes each [batch, ...] to [parts, batch/parts, ...], groups kept whole and every row on its device."""

    def split(x: Array) -> Array:
        grouped = x.reshape(x.shape[0] // (group * parts), parts, group, *x.shape[1:])
        return jnp.moveaxis(grouped, 1, 0).reshape(parts, x.shape[0] // parts, *x.shape[1:])

    return jax.tree.map(split, batch)
