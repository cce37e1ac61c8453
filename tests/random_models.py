"""Small Mixers with random parameters, and run folders with their checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from mixer import models
from mixer.config import checks, durations, recipe, run_folder
from mixer.training.checkpoint import Checkpoints
from mixer.training.step import TrainState

WIDTHS = {"num_blocks": 2, "hidden_dim": 16, "tokens_mlp_dim": 12, "channels_mlp_dim": 24}


def make_model(classes=5, patch=4, **widths):
    return models.create(f"Ti/{patch}", classes, **{**WIDTHS, **widths})


def make_params(model, pixels=8, seed=0):
    """Returns random NumPy arrays. Initial parameters would not do: some are all zeros or all ones."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes["params"])


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def nested(arrays):
    return traverse_util.unflatten_dict(arrays, sep="/")


def same(one, other):
    """Returns whether two trees have the same names and bit for bit the same float32 arrays."""
    one, other = flat(one), flat(other)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype == np.float32 and np.array_equal(one[name], other[name]) for name in one
    )


def logits(model, params, images):
    return np.asarray(jax.jit(model.apply)({"params": params}, images))


def make_state(params, ema_params=None, step=0):
    return TrainState(
        step=jnp.asarray(step, jnp.int32), params=params, opt_state=optax.trace(0.9).init(params),
        ema_params=ema_params, bad_images=jnp.zeros(7, jnp.int32), nonfinite_steps=jnp.int32(0),
        line_sums=jnp.zeros(5),
    )  # fmt: skip


def write_run(folder, states, class_names, **settings):
    """Makes a run's folder with a checkpoint for each state."""
    config = recipe.base()
    given = {"model.variant": "Ti/4", "input.image_size": 8, "input.eval_resize": 8, **settings}
    config.update_from_flattened_dict({**given, **{f"model.{name}": width for name, width in WIDTHS.items()}})
    folder.mkdir()
    checkpoints = Checkpoints(folder, len(states), 0, 0)
    for state in states:
        checkpoints.save(jax.tree.map(jnp.asarray, state), {})
    checkpoints.close()
    config = checks.checked(durations.one_unit_each(config, given))
    run_folder.save(config, class_names, folder)
    return folder
