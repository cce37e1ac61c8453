"""Puts a page together: one HTML file with its styles, its scripts and its data, which opens without a network."""

import importlib.resources
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe

import mixer
from mixer.page import runs
from mixer.runtime import json_text

_STYLES = ("uPlot.min.css", "page.css")
_SCRIPTS = ("uPlot.min.js", "charts.js", "drawing.js", "forward.js", "weights.js", "model_view.js", "start.js")


class Evaluated(NamedTuple):
    """What the page shows of a run's weights and of its evaluation.

    Attributes:
      missing: why there are no predictions; empty if there are.
      predictions: pictures, each with source (a data URL), guess, share, label (empty if unknown) and right (None
        without a label).
      classes: name and accuracy of each class that occurs, the most accurate first; none for multi-label data.
      said: what was evaluated, and on how many images.
      figures: drawings of the weights, each with title and source.
      blocks: the numbers of `units.structure` for each block.
      undrawn: why there are no figures, where there are weights; empty if there are.
      step: of the weights; None if there are none.
      called: what the weights are: weights, or averaged parameters.
      lens: accuracy after the stem, the first block, ...; empty if it was not measured.
    """

    missing: str = ""
    predictions: Sequence[dict[str, Any]] = ()
    classes: Sequence[tuple[str, float]] = ()
    said: str = ""
    figures: Sequence[dict[str, str]] = ()
    blocks: Sequence[dict[str, Any]] = ()
    undrawn: str = ""
    step: int | None = None
    called: str = "weights"
    lens: Sequence[float] = ()


def page(
    shown: Sequence[runs.ShownRun], evaluated: Sequence[Evaluated], *, model: dict[str, Any] | None, no_model: str,
    pictures: dict[str, Any], command: str,
) -> str:  # fmt: skip
    """Returns the HTML of a page.

    Args:
      shown: the runs, as `runs.read` returns them.
      evaluated: for each run.
      model: the first run's, as `live_model.packed` returns it; None if it is not part of the page.
      no_model: why it is not.
      pictures: the model's, with `pictures` (data URLs) and `labels`.
      command: that makes the page.
    """
    charts = runs.charts(shown) + _lens_chart(shown, evaluated)
    data = {"charts": charts, "model": model, "samples": pictures}
    parts = [
        {"name": run.name, "config": runs.settings(run), "starts": runs.starts(run), **of_run._asdict()}
        for run, of_run in zip(shown, evaluated, strict=True)
    ]
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FunctionLoader(_file), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=f"{'Runs' if len(shown) > 1 else 'Run'} {', '.join(run.name for run in shown)}",
        styles=_inlined(_STYLES), scripts=_inlined(_SCRIPTS), licence=_file("uPlot-LICENSE"),
        # Within a script element, only a < could end it early.
        data=markupsafe.Markup(json_text.dumps(data).replace("<", "\\u003c")),
        sections=_sections(parts), runs=parts, summary=runs.summary(shown),
        differences=runs.differences(shown), bad_images=runs.bad_images(shown), charts=charts,
        model=model, no_model=no_model, command=command, version=mixer.__version__,
    )  # fmt: skip


def _sections(parts: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns the anchors of the page and their names."""
    found = [("result", "Result"), ("model", "The model at work"), ("curves", "Curves"), ("images", "Unusable images")]
    for number, run in enumerate(parts):
        of_run = f" ({run['name']})" if len(parts) > 1 else ""
        names = {"classes": "Classes", "predictions": "Predictions", "figures": "Weights"}
        found += [(f"{part}{number}", name + of_run) for part, name in names.items() if run[part]]
    return found


def _lens_chart(shown: Sequence[runs.ShownRun], evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Returns a chart of the accuracy after each block, if it was measured for a run."""
    curves = [
        {"name": run.name, "x": list(range(len(of_run.lens))), "y": [float(f"{share:.5g}") for share in of_run.lens]}
        for run, of_run in zip(shown, evaluated, strict=True)
        if of_run.lens
    ]
    if not curves:
        return []
    said = "; ".join(f"{curve['name']}: " + ", ".join(f"{share:.1%}" for share in curve["y"]) for curve in curves)
    note = "What the trained head would answer if the model ended after this block; 0 is the stem alone."
    title = "Accuracy of the head after each block"
    return [{"title": title, "x": "blocks", "curves": curves, "said": said, "note": note, "percent": True}]


def _file(name: str) -> str:
    return (importlib.resources.files("mixer.page") / "static" / name).read_text(encoding="utf-8")


def _inlined(names: Sequence[str]) -> markupsafe.Markup:
    return markupsafe.Markup("\n".join(map(_file, names)))
