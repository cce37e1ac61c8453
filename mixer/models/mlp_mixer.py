"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601) in Flax Linen.

    image -> patches -> `stem` -> n x MixerBlock -> LayerNorm -> mean over tokens -> `head`

Parameter names and shapes are those of the published checkpoints, whatever the options: rematerialisation, scan over
layers and the compute dtype change how the function is computed, never what it is made of.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key


@dataclasses.dataclass(frozen=True)
class Variant:
    """Widths of one row of the paper's Table 1; tokens_mlp_dim is its D_S, channels_mlp_dim its D_C."""

    num_blocks: int
    hidden_dim: int
    tokens_mlp_dim: int
    channels_mlp_dim: int


def _variant(num_blocks: int, hidden_dim: int) -> Variant:
    """The ratios shared by every row of Table 1: D_S = C/2 and D_C = 4C."""
    return Variant(num_blocks, hidden_dim, hidden_dim // 2, 4 * hidden_dim)


VARIANTS = {
    "Ti": _variant(4, 128),  # not in the paper: for tests and the quickstart
    "S": _variant(8, 512),
    "B": _variant(12, 768),
    "L": _variant(24, 1024),
    "H": _variant(32, 1280),
}


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between them, along the last axis (Eq. 1 of the paper).

    `nn.gelu` is the tanh approximation, as in the published code. Where the paper's dropout sits is not published; here
    it follows both dense layers, as in ViT's MLP.
    """

    mlp_dim: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch rows width"], key: Key[Array, ""] | None) -> Array:
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        y = nn.Dense(self.mlp_dim, dtype=self.dtype)(x)
        y = nn.Dropout(self.dropout, deterministic=key is None)(nn.gelu(y), rng=keys[0])
        y = nn.Dense(x.shape[-1], dtype=self.dtype)(y)
        return nn.Dropout(self.dropout, deterministic=key is None)(y, rng=keys[1])


class MixerBlock(nn.Module):
    """Mixes the tokens of each channel, then the channels of each token, each with a skip connection.

    Attributes:
      tokens_mlp_dim: D_S, hidden width of the MLP across tokens.
      channels_mlp_dim: D_C, hidden width of the MLP across channels.
      dropout: probability of dropping a unit after each dense layer.
      stochastic_depth_rescale: divide kept branches by 1 - p, so that the expectation in training equals evaluation.
      dtype: of activations and matrix products; parameters and normalisation statistics stay float32.
    """

    tokens_mlp_dim: int
    channels_mlp_dim: int
    dropout: float = 0.0
    stochastic_depth_rescale: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens channels"],
        key: Key[Array, ""] | None,
        drop_path: Float[Array, ""] | None,
    ) -> Float[Array, "batch tokens channels"]:
        """Applies the block; key is None in evaluation, drop_path (a probability) is None without stochastic depth."""
        keys = (None,) * 4 if key is None else tuple(jax.random.split(key, 4))
        mlp = partial(MlpBlock, dropout=self.dropout, dtype=self.dtype)

        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        y = jnp.swapaxes(y, 1, 2)
        y = mlp(self.tokens_mlp_dim, name="token_mixing")(y, keys[0])
        y = jnp.swapaxes(y, 1, 2)
        x = x + self._drop_path(y, keys[1], drop_path)

        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        y = mlp(self.channels_mlp_dim, name="channel_mixing")(y, keys[2])
        return x + self._drop_path(y, keys[3], drop_path)

    def _drop_path(self, y: Array, key: Key[Array, ""] | None, rate: Float[Array, ""] | None) -> Array:
        """Drops a whole branch, example by example (stochastic depth, arXiv 1603.09382)."""
        if key is None or rate is None:
            return y
        keep = jax.random.bernoulli(key, 1 - rate, (y.shape[0], 1, 1)).astype(y.dtype)
        if self.stochastic_depth_rescale:
            keep /= (1 - rate).astype(y.dtype)
        return y * keep


class MlpMixer(nn.Module):
    """MLP-Mixer.

    Attributes:
      num_classes: width of the head; 0 for none, the output is then the pre-logits.
      patch_size: pixels of a patch's side; must divide the image's height and width.
      num_blocks, hidden_dim, tokens_mlp_dim, channels_mlp_dim: n, C, D_S and D_C of Table 1.
      dropout: see `MlpBlock`.
      stochastic_depth: probability of dropping a branch in the last block; it grows linearly from 0 in the first
        (Appendix B), the same for both branches of a block.
      stochastic_depth_rescale: False is the form of the published code, which does not rescale kept branches.
      head_bias_init: every logit's starting value; about -ln(num_classes) suits sigmoid cross-entropy.
      dtype: bfloat16 or float32, of activations and matrix products. Parameters, normalisation statistics, the mean
        over tokens and the logits are float32 in either case.
      remat: recompute each block's activations in the backward pass instead of keeping them.
      scan: compile one block and loop over it. Faster to compile; the parameters are stacked inside the step, so the
        parameter tree is that of the plain model. Loss and gradients with either option agree with the plain model's
        within 1e-5 of their norm in float32 and 4% in bfloat16, where XLA rounds at other places.
    """

    num_classes: int
    patch_size: int
    num_blocks: int
    hidden_dim: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    stochastic_depth_rescale: bool = True
    head_bias_init: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Maps images in [-1, 1] to float32 logits; `train` needs rngs={"dropout": key} where something is dropped.

        Raises:
          ValueError: the patch does not divide the image.
        """
        height, width = images.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the patch size {self.patch_size}; the nearest that "
                f"is: {_nearest(height, self.patch_size)}x{_nearest(width, self.patch_size)}"
            )
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(self.hidden_dim, patch, strides=patch, padding="VALID", dtype=self.dtype, name="stem")(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])  # tokens row by row

        x = self._blocks(x, train)

        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="pre_head_layer_norm")(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        if self.num_classes == 0:
            return x
        bias_init = nn.initializers.constant(self.head_bias_init)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, bias_init=bias_init, name="head")(x)

    def _blocks(self, x: Float[Array, "batch tokens channels"], train: bool) -> Array:
        """The n blocks. Keys and probabilities are made here, so that neither remat nor scan can change a draw."""
        keys = rates = None
        if train and (self.dropout or self.stochastic_depth):
            keys = jax.random.split(self.make_rng("dropout"), self.num_blocks)
        if self.stochastic_depth:
            rates = jnp.linspace(0.0, self.stochastic_depth, self.num_blocks, dtype=jnp.float32)
        block = partial(
            nn.remat(MixerBlock) if self.remat else MixerBlock,
            tokens_mlp_dim=self.tokens_mlp_dim,
            channels_mlp_dim=self.channels_mlp_dim,
            dropout=self.dropout,
            stochastic_depth_rescale=self.stochastic_depth_rescale,
            dtype=self.dtype,
        )
        names = [f"MixerBlock_{i}" for i in range(self.num_blocks)]

        if self.scan and not self.is_initializing():
            params = [self.variables["params"][name] for name in names]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

            def body(x: Array, layer: tuple) -> tuple[Any, None]:
                layer_params, key, rate = layer
                return block(parent=None).apply({"params": layer_params}, x, key, rate), None

            return jax.lax.scan(body, x, (stacked, keys, rates))[0]

        for i, name in enumerate(names):
            key, rate = (None if draws is None else draws[i] for draws in (keys, rates))
            x = block(name=name)(x, key, rate)
        return x


def _nearest(size: int, patch_size: int) -> int:
    return max(round(size / patch_size), 1) * patch_size


def forward_macs(model: MlpMixer, image_size: int) -> int:
    """Multiply-accumulates of one square image's forward pass; a FLOP count is twice that, a training step's six times.

    Counts the matrix products alone (stem, both MLPs of each block, head); what normalisation, GELU and the skip
    connections add is below one per cent for the paper's models.
    """
    tokens = (image_size // model.patch_size) ** 2
    channels = model.hidden_dim
    stem = 3 * model.patch_size**2 * channels * tokens
    token_mixing = 2 * tokens * model.tokens_mlp_dim * channels
    channel_mixing = 2 * channels * model.channels_mlp_dim * tokens
    return stem + model.num_blocks * (token_mixing + channel_mixing) + channels * model.num_classes
