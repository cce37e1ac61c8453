"""Several processes that train as one, through jax.distributed."""

import dataclasses
import errno
import re
import socket
import sys
from typing import Any

import jax
from jax._src.distributed import global_state  # JAX has no public way to its key-value store

from mixer.runtime.errors import UserError, first_line

_LOST_AFTER = 60  # seconds without a heartbeat, after which JAX ends the other processes
JOIN_WITHIN = 300  # seconds, JAX's own default


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the others. What is None, JAX finds itself: on a TPU slice, under SLURM or Open MPI.

    Under SLURM or Open MPI, JAX then gives each process one GPU, by its number on its host. If all arguments are given,
    the process has all that it sees.

    If another process dies, or does not join in time, JAX ends this one from C++ ("Terminating process because the JAX
    distributed service detected fatal errors", a stack trace and status 134 in jax 0.10.2). Python cannot handle that,
    so the message of this function says beforehand what to do.

    Args:
      coordinator: address and port of process 0.
      num_processes: how many processes there are.
      process_id: the number of this process, from 0.

    Raises:
      UserError: an argument is wrong or missing, or another process has the coordinator's port.
    """
    if coordinator and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: expected an address and a port, such as host0:8476")
    if coordinator and process_id == 0:
        _check_port(coordinator)
    name = "this process" if process_id is None else f"process {process_id}"
    print(
        f"{name} joins the others{f' at {coordinator}' if coordinator else ''}, within {JOIN_WITHIN} s; if one of "
        "them is lost, or a number is given twice, JAX ends all: start all again, and they continue",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    told = None not in (coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, cluster_detection_method="deactivate" if told else None,
            heartbeat_timeout_seconds=_LOST_AFTER, initialization_timeout=JOIN_WITHIN,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        flags = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
        given = "".join(f" --{flag}={value}" for flag, value in flags.items() if value is not None)
        raise UserError(f"--distributed{given}: JAX could not join the processes: {first_line(error)}") from None


def _check_port(coordinator: str) -> None:
    """Checks that no other program on this machine listens at the coordinator's port: process 0 is to open it.

    JAX's library would crash, or share the port with the process 0 of another run.

    Raises:
      UserError: one does.
    """
    port = int(coordinator.rpartition(":")[2])
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was left a minute ago is free
                probe.bind((everywhere, port))
        except OverflowError:
            raise UserError(f"--coordinator={coordinator}: a port is at most 65535") from None
        except OSError as error:  # others, such as a machine without IPv6, say nothing about the port
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"--coordinator={coordinator}: the port is in use on this machine, by another program or by "
                    "another process 0: give all processes a free port, and each its own --process_id"
                ) from None


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes that train as one.

    Attributes:
      client: of JAX's coordination service, which keeps texts for all of them; None without `start`.
      index: of this process, from 0.
      count: how many there are.
    """

    client: Any
    index: int
    count: int


def processes() -> Processes:
    """Returns the processes that this one trains with.

    Unlike `jax.process_index`, it does not look for devices, in which all processes would wait for each other.
    """
    return Processes(global_state.client, global_state.process_id, global_state.num_processes)


def is_first() -> bool:
    """Tells whether this is process 0. If `start` was called, it does not look for devices."""
    found = processes()
    return (found.index if found.client is not None else jax.process_index()) == 0
