"""The training step: one pure function from (state, batch) to (next state, metrics).

    uint8 images -> [-1, 1] -> mixing -> model -> loss -> gradients -> clip and update -> moving average

`setup.build` jits it for a mesh. Training runs the result, the benchmark times it, pre-flight compiles it for a TPU.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mixer.data.pixels import image_status
from mixer.models import Model
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime import devices
from mixer.training import line_metrics, losses, mixing, sharding

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a checkpoint holds. All else is a function of the config, the step and the run's history.

    The history counts only where the size of the batch or the data has changed: `Run.offset`, `history.begun`.

    The leaves are arrays, or in their place shapes or shardings.

    Attributes:
      step: steps taken, which is the number of the next batch. It stands still once the run has diverged. int32 [].
      params: the model's, float32.
      opt_state: the optimizer's.
      ema_params: exponential moving average of params; None without one.
      bad_images: unusable images so far, by status. int32 [statuses].
      nonfinite_steps: steps so far that were left out, as not finite. int32 [].
      line_sums: of the steps since the last line of metrics; see `line_metrics`. float32 [sums].
    """

    step: Any
    params: Any
    opt_state: Any
    ema_params: Any
    bad_images: Any
    nonfinite_steps: Any
    line_sums: Any


def init_state(model: Model, tx: optax.GradientTransformation, config: ml_collections.ConfigDict) -> TrainState:
    """Makes the state before the first step. Parameters are drawn from config.seed."""
    size = config.input.image_size
    params = model.init(jax.random.key(config.seed), jnp.zeros((1, size, size, 3)))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema_params=params if config.ema_decay else None,
        bad_images=jnp.zeros(len(image_status.STATUSES), jnp.int32),
        nonfinite_steps=jnp.zeros((), jnp.int32),
        line_sums=line_metrics.no_sums(),
    )


def _generator_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """Returns a key whose random bits come from the device's own generator, XLA's rng-bit-generator."""
    generator_key: Array = jax.random.wrap_key_data(jnp.resize(jax.random.key_data(key), (4,)), impl="rbg")
    return generator_key


# From a value of `config.dropout_keys` to the function that makes such a key of a step's key.
DROPOUT_KEYS: dict[str, Callable[[Array], Array]] = {"threefry": lambda key: key, "rbg": _generator_key}


def normalize(images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
    """Scales 0..255 to [-1, 1], the range that the published checkpoints expect."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def exact_outputs(model: Any, params: Any, images: Any) -> Any:
    """Computes a model's outputs for uint8 images. By default, TPUs and GPUs round the factors of float32 products."""
    with jax.default_matmul_precision("float32"):
        return model.apply({"params": params}, normalize(images))


def keys_of_step(seed: int, step: Any) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Returns the keys of a step: that of mixing, and that of dropout."""
    mixing_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return mixing_key, dropout_key


def prepare(
    batch: Batch, num_classes: int, key: Key[Array, ""], config: ml_collections.ConfigDict
) -> tuple[Float[Array, "batch height width 3"], Float[Array, "batch classes"]]:
    """Returns images in [-1, 1] and targets of a training batch; smoothed, and mixed, if the config says so."""
    images = normalize(batch["image"])
    targets = losses.LOSSES[config.loss].targets(losses.ones(batch["labels"], num_classes))
    if config.label_smoothing:
        targets = losses.smoothed(targets, config.label_smoothing)
    if mixing.is_on(config):
        return mixing.mixed(images, targets, batch["weight"], key, config)
    return images, targets


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """The step of one run: `step(state, batch)` returns the next state and metrics.

    A step whose loss or gradient is not finite changes neither parameters nor optimizer, and is counted. After more
    than config.max_nonfinite_steps of them the run has diverged: whatever batches follow, nothing in the state changes
    any more, its step number included, but the count of such steps. So the loop need not check every step.

    Whether the new parameters are finite is left to `health`, which looks before the loop saves. To wait for all of
    them before one is kept takes a TPU up to two fifths of a step (docs/lab/tpu.md).

    Attributes:
      model: the model.
      tx: the optimizer.
      schedule: from step number to learning rate, for the metrics; `tx` has it too.
      config: of the run.
      mesh: where the step runs.
    """

    model: Model
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    config: ml_collections.ConfigDict
    mesh: Mesh

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Takes one step."""
        (loss, guesses), grads = self._gradients(state.params, batch, *keys_of_step(self.config.seed, state.step))
        grad_norm = optax.tree.norm(grads)

        updated = self._updated(state, grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        nonfinite_steps = state.nonfinite_steps + jnp.where(finite, 0, 1)
        diverged = nonfinite_steps > self.config.max_nonfinite_steps
        kept = jax.tree.map(lambda new, old: jnp.where(finite & ~diverged, new, old), updated, state)
        in_step = line_metrics.of_step(loss, guesses)
        next_state = kept.replace(
            step=state.step + jnp.where(diverged, 0, 1),
            line_sums=state.line_sums + jnp.where(finite & ~diverged, in_step, 0.0),
            bad_images=_counted(state.bad_images, batch["status"], diverged),
            nonfinite_steps=nonfinite_steps,
        )
        metrics = {
            "loss": loss,
            # The schedule is that of the steps that the optimizer has taken: one that is left out does not count.
            "learning_rate": jnp.asarray(self.schedule(state.step - state.nonfinite_steps), jnp.float32),
            "grad_norm": grad_norm,
            "line_sums": line_metrics.named(next_state.line_sums, guesses),
            "bad_images": next_state.bad_images,
            "nonfinite_steps": nonfinite_steps,
            "diverged": diverged,
            "step": next_state.step,
            **line_metrics.norms(next_state.params, state.params, grads, self.config.metrics.norms, self._with_effect),
        }
        return next_state, metrics

    def _gradients(
        self, params: Any, batch: Batch, mixing_key: Array, dropout_key: Array
    ) -> tuple[tuple[Array, line_metrics.Guesses], Any]:
        """Returns the mean loss over the images that have one with the counts of guesses, and the gradient of the loss.

        Those are the usable images, for a softmax the ones with a label. Mixed images share theirs, and their number
        remains.

        With config.accumulate_steps = a > 1 the batch is processed in `a` parts whose gradients are added, which gives
        the gradient of the whole batch in less memory.
        """
        dropout_key = DROPOUT_KEYS[self.config.dropout_keys](dropout_key)
        has_loss = batch["weight"]
        if not losses.LOSSES[self.config.loss].of_no_label:
            has_loss *= jnp.any(batch["labels"] >= 0, axis=1)
        total_weight = jnp.maximum(jnp.sum(has_loss), 1.0)
        grad_fn = jax.value_and_grad(self._part_loss, has_aux=True)
        if self.config.accumulate_steps == 1:
            return grad_fn(params, batch, mixing_key, dropout_key, total_weight)

        def add_part(total: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
            number, part = numbered
            part_key = jax.random.fold_in(dropout_key, number)
            return jax.tree.map(jnp.add, total, grad_fn(params, part, mixing_key, part_key, total_weight)), None

        parts = split_batch(batch, self.config.accumulate_steps, sharding.rows_together(self.config))
        part = jax.tree.map(lambda x: x[0], parts)
        counted = jax.eval_shape(self._part_loss, params, part, mixing_key, dropout_key, total_weight)
        zeros = (jax.tree.map(jnp.zeros_like, counted), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add_part, zeros, (jnp.arange(self.config.accumulate_steps), parts))[0]

    def _part_loss(
        self, params: Any, part: Batch, mixing_key: Array, dropout_key: Array, total_weight: Array
    ) -> tuple[Array, line_metrics.Guesses]:
        """Returns a part's sum of losses, divided by the weight of the whole batch, and the counts of its guesses."""
        # Gather the head's parameters before they are used. Where the head's kernel is split along its channels, XLA
        # would otherwise send the gradient of the logits to every device, which is larger.
        head = jax.lax.with_sharding_constraint(params["head"], devices.replicated(self.mesh))
        images, targets = prepare(part, self.model.num_classes, mixing_key, self.config)
        logits: Any = self.model.apply(
            {"params": {**params, "head": head}}, images, train=True, rngs={"dropout": dropout_key}
        )
        losses_of_rows = losses.LOSSES[self.config.loss](logits, targets)
        loss = jnp.sum(losses_of_rows * part["weight"]) / total_weight
        if not self.config.metrics.train_accuracy:
            return loss, {}
        return loss, line_metrics.guesses(jax.lax.stop_gradient(logits), part["labels"], part["weight"])

    def _with_effect(self, params: Any) -> Any:
        """Returns the parameters whose updates count: of a Mixer, those that its output depends on."""
        return self.model.with_effect(params) if isinstance(self.model, MlpMixer) else params

    def _updated(self, state: TrainState, grads: Any) -> TrainState:
        """Returns the state after the optimizer's update; the moving average is updated too."""
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if self.config.ema_decay:
            ema_params = optax.incremental_update(params, state.ema_params, 1 - self.config.ema_decay)
        return state.replace(params=params, opt_state=opt_state, ema_params=ema_params)


def _counted(
    bad_images: Int[Array, " statuses"], status: Int[Array, " batch"], diverged: Bool[Array, ""]
) -> Int[Array, " statuses"]:
    """Adds the unusable images of a batch to the counts, by status; nothing once the run has diverged."""
    bad = jnp.arange(1, len(bad_images))
    in_batch = jnp.sum((status[:, None] == bad[None]).astype(jnp.int32), axis=0)
    return bad_images.at[1:].add(jnp.where(diverged, 0, in_batch))


def split_batch(batch: Batch, parts: int, group: int) -> Batch:
    """Reshapes each [batch, ...] to [parts, batch/parts, ...]. Groups stay whole, and every row stays on its device."""

    def split(x: Array) -> Array:
        grouped = x.reshape(x.shape[0] // (group * parts), parts, group, *x.shape[1:])
        return jnp.moveaxis(grouped, 1, 0).reshape(parts, x.shape[0] // parts, *x.shape[1:])

    in_parts: Batch = jax.tree.map(split, batch)
    return in_parts
