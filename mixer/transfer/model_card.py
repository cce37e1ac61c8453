"""A model card in Markdown, written beside every export: what the model is, how it was made, how to load it."""

import json
import shlex
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from mixer import models
from mixer.config import paper
from mixer.config.settings import UNITS
from mixer.data import class_names
from mixer.models.mlp_mixer import MlpMixer
from mixer.transfer import stablehlo, timm
from mixer.transfer.weights import PUBLISHED, Weights

MARK = "<!-- Written by mixer.export, which writes it anew with every export to this name. -->"

_FORMATS = {
    "npz": "the names and axes of the published MLP-Mixer checkpoints, `.npz`",
    "timm": "PyTorch's `timm`, `.safetensors`",
    "stablehlo": f"StableHLO in a `jax.export` artifact, for {', '.join(stablehlo.PLATFORMS)}",
}
_UNKNOWN = "unknown"
_NAMED_CLASSES = 10  # up to which a model's classes are listed

# What their authors say of the published checkpoints, by the end of the short name.
_PAPERS = {
    "Started from": "random parameters",
    "Recipe": "the paper's (arXiv 2105.01601, Table 4)",
    "Steps": "300 epochs",
}
_AS_PUBLISHED = {
    "i1k": {"Data": "ImageNet-1k", **_PAPERS},
    "i21k": {"Data": "ImageNet-21k", **_PAPERS},
    "sam": {"Data": "ImageNet-1k", "Recipe": "SAM (arXiv 2106.01548)"},
    "gsam": {"Data": "ImageNet-1k", "Recipe": "GSAM (arXiv 2203.08065)"},
}


def card(
    weights: Weights, model: MlpMixer, *, to: str, file: str, command: str, ema: bool, measured: dict[str, float]
) -> str:
    """Describes an exported model; whatever is not known is "unknown".

    Args:
      weights: those that were exported.
      model: that they are the parameters of.
      to: the format, "npz", "timm" or "stablehlo".
      file: the exported file's name.
      command: that made it.
      ema: whether the weights are the run's averaged ones.
      measured: accuracy and count of the run's evaluation at this very step; empty if there was none.
    """
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights.params))
    about = {
        "Parameters": f"{parameters:,}",
        "Widths": f"{model.num_blocks} blocks of {model.hidden_dim} channels; token-mixing MLPs of "
        f"{model.tokens_mlp_dim}, channel-mixing MLPs of {model.channels_mlp_dim}",
        "Classes": _classes(weights, model),
        "Input": _input(to, weights.image_size, model.patch_size),
        "Output": _output(weights, model),
        "Forward pass": f"{2 * model.forward_macs(weights.image_size) / 1e9:.3g} GFLOP an image",
        "Format": _FORMATS[to],
    }
    training = {"Weights": _origin(weights, ema), **_training(weights)}
    return "\n".join(
        [
            MARK,
            "",
            f"# Mixer-{models.name_of(model)}, {weights.image_size} px",
            "",
            *_bullets(about),
            "",
            "## Training",
            "",
            *_bullets(training),
            "",
            *(["This is as published, not measured here.", ""] if _published(weights) else []),
            "## Accuracy",
            "",
            _accuracy(weights, ema, measured),
            "",
            "## Loading",
            "",
            *_loading(weights, model, to, file),
            "",
            "This file was made by",
            "",
            *_code("sh", command),
            "",
        ]
    )


def _bullets(facts: dict[str, str]) -> list[str]:
    return [f"- **{name}:** {value}" for name, value in facts.items()]


def _code(language: str, *lines: str) -> list[str]:
    return [f"```{language}", *lines, "```"]


def _classes(weights: Weights, model: MlpMixer) -> str:
    if model.num_classes == 0:
        return "none, the model has no head"
    published = class_names.published(model.num_classes)
    if published and _published(weights):
        named = ", ".join(class_names.readable(published[:3]))
        dataset = class_names.PUBLISHED[model.num_classes]
        return f"{model.num_classes:,}: {named}, ... (the list of {dataset}, as published)"
    if weights.class_names is None:
        return f"{model.num_classes:,}, their names are {_UNKNOWN}"
    if model.num_classes <= _NAMED_CLASSES:
        return f"{model.num_classes}: {', '.join(weights.class_names)}"
    named = ", ".join(weights.class_names[:3])
    return f"{model.num_classes:,}: {named}, ... (`classes.txt` in the run's folder has all)"


def _input(to: str, size: int, patch_size: int) -> str:
    cut = f"RGB, cut into patches of {patch_size}x{patch_size}"
    if to == "stablehlo":
        return f"uint8 [batch, {size}, {size}, 3], 0 to 255, {cut}; any batch size"
    shape = f"[batch, 3, {size}, {size}]" if to == "timm" else f"[batch, {size}, {size}, 3]"
    return f"float32 {shape} in [-1, 1], which is uint8 / 127.5 - 1, {cut}"


def _output(weights: Weights, model: MlpMixer) -> str:
    if model.num_classes == 0:
        return f"float32 [batch, {model.hidden_dim}], the pre-logits"
    logits = f"float32 [batch, {model.num_classes}], logits"
    if weights.config is None:
        return logits
    sigmoid = weights.config.loss == "sigmoid_xent"
    return f"{logits}; {'a sigmoid of each' if sigmoid else 'their softmax'} is what the loss takes for probabilities"


def _origin(weights: Weights, ema: bool) -> str:
    average = f", averaged over the steps with decay {weights.config.ema_decay}" if ema and weights.config else ""
    address = f", {PUBLISHED[weights.source]}" if _published(weights) else ""
    return f"`{weights.source}`{average}{address}"


def _published(weights: Weights) -> str:
    """The end of a published checkpoint's short name, such as "i21k"; empty for all other weights."""
    return weights.source.rpartition("-")[2] if weights.config is None and weights.source in PUBLISHED else ""


def _training(weights: Weights) -> dict[str, str]:
    """What data, for how long, and how: from the run's config, or as published."""
    config = weights.config
    if config is None:
        unknown = dict.fromkeys(("Data", "Started from", "Recipe", "Steps"), _UNKNOWN)
        return unknown | _AS_PUBLISHED.get(_published(weights), {})
    return {
        "Data": f"{config.input.dataset}, split {config.input.train_split}",
        "Started from": config.init_from or "random parameters",
        **_recipe(config),
        "Steps": f"{weights.step:,} taken; planned: {_duration(config, 'total')}",
    }


def _recipe(config: FrozenConfigDict) -> dict[str, str]:
    """How the run was trained, from its config."""
    optimizer, images, model = config.optimizer, config.input, config.model
    crop = {"inception": "Inception crops", "random": "random crops", "pad": "random shifts", "resize": "no crops"}
    augmentation = [crop[images.crop]]
    augmentation += ["flips" if images.flip else "no flips"]
    augmentation += [f"mixup {config.mixup.p:g}" if config.mixup.p else "no mixup"]
    layers, magnitude = images.randaugment.layers, images.randaugment.magnitude
    augmentation += [f"RandAugment of {layers} layers, magnitude {magnitude:g}" if layers else "no RandAugment"]
    dropped = {"dropout": model.dropout, "stochastic depth": model.stochastic_depth}
    return {
        "Loss": {"sigmoid_xent": "sigmoid cross-entropy", "softmax_xent": "softmax cross-entropy"}[config.loss],
        "Optimizer": f"{optimizer.name}, weight decay {optimizer.weight_decay:g}, gradient clipped to "
        f"{f'norm {optimizer.clip_norm:g}' if optimizer.clip_norm else 'nothing'}",
        "Learning rate": f"{optimizer.learning_rate:g}, {optimizer.decay} schedule after {_duration(config, 'warmup')} "
        "of warm-up",
        "Batch size": f"{config.batch_size:,}",
        "Augmentation": ", ".join(augmentation),
        "Regularisation": ", ".join(f"{name} {share:g}" for name, share in dropped.items() if share) or "none besides",
    }


def _duration(config: FrozenConfigDict, name: str) -> str:
    """A duration as the config has it, such as "300 epochs"."""
    unit = next(unit for unit in UNITS if config[f"{name}_{unit}"] is not None)
    amount = config[f"{name}_{unit}"]
    return f"{f'{amount:g}' if unit == 'epochs' else f'{amount:,}'} {unit}"


def _accuracy(weights: Weights, ema: bool, measured: dict[str, float]) -> str:
    config: Any = weights.config
    if _published(weights) == "i1k":  # the paper's others are those after fine-tuning
        accuracy = paper.find(weights.source.removesuffix("-i1k"), "i1k", 224).imagenet
        return (
            f"{accuracy}% on the validation split of ImageNet, as published (arXiv 2105.01601, Table 3), not measured "
            "here."
        )
    if config is None or "accuracy" not in measured:
        when = "" if config is None else f": the run was not evaluated at step {weights.step:,}"
        return f"{_UNKNOWN.capitalize()}{when}."
    images = config.input
    resize = images.eval_resize or round(images.image_size * 8 / 7)
    resized = {
        "resize_small": f"the shorter side brought to {resize} pixels",
        "resize_square": f"brought to {resize}x{resize} pixels",
    }[images.eval_crop]
    return (
        f"**{measured['accuracy']:.2%}** of {measured['count']:,} images of {images.dataset}, split "
        f"{images.eval_split}, {resized} and the central {images.image_size}x{images.image_size} taken "
        f"(eval_crop={images.eval_crop}, eval_resize={resize}). Measured by the run at step {weights.step:,}, "
        f"in {config.model.dtype}."
    )


def _loading(weights: Weights, model: MlpMixer, to: str, file: str) -> list[str]:
    if to == "npz":
        return [
            f"A run of this project starts from it where its model is Mixer-{models.name_of(model)}:",
            "",
            *_code("sh", f"python -m mixer.train --config CONFIG --config.init_from={shlex.quote(file)}"),
            "",
            "Its arrays have the names and axes of the published checkpoints, so code that reads those reads it:",
            "",
            *_code("python", "import numpy", "", f'stem = numpy.load({json.dumps(file)})["stem/kernel"]'),
        ]
    if to == "timm":
        return _loading_timm(weights, model, file)
    outputs = "logits" if model.num_classes else "pre_logits"
    return [
        "With `pip install jax flatbuffers`, and no code of this project:",
        "",
        *_code(
            "python",
            "from jax import export",
            "",
            f'model = export.deserialize(bytearray(open({json.dumps(file)}, "rb").read()))',
            f"{outputs} = model.call(images)",
        ),
    ]


def _loading_timm(weights: Weights, model: MlpMixer, file: str) -> list[str]:
    trained = "which form these weights were trained with is unknown"
    if weights.config is not None or _published(weights):
        trained = "these weights were trained with the tanh form"
    model_of = timm.constructor(model, weights.image_size)
    loading = [
        "import timm",
        "from safetensors.torch import load_file",
        "",
        f"model = {model_of}",
        f"model.load_state_dict(load_file({json.dumps(file)}))",
    ]
    if model_of.startswith("timm.create_model("):  # which loads a file too, as strictly
        loading = ["import timm", "", f"model = {model_of.removesuffix(')')}, checkpoint_path={json.dumps(file)})"]
    return [
        *_code("python", *loading, "model.eval()"),
        "",
        "Normalise images with mean 0.5 and standard deviation 0.5 in each channel, which brings 0..1 to [-1, 1].",
        "",
        f"timm computes GELU exactly by default; {trained}. To have the tanh form, as this project does, "
        "give the model one argument more:",
        "",
        *_code("python", 'act_layer=functools.partial(torch.nn.GELU, approximate="tanh")'),
        "",
        "With random weights the largest difference from this project's logits was then 6e-7 of the largest logit (the "
        "tests allow 5e-6), and 7e-5 with the exact form.",
    ]
