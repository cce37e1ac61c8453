"""What a person sees of a run: one line for each step that is logged, and how far an evaluation is."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from etils import epy

with epy.lazy_imports():  # it imports jax, which takes a second, for which --help does not wait
    from mixer.runtime import distributed

# From one line of an evaluation to the next.
_FILE_SECONDS, _TERMINAL_SECONDS = 60.0, 0.2

# What a narrow terminal goes without, first to last.
_SPARED = ("wait", "gradient norm", "learning rate", "speed", "loss")

T = TypeVar("T")


class Console:
    """Prints lines. On a terminal, the line of a step replaces the line of the step before."""

    def __init__(self, prefix: str = "", steps_after: int = 0, to_stderr: bool = False):
        """Prepares the output of one run.

        Args:
          prefix: precedes every line.
          steps_after: of the runs that follow this one: the time that they would take at its speed is left too.
          to_stderr: print to standard error, since standard output is for results.
        """
        self._prefix, self._steps_after, self._seconds_a_step = prefix, steps_after, 0.0
        self._is_open = False  # whether the line on the terminal has no end yet
        self._stream = sys.stderr if to_stderr else sys.stdout
        self._is_terminal = self._stream.isatty()
        self._writes = distributed.is_first()

    def show(self, step: int, total_steps: int, scalars: dict[str, float]) -> None:
        """Shows step, loss, learning rate, gradient norm, speed, waiting time and time left.

        A narrow terminal shows fewer of them and less of the prefix, but always the step and the time left.
        """
        parts = {
            "step": f"step {step}/{total_steps}",
            "loss": f"loss {scalars['loss']:.4f}",
            "learning rate": f"lr {scalars['learning_rate']:.2e}",
            "gradient norm": f"grad norm {scalars['grad_norm']:.3f}",
        }
        if (speed := scalars.get("images_per_sec_per_core")) is not None:  # not at the step from which it is measured
            if step < total_steps:
                self._seconds_a_step = scalars["seconds_left"] / (total_steps - step)
            left = scalars["seconds_left"] + self._steps_after * self._seconds_a_step
            parts |= {
                "speed": f"{f'{speed:.0f}' if speed >= 100 else f'{speed:.3g}'} images/s/core",
                "wait": f"devices wait {scalars['device_wait_share']:.1%}",
                "left": f"{format_seconds(left)} left",
            }
        if not self._is_terminal:
            self._print(f"{self._prefix}{'  '.join(parts.values())}\n")
            return
        for name in filter(parts.__contains__, _SPARED):
            if len(self._prefix + "  ".join(parts.values())) > self._width():
                del parts[name]
        self._replace("  ".join(parts.values()))

    def counted(self, what: str, batches: Iterable[T]) -> Iterator[T]:
        """Yields batches, and shows how many are done; in a file, in a line a minute.

        Args:
          what: what is done with them, such as "evaluating".
          batches: if their number is known (`len`), the time left is shown too.
        """
        total = len(batches) if isinstance(batches, Sized) else None
        begun = shown = time.monotonic()
        if self._is_terminal:
            self._replace(f"{what} ...")
        for number, batch in enumerate(batches):
            now = time.monotonic()
            if number and now - shown >= (_TERMINAL_SECONDS if self._is_terminal else _FILE_SECONDS):
                shown = now
                line = f"{what}  batch {number}"
                if total:
                    line += f"/{total}  {format_seconds((now - begun) / number * (total - number))} left"
                self._replace(line) if self._is_terminal else self.keep(line)
            yield batch
        if self._is_terminal:
            self._replace("")

    def keep(self, line: str) -> None:
        """Prints a line that no later line replaces."""
        self._print(f"\r\033[K{self._prefix}{line}\n" if self._is_terminal else f"{self._prefix}{line}\n")

    def end(self) -> None:
        """Ends the line on a terminal, so that what others print stands below it."""
        if self._is_open:
            self._print("\n")

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Says what the block does, such as "compiling the training step", while it runs; and how long it took."""
        start = time.monotonic()
        self._replace(f"{what} ...") if self._is_terminal else self.keep(f"{what} ...")
        yield
        self.keep(f"{what} took {format_seconds(time.monotonic() - start)}")

    def _replace(self, line: str) -> None:
        prefix = self._prefix[: max(self._width() - len(line), 0)] if line else ""
        self._print(f"\r\033[K{(prefix + line)[: self._width()]}")

    def _width(self) -> int:
        return shutil.get_terminal_size().columns - 1  # a wrapped line could not be replaced

    def _print(self, text: str) -> None:
        if self._writes:
            self._stream.write(text)
            self._stream.flush()
            self._is_open = not text.endswith(("\n", "\033[K"))


def format_seconds(seconds: float) -> str:
    """Formats a duration as 42s, 3m05s, 7h12m or 4d06h."""
    seconds = round(seconds)
    for unit, below, name, sub_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if seconds >= unit:
            return f"{seconds // unit}{name}{seconds % unit // below:02d}{sub_name}"
    return f"{seconds}s"
