"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601) in Flax Linen.

    image -> patches -> `stem` -> n x MixerBlock -> LayerNorm -> mean over tokens -> `head`

Parameter names and shapes are those of the published checkpoints. The attributes in `SAME_FUNCTION` change how the
function is trained or computed, never which function it is. Only token_mixing, token_groups and pyramid make another
model: those of the paper's Appendix A.1, which `token_mixing.py` explains.

Every module's output can be captured, without a change to the model (with scan=True, of `model.clone(scan=False)`):

    _, captured = model.apply({"params": params}, images, capture_intermediates=True, mutable=["intermediates"])
    captured["intermediates"]["MixerBlock_0"]["token_mixing"]["__call__"][0]  # [batch, channels, tokens]
"""

import dataclasses
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from mixer.models import layers, token_mixing, variants


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

# Attributes that are read in training alone, or that say how the same function is computed. Every other attribute with
# a default makes another model of the same widths. What loads a run's weights reads these attributes from the run's
# config, and a format that cannot hold them refuses the model.
SAME_FUNCTION = (
    "dropout", "stochastic_depth", "stochastic_depth_rescale", "head_bias_init", "identity_init", "dtype", "remat",
    "scan", "dot_general",
)  # fmt: skip
_TOKEN_MIXING = ("token_mixing", "token_groups", "pyramid")

NAMES = f"{', '.join(VARIANTS)}, a slash and the patch size in pixels, such as B/16"


def parse(name: str) -> dict[str, Any] | None:
    """Returns the attributes of the variant that is called `name`, such as "B/16"; None for any other name."""
    return variants.parse_patched(name, "", VARIANTS)


def name_of(model: Any) -> str:
    """Returns a Mixer's name, such as "Mixer-B/16" or "Mixer-B/16 (untied token mixing x4)".

    D_S is not part of it, since it grows with the image.
    """
    name = f"Mixer-{variants.patched_name(model, VARIANTS, ('num_blocks', 'hidden_dim', 'channels_mlp_dim'))}"
    return f"{name} ({model.beyond_paper})" if model.beyond_paper else name


class MixerBlock(nn.Module):
    """Mixes the tokens of each channel, then the channels of each token, each with a skip connection.

    Attributes:
      tokens_mlp_dim: D_S, hidden width of the MLP across tokens.
      channels_mlp_dim: D_C, hidden width of the MLP across channels.
      dropout: probability of dropping a unit after each dense layer.
      stochastic_depth_rescale: divide kept branches by 1 - p, so that the expectation in training equals evaluation.
      dtype: of activations and matrix products; parameters and normalisation statistics stay float32.
      dot_general: see `layers.MlpBlock`.
      identity_init, token_mixing, token_groups: see `MlpMixer`.
      tokens_out: tokens of the output, if they are fewer than those of the input.
    """

    tokens_mlp_dim: int
    channels_mlp_dim: int
    dropout: float = 0.0
    stochastic_depth_rescale: bool = True
    dtype: DTypeLike = jnp.float32
    dot_general: layers.DotGeneral | None = None
    identity_init: bool = False
    token_mixing: str = "shared"
    token_groups: int = 1
    tokens_out: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens channels"],
        key: Key[Array, ""] | None,
        drop_rate: Float[Array, ""] | None,
    ) -> Float[Array, "batch tokens_out channels"]:
        """Applies the block. key is None in evaluation; drop_rate is None without stochastic depth."""
        keys = (None,) * 4 if key is None else tuple(jax.random.split(key, 4))
        mlp = partial(
            layers.MlpBlock, dropout=self.dropout, dtype=self.dtype, dot_general=self.dot_general,
            starts_at_zero=self.identity_init,
        )  # fmt: skip

        tokens_out = self.tokens_out or x.shape[1]

        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        mix = token_mixing.TOKEN_MIXINGS[self.token_mixing]
        y = mix(y, keys[0], self.token_groups, tokens_out, partial(mlp, self.tokens_mlp_dim))
        x = token_mixing.pooled(x, tokens_out) + layers.stochastic_depth(
            y, keys[1], drop_rate, self.stochastic_depth_rescale
        )

        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        y = mlp(self.channels_mlp_dim, name="channel_mixing")(y, keys[2])
        return x + layers.stochastic_depth(y, keys[3], drop_rate, self.stochastic_depth_rescale)


class MlpMixer(nn.Module):
    """MLP-Mixer.

    Attributes:
      num_classes: width of the head. With 0 there is no head, and the output is the pre-logits.
      patch_size: side of a patch in pixels; must divide the image's height and width.
      num_blocks, hidden_dim, tokens_mlp_dim, channels_mlp_dim: n, C, D_S and D_C of Table 1.
      dropout: see `MlpBlock`.
      stochastic_depth: probability of dropping a branch in the last block; it grows linearly from 0 in the first
        (Appendix B), the same for both branches of a block.
      stochastic_depth_rescale: False is the form of the published code, which does not rescale kept branches.
      head_bias_init: initial value of every logit; about -ln(num_classes) suits sigmoid cross-entropy.
      dtype: bfloat16 or float32, of activations and matrix products. Parameters, normalisation statistics, the mean
        over tokens and the logits are float32 in either case.
      remat: recompute each block's activations in the backward pass instead of keeping them.
      scan: compile one block and loop over it, which compiles faster. The parameters are stacked inside the step, so
        the parameter tree is the same. With remat or scan, loss and gradients agree with the plain model's within
        1e-5 of their norm in float32, and within 4% in bfloat16, because XLA rounds in other places.
      dot_general: see `layers.MlpBlock`.
      identity_init: the second kernel of each MLP is zero at first, so that every block starts as the identity (as
        residual branches do in arXiv 1706.02677 and 1901.09321). Published: lecun_normal, as the first.
      token_mixing: a key of `token_mixing.TOKEN_MIXINGS`. All but shared are of Appendix A.1, as is `pyramid`.
      token_groups: G, groups of channels with an MLP of their own (untied), or channels or views that are mixed at once
        (grouped, views); must divide hidden_dim.
      pyramid: tokens after each block; None if their number stays the same. Not with `scan`.
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
    dot_general: layers.DotGeneral | None = None
    identity_init: bool = False
    token_mixing: str = "shared"
    token_groups: int = 1
    pyramid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the options that go together.

        Raises:
          ValueError: some do not.
        """
        super().__post_init__()
        token_mixing.check(self.token_mixing, self.token_groups, self.hidden_dim)
        if self.pyramid is not None and self.scan:
            raise ValueError(f"pyramid={self.pyramid} has blocks of several shapes, over which scan=True cannot loop")

    @property
    def options(self) -> dict[str, Any]:
        """The attributes that make another model of the same widths, by name."""
        fields = (field for field in dataclasses.fields(self) if field.default is not dataclasses.MISSING)
        not_options = (*SAME_FUNCTION, "parent", "name")  # the last two are those of every Linen module
        return {field.name: getattr(self, field.name) for field in fields if field.name not in not_options}

    @property
    def ablation(self) -> str:
        """What its token mixing differs in from the paper's model, in words; empty if it does not differ."""
        return token_mixing.described(self.token_mixing, self.token_groups, self.pyramid)

    @property
    def beyond_paper(self) -> str:
        """What its function differs in from the paper's, in words; empty if it is the paper's."""
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        others = [
            f"{name}={value}"
            for name, value in self.options.items()
            if name not in _TOKEN_MIXING and value != plain[name]
        ]
        return ", ".join(filter(None, (self.ablation, *others)))

    def tokens(self, image_size: int) -> tuple[int, ...]:
        """Returns the number of tokens of a square image: at the first block's input, and after each block.

        Raises:
          ValueError: the pyramid cannot start from this image size.
        """
        tokens = (image_size // self.patch_size) ** 2
        return tokens, *token_mixing.tokens_after(tokens, self.num_blocks, self.pyramid)

    def with_effect(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters without those that cannot change the output.

        These are the second biases of shared token mixing, one in each block. Each adds one number to all channels of a
        token. All that reads the tokens is a LayerNorm over channels, which takes their mean away, so the true gradient
        of such a bias is zero. Adam divides the rounding errors in its place by their own size, and lets them grow to
        what looks like learning. Dropout, which follows the bias, drops channels one by one; with it, the bias has an
        effect.
        """
        if self.token_mixing != "shared" or self.dropout:
            return dict(params)
        flat = traverse_util.flatten_dict(params)
        idle = ("token_mixing", "Dense_1", "bias")
        read: dict[str, Any] = traverse_util.unflatten_dict(
            {path: leaf for path, leaf in flat.items() if path[1:] != idle}
        )
        return read

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Maps images in [-1, 1] to float32 logits. With `train`, give rngs={"dropout": key} if anything is dropped.

        Raises:
          ValueError: the patches do not tile the image, or a pyramid cannot start from it.
        """
        x = layers.patch_tokens(images, self.patch_size, self.hidden_dim, self.dtype, "stem", self.dot_general)

        x = layers.apply_blocks(
            self, MixerBlock, "MixerBlock_", x, train, num_blocks=self.num_blocks,
            stochastic_depth=self.stochastic_depth, remat=self.remat, scan=self.scan,
            tokens_mlp_dim=self.tokens_mlp_dim, channels_mlp_dim=self.channels_mlp_dim, dropout=self.dropout,
            stochastic_depth_rescale=self.stochastic_depth_rescale, dtype=self.dtype, dot_general=self.dot_general,
            identity_init=self.identity_init, token_mixing=self.token_mixing, token_groups=self.token_groups,
            own_fields=self._own_fields(images.shape[1], images.shape[2]),
        )  # fmt: skip

        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="pre_head_layer_norm")(x)
        x = jnp.mean(x, axis=1, dtype=jnp.float32)
        return layers.head(x, self.num_classes, self.head_bias_init, self.dtype)

    def _own_fields(self, height: int, width: int) -> list[dict[str, int]] | None:
        """Returns the attributes in which the blocks of a pyramid differ; None for any other model."""
        if self.pyramid is None:
            return None
        if height != width:
            raise ValueError(f"pyramid={self.pyramid} needs square images, not {height}x{width}")
        return [{"tokens_out": tokens} for tokens in self.tokens(height)[1:]]

    def forward_macs(self, image_size: int) -> int:
        """Returns the multiply-accumulates of a square image's forward pass.

        A forward pass takes twice as many FLOPs, a training step six times as many.

        Only matrix products are counted: the stem, both MLPs and any views of each block, and the head. Normalisation,
        GELU and skip connections add about one per cent or less in the paper's models.
        """
        tokens = self.tokens(image_size)
        macs = 3 * self.patch_size**2 * self.hidden_dim * tokens[0]
        for before, after in itertools.pairwise(tokens):  # G channels at once are C/G vectors, G times as long
            macs += (before + after) * self.tokens_mlp_dim * self.hidden_dim
            macs += 2 * self.hidden_dim * self.channels_mlp_dim * after
            macs += before * self.hidden_dim**2 * (self.token_mixing == "views")
        return macs + self.hidden_dim * self.num_classes
