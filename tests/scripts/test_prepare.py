import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

from mixer.data.records import records

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "prepare.py"


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        for name, data in {"n01440764_1.JPEG": b"\xff\xd8\xff1", "n01440764_2.JPEG": b""}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path = tmp_path / "winter21_whole.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("winter21_whole/n01440764.tar")
        info.size = len(inner.getvalue())
        tar.addfile(info, io.BytesIO(inner.getvalue()))
    (tmp_path / "classes.txt").write_text("n01440764\nn02084071\n")
    return path


READ = """
import sys, tensorflow_datasets as tfds
builder = tfds.builder("imagenet21k", data_dir=sys.argv[1])
decoders = {"image": tfds.decode.SkipDecoding()}
(example,) = builder.as_dataset(split="train", decoders=decoders).as_numpy_iterator()
assert example["image"] == b"\\xff\\xd8\\xff1" and example["label"] == 0, example
assert builder.info.metadata["skipped"] == {"image: empty": 1}
assert not any(name.startswith("mixer") for name in sys.modules)
"""


def test_as_processes_and_read_back_without_our_code(tmp_path, archive):
    arguments = [
        "imagenet21k",
        f"--archive={archive}",
        f"--classes={tmp_path}/classes.txt",
        f"--data_dir={tmp_path}/d",
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "WARNING: 1 classes of the list have no image: n02084071",
        "Skipped: 1 (1 image: empty)",
        f"They are listed in {tmp_path}/d/imagenet21k/1.0.0/rejects.jsonl",
        "Examples: train 1",
        f"imagenet21k is in {tmp_path}/d/imagenet21k/1.0.0",
        "To use it, write in the config:",
        '  config.input.dataset = "imagenet21k"',
        f'  config.input.data_dir = "{tmp_path}/d"',
    ]
    subprocess.run([sys.executable, "-c", READ, f"{tmp_path}/d"], check=True, env=environment, cwd=tmp_path)


def test_errors_are_one_line(prepare, archive, tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    archive.write_bytes(archive.read_bytes()[:-40])
    command = ["imagenet21k", f"--archive={archive}", f"--classes={classes}", f"--data_dir={tmp_path}/d"]
    cases = {
        "is damaged": command,
        "no class list at": [*command, "--classes=nowhere.txt"],
        "no archive at": [*command, "--archive=nowhere.tar"],
        "--name 'My Set': use small letters": [*command, "--name=My Set"],
        "--name mnist: TFDS already has": [*command, "--name=mnist"],
        "--name digits: that is": [*command, "--name=digits"],
        "fractals/4x1x32: needs at least 2": [
            "fractals",
            "--categories=4",
            "--instances=1",
            f"--data_dir={tmp_path}/d",
        ],
        "leaves/1x48: needs at least 2 pictures": ["leaves", "--pictures=1", f"--data_dir={tmp_path}/d"],
        "digits/3-coloured: the side": ["digits", "--size=3", "--coloured", f"--data_dir={tmp_path}/d"],
        "digits/3: the side": ["digits", "--size=3", f"--data_dir={tmp_path}/d"],
    }
    for message, arguments in cases.items():
        assert prepare.main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        last = captured.err.strip().splitlines()[-1]
        assert last.startswith("prepare.py: ")
        assert message in last
        assert "Traceback" not in captured.err


def test_multilabel(prepare, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xffa")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    lines = [{"image": "a.jpg", "labels": ["cat", "dog"]}, {"image": "b.jpg", "labels": []}]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    command = ["multilabel", f"--manifest={tmp_path}/m.jsonl", f"--classes={tmp_path}/classes.txt"]
    command += [f"--images={tmp_path}", f"--data_dir={tmp_path}/d", "--name=pets"]
    assert prepare.main(command) == 1
    assert "m.jsonl, line 2: image cannot be read" in capsys.readouterr().err
    assert prepare.main([*command, "--skip_bad"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    rejects = tmp_path / "d/pets/1.0.0/rejects.jsonl"
    assert lines[0].startswith("WARNING: no image is for validation; give a larger --validation_share")
    assert lines[1:3] == ["Skipped: 1 (1 image cannot be read)", f"They are listed in {rejects}"]
    assert "\nMost labels on one image: 2\nExamples: train 1\npets is in" in out
    (reject,) = map(json.loads, rejects.read_text().splitlines())
    assert (reject["line"], reject["problem"]) == (2, "image cannot be read")
    assert reject["detail"].endswith("b.jpg' is not a file")
    assert 'config.input.dataset = "pets"' in out


def test_preparing_otherwise_what_is_there_is_an_error(prepare, tmp_path, capsys):
    """Before, the old data stayed with status 0."""
    for number in range(40):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8\xffa")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(f'{{"image": "{number}.jpg", "labels": [0]}}\n' for number in range(40)))
    command = ["multilabel", f"--manifest={manifest}", f"--classes={tmp_path}/classes.txt", f"--images={tmp_path}"]
    command += [f"--data_dir={tmp_path}/d"]
    assert prepare.main(command) == 0
    assert "Examples: train 38, validation 2\n" in capsys.readouterr().out  # what the configs of JFT ask for
    assert prepare.main(command) == 0
    assert "was left as it is" in capsys.readouterr().out
    manifest.write_text(manifest.read_text() + '{"image": "1.jpg", "labels": [1]}\n')
    (tmp_path / "others").mkdir()
    for other, said in {
        f"--images={tmp_path}/others": f"images: {tmp_path} before, {tmp_path}/others now",
        "--validation_share=0.5": "validation_share: not given before, 0.5 now",
        "--skip_bad": "skip_bad: False before, True now",
        "--name=multilabel": "digest of the manifest: ",
    }.items():
        assert prepare.main([*command, other]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "multilabel/1.0.0 is there already and was prepared otherwise (digest of the manifest: " in captured.err
        assert said in captured.err


def test_a_kill_before_the_index_leaves_what_is_compared_and_completed(prepare, tmp_path, capsys, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xffa")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "m.jsonl").write_text('{"image": "a.jpg", "labels": [0]}\n')
    command = ["multilabel", f"--manifest={tmp_path}/m.jsonl", f"--classes={tmp_path}/classes.txt"]
    command += [f"--images={tmp_path}", f"--data_dir={tmp_path}/d"]

    class KilledError(BaseException):
        """Nothing catches it."""

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as before:
        before.setattr(records, "write_index", killed)
        with pytest.raises(KilledError):
            prepare.main(command)
    folder = tmp_path / "d/multilabel/1.0.0"
    assert not (folder / "index-train.npy").exists()
    assert prepare.main([*command, "--skip_bad"]) == 1
    assert "skip_bad: False before, True now" in capsys.readouterr().err
    assert prepare.main(command) == 0
    assert "\nIts index was missing and has been made.\n" in capsys.readouterr().out
    assert (folder / "index-train.npy").exists()
    assert prepare.main(command) == 0
    assert "Its index" not in capsys.readouterr().out


def test_another_file_format_of_what_is_there_is_told(prepare, tmp_path, capsys):
    command = ["fractals", "--categories=2", "--instances=3", "--size=8", f"--data_dir={tmp_path}"]
    assert prepare.main(command) == 0
    assert prepare.main([*command, "--file_format=array_record"]) == 1
    said = f"fractals is in {tmp_path} already, in another --file_format: delete it, or give another --data_dir"
    assert said in capsys.readouterr().err


def test_the_archives_classes_and_the_shipped_list(prepare, archive, tmp_path, capsys):
    command = ["imagenet21k", f"--archive={archive}", f"--data_dir={tmp_path}/d"]
    assert prepare.main([*command, "--name=own"]) == 0
    assert (tmp_path / "d/own/1.0.0/label.labels.txt").read_text() == "n01440764\n"
    assert "WARNING" not in capsys.readouterr().out
    shipped = SCRIPT.parents[1] / "mixer/data/class_lists/imagenet21k.txt"
    assert prepare.main([*command, f"--classes={shipped}"]) == 0
    assert len((tmp_path / "d/imagenet21k/1.0.0/label.labels.txt").read_text().splitlines()) == 21_843
    assert "WARNING: 21,842 classes of the list have no image: n00004475" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["leaves", "--pictures=3", "--size=8", "--seed=2"], "leaves/3x8-seed2"),
        (["digits", "--size=8", "--coloured"], "digits/8-coloured"),
    ],
)
def test_what_this_project_draws(prepare, tmp_path, capsys, arguments, name):
    assert prepare.main([*arguments, f"--data_dir={tmp_path}"]) == 0
    assert f'config.input.dataset = "{name}"' in capsys.readouterr().out
    assert (tmp_path / name / "1.0.0").is_dir()


def test_what_is_there_stays(prepare, tmp_path, capsys):
    command = [
        "fractals",
        "--categories=2",
        "--instances=3",
        "--size=8",
        "--seed=5",
        f"--data_dir={tmp_path}",
    ]
    assert prepare.main(command) == 0
    folder = tmp_path / "fractals/2x3x8-seed5/1.0.0"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert 'config.input.dataset = "fractals/2x3x8-seed5"' in capsys.readouterr().out
    assert prepare.main(command) == 0
    assert "was there before and was left as it is" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
