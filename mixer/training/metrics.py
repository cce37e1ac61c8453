"""What a run says: TensorBoard and JSON lines for machines, one line at a time for the person who watches."""

import concurrent.futures
import contextlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from etils import epath

from mixer.runtime.errors import UserError, first_line
from mixer.runtime.files import write_text

_log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes scalars of a step to TensorBoard and to `metrics.jsonl`; only the first process writes."""

    def __init__(self, workdir: epath.PathLike, step: int, on_error: str = "stop"):
        """Continues the logs of a run that stands at `step`; later lines, from before it was interrupted, go.

        Lines that cannot be written "stop" the run, or it is to "continue": they are kept and written when they can be.
        """
        self._writes = jax.process_index() == 0
        self._path = epath.Path(workdir) / METRICS_FILE
        self._stops_on_error = on_error == "stop"
        rows = {row["step"]: row for row in read_metrics(workdir) if row["step"] <= step}
        self._last = rows[max(rows)] if rows else {"step": 0}
        self._unwritten = ""
        if self._writes:
            from clu import metric_writers  # here, for it imports TensorFlow: who only reads metrics need not wait

            write_text(self._path, "".join(_line(rows[step]) for step in sorted(rows)))
            self._size = self._path.stat().length  # bytes that are known to be written
            self._tensorboard: Any = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))

    def has(self, step: int, prefix: str) -> bool:
        """Whether the newest line is of this step and has a scalar whose name begins with `prefix`."""
        return self._last["step"] == step and any(name.startswith(prefix) for name in self._last)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the line of this step, or adds to it; and one point to each curve.

        Raises:
          UserError: it cannot be written, and that is to stop the run.
        """
        again = self._last["step"] == step
        self._last = {**(self._last if again else {"step": step}), **scalars}
        if not self._writes:
            return
        if again:
            rows = [row for row in read_metrics(self._path.parent) if row["step"] < step]
            write_text(self._path, "".join(map(_line, [*rows, self._last])))
            self._size = self._path.stat().length
        else:
            self._unwritten += _line(self._last)
            self._append()
        self._draw(step, scalars)

    def _draw(self, step: int, scalars: dict[str, float]) -> None:
        """TensorBoard's curves repeat what `metrics.jsonl` says, so a run goes on without them."""
        try:
            if self._tensorboard:
                self._tensorboard.write_scalars(step, scalars)
        except Exception as error:  # TensorFlow's, of the write before
            _log.warning("TensorBoard's files cannot be written (%s): no more curves.", first_line(error))
            self._tensorboard = None

    def _append(self) -> None:
        try:
            with self._path.open("a") as file:
                file.write(self._unwritten)
            self._size += len(self._unwritten)
            self._unwritten = ""
        except OSError as error:
            if "://" not in str(self._path):
                os.truncate(self._path, self._size)  # of half a line nothing stays
            if self._stops_on_error:
                raise UserError(
                    f"{self._path} cannot be written to ({first_line(error)}): make it possible and run the same "
                    "command again, or train on without with config.checkpoint.on_error=continue"
                ) from None
            _log.warning("%s cannot be written to (%s), training goes on.", self._path, first_line(error))

    def close(self) -> None:
        """Flushes what is still in memory."""
        if self._unwritten and not self._stops_on_error:
            self._append()
        if self._writes and self._tensorboard:
            with contextlib.suppress(Exception):  # as in _draw
                self._tensorboard.close()


def _line(row: dict[str, float]) -> str:
    return json.dumps(row) + "\n"


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """Returns the lines of a run's `metrics.jsonl` but those that are damaged, as a last one cut short by a kill."""
    path = epath.Path(workdir) / METRICS_FILE
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


_TIMED = ("images_per_sec_per_core", "device_wait_share", "seconds_left")


def deterministic(row: dict[str, float]) -> dict[str, float]:
    """A line without what says how long something took: the same however often the run was interrupted."""
    return {name: value for name, value in row.items() if not name.endswith(_TIMED)}


class Progress:
    """Measures the speed of the loop, without its pauses, and how long the devices wait for it.

    A thread notes when each step is done. From then until the next is dispatched the devices had nothing to do: there
    was no batch yet, or a checkpoint or metrics were on their way.
    """

    def __init__(self, step: int, total_steps: int, batch_size: int):
        self._total_steps, self._batch_size = total_steps, batch_size
        self._watcher = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._free: concurrent.futures.Future[float] | None = None  # when the devices are done with the newest step
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measures from here: this many steps are behind us."""
        self._step, self._since, self._paused, self._waited = step, time.monotonic(), 0.0, 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside (evaluation) does not count."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start
        self._free = self._watcher.submit(_when_done, None)  # what came before has been waited for: free from here

    def close(self) -> None:
        """Ends the thread."""
        self._watcher.shutdown(wait=False)

    def dispatched(self, results: Any) -> None:
        """To be called as soon as a step is in the hands of the devices, with arrays that it will make."""
        if self._free is not None and self._free.done():
            self._waited += time.monotonic() - max(self._free.result(), self._since)
        self._free = self._watcher.submit(_when_done, results)

    def measure(self, step: int) -> dict[str, float]:
        """Returns images/sec/core, the share of time devices waited and seconds left; measures anew from here."""
        seconds = max(time.monotonic() - self._since - self._paused, 1e-9)
        steps = step - self._step
        measured = {
            "images_per_sec_per_core": steps * self._batch_size / seconds / jax.device_count(),
            "device_wait_share": self._waited / seconds,
            "seconds_left": (self._total_steps - step) * seconds / max(steps, 1),
        }
        self.restart(step)
        return measured


def _when_done(results: Any) -> float:
    """Waits for arrays; returns the time."""
    jax.block_until_ready(results)
    return time.monotonic()


class Console:
    """Prints the line of a step; on a terminal each replaces the one before, until `keep` ends it."""

    def __init__(self, prefix: str = "", seconds_after: float = 0.0):
        """Puts `prefix` before every line and adds `seconds_after`, for what follows this run, to the time left."""
        self._prefix, self._seconds_after = prefix, seconds_after
        self._live = sys.stdout.isatty()
        self._writes = jax.process_index() == 0

    def show(self, step: int, total_steps: int, scalars: dict[str, float]) -> None:
        """Shows step, loss, learning rate, gradient norm, speed, waiting and time left."""
        line = (
            f"step {step}/{total_steps}  loss {scalars['loss']:.4f}  "
            f"lr {scalars['learning_rate']:.2e}  grad norm {scalars['grad_norm']:.3f}  "
            f"{scalars['images_per_sec_per_core']:.0f} images/s/core  "
            f"devices wait {scalars['device_wait_share']:.1%}  "
            f"{format_seconds(scalars['seconds_left'] + self._seconds_after)} left"
        )
        if self._live:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be replaced
            self._print(f"\r\033[K{(self._prefix + line)[:width]}")
        else:
            self._print(f"{self._prefix}{line}\n")

    def keep(self, line: str) -> None:
        """Prints a line that stays."""
        self._print(f"\r\033[K{self._prefix}{line}\n" if self._live else f"{self._prefix}{line}\n")

    def _print(self, text: str) -> None:
        if self._writes:
            sys.stdout.write(text)
            sys.stdout.flush()


def format_seconds(seconds: float) -> str:
    """Formats a duration as 42s, 3m05s, 7h12m or 4d06h."""
    seconds = round(seconds)
    for unit, below, name, sub_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if seconds >= unit:
            return f"{seconds // unit}{name}{seconds % unit // below:02d}{sub_name}"
    return f"{seconds}s"
