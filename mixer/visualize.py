"""Draws what a Mixer has learnt: `python -m mixer.visualize --checkpoint runs/cifar10 --output figures`.

The folder gets PNGs: the first-layer units of token mixing as images over the patches, block by block (figures 5 and 6
of the paper), the stem's filters (figure 7), and the accuracy of the head after each block. `numbers.json` says how
far the units come in pairs of opposite phase, and how local they are, beside random weights of the same shape. Where
token mixing was extended to a larger image, as much of the random weights lies in one part of the image; where it was
interpolated, there are none.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags
from etils import epath, epy

from mixer.config import command_line, help_text, recipe, tasks
from mixer.runtime import bucket, bucket_check, files, json_text
from mixer.runtime.errors import UserError, first_line
from mixer.training.console import Console

with epy.lazy_imports():  # they import JAX or matplotlib, for which --help does not wait
    import jax

    from mixer.analysis import drawings, lens, units
    from mixer.evaluation import scoring
    from mixer.transfer import lineage, loading

if TYPE_CHECKING:
    from mixer.transfer.weights import Weights

NUMBERS_FILE = "numbers.json"
_PICTURE = re.compile(r"lens\.png|units_block_[0-9]+\.png")  # not drawn by every call


def draw_weights(weights: Weights, blocks: list[int], folder: epath.Path) -> dict[str, Any]:
    """Draws the stem and the units of some blocks. Returns the numbers of all blocks.

    Args:
      weights: of a whole Mixer.
      blocks: whose units are drawn, numbered from 0.
      folder: where the PNGs go, local or gs://.
    """
    name, params = f"{weights.described()} ({weights.source})", weights.params
    drawings.write(folder / "stem.png", drawings.stem_figure(f"{name}: filters of the stem", params["stem"]["kernel"]))
    numbers, tokens = [], weights.mixer().tokens(weights.image_size)[:-1]
    found = units.of_model(params, tokens, lineage.interpolated(weights.config))
    for block, (of_block, structure) in enumerate(found):
        numbers.append(units.numbers(block, of_block, structure))
        if block in blocks:
            title = f"{name}: token-mixing units of block {block}"
            drawings.write(folder / f"units_block_{block}.png", drawings.units_figure(title, of_block, structure))
    return {"blocks": numbers}


def draw_lens(weights: Weights, config: ml_collections.ConfigDict, split: str, folder: epath.Path) -> dict[str, Any]:
    """Draws the accuracy of the head after each block, computed in float32. Returns the numbers.

    Args:
      weights: of a Mixer with a head.
      config: as `config.input`.
      split: in TFDS notation.
      folder: where the PNG goes, local or gs://.

    Raises:
      UserError: the data is not there, has no labels, or its classes are not the model's.
    """
    context = scoring.make_context(weights, config, "", batch_size=64 * jax.device_count())
    of_mixer = lens.Lens(recipe.evaluator_settings("classification", split=split), context)
    through = functools.partial(Console(to_stderr=True).counted, "evaluating the head after each block")
    shares = of_mixer.accuracies(weights.params, through)
    if not shares:
        raise UserError(f"{config.dataset} {split} has no labels")
    title = f"{weights.described()} ({weights.source}) on {config.dataset} {split}: accuracy after each block"
    drawings.write(folder / "lens.png", drawings.lens_figure(title, shares, of_mixer.chance))
    return {"lens": {"dataset": config.dataset, "split": split, "accuracy_after_blocks": shares}}


# ------------------------------------------------------------------------------------------------------- command line


def define_flags() -> None:
    """Defines the command's flags."""
    command_line.define_checkpoint_flags("--checkpoint B/16-i21k --output figures")
    with help_text.group("What is drawn", "--checkpoint runs/cifar10 --output figures --blocks 0,1,2,3"):
        flags.DEFINE_string("output", None, "The folder for the figures; it is made if it is not there.")
        flags.DEFINE_list("blocks", None, "Blocks whose units are drawn, from 0; the first three if not given.")
    with help_text.group("Accuracy after each block", "--checkpoint B/16-i1k --output figures --task imagenet"):
        flags.DEFINE_string("task", None, f"One of {', '.join(tasks.TASKS)}; the run's own data if not given.")
        flags.DEFINE_string("data_dir", None, "Where the dataset is prepared; the run's if not given.")
        flags.DEFINE_string("split", None, "The split; the one on which the run is evaluated if not given.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    checkpoint = command_line.checkpoint()
    if not given.output:
        raise UserError("--output is missing: name a folder for the figures, such as --output figures")
    bucket_check.check(given.output)
    weights = loading.load(checkpoint, given.ema)
    blocks = _blocks(given.blocks, weights.mixer().num_blocks)
    folder = epath.Path(given.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder} is no folder and cannot become one ({first_line(error)})") from None
    _delete_pictures(folder)
    numbers = {"checkpoint": weights.source, "step": weights.step, "model": weights.described()}
    numbers |= draw_weights(weights, blocks, folder)
    numbers |= _lens(weights, folder)
    files.write_text(folder / NUMBERS_FILE, json_text.dumps(numbers, indent=2) + "\n")
    print("\n".join([*_table(numbers), f"figures and {NUMBERS_FILE} in {folder}"]))


def _delete_pictures(folder: epath.Path) -> None:
    """Deletes what an earlier call has drawn and this one may not, so that all pictures are of the same weights.

    Raises:
      UserError: the folder cannot be listed, or a picture not be deleted.
    """
    try:
        names = bucket.children(folder)[1] if bucket.is_remote(folder) else [path.name for path in folder.iterdir()]
        for name in filter(_PICTURE.fullmatch, names):
            files.delete(folder / name)
    except OSError as error:
        raise UserError(f"--output={folder}: its earlier pictures cannot be deleted ({first_line(error)})") from None


def _blocks(given: list[str] | None, number: int) -> list[int]:
    """Returns the blocks to draw.

    Raises:
      UserError: there is no such block.
    """
    if given is None:
        return list(range(min(number, units.FIGURES_OF_BLOCKS)))
    wrong = [text for text in given if not (text.isdecimal() and int(text) < number)]
    if wrong or not given:
        raise UserError(f"--blocks={','.join(given)}: expected numbers from 0 to {number - 1}, such as --blocks=0,1")
    return sorted({int(text) for text in given})


def _lens(weights: Weights, folder: epath.Path) -> dict[str, Any]:
    """Draws the accuracy after each block. Weights that name no data of their own go without, in a line that says so.

    Raises:
      UserError: the data that a flag asks for cannot be used.
    """
    given = flags.FLAGS
    asked = given.task or given.data_dir or given.split
    try:
        if weights.model().num_classes == 0:
            raise UserError(f"{weights.source} has no head")
        with command_line.flags_in_messages("--task" if given.task else None):
            config, split = scoring.data(weights, command_line.task()[1], data_dir=given.data_dir, split=given.split)
            return draw_lens(weights, config, split, folder)
    except UserError as error:
        if asked:
            raise
        print(f"no accuracy after each block: {error}", file=sys.stderr)
        return {}


def _table(numbers: dict[str, Any]) -> list[str]:
    """Returns lines with the numbers of each block."""
    columns = "{:>6}{:>28}{:>28}{:>12}".format
    lines = [numbers["model"], columns("block", "most negative correlation", "tokens of half the energy", "accuracy")]
    accuracies = numbers.get("lens", {}).get("accuracy_after_blocks", [])
    for number, block in enumerate(numbers["blocks"]):
        opposite, energy = block["opposite_at_random"], block["half_energy_at_random"]
        lines.append(
            columns(
                number, f"{block['opposite']:.2f}{'' if opposite is None else f' (random {opposite:.2f})'}",
                f"{block['half_energy_tokens']:g}{'' if energy is None else f' (random {energy:g})'} "
                f"of {block['tokens']}",
                f"{accuracies[number + 1]:.2%}" if accuracies else "",
            )
        )  # fmt: skip
    factor = max(block["extended"] for block in numbers["blocks"])
    if numbers["blocks"][0]["opposite_at_random"] is None:
        lines.append("no random units: these began as interpolated ones, which are smooth without any training")
    elif factor > 1:
        lines.append(
            f"token mixing was extended by {factor} x {factor} (Appendix C): random units have as much of their energy "
            "in one part of the image"
        )
    if any(block["compared"] < block["units"] for block in numbers["blocks"]):
        lines.append(f"of the units of a block, the first {units.MAX_UNITS:,} were compared")
    return lines


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags)


if __name__ == "__main__":
    run()
