"""A config's real programs, and what they take, without data or parameters: for the benchmark and for pre-flight."""

import dataclasses
import math
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
    """What a config runs on a mesh.

    Attributes:
      model: the model.
      init: makes the state.
      state: its shapes, with their shardings.
      batch: the shapes of a global batch, with their shardings.
      train_step: jitted, from (state, batch).
      eval_step: jitted, from (params, batch).
    """

    model: models.Model
    init: Callable[[], TrainState]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    train_step: Any
    eval_step: Any


def build(
    config: ml_collections.ConfigDict, mesh: Mesh, *, num_classes: int, max_labels: int = 1,
    warmup_steps: int = 1, total_steps: int = 2,
) -> Programs:  # fmt: skip
    """The programs of a checked config, as `mixer.train` makes them.

    Args:
      config: of the whole run.
      mesh: of devices, which may be those of a topology that is not there.
      num_classes: width of the head.
      max_labels: an example's.
      warmup_steps, total_steps: of the learning-rate schedule, which costs the same whatever they are.
    """
    model = models.create(num_classes=num_classes, **config.model)
    schedule = optimizers.make_schedule(config.optimizer, warmup_steps, total_steps)
    tx = optimizers.make_optimizer(config.optimizer, schedule)

    def init() -> TrainState:
        return init_state(model, tx, config, len(statuses.STATUSES))

    shapes = jax.eval_shape(init)
    shardings = sharding.state_sharding(shapes, mesh, config.sharding)
    place = lambda array, lies: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=lies)  # noqa: E731

    def rows(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        array = jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
        return place(array, sharding.batch_sharding(mesh))

    size = config.input.image_size
    return Programs(
        model=model,
        init=jax.jit(init, out_shardings=shardings),
        state=jax.tree.map(place, shapes, shardings),
        batch={
            "image": rows(jnp.uint8, size, size, 3), "labels": rows(jnp.int32, max_labels),
            "weight": rows(jnp.float32), "status": rows(jnp.int32),
        },
        train_step=jit_train_step(model, tx, schedule, config, shardings, mesh),
        eval_step=evaluation.make_eval_step(
            model, config.loss, mesh, keep_logits=max_labels > 1, num_statuses=len(statuses.STATUSES)
        ),
    )  # fmt: skip


def bytes_by_kind(built: Programs) -> dict[str, int]:
    """Bytes on each core of what a training step is given, as the mesh divides it."""
    state = built.state
    kinds = {
        "parameters": state.params,
        "optimizer state": state.opt_state,
        "moving average": state.ema_params,
        "batch": built.batch,
    }
    return {name: _bytes(tree, on_a_core=True) for name, tree in kinds.items() if jax.tree.leaves(tree)}


def whole_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, each counted once."""
    return _bytes(tree, on_a_core=False)


def _bytes(tree: Any, on_a_core: bool) -> int:
    leaves = jax.tree.leaves(tree)
    shapes = [leaf.sharding.shard_shape(leaf.shape) if on_a_core else leaf.shape for leaf in leaves]
    return sum(math.prod(shape) * leaf.dtype.itemsize for leaf, shape in zip(leaves, shapes, strict=True))
