"""Writes a model for other programs: `python -m mixer.export --checkpoint runs/pets --to timm pets.safetensors`.

--to npz is the published checkpoints' format, timm that of PyTorch's timm, and stablehlo the forward pass itself, which
JAX runs without this code. A model card in Markdown is written beside the file, as pets.safetensors.md.
"""

import contextlib
import os
import pathlib
import shlex
from collections.abc import Iterator

from absl import flags

from mixer.config import command_line
from mixer.runtime.errors import UserError, first_line
from mixer.training.metrics import read_metrics
from mixer.transfer import model_card, npz, stablehlo, timm
from mixer.transfer import weights as transfer_weights
from mixer.transfer.weights import Weights

SUFFIXES = {"npz": ".npz", "timm": ".safetensors", "stablehlo": ".stablehlo"}


def export(weights: Weights, to: str, out: pathlib.Path, *, ema: bool, command: str) -> pathlib.Path:
    """Writes the weights and their model card; returns the card's path.

    Args:
      weights: of a whole model.
      to: a key of `SUFFIXES`.
      out: where to; the folder must exist.
      ema: whether the weights are a run's averaged ones.
      command: that asked for it, for the card.

    Raises:
      UserError: they are not a model's weights, or cannot be written.
    """
    model = weights.model()
    card = out.with_name(f"{out.name}.md")
    if card.exists() and not card.read_bytes().startswith(model_card.MARK.encode()):
        raise UserError(f"{card}, where the model card goes, is a file of yours: give OUT another name")
    measured = _measured(weights, ema)
    text = model_card.card(weights, model, to=to, file=out.name, command=command, ema=ema, measured=measured)
    try:
        with _whole(out) as part, part.open("wb") as file:
            if to == "stablehlo":
                stablehlo.write(file, weights.params, model, weights.image_size)
            else:
                {"npz": npz, "timm": timm}[to].write(file, weights.params)
        with _whole(card) as part:
            part.write_text(text)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({first_line(error)})") from None
    return card


@contextlib.contextmanager
def _whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name beside `path` to write to, which becomes `path` at the end: a kill leaves no half file under it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _measured(weights: Weights, ema: bool) -> dict[str, float]:
    """The run's own evaluation of exactly these weights; empty if there was none at their step."""
    prefix = "val_ema/" if ema else "val/"
    rows = read_metrics(weights.workdir) if weights.workdir else []
    here = (row for row in rows if row["step"] == weights.step)
    return {name.removeprefix(prefix): value for row in here for name, value in row.items() if name.startswith(prefix)}


# ------------------------------------------------------------------------------------------------------- command line


def define_flags() -> None:
    """The command's flags."""
    command_line.define_checkpoint_flags()
    flags.DEFINE_enum("to", None, list(SUFFIXES), "The format; its files end in .npz, .safetensors and .stablehlo.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    checkpoint = command_line.checkpoint()
    if not given.to:
        raise UserError(f"--to is missing: give one of {', '.join(SUFFIXES)}")
    if len(argv) != 2:
        raise UserError(
            f"expected one file to write, such as model{SUFFIXES[given.to]}, not {' and '.join(argv[1:]) or 'none'}"
        )
    out = pathlib.Path(argv[1]).expanduser()
    if out.suffix != SUFFIXES[given.to]:
        raise UserError(f"{argv[1]}: the name of a file for --to {given.to} ends in {SUFFIXES[given.to]}")
    if not out.parent.is_dir():
        raise UserError(f"{argv[1]}: the folder {out.parent} does not exist; make it first (a local one)")
    if out.is_dir():
        raise UserError(f"{argv[1]} is a folder; give the name of a file to write")

    weights = transfer_weights.read(checkpoint, given.ema)
    command = ["python", "-m", "mixer.export", "--checkpoint", checkpoint, "--to", given.to]
    command += [*(["--ema"] if given.ema else []), argv[1]]
    card = export(weights, given.to, out, ema=given.ema, command=shlex.join(command))
    print(f"{argv[1]} written, {out.stat().st_size / 1e6:,.1f} MB; its model card is {card}")


if __name__ == "__main__":
    command_line.run(main, define_flags, takes_arguments=True)
