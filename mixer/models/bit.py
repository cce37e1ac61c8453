"""BiT-ResNet (Big Transfer, Kolesnikov et al. 2020, arXiv 1912.11370), a convolutional network to compare Mixer with.

    image -> 7x7 `root`, max-pool -> 4 blocks of Units -> GroupNorm, ReLU -> mean over pixels -> `head`

It is a ResNet-v2 (arXiv 1603.05027) with group normalisation (arXiv 1803.08494) instead of batch normalisation, and
with standardised weights (arXiv 1903.10520). Padding follows the published code: it is explicit and symmetric, and the
max-pool is padded with zeros. "SAME" would pad strided windows on one side only.
"""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mixer.models import layers

# Depth -> units in each block (Table 1 of ResNet, arXiv 1512.03385; R200 from arXiv 1603.05027; R14 and R26 from timm's
# resnet14t and resnet26). A variant is a depth and a width factor: R50x1.
UNITS = {
    14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
}  # fmt: skip

NAMES = f"BiT-R and one of {', '.join(map(str, UNITS))}, an x and the width factor, such as BiT-R50x1 or BiT-R26x0.5"


def parse(name: str) -> dict[str, Any] | None:
    """Returns the attributes of the variant that is called `name`, such as "BiT-R50x1"; None for any other name."""
    found = re.fullmatch(r"BiT-R(\d+)x([1-9]\d*(?:\.5)?|0\.5)", name)
    if found is None or int(found[1]) not in UNITS:
        return None
    return {"units": UNITS[int(found[1])], "width": float(found[2])}


def name_of(model: Any) -> str:
    """Returns a BiT's name, such as "BiT-R50x1"; where its units are those of no depth, a BiT-R with them."""
    depths = (depth for depth, units in UNITS.items() if units == tuple(model.units))
    return f"BiT-R{next(depths, '-'.join(map(str, model.units)))}x{model.width:g}"


class StandardisedConv(nn.Module):
    """Convolution with a standardised kernel: for each output channel, its mean is 0 and its variance is 1.

    The kernel is standardised in float32. In bfloat16 the mean of thousands of weights would be mostly rounding error.

    Attributes:
      features: output channels.
      kernel_size: side of the kernel in pixels.
      stride: along both axes, in pixels.
      dtype: of activations and products; the kernel is stored and standardised in float32.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns features"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
        kernel = kernel * jax.lax.rsqrt(jnp.mean(kernel**2, axis=(0, 1, 2), keepdims=True) + 1e-10)
        pad = (self.kernel_size // 2, self.kernel_size // 2)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), window_strides=(self.stride, self.stride),
            padding=(pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip


class Unit(nn.Module):
    """Bottleneck of 1x1, 3x3 and 1x1 convolutions with a skip connection. A norm and a ReLU precede each convolution.

    Attributes:
      features: channels of the output; the bottleneck has a quarter of them.
      stride: of the 3x3 convolution and of the shortcut.
      dtype: of activations and products; parameters and normalisation statistics stay float32.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns features"]:
        shortcut, bottleneck = x, self.features // 4
        y = _norm_relu(x, "norm_a", self.dtype)
        if x.shape[-1] != self.features:  # in the first unit of each block only
            shortcut = StandardisedConv(self.features, 1, self.stride, self.dtype, name="projection")(y)
        y = StandardisedConv(bottleneck, dtype=self.dtype, name="conv_a")(y)
        y = _norm_relu(y, "norm_b", self.dtype)
        y = StandardisedConv(bottleneck, 3, self.stride, self.dtype, name="conv_b")(y)
        y = _norm_relu(y, "norm_c", self.dtype)
        return shortcut + StandardisedConv(self.features, dtype=self.dtype, name="conv_c")(y)


def _norm_relu(x: Array, name: str, dtype: DTypeLike) -> Array:
    return nn.relu(nn.GroupNorm(num_groups=32, epsilon=1e-5, dtype=dtype, name=name)(x))


class BiT(nn.Module):
    """BiT-ResNet.

    Attributes:
      num_classes: width of the head. With 0 there is no head, and the output is the pre-logits.
      units: number of units in each block, a value of `UNITS`.
      width: width factor, a multiple of a half, since a norm has 32 groups of channels. The first block has 256 * width
        output channels, and each later block has twice as many as the one before.
      head_bias_init: initial value of every logit; about -ln(num_classes) suits sigmoid cross-entropy.
      dtype: bfloat16 or float32, of activations and products. Parameters, standardisation, normalisation statistics,
        the mean over pixels and the logits are float32 in either case.
    """

    num_classes: int
    units: tuple[int, ...]
    width: float
    head_bias_init: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch outputs"]:
        """Maps images in [-1, 1] to float32 logits. `train` has no effect, because there is no dropout."""
        x = StandardisedConv(self._root_channels, 7, 2, self.dtype, name="root")(images)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # nn.max_pool itself would pad with -inf
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        for name, features, stride in self._units():
            x = Unit(features, stride, self.dtype, name=name)(x)
        x = _norm_relu(x, "pre_head_norm", self.dtype)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return layers.head(x, self.num_classes, self.head_bias_init, self.dtype)

    @property
    def _root_channels(self) -> int:
        return int(64 * self.width)

    def _units(self) -> list[tuple[str, int, int]]:
        """Returns name, output channels and stride of each unit. Every block but the first halves the image."""
        features = 4 * self._root_channels
        return [
            (f"block{block + 1}_unit{unit + 1}", features * 2**block, 2 if block > 0 and unit == 0 else 1)
            for block, units in enumerate(self.units)
            for unit in range(units)
        ]

    def forward_macs(self, image_size: int) -> int:
        """Returns the multiply-accumulates of a square image's forward pass.

        A forward pass takes twice as many FLOPs, a training step six times as many.

        Only the convolutions and the head are counted. Products with padding are left out, as in XLA's cost analysis.
        Most published figures include them (3.6% more for R50x1 at 224 pixels); some also include the normalisation of
        activations and weights.
        """
        channels = self._root_channels
        macs = 3 * channels * _products(image_size, 7, 2)
        size = _strided(_strided(image_size, 2), 2)
        for _, features, stride in self._units():
            before, size, bottleneck = size, _strided(size, stride), features // 4
            macs += before**2 * channels * bottleneck + _products(before, 3, stride) * bottleneck**2
            macs += size**2 * bottleneck * features
            if channels != features:
                macs += size**2 * channels * features
            channels = features
        return macs + channels * self.num_classes


def _strided(size: int, stride: int) -> int:
    """Returns the output size of a convolution or pool with this input size, whatever its kernel: it is padded."""
    return (size - 1) // stride + 1


def _products(size: int, kernel_size: int, stride: int) -> int:
    """Returns how many products of a kernel weight and a pixel a convolution has, for each pair of channels.

    Kernel and image are square, so the number is that along one axis, squared. Products with padding are not counted.
    """
    starts = range(-(kernel_size // 2), size - kernel_size // 2, stride)
    return sum(min(start + kernel_size, size) - max(start, 0) for start in starts) ** 2
