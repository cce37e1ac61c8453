"""Starts the real command as a user does, and holds everything that the trials of a session share.

A trial starts the command two or three times, and most of a start is compilation. So the undisturbed runs fill JAX's
compilation cache. Runs that will be killed only read the cache, because a killed run could leave an incomplete entry.
"""

import dataclasses
import functools
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, TypeVar

from mixer.data import datasets
from mixer.runtime.errors import quiet_libraries
from tests.chaos.places import InBucket, Place

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A model of a few thousand parameters on 72 fractals of 16 pixels. Everything random is on, and the average too. It
# evaluates and saves so often that a random moment can fall into anything that a run does.
SETTINGS = {
    "model.num_blocks": 2,
    "model.hidden_dim": 16,
    "model.tokens_mlp_dim": 8,
    "model.channels_mlp_dim": 32,
    "model.stochastic_depth": 0.2,
    "model.dropout": 0.1,
    "mixup.p": 0.5,
    "mixup.cutmix": 0.5,
    "mixup.group": 2,
    "ema_decay": 0.9,
    "input.dataset": "fractals/4x20x16",
    "input.image_size": 16,
    "input.eval_resize": 16,
    "input.shuffle_block": 4,  # the default in a bucket and on a disk need not be the same
    "batch_size": 16,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 3e-3,
    "total_steps": 24,
    "warmup_steps": 2,
    "log_steps": 1,
    "eval_steps": 6,
    "checkpoint_steps": 3,
    "checkpoint.keep_last": 2,
}
DEVICES = 8

_NEVER = "1e9"  # seconds that a compilation must take to be cached: nothing is
_WARM_SHARE = 0.5  # assumed time of a run with a full cache, as a share of the time of one that compiles
_PATIENCE = 900  # seconds; a run takes 20 s on an idle machine

T = TypeVar("T")


class UnexpectedError(Exception):
    """The command failed in a way that ends the trial."""


class Run:
    """A process of `python -m mixer.train`, and the lines that it prints."""

    def __init__(
        self,
        bench: "Bench",
        workdir: Place,
        *arguments: str,
        devices: int,
        compiles: bool | None,
        before: Sequence[str] = (),
        **changes,
    ):
        """Starts the process.

        Args:
          bench: of the session.
          workdir: the run's folder. In a bucket, the data are taken from there too.
          *arguments: more arguments of the command.
          devices: how many virtual devices the process sees.
          compiles: True writes the compilation cache, so the run must not be killed; False only reads it; None does
            not use it.
          before: words before the command, of a program that runs it.
          **changes: settings that differ from the bench's.
        """
        self.workdir, self.settings = workdir, {**bench.settings, **changes}
        in_bucket = isinstance(workdir, InBucket)
        config = {"input.data_dir": workdir.data_dir if in_bucket else bench.data_dir, **self.settings}
        environment = bench.environment(devices, compiles) | (workdir.bucket.environment() if in_bucket else {})
        flags = [f"--config.{name}={value}" for name, value in config.items()]
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "mixer.train", "--config", "configs/quickstart.py", f"--workdir={workdir}",
             *flags, *arguments],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, bufsize=1, start_new_session=True,
        )  # fmt: skip
        bench.began(self)
        self.started = time.monotonic()
        self.said: list[str] = []
        self.complained: list[str] = []
        pipes = ((self.process.stdout, self.said), (self.process.stderr, self.complained))
        self._readers = [threading.Thread(target=_read, args=pipe, daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def stderr(self) -> str:
        return "\n".join(self.complained)

    def last_step(self) -> int:
        """Returns the step of the last line that shows one; 0 if none does."""
        return next((int(found[1]) for line in self.said[::-1] if (found := re.match(r"step (\d+)", line))), 0)

    def continued_from(self) -> int | None:
        """Returns the step from which the run says that it continues."""
        found = re.search(r"^continuing from step (\d+)", "\n".join(self.said), re.MULTILINE)
        return int(found[1]) if found else None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, patience: float = _PATIENCE) -> int:
        """Waits until the process ends. Returns its status."""
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise UnexpectedError(f"did not end within {patience:.0f} s; its last line: {self.said[-1:]}") from None
        for reader in self._readers:
            reader.join()
        return status

    def kill(self) -> None:
        """Kills the process, if it still runs."""
        self.process.kill()
        self.end()

    def wait_until(self, condition: Callable[[], bool], pause: float = 0.02) -> bool:
        """Waits until a condition holds. Returns False if the process ended before."""
        while self.alive:
            if condition():
                return True
            if self.seconds > _PATIENCE:
                raise UnexpectedError(f"nothing happened within {_PATIENCE} s")
            time.sleep(pause)
        self.end()
        return condition()


def _read(pipe: IO[str], lines: list[str]) -> None:
    with pipe:
        for line in pipe:
            lines.append(line.rstrip("\n"))


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """A run without disturbance.

    Attributes:
      workdir: the run's folder.
      seconds: its duration with a full compilation cache. The moments of disturbances are drawn from it.
    """

    workdir: pathlib.Path
    seconds: float


class Bench:
    """Everything that the trials of a session share: data, compilation cache, and the runs to compare with."""

    def __init__(self, folder: pathlib.Path, measures: bool = True, **changes):
        """Prepares the data.

        Args:
          folder: to work in.
          measures: measure the duration of an undisturbed run with a second one, which finds a full cache.
          **changes: settings that differ from `SETTINGS`.
        """
        self.folder, self.settings, self._measures = folder, {**SETTINGS, **changes}, measures
        self.data_dir = str(folder / "data")
        quiet_libraries()
        datasets.prepare_embedded(self.settings["input.dataset"], self.data_dir)
        self._made: dict[object, object] = {}
        self._locks: dict[object, threading.Lock] = {}
        self._lock = threading.Lock()
        self._running: list[Run] | None = []  # None: no more processes may start

    def environment(self, devices: int, compiles: bool | None) -> dict[str, str]:
        """Returns the environment of a process. See `Run` for the arguments."""
        return {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_ENABLE_COMPILATION_CACHE": "false" if compiles is None else "true",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if compiles else _NEVER,
        }

    def began(self, run: Run) -> None:
        """Registers a process, so that `close` can kill it."""
        with self._lock:
            if self._running is not None:
                self._running = [*(other for other in self._running if other.alive), run]
                return
        run.process.kill()
        raise UnexpectedError("the session was interrupted")

    def close(self) -> None:
        """Kills all processes. No other may start."""
        with self._lock:
            running, self._running = self._running or [], None
        for run in running:
            run.process.kill()

    def once(self, key: object, make: Callable[[], T]) -> T:
        """Returns what `make` returned at the first call with this key. Other threads wait for that call."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]  # type: ignore[return-value]

    def undisturbed(self, **changes) -> Undisturbed:
        """Returns the undisturbed run with these settings. The first call makes it."""
        key = tuple(sorted(changes.items()))
        return self.once(key, functools.partial(self._undisturbed, changes))

    def _undisturbed(self, changes: dict[str, object]) -> Undisturbed:
        workdir = self.folder / "undisturbed" / str(len(self._made))
        seconds = self._through(workdir, changes) * _WARM_SHARE
        if self._measures:
            seconds = self._through(workdir.with_name(f"{workdir.name}-measured"), changes)
            self._through(workdir, changes)  # compiles the other programs of a continued run
        return Undisturbed(workdir, seconds)

    def _through(self, workdir: pathlib.Path, changes: dict[str, object]) -> float:
        run = Run(self, workdir, devices=DEVICES, compiles=True, **changes)
        if status := run.end():
            raise UnexpectedError(f"an undisturbed run ended with status {status}: {run.stderr[-2000:]}")
        return run.seconds
