"""The speed of the training loop, and how long the devices wait for it."""

import concurrent.futures
import contextlib
import time
from collections.abc import Iterator
from typing import Any

from etils import epy

with epy.lazy_imports():  # it takes a second, for which --help does not wait
    import jax


class Progress:
    """Measures images per second, the share of time in which the devices wait, and the time left.

    A thread notes when each step is done. From then until the next step is dispatched, the devices have nothing to do:
    the next batch is late, or the loop is busy with a checkpoint or with metrics.
    """

    def __init__(self, step: int, total_steps: int, batch_size: int):
        """Starts to measure a run that stands at `step`."""
        self._total_steps, self._batch_size = total_steps, batch_size
        self._watcher = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._free: concurrent.futures.Future[float] | None = None  # when the devices finished the newest step
        self._first, self._paused_so_far = step, 0.0
        self.restart(step)

    def restart(self, step: int) -> None:
        """Starts a new measurement at `step`."""
        self._step, self._since, self._paused, self._waited = step, time.monotonic(), 0.0, 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time inside the block, for example an evaluation."""
        start = time.monotonic()
        yield
        self._paused += (seconds := time.monotonic() - start)
        self._paused_so_far += seconds
        # The block waited for its own results, which the devices compute after the newest step: they are free now.
        self._free = self._watcher.submit(_when_done, None)

    def dispatched(self, results: Any) -> None:
        """Notes that a step was dispatched. Call it at once, with arrays that this step computes."""
        if self._free is not None and self._free.done():
            self._waited += time.monotonic() - max(self._free.result(), self._since)
        self._free = self._watcher.submit(_when_done, results)

    def measure(self, step: int) -> dict[str, float]:
        """Returns the measurement since the last call, and starts a new one at `step`.

        Returns:
          images_per_sec_per_core, device_wait_share (0 to 1) and seconds_left: until the last step, if pauses go on as
          so far. Nothing where no step was taken since the last call.
        """
        steps = step - self._step
        if steps == 0:
            return {}
        seconds = max(time.monotonic() - self._since - self._paused, 1e-9)
        with_pauses = seconds / steps + self._paused_so_far / (step - self._first)  # of a step
        measured = {
            "images_per_sec_per_core": steps * self._batch_size / seconds / jax.device_count(),
            "device_wait_share": self._waited / seconds,
            "seconds_left": (self._total_steps - step) * with_pauses,
        }
        self.restart(step)
        return measured

    def close(self) -> None:
        """Ends the thread."""
        self._watcher.shutdown(wait=False)


def _when_done(results: Any) -> float:
    """Waits until arrays are computed. Returns the time."""
    jax.block_until_ready(results)
    return time.monotonic()
