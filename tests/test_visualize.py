"""`mixer.visualize` on a trained run, as a user runs it."""

import json

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from mixer import report, visualize
from mixer.data import datasets
from mixer.runtime.errors import UserError
from mixer.training.metrics import read_metrics
from mixer.transfer import lineage, loading, npz
from tests import commands
from tests.trained_run import DATASET, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    datasets.prepare_embedded(DATASET, str(data_dir))
    return make_run(tmp_path_factory.mktemp("run"), data_dir, **{"model.tokens_mlp_dim": 8})


def at_32_pixels(run, folder, **settings):
    """A run of a few steps that starts from another at twice its image size."""
    size = {"input.image_size": 32, "input.eval_resize": 32, "model.tokens_mlp_dim": None, "total_steps": 6}
    data_dir = loading.load(str(run)).config.input.data_dir
    return make_run(folder, data_dir, **{**size, "init_from": str(run), **settings})


def numbers_and_texts(run, folder):
    """What `mixer.visualize` says of the blocks of a run, in numbers and in a table; and the page of `mixer.report`."""
    numbers = visualize.draw_weights(loading.load(str(run)), [], epath.Path(folder))
    page = report.make([str(run)], ema=False, data_dir=None, evaluates=False, command="c")
    return numbers["blocks"], "\n".join(visualize._table({"model": "m", **numbers})), page


def command(*arguments):
    return commands.run("mixer.visualize", *arguments)


def test_a_run_is_drawn_block_by_block(run, tmp_path):
    done = command(f"--checkpoint={run}", f"--output={tmp_path / 'new' / 'figures'}", "--blocks=1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "new" / "figures"
    made = sorted(path.name for path in folder.iterdir())
    assert made == ["lens.png", "numbers.json", "stem.png", "units_block_1.png"]
    for path in folder.glob("*.png"):
        pixels = np.asarray(Image.open(path))
        assert min(pixels.shape[:2]) > 250
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    numbers = json.loads((folder / "numbers.json").read_text())
    assert [block["block"] for block in numbers["blocks"]] == [0, 1]
    assert all(-1 <= block["opposite"] < 0 and block["units"] == 8 for block in numbers["blocks"])
    accuracies = numbers["lens"]["accuracy_after_blocks"]
    assert len(accuracies) == 3
    assert accuracies[-1] == pytest.approx(read_metrics(run)[-1]["val/accuracy"])
    assert f"{accuracies[-1]:.2%}" in done.stdout
    assert f"{numbers['blocks'][1]['opposite']:.2f}" in done.stdout


def test_random_weights_are_extended_as_those_of_the_run_were(run, tmp_path):
    extended, table, page = numbers_and_texts(at_32_pixels(run, tmp_path / "run"), tmp_path)
    small, table_of_small, page_of_small = numbers_and_texts(run, tmp_path)
    for one, other in zip(small, extended, strict=True):
        assert (one["extended"], other["extended"]) == (1, 2)
        assert other["opposite_at_random"] == pytest.approx(one["opposite_at_random"], abs=0.1)
        assert other["half_energy_at_random"] == pytest.approx(one["half_energy_at_random"], abs=1.5)
    for text, of_small in ((table, table_of_small), (page, page_of_small)):
        assert "oken mixing was extended by 2 x 2 (Appendix C" in text
        assert "Appendix C" not in of_small
    assert table.count("(random ") == 4


def test_interpolated_weights_have_no_random_ones_beside_them(run, tmp_path):
    interpolated = at_32_pixels(run, tmp_path / "run", resize="interpolate", **{"model.tokens_mlp_dim": 8})
    blocks, table, page = numbers_and_texts(interpolated, tmp_path)
    assert {block["opposite_at_random"] for block in blocks} == {block["half_energy_at_random"] for block in blocks}
    assert {block["opposite_at_random"] for block in blocks} == {None}
    assert "(random" not in table
    assert "no random units: these began as interpolated ones" in table
    assert "No random weights: those of the run began as interpolated ones" in page
    assert "None" not in page.split('id="figures0"')[1].split("</table>")[0]


def test_weights_that_kept_their_size_are_not_interpolated(run):
    config = ConfigDict(loading.load(str(run)).config.to_dict())
    for size, start, expected in ((16, str(run), False), (32, str(run), True), (224, "B/16-i1k", False)):
        config.update_from_flattened_dict({"input.image_size": size, "resize": "interpolate"})
        config.init_from = start
        assert lineage.interpolated(config) == expected


def test_no_picture_of_other_weights_stays_beside_new_numbers(run, tmp_path):
    old, own = ("lens.png", "units_block_1.png", "units_block_11.png"), ("units_block_x.png", "my_lens.png", "a.npz")
    for name in (*old, *own):
        (tmp_path / name).write_bytes(b"")
    with (tmp_path / "m.npz").open("wb") as file:
        npz.save_params(file, loading.load(str(run)).params)
    done = command(f"--checkpoint={tmp_path / 'm.npz'}", f"--output={tmp_path}", "--blocks=0")
    assert done.returncode == 0, done.stderr
    made = {"m.npz", "numbers.json", "stem.png", "units_block_0.png"}
    assert {path.name for path in tmp_path.iterdir()} == made | set(own)


def test_weights_without_data_are_drawn_without_accuracy(run, tmp_path):
    with (tmp_path / "m.npz").open("wb") as file:
        npz.save_params(file, loading.load(str(run)).params)
    done = command(f"--checkpoint={tmp_path / 'm.npz'}", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "no accuracy after each block" in done.stderr
    assert not (tmp_path / "lens.png").exists()
    assert (tmp_path / "units_block_0.png").exists()
    assert "lens" not in json.loads((tmp_path / "numbers.json").read_text())


MISTAKES = [
    (["--blocks=0,2"], "error: --blocks=0,2: expected numbers from 0 to 1, such as --blocks=0,1"),
    (["--task=cifar10", "--data_dir=/nowhere"], "/nowhere"),
    (["--task=folder"], "--data_dir is not set"),
    (["--task=cats"], "error: --task 'cats': expected one of"),
    (["--output=/dev/null"], "error: --output=/dev/null is no folder and cannot become one (["),
]


def test_what_cannot_be_drawn_is_said_in_one_line(run, tmp_path):
    start = [f"--checkpoint={run}", f"--output={tmp_path}"]
    for arguments, message in MISTAKES:
        done = command(*start, *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "config." not in done.stderr  # this command takes no settings
        assert done.stderr.count("\n") == 1, done.stderr


def test_the_first_three_blocks_are_drawn_if_none_is_named():
    assert visualize._blocks(None, 12) == [0, 1, 2]
    assert visualize._blocks(None, 2) == [0, 1]
    assert visualize._blocks(["11", "0"], 12) == [0, 11]
    for wrong in (["12"], ["-1"], ["x"], []):
        with pytest.raises(UserError, match="expected numbers from 0 to 11"):
            visualize._blocks(wrong, 12)
