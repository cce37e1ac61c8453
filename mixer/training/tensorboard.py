"""TensorBoard's files of a run: curves of all metrics, the config, and a picture of the first batch.

clu writes them with TensorFlow, which the input pipeline of a run imports anyway, so a start without clu would not be
faster. After TensorFlow's 4.3 s, the import of clu takes 0.04 s (machine B, 2026-11-28).
"""

import io
import os
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from mixer.runtime import environment, files


def open_writer(
    workdir: epath.PathLike, step: int, written: Mapping[int, Mapping[str, float]], repeats: bool
) -> Any:  # fmt: skip
    """Returns a clu writer to a run's folder, which continues after a step; the arguments are those of `writers.Kind`.

    What earlier starts of the run wrote of later steps will be written again. TensorBoard is told to forget it.

    Raises:
      OSError: the folder cannot be written to.
    """
    with environment.prepared():  # clu imports TensorFlow, which takes seconds
        from clu import metric_writers
    if any(path.name.startswith(_PREFIX) for path in epath.Path(workdir).iterdir()):
        _write_restart(workdir, step + 1 if step else 0)  # one that begins anew evaluates at step 0 again
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
