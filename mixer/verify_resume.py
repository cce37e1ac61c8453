"""Checks that a run continues to the same bits on this machine: `python -m mixer.verify_resume --config FILE`.

Takes the arguments of `mixer.train`. It runs that command for a few steps straight, then again with a stop in the
middle, each time as a process of its own, and compares what they saved: parameters, optimizer, averages and counters
bit for bit, and every metric that is not a time. Before a long run on a new device, a new version or with new settings
it says in minutes whether an interruption would change the outcome: a compiler or a library that chooses other
algorithms in another process would.
"""

import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from mixer import train
from mixer.config import command_line, recipe
from mixer.config.checks import checked
from mixer.runtime import preemption
from mixer.runtime.errors import UserError
from mixer.runtime.files import write_text
from mixer.training.checkpoint import load_state
from mixer.training.metrics import deterministic, read_metrics

_FOLDER = "verify_resume"  # in the run's folder
_CONFIG = """from ml_collections import ConfigDict

from mixer.config import load


def get_config():
    return ConfigDict(load({folder!r}))
"""


def short(config: ConfigDict, steps: int) -> ConfigDict:
    """The config of a run that ends after a few steps and says all that it can of each."""
    config = ConfigDict(config)
    recipe.duration(config, "total", steps=steps)
    for name in ("log", "eval", "checkpoint"):
        recipe.duration(config, name, steps=1 if name == "log" else steps)
    return checked(config)


def differences(one: epath.PathLike, other: epath.PathLike) -> list[str]:
    """Names what is not the same in two runs: arrays of their last state, and metrics of any step."""
    states = [dict(_named(load_state(folder)[1])) for folder in (one, other)]
    found = [name for name in states[0] if not _same_bits(states[0][name], states[1][name])]
    metrics = [{row["step"]: row for row in map(deterministic, read_metrics(folder))} for folder in (one, other)]
    for step in sorted({*metrics[0], *metrics[1]}):
        rows = [rows.get(step, {}) for rows in metrics]
        # Compared as text: NaN is equal to itself.
        texts = [{key: repr(value) for key, value in row.items()} for row in rows]
        found += [f"{key} at step {step}" for key in rows[0] | rows[1] if texts[0].get(key) != texts[1].get(key)]
    return found


def _named(state: Any) -> list[tuple[str, np.ndarray]]:
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)]  # fmt: skip


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _train(config: pathlib.Path, workdir: epath.Path, *arguments: str, expect: int) -> None:
    passed_on = [f"--{name}={flags.FLAGS[name].value}" for name in _PASSED_ON if flags.FLAGS[name].value is not None]
    command = [
        sys.executable,
        "-m",
        "mixer.train",
        f"--config={config}",
        f"--workdir={workdir}",
        *passed_on,
        *arguments,
    ]
    print(f"$ mixer.train {' '.join(command[3:])}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status != expect:
        raise UserError(f"the training ended with status {status} instead of {expect}; what it said stands above")


_PASSED_ON = ("distributed", "coordinator", "num_processes", "process_id")


def define_flags() -> None:
    """The command's flags: those of `mixer.train`, and how far to go."""
    train.define_flags()
    flags.DEFINE_integer("steps", 6, "How many steps to train; the stop is in the middle.", 2)


def main(argv: list[str]) -> None:
    """Runs the command; exits with status 1 where the two runs differ."""
    jax.config.update("jax_platforms", "cpu")  # this process leaves the accelerator to the runs
    config, name = command_line.from_flags()
    if flags.FLAGS.distributed and flags.FLAGS.process_id is None:
        raise UserError("--process_id is missing: of several processes the first compares; number them from 0")
    steps = flags.FLAGS.steps
    folder = epath.Path(flags.FLAGS.workdir or f"runs/{name}").resolve() / _FOLDER
    first = not flags.FLAGS.process_id
    if first:
        if folder.exists():
            folder.rmtree()
        folder.mkdir(parents=True)
        write_text(folder / "config.json", short(config, steps).to_json(indent=2))
        write_text(folder / "config.py", _CONFIG.format(folder=str(folder)))
    straight, interrupted = folder / "straight", folder / "interrupted"
    file = pathlib.Path(folder / "config.py")
    _train(file, straight, expect=0)
    _train(file, interrupted, f"--stop_after={steps // 2}", expect=preemption.EXIT_STATUS)
    _train(file, interrupted, expect=0)
    if not first:
        return
    found = differences(straight, interrupted)
    if found:
        raise UserError(
            f"interrupted after step {steps // 2} of {steps}, the run did NOT end at the same bits: {len(found)} "
            f"arrays and metrics differ, the first {', '.join(found[:5])}; both runs are in {folder}"
        )
    arrays = len(_named(load_state(straight)[1]))
    folder.rmtree()
    print(
        f"interrupted after step {steps // 2} of {steps}, the run ended at the same bits: {arrays} arrays of its "
        f"state, and the metrics of {steps} steps"
    )


if __name__ == "__main__":
    command_line.run(main, define_flags)
