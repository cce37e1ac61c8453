"""What the scripts of the paper's experiments share: models of like cost, the way through their runs, tables.

An experiment is a series of ordinary runs below one folder. If it is interrupted, the same command continues it.
"""

from __future__ import annotations

import atexit
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from etils import epath, epy
from ml_collections import ConfigDict

import mixer
from mixer.runtime import files, json_text, streams

with epy.lazy_imports():  # they import JAX or TensorFlow, for which --help does not wait
    import jax

    from mixer import models, series
    from mixer.config import run_folder
    from mixer.runtime import compilation_cache, preemption

# `config.model` of each, for images of 32 pixels. A step of 64 images takes 2.4, 2.7 and 2.4 ms of a core for an image.
# BiT has a third of the others' products, but its convolutions are narrow, and a CPU is slow at them: the BiT with as
# many products, R14x1, takes 12 ms.
MODELS: dict[str, dict[str, Any]] = {
    "Mixer": {"variant": "Ti/4", "hidden_dim": 96, "tokens_mlp_dim": 48, "channels_mlp_dim": 384},
    "ViT": {"variant": "ViT-Ti/4", "num_blocks": 3, "hidden_dim": 96, "channels_mlp_dim": 384},
    "BiT": {"variant": "BiT-R14x0.5"},
}
_WIDTHS = ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")


def define_flags(output: str, seeds: int) -> None:
    """Defines the flags of every experiment, within a group of the help.

    Args:
      output: where everything goes by default.
      seeds: how many runs there are of everything by default.
    """
    flags.DEFINE_string("output", output, "The folder of all runs, of the table and of the picture.")
    flags.DEFINE_integer("seeds", seeds, "How many runs there are of everything, with seeds 0, 1, ...", lower_bound=1)


def output() -> epath.Path:
    """Returns the folder of --output."""
    return epath.Path(flags.FLAGS.output)


def run(main: Callable[[preemption.Stop], None], folder: epath.Path) -> None:
    """Runs an experiment, whose runs lie in `folder`. Asked to stop, it saves the run under way, with the status 75."""
    run_folder.make(folder, "--output")
    compilation_cache.keep_compiled(folder / "compiled")  # runs that differ by data or seed are one program
    streams.outlast()
    atexit.register(preemption.ignore)
    stop = preemption.Stop()
    stop.listen()
    try:
        main(stop)
    except preemption.PreemptedError as preempted:
        print(f"{preempted}; the same command continues")
        sys.exit(preemption.EXIT_STATUS)


def set_model(config: ConfigDict, name: str) -> None:
    """Sets the model of a config to one of `MODELS`."""
    config.model.update({**dict.fromkeys(_WIDTHS), **MODELS[name], "dtype": "float32"})


def planned(title: str, folder: epath.Path, config: ConfigDict) -> series.PlannedRun:
    """Returns a run, after opening its data.

    Args:
      title: of the run.
      folder: of the run.
      config: from `checks.checked`.

    Raises:
      UserError: its data cannot be opened, or the folder holds a run of another config or on other data.
    """
    found = series.PlannedRun(title, folder, config, series.opened(config, folder.parent / "cache"))
    found.result()
    return found


def train(runs: Sequence[series.PlannedRun], stop: preemption.Stop) -> list[bool]:
    """Trains the runs that are not done.

    Returns:
      For each run, whether its loss stayed finite.

    Raises:
      UserError: a run cannot go on.
      PreemptedError: the experiment was asked to stop, and the run that was under way is saved.
    """
    of_all = series.Series(len(runs), stop)
    return [bool(of_all.finished(one)) for one in runs]


def cost(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """Returns what a config's model is called, its parameters and the multiply-accumulates of a forward pass."""
    model, size = models.create(num_classes=num_classes, **config.model), config.input.image_size
    return {
        "name": models.name_of(model),
        "parameters": models.num_parameters(models.shapes(model, size)),
        "forward_macs": model.forward_macs(size),
    }


def costs_in_words(costs: dict[str, dict[str, Any]]) -> str:
    """Returns a sentence about what the models cost, given what `cost` returned for each."""
    each = (
        f"{of['name']} has {of['parameters']:,} parameters and {of['forward_macs'] / 1e6:.1f} million "
        "multiply-accumulates"
        for of in costs.values()
    )
    return f"{'; '.join(each)} (forward, one image)."


def spread(shares: Sequence[float], runs: int) -> str:
    """Returns mean and standard deviation in per cent, given those of the runs that did not diverge, of so many."""
    if not shares:
        return "diverged"
    deviation = f" +- {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    diverged = f" ({runs - len(shares)} diverged)" if len(shares) < runs else ""
    return f"{100 * statistics.mean(shares):.1f}{deviation}{diverged}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table in Markdown, whose columns are aligned."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    first, *rest = (f"| {' | '.join(row)} |" for row in padded)
    return "\n".join([first, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *rest])


def write(text: str, found: dict[str, Any], figure: Any, picture: str) -> None:
    """Writes text, numbers and figure into the output folder, and prints the text and where all is.

    Args:
      text: Markdown, for `results.md`.
      found: for `results.json`, which also says what made it.
      figure: of matplotlib.
      picture: name of its PNG.
    """
    folder, made_by = output(), {"command": ["python", *sys.argv], "mixer": mixer.__version__, "jax": jax.__version__}
    files.write_text(folder / "results.md", text + "\n")
    files.write_text(folder / "results.json", json_text.dumps({**found, "made_by": made_by}, indent=2) + "\n")
    with (folder / picture).open("wb") as file:
        figure.savefig(file, format="png", dpi=110)
    print(f"\n{text}\n\nTable {folder}/results.md, numbers {folder}/results.json, picture {folder}/{picture}")
