"""A trace of some steps for TensorBoard's profiler."""

from typing import Any

import jax
from etils import epath


class Profile:
    """Traces some whole steps: those that follow the tenth after the start."""

    def __init__(self, workdir: epath.Path, first_step: int, num_steps: int, total_steps: int):
        """Prepares for a run that stands at `first_step`, and for no trace if `num_steps` is 0."""
        self._workdir = workdir
        # After the first step, which is compiled, and earlier than after the tenth if fewer steps are left.
        self._after = max(min(first_step + 10, total_steps - num_steps), first_step + 1)
        self._last = min(self._after + num_steps, total_steps)
        self._runs = False

    @staticmethod
    def step(step: int) -> jax.profiler.StepTraceAnnotation:
        """Marks the step that begins, so that TensorBoard shows the time of each step."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def at(self, step: int, results: Any) -> None:
        """Starts or stops the trace after a step, of which devices may still compute the `results`."""
        if self._after >= self._last or step not in (self._after, self._last):
            return
        jax.block_until_ready(results)
        if step == self._after:
            jax.profiler.start_trace(str(self._workdir), profiler_options=_options())
            self._runs = True
        else:
            self.close()

    def close(self) -> None:
        """Writes the trace, also of a run that was asked to stop before the last of its steps."""
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False


def _options() -> jax.profiler.ProfileOptions:
    """Returns what is traced: devices, the runtime and tf.data, but no calls of Python.

    To trace calls, JAX changes the state of every Python thread while the input's threads come and go. Two test
    processes crashed there (Python 3.11, JAX 0.10.2).
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options
