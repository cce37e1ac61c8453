"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), to compare Mixer with.

    image -> patches -> `embedding` -> class token, positions -> n x EncoderBlock -> LayerNorm -> token 0 -> `head`

The model has a class token and a linear head. Parameter names and shapes are those of the published checkpoints. Every
module's output can be captured, as `mlp_mixer.py` shows, but for those of blocks in a scan.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mixer.models import layers, variants


@dataclasses.dataclass(frozen=True)
class Variant:
    """Widths of one row of ViT's Table 1."""

    num_blocks: int
    hidden_dim: int
    channels_mlp_dim: int
    num_heads: int


VARIANTS = {
    "Ti": Variant(12, 192, 768, 3),  # Ti and S are from DeiT (arXiv 2012.12877); ViT's published code has them too
    "S": Variant(12, 384, 1536, 6),
    "B": Variant(12, 768, 3072, 12),
    "L": Variant(24, 1024, 4096, 16),
    "H": Variant(32, 1280, 5120, 16),
}

NAMES = f"ViT-{', ViT-'.join(VARIANTS)}, a slash and the patch size in pixels, such as ViT-B/16"


def parse(name: str) -> dict[str, Any] | None:
    """Returns the attributes of the variant that is called `name`, such as "ViT-B/16"; None for any other name."""
    return variants.parse_patched(name, "ViT-", VARIANTS)


def name_of(model: Any) -> str:
    """Returns a ViT's name, such as "ViT-B/16"."""
    names = [field.name for field in dataclasses.fields(Variant)]
    return f"ViT-{variants.patched_name(model, VARIANTS, names)}"


class EncoderBlock(nn.Module):
    """Self-attention among the tokens, then an MLP on each token, each with a skip connection (Eq. 2 and 3).

    Attributes:
      num_heads: heads of the attention.
      channels_mlp_dim: hidden width of the MLP.
      dropout, stochastic_depth_rescale, dtype, dot_general: as in `mlp_mixer.MixerBlock`.
    """

    num_heads: int
    channels_mlp_dim: int
    dropout: float = 0.0
    stochastic_depth_rescale: bool = True
    dtype: DTypeLike = jnp.float32
    dot_general: layers.DotGeneral | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens channels"],
        key: Key[Array, ""] | None,
        drop_rate: Float[Array, ""] | None,
    ) -> Float[Array, "batch tokens channels"]:
        """Applies the block. key is None in evaluation; drop_rate is None without stochastic depth."""
        keys = (None,) * 4 if key is None else tuple(jax.random.split(key, 4))
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="LayerNorm_0")(x)
        y = nn.MultiHeadDotProductAttention(
            self.num_heads, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), deterministic=True,
            name="MultiHeadDotProductAttention_1",
        )(y)  # fmt: skip
        y = nn.Dropout(self.dropout, deterministic=key is None)(y, rng=keys[0])
        x = x + layers.stochastic_depth(y, keys[1], drop_rate, self.stochastic_depth_rescale)

        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="LayerNorm_2")(x)
        y = layers.MlpBlock(
            self.channels_mlp_dim, self.dropout, self.dtype, self.dot_general, name="MlpBlock_3",
            kernel_init=nn.initializers.xavier_uniform(), bias_init=nn.initializers.normal(1e-6),
        )(y, keys[2])  # fmt: skip
        return x + layers.stochastic_depth(y, keys[3], drop_rate, self.stochastic_depth_rescale)


class Encoder(nn.Module):
    """Position embedding, the blocks, and the last normalisation. Its attributes are those of `VisionTransformer`."""

    num_blocks: int
    num_heads: int
    channels_mlp_dim: int
    dropout: float
    stochastic_depth: float
    stochastic_depth_rescale: bool
    dtype: DTypeLike
    remat: bool
    scan: bool
    dot_general: layers.DotGeneral | None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens channels"], train: bool) -> Float[Array, "batch tokens channels"]:
        x = PositionEmbedding(name="posembed_input")(x)
        key = self.make_rng("dropout") if train and self.dropout else None
        x = nn.Dropout(self.dropout, deterministic=key is None)(x, rng=key)
        x = layers.apply_blocks(
            self, EncoderBlock, "encoderblock_", x, train, num_blocks=self.num_blocks,
            stochastic_depth=self.stochastic_depth, remat=self.remat, scan=self.scan, num_heads=self.num_heads,
            channels_mlp_dim=self.channels_mlp_dim, dropout=self.dropout,
            stochastic_depth_rescale=self.stochastic_depth_rescale, dtype=self.dtype, dot_general=self.dot_general,
        )  # fmt: skip
        normalised: Array = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="encoder_norm")(x)
        return normalised


class PositionEmbedding(nn.Module):
    """Adds a learned vector to each token."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens channels"]) -> Float[Array, "batch tokens channels"]:
        embedding = self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        return x + embedding.astype(x.dtype)


class VisionTransformer(nn.Module):
    """ViT.

    Attributes:
      num_classes: width of the head. With 0 there is no head, and the output is the pre-logits.
      patch_size: side of a patch in pixels; must divide the image's height and width.
      num_blocks, hidden_dim, channels_mlp_dim, num_heads: layers, hidden size D, MLP size and heads of Table 1.
      dropout: probability of dropping a unit after the position embedding, the attention and each dense layer of an
        MLP. Attention weights are not dropped.
      stochastic_depth, stochastic_depth_rescale, head_bias_init, dtype, remat, scan, dot_general: as in `MlpMixer`.
    """

    num_classes: int
    patch_size: int
    num_blocks: int
    hidden_dim: int
    channels_mlp_dim: int
    num_heads: int
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    stochastic_depth_rescale: bool = True
    head_bias_init: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False
    dot_general: layers.DotGeneral | None = None

    def __post_init__(self) -> None:
        """Checks that each head has the same width.

        Raises:
          ValueError: it has not.
        """
        super().__post_init__()
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim={self.hidden_dim} is not a multiple of the {self.num_heads} heads of this variant"
            )

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Maps images in [-1, 1] to float32 logits. With `train`, give rngs={"dropout": key} if anything is dropped.

        Raises:
          ValueError: the patches do not tile the image.
        """
        x = layers.patch_tokens(images, self.patch_size, self.hidden_dim, self.dtype, "embedding", self.dot_general)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.hidden_dim)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.hidden_dim)), x], axis=1)
        x = Encoder(
            self.num_blocks, self.num_heads, self.channels_mlp_dim, self.dropout, self.stochastic_depth,
            self.stochastic_depth_rescale, self.dtype, self.remat, self.scan, self.dot_general, name="Transformer",
        )(x, train)  # fmt: skip
        x = x[:, 0].astype(jnp.float32)
        return layers.head(x, self.num_classes, self.head_bias_init, self.dtype)

    def forward_macs(self, image_size: int) -> int:
        """Returns the multiply-accumulates of a square image's forward pass.

        A forward pass takes twice as many FLOPs, a training step six times as many.

        Only matrix products are counted: the embedding, the head, and in each block the four projections, the MLP and
        the two products of the attention. The latter two grow with the square of the number of tokens.
        """
        patches = (image_size // self.patch_size) ** 2
        tokens = patches + 1
        embedding = 3 * self.patch_size**2 * self.hidden_dim * patches
        projections = 4 * tokens * self.hidden_dim**2
        attention = 2 * tokens**2 * self.hidden_dim
        mlp = 2 * tokens * self.hidden_dim * self.channels_mlp_dim
        head = self.hidden_dim * self.num_classes
        return embedding + self.num_blocks * (projections + attention + mlp) + head
