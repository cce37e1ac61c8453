"""A run small enough that its step compiles in about a second, built as `mixer.train` builds one."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer.config import recipe
from mixer.runtime import devices
from mixer.training import sharding
from mixer.training.optimizer import make_optimizer, make_schedule
from mixer.training.step import init_state, make_train_step

CLASSES, PIXELS, STATUSES = 5, 8, 7


def make_run(**settings):
    """Config, model, optimizer and step of a run; settings are dotted names, such as {"mixup.p": 0.5}."""
    config = recipe.base()
    config.input.image_size = PIXELS
    config.model.update({"variant": "Ti/4", "num_blocks": 2, "hidden_dim": 16})
    config.model.update({"tokens_mlp_dim": 12, "channels_mlp_dim": 24, "dtype": "float32"})
    config.update_from_flattened_dict({"mixup.group": 2, **settings})
    model = models.create(num_classes=CLASSES, **config.model)
    schedule = make_schedule(config.optimizer, 2, 10)
    tx = make_optimizer(config.optimizer, schedule)

    def init():
        """Random parameters: a fresh head is zero and hides what lies before it."""
        state = init_state(model, tx, config, STATUSES)
        leaves, tree = jax.tree.flatten(state.params)
        rng = np.random.default_rng(config.seed)
        params = tree.unflatten([jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves])
        return state.replace(params=params, ema_params=None if state.ema_params is None else params)

    step = make_train_step(model, tx, schedule, config)
    return types.SimpleNamespace(config=config, model=model, schedule=schedule, tx=tx, init=init, step=step)


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


def on_mesh(run, mesh, kind="data_parallel"):
    """The state on the mesh, its shardings and the compiled step, as the loop has them."""
    state = run.init()
    shardings = sharding.state_sharding(jax.eval_shape(lambda: state), mesh, kind)
    step = jax.jit(
        run.step,
        in_shardings=(shardings, devices.batch_sharding(mesh)),
        out_shardings=(shardings, devices.replicated(mesh)),
    )
    return jax.device_put(state, shardings), shardings, step


@pytest.fixture(scope="session")
def small():
    """The functions of this file."""
    return types.SimpleNamespace(
        make_run=make_run, make_batch=make_batch, on_mesh=on_mesh, classes=CLASSES, pixels=PIXELS, statuses=STATUSES
    )


@pytest.fixture(scope="session")
def mesh():
    """All eight virtual devices."""
    return devices.make_mesh()


@pytest.fixture(scope="session")
def one_device():
    return devices.make_mesh(jax.devices()[:1])
