"""Processes that compare what they are about to do, before they train as one.

Without it, a process with another learning rate or seed trains on without a word, and all wait for ever if one of them
has another number of steps. The processes exchange text through the key-value store of JAX's coordination service. This
needs no devices: in looking for devices all wait for each other, also for one that has failed.
"""

import contextlib
import functools
import json
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from mixer.runtime import distributed, files
from mixer.runtime.errors import UserError, first_line

Facts = dict[str, dict[str, str]]
"""What a process is about to do: names and values, by kind. The kinds are the keys of `_REMEDIES`."""

_REMEDIES = {
    "command": "start all with the same command",
    "software": "install the same software for all",
    "settings": "they were left to each process: set them in the config",
    "data": "give all the same data",
    "devices": "give all as many devices",
}
WITHIN = distributed.JOIN_WITHIN
_SILENT = 60  # seconds after which a process that waits says so
_FILE = ".shared"  # in the run's folder, as long as the processes compare
_LOOKS = 10  # seconds in which a file of another host must come into sight; over a network this may take a while
_LEAVES = 30  # seconds that a process waits for the others to read why all end
_ENDS = 3600  # seconds that a process waits for the others to end their work, such as sending metrics to a server
_SHOWN, _WIDTH = 3, 80  # differences in a message, and characters of a value


class DifferenceError(UserError):
    """The processes are not about to do the same. All of them get this error."""


class Report(NamedTuple):
    """What process 0 learns of a process.

    Attributes:
      facts: of the process.
      unseen_folder: the run's folder, if the process does not see there what process 0 wrote; else "".
      error: why the process cannot start; "" if it can.
    """

    facts: Facts
    unseen_folder: str = ""
    error: str = ""


def difference(reports: Sequence[Report]) -> str:
    """Returns in one line why the processes cannot start as one; "" if they can. The first report is of process 0."""
    for number, report in enumerate(reports):
        if report.error:
            return f"process {number} cannot start: {report.error}"
    for number, report in enumerate(reports):
        if report.unseen_folder:
            return (
                f"the folder {report.unseen_folder} of process {number} is not that of process 0: give all processes a "
                "folder that they share, or gs://"
            )
    first = reports[0].facts
    for kind in first:
        odd = [number for number, report in enumerate(reports) if report.facts[kind] != first[kind]]
        if odd:
            like = [number for number in odd if reports[number].facts[kind] == reports[odd[0]].facts[kind]]
            return (
                f"{_named(like)} from process 0: {_changes(first[kind], reports[odd[0]].facts[kind])}"
                + (f" (others differ too: {len(odd) - len(like)})" if len(odd) > len(like) else "")
                + f"; {_REMEDIES[kind]}"
            )
    return ""


def _named(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"process {numbers[0]} differs"
    if len(numbers) > _SHOWN:
        return f"processes {numbers[0]}, {numbers[1]} and {len(numbers) - 2} more differ"
    return f"processes {', '.join(map(str, numbers[:-1]))} and {numbers[-1]} differ"


def _changes(expected: dict[str, str], found: dict[str, str]) -> str:
    names = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
    shown = [
        f"{name} is {found.get(name, 'missing')[:_WIDTH]}, not {expected.get(name, 'missing')[:_WIDTH]}"
        for name in names[:_SHOWN]
    ]
    return ", ".join(shown) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


class Meeting:
    """Where the processes of a run compare what they are about to do. A process alone has nothing to compare.

    All processes must call `compare` equally often. Process 0 compares, and tells the others the outcome.
    """

    def __init__(self, store: Any, index: int, count: int):
        """Opens the meeting.

        Args:
          store: the client of JAX's coordination service; None if the process is alone.
          index: number of this process.
          count: of all processes.
        """
        self._store, self._index, self._count, self._round = store, index, count, 0

    def compare(self, facts: Facts, folder: epath.PathLike | None = None, within: float = WITHIN) -> None:
        """Waits for the other processes and compares.

        Args:
          facts: of this process; all processes have the same kinds.
          folder: the run's folder, which exists. All processes must see a file that process 0 writes there.
          within: seconds after which a process that did not come is an error.

        Raises:
          DifferenceError: the processes differ, or one of them cannot start or did not come.
          OSError: the folder cannot be written to.
        """
        if self._store is None:
            return
        outcome = self._decide(facts, folder, within) if self._index == 0 else self._report(facts, folder, within)
        self._round += 1
        if outcome:
            self._leave_together()
            raise DifferenceError(outcome)

    @contextlib.contextmanager
    def failures_told(self) -> Iterator[None]:
        """Tells the other processes of an error, in a part of the program after which they compare."""
        try:
            yield
        except DifferenceError:
            raise
        except Exception as error:
            if self._store is not None:
                with contextlib.suppress(jax.errors.JaxRuntimeError):  # it was too late: they have compared, or ended
                    self._tell(first_line(error))
                    self._leave_together()
            raise

    def end_together(self) -> None:
        """Waits until all processes have done their work. If one ended long before, JAX would abort the others."""
        if self._store is not None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # one of them has failed, or is gone
                self._store.wait_at_barrier("mixer/end", 1000 * _ENDS)

    def _decide(self, facts: Facts, folder: epath.PathLike | None, within: float) -> str:
        until = time.monotonic() + within
        reports = [Report(facts)]
        with _file_in(folder) as token:
            self._set("token", token)
            for number in range(1, self._count):
                text = self._get(f"report/{number}", until, f"process {number}")
                reports.append(Report(*json.loads(text)) if text else Report(facts, error=_late(within)))
                if not text:
                    break
        outcome = difference(reports)
        self._set("outcome", outcome or "-")  # an empty one would read as no answer
        return outcome

    def _report(self, facts: Facts, folder: epath.PathLike | None, within: float) -> str:
        until = time.monotonic() + within
        token = self._get("token", until, "process 0")
        unseen = str(folder) if folder and token and not _sees(folder, token) else ""
        self._set(f"report/{self._index}", json.dumps(Report(facts, unseen)))
        outcome = self._get("outcome", until + _LEAVES, "process 0")  # process 0 says first who did not come
        return outcome.removeprefix("-") if outcome else f"process 0 cannot start: {_late(within)}"

    def _tell(self, error: str) -> None:
        if self._index:
            self._set(f"report/{self._index}", json.dumps(Report({}, error=error)))
        else:
            self._set("outcome", difference([Report({}, error=error)]))
            self._set("token", "")

    def _set(self, name: str, text: str) -> None:
        self._store.key_value_set(f"mixer/{self._round}/{name}", text)

    def _get(self, name: str, until: float, source: str) -> str:
        """Waits for a text. Says so after a while. Returns "" if it does not come in time."""
        silent = _SILENT
        key = f"mixer/{self._round}/{name}"
        while (left := until - time.monotonic()) > 0:
            try:
                text: str = self._store.blocking_key_value_get(key, int(1000 * min(silent, left)))
                return text
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            print(f"process {self._index} waits for {source}", file=sys.stderr, flush=True)
            silent = 10 * silent
        return ""

    def _leave_together(self) -> None:
        """Waits until all know why they end. Process 0 keeps the store: if it ended first, JAX would end the others."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # one of them is late, or gone
            self._store.wait_at_barrier("mixer/leave", 1000 * _LEAVES)


def _late(within: float) -> str:
    return f"it did not come within {within:.0f} s; see its log, and start all again"


@contextlib.contextmanager
def _file_in(folder: epath.PathLike | None) -> Iterator[str]:
    """Yields a random word that it writes to a folder, and deletes the file at the end. Without a folder, yields ""."""
    if not folder:
        yield ""
        return
    token, path = secrets.token_hex(8), epath.Path(folder) / _FILE
    files.write_text(path, token)
    try:
        yield token
    finally:
        with contextlib.suppress(OSError):
            files.delete(path)


def _sees(folder: epath.PathLike, token: str) -> bool:
    """Tells whether a file of another host comes into sight."""
    until = time.monotonic() + _LOOKS
    while True:
        with contextlib.suppress(OSError, ValueError):
            if files.read_text(epath.Path(folder) / _FILE) == token:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.5)


@functools.cache
def meeting() -> Meeting:
    """Returns the meeting of the processes that train with this one. Call it after `distributed.start`, if at all."""
    found = distributed.processes()
    return Meeting(found.client, found.index, found.count)
