"""The metrics of a run: one line of `metrics.jsonl` for each step that is logged, and TensorBoard's curves."""

import contextlib
import json
import logging
import os
from typing import Any

import jax
from etils import epath

from mixer.runtime.errors import UserError, first_line
from mixer.runtime.files import write_text

_log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"

# Measured times end with these names. They differ from run to run.
_TIMES = ("images_per_sec_per_core", "device_wait_share", "seconds_left")


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """Returns the lines of a run's `metrics.jsonl`; none if the file does not exist.

    Damaged lines are left out. For example, a killed process may have written only part of the last line.
    """
    path = epath.Path(workdir) / METRICS_FILE
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def deterministic(line: dict[str, float]) -> dict[str, float]:
    """Returns a line without its measured times. The rest is the same however often the run was interrupted."""
    return {name: value for name, value in line.items() if not name.endswith(_TIMES)}


class MetricsLog:
    """Writes the scalars of a step to `metrics.jsonl` and to TensorBoard. Only the first process writes."""

    def __init__(self, workdir: epath.PathLike, step: int, on_error: str = "stop"):
        """Opens the log of a run that continues from a checkpoint.

        Args:
          workdir: the run's folder.
          step: of the checkpoint. Later lines are deleted, because the run will write them again.
          on_error: what to do when a line cannot be written. "stop" raises an error. "continue" keeps the line in
            memory and writes it as soon as that is possible.
        """
        self._writes = jax.process_index() == 0
        self._path = epath.Path(workdir) / METRICS_FILE
        self._stops_on_error = on_error == "stop"
        lines = {line["step"]: line for line in read_metrics(workdir) if line["step"] <= step}
        self._last = lines[max(lines)] if lines else {"step": 0}
        self._unwritten = ""
        if self._writes:
            # clu imports TensorFlow, which takes seconds. Commands that only read metrics do not need it.
            from clu import metric_writers

            self._rewrite([lines[step] for step in sorted(lines)])
            self._tensorboard: Any = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))

    def has(self, step: int, prefix: str) -> bool:
        """Tells whether the newest line is of this step and has a scalar whose name begins with `prefix`."""
        return self._last["step"] == step and any(name.startswith(prefix) for name in self._last)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of a step. If the step has a line already, adds them to this line.

        Raises:
          UserError: the line cannot be written, and on_error is "stop".
        """
        again = self._last["step"] == step
        self._last = {**(self._last if again else {"step": step}), **scalars}
        if not self._writes:
            return
        if again:
            self._rewrite([*(line for line in read_metrics(self._path.parent) if line["step"] < step), self._last])
        else:
            self._unwritten += _as_text(self._last)
            self._append()
        self._draw(step, scalars)

    def _rewrite(self, lines: list[dict[str, float]]) -> None:
        write_text(self._path, "".join(map(_as_text, lines)))
        self._size = self._path.stat().length  # bytes of complete lines

    def _append(self) -> None:
        """Appends the lines that are not written yet."""
        try:
            with self._path.open("a") as file:
                file.write(self._unwritten)
            self._size += len(self._unwritten)
            self._unwritten = ""
        except OSError as error:
            if "://" not in str(self._path):
                os.truncate(self._path, self._size)  # a full disk may take part of a line; remove this part
            if self._stops_on_error:
                raise UserError(
                    f"{self._path} cannot be written to ({first_line(error)}): make it possible and run the same "
                    "command again, or continue in spite of it with config.checkpoint.on_error=continue"
                ) from None
            _log.warning("%s cannot be written to (%s), training goes on.", self._path, first_line(error))

    def _draw(self, step: int, scalars: dict[str, float]) -> None:
        """Adds a point to each curve. The curves repeat `metrics.jsonl`, so an error only ends the curves."""
        try:
            if self._tensorboard:
                self._tensorboard.write_scalars(step, scalars)
        except Exception as error:  # TensorFlow's own error; the writer's thread raised it in an earlier write
            _log.warning("TensorBoard's files cannot be written (%s): no more curves.", first_line(error))
            self._tensorboard = None

    def close(self) -> None:
        """Writes what is still in memory and closes TensorBoard's files."""
        if self._unwritten and not self._stops_on_error:
            self._append()
        if self._writes and self._tensorboard:
            with contextlib.suppress(Exception):  # see _draw
                self._tensorboard.close()


def _as_text(line: dict[str, float]) -> str:
    return json.dumps(line) + "\n"
