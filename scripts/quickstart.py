"""The five-minute tour, `make quickstart`: pre-trains a small Mixer on fractals, then fine-tunes it on digits.

The digits are handwritten, ten of each class to train on and 1,497 to test on. The same model is also trained on them
from scratch. The tour prints the accuracy of both, for three seeds. Each run is an ordinary `mixer.train` in its own
folder. If the tour is interrupted, the same command continues it.
"""

import pathlib
import statistics
import sys
import time

import jax
import matplotlib
from ml_collections import ConfigDict

from configs import quickstart
from mixer.config import checks
from mixer.runtime import compilation_cache, cpu, environment
from mixer.runtime.errors import UserError, quiet_libraries
from mixer.train import train
from mixer.training.console import Console, format_seconds
from mixer.training.metrics import read_metrics

FOLDER = pathlib.Path("runs/quickstart")
PRETRAINING = FOLDER / "fractals"
STARTS = ("pre-trained", "from scratch")
SEEDS = (0, 1, 2)  # each seed has its own hundred training digits
_EXPECTED_SECONDS = 12.0  # for a fine-tuning run, until one is measured


def main() -> None:
    """Runs the stages that are not done yet, and prints the result."""
    environment.prepare()
    quiet_libraries()
    cpu.keep_freed_memory()
    # All fine-tuning runs are the same program, so only the first compiles it.
    compilation_cache.keep_compiled(FOLDER / "compiled")
    started = time.monotonic()
    runs = [(start, seed) for seed in SEEDS for start in STARTS]
    stages = 1 + len(runs)

    console = Console(f"[1/{stages}] fractals  ", len(runs) * _EXPECTED_SECONDS)
    console.keep("12,800 fractals of 64 kinds: the model learns to tell the kinds apart")
    _run(quickstart.get_config("fractals"), PRETRAINING, console)

    seconds: list[float] = []
    for start, seed in runs:
        config = quickstart.get_config("digits")
        config.seed = seed
        config.input.train_split = f"train_seed{seed}"
        if start == "pre-trained":
            config.init_from = str(PRETRAINING)
        left = (len(runs) - len(seconds) - 1) * (statistics.mean(seconds) if seconds else _EXPECTED_SECONDS)
        console = Console(f"[{len(seconds) + 2}/{stages}] digits, {start}, seed {seed}  ", left)
        before = time.monotonic()
        _run(config, _folder(start, seed), console)
        seconds.append(time.monotonic() - before)

    _draw(FOLDER / "curves.png")
    _summarise(time.monotonic() - started)


def _run(config: ConfigDict, workdir: pathlib.Path, console: Console) -> None:
    config.input.data_dir = str(FOLDER / "data")
    train(checks.checked(config), workdir, console)


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

    figure, (loss, accuracy, digits) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    loss.plot(*_curve(PRETRAINING, "train/loss"))
    loss.set(title="fractals: training loss", xlabel="step", ylim=(0, None))
    steps, shares = _curve(PRETRAINING, "val/accuracy")
    accuracy.plot(steps, [100 * share for share in shares], marker="o")
    accuracy.set(title="fractals: validation accuracy (%)", xlabel="step", ylim=(0, 100))
    for start in STARTS:
        steps_by_seed = [_curve(_folder(start, seed), "val/accuracy") for seed in SEEDS]
        mean = [100 * statistics.mean(values) for values in zip(*(shares for _, shares in steps_by_seed), strict=True)]
        digits.plot(steps_by_seed[0][0], mean, marker="o", label=f"{start}: {mean[-1]:.1f}")
    digits.set(title="digits, ten examples a class: accuracy (%)", xlabel="step", ylim=(0, 100))
    digits.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _summarise(seconds: float) -> None:
    speed = statistics.median(_curve(PRETRAINING, "train/images_per_sec_per_core")[1]) * jax.device_count()
    accuracies = {start: _accuracies(start) for start in STARTS}
    print(f"\nQuickstart done in {format_seconds(seconds)}; pre-training ran at {speed:.0f} images/s.\n")
    print("Accuracy on 1,497 handwritten digits after training on 100 (mean and standard deviation of three seeds):")
    for start, values in accuracies.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"  {start:13} {statistics.mean(values):5.1f}% +- {statistics.stdev(values):.1f}  ({each})")
    print(f"\nCheckpoints and logs   {FOLDER}/fractals and {FOLDER}/digits_*")
    print(f"TensorBoard            .venv/bin/tensorboard --logdir {FOLDER}")
    print(f"Curves                 {FOLDER}/curves.png")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
