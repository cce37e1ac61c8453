"""Weights of Appendix A.1's models: told by their run's config, and refused where there is no place for them."""

import numpy as np
import pytest
from float64 import ablated_mixer
from ml_collections import FrozenConfigDict
from random_models import make_model, make_params, make_state, same, write_run

from mixer import models
from mixer.api import load as load_model
from mixer.config import recipe
from mixer.page import live_model
from mixer.runtime.errors import UserError
from mixer.transfer import init_from
from mixer.transfer.format import check_holds
from mixer.transfer.formats import FORMATS
from mixer.transfer.loading import load
from mixer.transfer.weights import Weights

NAMES = ["ant", "bee", "cat", "dog", "elk"]
PIXELS, PATCH = 16, 4
OPTIONS = {
    "untied": {"token_mixing": "untied", "token_groups": 4},
    "grouped": {"token_mixing": "grouped", "token_groups": 4},
    "views": {"token_mixing": "views", "token_groups": 4},
    "pyramid": {"pyramid": (16, 4)},
    "both": {"token_mixing": "untied", "token_groups": 2, "pyramid": (4, 4)},
}
SAID = {
    "untied": "Mixer-2x16/4 (untied token mixing x4)",
    "grouped": "Mixer-2x16/4 (grouped token mixing x4)",
    "views": "Mixer-2x16/4 (views token mixing x4)",
    "pyramid": "Mixer-2x16/4 (pyramid 16-4)",
    "both": "Mixer-2x16/4 (untied token mixing x2, pyramid 4)",
}
each = pytest.mark.parametrize("name", OPTIONS)


def make_run(folder, name):
    params = make_params(make_model(**OPTIONS[name]), PIXELS)
    settings = {f"model.{option}": value for option, value in OPTIONS[name].items()}
    size = {"input.image_size": PIXELS, "input.eval_resize": PIXELS}
    return write_run(folder / name, [make_state(params, step=3)], NAMES, **settings, **size), params


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_run(folder, name) for name in OPTIONS}


@each
def test_a_runs_checkpoint_says_what_it_is(runs, name):
    folder, params = runs[name]
    weights = load(str(folder))
    assert same(weights.params, params)
    assert weights.model() == make_model(**OPTIONS[name])
    assert weights.described() == f"{SAID[name]} for images of 16 pixels"


@each
def test_a_run_is_loaded_and_computes_what_its_model_does(runs, name):
    folder, params = runs[name]
    images = np.random.default_rng(0).integers(0, 256, (2, PIXELS, PIXELS, 3), np.uint8)
    options = OPTIONS[name]
    expected = ablated_mixer(
        {k: _float64(v) for k, v in params.items()}, images / 127.5 - 1, PATCH, 2,
        options.get("token_mixing", "shared"), options.get("token_groups", 1), options.get("pyramid"),
    )  # fmt: skip
    np.testing.assert_allclose(load_model(folder).logits(images), expected, rtol=1e-3, atol=1e-3)


def _float64(tree):
    return {k: _float64(v) for k, v in tree.items()} if isinstance(tree, dict) else np.float64(tree)


def test_the_config_of_a_run_before_these_settings_tells_the_papers_model(tmp_path):
    params = make_params(make_model())
    folder = write_run(tmp_path / "run", [make_state(params)], NAMES)
    weights = load(str(folder))
    config = weights.config.to_dict()
    for option in ("token_mixing", "token_groups", "pyramid"):
        del config["model"][option]
    assert Weights(params, "run", FrozenConfigDict(config)).model() == make_model()


def test_arrays_that_do_not_fit_the_config_are_named(runs):
    folder, params = runs["untied"]
    block = params["MixerBlock_1"]
    odd = {**params, "MixerBlock_1": {name: part for name, part in block.items() if name != "LayerNorm_0"}}
    with pytest.raises(UserError) as caught:
        Weights(odd, "runs/a", load(str(folder)).config).model()
    assert str(caught.value) == (
        f"runs/a looks like {SAID['untied']}, but does not match it: MixerBlock_1/LayerNorm_0/bias: missing there; "
        "MixerBlock_1/LayerNorm_0/scale: missing there"
    )


@each
def test_another_image_size_is_refused(runs, name):
    folder, params = runs[name]
    weights = load(str(folder))
    assert same(weights.at_image_size(PIXELS, "extend").params, params)
    for method in ("extend", "interpolate"):
        with pytest.raises(UserError) as caught:
            weights.at_image_size(2 * PIXELS, method)
        assert str(caught.value) == (
            f"{folder} ({SAID[name]}) has weights for images of 16 pixels, which cannot be brought to image_size=32: "
            "Appendix C of the paper extends its own token mixing only"
        )


@each
def test_a_run_can_start_from_a_run_of_the_same_model(runs, name):
    folder, params = runs[name]
    fresh = make_params(make_model(**OPTIONS[name]), PIXELS, seed=1)
    assert same(init_from.fitted(load(str(folder)), fresh, model=""), params)


@pytest.mark.parametrize(
    ("theirs", "ours", "arrays"),
    [
        ("untied", "plain", "MixerBlock_0..1/token_mixing/Dense_0/kernel: (4, 16, 12) there, (16, 12) here"),
        ("grouped", "untied", "MixerBlock_0..1/token_mixing/Dense_0/kernel: (64, 12) there, (4, 16, 12) here"),
        ("views", "grouped", "MixerBlock_0..1/token_views/kernel: not in this model"),
        ("pyramid", "plain", "MixerBlock_1/token_mixing/Dense_1/kernel: (12, 4) there, (12, 16) here"),
    ],
)
def test_a_run_cannot_start_from_another_model(runs, theirs, ours, arrays):
    model = make_model(**OPTIONS.get(ours, {}))
    with pytest.raises(UserError) as caught:
        init_from.fitted(load(str(runs[theirs][0])), make_params(model, PIXELS), model=models.name_of(model))
    message = str(caught.value)
    assert (
        f"does not fit this model: it is {SAID[theirs]} for images of 16 pixels, the model is {models.name_of(model)}: "
        in message
    )
    assert arrays in message
    assert "\n" not in message


@each
@pytest.mark.parametrize("form", FORMATS)
def test_only_formats_with_a_place_for_it_hold_it(runs, name, form):
    exported = load(str(runs[name][0])).exported()
    if form in ("stablehlo", "onnx"):
        check_holds(FORMATS[form], exported)
        return
    with pytest.raises(UserError) as caught:
        check_holds(FORMATS[form], exported)
    assert str(caught.value) == (
        f"{SAID[name]} cannot be written as {FORMATS[form].suffix}, which has a place for the paper's model only; "
        "use --to stablehlo or --to onnx"
    )


@each
def test_a_page_says_that_it_cannot_compute_it(runs, name):
    with pytest.raises(UserError) as caught:
        live_model.check(load(str(runs[name][0])), recipe.base().input)
    assert str(caught.value) == f"the page computes the paper's model only, and this is {SAID[name]}"


def test_all_formats_hold_the_papers_model():
    for form in FORMATS.values():
        check_holds(form, Weights(make_params(make_model()), "m.npz").exported())
