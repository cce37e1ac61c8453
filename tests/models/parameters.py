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


def kept(key, rate, shape):
    """What dropout multiplies an array by: 1 / (1 - rate) where it keeps a number, else 0."""
    return np.asarray(jax.random.bernoulli(key, 1 - rate, shape), np.float64) / (1 - rate)


def primitives(jaxpr):
    """The names of all primitives of a traced function, those of its inner functions too."""
    found = {eqn.primitive.name for eqn in jaxpr.eqns}
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)  # a closed one holds the other
            if hasattr(inner, "eqns"):
                found |= primitives(inner)
    return found
