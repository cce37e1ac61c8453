"""A run knows its data and its software: what changed between two starts is named, or refused."""

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)

import dataclasses
import json
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny_run import ROOT, command, data_dir, run, tiny  # noqa: F401
from wait_for_line import wait_for

import mixer.run
from mixer import train
from mixer.config import run_folder
from mixer.data import pipeline
from mixer.runtime import lock, preemption
from mixer.runtime.errors import UserError
from mixer.training import facts, history
from mixer.training.metrics import read_metrics
from mixer.transfer import loading
from tests import commands

CLASSES = ("ant", "bee", "cat")


def make_folder(root: pathlib.Path, classes=CLASSES, images=16) -> pathlib.Path:
    for label, name in enumerate(classes):
        add_images(root / name, label, range(images))
    return root


def add_images(folder: pathlib.Path, label: int, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.full((16, 16, 3), (80 * label, 10 * number % 256, 0), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def on_folder(root: pathlib.Path, **changes) -> ConfigDict:
    settings = {
        "input.dataset": "folder", "input.train_split": "train", "input.eval_split": "validation",
        "input.validation_share": 0.25, "batch_size": 8, **changes,
    }  # fmt: skip
    return tiny(str(root), **settings)


@pytest.fixture(scope="module")
def first_start(tmp_path_factory):
    place = tmp_path_factory.mktemp("begun") / "now"
    root = make_folder(place / "pictures")
    with pytest.raises(preemption.PreemptedError):
        train.train(on_folder(root), place / "run", stop=preemption.Stop(after=3))
    return place, shutil.copytree(place, place.with_name("kept"))


@pytest.fixture
def begun(first_start):
    """A folder of 36 training images of three classes, and a run of some steps on it; anew for each test."""
    place, kept = first_start
    shutil.rmtree(place)
    shutil.copytree(kept, place)
    return place / "pictures", place / "run"


def files_of(workdir: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_a_run_notes_what_it_is_made_of(begun):
    _, workdir = begun
    (start,) = history.read(workdir)
    assert (start.step, start.batch_size) == (0, 8)
    assert start.begun == {"num_examples": 36, "batch_size": 8}
    assert start.steps == {"total": 12, "warmup": 2, "log": 1, "checkpoint": 3}
    assert start.data["the number of examples of the training data (folder train)"] == "36"
    assert start.data["the number of examples of the data of evaluator val (folder validation)"] == "12"
    assert "the digest of the file names of the training data (folder train)" in start.data
    assert {"mixer", "jax", "jaxlib", "flax", "Python", "the code of mixer"} < start.software.keys()
    assert start.machine["devices"] == "8 x cpu"
    assert start.command == shlex.join(sys.orig_argv)
    assert start.time.endswith("+00:00")
    assert (workdir / run_folder.CLASSES_FILE).read_text().splitlines() == list(CLASSES)


# ----------------------------------------------------------------------------------------------------------------- data


def rename(root):
    (root / "bee").rename(root / "bug")


def reorder(root):
    for number, name in enumerate(CLASSES):
        (root / name).rename(root / f"_{number}")
    for number, name in enumerate(("bee", "ant", "cat")):
        (root / f"_{number}").rename(root / name)


def more_images(root):
    add_images(root / "ant", 0, range(16, 56))


def other_content(root):
    add_images(root / "ant", 2, range(16))


def rename_and_move(root):
    """Of ant, bee and cat, cat is the second now."""
    (root / "bee").rename(root / "zebra")


CHANGES = {
    rename: r"the classes, 3 before, 3 now: gone 'bee', new 'bug'",
    rename_and_move: r"the classes, 3 before, 3 now: gone 'bee', new 'zebra', the output of 'bee' would .* of 'cat'",
    more_images: r"the number of examples of the training data \(folder train\): 36 before, 66 now",
    other_content: r"the digest of some records of the training data \(folder train\): \w+ before, \w+ now",
    reorder: r"the digest of some records of the training data \(folder train\): \w+ before, \w+ now",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_other_data_are_refused_by_name_and_taken_when_asked_for(begun, change, capsys):
    root, workdir = begun
    change(root)
    before = files_of(workdir)
    with pytest.raises(UserError, match=CHANGES[change]) as caught:
        train.train(on_folder(root), workdir)
    assert str(caught.value).endswith("--allow_data_change to continue it with these")
    assert "\n" not in str(caught.value)
    assert files_of(workdir) == before

    train.train(on_folder(root), workdir, allow_data_change=True)
    assert "continuing from step 3; the " in capsys.readouterr().out
    assert (workdir / run_folder.CLASSES_FILE).read_text().splitlines() == list(CLASSES)
    second = history.read(workdir)[1]
    assert second.step == 3
    assert second.data_changes
    train.train(on_folder(root), workdir)  # and once is enough


def test_a_class_that_was_renamed_has_each_name_in_its_checkpoints(begun):
    root, workdir = begun
    rename(root)
    train.train(on_folder(root, **{"checkpoint.keep_every": 3}), workdir, allow_data_change=True)
    assert loading.load(f"{workdir}/checkpoints/3").class_names == ["ant", "bee", "cat"]
    assert loading.load(f"{workdir}/checkpoints/6").class_names == ["ant", "bug", "cat"]
    assert loading.load(str(workdir)).class_names == ["ant", "bug", "cat"]


def test_another_folder_with_as_many_classes_is_refused_and_a_copy_is_not(begun, tmp_path):
    root, workdir = begun
    other = make_folder(tmp_path / "others", ("dog", "eel", "fox"))
    with pytest.raises(UserError, match=r"3 before, 3 now: gone 'ant', 'bee', 'cat', new 'dog', 'eel', 'fox'"):
        train.train(on_folder(other), workdir)
    shutil.copytree(root, tmp_path / "copy")
    train.train(on_folder(tmp_path / "copy"), workdir)
    assert read_metrics(workdir)[-1]["step"] == 12


def test_a_class_more_is_refused_for_good_and_says_what_to_do(begun):
    root, workdir = begun
    add_images(root / "dog", 1, range(8))
    for allowed in (False, True):
        with pytest.raises(UserError, match=r"3 before, 4 now: new 'dog'\), whose head does not fit: start another"):
            train.train(on_folder(root), workdir, allow_data_change=allowed)


def test_more_images_do_not_move_the_schedule(tmp_path, capsys):
    """Of 4 epochs of 36 images, 18 steps; with 66 it would be 33, and at the last step another learning rate."""
    epochs = {"total_epochs": 4.0, "total_steps": None, "eval_steps": 50, "checkpoint_steps": 50}
    root, workdir = make_folder(tmp_path / "pictures"), tmp_path / "run"
    train.train(on_folder(root, **epochs), tmp_path / "straight")
    with pytest.raises(preemption.PreemptedError):
        train.train(on_folder(root, **epochs), workdir, stop=preemption.Stop(after=9))
    more_images(root)
    train.train(on_folder(root, **epochs), workdir, allow_data_change=True)
    straight, grown = (
        [line["train/learning_rate"] for line in read_metrics(folder)] for folder in (tmp_path / "straight", workdir)
    )
    assert len(grown) == 18
    assert grown == straight
    epochs = [[line["train/epoch"] for line in read_metrics(folder)] for folder in (tmp_path / "straight", workdir)]
    assert epochs[0] == epochs[1]
    lines = [line for line in capsys.readouterr().out.splitlines() if "18 steps of 8, " in line]
    assert [line.rpartition("; ")[2] for line in lines] == ["18 steps of 8, 4 epochs"] * 3


def test_a_finished_run_is_left_as_it_is_or_trained_for_longer(tmp_path, capsys):
    root, workdir = make_folder(tmp_path / "pictures"), tmp_path / "run"
    train.train(on_folder(root), workdir)
    before = files_of(workdir)
    found = train.train(on_folder(root, log_steps=3), workdir)
    assert found["step"] == 12
    assert "is done: it stands at step 12 of 12" in capsys.readouterr().out
    assert files_of(workdir) == before
    longer = on_folder(root, total_steps=24)
    with pytest.raises(UserError, match="total_steps: 12 before, 24 now"):
        train.train(longer, workdir)
    assert train.train(longer, workdir, allow_config_change=True)["step"] == 24
    rates = {row["step"]: row["train/learning_rate"] for row in read_metrics(workdir) if "train/learning_rate" in row}
    share = np.array([1 - (step - longer.warmup_steps) / (24 - longer.warmup_steps) for step in range(12, 24)])
    expected = longer.optimizer.learning_rate * share
    np.testing.assert_allclose([rates[step] for step in range(13, 25)], expected, rtol=1e-3)
    before = files_of(workdir)
    rename(root)
    with pytest.raises(UserError, match="gone 'bee', new 'bug'"):
        train.train(longer, workdir)
    assert files_of(workdir) == before


def test_of_several_processes_each_looks_before_it_joins_also_in_the_default_folder(tmp_path):
    folder = tmp_path / "runs" / "cifar10_plain"
    folder.mkdir(parents=True)
    with lock.held(folder, print):
        arguments = ("--config=cifar10_plain", "--distributed", "--coordinator=localhost:9", "--num_processes=2")
        done = commands.run("mixer.train", *arguments, "--process_id=1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "runs/cifar10_plain is in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_evaluator_may_come_and_go_but_its_data_count(begun, tmp_path):
    root, workdir = begun
    other = make_folder(tmp_path / "others")
    more = {"fewshot.dataset": "folder", "fewshot.data_dir": str(other), "fewshot.test_split": "validation",
            "fewshot.shots": (1,)}  # fmt: skip
    with pytest.raises(preemption.PreemptedError):
        train.train(on_folder(root, **more), workdir, stop=preemption.Stop(after=5))
    more_images(other)
    with pytest.raises(UserError, match=r"the number of examples of the data of evaluator fewshot"):
        train.train(on_folder(root, **more), workdir)
    train.train(on_folder(root), workdir)


def test_a_run_of_an_earlier_version_continues_and_is_noted_from_then_on(begun, caplog):
    root, workdir = begun
    (workdir / history.FILE).unlink()
    rename(root)
    with pytest.raises(UserError, match="gone 'bee', new 'bug'"):
        train.train(on_folder(root), workdir)
    (root / "bug").rename(root / "bee")
    train.train(on_folder(root), workdir)
    (start,) = history.read(workdir)
    assert (start.step, start.begun) == (3, {"num_examples": 36, "batch_size": 8})


# ------------------------------------------------------------------------------------------------------------- software


def test_other_software_is_a_warning(begun, monkeypatch, caplog):
    root, workdir = begun
    before = facts.of_software()["jax"]
    monkeypatch.setattr(facts, "of_software", lambda real=facts.of_software: real() | {"jax": "99.0"})
    train.train(on_folder(root), workdir)
    (said,) = [record.message for record in caplog.records if record.name == "mixer.train"]
    assert said == (
        f"The run continues with other software (jax {before} before, 99.0 now): the same bits as without a stop are "
        "not promised."
    )
    caplog.clear()
    train.train(on_folder(root), workdir)
    assert [record for record in caplog.records if record.name == "mixer.train"] == []


def test_fewer_processors_are_a_warning(begun, monkeypatch, caplog):
    root, workdir = begun
    monkeypatch.setattr(facts.machine, "processors", lambda: 77)
    train.train(on_folder(root), workdir)
    assert "other devices (processors " in next(r.message for r in caplog.records if r.name == "mixer.train")


# ------------------------------------------------------------------------------------------------ config, batch size


def seen_positions(monkeypatch):
    """Collects the numbers of the records that training reads, in the order of their positions."""
    seen, real = [], pipeline.order.record_numbers

    def record_numbers(positions, *rest):
        seen.extend(positions.tolist())
        return real(positions, *rest)

    monkeypatch.setattr(pipeline.order, "record_numbers", record_numbers)
    return seen


def test_another_batch_size_keeps_the_schedule_and_skips_no_image(begun, monkeypatch, capsys):
    root, workdir = begun
    epochs = {"total_epochs": 4.0, "total_steps": None, "eval_steps": 50, "checkpoint_steps": 50}
    workdir = workdir.with_name("in epochs")
    with pytest.raises(preemption.PreemptedError):
        train.train(on_folder(root, **epochs), workdir, stop=preemption.Stop(after=9))
    seen = seen_positions(monkeypatch)
    larger = on_folder(root, **epochs, batch_size=16)
    with pytest.raises(preemption.PreemptedError):
        train.train(larger, workdir, allow_config_change=True, stop=preemption.Stop(after=12))
    assert sorted(set(seen))[: 3 * 16] == list(range(9 * 8, 9 * 8 + 3 * 16))
    assert "continuing from step 9; batch_size: 8 before, 16 now" in capsys.readouterr().out
    seen.clear()
    train.train(larger, workdir)
    assert min(seen) == 9 * 8 + 3 * 16
    # 18 steps, as 4 epochs of 36 images in batches of 8 were; 9 of them of 16 images.
    assert "18 steps, from step 12 on of 16, 6 epochs" in capsys.readouterr().out
    assert [line["step"] for line in read_metrics(workdir)] == list(range(1, 19))
    changes = [(start.step, list(start.config_changes)) for start in history.read(workdir)]
    assert changes == [(0, []), (9, ["batch_size: 8 before, 16 now"]), (12, [])]


def test_a_run_of_an_earlier_version_keeps_its_schedule_too(begun):
    root, workdir = begun
    epochs = {"total_epochs": 4.0, "total_steps": None, "eval_steps": 50, "checkpoint_steps": 50}
    workdir = workdir.with_name("in epochs")
    with pytest.raises(preemption.PreemptedError):
        train.train(on_folder(root, **epochs), workdir, stop=preemption.Stop(after=9))
    (workdir / history.FILE).unlink()
    train.train(on_folder(root, **epochs, batch_size=16), workdir, allow_config_change=True)
    assert read_metrics(workdir)[-1]["step"] == 18


def start(step, batch_size):
    return history.Start(step, "", "", {}, {}, batch_size, {"num_examples": 1, "batch_size": 4}, {}, {})


@pytest.mark.parametrize(
    ("starts", "step", "images"),
    [
        ([], 5, 20),
        ([start(0, 4), start(5, 4)], 9, 36),
        ([start(0, 4), start(5, 8)], 5, 20),
        ([start(0, 4), start(5, 8), start(7, 2)], 10, 5 * 4 + 2 * 8 + 3 * 2),
        ([start(0, 4), start(5, 8), start(5, 2)], 6, 22),  # the second start has left no checkpoint
        ([start(0, 4), start(6, 8), start(5, 2)], 8, 20 + 6),  # the checkpoint of step 6 was lost
        ([start(5, 8)], 7, 36),  # begun by an earlier version
    ],
)
def test_images_are_counted_over_all_starts(starts, step, images):
    assert history.images_seen(starts, step, 4) == images


def test_a_start_that_begins_a_run_anew_undoes_names_and_weights_of_those_before(tmp_path):
    (tmp_path / "classes.txt").write_text("new_a\nnew_b\n")
    named = dataclasses.replace(start(50, 4), class_names=["old_a", "old_b"])
    from_weights = dataclasses.replace(start(0, 4), weights={"digest": "1"})
    for one in (from_weights, named, start(0, 4)):
        history.add(tmp_path, one)
    assert history.class_names(tmp_path) == history.class_names(tmp_path, 100) == ["new_a", "new_b"]
    assert history.first_weights(history.read(tmp_path)) == {}
    assert history.first_weights([start(0, 4), from_weights, start(5, 4)]) == {"digest": "1"}


@pytest.mark.parametrize(
    ("changes", "repeats"),
    [
        ({}, True),
        ({"config_changes": ["eval_steps: 3 before, 5 now", "input.data_dir: 'a' before, 'b' now"]}, True),
        ({"config_changes": ["optimizer.learning_rate: 0.1 before, 0.01 now"]}, False),
        ({"config_changes": ["evaluators.real.split: 'test' before, 'train' now"]}, False),
        ({"data_changes": ["the digest of the training data: 1 before, 2 now"]}, False),
    ],
)
def test_a_run_with_another_config_or_other_data_does_not_repeat_its_steps(changes, repeats):
    run = types.SimpleNamespace(start=dataclasses.replace(start(5, 4), **changes))
    assert mixer.run.Run.repeats(run) == repeats


def test_names_that_a_run_did_not_always_have_are_noted_at_each_start(tmp_path):
    """A start undoes what was noted at later steps, as when a checkpoint is lost."""
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    for step, names, noted in ((0, ["ant", "bee"], None), (50, ["ant", "bug"], ["ant", "bug"]),
                               (40, ["ant", "bug"], ["ant", "bug"]), (60, ["ant", "bee"], ["ant", "bee"])):  # fmt: skip
        before = history.class_names(tmp_path)
        assert history.other_names(tmp_path, before, names) == noted
        history.add(tmp_path, dataclasses.replace(start(step, 4), class_names=noted))
    assert history.class_names(tmp_path, 45) == history.class_names(tmp_path, 60) == ["ant", "bug"]
    assert history.class_names(tmp_path, 40) == history.class_names(tmp_path, 70) == ["ant", "bee"]


def test_what_is_damaged_or_unknown_in_a_history_is_no_matter(tmp_path):
    history.add(tmp_path, start(0, 4))
    path = tmp_path / history.FILE
    newer = {**json.loads(path.read_text()), "step": 3, "from_a_later_version": 1}
    path.write_text(path.read_text() + "{torn\n[]\n" + json.dumps(newer) + "\n")
    before = path.read_bytes()
    assert [one.step for one in history.read(tmp_path)] == [0, 3]
    history.add(tmp_path, dataclasses.replace(start(5, 4), command="again"))
    assert path.read_bytes().startswith(before)
    assert [one.step for one in history.read(tmp_path)] == [0, 3, 5]


def test_facts_that_a_place_does_not_tell_are_not_compared():
    before = dataclasses.replace(start(0, 4), data={"the digest of the file sizes of x": "1", "the digest of y": "2"})
    assert history.data_changes([before], None, {"the digest of y": "2", "another": "3"}, ["a"]) == []
    assert history.data_changes([before], None, {"the digest of y": "3"}, ["a"]) == ["the digest of y: 2 before, 3 now"]


# -------------------------------------------------------------------------------------------------------- the command


def test_the_same_command_twice_at_once_is_one_run(data_dir, tmp_path):
    """And a killed one keeps nobody out."""
    workdir, slow = tmp_path / "run", {"total_steps": 4000, "eval_steps": 4000, "checkpoint_steps": 50}
    with subprocess.Popen(
        command(data_dir, workdir, **slow), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        wait_for(first, "step 60/")
        second = run(command(data_dir, workdir, **slow))
        assert second.returncode == 1
        assert second.stdout == ""
        assert second.stderr.startswith(f"error: {workdir} is in use: process {first.pid} on ")
        assert second.stderr.count("\n") == 1
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert (workdir / lock.FILE).exists()
    since = time.monotonic()
    rest = {**slow, "total_steps": 4000}
    third = run(command(data_dir, workdir, "--stop_after=200", **rest))
    assert third.returncode == 75, third.stderr
    assert time.monotonic() - since < 60
    assert "continuing from step" in third.stdout
    assert not (workdir / lock.FILE).exists()
    steps = [line["step"] for line in read_metrics(workdir)]
    assert steps == list(range(1, len(steps) + 1))


def test_a_run_that_was_taken_over_stops(data_dir, tmp_path, monkeypatch):
    calls = []

    def check(self):
        calls.append(1)
        if len(calls) == 3:
            raise UserError("the folder was taken over")

    monkeypatch.setattr(lock._Lock, "check", check)
    with pytest.raises(UserError, match="was taken over"):
        train.train(tiny(data_dir), tmp_path)
    assert read_metrics(tmp_path)[-1]["step"] == 2


def test_a_new_run_says_that_it_starts_from_nothing(data_dir, tmp_path, capsys):
    train.train(tiny(data_dir, total_steps=1), tmp_path)
    said = capsys.readouterr().out
    assert "starting from random parameters: config.init_from is not set" in said
    assert "72 training and 8 evaluation images (validation), 4 classes; 1 steps of " in said
