"""Commands run as forks of a process that has imported the libraries: each would need seconds for that alone.

A fork has its own arguments, variables, streams and exit status, as `python -m` has. What happens while a process
starts, while it is killed, or while Python takes it down is tested by processes that start from nothing.
"""

import atexit
import json
import os
import pathlib
import select
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A fork has only the thread that forks. It lacks nothing here, since no library starts a thread when it is imported.
# Commands declare flags when they are imported, and mixer.data begins to filter standard error, so each fork imports
# its own. The garbage collector of a fork leaves alone what was imported before: to look through it took a tenth of a
# command's time.
SERVER = """
import gc, importlib, json, os, pkgutil, selectors, sys
import tests.libraries
import mixer.config, mixer.models, mixer.runtime, mixer.training.checkpoint, mixer.training.setup
for room in (mixer.config, mixer.models, mixer.runtime):
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
assert "mixer.data.tensorflow" not in sys.modules
gc.collect()
gc.freeze()

def run(name, arguments, folder, given):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(given)
    sys.argv = [name, *arguments]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    try:
        importlib.import_module(name).run()
        return 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1

def forked(job):
    pipes = {stream: os.pipe() for stream in (1, 2)}
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream, ends in pipes.items():
            os.dup2(ends[1], stream)
            for end in ends:
                os.close(end)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1, errors="backslashreplace")
        status = run(*job)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # without the seconds that Python needs to take everything down
    said = {stream: b"" for stream in pipes}
    with selectors.DefaultSelector() as reading:
        for stream, (read, write) in pipes.items():
            os.close(write)
            reading.register(read, selectors.EVENT_READ, stream)
        while reading.get_map():  # until nobody can write any more, so that a child of the command ends its lines too
            for key, _ in reading.select():
                part = os.read(key.fd, 65536)
                said[key.data] += part
                if not part:
                    reading.unregister(key.fd)
                    os.close(key.fd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *(text.decode() for text in said.values())

for job in sys.stdin:
    print(json.dumps(forked(json.loads(job))), flush=True)
"""

# JAX reads the first when it looks for devices, and pytest alone the second; all others may be read by an import.
_ANY_TIME = ("XLA_FLAGS", "PYTEST_CURRENT_TEST")
_TIMEOUT = 300
_servers: dict[tuple[tuple[str, str], ...], subprocess.Popen[str]] = {}


def environment(devices: int) -> dict[str, str]:
    """The tests' own, for a process that sees so many devices and compiles as quickly."""
    return {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"}


def run(
    name: str, *arguments: object, cwd: pathlib.Path = ROOT, devices: int = 8, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command as with `python -m`.

    Args:
      name: its module.
      arguments: its command line.
      cwd: the folder in which it runs.
      devices: how many it sees.
      variables: what it has in its environment besides those of the tests.
    """
    words, given = [str(argument) for argument in arguments], {**environment(devices), **variables}
    server = _server({name: value for name, value in given.items() if name not in _ANY_TIME})
    print(json.dumps([name, words, str(cwd), given]), file=server.stdin, flush=True)
    if not select.select([server.stdout], [], [], _TIMEOUT)[0]:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        raise TimeoutError(f"{name} {' '.join(words)}: not done after {_TIMEOUT} seconds")
    return subprocess.CompletedProcess([name, *words], *json.loads(server.stdout.readline()))


def _server(variables: dict[str, str]) -> subprocess.Popen[str]:
    """Returns the process that has these variables; starts it if none runs. The two that were used last are kept."""
    key = tuple(sorted(variables.items()))
    server = _servers.pop(key, None)
    if server is None or server.poll() is not None:
        if len(_servers) == 2:
            _end(_servers.pop(next(iter(_servers))))
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
    _servers[key] = server  # the last
    return server


def _end(server: subprocess.Popen[str]) -> None:
    with server:
        server.kill()


@atexit.register
def _end_all() -> None:
    for server in _servers.values():
        _end(server)
