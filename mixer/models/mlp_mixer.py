"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601) in Flax Linen.

    image -> patches -> `stem` -> n x MixerBlock -> LayerNorm -> mean over tokens -> `head`

Parameter names and shapes are those of the published checkpoints, whatever the options: rematerialisation, scan over
layers and the compute dtype change how the function is computed, never what it is made of.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mixer.models import layers


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
        mlp = partial(layers.MlpBlock, dropout=self.dropout, dtype=self.dtype)

        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        y = jnp.swapaxes(y, 1, 2)
        y = mlp(self.tokens_mlp_dim, name="token_mixing")(y, keys[0])
        y = jnp.swapaxes(y, 1, 2)
        x = x + layers.drop_path(y, keys[1], drop_path, self.stochastic_depth_rescale)

        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        y = mlp(self.channels_mlp_dim, name="channel_mixing")(y, keys[2])
        return x + layers.drop_path(y, keys[3], drop_path, self.stochastic_depth_rescale)


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
        x = layers.patch_tokens(images, self.patch_size, self.hidden_dim, self.dtype, name="stem")

        x = layers.apply_blocks(
            self, MixerBlock, "MixerBlock_", x, train, num_blocks=self.num_blocks,
            stochastic_depth=self.stochastic_depth, remat=self.remat, scan=self.scan,
            tokens_mlp_dim=self.tokens_mlp_dim, channels_mlp_dim=self.channels_mlp_dim, dropout=self.dropout,
            stochastic_depth_rescale=self.stochastic_depth_rescale, dtype=self.dtype,
        )  # fmt: skip

        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="pre_head_layer_norm")(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        return layers.head(x, self.num_classes, self.head_bias_init, self.dtype)

    def forward_macs(self, image_size: int) -> int:
        """Multiply-accumulates of one square image's forward pass; FLOPs are twice that, a training step's six times.

        Counts the matrix products alone (stem, both MLPs of each block, head); what normalisation, GELU and the skip
        connections add is below one per cent for the paper's models.
        """
        tokens = (image_size // self.patch_size) ** 2
        stem = 3 * self.patch_size**2 * self.hidden_dim * tokens
        token_mixing = 2 * tokens * self.tokens_mlp_dim * self.hidden_dim
        channel_mixing = 2 * self.hidden_dim * self.channels_mlp_dim * tokens
        return stem + self.num_blocks * (token_mixing + channel_mixing) + self.hidden_dim * self.num_classes
