"""Model cards: what they say of runs, of published checkpoints and of unknown files, and the code they show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import FrozenConfigDict
from random_models import make_model, make_params

from mixer import models
from mixer.config import recipe
from mixer.config.settings import SETTINGS
from mixer.training import history
from mixer.transfer import model_card
from mixer.transfer.published import PUBLISHED
from mixer.transfer.weights import Weights

NAMES = [f"n{number:08d}" for number in range(1000)]
MEASURED = {"accuracy": 0.76443, "count": 50000, "loss": 1.0}


def make_weights(source="runs/b16", config=None, classes=1000, averaged=False):
    """Returns weights with the shapes of B/16 that take no memory."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(models.create("B/16", classes).init, jax.random.key(0), image)["params"]
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    if config is None:
        return Weights(params, source)
    return Weights(params, source, FrozenConfigDict(config), NAMES[:classes], step=93_000, averaged=averaged)


def facts(text):
    lines = [line for line in text.splitlines() if line.startswith("- **")]
    return dict(line.removeprefix("- **").split(":** ", 1) for line in lines)


def card(weights, to="npz", file="m.npz", measured=None):
    return model_card.card(weights, to=to, file=file, command="python -m mixer.export", measured=measured or {})


def test_the_card_of_the_papers_recipe():
    config = recipe.imagenet1k("B/16")
    text = card(make_weights(config=config), measured=MEASURED)
    assert text.startswith(f"{model_card.MARK}\n\n# Mixer-B/16, 224 px\n")
    assert facts(text) == {
        "Parameters": "59,880,472",
        "Widths": "12 blocks of 768 channels; token-mixing MLPs of 384, channel-mixing MLPs of 3072",
        "Classes": "1,000: n00000000, n00000001, n00000002, ... (`classes.txt` in the run's folder has all)",
        "Input": "float32 [batch, 224, 224, 3] in [-1, 1], which is uint8 / 127.5 - 1, RGB, cut into patches of 16x16",
        "Output": "float32 [batch, 1000], logits; a sigmoid of each gives the probabilities",
        "Forward pass": "25.2 GFLOP an image",
        "Format": "the names and axes of the published MLP-Mixer checkpoints, `.npz`",
        "Weights": "`runs/b16`",
        "Data": "imagenet2012, split train[:99%]",
        "Started from": "random parameters",
        "Loss": "sigmoid cross-entropy",
        "Optimizer": "adam, weight decay 0.1, gradient clipped to norm 1",
        "Learning rate": "0.001, linear schedule after 10,000 steps of warm-up",
        "Batch size": "4,096",
        "Augmentation": "Inception crops, flips, mixup 0.5, RandAugment of 2 layers, magnitude 15, no colour jitter",
        "Regularisation": "stochastic depth 0.1",
        "Steps": "93,000 taken; planned: 300 epochs",
    }
    assert (
        "**76.44%** of 50,000 images of imagenet2012, split validation, the shorter side brought to 256 pixels and the "
        "central 224x224 taken (eval_crop=resize_small, eval_resize=256). Measured by the run at step 93,000, in "
        "bfloat16." in text
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"stem_init": "whitening"}, "random parameters, but for a stem that whitens patches"),
        ({"model.identity_init": True}, "random parameters; each block begins as the identity"),
    ],
)
def test_the_card_of_a_run_that_does_not_begin_as_the_papers(changed, told):
    config = recipe.base()
    recipe.duration(config, "total", steps=20_000)
    config.update_from_flattened_dict(changed)
    assert facts(card(make_weights(config=config), measured=MEASURED))["Started from"] == told


def test_the_card_of_a_run_with_other_settings():
    config = recipe.base()
    config.update_from_flattened_dict(
        {"init_from": "B/16-i21k", "ema_decay": 0.999, "input.flip": False, "input.eval_crop": "resize_square",
         "input.eval_resize": 240, "loss": "softmax_xent", "optimizer.name": "momentum", "optimizer.clip_norm": 0.0,
         "input.crop": "random", "model.dropout": 0.1}
    )  # fmt: skip
    recipe.duration(config, "total", steps=20_000)
    text = card(make_weights(config=config, classes=3, averaged=True), measured=MEASURED)
    found = facts(text)
    assert found["Classes"] == "3: n00000000, n00000001, n00000002"
    assert found["Output"] == "float32 [batch, 3], logits; their softmax gives the probabilities"
    assert found["Weights"] == "`runs/b16`, averaged over the steps with decay 0.999"
    assert found["Started from"] == "B/16-i21k"
    assert found["Optimizer"] == "momentum, weight decay 0.1, gradient not clipped"
    assert found["Augmentation"] == "random crops, no flips, no mixup, no RandAugment, no colour jitter"
    assert found["Regularisation"] == "dropout 0.1"
    assert found["Steps"] == "93,000 taken; planned: 20,000 steps"
    assert "brought to 240x240 pixels and the central 224x224 taken (eval_crop=resize_square, eval_resize=240)" in text


@pytest.mark.parametrize("name", ["loss", "input.crop", "input.eval_crop"])
def test_every_choice_has_words(name):
    """The words come from the registries, so a new entry needs no change of the card."""
    texts = set()
    for choice in SETTINGS[name].allowed_names:
        config = recipe.imagenet1k("B/16")
        config.update_from_flattened_dict({name: choice})
        texts.add(card(make_weights(config=config), measured=MEASURED))
    assert len(texts) == len(SETTINGS[name].allowed_names)


def test_the_changes_of_a_run_on_the_way_to_the_checkpoint(tmp_path):
    starts = {
        0: "seed: 0 before, 1 now",
        80_000: "ema_decay: 0 before, 0.9 now",
        50_000: "batch_size: 4096 before, 8192 now",
        60_000: "",
        93_000: "mixup.p: 0.5 before, 0 now",
    }
    for step, change in starts.items():
        changes = [change] if change else []
        history.add(tmp_path, history.Start(step, "", "", {}, {}, 4096, {}, {}, {}, changes, changes and ["the data"]))
    weights = dataclasses.replace(make_weights(config=recipe.imagenet1k("B/16")), workdir=epath.Path(tmp_path))
    lines = card(weights).splitlines()
    told = [line for line in lines if line.startswith(("- from step", "The run was", "After this"))]
    assert told == [
        "The run was continued with changes; what stands above is how it was at last:",
        "- from step 0: seed: 0 before, 1 now; the data",
        "- from step 50,000: batch_size: 4096 before, 8192 now; the data",
        "After this checkpoint the run was continued with changes, and what stands above is how it was then:",
        "- from step 93,000: mixup.p: 0.5 before, 0 now; the data",
    ]
    assert "continued with changes" in card(weights)
    assert "continued with changes" not in card(dataclasses.replace(weights, workdir=None))


def test_images_without_a_label_are_not_those_of_an_accuracy():
    weights = make_weights(config=recipe.imagenet1k("B/16"))
    text = card(weights, measured={"accuracy": 0.8, "count": 10, "labelled": 5})
    assert "**80.00%** of 5 images of imagenet2012" in text
    text = card(weights, measured={"count": 10, "labelled": 0})
    assert "## Accuracy\n\nUnknown: no image of imagenet2012, split validation, has a label.\n" in text


def test_a_step_at_which_the_run_was_not_evaluated_has_no_accuracy():
    text = card(make_weights(config=recipe.imagenet1k("B/16")))
    assert "## Accuracy\n\nUnknown: the run was not evaluated at step 93,000.\n" in text


def test_training_and_accuracy_of_an_unknown_file_are_unknown():
    text = card(make_weights("m.npz"))
    found = facts(text)
    assert {name: found[name] for name in ("Data", "Started from", "Recipe", "Steps")} == dict.fromkeys(
        ("Data", "Started from", "Recipe", "Steps"), "unknown"
    )
    assert found["Classes"] == "1,000, their names are unknown"
    assert found["Output"] == "float32 [batch, 1000], logits"
    assert found["Weights"] == "`m.npz`"
    assert "## Accuracy\n\nUnknown.\n" in text
    assert "as published" not in text


PAPERS = ("random parameters", "the paper's (arXiv 2105.01601, Table 4)", "300 epochs")


@pytest.mark.parametrize(
    ("short", "classes", "training", "named"),
    [
        ("i1k", 1000, ("ImageNet-1k", *PAPERS), "1,000: tench (n01440764), goldfish (n01443537), "),
        ("i21k", 21843, ("ImageNet-21k", *PAPERS), "21,843: organism (n00004475), "),
        ("sam", 1000, ("ImageNet-1k", "unknown", "SAM (arXiv 2106.01548)", "unknown"), "1,000: tench (n01440764), "),
        ("gsam", 1000, ("ImageNet-1k", "unknown", "GSAM (arXiv 2203.08065)", "unknown"), "1,000: tench (n01440764), "),
    ],
)  # fmt: skip
def test_a_published_checkpoint_has_what_its_authors_say(short, classes, training, named):
    text = card(make_weights(f"B/16-{short}", classes=classes))
    found = facts(text)
    assert tuple(found[name] for name in ("Data", "Started from", "Recipe", "Steps")) == training
    assert found["Classes"].startswith(named)
    assert found["Classes"].endswith(f"... (the list of {training[0]}, as published)")
    assert found["Weights"].startswith(f"`B/16-{short}`, https://storage.googleapis.com/mixer_models/")
    assert "\n\nThis is as published, not measured here.\n\n## Accuracy\n" in text
    accuracy = (
        "76.44% on the validation split of ImageNet, as published (arXiv 2105.01601, Table 3), not measured here."
    )
    assert f"## Accuracy\n\n{accuracy if short == 'i1k' else 'Unknown.'}\n" in text


def test_all_published_checkpoints_have_a_card():
    for source in PUBLISHED:
        assert facts(card(Weights(make_params(make_model()), source)))["Data"].startswith("ImageNet-")


def test_a_model_without_head_gives_its_pre_logits():
    text = card(make_weights(classes=0), to="stablehlo", file="m.stablehlo")
    assert facts(text)["Classes"] == "none, the model has no head"
    assert facts(text)["Output"] == "float32 [batch, 768], the pre-logits"
    assert "pre_logits = model.call(images)" in text


@pytest.mark.parametrize(
    ("to", "file", "shape", "lines"),
    [
        ("npz", "my model.npz", "float32 [batch, 224, 224, 3] in [-1, 1], which is uint8 / 127.5 - 1",
         ["--config.init_from='my model.npz'", 'numpy.load("my model.npz")']),
        ("timm", "m.safetensors", "float32 [batch, 3, 224, 224] in [-1, 1], which is uint8 / 127.5 - 1",
         ['model = timm.create_model("mixer_b16_224", num_classes=1000, checkpoint_path="m.safetensors")',
          "6e-7 of the largest logit", "7e-5 with the exact form", "mean 0.5 and standard deviation 0.5",
          'functools.partial(torch.nn.GELU, approximate="tanh")', '"input_size": [3, 224, 224],', '"crop_pct": 0.875,',
          "half of it has the same mean"]),
        ("stablehlo", "m.stablehlo", "uint8 [batch, 224, 224, 3], 0 to 255",
         ["from jax import export", 'model = export.deserialize(bytearray(open("m.stablehlo", "rb").read()))',
          "logits = model.call(images)"]),
        ("onnx", "m.onnx", "uint8 [batch, 224, 224, 3], 0 to 255",
         ['(logits,) = model.run(["logits"], {"images": images})', "probabilities = numpy.exp(logits - logits.max(",
          '("m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})']),
    ],
)  # fmt: skip
def test_each_format_says_what_goes_in_and_how_to_load_it(to, file, shape, lines):
    text = card(make_weights(), to=to, file=file)
    assert facts(text)["Input"].startswith(shape)
    for line in lines:
        assert line in text
    assert text.count("```") % 2 == 0


@pytest.mark.parametrize(
    ("source", "trained"),
    [("B/16-i1k", "these weights were trained with the tanh form"),
     ("x.npz", "which form these weights were trained with is unknown"),
     ("x.safetensors", "which form these weights were trained with is unknown")],
)  # fmt: skip
def test_the_form_of_gelu_is_named_if_known(source, trained):
    assert f"timm computes GELU exactly by default; {trained}." in card(make_weights(source), to="timm")


def test_a_model_without_a_variant_is_named_by_its_widths():
    weights = Weights(make_params(make_model()), "m.npz")
    assert "# Mixer-2x16/4, 8 px\n" in card(weights)
    text = card(weights, to="timm", file="m.safetensors")  # timm has no name for them
    assert "model = timm.models.mlp_mixer.MlpMixer(num_classes=5, img_size=8, " in text
    assert 'model.load_state_dict(load_file("m.safetensors"))' in text
