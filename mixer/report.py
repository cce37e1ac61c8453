"""Makes a page of one or several runs: `python -m mixer.report --workdir runs/a runs/b --output report.html`.

The page is one file that opens in any browser, without a network. It has what was run, curves, predictions and the
weights of each run; and, if it is small, the model of the first run itself, which then runs in the page.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import flags
from etils import epath, epy

from mixer.config import command_line, help_text, recipe
from mixer.data.class_names import readable
from mixer.runtime import bucket_check, files
from mixer.runtime.errors import UserError, first_line
from mixer.training.console import Console

with epy.lazy_imports():  # they import JAX or matplotlib, for which --help does not wait
    import jax
    import jax.numpy as jnp

    from mixer import models
    from mixer.analysis import drawings, lens, samples, units
    from mixer.evaluation import scoring
    from mixer.models import mlp_mixer
    from mixer.page import live_model, pictures, runs, write
    from mixer.training import line_metrics, losses
    from mixer.transfer import lineage, loading

if TYPE_CHECKING:
    import ml_collections

    from mixer.evaluation.accuracy import Evaluation
    from mixer.transfer.weights import Weights

_PICTURES = 100  # drawn of a split
_PICTURES_BYTES = 600_000  # of the pictures that the model in the page takes


class _Model(NamedTuple):
    """The model of a run, and samples of its evaluation."""

    weights: Weights
    config: ml_collections.ConfigDict
    drawn: samples.Samples


def make(workdirs: Sequence[str], *, ema: bool, data_dir: str | None, evaluates: bool, command: str) -> str:
    """Returns the HTML of a page of these runs.

    Args:
      workdirs: folders of runs, local or gs://.
      ema: show the averaged parameters.
      data_dir: where the data of the runs is prepared; None for where it was.
      evaluates: whether the runs' evaluation data is read, for predictions and the accuracy of classes.
      command: that makes the page, for its last line.

    Raises:
      UserError: a folder is not that of a run; `ema` or `data_dir` was given and cannot be used.
    """
    found = runs.read(workdirs)
    shown = [_of_weights(run, ema, data_dir, evaluates) for run in found]
    model: dict[str, Any] | None = None
    pictures_of_model: dict[str, Any] = {}
    first, of_first = shown[0]
    no_model = first.missing
    try:
        if of_first is not None:
            model, pictures_of_model = _live(of_first)
    except UserError as error:
        no_model = str(error)
    if model is None and evaluates:
        Console(to_stderr=True).keep(f"no model at work in the page: {no_model}")
    return write.page(
        found, [of_run for of_run, _ in shown], model=model, no_model=no_model, pictures=pictures_of_model,
        command=command,
    )  # fmt: skip


def _of_weights(
    run: runs.ShownRun, ema: bool, data_dir: str | None, evaluates: bool
) -> tuple[write.Evaluated, _Model | None]:
    """Draws the weights of a run and evaluates them. What is not possible is left out, with the reason.

    Raises:
      UserError: it is not possible because of `ema` or `data_dir`, which somebody asked for.
    """
    try:
        weights = loading.load(str(run.workdir), ema)
        of_run = _drawn(weights)
    except UserError as error:
        if ema:
            raise
        return write.Evaluated(missing=str(error)), None
    if not evaluates:
        return of_run._replace(missing="--noevaluate was given"), None
    try:
        with command_line.flags_in_messages():
            return _evaluated(of_run, weights, data_dir)
    except UserError as error:
        if data_dir:
            raise
        return of_run._replace(missing=str(error)), None


def _drawn(weights: Weights) -> write.Evaluated:
    """Draws the weights of a Mixer; those of another model have no such drawings.

    Raises:
      UserError: they are not the parameters of their model.
    """
    model = weights.model()
    of_run = write.Evaluated(step=weights.step, called=weights.called)
    if not isinstance(model, mlp_mixer.MlpMixer):
        return of_run._replace(undrawn=f"they are of Mixers, and this is {models.name_of(model)}")
    blocks, figures = [], []
    tokens = model.tokens(weights.image_size)[:-1]
    found = units.of_model(weights.params, tokens, lineage.interpolated(weights.config))
    for block, (of_block, structure) in enumerate(found):
        blocks.append(units.numbers(block, of_block, structure))
        if block < units.FIGURES_OF_BLOCKS:
            title = f"Token-mixing units of block {block}"
            figures.append(_figure(title, drawings.units_figure(title, of_block, structure)))
    title = "Filters of the stem"
    figures.append(_figure(title, drawings.stem_figure(title, weights.params["stem"]["kernel"])))
    return of_run._replace(figures=figures, blocks=blocks)


def _figure(title: str, figure: Any) -> dict[str, str]:
    return {"title": title, "source": pictures.data_url(drawings.png(figure), "png")}


def _evaluated(of_run: write.Evaluated, weights: Weights, data_dir: str | None) -> tuple[write.Evaluated, _Model]:
    """Adds what the evaluation split of a run says.

    Raises:
      UserError: the data is not there, or cannot be used.
    """
    assert weights.config is not None
    config, split = scoring.data(weights, None, data_dir=data_dir)
    batch_size = 64 * jax.device_count()
    counted = Console(to_stderr=True).counted
    through = functools.partial(counted, f"evaluating {weights.source}")
    loss = weights.config.loss
    found, source = scoring.evaluate(weights, config, split, loss=loss, batch_size=batch_size, through=through)
    context = scoring.make_context(weights, config, loss, batch_size)
    drawn = samples.draw(source, config, context, weights.params, _PICTURES)
    accuracies: list[float] = []
    if isinstance(context.model, mlp_mixer.MlpMixer):
        of_mixer = lens.Lens(recipe.evaluator_settings("classification", split=split), context)
        through = functools.partial(counted, "evaluating the head after each block")
        accuracies = of_mixer.accuracies(weights.params, through)
    names = readable(source.class_names)
    of_run = of_run._replace(
        predictions=_predictions(drawn, losses.LOSSES[loss], names),
        classes=_classes(found, names),
        said=f"{config.dataset} {split}: {found.metrics['count']:,} images, in float32, "
        f"with the {weights.called} of step {weights.step:,}.",
        lens=accuracies,
    )
    return of_run, _Model(weights, config, drawn)


def _classes(found: Evaluation, names: Sequence[str]) -> list[tuple[str, float]]:
    """Returns name and accuracy of each class that occurs, the most accurate first."""
    if found.class_accuracy is None:
        return []
    shares = zip(names, found.class_accuracy.tolist(), strict=True)
    return sorted(((name, share) for name, share in shares if not math.isnan(share)), key=lambda of: -of[1])


def _predictions(drawn: samples.Samples, loss: losses.Loss, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns each sample with the model's first guess."""
    shares = np.asarray(loss.probabilities(jnp.asarray(drawn.logits)))
    found = []
    guesses = np.argmax(drawn.logits, axis=1)  # probabilities near 1 are equal in float32
    firsts = np.asarray(line_metrics.ranks(jnp.asarray(drawn.logits), jnp.asarray(drawn.labels))) == 0
    columns = (drawn.pictures, drawn.labels, shares, guesses, firsts)
    for picture, labels, of_sample, guess, first in zip(*columns, strict=True):
        own = labels[labels >= 0]
        found.append({
            "source": pictures.thumbnail(picture), "guess": names[guess], "share": float(of_sample[guess]),
            "label": ", ".join(names[label] for label in own), "right": bool(first) if len(own) else None,
        })  # fmt: skip
    return found


def _live(of_run: _Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Packs a model and its pictures for the page, as many as 600 kB hold.

    Raises:
      UserError: it cannot be part of a page.
    """
    weights, config, drawn = of_run
    live_model.check(weights, config)
    sources = [pictures.exact(picture) for picture in drawn.pictures]
    number = max(int(np.sum(np.cumsum([len(source) for source in sources]) <= _PICTURES_BYTES)), 1)
    drawn = samples.Samples(*(part[:number] for part in drawn))
    names = weights.shown_names()
    labels = [", ".join(names[label] for label in labels if label >= 0) for labels in drawn.labels]
    return live_model.packed(weights, drawn, config), {"pictures": sources[:number], "labels": labels}


# ------------------------------------------------------------------------------------------------------- command line


def define_flags() -> None:
    """Defines the command's flags."""
    with help_text.group("The runs", "--workdir runs/muon runs/adam --output report.html"):
        flags.DEFINE_string("workdir", None, "The folder of a run; more may follow, to be shown side by side.")
        flags.DEFINE_bool("ema", False, "The runs' averaged parameters.")
        flags.DEFINE_string("output", "report.html", "The page, local or gs://.")
    with help_text.group("Their evaluation data", "--workdir runs/cifar10 --data_dir DIR"):
        flags.DEFINE_bool("evaluate", True, "Read it, for predictions, the accuracy of classes and the model at work.")
        flags.DEFINE_string("data_dir", None, "Where it is prepared; where it was if not given.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    workdirs = [*([given.workdir] if given.workdir else []), *argv[1:]]
    if not workdirs:
        raise UserError("--workdir is missing: give the folder of a run, or of several, such as --workdir runs/cifar10")
    if not given.evaluate:
        command_line.refuse_unread(("data_dir",), "with --noevaluate")
    command = shlex.join(["python", "-m", "mixer.report", *sys.argv[1:]])
    bucket_check.check(given.output)
    with contextlib.ExitStack() as stack:
        with _output_told(given.output):  # before the work
            file = stack.enter_context(files.opened_to_write(epath.Path(given.output)))
        page = make(
            workdirs, ema=given.ema, data_dir=given.data_dir, evaluates=given.evaluate, command=command
        ).encode()
        with _output_told(given.output):  # in a bucket, all of it is written now
            file.write(page)
            stack.close()
    print(f"{given.output}: {len(page) / 1e6:.1f} MB")


@contextlib.contextmanager
def _output_told(output: str) -> Iterator[None]:
    """Turns an OSError into one that names --output."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--output={output} cannot be written ({first_line(error)})") from None


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags, arguments="[WORKDIR ...]")


if __name__ == "__main__":
    run()
