"""IREE, onnxruntime and OpenVINO open what we write by the code of its card, and agree: `make test-runtimes`.

It makes the environments. That of these tests has jax2onnx; the others have a runtime, but neither JAX nor this
project.
"""

import json
import os
import pathlib
import re
import subprocess

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import FrozenConfigDict
from PIL import Image
from random_models import WIDTHS, logits, make_model, make_params

from mixer import export, models
from mixer.config import recipe
from mixer.transfer.format import Program
from mixer.transfer.weights import Weights

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 2e-6  # of the largest; seen: up to 4e-7 in float32, and 2e-3 in bfloat16
SAVING = "\nnumpy.savez('found.npz', images=images, logits=logits, probabilities=probabilities)\n"


@pytest.fixture(autouse=True)
def _rank_promotion():
    """Allows what tests forbid elsewhere: jax2onnx's own Conv adds its bias so."""
    with jax.numpy_rank_promotion("allow"):
        yield


def python_of(runtime):
    python = ROOT / f".venv-{runtime}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is missing: make test-runtimes")
    return python


def scaled(params):
    """Returns kernels that keep the scale of their input, so that activations reach the curved part of GELU."""
    return jax.tree.map(lambda x: x / np.float32(0.3 * np.sqrt(x.size / x.shape[-1])) if x.ndim > 1 else x, params)


def weights_of(model, options=None, **settings):
    """Returns the weights of a run of this small model."""
    config = recipe.base()
    options = {f"model.{name}": value for name, value in {**WIDTHS, **(options or {})}.items()}
    size = {"model.variant": "Ti/4", "input.image_size": 16, "input.eval_resize": 18}
    config.update_from_flattened_dict({**size, **options, **settings})
    params = scaled(make_params(model, 16))
    return Weights(params, "runs/small", FrozenConfigDict(config), [*"abcdefghij"], step=7)


@pytest.fixture(scope="module", params=["S/16", "small, sigmoid"])
def weights(request):
    if request.param == "S/16":
        return Weights(scaled(make_params(models.create("S/16", 10), 224)), "m.npz", class_names=[*"abcdefghij"])
    return weights_of(make_model(10), loss="sigmoid_xent")


def written(weights, to, folder, program=None):
    """Exports to a folder that has a picture. Returns the card's text."""
    out = epath.Path(folder) / f"m.{to}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 75, 3), np.uint8)).resize((300, 240)).save(
        folder / "cat.png"
    )
    (folder / "cat.png").rename(folder / "cat.jpg")
    _, card = export.export(weights, to, out, ema=False, command="", program=program)
    return card.read_text()


def blocks(card, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def run(python, code, folder):
    """Runs code in another environment. Returns the arrays that it leaves in found.npz, and what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code + SAVING], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        return dict(found), done.stdout


def assert_agrees(weights, found):
    images = found["images"]
    model, params = weights.model(), weights.params
    expected = logits(model, params, images.astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    probabilities = getattr(jax.nn, weights.exported().probabilities)(expected)
    np.testing.assert_allclose(found["probabilities"], probabilities, rtol=0, atol=1e-5)
    assert np.ptp(images) > 100
    assert np.ptp(probabilities) > 0.05


def assert_installed(python, named):
    """Checks that an environment has the versions that a card names."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps([m.version(n) for n in sys.argv[1:]]))"
    packages = dict(re.findall(r"([\w-]+)==([\d.]+)", named))
    assert packages
    found = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == list(packages.values())


@pytest.mark.parametrize("program", [Program(1), Program(3, ("cpu",))], ids=["one image", "three"])
def test_iree(weights, program, tmp_path):
    python = python_of("iree")
    card = written(weights, "stablehlo", tmp_path, program)
    (shell, _) = blocks(card, "sh")
    install, _, compiling = shell.partition("\n")
    assert_installed(python, install)
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", compiling], cwd=tmp_path, env=environment, check=True)
    pictures, _, running, naming = blocks(card)
    found, printed = run(python, pictures + running + naming, tmp_path)
    assert len(found["logits"]) == program.batch_size
    assert printed.count("%") == 3 * program.batch_size
    assert_agrees(weights, found)


def test_iree_refuses_a_free_batch(tmp_path):
    """The card and docs/exports.md say so. Where this fails, IREE has learned it."""
    python = python_of("iree")
    card = written(weights_of(make_model(10)), "stablehlo", tmp_path)
    assert "IREE 3.13.0 takes it with a fixed batch only" in card
    command = ["iree-compile", "m.stablehlo.mlir", "--iree-input-type=stablehlo", "--iree-hal-target-device=local"]
    done = subprocess.run(
        [python.parent / command[0], *command[1:], "-o", "m.vmfb"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "explicitly marked illegal" in done.stderr


def test_onnxruntime(weights, tmp_path):
    pytest.importorskip("jax2onnx")
    python = python_of("onnxruntime")
    card = written(weights, "onnx", tmp_path)
    assert_installed(python, re.search(r"`pip install (.*?)`", card)[1])
    pictures, running, naming = blocks(card)
    found, printed = run(python, pictures + running + naming, tmp_path)
    assert printed.count("%") == 3
    assert_agrees(weights, found)
    three = pictures + "images = numpy.concatenate([images, 255 - images, images[:, ::-1]])\n" + running
    assert_agrees(weights, run(python, three, tmp_path)[0])


def test_openvino(tmp_path):
    pytest.importorskip("jax2onnx")
    python = python_of("onnxruntime")
    weights = weights_of(make_model(10), loss="softmax_xent")
    card = written(weights, "onnx", tmp_path)
    pictures, running, _ = blocks(card)
    assert_installed(python, "openvino==" + re.search(r"OpenVINO (2[\d.]+)\)", card)[1])
    call = re.search(r"`(openvino\.Core\(\).*?)`\.", card)[1]
    code = f"import openvino\nmodel = {call}\nlogits = model(images)[0]\n"
    found, _ = run(python, pictures + code + running.partition("images})\n")[2], tmp_path)
    assert_agrees(weights, found)


OPTIONS = {
    "untied": {"token_mixing": "untied", "token_groups": 4},
    "grouped": {"token_mixing": "grouped", "token_groups": 4},
    "views": {"token_mixing": "views", "token_groups": 4},
    "pyramid": {"pyramid": (16, 4)},
    "no head": {},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_other_models_in_onnx(name, tmp_path, capfd):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = make_model(0 if name == "no head" else 10, **OPTIONS[name])
    weights = weights_of(model, OPTIONS[name])
    if name == "no head":
        weights = Weights(weights.params, "m.npz")
    written(weights, "onnx", tmp_path)
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    output = "pre_logits" if name == "no head" else "logits"
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    expected = logits(model, weights.params, images / np.float32(127.5) - 1)
    for count in (1, 3):
        (found,) = session.run([output], {"images": images[:count]})
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=TOLERANCE * np.abs(expected).max())
