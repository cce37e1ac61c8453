"""The metrics of a run: one line of `metrics.jsonl` for each step that is logged, and what writers make of it."""

import contextlib
import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from etils import epath, epy

from mixer.runtime import bucket, files, json_text
from mixer.runtime.errors import UserError, first_line

with epy.lazy_imports():  # it takes a second, for which --help does not wait
    import jax

    from mixer.training import writers as metric_writers

if TYPE_CHECKING:
    import ml_collections
    import numpy as np

_log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"

# In a bucket nothing can be appended, so the whole file is written anew, for which the run waits.
_SECONDS_BETWEEN_UPLOADS = 60.0

# Measured times end with these names. They differ from run to run.
_TIMES = ("images_per_sec_per_core", "device_wait_share", "seconds_left")


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """Returns the lines of a run's `metrics.jsonl`; none if the file does not exist.

    A value that was not finite is null in the file and NaN here. Damaged lines are left out. For example, a killed
    process may have written only part of the last line.
    """
    try:
        written = files.read_bytes(epath.Path(workdir) / METRICS_FILE)
    except FileNotFoundError:
        return []
    lines = []
    for text in written.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append({name: math.nan if value is None else value for name, value in line.items()})
    return lines


def deterministic(line: dict[str, float]) -> dict[str, float]:
    """Returns a line without its measured times. The rest is the same however often the run was interrupted."""
    return {name: value for name, value in line.items() if not name.endswith(_TIMES)}


class MetricsLog:
    """Writes the scalars of a step to `metrics.jsonl` and to writers. Only the first process writes."""

    def __init__(
        self, workdir: epath.PathLike, step: int, on_error: str = "stop", writers: Sequence[str] = ("tensorboard",),
        *, repeats: bool = True,
    ):  # fmt: skip
        """Opens the log of a run that continues from a checkpoint, or begins.

        Args:
          workdir: the run's folder.
          step: of the checkpoint. Later lines are deleted, because the run will write them again. 0 deletes all: the
            run begins.
          on_error: what to do when a line cannot be written. "stop" raises an error. "continue" keeps the line in
            memory and writes it as soon as that is possible.
          writers: keys of `writers.WRITERS`.
          repeats: whether the run takes these later steps as it took them before.

        Raises:
          UserError: the log cannot be written, and on_error is "stop"; or a writer cannot be opened.
        """
        self._writes = jax.process_index() == 0
        self._path = epath.Path(workdir) / METRICS_FILE
        self._stops_on_error = on_error == "stop"
        before = {int(line["step"]): line for line in read_metrics(workdir)}
        lines = {number: line for number, line in before.items() if number <= step} if step else {}
        self._last: dict[str, float] = lines.pop(max(lines)) if lines else {}
        self._earlier = "".join(_as_text(lines[step]) for step in sorted(lines))  # all lines but the last
        self._is_whole = False  # whether the file holds all lines, so that one can be appended
        self._waits, self._next_upload = False, 0.0  # whether lines wait for the next upload, and when that is
        if self._writes:
            self._store()
            self._writers = metric_writers.Writers(writers, workdir, step, before if step else {}, repeats and step > 0)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of a step. If the step has a line already, adds them to this line.

        In a bucket they may be there a minute later, or after `flush`.

        Raises:
          UserError: the line cannot be written, and on_error is "stop".
        """
        if self._last.get("step") == step:
            self._last = {**self._last, **scalars}
            self._is_whole = False
        else:
            self._earlier += self._last_text()
            self._last = {"step": step, **scalars}
        if self._writes:
            self._waits = bucket.is_remote(self._path) and time.monotonic() < self._next_upload
            if not self._waits:
                self._store()
            self._writers.write(step, scalars)

    def flush(self) -> None:
        """Writes what waits for the next upload, as before a checkpoint from which a run continues.

        Raises:
          UserError: it cannot be written, and on_error is "stop".
        """
        if self._waits:
            self._store()

    def describe(self, step: int, config: "ml_collections.ConfigDict", picture: "Callable[[], np.ndarray]") -> None:
        """Gives the writers the config and a picture of the batch of a step. Only the first process draws it."""
        if self._writes:
            self._writers.describe(step, config, functools.cache(picture))

    def _last_text(self) -> str:
        return _as_text(self._last) if self._last else ""

    def _store(self) -> None:
        """Appends the last line to the file, or writes the file anew. (In a bucket nothing can be appended.)"""
        self._waits, self._next_upload = False, time.monotonic() + _SECONDS_BETWEEN_UPLOADS
        try:
            if self._is_whole and not bucket.is_remote(self._path):
                with self._path.open("a") as file:
                    file.write(self._last_text())
            else:
                files.write_text(self._path, self._earlier + self._last_text())
            self._is_whole = True
        except OSError as error:
            if self._is_whole and not bucket.is_remote(self._path):
                with contextlib.suppress(OSError):  # the next line makes the whole file anew
                    os.truncate(self._path, len(self._earlier))  # a full disk may have taken part of this one
            self._is_whole = False
            if self._stops_on_error:
                raise UserError(
                    f"{self._path} cannot be written to ({first_line(error)}): make it possible and run the same "
                    "command again, or continue in spite of it with config.checkpoint.on_error=continue"
                ) from None
            _log.warning("%s cannot be written to (%s), training goes on.", self._path, first_line(error))

    def close(self) -> None:
        """Writes what a full disk kept in memory, and closes the writers. What waits for an upload is not written.

        The folder may be another process's by now; whoever may write to it calls `flush`.
        """
        if self._writes and not self._is_whole and not self._stops_on_error:
            self._store()
        if self._writes:
            self._writers.close()


def _as_text(line: dict[str, float]) -> str:
    return json_text.dumps(line) + "\n"
