"""The registry of formats. A new format needs its entry and nothing else."""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from random_models import flat, make_model, make_params, same

from mixer.transfer.formats import FORMATS
from mixer.transfer.weights import Weights

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


# mixer.export with one more format: a text file with the names of the arrays, one a line.
NEW_FORMAT = r"""
import sys
from flax import traverse_util
from mixer import export
from mixer.config import command_line
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
command_line.run(export.main, export.define_flags, takes_arguments=True)
"""


def export(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", NEW_FORMAT, *arguments], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--to=names", "m.npz"], "m.npz: the name of a file for --to names ends in .txt"),
        (["m.npz"], "--to is missing: give one of npz, timm, stablehlo, names"),
        (["--to=npz", "m.npz"], "a.png: expected a run's folder or a file that ends in .npz or .safetensors or .txt, "
         "not '.png' (files that hold pickles, such as .pth and .bin, are never loaded)"),
    ],
)  # fmt: skip
def test_messages_name_a_new_format(tmp_path, arguments, line):
    (tmp_path / "a.png").write_bytes(b"")
    done = export(tmp_path, "--checkpoint=a.png", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {line}\n")


def test_a_new_format_is_written_and_described(tmp_path):
    params = flat(make_params(make_model()))
    np.savez(tmp_path / "a.npz", **params)
    done = export(tmp_path, "--checkpoint=a.npz", "--to=names", "m.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "m.txt").read_text().splitlines() == list(params)
    card = (tmp_path / "m.txt.md").read_text()
    assert "- **Input:** 8 pixels, RGB, cut into patches of 4x4\n" in card
    assert "- **Format:** the names of the arrays, `.txt`\n" in card
    assert "## Loading\n\n```python\nopen('m.txt')\n```\n" in card
