"""What a person sees of a run: one line for each step that is logged."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator

import jax


class Console:
    """Prints lines to standard output. On a terminal, the line of a step replaces the line of the step before."""

    def __init__(self, prefix: str = "", seconds_after: float = 0.0):
        """Prepares the output of one run.

        Args:
          prefix: precedes every line.
          seconds_after: is added to the time left, if more runs follow this one.
        """
        self._prefix, self._seconds_after = prefix, seconds_after
        self._is_terminal = sys.stdout.isatty()
        self._writes = jax.process_index() == 0

    def show(self, step: int, total_steps: int, scalars: dict[str, float]) -> None:
        """Shows step, loss, learning rate, gradient norm, speed, waiting time and time left."""
        line = (
            f"step {step}/{total_steps}  loss {scalars['loss']:.4f}  "
            f"lr {scalars['learning_rate']:.2e}  grad norm {scalars['grad_norm']:.3f}  "
            f"{scalars['images_per_sec_per_core']:.0f} images/s/core  "
            f"devices wait {scalars['device_wait_share']:.1%}  "
            f"{format_seconds(scalars['seconds_left'] + self._seconds_after)} left"
        )
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be replaced
            self._print(f"\r\033[K{(self._prefix + line)[:width]}")
        else:
            self._print(f"{self._prefix}{line}\n")

    def keep(self, line: str) -> None:
        """Prints a line that no later line replaces."""
        self._print(f"\r\033[K{self._prefix}{line}\n" if self._is_terminal else f"{self._prefix}{line}\n")

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Says what the block does, such as "compiling the training step", while it runs; and how long it took."""
        start = time.monotonic()
        line = f"{self._prefix}{what} ..."
        self._print(f"\r\033[K{line}" if self._is_terminal else f"{line}\n")
        yield
        self.keep(f"{what} took {format_seconds(time.monotonic() - start)}")

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
