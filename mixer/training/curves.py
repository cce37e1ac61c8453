"""TensorBoard's files of a run: curves of all metrics, the config, and a picture of the first batch."""

import io
import os
import time
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from mixer.config.checks import flat
from mixer.runtime import environment, files


def open_writer(workdir: epath.PathLike, step: int) -> Any:
    """Returns a clu writer to a run's folder, which continues after a step.

    What earlier starts of the run wrote of later steps will be written again. TensorBoard is told to forget it.

    Raises:
      OSError: the folder cannot be written to.
    """
    with environment.prepared():  # clu imports TensorFlow, which takes seconds
        from clu import metric_writers
    if any(path.name.startswith(_PREFIX) for path in epath.Path(workdir).iterdir()):
        _write_restart(workdir, step + 1)
    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))


_PREFIX = "events.out.tfevents."


def _write_restart(workdir: epath.PathLike, step: int) -> None:
    """Writes a file after which TensorBoard drops what it has read of a step and later ones.

    clu cannot write this event. TensorBoard reads a folder's files in the order of their names, which have the time of
    their beginning in seconds: this one follows those of earlier starts, and precedes the one that is opened next,
    whose name is longer.
    """
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    now, content = time.time(), io.BytesIO()
    writer = RecordWriter(content)
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    restart = event_pb2.Event(wall_time=now, step=step, session_log=start)
    # Twice: TensorBoard takes the first one that it meets for the run's beginning.
    for event in (event_pb2.Event(wall_time=now, file_version="brain.Event:2"), restart, restart):
        writer.write(event.SerializeToString())
    files.write_bytes(os.path.join(os.fspath(workdir), f"{_PREFIX}{int(now):010d}"), content.getvalue())


def describe(writer: Any, step: int, config: ml_collections.ConfigDict, picture: np.ndarray) -> None:
    """Writes the config that holds from a step on, as text and hyperparameters, and a picture of the step's batch."""
    text = "\n".join(f"    {line}" for line in config.to_json(indent=2, sort_keys=True).splitlines())
    writer.write_texts(step, {"config": text})
    writer.write_hparams(
        {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flat(config).items()
        }
    )
    writer.write_images(step, {"first batch": picture[None]})
