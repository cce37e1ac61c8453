"""The paper's figure 2 at a small size: few-shot accuracy against the amount of data to pre-train on.

    python scripts/scaling.py

A Mixer, a ViT and a BiT of like cost are pre-trained on 3, 10, 30 and 100% of the upstream data, each for the same
number of steps. The subsets are nested: each is the beginning of the split, whose order TFDS has shuffled. Of each run
the checkpoint that is the most accurate on upstream validation counts (it is kept in the run's folder); its features
are scored by 5-shot accuracy on handwritten digits, which are no upstream class.

The upstream data are fractals, which are drawn here and need no download; or, with `--upstream cifar10`, CIFAR-10,
which `--data_dir` holds as TFDS prepares it. Each run is an ordinary `mixer.train` below `--output`. Interrupted, the
same command continues. At the end it prints a table, and writes it and a picture: results.md, results.json,
scaling.png.

The 12 runs of 2,000 steps take 60 minutes of processor time, so at least 30 on two cores. docs/understanding.md has the
table.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from etils import epy
from ml_collections import ConfigDict

from mixer import experiment
from mixer.config import command_line, config_file, help_text
from mixer.training.metrics import read_metrics

with epy.lazy_imports():  # they import JAX or TensorFlow, for which --help does not wait
    from mixer import recipe
    from mixer.config import checks
    from mixer.data import readers
    from mixer.evaluation import few_shot
    from mixer.runtime import preemption

SHARES = (3, 10, 30, 100)  # per cent
SHOTS = 5
EVALUATIONS = 10  # in a run
BATCH_SIZE = 64  # images
METRIC = f"fewshot/digits_32_{SHOTS}shot"


class Upstream(NamedTuple):
    """What the models are pre-trained on.

    Attributes:
      dataset: its name.
      train: the split of which subsets are taken, from its beginning: a subset of n images is NAME[:n].
      validation: the split by which a run is stopped early. It shares no image with `train`.
      crop: `input.crop`.
    """

    dataset: str
    train: str
    validation: str
    crop: str


UPSTREAMS = {
    "fractals": Upstream("fractals/64x500x32", "train", "validation", "resize"),
    "cifar10": Upstream("cifar10", "train[:90%]", "train[90%:]", "pad"),  # the test split chooses nothing
}


class Subset(NamedTuple):
    """A part of the upstream data.

    Attributes:
      share: in per cent.
      images: in it.
      least, most: images of the smallest and of the largest class.
    """

    share: int
    images: int
    least: int
    most: int


class Best(NamedTuple):
    """The best evaluation of a run.

    Attributes:
      step: of the evaluation.
      validation: upstream accuracy.
      few_shot: accuracy on the digits at this step.
    """

    step: int
    validation: float
    few_shot: float


def define_flags() -> None:
    """Defines the command's flags."""
    with help_text.group("The data", "--upstream cifar10 --data_dir DIR"):
        flags.DEFINE_enum("upstream", "fractals", list(UPSTREAMS), "What the models are pre-trained on.")
        flags.DEFINE_string("data_dir", None, "Where the datasets are; OUTPUT/data if not given.")
    with help_text.group("The runs", "--steps 2000 --seeds 1"):
        flags.DEFINE_integer("steps", 2_000, f"Length of each run, of {BATCH_SIZE} images a step.", lower_bound=1)
        experiment.define_flags("runs/scaling", seeds=1)


def main(argv: list[str]) -> None:
    """Runs the command."""
    experiment.run(_experiment, experiment.output())


def _experiment(stop: preemption.Stop) -> None:
    seeds, folder = range(flags.FLAGS.seeds), experiment.output()
    subsets = _subsets()
    names = [(model, subset, seed) for seed in seeds for subset in subsets for model in experiment.MODELS]
    runs = [
        experiment.planned(
            f"{model}, {subset.share}%, seed {seed}", folder / f"{model.lower()}_{subset.share}_{seed}",
            _config(model, subset, seed),
        )
        for model, subset, seed in names
    ]  # fmt: skip
    finite = experiment.train(runs, stop)
    best: dict[str, dict[int, list[Best]]] = {
        model: {subset.share: [] for subset in subsets} for model in experiment.MODELS
    }
    untrained: dict[str, list[float]] = {model: [] for model in experiment.MODELS}
    for (model, subset, _), run, is_finite in zip(names, runs, finite, strict=True):
        if is_finite:
            best[model][subset.share].append(_best(run.folder))
        if subset == subsets[0]:  # those of a seed begin alike
            untrained[model] += [line[METRIC] for line in read_metrics(run.folder) if line["step"] == 0]
    classes = len(_source().class_names)
    costs = {model: experiment.cost(_config(model, subsets[0], 0), classes) for model in experiment.MODELS}
    found = {
        "upstream": flags.FLAGS.upstream, "steps": flags.FLAGS.steps, "models": costs,
        "subsets": [subset._asdict() for subset in subsets],
        "best": {model: {share: [one._asdict() for one in of] for share, of in shares.items()}
                 for model, shares in best.items()},
        "untrained": untrained,
    }  # fmt: skip
    experiment.write(_text(best, untrained, subsets, costs), found, _figure(best, untrained, subsets), "scaling.png")


def _data_dir() -> str:
    return flags.FLAGS.data_dir or str(experiment.output() / "data")


def _source() -> Any:
    """Opens the whole upstream split."""
    config, upstream = recipe.base().input, UPSTREAMS[flags.FLAGS.upstream]
    config.dataset, config.data_dir = upstream.dataset, _data_dir()
    return readers.open_source(config, upstream.train, experiment.output() / "cache")


def _subsets() -> list[Subset]:
    """Counts the images of each class in each subset, and says how even they are."""
    source, found = _source(), []
    labels = few_shot.class_numbers(source)
    for share in SHARES:
        images = max(round(share / 100 * len(labels)), 1)
        counts = np.bincount(labels[:images][labels[:images] >= 0], minlength=len(source.class_names))
        found.append(Subset(share, images, int(counts.min()), int(counts.max())))
        print(f"{share}% are {images:,} images, of each class {counts.min():,} to {counts.max():,}")
    return found


def _config(model: str, subset: Subset, seed: int) -> ConfigDict:
    upstream, steps = UPSTREAMS[flags.FLAGS.upstream], flags.FLAGS.steps
    config = config_file.run(config_file.find("cifar10_plain"))
    experiment.set_model(config, model)
    config.seed = seed
    config.batch_size = BATCH_SIZE
    config.eval_at_start = True  # what the features of random parameters are worth
    config.input.dataset, config.input.data_dir, config.input.crop = upstream.dataset, _data_dir(), upstream.crop
    config.input.train_split = f"{upstream.train.partition('[')[0]}[:{subset.images}]"
    config.input.eval_split = upstream.validation
    config.fewshot.update({"dataset": "digits/32", "train_split": "train_seed0", "test_split": "test"})
    config.fewshot.update({"data_dir": str(experiment.output() / "data"), "eval_resize": 32, "shots": (SHOTS,)})
    recipe.duration(config, "total", steps=steps)
    recipe.duration(config, "warmup", steps=steps // 10)
    for name in ("eval", "checkpoint"):
        recipe.duration(config, name, steps=max(steps // EVALUATIONS, 1))
    config.checkpoint.keep_last, config.checkpoint.keep_best = 1, 1
    return checks.checked(config)


def _best(folder: Any) -> Best:
    """Returns the evaluation with the best upstream accuracy, the last of equals, whose checkpoint is kept."""
    lines = [line for line in read_metrics(folder) if "val/accuracy" in line and line["step"]]
    line = max(lines, key=lambda line: (line["val/accuracy"], line["step"]))
    return Best(int(line["step"]), line["val/accuracy"], line[METRIC])


def _text(
    best: dict[str, dict[int, list[Best]]], untrained: dict[str, list[float]], subsets: Sequence[Subset],
    costs: dict[str, dict[str, Any]],
) -> str:  # fmt: skip
    """Returns the table, and how its numbers were made."""
    rows, seeds = [], flags.FLAGS.seeds
    images_seen = flags.FLAGS.steps * BATCH_SIZE
    for model in best:
        rows.append([model, "none", "0", "0", experiment.spread(untrained[model], seeds), "", ""])
        rows += [
            [
                model, f"{subset.share}%", f"{subset.images:,}", f"{images_seen / subset.images:.1f}",
                experiment.spread([one.few_shot for one in best[model][subset.share]], seeds),
                experiment.spread([one.validation for one in best[model][subset.share]], seeds),
                ", ".join(f"{one.step:,}" for one in best[model][subset.share]),
            ]
            for subset in subsets
        ]  # fmt: skip
    head = ("model", "data", "images", "epochs", f"{SHOTS}-shot digits (%)", "upstream validation (%)", "best at step")
    upstream, smallest = UPSTREAMS[flags.FLAGS.upstream], subsets[0]
    about = (
        f"Upstream {upstream.dataset}, {flags.FLAGS.steps:,} steps of {BATCH_SIZE} images, {seeds} "
        f"seed{'s' * (seeds > 1)}. The subsets are nested; the smallest has {smallest.least} to {smallest.most} images "
        f"of a class. Each run counts at its best step on {upstream.dataset} {upstream.validation}. "
        f"{experiment.costs_in_words(costs)}"
    )
    return f"{experiment.table(head, rows)}\n\n{about}"


def _figure(
    best: dict[str, dict[int, list[Best]]], untrained: dict[str, list[float]], subsets: Sequence[Subset]
) -> Any:
    """Draws few-shot and upstream accuracy against the number of images; dotted, that of random parameters."""
    from matplotlib.figure import Figure  # only now: it takes a second

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, title in (
        (panels[0], "few_shot", f"{SHOTS}-shot accuracy on digits (%)"),
        (panels[1], "validation", "accuracy on upstream validation (%)"),
    ):
        for model, of in best.items():
            drawn = [subset for subset in subsets if of[subset.share]]
            shares = [[100 * getattr(one, name) for one in of[subset.share]] for subset in drawn]
            images, means = [subset.images for subset in drawn], [statistics.mean(of) for of in shares]
            (line,) = axes.plot(images, means, marker="o", label=model)
            axes.fill_between(images, list(map(min, shares)), list(map(max, shares)), alpha=0.2, color=line.get_color())
            if name == "few_shot" and untrained[model]:
                axes.axhline(100 * statistics.mean(untrained[model]), linestyle=":", color=line.get_color())
        axes.set(xscale="log", xlabel="images to pre-train on", title=title)
        axes.set_xticks([subset.images for subset in subsets], [f"{of.images:,}\n{of.share}%" for of in subsets])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].legend(loc="best")
    return figure


if __name__ == "__main__":
    command_line.run(main, define_flags)
