"""What a run says: TensorBoard and JSON lines for machines, one line at a time for the person who watches."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from etils import epath

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes scalars of a step to TensorBoard and to `metrics.jsonl`; only the first process writes."""

    def __init__(self, workdir: epath.PathLike, step: int):
        """Continues the logs of a run that stands at `step`; later lines, from before it was interrupted, go."""
        self._writes = jax.process_index() == 0
        self._path = epath.Path(workdir) / METRICS_FILE
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        self._last = rows[-1] if rows else {"step": 0}
        if self._writes:
            from clu import metric_writers  # here, for it imports TensorFlow: who only reads metrics need not wait

            self._path.write_text("".join(map(_line, rows)))
            self._tensorboard = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))

    def has(self, step: int, name: str) -> bool:
        """Whether the newest line is of this step and holds this scalar."""
        return self._last["step"] == step and name in self._last

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the line of this step, or adds to it; and one point to each curve."""
        again = self._last["step"] == step
        self._last = {**(self._last if again else {"step": step}), **scalars}
        if not self._writes:
            return
        if again:
            rows = [row for row in read_metrics(self._path.parent) if row["step"] < step]
            self._path.write_text("".join(map(_line, [*rows, self._last])))
        else:
            with self._path.open("a") as file:
                file.write(_line(self._last))
        self._tensorboard.write_scalars(step, scalars)

    def close(self) -> None:
        """Flushes what is still in memory."""
        if self._writes:
            self._tensorboard.close()


def _line(row: dict[str, float]) -> str:
    return json.dumps(row) + "\n"


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """Returns the lines of a run's `metrics.jsonl`, without the last if a kill cut it short."""
    path = epath.Path(workdir) / METRICS_FILE
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """Measures the speed of the loop, without its pauses, and how long it waits for input."""

    def __init__(self, step: int, total_steps: int, batch_size: int):
        self._total_steps, self._batch_size = total_steps, batch_size
        self._start(step)

    def _start(self, step: int) -> None:
        self._step, self._since, self._paused, self._waited = step, time.monotonic(), 0.0, 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside (evaluation, compiling) does not count."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for input."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def measure(self, step: int) -> dict[str, float]:
        """Returns images/sec/core, the share of time spent waiting and seconds left; measures anew from here."""
        seconds = max(time.monotonic() - self._since - self._paused, 1e-9)
        steps = step - self._step
        measured = {
            "images_per_sec_per_core": steps * self._batch_size / seconds / jax.device_count(),
            "input_wait_share": self._waited / seconds,
            "seconds_left": (self._total_steps - step) * seconds / max(steps, 1),
        }
        self._start(step)
        return measured


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
            f"input wait {scalars['input_wait_share']:.1%}  "
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
