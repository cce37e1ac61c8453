"""The picture of a batch shows what the model sees, with the labels that the images have."""

import numpy as np
import pytest
from small_run import CLASSES, make_batch, make_run

from mixer.config import run_folder
from mixer.data import pipeline
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training import first_batch
from tests.tiny_run import data_dir, tiny  # noqa: F401, a fixture

NAMES = [f"class {number}" for number in range(CLASSES)]


def sheet(mesh, **settings):
    run = make_run(mesh, **settings)
    return first_batch.sheet(devices.to_devices(make_batch(8), mesh), NAMES, 3, run.config)


def test_smoothing_does_not_hide_the_labels(one_device):
    np.testing.assert_array_equal(sheet(one_device, label_smoothing=0.1), sheet(one_device))


@pytest.mark.parametrize("mixing", [{"mixup.p": 0.5}, {"mixup.cutmix": 1.0}])
def test_mixing_is_shown(one_device, mixing):
    assert (sheet(one_device, **mixing) != sheet(one_device)).mean() > 0.05


def test_groups_that_do_not_divide_the_batch_are_one_line(data_dir, tmp_path):  # noqa: F811
    config = tiny(data_dir, **{"batch_size": 12, "mixup.cutmix": 0.5, "mixup.group": 8})
    with pytest.raises(UserError, match=r"config.batch_size=12 over 1 devices .* since mixup.group=8 rows stay togeth"):
        first_batch.write_picture(config, tmp_path)


@pytest.mark.parametrize("is_saved", [False, True])
def test_what_a_config_leaves_to_the_run_is_that_of_a_run_which_continues(data_dir, tmp_path, monkeypatch, is_saved):  # noqa: F811
    """An attempt that saved nothing does not count."""
    run_folder.save(tiny(data_dir, **{"input.shuffle_block": 16}), ["a"], tmp_path)
    if is_saved:
        (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    blocks, batches = [], pipeline.train_batches

    def train_batches(source, config, **of):
        blocks.append(config.shuffle_block)
        return batches(source, config, **of)

    monkeypatch.setattr(pipeline, "train_batches", train_batches)
    first_batch.write_picture(tiny(data_dir), tmp_path)
    assert blocks == [16 if is_saved else 1]
