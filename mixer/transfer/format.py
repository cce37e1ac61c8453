"""A file format for weights: how it is written, how it is read, and what a model card says of it."""

import importlib.util
import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mixer import models
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime.errors import UserError

# Flatbuffers and protocol buffers cannot be larger than 2^31 bytes. 16 MiB are left for the program.
_MOST_BYTES = 2**31 - 2**24

# Code by each `Exported.probabilities`.
_IN_NUMPY = {
    "": [],
    "sigmoid": ["probabilities = 1 / (1 + numpy.exp(-logits))"],
    "softmax": [
        "probabilities = numpy.exp(logits - logits.max(1, keepdims=True))",
        "probabilities /= probabilities.sum(1, keepdims=True)",
    ],
}


# The settings of a run by which a picture becomes what the model gets, and logits probabilities. A file carries them.
CARRIED = (
    "loss", "input.image_size", "input.eval_crop", "input.eval_resize", "input.resize_rounding", "input.max_pixels",
    "input.transparent", "input.exif", "input.permutation", "input.permutation_patch", "input.permutation_seed",
)  # fmt: skip


def quoted(name: str) -> str:
    """Returns the name of a file as a text in Python's code."""
    return json.dumps(name, ensure_ascii=not name.isprintable())


class Program(NamedTuple):
    """How a forward pass is written as a program of StableHLO.

    Attributes:
      batch_size: number of images that it takes at once; None for any number.
      platforms: on which it runs, by JAX's names.
    """

    batch_size: int | None = None
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")


class Exported(NamedTuple):
    """A model that is written to a file.

    Attributes:
      params: nested float32 arrays under the names of the published checkpoints.
      model: the model of these parameters.
      image_size: height and width of its images in pixels.
      has_tanh_gelu: whether it was trained with the tanh form of GELU, as this project trains; False if unknown.
      images: `config.input`, by which pictures are prepared for it.
      class_names: a name for each output of the head; None if they are unknown.
      probabilities: the function of logits that gives the probabilities, softmax or sigmoid; empty without a head.
      program: for formats that hold a program.
      carried: the values of `CARRIED`; None if they are unknown.
    """

    params: Any
    model: MlpMixer
    image_size: int
    has_tanh_gelu: bool
    images: ConfigDict
    class_names: list[str] | None = None
    probabilities: str = ""
    program: Program = Program()
    carried: dict[str, Any] | None = None


class Format(NamedTuple):
    """A file format for weights.

    Attributes:
      suffix: the end of its files' names, such as ".npz".
      described: what it is, for the model card. {platforms} stands for those of the program.
      input: the input of the model in this format, for the model card. {size} stands for the image size in pixels,
        {cut} for the color channels and the patch size, {batch} for a free or fixed axis of images.
      save: from (file, model) to nothing. Writes to a file that is open in binary mode. Raises UserError if the model
        is beyond the limits of the format.
      loading: from (model, file name) to lines of Markdown that say how to load the file, for the model card. Its code
        follows that of `card_code.pictures`, which makes `images`.
      computes: whether that code computes `probabilities`.
      holds_any_model: whether it has a place for other models than the paper's, such as those of Appendix A.1.
      is_program: whether it is written as `Exported.program` says.
      beside: a further file, named by this ending after the whole name of the first, and how it is written.
      requirement: a library, with its version, which `save` imports and a plain installation lacks.
      load: from (file, name for messages) to nested float32 parameters; None if this project cannot read the format.
        Raises UserError if the file is not as it should be.
      load_class_names: from a file that `load` could read to the names of its classes, or to None if it has none. This
        attribute is None if files of this format never have them.
      load_carried: the same for the values of `CARRIED`, not checked.
    """

    suffix: str
    described: str
    input: str
    save: Callable[[io.BufferedIOBase, Exported], None]
    loading: Callable[[Exported, str], list[str]]
    computes: bool = False
    holds_any_model: bool = False
    is_program: bool = False
    beside: tuple[str, Callable[[io.BufferedIOBase, Exported], None]] | None = None
    requirement: str = ""
    load: Callable[[io.BufferedIOBase, str], Any] | None = None
    load_class_names: Callable[[io.BufferedIOBase], list[str] | None] | None = None
    load_carried: Callable[[io.BufferedIOBase], Any] | None = None


def check_holds(form: Format, exported: Exported) -> None:
    """Checks that a format has a place for the parameters of a model.

    Raises:
      UserError: it has none.
    """
    if exported.model.beyond_paper and not form.holds_any_model:
        raise UserError(
            f"{models.name_of(exported.model)} cannot be written as {form.suffix}, which has a place for the paper's "
            "model only; use --to stablehlo or --to onnx"
        )


def check_installed(form: Format, to: str) -> None:
    """Checks that the library by which a format is written is there.

    Args:
      form: the format.
      to: its name, for messages.

    Raises:
      UserError: it is not.
    """
    library = form.requirement.partition("==")[0]
    if library and importlib.util.find_spec(library) is None:
        raise UserError(f"--to {to} needs {library}, which is not installed: pip install {form.requirement}")


def check_size(params: Any, suffix: str) -> None:
    """Checks that parameters fit into one file of a format that holds no more than 2 GiB.

    Raises:
      UserError: they do not.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size > _MOST_BYTES:
        raise UserError(
            f"the parameters take {size / 2**30:.2f} GiB, and a {suffix} file cannot hold more than 2: use --to npz"
        )


def code_block(language: str, *lines: str) -> list[str]:
    """Returns lines of Markdown that show code."""
    return [f"```{language}", *lines, "```"]


def in_numpy(probabilities: str) -> list[str]:
    """Returns code that computes `probabilities` from `logits` by NumPy.

    Args:
      probabilities: softmax or sigmoid; empty for no code.
    """
    return _IN_NUMPY[probabilities]
