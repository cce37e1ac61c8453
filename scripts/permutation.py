"""The paper's figure 4 at a small size: what a Mixer and a ResNet lose if pixels are permuted.

    python scripts/permutation.py --data_dir DIR

Each is trained on CIFAR-10, which `--data_dir` holds as TFDS prepares it, in three ways: on images as they are, with
patches shuffled and pixels within each patch by one shared permutation, and with all pixels shuffled. The permutation
is the same for all images, in training and in evaluation. A Mixer loses nothing by the first: with other initial
weights, which are as likely, it is the same model. How much it loses by the second is its bias to patches.

There are three seeds, so 18 runs, each an ordinary `mixer.train` below `--output`. Interrupted, the same command
continues. At the end it prints a table, and writes it and a picture: results.md, results.json, permutation.png.

The runs of 1.5 epochs take 49 minutes of processor time, so at least 25 on two cores. docs/understanding.md has the
table.
"""

from __future__ import annotations

import statistics
from typing import Any

from absl import flags
from etils import epy
from ml_collections import ConfigDict

from mixer import experiment
from mixer.config import command_line, config_file, help_text
from mixer.runtime.errors import UserError

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    from mixer import recipe
    from mixer.config import checks
    from mixer.runtime import preemption

COMPARED = ("Mixer", "BiT")
PATCH = 4  # pixels: the Mixer's
WAYS = {  # what `input.permutation` is, and what the paper saw: Mixer-B/16 and ResNet50x1 on JFT-300M, figure 4
    "none": {"Mixer": "", "BiT": ""},
    "patches": {"Mixer": "none", "BiT": "strong"},
    "pixels": {"Mixer": "about 45%", "BiT": "about 75%"},
}
LABELS = {"none": "as they are", "patches": "patches, and pixels within them", "pixels": "all pixels"}


def define_flags() -> None:
    """Defines the command's flags."""
    with help_text.group("The runs", "--data_dir DIR --epochs 1.5 --seeds 3"):
        flags.DEFINE_string("data_dir", None, "Where TFDS has prepared cifar10; TFDS' own default if not given.")
        flags.DEFINE_float("epochs", 1.5, "Length of each run.")
        experiment.define_flags("runs/permutation", seeds=3)


def main(argv: list[str]) -> None:
    """Runs the command."""
    if not 0 < flags.FLAGS.epochs < float("inf"):
        raise UserError(f"--epochs={flags.FLAGS.epochs}: expected a finite number above 0")
    experiment.run(_experiment, experiment.output())


def _experiment(stop: preemption.Stop) -> None:
    seeds, folder = range(flags.FLAGS.seeds), experiment.output()
    names = [(model, way, seed) for seed in seeds for model in COMPARED for way in WAYS]
    runs = [
        experiment.planned(
            f"{model}, {LABELS[way]}, seed {seed}", folder / f"{model.lower()}_{way}_{seed}", _config(model, way, seed)
        )
        for model, way, seed in names
    ]
    finite = experiment.train(runs, stop)
    accuracies: dict[str, dict[str, list[float]]] = {model: {way: [] for way in WAYS} for model in COMPARED}
    for (model, way, _), run, is_finite in zip(names, runs, finite, strict=True):
        if is_finite:
            accuracies[model][way].append(_accuracy(run))
    costs = {model: experiment.cost(_config(model, "none", 0), 10) for model in COMPARED}
    rows = [
        [
            model, LABELS[way], experiment.spread(of[way], len(seeds)),
            ", ".join(f"{100 * one:.1f}" for one in of[way]), _drop(of, way), WAYS[way][model],
        ]
        for model, of in accuracies.items()
        for way in WAYS
    ]  # fmt: skip
    of_seeds = f"mean and standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    head = ("model", "pixels permuted", "accuracy (%)", "of each seed", "drop", "drop in the paper")
    text = "\n\n".join(
        [
            experiment.table(head, rows),
            f"CIFAR-10, {flags.FLAGS.epochs:g} epochs, {of_seeds} on the test "
            f"split. The drop is relative to the same model on images as they are. {experiment.costs_in_words(costs)} "
            "The paper: Mixer-B/16 and ResNet50x1, 5-shot ImageNet after JFT-300M.",
        ]
    )
    found = {"epochs": flags.FLAGS.epochs, "accuracy": accuracies, "models": costs}
    experiment.write(text, found, _figure(accuracies), "permutation.png")


def _config(model: str, way: str, seed: int) -> ConfigDict:
    config = config_file.run(config_file.find("cifar10_plain"))
    experiment.set_model(config, model)
    config.seed = seed
    config.input.data_dir = flags.FLAGS.data_dir
    config.input.permutation = way
    config.input.permutation_patch = PATCH if way == "patches" else None
    for name, share in {"total": 1, "warmup": 1 / 10, "eval": 1, "checkpoint": 1 / 4}.items():
        recipe.duration(config, name, epochs=flags.FLAGS.epochs * share)
    config.checkpoint.keep_last, config.checkpoint.keep_best = 1, 0
    return checks.checked(config)


def _accuracy(run: Any) -> float:
    return float(run.result()[run.metric])


def _drop(of: dict[str, list[float]], way: str) -> str:
    """Returns by how much of itself the mean accuracy is below that on images as they are."""
    if way == "none" or not (of["none"] and of[way]):
        return ""
    before = statistics.mean(of["none"])
    return f"{100 * (before - statistics.mean(of[way])) / before:.1f}%"


def _figure(accuracies: dict[str, dict[str, list[float]]]) -> Any:
    """Draws a bar for each model and way, and a dot for each seed."""
    from matplotlib.figure import Figure  # only now: it takes a second

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(WAYS)
    for number, way in enumerate(WAYS):
        places = [place + (number - 1) * width for place in range(len(COMPARED))]
        shares = [[100 * one for one in accuracies[model][way]] for model in COMPARED]
        means = [statistics.mean(of) if of else 0.0 for of in shares]
        bars = axes.bar(places, means, 0.92 * width, label=LABELS[way], alpha=0.75)
        axes.bar_label(
            bars, [f"{mean:.1f}" if of else "diverged" for mean, of in zip(means, shares, strict=True)], padding=4
        )
        for place, of in zip(places, shares, strict=True):
            axes.plot([place] * len(of), of, "k.", markersize=4)
    axes.axhline(10, color="gray", linestyle=":", label="chance")
    axes.set_xticks(range(len(COMPARED)), COMPARED)
    axes.set(ylabel="accuracy on CIFAR-10 (%)", title="Pixels permuted, the same way in all images")
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])  # room for the numbers
    figure.legend(loc="outside lower center", ncols=len(WAYS) + 1, fontsize="small")
    return figure


if __name__ == "__main__":
    command_line.run(main, define_flags)
