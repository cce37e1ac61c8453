"""How a process joins the others. tests/chaos (peer) tries what happens when one of them dies."""

import socket

import jax
import pytest
from run_python import run_python

from mixer.runtime import distributed
from mixer.runtime.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("host0", 2, 0), "--coordinator=host0: expected an address and a port, such as host0:8476"),
        (("host0:8476", 2, 2), "--distributed --coordinator=host0:8476 --num_processes=2 --process_id=2: JAX could"),
        ((None, None, None), "--distributed: JAX could not join the processes: "),
        (("host0:99999", 2, 0), "--coordinator=host0:99999: a port is at most 65535"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, said):
    with pytest.raises(UserError) as error:
        distributed.start(*arguments)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("host0:8476", 2, 1), "process 1 joins the others at host0:8476, within 300 s; "),
        ((None, None, None), "this process joins the others, within 300 s; "),
    ],
)
def test_what_to_do_about_a_lost_process_is_said_before_joining(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **named: None)
    distributed.start(*arguments)
    told = "if one of them is lost, or a number is given twice, JAX ends all: start all again, and they continue"
    expected = f"{said}{told}\n"
    assert capsys.readouterr().err == expected


JOINED = """
from jax._src import xla_bridge
from mixer.runtime import distributed
distributed.start("localhost:{port}", 1, 0)
print(xla_bridge.CUDA_VISIBLE_DEVICES.value)
"""


def test_a_process_that_is_told_all_keeps_all_gpus_under_slurm():
    """Left to itself, JAX gives it the one whose number it has on its host."""
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "node1", "NTASKS": "1", "PROCID": "0", "LOCALID": "3"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables = {f"SLURM_{name}": value for name, value in slurm.items()}
    assert run_python(JOINED.format(port=port), **variables) == ["all"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_that_another_program_has_is_told_before_joining(monkeypatch, shared):
    """JAX's library shares its port with others that do."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **named: None)
    with socket.socket() as server:
        if shared:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("localhost", 0))
        server.listen()
        address = f"localhost:{server.getsockname()[1]}"
        distributed.start(address, 2, 1)  # the other processes do not open it
        with pytest.raises(UserError, match=f"--coordinator={address}: the port is in use on this machine, by another"):
            distributed.start(address, 2, 0)
    distributed.start(address, 2, 0)
