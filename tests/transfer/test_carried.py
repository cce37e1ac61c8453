"""A file of weights says how its pictures are prepared and its probabilities made, as its run's folder does."""

import io
import json

import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from random_models import make_model, make_params

from mixer.config import recipe, tasks
from mixer.evaluation import scoring
from mixer.transfer import model_card, npz, timm
from mixer.transfer.format import CARRIED
from mixer.transfer.formats import FORMATS
from mixer.transfer.loading import load
from mixer.transfer.weights import Weights

NAMES = [f"kind {number}" for number in range(5)]
OTHERS = {
    "loss": "sigmoid_xent", "input.transparent": "white", "input.exif": "ignore", "input.eval_crop": "resize_square",
    "input.eval_resize": 12, "input.resize_rounding": "truncate", "input.permutation": "pixels",
    "input.permutation_seed": 3, "input.max_pixels": 1_000_000,
}  # fmt: skip


def of_a_run(names=NAMES, **settings) -> Weights:
    config = recipe.base()
    config.update_from_flattened_dict({"model.variant": "Ti/4", "input.image_size": 8, **settings})
    return Weights(make_params(make_model()), "runs/a", FrozenConfigDict(config), class_names=names, step=7)


def carried_of(weights: Weights) -> dict:
    return {name: weights.settings[name] for name in CARRIED}


def written(path, weights):
    form = "npz" if path.suffix == ".npz" else "timm"
    with path.open("wb") as file:
        FORMATS[form].save(file, weights.exported())
    return load(str(path))


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("names", [NAMES, None])
@pytest.mark.parametrize("settings", [OTHERS, {}], ids=["others", "defaults"])
def test_a_file_carries_the_settings_of_its_run(tmp_path, ending, names, settings):
    weights = of_a_run(names, **settings)
    found = written(tmp_path / f"a{ending}", weights)
    assert found.config is None
    assert found.class_names == names
    assert found.settings == carried_of(weights)
    assert found.settings.items() >= settings.items()
    assert found.loss == weights.config.loss
    for name in CARRIED:
        if name != "loss":
            key = name.removeprefix("input.")
            assert found.images()[key] == weights.images()[key]
            of_file, _ = scoring.input_config(found, tasks.TASKS["cifar10"])
            assert of_file[key] == weights.config.input[key]
    assert found.exported().has_tanh_gelu  # this project wrote it
    again = written(tmp_path / f"b{ending}", found)
    assert again.settings == carried_of(weights)
    assert found.exported().probabilities == weights.exported().probabilities


def test_the_card_of_a_file_says_what_that_of_its_run_does(tmp_path):
    weights = of_a_run(**OTHERS)
    found = written(tmp_path / "a.npz", weights)
    for one in (weights, found):
        text = model_card.card(one, to="npz", file="m.npz", command="", measured={})
        assert "on white" in text
        assert "sigmoid" in text


@pytest.mark.parametrize(
    "carried",
    [
        {"loss": "none"},  # not all of them
        {**carried_of(of_a_run()), "loss": "hinge"},
        {**carried_of(of_a_run()), "input.transparent": 3},
        {**carried_of(of_a_run()), "input.image_size": 8.5},
        {**carried_of(of_a_run()), "input.image_size": "large"},
        {"a": 1},
    ],
    ids=str,
)
def test_settings_that_this_version_does_not_have_are_passed_over(tmp_path, carried):
    """So are an earlier version's file, and a foreign entry of the same name."""
    params = make_params(make_model())
    for module, ending in ((npz, "npz"), (timm, "safetensors")):
        with (tmp_path / f"a.{ending}").open("wb") as file:
            module.save_params(file, params, NAMES, carried)
        found = load(str(tmp_path / f"a.{ending}"))
        assert (found.settings, found.loss, found.class_names) == ({}, "softmax_xent", NAMES)
        with (tmp_path / f"b.{ending}").open("wb") as file:
            module.save_params(file, params)
        assert load(str(tmp_path / f"b.{ending}")).settings == {}


def test_numpy_reads_what_a_file_carries(tmp_path):
    written(tmp_path / "a.npz", of_a_run(**OTHERS))
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["head/bias"].shape == (5,)
    data = io.BytesIO((tmp_path / "a.npz").read_bytes())
    assert npz.load_carried(data) == json.loads(json.dumps(carried_of(of_a_run(**OTHERS))))
