"""How far the mean of a LayerNorm's input is from zero, in standard deviations: a warning of rounding.

Flax computes the variance as E[x^2] - E[x]^2 in float32, which loses it where the mean is large. Of 2,000 rows of 512
numbers, the largest error of an output is 1e-6 at a ratio of 1, 0.005 at 100, 0.3 at 1,000 and 4,000 at 3,000 (flax
0.12.8; `tests/training/test_layer_norms.py`). Models that this project trained have ratios of about 1.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mixer.models import Model
from mixer.runtime import cpu, devices
from mixer.training.step import Batch, normalize

_log = logging.getLogger(__name__)

METRIC = "layer_norm_ratio"
_LARGEST = 100.0
_IMAGES = 8  # of each device, if it has so many, and up to about twice as many


@functools.cache
def make_ratio(model: Model, mesh: Mesh) -> Callable[[Any, Batch], jax.Array]:
    """Makes the jitted function from (params, batch) to the largest |mean| / std of any LayerNorm's input.

    0 for a model without LayerNorm. An input that is not finite counts as infinite. Of a large batch only some images
    count, about as many from each device, so it takes little time and memory.
    """
    # What is seen within a loop or a recomputation cannot leave it. The options change no result.
    options: dict[str, Any] = {name: False for name in ("scan", "remat") if getattr(model, name, False)}
    plain = model.clone(**options)

    def ratio(params: Any, batch: Batch) -> jax.Array:
        step = max(len(batch["image"]) // (mesh.size * _IMAGES), 1)
        found = [jnp.zeros(())]

        def look(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, nn.LayerNorm) and context.method_name == "__call__":
                x = jnp.asarray(args[0], jnp.float32)
                mean, std = jnp.mean(x, -1), jnp.std(x, -1)
                here = jnp.abs(mean) / jnp.sqrt(std**2 + context.module.epsilon)
                found.append(jnp.max(jnp.where(jnp.isnan(here), jnp.inf, here)))
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            plain.apply({"params": params}, normalize(batch["image"][::step]))
        return jnp.max(jnp.stack(found))

    return jax.jit(ratio, out_shardings=devices.replicated(mesh), compiler_options=cpu.options(model, mesh))


def measured(model: Model, mesh: Mesh, params: Any, batch: Batch) -> dict[str, float]:
    """Returns the ratio of a batch, as a metric, and warns if it is above 100; nothing without LayerNorms."""
    ratio = float(make_ratio(model, mesh)(params, batch))
    if ratio > _LARGEST:
        _log.warning(
            "the input of a LayerNorm has a mean of %.0f standard deviations: above %.0f, float32 loses its variance; "
            "a lower optimizer.learning_rate or more weight decay keeps it smaller", ratio, _LARGEST,
        )  # fmt: skip
    return {METRIC: ratio} if ratio else {}
