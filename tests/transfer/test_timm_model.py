"""Files that we write give the same logits in timm, and files of timm in our model. Needs torch: `make test-runtimes`.

timm 1.0.31 with torch 2.13.0 on a CPU: logits of the models below differ from ours by up to 6e-7 of their largest, and
by 7e-5 where GELU is the exact one.
"""

import functools
import io
import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import FrozenConfigDict
from PIL import Image
from random_models import flat, logits, make_params

from mixer import models
from mixer.config import recipe
from mixer.export import export_folder
from mixer.transfer import model_card, resolution
from mixer.transfer import timm as our_timm
from mixer.transfer.loading import load
from mixer.transfer.weights import Weights

torch = pytest.importorskip("torch")
# torchvision registers shapes of operators that only its CUDA builds have; without them this import fails.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
timm = pytest.importorskip("timm")
safetensors_torch = pytest.importorskip("safetensors.torch")

TOLERANCE = 5e-6  # of the largest logit

TINY = models.create("Ti/8", 5, num_blocks=3, hidden_dim=48, tokens_mlp_dim=20, channels_mlp_dim=100)


def extended(model, params, factor):
    """Returns the block-diagonal model of Appendix C for larger images."""
    wider = model.clone(tokens_mlp_dim=model.tokens_mlp_dim * factor**2)
    return wider, resolution.extend(params, resolution.grid_of(params) * factor)


CASES = {
    "S/16": lambda: (models.create("S/16", 10), make_params(models.create("S/16", 10), 224), 224),
    "B/16": lambda: (models.create("B/16", 21), make_params(models.create("B/16", 21), 224), 224),
    "no head": lambda: (models.create("S/32", 0), make_params(models.create("S/32", 0), 224), 224),
    "Ti/16": lambda: (models.create("Ti/16", 10), make_params(models.create("Ti/16", 10), 64), 64),
    "odd widths": lambda: (TINY, make_params(TINY, 32), 32),
    "extended": lambda: (*extended(TINY, make_params(TINY, 32), 2), 64),
}


@functools.cache
def case(name):
    model, params, size = CASES[name]()
    # These kernels keep the scale of their input, so that activations reach the curved part of GELU.
    kernel = lambda leaf: leaf / np.float32(0.3 * np.sqrt(leaf.size / leaf.shape[-1]))  # noqa: E731
    params = jax.tree.map(lambda leaf: kernel(leaf) if leaf.ndim > 1 else leaf, params)
    images = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), np.uint8).astype(np.float32) / 127.5 - 1
    return model, params, size, images


def torch_model(model, size):
    """Makes the model by the line of the model card, with the tanh form of GELU as the card says."""
    line = our_timm.constructor(model, size)
    assert line.endswith(")")
    gelu = functools.partial(torch.nn.GELU, approximate="tanh")
    return eval(f"{line[:-1]}, act_layer=gelu)", {"timm": timm, "gelu": gelu}).eval()


def torch_logits(module, images):
    with torch.inference_mode():
        return module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def assert_close(found, expected):
    assert found.shape == expected.shape
    largest = np.abs(expected).max()
    assert np.abs(found - expected).max() <= TOLERANCE * largest, np.abs(found - expected).max() / largest
    assert np.std(expected, axis=0).max() > 10 * TOLERANCE * largest  # different images have different logits


@pytest.mark.parametrize("name", CASES)
def test_an_exported_file_gives_the_same_logits_in_timm(name, tmp_path):
    model, params, size, images = case(name)
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        our_timm.save_params(file, params)
    module = torch_model(model, size)
    module.load_state_dict(safetensors_torch.load_file(path), strict=True)
    assert_close(torch_logits(module, images), logits(model, params, images))


@pytest.mark.parametrize("name", ["S/16", "S/32, larger", "no head"])
def test_an_exported_folder_is_loaded_by_name(name, tmp_path, monkeypatch):
    if name == "S/32, larger":
        small = models.create("S/32", 5)
        model, params = extended(small, make_params(small, 64), 2)
        size = 128
        images = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), np.uint8).astype(np.float32) / 127.5 - 1
    else:
        model, params, size, images = case(name)
    np.savez(tmp_path / "m.npz", **flat(params))
    export_folder(load(str(tmp_path / "m.npz")), epath.Path(tmp_path / "folder"))
    monkeypatch.chdir(tmp_path)
    gelu = functools.partial(torch.nn.GELU, approximate="tanh")
    module = timm.create_model("local-dir:folder", pretrained=True, act_layer=gelu).eval()
    assert_close(torch_logits(module, images), logits(model, params, images))
    config = timm.data.resolve_model_data_config(module)
    assert tuple(config["input_size"]) == (3, size, size)
    assert tuple(config["mean"]) == tuple(config["std"]) == (0.5,) * 3
    assert config["interpolation"] == "box"
    assert timm.data.create_transform(**config, is_training=False)


def test_the_lines_of_the_card_load_a_named_variant_strictly(tmp_path, monkeypatch):
    model, params, _, images = case("S/16")
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        our_timm.save_params(file, params)
    weights = Weights(params, "m.npz")
    card = model_card.card(weights, to="timm", file=path.name, command="", measured={})
    pictures, code = (block.partition("```")[0] for block in card.split("```python\n")[1:3])
    assert "checkpoint_path" in code
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 300, 3), np.uint8)).save("cat.jpg")

    def loaded(code):
        names = {"functools": functools}
        exec(pictures + code, names)
        assert names["probabilities"].shape == (1, model.num_classes)
        expected = jax.nn.softmax(logits(model, params, names["images"] / np.float32(127.5) - 1))
        np.testing.assert_allclose(names["probabilities"], expected, atol=1e-3)  # timm's GELU is the exact one
        return names["model"]

    gelu = card.rpartition("```python\n")[2].partition("\n")[0]
    module = loaded(code.replace("checkpoint_path", f"{gelu}, checkpoint_path"))
    assert not module.training
    assert_close(torch_logits(module, images), logits(model, params, images))

    arrays = safetensors_torch.load_file(path)
    bias = arrays.pop("blocks.3.norm1.bias")
    safetensors_torch.save_file(arrays, path)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"blocks\.3\.norm1\.bias\""):
        loaded(code)
    safetensors_torch.save_file({**arrays, "blocks.3.norm1.bias": bias, "blocks.8.norm1.bias": bias.clone()}, path)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"blocks\.8\.norm1\.bias\""):
        loaded(code)


def test_the_card_of_a_folder_names_classes(tmp_path, monkeypatch, capsys):
    params = make_params(models.create("S/32", 3), 224)
    config = recipe.base()
    config.model.variant, config.loss = "S/32", "softmax_xent"
    weights = Weights(params, "runs/a", FrozenConfigDict(config), class_names=["ant", "bee", "cat"], step=1)
    monkeypatch.chdir(tmp_path)
    export_folder(weights, epath.Path("m_timm"))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 300, 3), np.uint8)).save("cat.jpg")
    code = "".join(re.findall(r"^```python\n(.*?)^```", pathlib.Path("m_timm/README.md").read_text(), re.M | re.S))
    names = {}
    exec(code, names)
    model = weights.model()
    expected = jax.nn.softmax(logits(model, params, names["images"] / np.float32(127.5) - 1))
    np.testing.assert_allclose(names["probabilities"], expected, atol=1e-5)
    assert sorted(word for word in capsys.readouterr().out.split() if word.isalpha()) == ["ant", "bee", "cat"]


ODD = {
    f"model.{name}": getattr(TINY, name) for name in ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")
}


@pytest.mark.parametrize(
    ("variant", "size", "settings"),
    [("S/32", 224, {}), ("Ti/8", 32, ODD), ("S/32", 448, {"model.tokens_mlp_dim": 1024})],
    ids=["named", "odd widths", "larger"],
)
@pytest.mark.parametrize(
    ("crop", "expected"),
    [("resize_small", {"interpolation": "box", "crop_mode": "center"}),
     ("resize_square", {"interpolation": "bilinear", "crop_mode": "squash"})],
)  # fmt: skip
def test_the_card_tells_timm_how_pictures_were_prepared(variant, size, settings, crop, expected, tmp_path, monkeypatch):
    """Without it, timm would take ImageNet's mean or 224 pixels for some of these."""
    monkeypatch.chdir(tmp_path)
    config = recipe.base()
    config.update_from_flattened_dict(
        {"model.variant": variant, "input.image_size": size, "input.eval_resize": None, "input.eval_crop": crop}
        | settings
    )
    widths = {name.removeprefix("model."): value for name, value in settings.items()}
    params = make_params(models.create(variant, 5, **widths), size)
    weights = Weights(params, "runs/a", FrozenConfigDict(config), step=1)
    with open("m.safetensors", "wb") as file:
        our_timm.save_params(file, params)
    text = model_card.card(weights, to="timm", file="m.safetensors", command="", measured={})
    pixels = np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8)
    Image.fromarray(pixels).resize((600, 480), Image.Resampling.BICUBIC).save("cat.png")
    pathlib.Path("cat.png").rename("cat.jpg")
    names = {}
    exec("".join(block.partition("```")[0] for block in text.split("```python\n")[1:3]), names)
    found = timm.data.resolve_model_data_config(names["model"])
    assert found.pop("crop_pct") == size / {32: 37, 224: 256, 448: 512}[size]
    assert found == {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3, **expected}
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(names["model"]), is_training=False)
    prepared = transform(Image.open("cat.jpg").convert("RGB")).numpy().transpose(1, 2, 0)
    assert np.abs(prepared - (names["images"][0] / 127.5 - 1)).mean() < 0.04


def test_stochastic_depth_is_the_same_in_every_block_of_timm():
    """The card says so: here it grows with the block."""
    module = timm.create_model("mixer_s32_224", drop_path_rate=0.1)
    assert [block.drop_path.drop_prob for block in module.blocks] == [0.1] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["S/16", "odd widths", "extended"])
def test_a_file_of_timm_gives_the_same_logits_here(name, dtype, tmp_path):
    model, _, size, images = case(name)
    torch.manual_seed(0)
    module = torch_model(model, size).to(dtype)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / "m.safetensors"
    safetensors_torch.save_file(module.state_dict(), path)
    weights = load(str(path))
    assert weights.model() == model
    assert weights.image_size == size
    assert_close(torch_logits(module.float(), images), logits(model, weights.params, images))


def test_the_exact_form_of_gelu_gives_other_logits():
    """The card warns of this: without the tanh form, logits differ by more than the tolerance."""
    model, params, size, images = case("odd widths")
    file = io.BytesIO()
    our_timm.save_params(file, params)
    module = eval(our_timm.constructor(model, size), {"timm": timm}).eval()
    module.load_state_dict(safetensors_torch.load(file.getvalue()), strict=True)
    expected = logits(Weights(params, "m").model(), params, images)
    assert np.abs(torch_logits(module, images) - expected).max() > 3 * TOLERANCE * np.abs(expected).max()
