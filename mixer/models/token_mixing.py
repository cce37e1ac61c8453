"""Token mixing: the paper's one MLP for all channels, and the four ideas of its Appendix A.1 that did not help.

`TOKEN_MIXINGS` has the MLPs. Where the appendix is silent, this is what was chosen:

    untied    "C separate MLPs with independent weights": here G of them, one for each group of C/G neighbouring
              channels. G = C is the paper's.
    grouped   "concatenating G neighbouring columns in X", S x C becomes (S G) x (C/G). D_S stays as it is, and the
              output is reshaped back to S x C.
    views     the same after "G linear functions" from C to C/G channels. They have no bias, since that of the LayerNorm
              before them does as much, and the output is not mapped back: it is reshaped, as for grouped.
    pyramid   the MLP maps "from S input tokens to S' < S output tokens". The tokens are a square grid before and after,
              and the skip connection is the mean over the patches that become one. Goes with each of the above.

In every case, the parameters of a block are MixerBlock_i/token_mixing/Dense_{0,1}; S_i tokens come in, S_{i+1} leave:

    shared    kernels [S_i, D_S] and [D_S, S_{i+1}]
    untied    kernels [G, S_i, D_S] and [G, D_S, S_{i+1}], biases [G, D_S] and [G, S_{i+1}]
    grouped   kernels [G S_i, D_S] and [D_S, G S_{i+1}]; row g S_i + t is token t of the group's channel g
    views     as grouped, and MixerBlock_i/token_views/kernel [C, C], whose column j G + g is feature j of view g

The captured output of token_mixing is [batch, C, S_{i+1}] for shared, [G, batch, C/G, S_{i+1}] for untied, and
[batch, C/G, G S_{i+1}] for the others.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mixer.models import layers

# From (input, key or None, G, tokens of the output, the MLP's class with its attributes) to the output. They are called
# in the compact method of a block.
TokenMixing = Callable[
    [Float[Array, "batch tokens channels"], Key[Array, ""] | None, int, int, "partial[layers.MlpBlock]"],
    Float[Array, "batch tokens_out channels"],
]


def shared(x: Array, key: Array | None, groups: int, tokens_out: int, mlp: "partial[layers.MlpBlock]") -> Array:
    """Mixes the tokens of every channel by the same MLP (Eq. 1 of the paper). `groups` is 1."""
    y = mlp(out_dim=tokens_out, name="token_mixing")(jnp.swapaxes(x, 1, 2), key)
    return jnp.swapaxes(y, 1, 2)


def untied(x: Array, key: Array | None, groups: int, tokens_out: int, mlp: "partial[layers.MlpBlock]") -> Array:
    """Mixes the tokens of each group of neighbouring channels by an MLP of its own."""
    batch, tokens, channels = x.shape
    separate = nn.vmap(
        mlp.func, in_axes=(1, 0), out_axes=1, variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
    )  # fmt: skip
    keys = None if key is None else jax.random.split(key, groups)
    y = jnp.swapaxes(x, 1, 2).reshape(batch, groups, channels // groups, tokens)
    y = separate(*mlp.args, **mlp.keywords, out_dim=tokens_out, name="token_mixing")(y, keys)
    return jnp.swapaxes(y.reshape(batch, channels, tokens_out), 1, 2)


def grouped(x: Array, key: Array | None, groups: int, tokens_out: int, mlp: "partial[layers.MlpBlock]") -> Array:
    """Mixes the tokens of G neighbouring channels at once, which are concatenated to one vector."""
    batch, tokens, channels = x.shape
    y = jnp.swapaxes(x, 1, 2).reshape(batch, channels // groups, groups * tokens)
    y = mlp(out_dim=groups * tokens_out, name="token_mixing")(y, key)
    return jnp.swapaxes(y.reshape(batch, channels, tokens_out), 1, 2)


def views(x: Array, key: Array | None, groups: int, tokens_out: int, mlp: "partial[layers.MlpBlock]") -> Array:
    """Mixes the tokens of G learned views of the channels at once. All their linear functions are one product."""
    dtype, dot_general = mlp.keywords["dtype"], mlp.keywords["dot_general"]
    of_views = dtype if dot_general is None else jnp.float32  # see `layers.MlpBlock`
    y = nn.Dense(x.shape[-1], use_bias=False, dtype=of_views, dot_general=dot_general, name="token_views")(x)
    y = y.astype(dtype)
    return grouped(y, key, groups, tokens_out, mlp)


TOKEN_MIXINGS: dict[str, TokenMixing] = {"shared": shared, "untied": untied, "grouped": grouped, "views": views}


def check(kind: str, groups: int, hidden_dim: int) -> None:
    """Checks a kind of token mixing and its number of groups.

    Raises:
      ValueError: there is no such kind, or it cannot have so many groups.
    """
    if kind not in TOKEN_MIXINGS:
        raise ValueError(f"token_mixing={kind!r}: there are {', '.join(TOKEN_MIXINGS)}")
    if kind == "shared" and groups != 1:
        raise ValueError(f"token_groups={groups} would not be read with token_mixing=shared; leave it at 1")
    if groups < 1 or hidden_dim % groups:
        raise ValueError(f"token_groups={groups} does not divide the {hidden_dim} channels of hidden_dim")


def tokens_after(tokens: int, num_blocks: int, pyramid: tuple[int, ...] | None) -> tuple[int, ...]:
    """Returns the number of tokens after each block.

    Args:
      tokens: of the image.
      num_blocks: of the model.
      pyramid: the result that is asked for; None if the number stays the same.

    Raises:
      ValueError: a block cannot reach its number from that before.
    """
    if pyramid is None:
        return (tokens,) * num_blocks
    if len(pyramid) != num_blocks:
        raise ValueError(
            f"pyramid={pyramid} has {len(pyramid)} numbers for {num_blocks} blocks: give the tokens after each block"
        )
    before = tokens
    for block, after in enumerate(pyramid):
        side = math.isqrt(before)
        possible = [count**2 for count in range(side, 0, -1) if side % count == 0] if side**2 == before else [before]
        if after not in possible:
            raise ValueError(
                f"pyramid={pyramid}: MixerBlock_{block} cannot make {after} tokens of {before}, which can become "
                f"{', '.join(map(str, possible))}"
            )
        before = after
    return pyramid


def pooled(x: Float[Array, "batch tokens channels"], tokens_out: int) -> Float[Array, "batch tokens_out channels"]:
    """Returns the means over squares of tokens: a block's skip connection. Without a reduction, this is `x` itself."""
    batch, tokens, channels = x.shape
    if tokens_out == tokens:
        return x
    side, square = math.isqrt(tokens_out), math.isqrt(tokens // tokens_out)
    x = x.reshape(batch, side, square, side, square, channels).mean(axis=(2, 4))
    return x.reshape(batch, tokens_out, channels)


def described(kind: str, groups: int, pyramid: tuple[int, ...] | None) -> str:
    """Returns the token mixing in words, such as "untied token mixing x4"; empty for the paper's model."""
    mixing = "" if kind == "shared" else f"{kind} token mixing x{groups}"
    steps = "" if pyramid is None else f"pyramid {'-'.join(map(str, dict.fromkeys(pyramid)))}"
    return ", ".join(filter(None, (mixing, steps)))
