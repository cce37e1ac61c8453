"""A run whose step compiles in about a second. `setup.build` builds it, as it builds every real run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mixer.config import recipe
from mixer.training import setup

CLASSES, PIXELS, PATCH, BLOCKS = 5, 8, 4, 2
WARMUP_STEPS, TOTAL_STEPS = 2, 10


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on a mesh.

    Attributes:
      config: of the run.
      mesh: where it runs.
      setup: what `setup.build` returned.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    setup: setup.Setup

    @property
    def model(self) -> Any:
        return self.setup.model

    @property
    def step(self) -> Any:
        """The production step. It donates its state: call `state` or `copy` for another."""
        return self.setup.train_step

    def state(self):
        """The state before the first step, with random parameters: a fresh head is zero and hides the rest."""
        shapes, rng = self.setup.shapes.params, np.random.default_rng(self.config.seed)
        params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
        state = self.setup.init()
        return self.copy(state.replace(params=params, ema_params=params if self.config.ema_decay else None))

    def copy(self, state):
        """A copy of a state, which may be on the host, placed on the mesh as the step takes it."""
        return jax.tree.map(lambda leaf, place: jax.device_put(jnp.array(leaf), place), state, self.setup.shardings)


def make_run(mesh: Mesh, **settings) -> Run:
    """Builds a run; settings are dotted names, such as {"mixup.p": 0.5}."""
    config = recipe.base()
    config.input.image_size = PIXELS
    config.model.update({"variant": f"Ti/{PATCH}", "num_blocks": BLOCKS, "hidden_dim": 16})
    config.model.update({"tokens_mlp_dim": 12, "channels_mlp_dim": 24, "dtype": "float32"})
    config.update_from_flattened_dict({"mixup.group": 2, **settings})
    built = setup.build(config, mesh, num_classes=CLASSES, warmup_steps=WARMUP_STEPS, total_steps=TOTAL_STEPS)
    return Run(config, mesh, built)


def make_batch(rows, seed=0, max_labels=2, **columns):
    """One batch of random images and labels; columns such as weight replace its own."""
    rng = np.random.default_rng(seed)
    batch = {
        "image": rng.integers(0, 256, (rows, PIXELS, PIXELS, 3), np.uint8),
        "labels": rng.integers(0, CLASSES, (rows, max_labels)).astype(np.int32),
        "weight": np.ones(rows, np.float32),
        "status": np.zeros(rows, np.int32),
    }
    return {**batch, **columns}
