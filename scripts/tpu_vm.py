"""Rents a Cloud TPU slice, trains on it, and rents another after a preemption. Needs `gcloud` and no Python package.

    python scripts/tpu_vm.py run --name b16 --zone europe-west4-a --project my-project --type v3-128 --spot \\
        --workdir gs://bucket/b16 -- --config configs/b16_i21k.py --config.input.data_dir=gs://bucket/tfds

The arguments after `--` are passed on to mixer.train. `--dry-run` prints the shell commands and runs none.
You may interrupt this program: the training goes on, and the same `run` command follows it again.
`logs`, `status` and `delete` take --name, --zone and --project. See docs/tpu.md.
"""

import argparse
import contextlib
import functools
import hashlib
import os
import pathlib
import posixpath
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

# The exit status of mixer.train after SIGTERM and a last checkpoint: EX_TEMPFAIL in sysexits.h, "try again".
# After this status, or if the slice is lost, the launcher requests a new slice. Status 0 means that the training is
# done. Any other status ends the launcher with an error.
PREEMPTED = 75
ABSENT = "ABSENT"  # our name for NOT_FOUND of gcloud
SUSPENDED = ("SUSPENDING", "SUSPENDED")  # states of a queued resource whose slice the service has taken back
GIT = ["git", "-C", str(pathlib.Path(__file__).resolve().parents[1])]
# What each command of a dry run "prints", call by call: first there is no slice, then there is one whose training is
# done at once.
PRETENDED = {"queue": iter([ABSENT, "ACTIVE"]), "node": iter(["READY"]), "look": iter(["exited 0"] * 2)}
_T = TypeVar("_T")

# The name of a slice is <family>-<size>. The size counts chips for v5litepod (v5e) and v6e, and cores for the others.
CHIPS = (1, 4, 8, 16, 32, 64, 128, 256)
FAMILIES: dict[str, tuple[str, int, int, Sequence[int]]] = {
    # image (https://cloud.google.com/tpu/docs/runtimes), largest size that is one host, size of one of several hosts,
    # allowed sizes
    "v2": ("tpu-ubuntu2204-base", 8, 8, (8, 32, 128, 256, 512)),
    "v3": ("tpu-ubuntu2204-base", 8, 8, (8, 32, 64, 128, 256, 512, 1024, 2048)),
    "v4": ("tpu-ubuntu2204-base", 8, 8, range(8, 8193, 8)),
    "v5litepod": ("v2-alpha-tpuv5-lite", 8, 4, CHIPS),
    "v5p": ("v2-alpha-tpuv5", 8, 8, range(8, 12289, 8)),
    "v6e": ("v2-alpha-tpuv6e", 8, 4, CHIPS),
}


# Where the code of a run lies until its last relaunch, which may be weeks later: not in a folder that is cleaned.
ARCHIVES = pathlib.Path.home() / ".cache"
OWN_FLAGS = {
    "name", "zone", "project", "type", "workdir", "spot", "runtime_version", "create_flag", "max_relaunches",
    "delete_when_done", "poll_seconds", "dry-run", "dry_run",
}  # fmt: skip


class LaunchError(Exception):
    """An error that is printed as one line."""


class CommandError(LaunchError):
    """A command failed. Perhaps the slice was preempted."""


def parse_type(name: str) -> tuple[str, int]:
    """Returns the runtime version and the number of hosts of a type of slice, such as v3-128."""
    family, _, size = name.partition("-")
    image, single_host, host, sizes = FAMILIES.get(family, ("", 0, 0, ()))
    if not size.isdecimal() or int(size) not in sizes:
        allowed = ", ".join(f"{family}-{[*row[3][:8]]}" for family, row in FAMILIES.items())
        raise LaunchError(f"unknown --type {name!r}: allowed are {allowed}, v4 and v5p on in steps of 8")
    return image, 1 if int(size) <= single_host else int(size) // host


# Scripts for the workers. The images have Python 3.10, but the package needs 3.11 to 3.13, so uv installs one. uv comes
# from its own installer, because newer images do not allow pip outside a virtual environment.
SETUP = """\
set -e
mkdir -p ~/mixer; cd ~/mixer
rm -rf source; mkdir source; tar -xzf ~/mixer.tar.gz -C source
[ -x uv/uv ] || curl -LsSf https://astral.sh/uv/install.sh | UV_UNMANAGED_INSTALL="$PWD/uv" sh
[ -x venv/bin/python ] || uv/uv venv --quiet --python 3.12 venv
cd source
../uv/uv pip install --quiet --compile-bytecode --python ../venv/bin/python -c constraints.txt -e '.[tpu]'"""

# An earlier training may still run and hold the chips: kill it first. When a machine shuts down, all processes get
# SIGTERM. The inner shell traps it, so that it can still write the exit status after the training has saved.
START = """\
cd ~/mixer/source || exit
[ ! -e ../pid ] || ! kill -KILL -- "-$(cat ../pid)" 2> /dev/null || sleep 2
rm -f ../exit_status
nohup setsid bash -c {shell} < /dev/null > /dev/null 2>&1 &
echo $! > ../pid"""
TRAIN = """\
trap : TERM
PYTHONUNBUFFERED=1 ../venv/bin/python -m mixer.train {train} > ../train.log 2>&1
echo $? > ../exit_status.new; mv ../exit_status.new ../exit_status"""

# Prints the state of the training on one line, then its log from a given byte. It first looks whether the training runs
# and then for the exit status. In the other order, a training that ends in between would count as lost.
LOOK = """\
cd ~/mixer 2> /dev/null && [ -e pid ] || {{ echo absent; exit; }}
grep -qs mixer.train "/proc/$(cat pid)/cmdline" && state=running || state=lost
[ ! -e exit_status ] || state="exited $(cat exit_status)"
echo "$state"
tail -c +{first_byte} train.log 2> /dev/null || true"""


# Prints a digest of the code on worker 0, then the command line of its training; nothing if that has just ended.
BEGUN = """\
sha256sum < ~/mixer.tar.gz | cut -c 1-64
tr '\\0' '\\n' 2> /dev/null < "/proc/$(cat ~/mixer/pid)/cmdline" || true"""


def config_of(train: Sequence[str]) -> str:
    """Returns the --config of the training's arguments.

    Raises:
      LaunchError: there is none, or the arguments have a flag of the launcher.
    """
    names = [word.partition("=")[0].lstrip("-") for word in train if word.startswith("-")]
    if own := [name for name in names if name in OWN_FLAGS]:
        raise LaunchError(f"--{own[0]} is a flag of the launcher: give it before --")
    if "config" not in names:
        raise LaunchError("no config to train: end the command with -- --config configs/b16_i21k.py, or another")
    words = [*train, ""]
    place = next(n for n, word in enumerate(words) if word.partition("=")[0].lstrip("-") == "config")
    return words[place].partition("=")[2] or words[place + 1]


def check_tracked(config: str, tracked: Sequence[str]) -> None:
    """Checks that the config of the training is among the files that are copied to the slice.

    Raises:
      LaunchError: it is not.
    """
    name = posixpath.normpath(config.partition(":")[0])
    if not {name, f"configs/{name}", f"configs/{name}.py"} & set(tracked):
        raise LaunchError(
            f"--config {config} is no file that git tracks here, so it would not be on the slice: see to its name, or "
            "add and commit it"
        )


def training_of(args: argparse.Namespace) -> str:
    """Returns the script that trains on each worker."""
    hosts = parse_type(args.type)[1]
    words = [*args.train, f"--workdir={args.workdir}", *["--distributed"] * (hosts > 1)]
    return TRAIN.format(train=shlex.join(words))


def archive_of(args: argparse.Namespace) -> pathlib.Path:
    """Returns where the code of a training is kept for its relaunches."""
    return ARCHIVES / f"mixer-{args.project}-{args.zone}-{args.name}.tar.gz"


def build_commands(args: argparse.Namespace, offset: int = 0) -> dict[str, list[str]]:
    """Returns all commands by name. `offset` is the first byte of the log to print."""
    # The queued resource and its node have the same name.
    where = [args.name, f"--zone={args.zone}", f"--project={args.project}", "--quiet"]
    queue, node = ["gcloud", "compute", "tpus", "queued-resources"], ["gcloud", "compute", "tpus", "tpu-vm"]
    # Without the two ssh flags, a vanished machine would be noticed only after TCP's own timeout.
    ssh = [*node, "ssh", *where, "--ssh-flag=-oConnectTimeout=20", "--ssh-flag=-oServerAliveInterval=30"]
    tail = 'tail -n 30 ~/mixer/train.log | sed "s/^/$(hostname): /"'
    archive, new = str(archive_of(args)), f"{archive_of(args)}.new"
    is_run = args.command == "run"
    image = parse_type(args.type)[0] if is_run else ""
    create = [f"--node-id={args.name}", f"--accelerator-type={args.type}", *["--spot"] * args.spot]
    create += [f"--runtime-version={args.runtime_version or image}", *args.create_flag]
    start = START.format(shell=shlex.quote(training_of(args))) if is_run else ""
    return {
        "tracked": [*GIT, "ls-files", "-z"],
        "uncommitted": [*GIT, "status", "--porcelain"],
        "folder": ["mkdir", "-p", str(ARCHIVES)],
        "pack": [*GIT, "archive", "--format=tar.gz", f"--output={new}", "HEAD"],
        "adopt": ["mv", new, archive],
        "begun": [*ssh, "--worker=0", f"--command={BEGUN}"],
        "create": [*queue, "create", *where, *create],
        "queue": [*queue, "describe", *where, "--format=value(state.state,state.failedData.error.message)"],
        "node": [*node, "describe", *where, "--format=value(state)"],
        "type": [*node, "describe", *where, "--format=value(acceleratorType)"],
        "copy": [*node, "scp", archive, f"{args.name}:mixer.tar.gz", *where[1:], "--worker=all"],
        "setup": [*ssh, "--worker=all", f"--command={SETUP}"],
        "start": [*ssh, "--worker=all", f"--command={start}"],
        "look": [*ssh, "--worker=0", f"--command={LOOK.format(first_byte=offset + 1)}"],
        "tail": [*ssh, "--worker=all", f"--command={tail}"],
        "delete": [*queue, "delete", *where, "--force"],
    }


def say(message: str) -> None:
    """Prints a message to standard error."""
    print(f"tpu_vm: {message}", file=sys.stderr, flush=True)


class Launcher:
    """The steps of the launcher. Each step may find the slice in any state."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.commands = build_commands(args)
        self.trains: bool | None = None  # whether the training runs, as far as is known
        self.keeps_code = False  # whether the archive has the code with which the training began

    def call(self, name: str, capture: bool = False) -> bytes:
        """Runs a command.

        Returns:
          Its output, if captured.

        Raises:
          CommandError: it failed.
        """
        command, pipe = self.commands[name], subprocess.PIPE if capture else None
        if self.args.dry_run:
            print(shlex.join(command), flush=True)
            return next(PRETENDED.get(name, iter(())), "").encode()
        try:  # standard input is closed, so that no command waits for an answer
            result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        except FileNotFoundError:
            raise LaunchError(f"{command[0]} is not installed, or not on PATH") from None
        if result.returncode:
            lines = (result.stderr or b"see above").decode(errors="replace").splitlines()
            reason = next((line for line in lines if "ERROR" in line), lines[-1])  # gcloud prints explanations too
            raise CommandError(f"{name} failed, status {result.returncode}: {reason}")
        return result.stdout or b""

    def state(self, name: str, retries: int = 4) -> str:
        """Returns the state of the queued resource ("queue") or of its node ("node")."""
        try:
            return self.call(name, capture=True).decode().strip().replace("\t", ": ")
        except CommandError as error:
            if "NOT_FOUND" in str(error):
                return ABSENT
            if retries == 0:  # some retries, because one network error should not end a wait of hours
                raise
            say(f"{error}; trying again")
        time.sleep(self.args.poll_seconds)
        return self.state(name, retries - 1)

    def patiently(self, step: Callable[[], _T], retries: int = 4) -> _T:
        """Repeats a step that fails while the slice is there: a new one may refuse connections for a while."""
        try:
            return step()
        except CommandError as error:
            if retries == 0 or self.is_lost():
                raise
            say(f"{error}; trying again")
        time.sleep(self.args.poll_seconds)
        return self.patiently(step, retries - 1)

    def is_lost(self) -> bool:
        """Tells whether the service has taken the slice back.

        Raises:
          LaunchError: somebody deleted the slice.
        """
        try:
            queue = self.state("queue")
            if queue in (ABSENT, "DELETING"):
                raise LaunchError(f"{self.args.name} was deleted while it was followed")
            return queue in SUSPENDED or self.state("node") in ("PREEMPTED", "TERMINATED", ABSENT)
        except CommandError:
            return False  # gcloud itself failed, so nothing is known about the slice

    def delete(self) -> None:
        """Deletes the slice."""
        while self.state("queue") == "SUSPENDING":  # a queued resource cannot be deleted in this state
            time.sleep(self.args.poll_seconds)
        self.call("delete")

    def acquire(self) -> None:
        """Requests the slice, if it does not exist yet, and waits until it is ready."""
        before = self.state("queue")
        useless = before in SUSPENDED or before.startswith("FAILED")
        if useless:
            self.delete()
        if useless or before == ABSENT:
            say(f"requesting {self.args.type} as {self.args.name}; `status` shows the state of the request")
            try:
                self.call("create")
            except CommandError as error:
                raise LaunchError(str(error)) from None
            self.trains = False
        while (now := self.state("queue")) != "ACTIVE":
            if now in SUSPENDED and self.args.spot:
                raise CommandError(f"{self.args.name} was preempted before it was ready")
            if now in (ABSENT, "DELETING", *SUSPENDED) or now.startswith("FAILED"):
                raise LaunchError(f"the request for {self.args.name} is {now}")
            time.sleep(self.args.poll_seconds)
        if self.trains is None and not self.args.dry_run:  # the request is an earlier one
            there = self.patiently(functools.partial(self.call, "type", capture=True)).decode().strip()
            if there != self.args.type:
                raise LaunchError(
                    f"{self.args.name} is there already as {there}, not {self.args.type}: give --type={there} or "
                    "another --name, or delete it"
                )

    def look(self, offset: int = 0) -> tuple[str, bytes]:
        """Returns the state of the training (absent, running, lost or exited N), and its log from byte `offset`."""
        self.commands["look"] = build_commands(self.args, offset)["look"]
        state, _, log = self.call("look", capture=True).partition(b"\n")
        return state.decode(), log

    def follow(self) -> int:
        """Copies the log of worker 0 to standard output until the training ends. Returns its exit status."""
        offset = 0
        while True:
            try:
                state, log = self.look(offset)
            except CommandError as error:
                if self.is_lost():
                    return PREEMPTED
                say(f"{error}; trying again")
                state, log = "running", b""
            offset += len(log)
            sys.stdout.buffer.write(log)
            sys.stdout.flush()
            if state == "absent":
                raise LaunchError(f"nothing was started on {self.args.name}")
            if state != "running":  # "lost": the machine rebooted
                return PREEMPTED if state == "lost" else int(state.removeprefix("exited "))
            time.sleep(self.args.poll_seconds)

    def check_follows(self) -> None:
        """Says that a training runs already, and with which code a relaunch will continue it.

        Raises:
          LaunchError: it has other arguments.
        """
        begun = functools.partial(self.call, "begun", capture=True)
        digest, _, command = self.patiently(begun).decode(errors="replace").partition("\n")
        if command and training_of(self.args) not in command:
            training = re.search("mixer.train (.*) > ", command)
            raise LaunchError(
                f"the training that runs on {self.args.name} has other arguments ({training[1] if training else ''}): "
                "give these, or delete the slice, or give another --name"
            )
        archive = archive_of(self.args)
        self.keeps_code = archive.exists() and hashlib.sha256(archive.read_bytes()).hexdigest() == digest
        code = "with which it began" if self.keeps_code else "that this repository has now, since its own is not here"
        say(f"following the training that already runs on {self.args.name}; a relaunch has the code {code}")

    def train_on_slice(self) -> int:
        """Trains until the training ends or the slice is lost. Returns the exit status, or PREEMPTED."""
        try:
            self.acquire()
            if self.patiently(self.look)[0] == "running":
                self.check_follows()
            else:
                say(f"setting up {self.args.name}")
                if not self.keeps_code:
                    self.call("adopt")
                    self.keeps_code = True
                for name in ("copy", "setup", "start"):
                    self.patiently(functools.partial(self.call, name))
            self.trains = True
            status = self.follow()
        except CommandError:
            if self.is_lost():
                return PREEMPTED
            raise
        if status not in (0, PREEMPTED):  # if another host is lost, JAX aborts with another status
            time.sleep(self.args.poll_seconds)  # gcloud reports a lost slice with a delay
            return PREEMPTED if self.is_lost() else status
        return status

    def run(self) -> None:
        """Trains to the end. Requests a new slice after each preemption."""
        config = config_of(self.args.train)
        if not self.args.dry_run:
            check_tracked(config, self.call("tracked", capture=True).decode().split("\0"))
        if self.call("uncommitted", capture=True):
            raise LaunchError("uncommitted changes would not be copied to the slice: commit or stash them")
        self.call("folder")
        self.call("pack")  # before anything is rented
        try:
            self.train_to_the_end()
        finally:
            pathlib.Path(f"{archive_of(self.args)}.new").unlink(missing_ok=True)

    def train_to_the_end(self) -> None:
        """Trains, on one slice after the other."""
        bill = f"{self.args.name} still costs money; to delete it: {shlex.join(self.commands['delete'])}"
        for relaunches in range(self.args.max_relaunches + 1):
            if relaunches:
                say(f"preempted: relaunch {relaunches} of at most {self.args.max_relaunches}")
                self.trains = None
                self.delete()
            try:
                status = self.train_on_slice()
            except CommandError as error:
                raise LaunchError(f"{error}; {bill}") from None
            if status == 0:
                say("the training is done" if self.args.delete_when_done else f"the training is done; {bill}")
                return self.delete() if self.args.delete_when_done else None
            if status != PREEMPTED:
                with contextlib.suppress(CommandError):
                    self.call("tail")
                raise LaunchError(f"the training exited with status {status}; {bill}")
        raise LaunchError(f"preempted more often than --max_relaunches={self.args.max_relaunches}; {bill}")

    def logs(self) -> int:
        """Follows the training that runs. Returns its exit status."""
        self.trains = True
        state = self.state("queue")
        if state == ABSENT and not self.args.dry_run:
            raise LaunchError(f"there is no slice {self.args.name} in {self.args.zone} of {self.args.project}")
        if state not in ("ACTIVE", ABSENT, *SUSPENDED):
            raise LaunchError(f"nothing trains on {self.args.name}: its request is {state}")
        return self.follow()

    def status(self) -> None:
        """Prints the states of the queued resource, its node and the training."""
        queue, node = self.state("queue"), self.state("node")
        training = self.look()[0] if node == "READY" else "absent"
        if not self.args.dry_run:
            print(f"queued resource: {queue}\nnode: {node}\ntraining: {training}")


STEPS = {"run": Launcher.run, "logs": Launcher.logs, "status": Launcher.status, "delete": Launcher.delete}


def main(argv: Sequence[str]) -> int:
    """Runs the command. Returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("command", choices=STEPS, help="train on a slice; follow its log; say how it stands; delete it")
    add("--name", required=True, help="of the slice and its queued resource")
    add("--zone", required=True, help="such as europe-west4-a")
    add("--project", required=True, help="of Google Cloud, which pays")
    add("--type", default="", help="run: the slice, such as v3-8, v3-128, v5litepod-16 or v6e-8")
    add("--workdir", default="", help="run: gs:// folder for checkpoints and metrics")
    add("--spot", action="store_true", help="run: a cheaper slice, which may be preempted at any time")
    add("--runtime_version", help="run: the image of the machines (default: by --type)")
    add(
        "--create_flag",
        action="append",
        default=[],
        help="run: a flag for `gcloud ... create`, as in --create_flag=--network=mine",
    )
    add("--max_relaunches", type=int, default=100, help="run: how often to relaunch after preemptions (default: 100)")
    add("--delete_when_done", action="store_true", help="run: delete the slice when the training is done")
    add("--poll_seconds", type=float, default=30, help="seconds between two looks (default: 30)")
    add("--dry-run", "--dry_run", action="store_true", help="print the commands and run none")
    launcher = None
    split = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:split], argparse.Namespace(train=list(argv[split + 1 :])))
    try:
        if args.command == "run" and not re.match("gs://[^/]+/+[^/]", args.workdir):
            raise LaunchError(
                f"--workdir {args.workdir!r} must be gs://BUCKET/FOLDER: the disks of a slice are deleted with it"
            )
        launcher = Launcher(args)
        status = STEPS[args.command](launcher) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output wants no more of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except LaunchError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        if launcher is None or launcher.trains is None:
            say("interrupted: `status` says whether something trains, and whether there is a slice, which costs money")
        elif launcher.trains:
            say("interrupted: the training goes on; `run` or `logs` follows it again")
        else:
            delete = shlex.join(launcher.commands["delete"])
            said = "nothing trains yet. The request stays, and its slice costs money; to delete both"
            say(f"interrupted: {said}: {delete}")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
