"""The registry of formats. A new format needs its entry and nothing else."""

import io
import pathlib
import tomllib

import numpy as np
import pytest
from random_models import flat, make_model, make_params, same

from mixer.data import class_names
from mixer.runtime.errors import UserError
from mixer.transfer.format import check_installed
from mixer.transfer.formats import FORMATS
from mixer.transfer.loading import load
from mixer.transfer.weights import Weights
from tests import commands

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_no_two_formats_share_a_suffix():
    suffixes = [form.suffix for form in FORMATS.values()]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix.startswith(".") for suffix in suffixes)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.load is not None])
def test_a_format_reads_what_it_writes(name):
    params, file = make_params(make_model()), io.BytesIO()
    FORMATS[name].save(file, Weights(params, "m.npz").exported())
    file.seek(0)
    assert same(FORMATS[name].load(file, "m"), params)


NAMES = ["ant", "bee: an insect", "猫", "n02110341", ""]
READABLE = [name for name, form in FORMATS.items() if form.load is not None]


@pytest.mark.parametrize("name", READABLE)
def test_a_format_that_is_read_carries_the_names_of_the_classes(tmp_path, name):
    params, form = make_params(make_model()), FORMATS[name]
    for names in (NAMES, None):
        path = tmp_path / f"m{form.suffix}"
        with path.open("wb") as file:
            form.save(file, Weights(params, "m.npz", class_names=names).exported())
        found = load(str(path))
        assert same(found.params, params)
        assert (found.class_names, found.config, found.step, found.workdir) == (names, None, None, None)


@pytest.mark.parametrize("name", READABLE)
def test_all_classes_of_imagenet_21k_are_carried(tmp_path, name):
    names = class_names.published(21_843)
    params = make_params(make_model(len(names)))
    with (tmp_path / f"m{FORMATS[name].suffix}").open("wb") as file:
        FORMATS[name].save(file, Weights(params, "m.npz", class_names=names).exported())
    assert load(file.name).class_names == names


@pytest.mark.parametrize("name", READABLE)
def test_names_of_another_head_are_left_out(tmp_path, name):
    with (tmp_path / f"m{FORMATS[name].suffix}").open("wb") as file:
        FORMATS[name].save(file, Weights(make_params(make_model(5)), "m.npz", class_names=NAMES[:4]).exported())
    assert load(file.name).class_names is None


@pytest.mark.parametrize("name", READABLE)
def test_a_model_without_a_head_has_no_names(tmp_path, name):
    with (tmp_path / f"m{FORMATS[name].suffix}").open("wb") as file:
        FORMATS[name].save(file, Weights(make_params(make_model(0)), "m.npz").exported())
    assert load(file.name).class_names is None


def test_a_library_that_is_missing_is_one_line():
    check_installed(FORMATS["npz"], "npz")
    with pytest.raises(
        UserError, match=r"^--to onnx needs no_such, which is not installed: pip install no_such==1\.0$"
    ):
        check_installed(FORMATS["onnx"]._replace(requirement="no_such==1.0"), "onnx")


def test_the_version_that_a_format_asks_for_is_the_pinned_one_of_its_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    requirement = FORMATS["onnx"].requirement
    assert requirement in pinned
    assert [extra.partition(">=")[0] for extra in extras["onnx"]] == [requirement.partition("==")[0]]


@pytest.mark.parametrize("name", ["stablehlo", "onnx"])
def test_parameters_too_large_for_a_program_are_refused(name):
    """H/14 at 448 pixels is too large, for example. These zeros take no memory."""
    params = {"stem": {"kernel": np.broadcast_to(np.float32(0), (2**29,))}}
    exported = Weights(make_params(make_model()), "m.npz").exported()._replace(params=params)
    with pytest.raises(UserError, match=rf"take 2\.00 GiB, and a \.{name} file cannot hold more than 2: use --to npz"):
        FORMATS[name].save(io.BytesIO(), exported)


# mixer.export with one more format: a text file with the names of the arrays, one a line.
NEW_FORMAT = r"""
import sys
from flax import traverse_util
from mixer import export
from mixer.transfer.format import Format, code_block
from mixer.transfer.formats import FORMATS

FORMATS["names"] = Format(
    suffix=".txt",
    described="the names of the arrays, `.txt`",
    input="{size} pixels, {cut}",
    save=lambda file, exported: file.write("\n".join(traverse_util.flatten_dict(exported.params, sep="/")).encode()),
    loading=lambda exported, file: code_block("python", f"open({file!r})"),
    load=lambda file, source: {"a": source},
)
run = export.run
"""

MESSAGES = [
    (["--to=names", "m.npz"], "m.npz: the name of a file for --to names ends in .txt"),
    (["m.npz"], "--to is missing: give one of npz, timm, stablehlo, onnx, names"),
    (["--to=npz", "m.npz"], "a.png: expected a run's folder or a file that ends in .npz or .safetensors or .txt, "
     "not '.png' (files that hold pickles, such as .pth and .bin, are never loaded)"),
]  # fmt: skip


def test_a_new_format_is_named_in_messages_written_and_described(tmp_path):
    (tmp_path / "new_format.py").write_text(NEW_FORMAT)
    (tmp_path / "a.png").write_bytes(b"")
    params = flat(make_params(make_model()))
    np.savez(tmp_path / "a.npz", **params)
    for arguments, line in MESSAGES:
        answer = commands.run("new_format", "--checkpoint=a.png", *arguments, cwd=tmp_path)
        assert (answer.returncode, answer.stdout, answer.stderr) == (1, "", f"error: {line}\n")
    done = commands.run("new_format", "--checkpoint=a.npz", "--to=names", "m.txt", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "m.txt").read_text().splitlines() == list(params)
    card = (tmp_path / "m.txt.md").read_text()
    assert "- **Input:** 8 pixels, RGB, cut into patches of 4x4\n" in card
    assert "- **Format:** the names of the arrays, `.txt`\n" in card
    assert "## Loading\n\n```python\nopen('m.txt')\n```\n" in card
