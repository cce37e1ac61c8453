"""A file format for weights: how it is written, how it is read, and what a model card says of it."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

from mixer import models
from mixer.models.mlp_mixer import MlpMixer
from mixer.runtime.errors import UserError


class Exported(NamedTuple):
    """A model that is written to a file.

    Attributes:
      params: nested float32 arrays under the names of the published checkpoints.
      model: the model of these parameters.
      image_size: height and width of its images in pixels.
      has_tanh_gelu: whether it was trained with the tanh form of GELU, as this project trains; False if unknown.
      class_names: a name for each output of the head; None if they are unknown.
      probabilities: the function of logits that gives the probabilities, softmax or sigmoid; empty without a head.
    """

    params: Any
    model: MlpMixer
    image_size: int
    has_tanh_gelu: bool
    class_names: list[str] | None = None
    probabilities: str = ""


class Format(NamedTuple):
    """A file format for weights.

    Attributes:
      suffix: the end of its files' names, such as ".npz".
      described: what it is, for the model card.
      input: the input of the model in this format, for the model card. {size} stands for the image size in pixels,
        {cut} for the color channels and the patch size.
      save: from (file, model) to nothing. Writes to a file that is open in binary mode. Raises UserError if the model
        is beyond the limits of the format.
      loading: from (model, file name) to lines of Markdown that say how to load the file, for the model card. Its code
        follows that of `card_code.pictures`, which makes `images`.
      computes: whether that code computes `probabilities`.
      holds_ablations: whether it has a place for the models of the paper's Appendix A.1.
      load: from (file, name for messages) to nested float32 parameters; None if this project cannot read the format.
        Raises UserError if the file is not as it should be.
      load_class_names: from a file that `load` could read to the names of its classes; None if the file has none. None
        if files of this format never have them.
    """

    suffix: str
    described: str
    input: str
    save: Callable[[io.BufferedIOBase, Exported], None]
    loading: Callable[[Exported, str], list[str]]
    computes: bool = False
    holds_ablations: bool = False
    load: Callable[[io.BufferedIOBase, str], Any] | None = None
    load_class_names: Callable[[io.BufferedIOBase], list[str] | None] | None = None


def check_holds(form: Format, exported: Exported) -> None:
    """Checks that a format has a place for the parameters of a model.

    Raises:
      UserError: it has none.
    """
    if exported.model.ablation and not form.holds_ablations:
        raise UserError(
            f"{models.name_of(exported.model)} cannot be written as {form.suffix}, which has a place for the paper's "
            "token mixing only; use --to stablehlo"
        )


def code_block(language: str, *lines: str) -> list[str]:
    """Returns lines of Markdown that show code."""
    return [f"```{language}", *lines, "```"]
