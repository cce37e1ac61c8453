"""Being asked to stop: SIGTERM when a machine is taken away, SIGINT from a person. The one owner of these signals.

    asked while                             the process
    starting, restoring, compiling          leaves at once: there is nothing new to save
    training                                finishes the step in flight, saves and leaves
    evaluating                              abandons the evaluation, saves and leaves; it is made up for on return
    already leaving                         leaves at once

Of several processes, all leave behind the same step when one is asked, be it by a signal or by a notice that reaches
JAX's preemption service. The exit status is EXIT_STATUS: start the run again, and it continues. A thread watches, since
the main one may be inside a compilation for minutes, where no handler of Python's runs.
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

from mixer.runtime import devices, distributed

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the failure is a passing one; scripts/tpu_vm.py starts the run again

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

T = TypeVar("T")


@functools.partial(jax.jit, static_argnums=1)
def _any(asked: dict[str, jax.Array], mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(asked["asked"]), devices.replicated(mesh))


def ignore() -> None:
    """Makes this process deaf to its signals: for the very end, when all is saved and its status is decided.

    Python, as it ends, gives signals back their default, and one that came then would count as a failure.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class PreemptedError(Exception):
    """The run was asked to stop, and what it had is saved."""


class AbandonedError(PreemptedError):
    """What was under way need not be finished: the run was asked to stop, and has nothing new to save but for that."""


class Stop:
    """Whether this process was asked to stop. Without `listen` signals do what they always do."""

    def __init__(self, after: int | None = None) -> None:
        """Asks by itself behind step `after`, if given."""
        self.after = after
        self._asked = threading.Event()
        self._calls = 0
        self._has_work_to_save = False
        self._mesh: Mesh | None = None
        self._latest: jax.Array | None = None  # whether any process had been asked, at the call before

    def listen(self) -> None:
        """Takes over the signals; to be called once, from the main thread, behind jax.distributed's own start.

        JAX's preemption service takes SIGTERM too, when it starts; whoever comes last has it.
        """
        told, tell = socket.socketpair()
        tell.setblocking(False)
        signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)  # written to whatever the main thread is doing
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)

        def watch() -> None:
            with tell:
                while number := told.recv(1):
                    if number[0] in _SIGNALS:
                        self._ask(signal.Signals(number[0]).name)

        threading.Thread(target=watch, name="preemption", daemon=True).start()

    def _ask(self, name: str) -> None:
        if self._has_work_to_save and not self._asked.is_set():
            print(f"{name}: saving, then leaving; once more leaves at once", file=sys.stderr, flush=True)
            self._asked.set()
        else:
            print(f"{name}: leaving at once", file=sys.stderr, flush=True)
            distributed.farewell()
            os._exit(EXIT_STATUS)

    def work_begins(self) -> None:
        """From here on there is work that would be lost: the loop is told, and saves it."""
        self._has_work_to_save = True

    def agree(self, mesh: Mesh) -> None:
        """Of several processes, lets one that was asked speak for all; they must call `asked` equally often."""
        self._mesh = mesh if jax.process_count() > 1 else None

    def asked(self) -> bool:
        """Whether the process is to save and leave.

        Several processes get the same answer, one call late: what is read here was computed behind the step before.
        """
        self._calls += 1
        serves = jax.distributed.is_initialized() and jax.config.jax_enable_preemption_service  # type: ignore[attr-defined]
        if serves and multihost_utils.reached_preemption_sync_point(self._calls):
            self._asked.set()
        if self._mesh is None:
            return self._asked.is_set()
        mine = np.full(jax.local_device_count(), self._asked.is_set(), np.int32)
        before, self._latest = self._latest, _any(devices.to_devices({"asked": mine}, self._mesh), self._mesh)
        return before is not None and bool(before)

    def unless_asked(self, items: Iterable[T]) -> Iterator[T]:
        """Passes items on.

        Raises:
          AbandonedError: once the process is asked to stop.
        """
        for item in items:
            if self.asked():
                raise AbandonedError("asked to stop: nothing new to save")
            yield item
