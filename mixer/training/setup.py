"""Builds what a config trains: the model, its state, and the jitted step on a mesh.

There is one way to a training step, `build`. Training, the benchmark, pre-flight and the tests all use it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from mixer import models
from mixer.runtime import cpu, devices
from mixer.training import line_metrics, losses, sharding
from mixer.training import optimizer as optimizers
from mixer.training.step import TrainState, TrainStep, init_state


@dataclasses.dataclass(frozen=True)
class Setup:
    """A config's model and jitted functions. Building it computes and allocates nothing.

    Attributes:
      model: the model.
      shapes: of the state.
      shardings: of the state on the mesh.
      init: makes the state on the mesh.
      no_sums: makes the state's `line_sums` of no step.
      train_step: from (state, batch) to (next state, metrics). The state is donated: it cannot be used again.
    """

    model: models.Model
    shapes: TrainState
    shardings: TrainState
    init: Callable[[], TrainState]
    no_sums: Callable[[], jax.Array]
    train_step: Any

    @property
    def abstract_state(self) -> TrainState:
        """The state's shapes with their shardings, for lowering."""
        shapes: TrainState = jax.tree.map(_with_sharding, self.shapes, self.shardings)
        return shapes


def build(
    config: ml_collections.ConfigDict, mesh: Mesh, *, num_classes: int, warmup_steps: int = 1, total_steps: int = 2
) -> Setup:
    """Builds the setup of a checked config.

    Args:
      config: of the whole run.
      mesh: its devices may be those of a TPU topology that this host does not have.
      num_classes: width of the head.
      warmup_steps, total_steps: of the learning-rate schedule. They do not change the cost of a step.
    """
    options = {
        **config.model, "head_bias_init": head_bias(config, num_classes), "dtype": cpu.dtype(config.model.dtype, mesh)
    }  # fmt: skip
    model = cpu.suited(models.create(num_classes=num_classes, **options), mesh)
    schedule = optimizers.make_schedule(config.optimizer, warmup_steps, total_steps)
    tx = optimizers.make_optimizer(config.optimizer, schedule, mesh)

    def init() -> TrainState:
        return init_state(model, tx, config)

    shapes = jax.eval_shape(init)
    shardings = sharding.state_sharding(shapes, mesh, config.sharding)
    return Setup(
        model=model,
        shapes=shapes,
        shardings=shardings,
        init=jax.jit(init, out_shardings=shardings, compiler_options=cpu.init_options(mesh)),
        no_sums=jax.jit(line_metrics.no_sums, out_shardings=shardings.line_sums),
        train_step=jax.jit(
            TrainStep(model, tx, schedule, config, mesh),
            in_shardings=(shardings, devices.batch_sharding(mesh)),
            out_shardings=(shardings, devices.replicated(mesh)),
            donate_argnums=0,
            compiler_options=_step_options(config, mesh) or cpu.options(model, mesh),
        ),
    )


def _step_options(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, Any] | None:
    """Returns XLA's compiler options for the training step.

    On a TPU each device would draw the random bits of the whole batch and keep its rows, if they come from the device's
    generator. With this option it draws its own rows only.
    """
    draws_its_own = config.dropout_keys == "rbg" and mesh.devices.flat[0].platform == "tpu"
    return {"xla_tpu_spmd_rng_bit_generator_unsafe": True} if draws_its_own else None


def head_bias(config: ml_collections.ConfigDict, num_classes: int) -> float:
    """Returns the initial value of every logit: config.model.head_bias_init or, if it is not set, what suits the loss.

    A sigmoid at -ln(classes) is about one class in `classes`, as often as a class occurs. For a softmax no constant
    matters.
    """
    if config.model.head_bias_init is not None:
        return float(config.model.head_bias_init)
    return -math.log(max(num_classes, 1)) if losses.LOSSES[config.loss].assumes == "sigmoid" else 0.0


def batch_shapes(config: ml_collections.ConfigDict, mesh: Mesh, max_labels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global batch (see `data/pipeline.py`), with their shardings."""
    rows, size = config.batch_size, config.input.image_size
    shapes = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((rows, max_labels), jnp.int32),
        "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
        "status": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    return {name: _with_sharding(shape, devices.batch_sharding(mesh)) for name, shape in shapes.items()}


def _with_sharding(array: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
