"""The Python interface: what docs/python.md says, and the numbers of the commands."""

import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from absl import logging as absl_logging
from test_predict import NAMES, PIXELS, RESIZE, ema_params, logits_of, params, softmax_run, write_image  # noqa: F401

import mixer
from mixer import api
from mixer.runtime.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]

# ruff: noqa: F811 (pytest finds a fixture by the name under which it is imported)


def test_a_loaded_run_gives_the_logits_of_the_command(softmax_run, params, ema_params, tmp_path):
    paths = [write_image(tmp_path / f"{n}.png", 20 + n, 20, seed=n) for n in range(3)]
    model = mixer.load(softmax_run)
    assert (model.image_size, model.class_names) == (PIXELS, NAMES)
    images = model.read(paths)
    assert (images.shape, images.dtype) == ((3, PIXELS, PIXELS, 3), np.uint8)
    expected = np.stack([logits_of(path, params) for path in paths])
    np.testing.assert_allclose(model.logits(images), expected, rtol=1e-5, atol=1e-5)
    averaged = mixer.load(softmax_run, ema=True).logits(images)
    expected = np.stack([logits_of(path, ema_params) for path in paths])
    np.testing.assert_allclose(averaged, expected, rtol=1e-5, atol=1e-5)


def test_a_model_shows_itself_in_a_line():
    model = mixer.create("Ti/8", 10, image_size=32)
    assert repr(model) == "Model(Mixer-Ti/8, 32 pixels, 10 classes, 563,658 parameters)"
    assert repr(mixer.create("BiT-R14x0.5", 0, image_size=8)).startswith("Model(BiT-R14x0.5, 8 pixels, no head, ")


def test_features_are_what_the_head_gets(softmax_run, tmp_path):
    model = mixer.load(str(softmax_run))
    images = model.read([str(write_image(tmp_path / "a.png", 20, 30, seed=0))])
    head = model.params["head"]
    logits = model.features(images) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(logits, model.logits(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "channels"),
    [
        ("Ti/8", 128),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("ViT-S/16", 384), ("BiT-R50x1", 2048))),
    ],
)
def test_created_models(variant, channels):
    model = mixer.create(variant, 7, image_size=32)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert model.features(images).shape == (2, channels)
    assert np.all(model.logits(images) == 0)  # a new head is zero
    other = mixer.create(variant, 0, image_size=32, seed=1)
    assert np.abs(other.features(images) - model.features(images)).max() > 0.1
    with pytest.raises(ValueError, match="the model has no head, so no logits"):
        other.logits(images)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.zeros((1, 32, 32, 3), np.float32), "images are float32 [1, 32, 32, 3]; expected uint8 ['n', 32, 32, 3]"),
        (np.zeros((32, 32, 3), np.uint8), "images are uint8 [32, 32, 3]"),
        (np.zeros((1, 32, 48, 3), np.uint8), "images are uint8 [1, 32, 48, 3]"),
        ([[0, 1], [2, 3]], "images are int64 [2, 2]"),
    ],
)
def test_another_array_is_refused(images, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        mixer.create("Ti/8", 2, image_size=32).features(images)


def test_what_cannot_be_read_or_loaded_is_told(softmax_run, tmp_path):
    (tmp_path / "notes.jpg").write_text("text")
    model = mixer.load(softmax_run)
    with pytest.raises(ValueError, match=r"notes.jpg: unknown format"):
        model.read([tmp_path / "notes.jpg"])
    with pytest.raises(ValueError, match=r"nowhere.jpg: missing"):
        model.read(["nowhere.jpg"])
    with pytest.raises(TypeError, match=r"read takes a list of paths, such as \['cat.jpg'\]"):
        model.read("cat.jpg")
    glob = f"sorted(pathlib.Path('{tmp_path}').glob('*.jpg'))"
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: a folder; give its files, such as {glob}")):
        model.read([tmp_path])
    none = model.read([])
    assert none.shape == (0, PIXELS, PIXELS, 3)
    assert model.logits(none).shape == (0, len(NAMES))
    assert model.features(none).shape == (0, *model.params["head"]["kernel"].shape[:1])
    with pytest.raises(UserError, match="no such file or folder"):
        mixer.load("B/17-i1k")
    with pytest.raises(ValueError, match="model variant 'B'"):
        mixer.create("B", 2)
    for name, number, least in (("image_size", 0, 1), ("image_size", -8, 1), ("num_classes", -1, 0)):
        with pytest.raises(ValueError, match=f"{name}={number}; it must be at least {least}"):
            mixer.create("Ti/8", **{"num_classes": 2, name: number})
    with pytest.raises(AttributeError, match="module 'mixer' has no attribute 'laod'"):
        _ = mixer.laod


def test_many_images_are_computed_in_parts(monkeypatch):
    model = mixer.create("Ti/4", 3, image_size=8)
    images = np.random.default_rng(0).integers(0, 256, (130, 8, 8, 3), np.uint8)
    seen, apply = [], api._apply

    def noting(module, params, part):
        seen.append(len(part))
        return apply(module, params, part)

    monkeypatch.setattr(api, "_apply", noting)
    found = model.features(images)
    assert seen == [64, 64, 2]
    np.testing.assert_allclose(found[100:], model.features(images[100:]), rtol=1e-5, atol=1e-5)
    assert found.shape == (130, 128)


def test_a_loaded_models_parameters_are_on_the_device(softmax_run):
    model = mixer.load(softmax_run)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.params))
    assert len({model, mixer.load(softmax_run)}) == 2


def test_several_threads_that_load_leave_logging_as_it_was(softmax_run):
    level = absl_logging.get_absl_logger().level
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            list(threads.map(mixer.load, [softmax_run] * 4))
    assert absl_logging.get_absl_logger().level == level


def test_loading_a_run_says_nothing_and_leaves_logging_as_it_was(softmax_run):
    script = f"""
import logging, mixer
from absl import logging as absl_logging
before = absl_logging.get_absl_logger().level
mixer.load({str(softmax_run)!r})
print(logging.root.handlers, logging.root.level, absl_logging.get_absl_logger().level == before)
logging.basicConfig(level=logging.INFO)  # of the notebook: it still has an effect
absl_logging.warning("still shown")
print(logging.root.level)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[] 30 True\n20\n"
    assert done.stderr == "WARNING:absl:still shown\n"


def test_importing_mixer_imports_nothing_else():
    script = "import sys, mixer; print(dir(mixer), {'jax', 'numpy', 'absl'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    names, _, imported = done.stdout.rpartition("]")
    assert imported == " set()\n"
    assert all(f"'{name}'" in names for name in ("Model", "create", "load", "__version__"))  # what Jupyter completes


def test_the_page_runs_as_written(softmax_run, tmp_path, monkeypatch):
    """Every block of Python on the page, one after the other, where runs/pets and cat.jpg are."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/pets").symlink_to(softmax_run)
    write_image(tmp_path / "cat.jpg", 20, 24, seed=0)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    scope: dict = {}
    for block in blocks:
        exec(block.replace("224", "32"), scope)
    assert scope["features"].shape[0] == 1
