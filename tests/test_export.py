"""The command mixer.export: every format, the model card, and the lines of errors."""

import contextlib
import io
import json
import pickle
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from random_models import flat, make_model, make_params, make_state, same, write_run

from mixer import export as export_module
from mixer import models
from mixer.runtime import files
from mixer.runtime.errors import UserError
from mixer.transfer import model_card
from mixer.transfer.formats import FORMATS
from mixer.transfer.loading import load
from mixer.transfer.weights import Weights
from tests import commands

PIXELS = 12
NAMES = ["ant", "bee", "cat", "dog", "elk"]
MODEL = make_model()
# Computed by hand: stem, two blocks of nine tokens, last LayerNorm, head.
PARAMETERS = (
    (3 * 16 * 16 + 16)
    + 2 * ((9 * 12 + 12 + 12 * 9 + 9) + (16 * 24 + 24 + 24 * 16 + 16) + 4 * 16)
    + 2 * 16
    + (16 * 5 + 5)
)


PARAMS, AVERAGES = (make_params(MODEL, PIXELS, seed) for seed in (1, 2))


def export(*arguments, **options):
    """Runs the command with these flags."""
    flags = [f"--{name}={value}" for name, value in options.items()]
    return commands.run("mixer.export", *flags, *arguments, devices=1)


def exported(*arguments, **options):
    done = export(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Makes the folder of a run at step 7 of 20, evaluated at steps 4 and 7."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    settings = {
        "input.image_size": PIXELS, "input.eval_resize": None, "input.dataset": "cifar10", "total_steps": 20,
        "ema_decay": 0.9, "mixup.p": 0.5, "input.randaugment.layers": 2, "init_from": "B/16-i21k",
        "input.eval_split": "test",
    }  # fmt: skip
    write_run(folder, [make_state(AVERAGES, PARAMS, step=3), make_state(PARAMS, AVERAGES, step=7)], NAMES, **settings)
    (folder / "metrics.jsonl").write_text(
        '{"step": 4, "val/accuracy": 0.4, "val/count": 9999, "val_ema/accuracy": 0.45, "val_ema/count": 9999}\n'
        '{"step": 7, "train/loss": 1.5}\n'
        '{"step": 7, "val/accuracy": 0.7125, "val/count": 9998, "val_ema/accuracy": 0.75, "val_ema/count": 9998}\n'
    )
    return folder


def test_npz_to_timm_and_back_keeps_every_bit_and_name(tmp_path):
    np.savez(tmp_path / "a.npz", **flat(PARAMS))
    said = exported(tmp_path / "b.safetensors", checkpoint=tmp_path / "a.npz", to="timm")
    assert "b.safetensors written" in said
    exported(tmp_path / "c.npz", checkpoint=tmp_path / "b.safetensors", to="npz")
    with np.load(tmp_path / "a.npz") as before, np.load(tmp_path / "c.npz") as after:
        assert sorted(after.files) == sorted(before.files) == sorted(flat(PARAMS))
        for name in before.files:
            assert after[name].dtype == np.float32
            np.testing.assert_array_equal(after[name], before[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.npz", "b.safetensors", "b.safetensors.md", "c.npz", "c.npz.md"
    ]  # fmt: skip


@pytest.mark.parametrize("ema", [False, True])
def test_a_run_to_npz(run, tmp_path, ema):
    exported(tmp_path / "m.npz", checkpoint=run, to="npz", ema=ema)
    with np.load(tmp_path / "m.npz") as arrays:
        for name, array in flat(AVERAGES if ema else PARAMS).items():
            np.testing.assert_array_equal(arrays[name], array)
    accuracy = "**75.00%** of 9,998 images" if ema else "**71.25%** of 9,998 images"
    assert accuracy in (tmp_path / "m.npz.md").read_text()


def test_a_run_to_timm(run, tmp_path):
    exported(tmp_path / "m.safetensors", checkpoint=f"{run}/checkpoints/3", to="timm")
    found = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(found["blocks.1.mlp_tokens.fc1.weight"],
                                  AVERAGES["MixerBlock_1"]["token_mixing"]["Dense_0"]["kernel"].T)  # fmt: skip
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "m.safetensors.md").stat().st_mode
    text = (tmp_path / "m.safetensors.md").read_text()
    assert "3 taken" in text
    assert "Unknown: the run was not evaluated at step 3." in text


ALONE = """
import sys
sys.modules["mixer"] = sys.modules["flax"] = None  # importing them is an error
import numpy as np
from jax import export

model = export.deserialize(bytearray(open("m.stablehlo", "rb").read()))
images = np.load("images.npy")
np.savez("logits.npz", *[model.call(images[:size]) for size in (1, 3)])
print(*model.platforms, *model.in_avals, *model.out_avals)
"""


@pytest.mark.parametrize("classes", [5, 0])
def test_stablehlo_runs_without_this_project(run, tmp_path, classes):
    """Logits are within 1e-6 of the largest one: the same program, compiled for one device instead of eight."""
    source, params, model = run, PARAMS, MODEL
    if classes == 0:
        params, model = {name: part for name, part in PARAMS.items() if name != "head"}, MODEL.clone(num_classes=0)
        source = tmp_path / "headless.npz"
        np.savez(source, **flat(params))
    exported(tmp_path / "m.stablehlo", checkpoint=source, to="stablehlo")
    images = np.random.default_rng(0).integers(0, 256, (3, PIXELS, PIXELS, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, env=commands.environment(1), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = classes or 16
    assert done.stdout.split() == ["cpu", "cuda", "tpu", f"uint8[b,{PIXELS},{PIXELS},3]", f"float32[b,{outputs}]"]
    expected = np.asarray(jax.jit(model.apply)({"params": params}, images.astype(np.float32) / 127.5 - 1))
    with np.load(tmp_path / "logits.npz") as found:
        for size, logits in zip((1, 3), (found["arr_0"], found["arr_1"]), strict=True):
            assert logits.shape == (size, outputs)
            np.testing.assert_allclose(logits, expected[:size], rtol=0, atol=1e-6 * np.abs(expected).max())
    assert np.std(expected, axis=0).max() > 0.1


# -------------------------------------------------------------------------------------------------------------- errors


class Trap:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def npz_of(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def bad_input(kind, folder):
    """Makes a bad checkpoint. Returns its path and the line of the error."""
    arrays, path = flat(PARAMS), folder / "bad.npz"
    dense = "MixerBlock_1/channel_mixing/Dense_0/kernel"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(folder / "sprung")))
        return path, f"error: {path} cannot be read: it is a pickle or no .npz at all, and pickles are never loaded"
    if kind == "text":
        path.write_text("these are not the weights\n")
        return path, f"error: {path} cannot be read: it is a pickle or no .npz at all, and pickles are never loaded"
    if kind == "missing":
        del arrays[dense]
        path.write_bytes(npz_of(arrays))
        return path, f"error: {path} looks like Mixer-2x16/4, but does not match it: {dense}: missing there"
    if kind == "transposed":
        arrays[dense] = arrays[dense].T
        path.write_bytes(npz_of(arrays))
        return (
            path,
            f"error: {path} looks like Mixer-2x16/4, but does not match it: {dense}: (24, 16) there, (16, 24) here",
        )
    if kind == "folder":
        path = folder / "empty"
        path.mkdir()
        return path, (
            f"error: {path} holds no checkpoint with params that can be read; give the folder of a run that has saved "
            "one"
        )
    path = folder / "model.pth"
    path.write_bytes(pickle.dumps(Trap(folder / "sprung")))
    return path, (
        f"error: {path}: expected a run's folder or a file that ends in .npz or .safetensors, not '.pth' (files that "
        "hold pickles, such as .pth and .bin, are never loaded)"
    )


@pytest.mark.parametrize("kind", ["pickle", "text", "missing", "transposed", "folder", "pth"])
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, kind):
    path, line = bad_input(kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = export(tmp_path / "out.npz", checkpoint=path, to="npz")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{line}\n")
    assert sorted(tmp_path.rglob("*")) == before


GOOD = {"checkpoint": "a.npz", "to": "npz"}


@pytest.mark.parametrize(
    ("flags", "outs", "line"),
    [
        ({"checkpoint": "a.npz"}, ["m.npz"], "--to is missing: give one of npz, timm, stablehlo, onnx"),
        ({"to": "npz"}, ["m.npz"], "--checkpoint is missing: give a run's folder, a file, or the name of a published "
         "checkpoint"),
        (GOOD, [], "expected one file to write, such as model.npz, not none"),
        (GOOD, ["m.npz", "n.npz"], "expected one file to write, such as model.npz, not .*m.npz and .*n.npz"),
        (GOOD, ["m.safetensors"], ".*m.safetensors: the name of a file for --to npz ends in .npz"),
        (GOOD, ["nowhere/m.npz"], ".*m.npz: the folder .*nowhere does not exist; make it first"),
        (GOOD, ["folder.npz"], ".*folder.npz is a folder; give the name of a file to write"),
        (GOOD, ["notes.npz"], ".*notes.npz.md, where the model card goes, is a file of yours: give OUT another name"),
        ({**GOOD, "to": "stablehlo"}, ["theirs.stablehlo"], ".*theirs.stablehlo.mlir, where the bare module goes, is a "
         "file of yours: give OUT another name"),
        ({**GOOD, "to": "pickle"}, ["m.npz"], ".*--to=pickle: .*<npz.timm.stablehlo.onnx>"),
        ({**GOOD, "too": "npz"}, ["m.npz"], "--too: no such flag; the nearest is --to"),
        ({**GOOD, "batch_size": 4}, ["m.npz"], "--batch_size says nothing about --to npz: leave it out, or use --to "
         "stablehlo"),
        ({**GOOD, "to": "timm", "platforms": "cpu"}, ["m.safetensors"], "--platforms says nothing about --to timm: .*"),
        ({**GOOD, "to": "stablehlo", "platforms": "cpu,gpu"}, ["m.stablehlo"], "--platforms=cpu,gpu: give one or "
         "several of cpu, cuda, rocm, tpu, separated by commas"),
        ({**GOOD, "to": "stablehlo", "batch_size": 0}, ["m.stablehlo"], "flag --batch_size=0: .*"),
        ({**GOOD, "ema": True}, ["m.npz"], ".*a.npz is not the folder of a run: it has no averaged parameters"),
    ],
)  # fmt: skip
def test_a_bad_command_line_is_one_line_and_writes_nothing(tmp_path, flags, outs, line):
    np.savez(tmp_path / "a.npz", **flat(PARAMS))
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "notes.npz.md").write_text("# My notes\n")
    (tmp_path / "theirs.stablehlo.mlir").write_text("module {}\n")
    if "checkpoint" in flags:
        flags = {**flags, "checkpoint": tmp_path / "a.npz"}
    done = export(*(tmp_path / out for out in outs), **flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"error: (?:{line})\n", done.stderr), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.npz", "folder.npz", "notes.npz.md", "theirs.stablehlo.mlir"
    ]  # fmt: skip
    assert (tmp_path / "notes.npz.md").read_text() == "# My notes\n"


@pytest.mark.parametrize("earlier", [False, True])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, earlier):
    out, kept = epath.Path(tmp_path) / "m.npz", {}
    if earlier:
        kept = {"m.npz": b"earlier", "m.npz.md": model_card.MARK.encode()}
        for name, content in kept.items():
            (tmp_path / name).write_bytes(content)

    def save(file, exported):
        file.write(b"half of it")
        file.flush()
        assert out.exists() == earlier  # so a process killed here leaves the earlier file
        raise OSError("No space left on device")

    monkeypatch.setitem(FORMATS, "npz", FORMATS["npz"]._replace(save=save))
    with pytest.raises(UserError, match=r"m\.npz cannot be written \(No space left on device\)$"):
        export_module.export(Weights(PARAMS, "a.npz"), "npz", out, command="")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def full(file, exported):
    raise OSError("No space left on device")


def test_files_that_belong_together_are_all_new_or_all_as_before(run, tmp_path, monkeypatch):
    out = epath.Path(tmp_path) / "m.stablehlo"
    exported(out, checkpoint=run, to="stablehlo")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3
    suffix, _ = FORMATS["stablehlo"].beside
    monkeypatch.setitem(FORMATS, "stablehlo", FORMATS["stablehlo"]._replace(beside=(suffix, full)))
    with pytest.raises(UserError, match=r"m\.stablehlo cannot be written"):
        export_module.export(Weights(PARAMS, "a.npz"), "stablehlo", out, command="")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class FullDisk(io.BytesIO):
    def flush(self):
        raise OSError("No space left on device")


def test_a_disk_that_is_full_at_the_end_of_a_file_leaves_what_was_there(run, tmp_path, monkeypatch):
    """The last bytes of a small file are written when it is closed."""
    out, opened_to_write = epath.Path(tmp_path) / "m.npz", files.opened_to_write
    exported(out, checkpoint=run, to="npz")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    @contextlib.contextmanager
    def opened(path):
        if path != out:
            with opened_to_write(path) as file:
                yield file
            return
        yield (file := FullDisk())
        file.flush()

    monkeypatch.setattr(files, "opened_to_write", opened)
    monkeypatch.setitem(FORMATS, "npz", FORMATS["npz"]._replace(save=lambda file, _: file.write(b"new")))
    with pytest.raises(UserError, match=r"m\.npz cannot be written \(No space left on device\)$"):
        export_module.export(Weights(PARAMS, "a.npz"), "npz", out, command="")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_could_not_be_written_can_be_written_again(tmp_path, monkeypatch):
    out, weights = epath.Path(tmp_path) / "m", Weights(make_params(models.create("S/32", 5), 64), "a.npz")
    with monkeypatch.context() as patched:
        patched.setitem(FORMATS, "timm", FORMATS["timm"]._replace(save=full))
        with pytest.raises(UserError, match=r"m cannot be written"):
            export_module.export_folder(weights, out)
    assert list(out.iterdir()) == []
    export_module.export_folder(weights, out)
    assert len(list(out.iterdir())) == 3


def test_an_export_replaces_an_earlier_one_and_its_card(run, tmp_path):
    (tmp_path / "m.npz").write_bytes(b"earlier")
    (tmp_path / "m.npz.md").write_text(f"{model_card.MARK}\nearlier\n")
    exported(tmp_path / "m.npz", checkpoint=run, to="npz")
    assert (tmp_path / "m.npz").read_bytes() != b"earlier"
    assert "earlier" not in (tmp_path / "m.npz.md").read_text()


@pytest.mark.parametrize("place", [".", "../pets"])
def test_a_folder_for_timm_has_its_name_wherever_one_stands(tmp_path, place, monkeypatch):
    folder, out, settings = tmp_path / "run", tmp_path / "pets", {"input.image_size": 64, "input.eval_resize": 64}
    write_run(folder, [make_state(make_params(models.create("S/32", 5), 64), None, step=3)], NAMES, **settings)
    out.mkdir()
    monkeypatch.chdir(out)
    done = commands.run("mixer.export", "--checkpoint=../run", "--to=timm", place, cwd=out)
    assert done.returncode == 0, done.stderr
    card = (out / "README.md").read_text()
    assert 'timm.create_model("local-dir:pets"' in card
    assert "--checkpoint run --to timm pets\n" in card


def test_a_folder_for_timm_and_the_hub(tmp_path):
    params = make_params(models.create("S/32", 5), 64)
    (tmp_path / "at_home").mkdir()
    folder = tmp_path / "at_home" / "run"
    settings = {"input.image_size": 64, "input.eval_resize": 80, "init_from": str(tmp_path / "at_home" / "before")}
    write_run(folder, [make_state(params, None, step=3)], NAMES, **settings)
    out, named = tmp_path / "small_timm", tmp_path / "mixer_s32_64.my_pets"  # as timm names its own
    exported(out, checkpoint=folder, to="timm")
    said = exported(out, checkpoint=folder, to="timm")  # it may be written again
    exported(named, checkpoint=folder, to="timm")
    assert said.endswith(f"its model card is {out / 'README.md'}\n")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]

    config = json.loads((out / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("mixer_s32_224", 5, 512)
    assert (config["model_args"], config["label_names"]) == ({"img_size": 64}, NAMES)
    pretrained = config["pretrained_cfg"]
    assert (pretrained["mean"], pretrained["std"]) == ([0.5] * 3, [0.5] * 3)
    assert (pretrained["input_size"], pretrained["crop_pct"], pretrained["crop_mode"]) == ([3, 64, 64], 0.8, "center")

    card = (out / "README.md").read_text()
    code = "".join(block.partition("```")[0] for block in card.split("```python\n")[1:])
    assert -1 < code.find("images = ") < code.find("logits = model(") < code.find("for scores, shares in zip(")
    assert card.startswith("---\nlibrary_name: timm\n")
    assert 'timm.create_model("local-dir:small_timm", pretrained=True, act_layer=functools.partial(' in card
    assert "half of it has the same mean" in card  # drop_path_rate
    assert "**Weights:** `run`" in card
    assert "**Started from:** before" in card
    assert str(tmp_path) not in card + (out / "config.json").read_text()
    for place in (out, named):  # and this project reads the folder
        assert same(load(str(place)).params, params)


def test_a_folder_of_someone_else_and_a_model_without_a_name_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **flat(PARAMS))
    done = export(tmp_path / "out", checkpoint=tmp_path / "a.npz", to="timm")
    assert done.returncode == 1
    assert done.stderr.startswith("error: timm has no name for Mixer-2x16/4, only for S/32, S/16,")
    assert not (tmp_path / "out").exists()
    np.savez(tmp_path / "b.npz", **flat(make_params(models.create("S/32", 5), 64)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("# My notes\n")
    done = export(tmp_path / "out", checkpoint=tmp_path / "b.npz", to="timm")
    assert done.stderr.endswith("README.md, where the model card goes, is a file of yours: give another folder\n")


@pytest.mark.parametrize("theirs", ["config.json", "model.safetensors", "checkpoints/3/x", "a.jpg"])
def test_a_folder_with_other_files_is_left_as_it_is(tmp_path, theirs):
    """That of a run is one: its config would be overwritten."""
    weights = Weights(make_params(models.create("S/32", 5), 64), "b.npz")
    (tmp_path / theirs).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / theirs).write_text("precious")
    (tmp_path / ".git").mkdir()
    name = theirs.partition("/")[0]
    with pytest.raises(UserError, match=rf"holds files of yours \({name}\): give a folder that is new or empty$"):
        export_module.export_folder(weights, epath.Path(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", name]
    assert (tmp_path / theirs).read_text() == "precious"
    shutil.rmtree(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    export_module.export_folder(weights, epath.Path(tmp_path))  # .git is in no one's way
    card = (tmp_path / "README.md").read_text()  # of weights of which nothing is known
    assert "which form these weights were trained with is unknown" in card
    assert "functools" not in card
