"""What the models share, where no model's own test looks closely enough."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.models import layers


class Head(nn.Module):
    dtype: object

    @nn.compact
    def __call__(self, x):
        return layers.head(x, 5, -2.0, self.dtype)


def head_and_gradients(dtype, x, kernel, weights):
    """Logits, and the gradients of their weighted sum with respect to x and the parameters."""
    params = {"head": {"kernel": kernel, "bias": jnp.zeros(5)}}

    def weighed(x, params):
        logits = Head(dtype).apply({"params": params}, x)
        return jnp.sum(logits * weights), logits

    (_, logits), gradients = jax.value_and_grad(weighed, (0, 1), has_aux=True)(x, params)
    return logits, gradients[0], gradients[1]["head"]["kernel"], gradients[1]["head"]["bias"]


def rounded(values):
    return np.asarray(jnp.asarray(values, jnp.bfloat16), np.float64)


@pytest.mark.parametrize(("dtype", "seen"), [(jnp.bfloat16, rounded), (jnp.float32, np.float64)], ids=["bf16", "f32"])
def test_the_head_adds_up_in_float32_what_it_multiplies_in_its_dtype(dtype, seen):
    rng = np.random.default_rng(0)
    x, kernel, weights = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(6, 700), (700, 5), (6, 5)])
    logits, x_gradient, kernel_gradient, bias_gradient = head_and_gradients(dtype, x, kernel, weights)
    assert {a.dtype for a in (logits, x_gradient, kernel_gradient, bias_gradient)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits, seen(x) @ seen(kernel), atol=1e-4)
    np.testing.assert_allclose(x_gradient, seen(weights) @ seen(kernel).T, atol=1e-4)
    np.testing.assert_allclose(kernel_gradient, seen(x).T @ seen(weights), atol=1e-4)
    np.testing.assert_allclose(bias_gradient, np.sum(weights, 0), atol=1e-5)
