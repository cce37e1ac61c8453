"""Several processes that train as one: how they meet, and what is said when one of them is lost.

JAX ends a process from C++, where no handler of Python's runs, when another has died or gone silent. So that its user
still reads what happened, a witness waits beside each process: a shell that hears nothing from it but a farewell, and
says in one line when the process went without one.
"""

import atexit
import contextlib
import re
import subprocess

import jax

from mixer.runtime.errors import UserError, first_line

_LOST_AFTER = 60  # seconds without a sign of life; then JAX ends the other processes
_MEET_WITHIN = 300  # seconds, JAX's own default

_witness: subprocess.Popen[bytes] | None = None
_WITNESS = """trap '' INT TERM HUP; read -r farewell || echo "$0" >&2"""


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the others. On a TPU slice all arguments may be None, it knows by itself.

    Args:
      coordinator: address and port of process 0.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      UserError: an argument is wrong or missing, or the others do not come.
    """
    if coordinator and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: expected an address and a port, such as host0:8476")
    name = "this process" if process_id is None else f"process {process_id}"
    _summon_witness(
        f"error: {name} was ended, by JAX since another process died, fell silent or never came, or from outside: "
        "see above, and what the others said last; then start all again, and they continue"
    )
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id,
            heartbeat_timeout_seconds=_LOST_AFTER, initialization_timeout=_MEET_WITHIN,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        flags = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
        given = "".join(f" --{flag}={value}" for flag, value in flags.items() if value is not None)
        raise UserError(f"--distributed{given}: JAX could not join the processes: {first_line(error)}") from None


def farewell() -> None:
    """Tells the witness, if there is one, that this process ends by its own will."""
    if _witness:
        with contextlib.suppress(OSError):  # somebody ended it
            _witness.communicate(b"farewell\n")


def _leave() -> None:
    jax.distributed.shutdown()  # leaving, too, processes wait for each other, and may be ended for another's sake
    farewell()


def _summon_witness(last_words: str) -> None:
    global _witness
    # Nobody else inherits the pipe: when this process is gone, so is the last that could speak.
    _witness = subprocess.Popen(["/bin/sh", "-c", _WITNESS, last_words], stdin=subprocess.PIPE)
    atexit.register(_leave)
