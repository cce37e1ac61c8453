"""Runs the launcher as a process with a fake `gcloud`, which runs the workers' scripts in local folders."""

import pathlib
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_cloud import LAUNCHER, TRAIN, Cloud, opened


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Iterator[Cloud]:
    with opened(tmp_path) as cloud:
        yield cloud


def dry_run(*flags: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        str(LAUNCHER),
        "run",
        "--name=b16",
        "--zone=z",
        "--project=p",
        "--workdir=gs://b/w",
    ]
    words += [*flags, "--dry-run", "--", "--config=configs/b16_i21k.py"]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_a_reader_that_has_seen_enough_gets_no_traceback() -> None:
    arguments = "run --name=b16 --zone=z --project=p --workdir=gs://b/w --type=v3-128 --dry-run -- --config b16_i21k"
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(LAUNCHER))} {arguments} | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def get_argv(worker: pathlib.Path) -> list[str]:
    """Returns the arguments of the training on a worker."""
    return (worker / "argv").read_text().split("\0")[:-1]


def only_error(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


EXPECTED_TRAIN = ["-m", "mixer.train", *TRAIN, "--workdir=gs://bucket/b16"]
LOG = "step 1\nstep 2 ä\nthe end of worker0\n"


# ------------------------------- the commands


def test_dry_run_prints_exact_commands(cloud: Cloud) -> None:
    result = cloud.run("--spot", "--create_flag=--network=my net", "--dry-run", kind="v3-128")
    assert result.returncode == 0
    where = "--zone=europe-west4-a --project=p --quiet"
    lines = result.stdout.splitlines()
    # In the home, and not where a cleaner of files comes by.
    archive = f"{cloud.root}/.cache/mixer-p-europe-west4-a-b16.tar.gz"
    new = f"{archive}.new"
    assert lines[:3] == [
        f"git -C {cloud.repository} status --porcelain",
        f"mkdir -p {cloud.root}/.cache",
        f"git -C {cloud.repository} archive --format=tar.gz --output={new} HEAD",
    ]
    assert lines[4] == (
        f"gcloud compute tpus queued-resources create b16 {where} --node-id=b16 --accelerator-type=v3-128"
        " --spot --runtime-version=tpu-ubuntu2204-base '--network=my net'"
    )
    assert lines.index(f"mv {new} {archive}") < lines.index(
        f"gcloud compute tpus tpu-vm scp {archive} b16:mixer.tar.gz {where} --worker=all"
    )
    assert f"gcloud compute tpus tpu-vm scp {archive} b16:mixer.tar.gz {where} --worker=all" in lines
    words = shlex.split(result.stdout)
    assert (words.count("git"), words.count("gcloud")) == (2, 8)
    assert cloud.calls() == [], "a dry run must run nothing"
    assert not (cloud.root / ".cache").exists()


def test_printed_commands_can_be_pasted(cloud: Cloud) -> None:
    here = cloud.plan(queue=["ACTIVE"], hosts=2)
    printed = cloud.run("--dry-run", kind="v5litepod-16").stdout
    pasted = subprocess.run(["bash"], input=printed, capture_output=True, text=True, env=cloud.env, timeout=60)
    assert cloud.changes() == ["create", "scp", "setup", "start"], pasted.stderr
    for worker in ("worker0", "worker1"):
        deadline = time.monotonic() + 20
        while not (here / worker / "mixer" / "exit_status").exists():
            assert time.monotonic() < deadline, "the training does not end"
            time.sleep(0.02)
        assert get_argv(here / worker) == [*EXPECTED_TRAIN, "--distributed"]


@pytest.mark.parametrize(
    ("kind", "runtime", "several_hosts"),
    [
        ("v2-8", "tpu-ubuntu2204-base", False),
        ("v3-8", "tpu-ubuntu2204-base", False),
        ("v3-32", "tpu-ubuntu2204-base", True),
        ("v4-8", "tpu-ubuntu2204-base", False),
        ("v4-16", "tpu-ubuntu2204-base", True),
        ("v5litepod-8", "v2-alpha-tpuv5-lite", False),
        ("v5litepod-16", "v2-alpha-tpuv5-lite", True),
        ("v5p-8", "v2-alpha-tpuv5", False),
        ("v5p-16", "v2-alpha-tpuv5", True),
        ("v6e-8", "v2-alpha-tpuv6e", False),
        ("v6e-16", "v2-alpha-tpuv6e", True),
    ],
)
def test_types(kind: str, runtime: str, several_hosts: bool) -> None:
    printed = dry_run(f"--type={kind}").stdout
    assert f"--accelerator-type={kind} --runtime-version={runtime}\n" in printed
    assert ("--distributed" in printed) == several_hosts
    assert "--spot" not in printed


def test_runtime_version_can_be_chosen() -> None:
    assert "--runtime-version=tpu-vm-base\n" in dry_run("--type=v3-8", "--runtime_version=tpu-vm-base").stdout


@pytest.mark.parametrize("kind", ["v3-7", "v3", "v3-x", "v7x-8", "a100-8", ""])
def test_unknown_type(kind: str) -> None:
    result = dry_run(f"--type={kind}")
    error = only_error(result)
    assert result.stderr == error + "\n"
    assert error.startswith(f"tpu_vm: error: unknown --type '{kind}': allowed are v2-[8, 32, 128, 256, 512], v3-[8")
    assert "v5litepod-[1, 4, 8," in error


def test_workdir_must_outlive_the_slice() -> None:
    for wrong in ("/tmp/w", "gs://", "gs://bucket", "gs://bucket/", "gs:///w"):
        said = only_error(dry_run("--type=v3-8", f"--workdir={wrong}"))
        assert said.startswith(f"tpu_vm: error: --workdir '{wrong}' must be gs://BUCKET/FOLDER: the disks of a slice")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([], "no config to train: end the command with -- --config configs/b16_i21k.py, or another"),
        (["--config.seed=1"], "no config to train: "),
        (["--config=b16_i21k", "--spot"], "--spot is a flag of the launcher: give it before --"),
        (["--config=b16_i21k", "--workdir=gs://other/w"], "--workdir is a flag of the launcher"),
        (["--config", "configs/nope.py"], "--config configs/nope.py is no file that git tracks here, so it would"),
        (["--config=scratch.py:large"], "--config scratch.py:large is no file that git tracks"),
    ],
)
def test_nothing_is_rented_for_a_command_that_cannot_work(cloud: Cloud, train: list[str], said: str) -> None:
    (cloud.repository / "scratch.py").touch()
    cloud.train = train
    assert only_error(cloud.run()).startswith(f"tpu_vm: error: {said}")
    assert cloud.calls() == []


@pytest.mark.parametrize("config", ["b16_i21k", "b16_i21k.py", "./configs/b16_i21k.py", "configs/b16_i21k.py:large"])
def test_a_config_is_found_by_its_name(cloud: Cloud, config: str) -> None:
    cloud.train = ["--config", config]
    cloud.plan()
    assert cloud.run().returncode == 0


def test_documented_commands() -> None:
    page = (LAUNCHER.parents[1] / "docs" / "tpu.md").read_text().replace("\\\n", " ")
    commands = [line for line in page.splitlines() if line.startswith("python scripts/tpu_vm.py")]
    assert len(commands) == 7
    for command in commands:
        words = shlex.split(command.replace(" -- ", " --dry-run -- ") if " -- " in command else f"{command} --dry-run")
        result = subprocess.run([sys.executable, str(LAUNCHER), *words[2:]], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{command}\n{result.stderr}"


def test_uncommitted_changes_are_refused(cloud: Cloud) -> None:
    (cloud.repository / "constraints.txt").write_text("jax==0\n")
    assert "uncommitted changes would not be copied" in only_error(cloud.run())
    assert cloud.calls() == []


# ------------------------------- the loop


def test_success_ends(cloud: Cloud) -> None:
    here = cloud.plan(hosts=4)
    result = cloud.run("--spot", kind="v3-32")
    assert result.returncode == 0, result.stderr
    assert cloud.changes() == ["create", "scp", "setup", "start"]
    assert "--spot" in next(words for words in cloud.calls() if words[3] == "create")
    assert result.stdout == LOG
    assert "b16 still costs money" in result.stderr
    for worker in ("worker0", "worker1", "worker2", "worker3"):
        assert get_argv(here / worker) == [*EXPECTED_TRAIN, "--distributed"]
        assert (here / worker / "mixer" / "source" / "scripts" / "tpu_vm.py").exists()
        installed = (here / worker / "mixer" / "installed").read_text()
        assert installed.endswith("--python ../venv/bin/python -c constraints.txt -e .[tpu]\n")


def test_delete_when_done(cloud: Cloud) -> None:
    cloud.plan()
    result = cloud.run("--delete_when_done")
    assert result.returncode == 0, result.stderr
    assert cloud.changes() == ["create", "scp", "setup", "start", "delete"]
    assert "costs money" not in result.stderr


LOST = "touch gone; printf 'SUSPENDING\\nSUSPENDING\\nSUSPENDED\\n' > queue; echo PREEMPTED > node"


@pytest.mark.parametrize(
    "first",
    [
        {"exits": 75},
        {"exits": None, "events": {3: LOST}},
        {"exits": None, "events": {3: "touch gone; echo PREEMPTED > node"}},
        {"exits": None, "events": {3: 'kill -KILL -- "-$(cat worker0/mixer/pid)"; sleep 0.1'}},
        {"exits": 134, "events": {2: "echo SUSPENDED > queue"}},  # JAX aborts because another host is lost
        {"queue": ["PROVISIONING", "SUSPENDED"]},
        {"events": {1: LOST}},
    ],
    ids=[
        "status 75",
        "suspended",
        "node preempted",
        "reboot",
        "aborted",
        "never active",
        "lost before set-up",
    ],
)
def test_preemption_relaunches(cloud: Cloud, first: dict[str, Any]) -> None:
    cloud.plan(**first)
    second = cloud.plan()
    result = cloud.run("--spot")
    assert result.returncode == 0, result.stderr
    assert "preempted: relaunch 1 of at most 100" in result.stderr
    changes = cloud.changes()
    assert changes[changes.index("delete") :] == ["delete", "create", "scp", "setup", "start"]
    assert get_argv(second / "worker0") == EXPECTED_TRAIN
    assert result.stdout.endswith(LOG)
    creations = [words for words in cloud.calls() if words[3] == "create"]
    assert creations[0] == creations[1]


def test_exit_status_survives_sigterm_to_all(cloud: Cloud) -> None:
    first = cloud.plan(exits=None, events={3: 'kill -TERM -- "-$(cat worker0/mixer/pid)"'})
    cloud.plan()
    result = cloud.run("--spot")
    assert result.returncode == 0, result.stderr
    assert (first / "worker0" / "mixer" / "exit_status").read_text() == "75\n"


def test_relaunches_are_limited(cloud: Cloud) -> None:
    cloud.plan(exits=75)
    cloud.plan(exits=75)
    assert "preempted more often than --max_relaunches=1" in only_error(cloud.run("--max_relaunches=1"))
    assert cloud.changes().count("create") == 2


def test_failure_stops_with_the_ends_of_all_logs(cloud: Cloud) -> None:
    cloud.plan(exits=3, hosts=2)
    result = cloud.run("--spot", kind="v5litepod-16")
    error = only_error(result)
    assert error.startswith("tpu_vm: error: the training exited with status 3; b16 still costs money")
    assert cloud.changes() == ["create", "scp", "setup", "start", "tail"]
    assert ": the end of worker1\n" in result.stdout


@pytest.mark.parametrize(
    ("queue", "error"),
    [
        (["PROVISIONING", "FAILED\tno quota for v3"], "the request for b16 is FAILED: no quota for v3"),
        (["SUSPENDED"], "the request for b16 is SUSPENDED"),
    ],
)
def test_request_that_comes_to_nothing(cloud: Cloud, queue: list[str], error: str) -> None:
    cloud.plan(queue=queue)
    assert only_error(cloud.run()) == f"tpu_vm: error: {error}"
    assert cloud.changes() == ["create"]


def test_setup_that_fails(cloud: Cloud) -> None:
    cloud.plan()
    (cloud.root / "bin" / "curl").write_text("#!/bin/sh\necho no network >&2; exit 6\n")
    result = cloud.run()
    error = only_error(result)
    assert error.startswith("tpu_vm: error: setup failed, status 127: see above; b16 still costs money; to delete it: ")
    assert cloud.changes() == ["create", "scp", *["setup"] * 5]
    assert result.stderr.count("setup failed, status 127: see above; trying again") == 4


def test_a_new_slice_that_refuses_connections_at_first_is_set_up(cloud: Cloud) -> None:
    broken = 'fail "[ssh] Connection refused"'
    cloud.plan(events={1: broken, 2: broken})
    result = cloud.run()
    assert result.returncode == 0, result.stderr
    assert cloud.changes() == ["create", "scp", "setup", "start"]


def test_a_failed_request_says_why(cloud: Cloud) -> None:
    cloud.plan()
    (cloud.root / "refused").touch()
    result = cloud.run()
    assert only_error(result) == "tpu_vm: error: create failed, status 1: see above"
    assert "quota exceeded" in result.stderr


def test_an_end_that_cannot_be_fetched_hides_no_status(cloud: Cloud) -> None:
    cloud.plan(exits=3)
    (cloud.root / "no_tail").touch()
    error = only_error(cloud.run())
    assert error.startswith("tpu_vm: error: the training exited with status 3; b16 still costs money")


def test_a_slice_of_another_type_is_not_taken(cloud: Cloud) -> None:
    cloud.plan()
    assert cloud.run().returncode == 0
    said = "tpu_vm: error: b16 is there already as v3-8, not v3-32: give --type=v3-8 or another --name, or delete it"
    assert only_error(cloud.run(kind="v3-32")) == said
    (cloud.root / "slices/1/queue").write_text("WAITING_FOR_RESOURCES\nACTIVE\n")
    assert only_error(cloud.run(kind="v3-32")) == said


def test_an_interruption_before_the_start_says_that_the_request_stays(cloud: Cloud) -> None:
    cloud.plan(queue=["WAITING_FOR_RESOURCES"])
    with subprocess.Popen(cloud.words("run", "--type=v3-8"), env=cloud.env, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"requesting v3-8" in process.stderr.readline()
        while not any(words[3] == "describe" for words in cloud.calls()[2:]):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().decode()
    assert process.returncode == 130
    assert said.startswith("tpu_vm: interrupted: nothing trains yet. The request stays, and its slice costs money; to ")


def test_logs_of_what_does_not_train_are_refused(cloud: Cloud) -> None:
    assert only_error(cloud.launch("logs")) == "tpu_vm: error: there is no slice b16 in europe-west4-a of p"
    cloud.plan(queue=["WAITING_FOR_RESOURCES"])
    (cloud.root / "created").write_text("1")
    said = "tpu_vm: error: nothing trains on b16: its request is WAITING_FOR_RESOURCES"
    assert only_error(cloud.launch("logs")) == said


def test_deletion_by_somebody_ends(cloud: Cloud) -> None:
    cloud.plan(exits=None, events={3: "touch gone deleted"})
    assert only_error(cloud.run("--spot")) == "tpu_vm: error: b16 was deleted while it was followed"


def test_lost_connection_neither_ends_nor_repeats(cloud: Cloud) -> None:
    broken = 'fail "[ssh] exited with return code [255]."'
    cloud.plan(exits=None, events={3: broken, 4: broken, 6: "echo 0 > worker0/exits"})
    result = cloud.run()
    assert result.returncode == 0, result.stderr
    assert result.stdout == LOG
    assert result.stderr.count("return code [255].; trying again") == 2
    assert cloud.changes() == ["create", "scp", "setup", "start"]


def test_second_run_follows_and_third_starts_again(cloud: Cloud) -> None:
    here = cloud.plan(exits=None, hosts=2)
    with subprocess.Popen(
        cloud.words("run", "--type=v3-32"), env=cloud.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"step 1\n"
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=30)
    assert first.returncode == 130
    assert b"Traceback" not in errors
    assert errors.splitlines()[-1] == b"tpu_vm: interrupted: the training goes on; `run` or `logs` follows it again"
    status = cloud.launch("status")
    assert status.stdout == "queued resource: ACTIVE\nnode: READY\ntraining: running\n"
    with subprocess.Popen(
        cloud.words("run", "--type=v3-32"), env=cloud.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()  # it follows the training
        (here / "worker0" / "exits").write_text("3")  # worker 1 goes on
        said += process.stdout.read()
        errors = process.stderr.read()
    second = subprocess.CompletedProcess(process.args, process.returncode, said, errors)
    assert "the training exited with status 3" in only_error(second)
    assert second.stdout.startswith(LOG)
    remains = int((here / "worker1" / "mixer" / "pid").read_text())
    for worker in ("worker0", "worker1"):
        (here / worker / "exits").write_text("0")
    third = cloud.run(kind="v3-32")
    assert third.returncode == 0, third.stderr
    assert int((here / "worker1" / "mixer" / "pid").read_text()) != remains
    start = ["scp", "setup", "start"]
    assert cloud.changes() == ["create", *start, "tail", *start]


def change_the_code(cloud: Cloud) -> None:
    (cloud.repository / "constraints.txt").write_text("# changed")
    git = ["git", "-C", str(cloud.repository), "-c", "user.name=n", "-c", "user.email=n@example.com"]
    subprocess.run([*git, "-c", "commit.gpgsign=false", "commit", "-aqm", "more"], check=True)


def code_on(here: pathlib.Path) -> str:
    with tarfile.open(here / "worker0" / "mixer.tar.gz") as archive:
        file = archive.extractfile("constraints.txt")
        assert file is not None
        return file.read().decode()


def begin_and_leave(cloud: Cloud) -> None:
    """Begins a training that goes on when the launcher is interrupted."""
    with subprocess.Popen(cloud.words("run", "--type=v3-8"), env=cloud.env, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"step 1\n"
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=30)


def test_a_training_that_is_followed_keeps_its_code_over_a_relaunch(cloud: Cloud) -> None:
    cloud.plan(exits=None, events={6: "echo SUSPENDED > queue; touch gone"})
    second = cloud.plan()
    begin_and_leave(cloud)
    change_the_code(cloud)
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert "already runs on b16; a relaunch has the code with which it began" in done.stderr
    assert "relaunch 1 of" in done.stderr
    assert code_on(second) == ""
    third = cloud.plan()
    cloud.launch("delete")
    assert cloud.run().returncode == 0
    assert code_on(third) == "# changed"  # a training that begins has the code of now


def test_a_training_that_is_followed_has_its_arguments(cloud: Cloud) -> None:
    cloud.plan(exits=None)
    begin_and_leave(cloud)
    cloud.train = ["--config", "configs/b16_i21k.py"]
    said = only_error(cloud.run())
    assert said.startswith("tpu_vm: error: the training that runs on b16 has other arguments (--config configs/b16")
    assert said.endswith("--workdir=gs://bucket/b16): give these, or delete the slice, or give another --name")


def test_a_training_that_ends_while_it_is_looked_at_is_followed_to_its_end(cloud: Cloud) -> None:
    here = cloud.plan(exits=None)
    begin_and_leave(cloud)
    looks = len((here / "looks").read_text().splitlines())
    ends = 'echo 0 > worker0/exits; while kill -0 "$(cat worker0/mixer/pid)" 2> /dev/null; do sleep 0.05; done'
    (here / f"event{looks + 2}").write_text(ends)  # after the launcher has seen that it runs
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    assert "trying again" not in done.stderr
    assert "already runs on b16" in done.stderr


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, pathlib.Path.touch, lambda path: path.write_text("other")])
def test_where_the_code_of_a_training_is_not_here_a_relaunch_has_that_of_now(cloud: Cloud, damage) -> None:
    cloud.plan(exits=None, events={6: "echo SUSPENDED > queue; touch gone"})
    second = cloud.plan()
    begin_and_leave(cloud)
    change_the_code(cloud)
    (archive,) = (cloud.root / ".cache").glob("*.tar.gz")
    damage(archive)
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    kept = damage is pathlib.Path.touch
    assert ("a relaunch has the code with which it began\n" in done.stderr) == kept
    assert ("that this repository has now, since its own is not here" in done.stderr) != kept
    assert code_on(second) == ("" if kept else "# changed")
    assert [path.name for path in (cloud.root / ".cache").iterdir()] == ["mixer-p-europe-west4-a-b16.tar.gz"]


# ------------------------------- logs, status, delete


def test_logs_status_and_delete(cloud: Cloud) -> None:
    cloud.plan(exits=3)
    assert cloud.launch("status").stdout == "queued resource: ABSENT\nnode: ABSENT\ntraining: absent\n"
    cloud.run()
    logs = cloud.launch("logs")
    assert (logs.returncode, logs.stdout) == (3, LOG)
    assert cloud.launch("status").stdout == "queued resource: ACTIVE\nnode: READY\ntraining: exited 3\n"
    assert cloud.launch("delete").returncode == 0
    assert cloud.changes()[-1] == "delete"
    again = cloud.launch("delete")
    assert only_error(again).startswith("tpu_vm: error: delete failed, status 1")
    assert "NOT_FOUND" in again.stderr


def test_without_gcloud(cloud: Cloud) -> None:
    env = cloud.env | {"PATH": str(cloud.root / "bin")}
    result = subprocess.run(cloud.words("delete"), capture_output=True, text=True, env=env, timeout=60)
    assert only_error(result) == "tpu_vm: error: gcloud is not installed, or not on PATH"
