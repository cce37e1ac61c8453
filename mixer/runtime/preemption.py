"""Requests to stop. Only this module handles them.

    SIGTERM             a machine is taken away, or a container ends
    SIGINT              a person: Ctrl-C
    SIGHUP              the terminal goes away, unless it was ignored from the start, as by nohup
    SIGUSR1, SIGUSR2    a scheduler, some time before the end: Slurm's --signal

    during                                  the process
    start-up, restoring, compiling          exits at once: there is nothing new to save
    training                                finishes the current step, saves and exits
    an evaluation                           abandons the evaluation, saves and exits; the next start repeats it
    saving after an earlier request         exits at once

If one of several processes is asked to stop, all exit after the same step. The request may be a signal, or a notice to
JAX's preemption service. The exit status is EXIT_STATUS: start the run again, and it continues.

A thread receives the signals. The main thread may compile for minutes, and Python runs no signal handler meanwhile.
"""

import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mixer.runtime import devices

EXIT_STATUS = 75  # EX_TEMPFAIL in sysexits.h, a temporary failure: scripts/tpu_vm.py starts the run again

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

T = TypeVar("T")


@functools.partial(jax.jit, static_argnums=1)
def _any(asked: dict[str, jax.Array], mesh: Mesh) -> jax.Array:
    """Returns 1 if any device's entry is 1."""
    of_any: jax.Array = jax.lax.with_sharding_constraint(jnp.max(asked["asked"]), devices.replicated(mesh))
    return of_any


def ignore() -> None:
    """Ignores the signals from here on. Call it at the very end, when all is saved and the status is decided.

    When Python exits, it restores the default handlers. Without this function, a signal that arrives then would end
    the process with the status of a failure.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class PreemptedError(Exception):
    """The run was asked to stop, and its state is saved."""


class AbandonedError(PreemptedError):
    """The run was asked to stop, and abandons what it was doing, such as an evaluation. The next start repeats it."""


class Stop:
    """Knows whether the run was asked to stop. Before `listen`, the signals have their usual effect."""

    def __init__(self, after: int | None = None) -> None:
        """Prepares for requests; with `after`, the loop stops after this step as if it had been asked."""
        self.after = after
        self._asked = threading.Event()
        self._calls = 0
        self._has_work_to_save = False
        self._mesh: Mesh | None = None
        self._latest: jax.Array | None = None  # whether any process had been asked, at the last call of `asked`

    def listen(self) -> None:
        """Takes over the signals. Call it once, from the main thread, after jax.distributed.initialize.

        JAX's preemption service handles SIGTERM too, from its start. The last handler that is set wins.
        """
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        # Python writes the signal's number here at once, even while the main thread is busy in C++.
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):
                signal.signal(number, lambda *_: None)

        def watch() -> None:
            with sender:
                while number := receiver.recv(1):
                    if number[0] in _SIGNALS:
                        self._ask(signal.Signals(number[0]).name)

        threading.Thread(target=watch, name="preemption", daemon=True).start()

    def _ask(self, name: str) -> None:
        if self._has_work_to_save and not self._asked.is_set():
            self._asked.set()  # first, whatever happens to the message
            _say(f"{name}: saving, then leaving; once more leaves at once")
        else:
            _say(f"{name}: leaving at once")
            os._exit(EXIT_STATUS)

    def work_begins(self) -> None:
        """Notes that from here on there is work to save, so that a request no longer ends the process at once."""
        self._has_work_to_save = True

    def work_ends(self) -> None:
        """Notes that the work is saved, as between two runs of a sweep: a request ends the process at once again."""
        self._has_work_to_save = False

    def agree(self, mesh: Mesh) -> None:
        """Makes several processes share their requests. All of them must then call `asked` equally often."""
        self._mesh = mesh if jax.process_count() > 1 else None

    def asked(self) -> bool:
        """Tells whether to save and exit.

        All processes get the same answer, but one call late. This call starts the reduction over the processes, and
        reads the result of the last call, which is ready: so the loop never waits for it.
        """
        self._calls += 1
        service_on = jax.config.jax_enable_preemption_service  # type: ignore[attr-defined,unused-ignore]
        serves = jax.distributed.is_initialized() and service_on
        if serves and multihost_utils.reached_preemption_sync_point(self._calls):
            self._asked.set()
        if self._mesh is None:
            return self._asked.is_set()
        mine = np.full(jax.local_device_count(), self._asked.is_set(), np.int32)
        before, self._latest = self._latest, _any(devices.to_devices({"asked": mine}, self._mesh), self._mesh)
        return before is not None and bool(before)

    def unless_asked(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items.

        Raises:
          AbandonedError: the run was asked to stop.
        """
        for item in items:
            if self.asked():
                raise AbandonedError("asked to stop: nothing new to save")
            yield item


def _say(line: str) -> None:
    """Prints a line to standard error; on a terminal below the line that shows the step, if there is one."""
    print(f"\n{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
