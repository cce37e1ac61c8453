"""What a config runs on a mesh: `mixer.train` runs it, the benchmark times it, pre-flight compiles it for a slice."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from mixer import models, statuses
from mixer.training import evaluation, sharding
from mixer.training import optimizer as optimizers
from mixer.training.step import TrainState, init_state, jit_train_step


@dataclasses.dataclass(frozen=True)
class Programs:
    """The model of a config, and its jitted functions; nothing is computed or allocated yet.

    Attributes:
      model: the model.
      shapes: of the state.
      shardings: how the state lies on the mesh.
      init: makes the state.
      train_step: from (state, batch), which gives the state away, to (state, metrics).
      eval_step: from (params, batch) to sums and logits, see `evaluation.make_eval_step`.
    """

    model: models.Model
    shapes: TrainState
    shardings: TrainState
    init: Callable[[], TrainState]
    train_step: Any
    eval_step: Any

    @property
    def state(self) -> TrainState:
        """The state's shapes with their shardings, to lower the steps by."""
        return jax.tree.map(_placed, self.shapes, self.shardings)


def build(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    *,
    num_classes: int,
    multi_label: bool = False,
    warmup_steps: int = 1,
    total_steps: int = 2,
) -> Programs:
    """Builds the programs of a checked config.

    Args:
      config: of the whole run.
      mesh: of devices, which may be those of a topology that is not there.
      num_classes: width of the head.
      multi_label: whether evaluation keeps logits, as the metrics of such data need.
      warmup_steps, total_steps: of the learning-rate schedule; a step costs the same whatever they are.
    """
    model = models.create(num_classes=num_classes, **config.model)
    schedule = optimizers.make_schedule(config.optimizer, warmup_steps, total_steps)
    tx = optimizers.make_optimizer(config.optimizer, schedule)
    num_statuses = len(statuses.STATUSES)

    def init() -> TrainState:
        return init_state(model, tx, config, num_statuses)

    shapes = jax.eval_shape(init)
    shardings = sharding.state_sharding(shapes, mesh, config.sharding)
    return Programs(
        model=model,
        shapes=shapes,
        shardings=shardings,
        # It runs once: to optimise it less saves a third of its compilation on a CPU; Ti/8 keeps every bit.
        init=jax.jit(init, out_shardings=shardings, compiler_options={"xla_backend_optimization_level": 1}),
        train_step=jit_train_step(model, tx, schedule, config, shardings, mesh),
        eval_step=evaluation.make_eval_step(model, config.loss, mesh, multi_label, num_statuses),
    )


def batch_shapes(config: ml_collections.ConfigDict, mesh: Mesh, max_labels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch (see `data/pipeline.py`), with their shardings."""
    rows, size = config.batch_size, config.input.image_size
    shapes = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((rows, max_labels), jnp.int32),
        "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
        "status": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    return {name: _placed(shape, sharding.batch_sharding(mesh)) for name, shape in shapes.items()}


def _placed(array: jax.ShapeDtypeStruct, lies: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=lies)
