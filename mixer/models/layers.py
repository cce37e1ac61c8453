"""What the models share: the patches, the MLP, stochastic depth and stack of blocks of Mixer and ViT, and the head."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between them, along the last axis (Eq. 1 of the paper).

    `nn.gelu` is the tanh approximation, as in the published code. Where the paper's dropout sits is not published; here
    it follows both dense layers, as in ViT's MLP.
    """

    mlp_dim: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "batch rows width"], key: Key[Array, ""] | None) -> Array:
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        dense = partial(
            nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init, bias_init=self.bias_init, dot_general=_dense_dot
        )
        y = dense(self.mlp_dim)(x)
        y = nn.Dropout(self.dropout, deterministic=key is None)(nn.gelu(y), rng=keys[0])
        y = dense(x.shape[-1])(y)
        return nn.Dropout(self.dropout, deterministic=key is None)(y, rng=keys[1])


def _dense_dot(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """The product of `nn.Dense` in the form that it asks for it."""
    return _dense_product(x, kernel)


@jax.custom_jvp
def _dense_product(x: Float[Array, "*batch k"], kernel: Float[Array, "k n"]) -> Float[Array, "*batch n"]:
    """x @ kernel, whose gradient for the kernel is multiplied as it is fastest on a CPU (docs/performance.md)."""
    return jnp.matmul(x, kernel)


@_dense_product.defjvp
def _dense_product_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    # Nothing is computed here, but JAX takes it backwards: the gradient is g.T @ x, to be transposed only when it is
    # there. Without a barrier XLA makes that x.T @ g again, and transposes the hidden layer or multiplies slowly.
    dkernel = jax.lax.platform_dependent(
        dkernel, cpu=lambda d: jax.lax.optimization_barrier(d.T).T, default=lambda d: d
    )  # fmt: skip
    return _dense_product(x, kernel), _dense_product(dx, kernel) + _dense_product(x, dkernel)


def drop_path(
    y: Float[Array, "batch tokens channels"], key: Key[Array, ""] | None, rate: Float[Array, ""] | None, rescale: bool
) -> Float[Array, "batch tokens channels"]:
    """Drops a whole branch, example by example (stochastic depth, arXiv 1603.09382)."""
    if key is None or rate is None:
        return y
    keep = jax.random.bernoulli(key, 1 - rate, (y.shape[0], 1, 1)).astype(y.dtype)
    if rescale:
        keep /= (1 - rate).astype(y.dtype)
    return y * keep


def apply_blocks(
    parent: nn.Module,
    block: type[nn.Module],
    prefix: str,
    x: Float[Array, "batch tokens channels"],
    train: bool,
    *,
    num_blocks: int,
    stochastic_depth: float,
    remat: bool,
    scan: bool,
    **fields: Any,
) -> Float[Array, "batch tokens channels"]:
    """Applies blocks one after the other; to be called in the compact method of their parent.

    Keys and probabilities are made here, before the first block, so that neither remat nor scan can change a draw.

    Args:
      parent: the module whose parameters `prefix`0, `prefix`1, ... the blocks' are.
      block: called as block(**fields)(x, key, drop_path): key is None in evaluation, drop_path (a probability) without
        stochastic depth.
      prefix: of the blocks' names.
      x: what the first block gets.
      train: whether anything is dropped.
      num_blocks: how many.
      stochastic_depth: probability of dropping a branch in the last block; linear from 0 in the first.
      remat: recompute each block's activations in the backward pass instead of keeping them.
      scan: compile one block and loop over it, its parameters stacked inside the step.
      **fields: of each block; `dropout` is among them.
    """
    keys = rates = None
    if train and (fields["dropout"] or stochastic_depth):
        keys = jax.random.split(parent.make_rng("dropout"), num_blocks)
    if stochastic_depth:
        rates = jnp.linspace(0.0, stochastic_depth, num_blocks, dtype=jnp.float32)
    make = partial(nn.remat(block) if remat else block, **fields)
    names = [f"{prefix}{i}" for i in range(num_blocks)]

    if scan and not parent.is_initializing():
        params = [parent.variables["params"][name] for name in names]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

        def body(x: Array, layer: tuple) -> tuple[Any, None]:
            layer_params, key, rate = layer
            return make(parent=None).apply({"params": layer_params}, x, key, rate), None

        return jax.lax.scan(body, x, (stacked, keys, rates))[0]

    for i, name in enumerate(names):
        key, rate = (None if draws is None else draws[i] for draws in (keys, rates))
        x = make(name=name)(x, key, rate)
    return x


def patch_tokens(
    images: Float[Array, "batch height width 3"], patch_size: int, hidden_dim: int, dtype: DTypeLike, name: str
) -> Float[Array, "batch tokens channels"]:
    """Projects each patch to a token, row by row; to be called in the compact method of the model.

    Raises:
      ValueError: the patch does not divide the image.
    """
    height, width = images.shape[1:3]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"image size {height}x{width} is not a multiple of the patch size {patch_size}; the nearest that "
            f"is: {_nearest(height, patch_size)}x{_nearest(width, patch_size)}"
        )
    patch = (patch_size, patch_size)
    x = nn.Conv(hidden_dim, patch, strides=patch, padding="VALID", dtype=dtype, name=name)(images)
    return x.reshape(x.shape[0], -1, hidden_dim)


def head(
    x: Float[Array, "batch channels"], num_classes: int, bias: float, dtype: DTypeLike
) -> Float[Array, "batch outputs"]:
    """Float32 logits that begin as `bias`; x itself without classes. To be called in a model's compact method.

    With dtype bfloat16 the product and its gradients round what they multiply, and add it up in float32: what a TPU
    does with float32 by itself, and a GPU in a fraction of the time.
    """
    if num_classes == 0:
        return x
    rounded = jnp.dtype(dtype) == jnp.bfloat16
    return nn.Dense(
        num_classes, kernel_init=nn.initializers.zeros, bias_init=nn.initializers.constant(bias), name="head",
        dot_general=_rounded_dot if rounded else jax.lax.dot_general,
    )(x)  # fmt: skip


def _rounded_dot(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """The product of two matrices in the form that nn.Dense asks for it."""
    return _rounded_product(x, kernel)


@jax.custom_vjp
def _rounded_product(x: Float[Array, "m k"], y: Float[Array, "k n"]) -> Float[Array, "m n"]:
    return jnp.matmul(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _product_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rounded_product(x, y), (x, y)


def _product_backward(operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, y = operands
    return _rounded_product(gradient, y.T), _rounded_product(x.T, gradient)


_rounded_product.defvjp(_product_forward, _product_backward)


def _nearest(size: int, patch_size: int) -> int:
    return max(round(size / patch_size), 1) * patch_size
