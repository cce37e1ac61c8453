"""Writes a model for other programs: `python -m mixer.export --checkpoint runs/pets --to timm pets.safetensors`.

A name without an ending, `--to timm pets_for_timm`, makes a folder for timm and the Hugging Face Hub.

The formats are those of `transfer/formats.py`: npz is the format of the published checkpoints, timm that of PyTorch's
timm, and stablehlo and onnx the forward pass itself, which JAX, IREE and onnxruntime run without this project. A model
card in Markdown is written beside the file, here as pets.safetensors.md.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath, epy

from mixer.config import command_line, help_text
from mixer.runtime import bucket, bucket_check, files
from mixer.runtime.errors import UserError, first_line
from mixer.training.metrics import read_metrics
from mixer.transfer import published

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    from mixer.transfer import format as transfer_format
    from mixer.transfer import formats, hub, loading, model_card, stablehlo

if TYPE_CHECKING:
    from mixer.transfer.format import Program
    from mixer.transfer.weights import Weights

_Content = tuple[epath.Path, Callable[[io.BufferedIOBase], Any]]  # a file, and what writes it


def export(
    weights: Weights, to: str, out: epath.Path, *, command: str, program: Program | None = None
) -> tuple[int, epath.Path]:
    """Writes the weights and their model card. Returns the size of the file in bytes, and the path of the card.

    Args:
      weights: of a whole model.
      to: the format, a key of `formats.FORMATS`.
      out: the file to write, local or gs://; a local folder must exist.
      command: the command that was given, for the card.
      program: how a program is written, for formats that hold one; as by default, if not given.

    Raises:
      UserError: they are not the weights of a Mixer, or a file cannot be written.
    """
    card = out.with_name(f"{out.name}.md")
    if files.exists(card) and not files.read_bytes(card).startswith(model_card.MARK.encode()):
        raise UserError(f"{card}, where the model card goes, is a file of yours: give OUT another name")
    form = formats.FORMATS[to]
    beside = out.with_name(out.name + form.beside[0]) if form.beside else None
    if beside and files.exists(beside) and not files.read_bytes(beside).startswith(b"ML\xefR"):
        raise UserError(f"{beside}, where the bare module goes, is a file of yours: give OUT another name")
    exported = weights.exported()._replace(program=program or transfer_format.Program())
    transfer_format.check_holds(form, exported)
    measured = _measured(weights)
    text = model_card.card(weights, to=to, file=out.name, command=command, measured=measured, program=program)
    contents: list[_Content] = [(out, lambda file: form.save(file, exported))]
    if beside and form.beside:
        _, save_beside = form.beside
        contents.append((beside, lambda file: save_beside(file, exported)))
    contents.append((card, lambda file: file.write(text.encode())))
    return _write_all(out, contents), card


def export_folder(weights: Weights, out: epath.Path) -> tuple[int, epath.Path]:
    """Writes a folder for timm and the Hugging Face Hub. Its card has no paths of this machine, only names.

    Args:
      weights: of a whole model.
      out: the folder, local or gs://.

    Returns:
      The size of the weights in bytes, and the path of the card.

    Raises:
      UserError: timm cannot make this model by name, the folder holds other files, or it cannot be written.
    """
    exported = weights.exported()
    transfer_format.check_holds(formats.FORMATS["timm"], exported)
    config = hub.timm_config(exported)
    command = shlex.join(["python", "-m", "mixer.export", "--checkpoint", _name_of(weights.source), "--to", "timm"])
    text = hub.FRONT_MATTER + model_card.card(
        weights, to="timm", file=out.name, command=f"{command}{' --ema' * weights.averaged} {shlex.quote(out.name)}",
        measured=_measured(weights), loading=hub.loading(exported, out.name), named=_name_of,
    )  # fmt: skip
    card = out / hub.CARD_FILE
    if files.exists(card) and model_card.MARK.encode() not in files.read_bytes(card):
        raise UserError(f"{card}, where the model card goes, is a file of yours: give another folder")
    if not files.exists(card) and (others := hub.files_in(out)):
        raise UserError(f"{out} holds files of yours ({', '.join(others[:3])}): give a folder that is new or empty")
    contents: list[_Content] = [
        (out / hub.WEIGHTS_FILE, lambda file: formats.FORMATS["timm"].save(file, exported)),
        (out / hub.CONFIG_FILE, lambda file: file.write(config.encode())),
        (card, lambda file: file.write(text.encode())),
    ]
    return _write_all(out, contents), card


def _write_all(out: epath.Path, contents: Sequence[_Content]) -> int:
    """Writes the files of an export. They get their names when all are written; the last one, the card, gets it first.

    By the card a later export knows a folder as its own.

    Args:
      out: what is exported, for messages.
      contents: the files, and how each is written.

    Returns:
      The size of the first in bytes.

    Raises:
      UserError: one cannot be written. On a disk, what was there before is then as it was; in a bucket, which takes one
        file after the other, files that belong to others may be there.
    """
    try:
        if not bucket.is_remote(out):
            contents[0][0].parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            opened = [(stack.enter_context(files.opened_to_write(path)), write) for path, write in contents]
            for file, write in opened:
                write(file)
                file.flush()  # a full disk shows here, before any file has its name
            return opened[0][0].tell()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({first_line(error)})") from None


def _name_of(source: str) -> str:
    """Returns the last part of a path; the name of a published checkpoint, or an address of the web, as it is."""
    if source in published.PUBLISHED or source.startswith("https://"):
        return source
    parts = epath.Path(source if bucket.is_remote(source) else os.path.abspath(source)).parts
    return "/".join(parts[-3:] if parts[-2:-1] == ("checkpoints",) else parts[-1:])


def _measured(weights: Weights) -> dict[str, float]:
    """Returns the run's own evaluation of exactly these weights; empty if there was none at their step."""
    prefix = "val_ema/" if weights.averaged else "val/"
    rows = read_metrics(weights.workdir) if weights.workdir else []
    here = (row for row in rows if row["step"] == weights.step)
    return {name.removeprefix(prefix): value for row in here for name, value in row.items() if name.startswith(prefix)}


# ------------------------------------------------------------------------------------------------------- command line


class _FormatName(flags.ArgumentParser[str]):
    """A name of `formats.FORMATS`. The registry, which imports JAX, is looked at only when a name is given."""

    def parse(self, argument: str) -> str:
        """Returns the name, if it is one."""
        if argument not in formats.FORMATS:
            raise ValueError(f"value should be one of <{'|'.join(formats.FORMATS)}>")
        return argument


def define_flags() -> None:
    """Defines the command's flags."""
    command_line.define_checkpoint_flags("--checkpoint runs/pets --ema --to npz pets.npz")
    with help_text.group("The file", "--checkpoint runs/pets --to timm pets.safetensors"):
        about = (
            "The format: npz, timm, stablehlo or onnx. OUT ends in .npz, .safetensors, .stablehlo or .onnx; for timm "
            "it may also be a folder, as timm and the Hugging Face Hub want it."
        )
        flags.DEFINE(_FormatName(), "to", None, about, serializer=flags.ArgumentSerializer())
    with help_text.group(
        "The program of --to stablehlo", "--batch_size=8 --platforms=cpu --to stablehlo pets.stablehlo"
    ):
        flags.DEFINE_integer(
            "batch_size", None, "Images that it takes at once; any number if not given.", lower_bound=1
        )
        flags.DEFINE_list("platforms", None, "Where it runs: cpu, cuda, rocm, tpu. Default: cpu,cuda,tpu.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    checkpoint = command_line.checkpoint()
    out = _out(argv[1:], given.to)
    program = _program(given.to, given.batch_size, given.platforms)
    transfer_format.check_installed(formats.FORMATS[given.to], given.to)
    weights = loading.load(checkpoint, given.ema)
    command = ["python", "-m", "mixer.export", "--checkpoint", checkpoint, "--to", given.to]
    options = {"batch_size": given.batch_size, "platforms": given.platforms and ",".join(given.platforms)}
    command += [*(["--ema"] if given.ema else []), *(f"--{name}={value}" for name, value in options.items() if value)]
    command += [argv[1]]
    is_folder = given.to == "timm" and _is_folder(out)
    if is_folder:
        size, card = export_folder(weights, out)
    else:
        size, card = export(weights, given.to, out, command=shlex.join(command), program=program)
    beside = f"; {out.name}{form.beside[0]} is beside it" if (form := formats.FORMATS[given.to]).beside else ""
    print(f"{'the folder ' * is_folder}{argv[1]} written, {size / 1e6:,.1f} MB{beside}; its model card is {card}")


def _program(to: str, batch_size: int | None, platforms: list[str] | None) -> Program:
    """Returns how a program is written, by the values of the flags, None where one is not given.

    Raises:
      UserError: a flag has no meaning in this format, or there is no such platform.
    """
    for name, value in (("batch_size", batch_size), ("platforms", platforms)):
        if value is not None and not formats.FORMATS[to].is_program:
            with_them = ", ".join(name for name, form in formats.FORMATS.items() if form.is_program)
            raise UserError(f"--{name} says nothing about --to {to}: leave it out, or use --to {with_them}")
    return stablehlo.checked_program(batch_size, platforms)


def _out(arguments: list[str], to: str | None) -> epath.Path:
    """Returns the file to write; for timm also a folder, which has no suffix.

    Args:
      arguments: of the command, without flags.
      to: the value of --to.

    Raises:
      UserError: there is not one file, or it cannot be written in this format or at this place.
    """
    if to is None:
        raise UserError(f"--to is missing: give one of {', '.join(formats.FORMATS)}")
    suffix = formats.FORMATS[to].suffix
    if len(arguments) != 1:
        raise UserError(f"expected one file to write, such as model{suffix}, not {' and '.join(arguments) or 'none'}")
    bucket_check.check(arguments[0])
    out = epath.Path(arguments[0]) if bucket.is_remote(arguments[0]) else epath.Path(arguments[0]).expanduser()
    if to == "timm" and _is_folder(out):
        return out if bucket.is_remote(out) else epath.Path(os.path.abspath(out))  # whose name is not "." or ".."
    if out.suffix != suffix:
        raise UserError(f"{arguments[0]}: the name of a file for --to {to} ends in {suffix}")
    if not (bucket.is_remote(out) or out.parent.is_dir()):
        raise UserError(f"{arguments[0]}: the folder {out.parent} does not exist; make it first")
    if files.is_folder(out):
        raise UserError(f"{arguments[0]} is a folder; give the name of a file to write")
    return out


def _is_folder(out: epath.Path) -> bool:
    """Returns whether a place for timm is a folder: it is one, or no file is called so. timm's names have dots."""
    of_files = {form.suffix for form in formats.FORMATS.values()} | {".bin", ".pth", ".pt"}
    mistyped = out.suffix and difflib.get_close_matches(out.suffix, of_files, cutoff=0.8)
    return out.is_dir() or not (out.is_file() or mistyped)


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags, arguments="OUT")


if __name__ == "__main__":
    run()
