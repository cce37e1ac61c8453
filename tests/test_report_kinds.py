"""Pages of runs of another model and of averaged parameters. The page at work: tests/test_report.py."""

import json
import re

import pytest

from mixer import report
from mixer.data import datasets
from mixer.training.metrics import read_metrics
from tests.trained_run import DATASET, make_run

VIT = {"model.variant": "ViT-Ti/4", "model.hidden_dim": 48, "model.tokens_mlp_dim": None}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    datasets.prepare_embedded(DATASET, str(folder))
    return folder


def page(*workdirs, ema=False):
    return report.make([str(path) for path in workdirs], ema=ema, data_dir=None, evaluates=True, command="c")


def test_a_run_of_another_model_has_all_but_what_only_a_mixer_has(data_dir, tmp_path, capsys):
    run = make_run(tmp_path / "vit", data_dir, **VIT)
    text = page(run)
    assert re.search(r"^no model at work in the page: .*this takes a Mixer; ", capsys.readouterr().err, re.MULTILINE)
    assert re.search(r"<h1>(.*)</h1>", text)[1] == "Run vit"
    last = read_metrics(run)[-1]
    right = sum(int(found) for found in re.findall(r"<summary>(\d+) right</summary>", text))
    assert right == round(last["val/accuracy"] * last["val/count"]), "all sixteen images are drawn"
    assert "<summary>4 classes, the most accurate first</summary>" in text
    assert "with the weights of step 90." in text
    assert "No drawings of the weights, and no accuracy after each block: they are of Mixers, and this is ViT-" in text
    assert "The model is not part of this page" in text
    assert "this takes a Mixer" in text
    assert not re.search("No predictions|Token-mixing units of block 0|Filters of the stem", text)
    charts = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])["charts"]
    assert "Accuracy of the head after each block" not in {chart["title"] for chart in charts}


def test_a_page_of_averaged_parameters_says_so(data_dir, tmp_path):
    run = make_run(tmp_path / "run", data_dir, **{"model.tokens_mlp_dim": 8, "ema_decay": 0.5})
    of_step = {
        False: ("with the weights of step 90.", "Its weights, of step 90, are", ">Weights at step 90<"),
        True: (
            "with the averaged parameters of step 90.", "Its averaged parameters, of step 90, are",
            ">Averaged parameters at step 90<",
        ),
    }  # fmt: skip
    for ema in (False, True):
        text = page(run, ema=ema)
        assert all(said in text for said in of_step[ema])
        assert not any(said in text for said in of_step[not ema])
