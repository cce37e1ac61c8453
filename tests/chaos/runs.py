"""Starts the real command as a user does, and keeps what the trials of one session share.

A trial costs two or three starts, and most of a start is compilation. So JAX's compilation cache is filled by the
undisturbed runs; runs that are to be killed only read it, since a kill could leave half an entry for those after it.
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
from collections.abc import Callable
from typing import IO, TypeVar

from mixer.data import datasets
from mixer.runtime.errors import quiet_libraries

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A model of a few thousand parameters on 72 fractals of 16 pixels, with all that draws at random or averages, and so
# often evaluated and saved that a moment picked at random falls into anything that a run does.
SETTINGS = {
    "model.num_blocks": 2,
    "model.hidden_dim": 16,
    "model.tokens_mlp_dim": 8,
    "model.channels_mlp_dim": 32,
    "model.stochastic_depth": 0.2,
    "model.dropout": 0.1,
    "mixup.p": 0.5,
    "mixup.group": 2,
    "ema_decay": 0.9,
    "input.dataset": "fractals/4x20x16",
    "input.image_size": 16,
    "input.eval_resize": 16,
    "batch_size": 16,
    "total_steps": 24,
    "warmup_steps": 2,
    "log_steps": 1,
    "eval_steps": 6,
    "checkpoint_steps": 3,
    "checkpoint.keep_last": 2,
}
DEVICES = 8

_NEVER = "1e9"  # seconds that a compilation must take to be kept
_WARM_SHARE = 0.5  # of the time of a run that compiles, what one takes that finds all compiled; where not measured
_PATIENCE = 900  # seconds; a run takes 20 on a quiet machine

T = TypeVar("T")


class UnexpectedError(Exception):
    """The command did what it must not, and the trial cannot go on."""


class Run:
    """One process of `python -m mixer.train`, and its lines as they come."""

    def __init__(
        self, bench: "Bench", workdir: pathlib.Path, *arguments: str, devices: int, compiles: bool | None, **changes
    ):
        """Starts it; one that `compiles` adds to the compilation cache, and is not to be killed; None does without."""
        self.workdir, self.settings = workdir, {**bench.settings, **changes}
        config = {**self.settings, "input.data_dir": bench.data_dir}
        flags = [f"--config.{name}={value}" for name, value in config.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mixer.train", "--config", "configs/quickstart.py", f"--workdir={workdir}",
             *flags, *arguments],
            cwd=ROOT, env=bench.environment(devices, compiles), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
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
        """The step of the last line that shows one, 0 before."""
        return next((int(found[1]) for line in self.said[::-1] if (found := re.match(r"step (\d+)", line))), 0)

    def continued_from(self) -> int | None:
        """The step that it says to continue from."""
        found = re.search(r"^continuing from step (\d+)", "\n".join(self.said), re.MULTILINE)
        return int(found[1]) if found else None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, patience: float = _PATIENCE) -> int:
        """Waits for its end and returns its status."""
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise UnexpectedError(f"did not end within {patience:.0f} s; it said last: {self.said[-1:]}") from None
        for reader in self._readers:
            reader.join()
        return status

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.process.kill()
        self.end()

    def wait_until(self, condition: Callable[[], bool], pause: float = 0.02) -> bool:
        """Waits until something holds; False if the process ended before it did."""
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
    """A run that nothing happened to.

    Attributes:
      workdir: its folder.
      seconds: what it takes when all is compiled; moments of a disturbance are drawn from it.
    """

    workdir: pathlib.Path
    seconds: float


class Bench:
    """What the trials of a session share: data, JAX's compilation cache, and the runs to compare with."""

    def __init__(self, folder: pathlib.Path, measures: bool = True, **changes):
        """Works in `folder`; `measures` how long an undisturbed run takes by a second one."""
        self.folder, self.settings, self._measures = folder, {**SETTINGS, **changes}, measures
        self.data_dir = str(folder / "data")
        quiet_libraries()
        datasets.prepare_embedded(self.settings["input.dataset"], self.data_dir)
        self._made: dict[object, object] = {}
        self._locks: dict[object, threading.Lock] = {}
        self._lock = threading.Lock()
        self._running: list[Run] | None = []  # None: no more

    def environment(self, devices: int, compiles: bool | None) -> dict[str, str]:
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
        """Takes note of a process, so that it does not outlive an interrupted session."""
        with self._lock:
            if self._running is not None:
                self._running = [*(other for other in self._running if other.alive), run]
                return
        run.process.kill()
        raise UnexpectedError("the session was interrupted")

    def close(self) -> None:
        """Kills every process, and lets no more begin."""
        with self._lock:
            running, self._running = self._running or [], None
        for run in running:
            run.process.kill()

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` returned the first time that any trial asked for this key."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]  # type: ignore[return-value]

    def undisturbed(self, **changes) -> Undisturbed:
        """The undisturbed run with these settings, made when first asked for."""
        key = tuple(sorted(changes.items()))
        return self.once(key, functools.partial(self._undisturbed, changes))

    def _undisturbed(self, changes: dict[str, object]) -> Undisturbed:
        workdir = self.folder / "undisturbed" / str(len(self._made))
        seconds = self._through(workdir, changes) * _WARM_SHARE
        if self._measures:
            seconds = self._through(workdir.with_name(f"{workdir.name}-measured"), changes)
            self._through(workdir, changes)  # compiles what a continued run needs besides
        return Undisturbed(workdir, seconds)

    def _through(self, workdir: pathlib.Path, changes: dict[str, object]) -> float:
        run = Run(self, workdir, devices=DEVICES, compiles=True, **changes)
        if status := run.end():
            raise UnexpectedError(f"an undisturbed run ended with status {status}: {run.stderr[-2000:]}")
        return run.seconds
