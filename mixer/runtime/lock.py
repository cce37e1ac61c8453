"""A lock on a run's folder: a second start of the same run would write the same files.

    the owner                       a second start
    runs on this machine            ends with an error at once
    was killed on this machine      takes the folder over at once
    runs on another machine         ends with an error at the owner's next sign of life, within some seconds
    was killed on another machine   takes the folder over after 90 seconds without a sign of life

The owner's name stands in a file of the folder, on a disk or in a bucket. The owner renews it every 15 seconds. Of a
process of this machine the kernel says whether it lives. Of any other only the file tells, by whether it changes while
one looks. So the clocks of two machines need not agree. 90 seconds are more than an NFS client may show an old
file (60), and little beside what a preempted run has lost. A run that is asked to stop gives its lock back.

All writes are conditional: of several starts at the same moment, one gets the folder.
"""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from mixer.runtime import bucket, bucket_check, conditional, distributed
from mixer.runtime.errors import UserError, first_line

FILE = "owner.json"
_EVERY = 15.0  # seconds from one sign of life to the next
_SILENCE = 90.0  # seconds without one, after which an owner on another machine counts as dead
_LOOK = 2.0  # seconds between two looks at the file
_GOODBYE = 10.0  # seconds that giving the lock back may take

_held: set[str] = set()  # tokens of the locks of this process


@contextlib.contextmanager
def held(folder: epath.PathLike, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Holds the lock on a folder. Several processes that train as one hold it together, through the first of them.

    Args:
      folder: exists; local or in a bucket.
      say: is called with a line before a longer wait.

    Yields:
      A function that raises UserError once another process has taken the folder over.

    Raises:
      UserError: another process holds the lock, or the folder cannot be written to.
    """
    if not distributed.is_first():
        yield lambda: None
        return
    try:
        lock = _Lock(folder)
        with contextlib.ExitStack() as failing:
            _held.add(lock.token)  # first, as another thread of this process may look at once
            failing.callback(_held.discard, lock.token)
            lock.take(say)
            failing.pop_all()
    except OSError as error:
        raise UserError(f"--workdir {folder} cannot be written to ({first_line(error)}); make it possible") from None
    try:
        yield lock.check
    finally:
        lock.give_back()


def refuse_if_held(folder: epath.PathLike, say: Callable[[str], None]) -> None:
    """Checks, before this process joins others, that no run trains in a folder, which may not be there yet.

    Joining would end the processes of that run. Of an owner on another machine, it waits for a sign of life.

    Args:
      folder: local or in a bucket.
      say: is called with a line before it waits.

    Raises:
      UserError: a run trains there.
    """
    wait = 1.5 * _EVERY
    watch = _Watch(folder, wait, f"{wait:.0f} s", say)
    while True:
        try:
            bucket_check.check(folder, for_run=True)
            data, generation = conditional.ConditionalStore(bucket.absolute(folder)).read(FILE)
        except (OSError, UserError):  # what is wrong with the folder is told later, to all processes
            return
        if watch.is_free(data, generation):
            return
        time.sleep(_LOOK)


class _Watch:
    """Tells by one look at a folder's file after the other whether its owner lives."""

    def __init__(self, folder: epath.PathLike, seconds: float, in_words: str, say: Callable[[str], None]):
        """Prepares the first look.

        Args:
          folder: as messages name it.
          seconds: without a sign of life, after which an owner on another machine counts as dead.
          in_words: what a line calls this time.
          say: is called with a line where one look is not enough.
        """
        self._folder, self._seconds, self._in_words, self._say = folder, seconds, in_words, say
        self._first, self._until = b"", 0.0  # the generation of the file at the first look that told nothing

    def is_free(self, data: bytes | None, generation: bytes) -> bool:
        """Tells whether nobody owns the folder; False as long as that cannot be told.

        Args:
          data: of the file; None if there is none.
          generation: of the file.

        Raises:
          UserError: its owner lives.
        """
        owner = _parsed(data)
        lives = False if data is None else _lives(owner)  # None: that cannot be seen from here
        if lives is None and self._first and self._first != generation:
            lives = True  # the owner gave a sign of life while this process looked
        elif lives is None and self._first and time.monotonic() > self._until:
            lives = False
        if lives:
            raise UserError(
                f"{self._folder} is in use: {_named(owner)} trains there; wait for its end or stop it, or give another "
                "--workdir"
            )
        if lives is None and not self._first:
            self._first, self._until = generation, time.monotonic() + self._seconds
            self._say(
                f"{self._folder} belongs to {_named(owner)}: waiting for {self._in_words} to see whether it still runs"
            )
        return lives is False


class _Lock:
    """The lock on a folder."""

    def __init__(self, folder: epath.PathLike):
        self._folder = bucket.absolute(folder)
        self._store = conditional.ConditionalStore(self._folder)
        self.token, self._beat = secrets.token_hex(8), 0
        self._generation = b""  # of the file, as this process has written it
        self._taken_by: dict[str, Any] | None = None
        self._looking = threading.Lock()
        self._looked = _now()  # when the last look at the file ended
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def take(self, say: Callable[[str], None]) -> None:
        """Takes the lock. Waits as long as it cannot be told whether the owner lives."""
        watch = _Watch(self._folder, _SILENCE, f"up to {_SILENCE:.0f} s", say)
        while True:
            data, generation = self._store.read(FILE)
            if _parsed(data).get("token") == self.token:  # the answer to this process's own write was lost
                self._generation = generation
                break
            if not watch.is_free(data, generation):
                time.sleep(_LOOK)
            elif self._write(generation):  # otherwise another start was faster: look who it is
                break
        self._thread.start()

    def check(self) -> None:
        """Checks that the lock is still this process's. A process that sleeps for minutes may lose it.

        After a sleep it looks itself: its thread may have to wait for some seconds more.

        Raises:
          UserError: it is not.
        """
        if self._has_slept():
            with self._looking:
                if self._has_slept():  # the thread has not looked meanwhile
                    self._look()
        if self._taken_by is not None:
            raise UserError(
                f"{self._folder} was taken over by {_named(self._taken_by)} while this process gave no sign of life: "
                "it leaves the run to the other"
            )

    def give_back(self) -> None:
        """Ends the signs of life and deletes the file, if it is still this process's."""
        self._ended.set()
        self._thread.join(_GOODBYE)
        _held.discard(self.token)
        with contextlib.suppress(OSError):  # the next start finds that its owner is gone
            self._store.write(FILE, None, self._generation)

    def _renew(self) -> None:
        while self._taken_by is None and not self._ended.wait(_EVERY):
            with self._looking:
                self._look()

    def _has_slept(self) -> bool:
        return _now() - self._looked > _SILENCE

    def _look(self) -> None:
        """Gives a sign of life, or finds that another has taken the folder over."""
        with contextlib.suppress(OSError):  # as on a full disk: training goes on
            if self._taken_by is None and not self._write(self._generation):
                data, generation = self._store.read(FILE)
                owner = _parsed(data)
                if owner.get("token") == self.token:  # the answer to an earlier write was lost
                    self._generation = generation
                elif data is not None:  # a file that somebody deleted stays deleted
                    self._taken_by = owner
        self._looked = _now()

    def _write(self, generation: bytes) -> bool:
        """Writes the file anew, if it still is of this generation. Tells whether it was."""
        self._beat += 1
        owner = {
            "host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid()), "machine": _machine(),
            "token": self.token, "sign_of_life": self._beat,
        }  # fmt: skip
        written = self._store.write(FILE, json.dumps(owner).encode(), generation)
        self._generation = written or self._generation
        return bool(written)


def _now() -> float:
    """Returns the seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _parsed(data: bytes | None) -> dict[str, Any]:
    """Returns what the file says of the owner; nothing if it is unreadable."""
    with contextlib.suppress(ValueError):
        owner = json.loads(data or b"")
        return owner if isinstance(owner, dict) else {}
    return {}


def _named(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '(unknown)')} on {owner.get('host', 'an unknown host')}"


def _lives(owner: dict[str, Any]) -> bool | None:
    """Tells whether the owner's process lives; None if that cannot be seen from here."""
    if not _machine() or owner.get("machine") != _machine():
        return None
    if owner.get("pid") == os.getpid() and owner.get("token") not in _held:
        return False  # an earlier lock of this process, which could not be given back
    began = _began(owner.get("pid"))
    return began is not None and began == owner.get("began")


def _machine() -> str:
    """Returns what tells apart the places whose processes cannot see each other; "" if it is unknown, as on a Mac.

    These are boots of a machine, containers, and users, who may be hidden from each other.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}/{os.getuid()}"
    except OSError:
        return ""


def _began(pid: object) -> int | None:
    """Returns when a process began, in ticks of the kernel's clock; None if it has ended.

    A number that was given to another process since then has another beginning.
    """
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
