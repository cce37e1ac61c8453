"""The forward pass as a `jax.export` artifact: StableHLO with the parameters inside. JAX runs it without this code."""

import io
import json
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, UInt8

from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime.errors import UserError
from mixer.training.step import normalize
from mixer.transfer.format import Exported, Format, code_block

PLATFORMS = ("cpu", "cuda", "tpu")

# jax.export writes flatbuffers, which cannot be larger than 2^31 bytes. 16 MiB are left for the program.
_MOST_BYTES = 2**31 - 2**24


def save_program(file: io.BufferedIOBase, params: Any, model: MlpMixer, image_size: int) -> None:
    """Writes the function from uint8 RGB images [b, image_size, image_size, 3] to float32 logits [b, classes].

    The batch size b is free. Matrix products are computed in float32 on every platform; by default, TPUs and GPUs round
    their factors to fewer bits. A model without a head returns its pre-logits.

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


def _loading(exported: Exported, file: str) -> list[str]:
    outputs = "logits" if exported.model.num_classes else "pre_logits"
    return [
        "With `pip install jax flatbuffers`, and no code of this project:",
        "",
        *code_block(
            "python",
            "import jax",
            "from jax import export",
            "",
            f'model = export.deserialize(bytearray(open({json.dumps(file)}, "rb").read()))',
            f"{outputs} = model.call(images)",
            *([f"probabilities = jax.nn.{exported.probabilities}(logits)"] if exported.probabilities else []),
        ),
    ]


FORMAT = Format(
    suffix=".stablehlo",
    described=f"StableHLO in a `jax.export` artifact, for {', '.join(PLATFORMS)}",
    input="uint8 [batch, {size}, {size}, 3], 0 to 255, {cut}; any batch size",
    save=lambda file, exported: save_program(file, exported.params, exported.model, exported.image_size),
    loading=_loading,
    computes=True,
    holds_ablations=True,
)
