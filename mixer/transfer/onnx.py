"""The forward pass as an ONNX model, written by jax2onnx (the extra `onnx`), for onnxruntime and other runtimes."""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator

import jax
import jax.extend.core
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, UInt8

from mixer.training.step import normalize
from mixer.transfer.format import Exported, Format, check_size, code_block, in_numpy, quoted

_OPSET = 20  # the first with a GELU, and so the one that most runtimes read
_INPUT, _OUTPUTS = "images", {True: "logits", False: "pre_logits"}

# Of the largest logit, of S/16 with random weights: OpenVINO 2026.4.1 on a CPU with AVX512_BF16.
_OF_BFLOAT16 = "2e-3"


def save_model(file: io.BufferedIOBase, exported: Exported) -> None:
    """Writes the function from uint8 RGB images [b, image_size, image_size, 3] to float32 logits [b, classes].

    The batch size b is free. A model without a head returns its pre-logits.

    Raises:
      UserError: the parameters are too large for the format.
    """
    check_size(exported.params, FORMAT.suffix)
    with _quiet():
        import jax2onnx

        size = exported.image_size
        images = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), size, size, 3), jnp.uint8)
        model = jax2onnx.to_onnx(
            _forward(exported, images), [images], model_name="mixer", opset=_OPSET, input_names=[_INPUT],
            output_names=[_OUTPUTS[exported.model.num_classes > 0]],
        )  # fmt: skip
    file.write(model.SerializeToString())


def _forward(exported: Exported, images: jax.ShapeDtypeStruct) -> Callable[[Array], Array]:
    """Returns the function that jax2onnx reads.

    It has rules for Flax's layers, such as one that makes a LayerNorm one node, but none for a layer under vmap, as
    untied token mixing has it. Traced before, such a model has none of Flax's layers left; onnxruntime 1.32.0 takes
    half as long again for it.
    """

    def forward(images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch outputs"]:
        return exported.model.apply({"params": exported.params}, normalize(images))  # type: ignore[return-value]

    if not exported.model.beyond_paper:
        return forward
    traced = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(forward)(images))
    return lambda images: traced(images)[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what jax2onnx prints: lines for debugging, and warnings of rules for libraries not used here."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _loading(exported: Exported, file: str) -> list[str]:
    outputs = _OUTPUTS[exported.model.num_classes > 0]
    return [
        "With `pip install onnxruntime==1.32.0`, or another runtime that reads opset 20:",
        "",
        *code_block(
            "python",
            "import onnxruntime",
            "",
            f"model = onnxruntime.InferenceSession({quoted(file)})",
            f'({outputs},) = model.run(["{outputs}"], {{"{_INPUT}": images}})',
            *in_numpy(exported.probabilities),
        ),
        "",
        "OpenVINO computes in bfloat16 on a CPU that has instructions for it, unless told otherwise. This changed "
        f"logits by {_OF_BFLOAT16} of the largest (Mixer-S/16, OpenVINO 2026.4.1). For float32: "
        f'`openvino.Core().compile_model({quoted(file)}, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})`.',
    ]


FORMAT = Format(
    suffix=".onnx",
    described=f"ONNX, opset {_OPSET}",
    input="uint8 [batch, {size}, {size}, 3], 0 to 255, {cut}",
    save=save_model,
    loading=_loading,
    computes=True,
    holds_any_model=True,
    requirement="jax2onnx==0.13.0",
)
