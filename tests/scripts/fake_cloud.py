"""A fake `gcloud` for the tests of the launcher. It runs the workers' scripts in local folders."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "scripts" / "tpu_vm.py"
TRAIN = ("--config", "configs/b16_i21k.py", '--config.note=it\'s $HOME; "two"  {words}')

# The n-th `create` makes slice n, which is the folder slices/n. Its files are a test's plan for the slice:
#   queue          the states of the queued resource, one a line; each `describe` takes the next
#   node           the state of the node
#   event3         a script that runs at the third look at the training
#   workerI/exits  the exit status of the training on worker I, which runs until this file exists
GCLOUD = """\
#!/bin/bash
cd "$FAKE_CLOUD"
{ printf '%s\\037' "$@"; printf '\\036'; } >> calls
group=$3 verb=$4 status=0
for word; do
  case $word in --worker=*) worker=${word#*=} ;; --command=*) command=${word#*=} ;; esac
done
fail() {
  echo "ERROR: (gcloud.compute.tpus.$group.$verb) $1" >&2
  echo "This command is authenticated as somebody." >&2
  exit 1
}
kill_workers() {
  for pid in $(cat worker*/mixer/pid 2> /dev/null); do kill -KILL -- "-$pid" 2> /dev/null; done
}
created=$(cat created)
if [ "$verb" = create ]; then
  if [ -e refused ]; then fail "quota exceeded"; fi
  echo $((created + 1)) > created
  for word; do
    case $word in --accelerator-type=*) echo "${word#*=}" > "slices/$((created + 1))/type" ;; esac
  done
  exit
fi
cd "slices/$created" 2> /dev/null && [ ! -e deleted ] || fail "NOT_FOUND: Resource was not found."
case $group/$verb in
  */delete) kill_workers; touch deleted ;;
  queued-resources/describe) head -n 1 queue; if [ "$(wc -l < queue)" != 1 ]; then sed -i 1d queue; fi ;;
  tpu-vm/describe) case "$*" in *acceleratorType*) cat type ;; *) cat node ;; esac ;;
  tpu-vm/scp) for home in worker*; do cp "$5" "$home/${6#*:}"; done ;;
  tpu-vm/ssh)
    if [ "$worker" = 0 ]; then
      echo >> looks
      event=event$(wc -l < looks)
      if [ -e "$event" ]; then . "./$event"; fi
    fi
    case $command in "tail -n"*) if [ -e "$FAKE_CLOUD/no_tail" ]; then fail "no connection"; fi ;; esac
    if [ -e gone ]; then kill_workers; fail "this TPU has terminal state"; fi
    for home in worker${worker/all/*}; do
      HOME=$PWD/$home PATH=$FAKE_CLOUD/bin:$PATH bash -c "$command" || status=$?
    done ;;
esac
exit $status
"""

# Stand-ins for the installer of uv, for uv, and for the Python that uv installs.
CURL = """\
#!/bin/sh
echo 'mkdir -p "$UV_UNMANAGED_INSTALL" && cp "$FAKE_CLOUD/uv" "$UV_UNMANAGED_INSTALL/uv"'
"""
UV = """\
#!/bin/sh -e
if [ "$1" = venv ]; then mkdir -p venv/bin; cp "$FAKE_CLOUD/python" venv/bin/python; fi
if [ "$1" = pip ]; then test -e constraints.txt; echo "$@" >> ../installed; fi
"""
PYTHON = """\
#!/bin/bash
trap 'sleep 0.2; exit 75' TERM
printf '%s\\0' "$@" > ~/argv
printf 'step 1\\nstep 2 ä\\n'
until [ -e ~/exits ]; do sleep 0.05; done
sleep 0.1
echo "the end of ${HOME##*/}" >&2
exit "$(cat ~/exits)"
"""


@dataclasses.dataclass
class Cloud:
    """A git repository with the launcher, and the fake cloud that the launcher uses.

    Attributes:
      root: the folder of all that is here.
      repository: what the launcher copies to the slices.
      workdir: the run's folder.
      train: the arguments of the training.
      workers: more variables of the workers' environment.
      patience: seconds within which the launcher must end.
    """

    root: pathlib.Path
    repository: pathlib.Path
    workdir: str = "gs://bucket/b16"
    train: Sequence[str] = TRAIN
    workers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    patience: float = 60

    @property
    def env(self) -> dict[str, str]:
        path = f"{self.root / 'laptop'}:{os.environ['PATH']}"
        ours = {"PATH": path, "FAKE_CLOUD": str(self.root), "HOME": str(self.root)}
        return {**os.environ, **self.workers, **ours}

    def plan(
        self,
        exits: int | None = 0,
        hosts: int = 1,
        queue: Sequence[str] = ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"),
        events: Mapping[int, str] = types.MappingProxyType({}),
    ) -> pathlib.Path:
        """Plans what the next slice will do. Returns its folder."""
        here = self.root / "slices" / str(1 + len(list(self.root.glob("slices/*"))))
        for worker in range(hosts):
            (here / f"worker{worker}").mkdir(parents=True)
            if exits is not None:
                (here / f"worker{worker}" / "exits").write_text(str(exits))
        (here / "queue").write_text("".join(f"{state}\n" for state in queue))
        (here / "node").write_text("READY\n")
        for look, script in events.items():
            (here / f"event{look}").write_text(script)
        return here

    def words(self, command: str, *flags: str) -> list[str]:
        script = [sys.executable, str(self.repository / "scripts" / "tpu_vm.py"), command]
        words = [*script, "--name=b16", "--zone=europe-west4-a", "--project=p", "--poll_seconds=0.02", *flags]
        return words + ([f"--workdir={self.workdir}", "--", *self.train] if command == "run" else [])

    def launch(self, command: str, *flags: str) -> subprocess.CompletedProcess[str]:
        words = self.words(command, *flags)
        return subprocess.run(words, capture_output=True, text=True, env=self.env, timeout=self.patience)

    def run(self, *flags: str, kind: str = "v3-8") -> subprocess.CompletedProcess[str]:
        return self.launch("run", f"--type={kind}", *flags)

    def calls(self) -> list[list[str]]:
        path = self.root / "calls"
        text = path.read_text() if path.exists() else ""
        return [call.split("\037")[:-1] for call in text.split("\036")[:-1]]

    def changes(self) -> list[str]:
        """Returns the names of the calls that change something. An ssh to all workers is setup, start or tail."""
        names = []
        for words in self.calls():
            if "--worker=all" in words and words[3] == "ssh":
                script = next(word for word in words if word.startswith("--command="))
                names.append("setup" if "uv pip" in script else "start" if "nohup" in script else "tail")
            elif words[3] in ("create", "delete", "scp"):
                names.append(words[3])
        return names


@contextlib.contextmanager
def opened(tmp_path: pathlib.Path, python: str = PYTHON, source: Sequence[str] = (), **fields: Any) -> Iterator[Cloud]:
    """Makes a cloud in a folder. At the end, kills the trainings of its workers.

    Args:
      tmp_path: the folder, which is empty.
      python: what stands in for the Python that uv installs, as a script.
      source: more files and folders of this repository that the slices need.
      **fields: of `Cloud`.
    """
    for name, text in {
        "laptop/gcloud": GCLOUD,
        "bin/curl": CURL,
        "uv": UV,
        "python": python,
        "created": "0",
        "repository/constraints.txt": "",
        "repository/configs/b16_i21k.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    repository = tmp_path / "repository"
    (repository / "scripts").mkdir()
    shutil.copy(LAUNCHER, repository / "scripts")
    for name in source:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, repository / name, ignore=ignored, dirs_exist_ok=True)
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=n@example.com"]
    for words in (["init", "-q"], ["add", "."], ["-c", "commit.gpgsign=false", "commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    yield Cloud(tmp_path, repository, **fields)
    for pid in tmp_path.glob("slices/*/worker*/mixer/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
