"""Whole runs in a bucket, through the real commands: the same bits as on a disk, and one line for what goes wrong."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import pathlib
import signal
import subprocess
import time

import pytest
from tiny_run import DROPPING, ROOT, command, data_dir, deterministic, run, tiny  # noqa: F401

from mixer import train, verify_resume
from tests import commands
from tests.bucket.faults import Fault
from tests.commands import environment


@pytest.fixture(scope="module")
def straight(data_dir, tmp_path_factory):
    """An undisturbed run on the disk."""
    folder = tmp_path_factory.mktemp("straight")
    train.train(tiny(data_dir, **DROPPING), folder)
    return folder


def mixer(name, *arguments):
    return commands.run(f"mixer.{name}", *arguments)


def only_line(done):
    """Returns the one line of an error."""
    (line,) = [line for line in done.stderr.splitlines() if "google_auth_provider" not in line]
    assert done.returncode == 1
    return line


def test_a_run_from_and_to_a_bucket_ends_at_the_bits_of_one_on_a_disk(bucket_here, data_dir, straight, tmp_path):
    """It is stopped and continued. Then the other commands use it where it lies."""
    bucket_here.upload(pathlib.Path(data_dir), "data")
    place, data = bucket_here.path("stopped"), bucket_here.path("data")
    stopped = run(command(data, place, "--stop_after=8", **DROPPING, **{"input.shuffle_block": 1}))
    assert stopped.returncode == 75, stopped.stderr
    done = run(command(data, place, **DROPPING, **{"input.shuffle_block": 1}))
    assert done.returncode == 0, done.stderr
    assert "continuing from step 8" in done.stdout
    assert verify_resume.differences(straight, place) == []
    assert deterministic(place) == deterministic(straight)

    local, remote = (commands.run("mixer.evaluate", f"--checkpoint={folder}") for folder in (straight, place))
    assert remote.returncode == 0, remote.stderr
    assert remote.stdout.splitlines()[:-1] == local.stdout.splitlines()[:-1]
    files = {straight: tmp_path / "a.npz", place: bucket_here.path("exports/a.npz")}
    for folder, file in files.items():
        exported = commands.run("mixer.export", f"--checkpoint={folder}", "--to=npz", file)
        assert exported.returncode == 0, exported.stderr
    assert bucket_here.content("exports/a.npz") == (tmp_path / "a.npz").read_bytes()
    assert b"gs://" in bucket_here.content("exports/a.npz.md")


@pytest.mark.slow  # four processes
def test_a_run_killed_in_its_first_save_begins_again_from_its_weights(bucket_here, data_dir, straight, tmp_path):
    start = f"--config.init_from={straight}"
    assert run(command(data_dir, tmp_path / "undisturbed", start)).returncode == 0
    place = bucket_here.path("killed")
    bucket_here.control(fail=[Fault("POST .*name=killed/checkpoints/3/commit_success", hang_seconds=60)])
    process = subprocess.Popen(command(data_dir, place, start), cwd=ROOT, env=environment(8), stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not any(name.startswith("killed/checkpoints/3/default/manifest") for name in bucket_here.objects("killed/")):
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    bucket_here.control(fail=[])
    for name in bucket_here.objects("killed/checkpoints/"):  # as if it had been killed a moment earlier
        if name.endswith("files.json"):
            bucket_here.delete(name)
    done = run(command(data_dir, place, start))
    assert done.returncode == 0, done.stderr
    assert f"starting from {straight}" in done.stdout
    assert verify_resume.differences(tmp_path / "undisturbed", place) == []


def test_what_is_wrong_with_a_bucket_is_one_line(bucket_here, data_dir):
    since = time.monotonic()
    missing = "gs://no-such-bucket: there is no such bucket; check the name"
    assert missing in only_line(run(command(data_dir, "gs://no-such-bucket/run")))
    assert time.monotonic() - since < 10
    assert missing in only_line(mixer("evaluate", "--checkpoint=gs://no-such-bucket/run"))
    for name, flags in {
        "report": ("--workdir=anywhere", "--output=gs://no-such-bucket/report.html"),
        "visualize": ("--checkpoint=anywhere", "--output=gs://no-such-bucket/figures"),
    }.items():  # before the work
        assert missing in only_line(mixer(name, *flags))
    assert "s3://bucket/run: only local paths and gs:// are supported" in only_line(
        run(command(data_dir, "s3://bucket/run"))
    )
    bucket_here.control(fail=[Fault("POST|PUT", status=403)])
    refused = only_line(run(command(data_dir, bucket_here.path("run"))))
    assert f"--workdir {bucket_here.path('run')} cannot be written to" in refused
    bucket_here.control(fail=[Fault(".", status=403)])
    assert "give it roles/storage.objectUser and roles/storage.legacyBucketReader" in only_line(
        run(command(data_dir, bucket_here.path("run")))
    )


@pytest.mark.slow  # three trainings
def test_verify_resume_works_in_a_bucket(bucket_here, data_dir):
    arguments = command(data_dir, bucket_here.path("verified"), **DROPPING)
    done = run([*arguments[:2], "mixer.verify_resume", *arguments[3:]])
    assert done.returncode == 0, done.stderr
    assert "ended at the same bits" in done.stdout
    assert not [name for name in bucket_here.objects("verified/verify_resume/") if not name.endswith("/")]
