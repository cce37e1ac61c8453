"""Takes from a run what it writes to: the terminal, the reader of a pipe, the disk of its log. Or its user's name."""

import os
import signal
import subprocess
import sys

from mixer.runtime.preemption import EXIT_STATUS
from tests.chaos.kills import at_any_time
from tests.chaos.trials import SkippedError, Trial

# ------------------------------------------------------------------------------------------------------------- console

# Runs the command on a terminal of its own, and takes the terminal away after some seconds.
_ON_A_TERMINAL = """
import fcntl, os, pty, subprocess, sys, termios, threading, time
leader, follower = pty.openpty()
take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
command = [sys.executable, "-c", take, *sys.argv[2:]]
process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, start_new_session=True)
os.close(follower)
def relay():
    try:
        while text := os.read(leader, 1000):
            os.write(1, text)
    except OSError:
        pass
threading.Thread(target=relay, daemon=True).start()
time.sleep(float(sys.argv[1]))
fcntl.ioctl(leader, termios.TIOCNXCL)
os.close(leader)
os._exit(process.wait())
"""


def _shell(script: str) -> list[str]:
    """Returns the words before a command that make a shell run it, as "$@"."""
    return ["bash", "-c", script, "bash"]


_CONSOLES = {
    "its log's disk is full": _shell('exec "$@" > /dev/full 2>&1'),
    "standard output's disk is full": _shell('exec "$@" > /dev/full'),
    "it has no standard streams": _shell('exec "$@" <&- >&- 2>&-'),
    "nobody reads its pipe": _shell('"$@" 2>&1 | head -n {lines} > /dev/null; exit ${PIPESTATUS[0]}'),
    "Ctrl-C with tee": _shell('"$@" 2>&1 | tee /dev/null > /dev/null; exit ${PIPESTATUS[0]}'),
    "its terminal goes away": [sys.executable, "-c", _ON_A_TERMINAL, "{seconds}"],
}


def console(trial: Trial) -> None:
    """Starts a run whose output goes nowhere, or whose console goes away. It must train on, or save and leave."""
    how = trial.rng.choice(list(_CONSOLES))
    seconds = trial.rng.uniform(0, trial.bench.undisturbed().seconds)
    program = _CONSOLES[how]
    for name, value in (("{lines}", str(trial.rng.randint(1, 20))), ("{seconds}", f"{seconds:.2f}")):
        program = [word.replace(name, value) for word in program]
    run = trial.start(before=program)
    trial.did(how)
    if how == "Ctrl-C with tee":
        at_any_time(trial, run)
        os.killpg(run.process.pid, signal.SIGINT)
        trial.did(f"SIGINT to all at {run.seconds:.2f} s")
    status = run.end()
    leaves = how in ("Ctrl-C with tee", "its terminal goes away")
    # A signal before the run has its handlers ends it as it ends any program; -1 is a shell's or exit()'s 255.
    early = {1, 255, *(at for number in (signal.SIGHUP, signal.SIGINT) for at in (-number, 128 + number))}
    allowed = {0, EXIT_STATUS, *early} if leaves else {0}
    trial.expect(status in allowed, f"{how}: it ended with status {status}: {run.stderr[-2000:]}")
    trial.survive()


# ----------------------------------------------------------------------------------------------------------- container

_NAMELESS = ["unshare", "--user", "--map-user=4321", "--map-group=4321"]  # a user number without a name


def container(trial: Trial) -> None:
    """Runs as a user without a name, with a HOME that is missing or cannot be written, and kills the run once."""
    try:
        subprocess.run([*_NAMELESS, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise SkippedError("needs unshare(1) and user namespaces") from None
    home = trial.rng.choice((["-u", "HOME"], ["HOME=/proc"], ["HOME=/nowhere"]))
    before = [*_NAMELESS, "env", "-u", "XDG_CACHE_HOME", *home]
    trial.did(f"a user without a name, {' '.join(home)}")
    run = trial.start(before=before)
    at_any_time(trial, run)
    trial.hit(run, trial.rng.choice((signal.SIGKILL, signal.SIGTERM)))
    run.end()
    trial.survive(before=before)
