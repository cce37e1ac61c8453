"""The five-minute tour, `make quickstart`: pre-trains a small Mixer on fractals, then fine-tunes it on digits.

    python scripts/quickstart.py

The digits are handwritten and have random colours; ten of each class are to train on and 1,497 to test on. The same
model is also trained on them from scratch. The tour prints the accuracy of both, for three seeds. Each run is an
ordinary `mixer.train` in its own folder. If the tour is interrupted, the same command continues it.
"""

from __future__ import annotations

import pathlib
import statistics
import time
from typing import Any

from etils import epath, epy
from ml_collections import ConfigDict

from mixer import experiment
from mixer.config import command_line, config_file, durations
from mixer.runtime.errors import UserError
from mixer.train import train
from mixer.training.console import Console, format_seconds
from mixer.training.metrics import read_metrics

with epy.lazy_imports():  # they take a second, for which --help does not wait
    import jax
    import matplotlib

    from mixer import report
    from mixer.config import checks, run_folder
    from mixer.runtime import files, preemption

FOLDER = pathlib.Path("runs/quickstart")
PRETRAINING = FOLDER / "fractals"
STARTS = ("pre-trained", "from scratch")
SEEDS = (0, 1, 2)  # each seed has its own hundred training digits
_DIGITS = 100


def main(argv: list[str]) -> None:
    """Runs the stages that are not done yet, and prints the result. Asked to stop, it saves and leaves."""
    experiment.run(_tour, epath.Path(FOLDER))


def _tour(stop: preemption.Stop) -> None:
    started = time.monotonic()
    runs = [(start, seed) for seed in SEEDS for start in STARTS]
    stages = 1 + len(runs)

    steps = durations.steps(_config("digits"), "total", _DIGITS)  # of a fine-tuning run
    console = Console(f"[1/{stages}] fractals  ", len(runs) * steps)
    console.keep("11,520 fractals of 64 kinds: the model learns to tell the kinds apart")
    _run(_config("fractals"), PRETRAINING, console, stop)

    for number, (start, seed) in enumerate(runs, 1):
        config = _config("digits")
        config.seed = seed
        config.input.train_split = f"train_seed{seed}"
        if start == "pre-trained":
            config.init_from = str(PRETRAINING)
        console = Console(f"[{1 + number}/{stages}] digits, {start}, seed {seed}  ", (len(runs) - number) * steps)
        _run(config, _folder(start, seed), console, stop)

    _draw(FOLDER / "curves.png")
    console.keep("the page of these runs is made ...")
    shown = [_folder("pre-trained", 0), _folder("from scratch", 0), PRETRAINING]
    page = report.make(list(map(str, shown)), ema=False, data_dir=None, evaluates=True, command="make quickstart")
    files.write_text(FOLDER / "report.html", page)
    _summarise(time.monotonic() - started)


def _config(stage: str) -> ConfigDict:
    return config_file.run(config_file.find(f"quickstart:{stage}"))


def _run(config: ConfigDict, workdir: pathlib.Path, console: Console, stop: preemption.Stop) -> None:
    config.input.data_dir = str(FOLDER / "data")
    try:
        train(checks.checked(config), workdir, console, stop)
    except UserError as error:  # such as a run that an earlier version of this tour left
        raise UserError(f"{error}; to begin the tour anew, delete {FOLDER}") from None
    stop.work_ends()


def _folder(start: str, seed: int) -> pathlib.Path:
    return FOLDER / f"digits_{start.replace('-', '').replace(' ', '_')}_{seed}"


def _curve(workdir: pathlib.Path, name: str) -> tuple[list[int], list[float]]:
    """Returns the steps that have this metric, and its values."""
    lines = [line for line in read_metrics(workdir) if name in line]
    return [int(line["step"]) for line in lines], [line[name] for line in lines]


def _accuracies(start: str) -> list[float]:
    return [100 * _curve(_folder(start, seed), "val/accuracy")[1][-1] for seed in SEEDS]


def _draw(path: pathlib.Path) -> None:
    """Draws three curves as a PNG: loss and accuracy on fractals, and accuracy on digits."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt  # only now, because the backend must be chosen before

    figure, (loss, fractals, digits) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    loss.plot(*_curve(PRETRAINING, "train/loss"))
    loss.set(title="fractals: training loss", xlabel="step", ylim=(0, None))
    _draw_accuracy(fractals, {"validation": [PRETRAINING]})
    fractals.set(title="fractals: accuracy (%)")
    _draw_accuracy(digits, {start: [_folder(start, seed) for seed in SEEDS] for start in STARTS})
    digits.set(title="coloured digits: accuracy (%), band: three seeds")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_accuracy(axes: Any, runs: dict[str, list[pathlib.Path]]) -> None:
    """Draws the mean accuracy of several runs for each label, all of them as a band, and the level of chance.

    The axis fits the curves, so that a difference of two percent is seen. It reaches down to chance if that is near.
    """
    values: list[float] = []
    for label, folders in runs.items():
        curves = [_curve(folder, "val/accuracy") for folder in folders]
        steps = curves[0][0]
        at_steps = [[100 * share for share in shares] for shares in zip(*(shares for _, shares in curves), strict=True)]
        mean, last = [statistics.mean(shares) for shares in at_steps], at_steps[-1]
        spread = f" +- {statistics.stdev(last):.1f}" if len(last) > 1 else ""
        (line,) = axes.plot(steps, mean, marker="o", label=f"{label}: {mean[-1]:.1f}{spread}")
        if len(folders) > 1:
            axes.fill_between(
                steps, [min(shares) for shares in at_steps], [max(shares) for shares in at_steps],
                color=line.get_color(), alpha=0.2, linewidth=0,
            )  # fmt: skip
        values += [share for shares in at_steps for share in shares]
    chance = 100 / len(run_folder.load_class_names(folders[0]) or ())
    lowest, highest = min(values), max(values)
    if lowest - chance < highest - lowest:
        axes.axhline(chance, color="gray", linestyle=":", label=f"chance: {chance:.1f}")
        lowest = min(chance, lowest)
    else:  # the axis would be mostly empty
        axes.plot([], [], color="gray", linestyle=":", label=f"chance: {chance:.1f}, far below")
    margin = 0.05 * (highest - lowest)
    axes.set(xlabel="step", ylim=(max(lowest - margin, 0), min(highest + margin, 100)))
    axes.legend(loc="best")


def _summarise(seconds: float) -> None:
    speed = statistics.median(_curve(PRETRAINING, "train/images_per_sec_per_core")[1]) * jax.device_count()
    accuracies = {start: _accuracies(start) for start in STARTS}
    print(f"\nOpen {FOLDER}/report.html in a browser: curves, predictions, weights, and the model itself at work.")
    print(f"Quickstart done in {format_seconds(seconds)}; pre-training ran at {speed:.0f} images/s.\n")
    print("Accuracy on 1,497 coloured digits after training on 100 (mean and standard deviation of three seeds):")
    for start, values in accuracies.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"  {start:13} {statistics.mean(values):5.1f}% +- {statistics.stdev(values):.1f}  ({each})")
    print(f"\nCheckpoints and logs   {FOLDER}/fractals and {FOLDER}/digits_*")
    print(f"TensorBoard            .venv/bin/tensorboard --logdir {FOLDER}")
    print(f"Curves                 {FOLDER}/curves.png")


if __name__ == "__main__":
    command_line.run(main, lambda: None)
