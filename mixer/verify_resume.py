"""Checks that a run continues to the same bits on this machine: `python -m mixer.verify_resume --config FILE`.

The command takes the arguments of `mixer.train` and trains for a few steps twice: once without a stop, and once with a
stop in the middle. Each time `mixer.train` runs in a process of its own. Then it compares what the two runs saved:
parameters, optimizer state, averages and counters bit for bit, and all metrics except times.

Use it before a long run on a new device, with a new version or with new settings. It tells in minutes whether an
interruption would change the result, for example because a compiler chooses another algorithm in another process.
"""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags
from etils import epath, epy
from ml_collections import ConfigDict

from mixer import train
from mixer.config import command_line, help_text
from mixer.config.durations import set_duration
from mixer.runtime import bucket, bucket_check, files
from mixer.runtime.errors import UserError
from mixer.training.metrics import deterministic, read_metrics

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    import jax

    from mixer.config import checks
    from mixer.runtime import lock, preemption
    from mixer.training import checkpoint_reader

_FOLDER = "verify_resume"  # in the run's folder
_RUNS = ("straight", "interrupted")
# The runs read the shortened config from a Python file, for which --config asks.
_CONFIG = """import json

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(json.loads({text!r}))
"""


def short(config: ConfigDict, steps: int) -> ConfigDict:
    """Returns the config of a run that ends after a few steps, logs each step, and evaluates and saves the last."""
    config = checks.unlocked_copy(config)
    for name in ("total", "eval", "checkpoint"):
        set_duration(config, name, steps=steps)
    set_duration(config, "log", steps=1)
    set_duration(config, "warmup", steps=0)  # the config's own may be longer than these steps
    config.optimizer.warmup_from_zero = False  # there is none
    config.metrics.writers = ()  # nobody looks at these runs
    return checks.checked(config)


def differences(one: epath.PathLike, other: epath.PathLike) -> list[str]:
    """Returns the names of arrays that differ in the last states of two runs, and of metrics that differ at a step."""
    metrics = [{line["step"]: deterministic(line) for line in read_metrics(folder)} for folder in (one, other)]
    return _array_differences(arrays_of(one), arrays_of(other)) + _metric_differences(*metrics)


def arrays_of(workdir: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of the last state of a run, by names such as "params/stem/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint_reader.load_state(workdir)[1])
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _array_differences(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    return [name for name in one if not _same_bits(one[name], other[name])]


def _metric_differences(one: dict[float, dict[str, float]], other: dict[float, dict[str, float]]) -> list[str]:
    """Compares the metrics of two runs, given by step."""
    found = []
    for step in sorted({*one, *other}):
        # Numbers are compared as text, because NaN is not equal to itself.
        ours, theirs = ({name: repr(value) for name, value in run.get(step, {}).items()} for run in (one, other))
        found += [f"{name} at step {step}" for name in ours | theirs if ours.get(name) != theirs.get(name)]
    return found


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


# ------------------------------------------------------------------------------------------------------- command line

_JOINING_FLAGS = ("coordinator", "num_processes", "process_id")
_UNREAD_FLAGS = ("print_config", "inspect", "allow_config_change", "allow_data_change", "stop_after")


def define_flags() -> None:
    """Defines the flags of `mixer.train`, and the number of steps."""
    train.define_flags()
    with help_text.group("The check", "--config cifar10 --steps 6"):
        flags.DEFINE_integer("steps", 6, "How many steps to train; the stop is in the middle.", 2)


def main(argv: list[str]) -> None:
    """Runs the command. Exits with status 1 if the two runs differ, of which the first of several processes tells."""
    given = flags.FLAGS
    command_line.refuse_unread(_UNREAD_FLAGS, "by mixer.verify_resume")
    if not given.distributed:
        command_line.refuse_unread(_JOINING_FLAGS, "without --distributed")
    elif given.process_id is None:
        raise UserError("--process_id is missing: of several processes the first compares; number them from 0")
    jax.config.update("jax_platforms", "cpu")  # leave the accelerator to the runs
    config, name = command_line.from_flags()
    workdir = command_line.workdir(name)
    bucket_check.check(workdir, for_run=True)
    folder = epath.Path(bucket.absolute(workdir)) / _FOLDER
    _end_with_the_training()
    if given.process_id:
        _run_twice(short(config, given.steps), folder, given.steps)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with lock.held(folder, lambda line: print(line, flush=True)):
        _remove_runs(folder)
        _run_twice(short(config, given.steps), folder, given.steps)
        verdict = _verdict(folder, given.steps)
    folder.rmtree()
    print(verdict)


def _end_with_the_training() -> None:
    """Makes a signal that ends this process end the training, too, which `subprocess.run` does on any exception."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has a run ignore SIGHUP
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


def _remove_runs(folder: epath.Path) -> None:
    """Removes both runs."""
    for one in _RUNS:
        if files.is_folder(folder / one):
            (folder / one).rmtree()


def _run_twice(config: ConfigDict, folder: epath.Path, steps: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        file = pathlib.Path(temporary, "config.py")
        file.write_text(_CONFIG.format(text=config.to_json()))
        straight, interrupted = (folder / one for one in _RUNS)
        _train(file, straight, expect=0)
        _train(file, interrupted, f"--stop_after={steps // 2}", expect=preemption.EXIT_STATUS)
        _train(file, interrupted, expect=0)


def _train(config: pathlib.Path, workdir: epath.Path, *arguments: str, expect: int) -> None:
    """Runs `mixer.train` in a process.

    Raises:
      UserError: its exit status is not `expect`.
    """
    joining = [f"--{name}={flags.FLAGS[name].value}" for name in ("distributed", *_JOINING_FLAGS)
               if flags.FLAGS[name].value is not None]  # fmt: skip
    command = ["mixer.train", f"--config={config}", f"--workdir={workdir}", *joining, *arguments]
    print(f"$ {' '.join(command)}", flush=True)
    status = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    if status != expect:
        raise UserError(f"the training ended with status {status} instead of {expect}; see its output above")


def _verdict(folder: epath.Path, steps: int) -> str:
    """Compares the two runs. If they are the same, deletes them and returns a line that says so.

    Raises:
      UserError: they differ.
    """
    found = differences(*(folder / one for one in _RUNS))
    if found:
        raise UserError(
            f"interrupted after step {steps // 2} of {steps}, the run did NOT end at the same bits: {len(found)} "
            f"arrays and metrics differ, the first {', '.join(found[:5])}; both runs are in {folder}. On GPUs "
            "XLA's fast kernels may differ from time to time: try XLA_FLAGS=--xla_gpu_deterministic_ops=true"
        )
    arrays = len(arrays_of(folder / "straight"))
    _remove_runs(folder)
    return (
        f"interrupted after step {steps // 2} of {steps}, the run ended at the same bits: {arrays} arrays of its "
        f"state, and the metrics of {steps} steps"
    )


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags)


if __name__ == "__main__":
    run()
