"""The forward pass as a `jax.export` artifact: StableHLO with the parameters inside. JAX runs it without this code.

Beside it lies the bare module, for other compilers. IREE 3.13.0 refuses the module of a free batch: the axis of uint8
images, reshapes, the axes that LayerNorm adds, and products with a kernel. The products alone have forms that it takes,
which are slower under XLA (docs/exports.md). So IREE needs a fixed batch.
"""

import io
import re
import shlex

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, UInt8

from mixer.runtime.errors import UserError
from mixer.training.step import exact_outputs
from mixer.transfer.format import Exported, Format, Program, check_size, code_block, in_numpy, quoted

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # that jax.export knows
_MODULE = ".mlir"
_IREE = "3.13.0"


def checked_program(batch_size: int | None, platforms: list[str] | None) -> Program:
    """Returns how the program is written; what is not given is as in `Program`.

    Raises:
      UserError: there is no such platform.
    """
    program = Program(batch_size)
    if platforms is None:
        return program
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise UserError(
            f"--platforms={','.join(platforms)}: give one or several of {', '.join(PLATFORMS)}, separated by commas"
        )
    return program._replace(platforms=tuple(dict.fromkeys(platforms)))


def save_program(file: io.BufferedIOBase, exported: Exported) -> None:
    """Writes the function from uint8 RGB images [b, image_size, image_size, 3] to float32 logits [b, classes].

    The batch size b is free, unless `exported.program` fixes it. Matrix products are computed in float32 on every
    platform; by default, TPUs and GPUs round their factors to fewer bits. A model without a head returns its
    pre-logits.

    Raises:
      UserError: the parameters are too large for the format.
    """
    file.write(_lowered(exported, exported.program.platforms).serialize())


def save_module(file: io.BufferedIOBase, exported: Exported) -> None:
    """Writes the same function alone, as the function `main` of a StableHLO module in portable bytecode.

    It is lowered for the first platform alone: with several, `main` would have the platform's number as an argument.
    """
    file.write(_lowered(exported, exported.program.platforms[:1]).mlir_module_serialized)


def _lowered(exported: Exported, platforms: tuple[str, ...]) -> export.Exported:
    check_size(exported.params, FORMAT.suffix)

    def forward(images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch outputs"]:
        return exact_outputs(exported.model, exported.params, images)  # type: ignore[no-any-return]

    batch = exported.program.batch_size or export.symbolic_shape("b")[0]
    images = jax.ShapeDtypeStruct((batch, exported.image_size, exported.image_size, 3), jnp.uint8)
    return export.export(jax.jit(forward), platforms=platforms)(images)


def version() -> str:
    """Returns the version of StableHLO in which this JAX writes modules, such as "1.15.0"."""
    nothing = export.export(jax.jit(lambda x: x), platforms=["cpu"])(jax.ShapeDtypeStruct((), jnp.float32))
    return version_of(nothing.mlir_module_serialized)


def version_of(module: bytes) -> str:
    """Returns the version of StableHLO that a module in portable bytecode names at its beginning.

    Raises:
      ValueError: it is not such a module.
    """
    found = re.match(rb"ML\xefR.StableHLO_v([\d.]+)\0", module, re.DOTALL)
    if found is None:
        raise ValueError(f"no module in portable bytecode of StableHLO: it begins with {module[:24]!r}")
    return found[1].decode()


def _loading(exported: Exported, file: str) -> list[str]:
    outputs = "logits" if exported.model.num_classes else "pre_logits"
    return [
        f"It was written by jax {jax.__version__}, the oldest that is sure to read it. With `pip install "
        f"'jax>={jax.__version__}' flatbuffers`, and no code of this project:",
        "",
        *code_block(
            "python",
            "import jax",
            "from jax import export",
            "",
            *_batch(exported),
            f'model = export.deserialize(bytearray(open({quoted(file)}, "rb").read()))',
            f"{outputs} = model.call(images)",
            *([f"probabilities = jax.nn.{exported.probabilities}(logits)"] if exported.probabilities else []),
        ),
        "",
        *_loading_module(exported, file + _MODULE, outputs),
    ]


def _loading_module(exported: Exported, module: str, outputs: str) -> list[str]:
    """Returns lines of Markdown that say what the bare module is, and how IREE runs it."""
    said = (
        f"`{module}` is the same program alone, for {exported.program.platforms[0]}: StableHLO {version()} in portable "
        "bytecode, with one function, `main`."
    )
    if exported.program.batch_size is None:
        return [f"{said} IREE {_IREE} takes it with a fixed batch only: export it with `--batch_size`."]
    packages = f"iree-base-compiler=={_IREE} iree-base-runtime=={_IREE}"
    return [
        f"{said} IREE compiles it for a CPU, and runs it without JAX:",
        "",
        *code_block(
            "sh",
            f"pip install {packages}",
            f"iree-compile {shlex.quote(module)} -o model.vmfb --iree-input-type=stablehlo \\",
            "    --iree-hal-target-device=local --iree-hal-local-target-device-backends=llvm-cpu \\",
            "    --iree-llvmcpu-target-cpu=host",
        ),
        "",
        *code_block(
            "python",
            "import iree.runtime",
            "",
            *_batch(exported),
            'model = iree.runtime.load_vm_flatbuffer_file("model.vmfb", driver="local-task")',
            f"{outputs} = model.main(images).to_host()",
            *in_numpy(exported.probabilities),
        ),
    ]


def _batch(exported: Exported) -> list[str]:
    """Returns code that makes the batch of `images` as large as the program's; none if it is free or one picture.

    It refuses more than the program takes, of which `numpy.resize` would drop the last without a word.
    """
    size, batch = exported.image_size, exported.program.batch_size
    if batch in (None, 1):
        return []
    return [
        f'if len(images) > {batch}: raise ValueError("the program takes {batch} pictures at a time")',
        f"images = numpy.resize(images, ({batch}, {size}, {size}, 3))  # as many as the program takes: repeated",
    ]


FORMAT = Format(
    suffix=".stablehlo",
    described="StableHLO in a `jax.export` artifact, for {platforms}",
    input="uint8 [{batch}, {size}, {size}, 3], 0 to 255, {cut}",
    save=save_program,
    loading=_loading,
    computes=True,
    holds_any_model=True,
    is_program=True,
    beside=(_MODULE, save_module),
)
