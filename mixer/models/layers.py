"""Layers that the models share: patches, the MLP, stochastic depth, the stack of blocks, and the head."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

DotGeneral = Callable[..., Array]


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between them, along the last axis (Eq. 1 of the paper).

    `nn.gelu` is the tanh approximation, as in the published code. The paper does not say where dropout is applied;
    here it follows both dense layers, as in ViT's MLP.

    Attributes:
      mlp_dim: width of the hidden layer.
      dropout: probability of dropping a unit.
      dtype: of activations and products; parameters stay float32.
      dot_general: multiplies in place of `jax.lax.dot_general`, see `runtime/cpu.py`. It gets and returns float32 and
        rounds the factors to `dtype` itself; bias and GELU are computed in float32.
      kernel_init, bias_init: of both dense layers.
      starts_at_zero: whether the second kernel is zero at first, and so the output.
      out_dim: width of the output; that of the input if not given.
    """

    mlp_dim: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    dot_general: DotGeneral | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros
    starts_at_zero: bool = False
    out_dim: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch positions width"], key: Key[Array, ""] | None) -> Array:
        """Applies the MLP. In evaluation `key` is None and nothing is dropped."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        dense = partial(
            nn.Dense, dtype=self.dtype if self.dot_general is None else jnp.float32, bias_init=self.bias_init,
            dot_general=self.dot_general,
        )  # fmt: skip
        y = dense(self.mlp_dim, kernel_init=self.kernel_init)(x)
        y = nn.Dropout(self.dropout, deterministic=key is None)(nn.gelu(y), rng=keys[0])
        second_init = nn.initializers.zeros if self.starts_at_zero else self.kernel_init
        y = dense(self.out_dim or x.shape[-1], kernel_init=second_init)(y)
        dropped: Array = nn.Dropout(self.dropout, deterministic=key is None)(y, rng=keys[1])
        return dropped.astype(self.dtype)


def stochastic_depth(
    y: Float[Array, "batch tokens channels"],
    key: Key[Array, ""] | None,
    drop_rate: Float[Array, ""] | None,
    rescale: bool,
) -> Float[Array, "batch tokens channels"]:
    """Drops the whole branch `y` for some examples of the batch (stochastic depth, arXiv 1603.09382).

    Args:
      y: output of the branch, before the skip connection.
      key: None in evaluation, when `y` is returned as it is.
      drop_rate: probability of dropping; None without stochastic depth.
      rescale: divide the kept branches by 1 - drop_rate.
    """
    if key is None or drop_rate is None:
        return y
    keep = jax.random.bernoulli(key, 1 - drop_rate, (y.shape[0], 1, 1)).astype(jnp.float32)
    if rescale:
        keep /= 1 - drop_rate  # in bfloat16 its rounding would change every kept branch by up to 0.6%
    return (y * keep).astype(y.dtype)


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
    own_fields: Sequence[Mapping[str, Any]] | None = None,
    **fields: Any,
) -> Float[Array, "batch tokens_out channels"]:
    """Applies the blocks in order. Call it in the compact method of their parent.

    Random keys and drop rates of all blocks are made before the first block, so neither `remat` nor `scan` changes
    what is drawn.

    Args:
      parent: the module that owns the blocks.
      block: the blocks' class. It is called as block(**fields)(x, key, drop_rate), where key is None in evaluation and
        drop_rate is None without stochastic depth.
      prefix: the blocks are named `prefix`0, `prefix`1, ...
      x: input of the first block.
      train: whether dropout and stochastic depth are active.
      num_blocks: how many.
      stochastic_depth: probability of dropping a branch in the last block; it grows linearly from 0 in the first.
      remat: recompute each block's activations in the backward pass instead of storing them.
      scan: compile one block and loop over it; the parameters are stacked inside the step.
      own_fields: attributes that differ from block to block, for each of them; not with `scan`.
      **fields: attributes of all blocks; `dropout` is one of them.
    """
    keys = drop_rates = None
    if train and (fields["dropout"] or stochastic_depth):
        keys = jax.random.split(parent.make_rng("dropout"), num_blocks)
    if stochastic_depth:
        drop_rates = jnp.linspace(0.0, stochastic_depth, num_blocks, dtype=jnp.float32)
    make = partial(nn.remat(block) if remat else block, **fields)
    names = [f"{prefix}{i}" for i in range(num_blocks)]

    if scan and not parent.is_initializing():
        params = [parent.variables["params"][name] for name in names]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

        def body(x: Array, layer: tuple[Any, ...]) -> tuple[Any, None]:
            layer_params, key, drop_rate = layer
            return make(parent=None).apply({"params": layer_params}, x, key, drop_rate), None

        return jax.lax.scan(body, x, (stacked, keys, drop_rates))[0]

    for i, name in enumerate(names):
        key, drop_rate = (None if of_all is None else of_all[i] for of_all in (keys, drop_rates))
        x = make(name=name, **(own_fields[i] if own_fields else {}))(x, key, drop_rate)
    return x


def nearest_multiple(number: int, of: int) -> int:
    """Returns the multiple of `of` that is nearest to `number`, at least `of` itself."""
    return max(round(number / of), 1) * of


def check_patches(height: int, width: int, patch_size: int) -> None:
    """Checks that patches of `patch_size` pixels tile an image.

    Raises:
      ValueError: they do not; names the nearest size that they tile.
    """
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"image size {height}x{width} is not a multiple of the patch size {patch_size}; the nearest that "
            f"is: {nearest_multiple(height, patch_size)}x{nearest_multiple(width, patch_size)}"
        )


def patch_tokens(
    images: Float[Array, "batch height width 3"],
    patch_size: int,
    hidden_dim: int,
    dtype: DTypeLike,
    name: str,
    dot_general: DotGeneral | None = None,
) -> Float[Array, "batch tokens channels"]:
    """Projects each patch to a token, in row order. Call it in the compact method of the model.

    It is a convolution, which a TPU computes faster than a product of flattened patches: they would have to be copied.
    With `dot_general`, see `MlpBlock`, it is that product.

    Raises:
      ValueError: the patches do not tile the image.
    """
    check_patches(images.shape[1], images.shape[2], patch_size)
    patch = (patch_size, patch_size)
    convolve = None if dot_general is None else partial(_patch_product, dot_general)
    x = nn.Conv(
        hidden_dim, patch, strides=patch, padding="VALID", dtype=dtype if dot_general is None else jnp.float32,
        conv_general_dilated=convolve, name=name,
    )(images)  # fmt: skip
    return x.reshape(x.shape[0], -1, hidden_dim).astype(dtype)


def _patch_product(
    dot_general: DotGeneral,
    images: Float[Array, "batch height width 3"],
    kernel: Float[Array, "side side 3 channels"],
    *_: Any,
    **__: Any,
) -> Float[Array, "batch rows columns channels"]:
    """Convolves with a stride of the kernel's size, as a product. It serves as `conv_general_dilated` of `nn.Conv`."""
    batch, height, width, colors = images.shape
    side, channels = kernel.shape[0], kernel.shape[-1]
    x = images.reshape(batch, height // side, side, width // side, side, colors)
    x = jnp.swapaxes(x, 2, 3).reshape(batch, -1, side * side * colors)
    y = dot_general(x, kernel.reshape(-1, channels), (((2,), (0,)), ((), ())))
    return y.reshape(batch, height // side, width // side, channels)


def head(
    x: Float[Array, "batch channels"], num_classes: int, bias: float, dtype: DTypeLike
) -> Float[Array, "batch outputs"]:
    """Computes float32 logits. Call it in the compact method of a model.

    With dtype bfloat16 the factors of the product, and of its gradients, are rounded to bfloat16 and summed in float32.
    TPUs do this to float32 products by default; on a GPU it is much faster than float32.

    Args:
      x: the pre-logits.
      num_classes: width of the head; with 0 the result is `x`.
      bias: initial value of every logit.
      dtype: float32 or bfloat16.
    """
    if num_classes == 0:
        return x
    rounded = jnp.dtype(dtype) == jnp.bfloat16
    return nn.Dense(
        num_classes, kernel_init=nn.initializers.zeros, bias_init=nn.initializers.constant(bias), name="head",
        dot_general=_dot_of_rounded if rounded else jax.lax.dot_general,
    )(x)  # fmt: skip


def _dot_of_rounded(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """`_product_of_rounded` with the signature of `jax.lax.dot_general`."""
    return _product_of_rounded(x, kernel)


@jax.custom_vjp
def _product_of_rounded(x: Float[Array, "m k"], y: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """Returns the product of factors that are rounded to bfloat16. It is float32, and so are the sums in it."""
    return jnp.matmul(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _product_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product_of_rounded(x, y), (x, y)


def _product_backward(factors: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, y = factors
    return _product_of_rounded(gradient, y.T), _product_of_rounded(x.T, gradient)


_product_of_rounded.defvjp(_product_forward, _product_backward)
