"""The forward pass as a `jax.export` artifact: StableHLO with the parameters inside, run by JAX without this code."""

import io
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, UInt8

from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime.errors import UserError
from mixer.training.step import normalize

PLATFORMS = ("cpu", "cuda", "tpu")

_MOST_BYTES = 2**31 - 2**24  # flatbuffers, in which jax.export writes, end at 2^31; 16 MiB for the program


def write(file: io.BufferedIOBase, params: Any, model: MlpMixer, image_size: int) -> None:
    """Writes the function from uint8 images [b, image_size, image_size, 3], RGB, to float32 logits [b, classes].

    Any batch size b will do. Matrix products are float32 on every platform, which left to themselves TPUs and GPUs
    round to fewer bits. The output of a model without a head is its pre-logits.

    Raises:
      UserError: the parameters are too large for the format.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size > _MOST_BYTES:
        raise UserError(
            f"the parameters take {size / 2**30:.2f} GiB, and a .stablehlo file cannot hold more than 2: use --to npz"
        )

    def forward(images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch outputs"]:
        with jax.default_matmul_precision("float32"):
            return model.apply({"params": params}, normalize(images))  # type: ignore[return-value]

    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.uint8)
    file.write(export.export(jax.jit(forward), platforms=PLATFORMS)(images).serialize())
