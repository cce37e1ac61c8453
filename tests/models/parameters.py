"""Parameters of models, for their tests."""

import jax
import jax.numpy as jnp
import numpy as np


def shapes_of(model, size=224):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]


def random_params(model, size, seed=0):
    """Parameters without zeros or ones: the head starts at zero and would hide the rest."""
    shapes, rng = shapes_of(model, size), np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)


def in_float64(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
