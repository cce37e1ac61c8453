"""A model card in Markdown, for every export: what the model is, how it was trained, and how to load the file."""

from collections.abc import Callable
from typing import Any

from ml_collections import FrozenConfigDict

from mixer import models
from mixer.config import paper
from mixer.data import class_names
from mixer.data.pixels import crops, permutation
from mixer.data.pixels.augmentations import AUGMENTATIONS
from mixer.training import mixing
from mixer.training.losses import LOSSES, PROBABILITIES
from mixer.transfer import card_code, lineage
from mixer.transfer.format import Exported, Program, code_block
from mixer.transfer.formats import FORMATS
from mixer.transfer.published import PUBLISHED
from mixer.transfer.weights import Weights

MARK = "<!-- Written by mixer.export, which writes it anew with every export to this name. -->"

_UNKNOWN = "unknown"
_NAMED_CLASSES = 10  # a model with more classes has only its first three named

_AS_IN_PAPER = {
    "Started from": "random parameters",
    "Recipe": "the paper's (arXiv 2105.01601, Table 4)",
    "Steps": "300 epochs",
}
# What the authors of the published checkpoints say about them, by the end of the checkpoint's name.
_AS_PUBLISHED = {
    "i1k": _AS_IN_PAPER,
    "i21k": _AS_IN_PAPER,
    "sam": {"Recipe": "SAM (arXiv 2106.01548)"},
    "gsam": {"Recipe": "GSAM (arXiv 2203.08065)"},
}


def card(
    weights: Weights, *, to: str, file: str, command: str, measured: dict[str, float],
    loading: list[str] | None = None, program: Program | None = None, named: Callable[[str], str] = str,
) -> str:  # fmt: skip
    """Describes an exported model. What is not known is called "unknown".

    Args:
      weights: the weights that are exported.
      to: the format, a key of `FORMATS`.
      file: name of the exported file.
      command: the command that exports it.
      measured: accuracy and count of the run's evaluation at the step of these weights; empty if there was none.
      loading: how to load it; as the format says, if not given.
      program: how it is written, for formats that hold a program; as by default, if not given.
      named: how the card calls a run or a file that it has the path of.
    """
    exported = weights.exported()._replace(program=program or Program())
    title = f"# {models.name_of(exported.model)}, {weights.image_size} px"
    as_published = ["This is as published, not measured here.", ""] if weights.published_as else []
    return "\n".join(
        [
            *(MARK, "", title, "", *_bullets(_about(weights, exported, to, named)), ""),
            *("## Training", "", *_bullets({"Weights": _origin(weights, named), **_training(weights, named)}), ""),
            *as_published,
            *_history(weights, named),
            *("## Accuracy", "", _accuracy(weights, measured), ""),
            *("## Pictures", "", *card_code.pictures(exported.images), ""),
            *("## Loading", "", *(loading or FORMATS[to].loading(exported, file)), ""),
            *_named_classes(weights, exported, to),
            *("This file was made by", "", *code_block("sh", command), ""),
        ]
    )


def _history(weights: Weights, named: Callable[[str], str]) -> list[str]:
    """Returns the lines that say what changed while the run was trained; none if nothing did."""
    before, later = lineage.changes(weights.workdir, weights.step or 0, named)
    lines = []
    for told, about in (
        (before, "The run was continued with changes; what stands above is how it was at last:"),
        (later, "After this checkpoint the run was continued with changes, and what stands above is how it was then:"),
    ):
        if told:
            lines += [about, "", *(f"- {line}" for line in told), ""]
    return lines


def _named_classes(weights: Weights, exported: Exported, to: str) -> list[str]:
    """Returns lines with the names of all classes, if the code before has computed their probabilities."""
    names = weights.class_names or (class_names.published(exported.model.num_classes) if weights.published_as else None)
    if not names or not exported.probabilities or not FORMATS[to].computes:
        return []
    return [*card_code.named(class_names.readable(names)), ""]


def _bullets(facts: dict[str, str]) -> list[str]:
    return [f"- **{name}:** {value}" for name, value in facts.items()]


def _about(weights: Weights, exported: Exported, to: str, named: Callable[[str], str]) -> dict[str, str]:
    """Describes the model and the file."""
    model, size = exported.model, exported.image_size
    parameters = models.num_parameters(weights.params)
    cut = f"RGB, cut into patches of {model.patch_size}x{model.patch_size}"
    return {
        "Parameters": f"{parameters:,}",
        "Widths": f"{model.num_blocks} blocks of {model.hidden_dim} channels; token-mixing MLPs of "
        f"{model.tokens_mlp_dim}, channel-mixing MLPs of {model.channels_mlp_dim}",
        "Classes": _classes(weights, model.num_classes, named),
        "Input": FORMATS[to].input.format(size=size, cut=cut, batch=_batch(exported)),
        "Output": _output(weights, exported),
        "Forward pass": f"{2 * model.forward_macs(size) / 1e9:.3g} GFLOP an image",
        "Format": FORMATS[to].described.format(platforms=", ".join(exported.program.platforms)),
    }


def _batch(exported: Exported) -> str:
    return str(exported.program.batch_size or "batch")


def _classes(weights: Weights, num_classes: int, named: Callable[[str], str]) -> str:
    if num_classes == 0:
        return "none, the model has no head"
    published = class_names.published(num_classes)
    if published and weights.published_as:
        first = ", ".join(class_names.readable(published[:3]))
        return f"{num_classes:,}: {first}, ... (the list of {class_names.PUBLISHED[num_classes]}, as published)"
    if weights.class_names is None:
        return f"{num_classes:,}, their names are {_UNKNOWN}"
    if num_classes <= _NAMED_CLASSES:
        return f"{num_classes}: {', '.join(weights.class_names)}"
    where = "`classes.txt` in the run's folder" if weights.config is not None else f"`{named(weights.source)}`"
    return f"{num_classes:,}: {', '.join(weights.class_names[:3])}, ... ({where} has all)"


def _output(weights: Weights, exported: Exported) -> str:
    if exported.model.num_classes == 0:
        return f"float32 [{_batch(exported)}, {exported.model.hidden_dim}], the pre-logits"
    logits = f"float32 [{_batch(exported)}, {exported.model.num_classes}], logits"
    if "loss" not in weights.settings:
        return logits
    return f"{logits}; {PROBABILITIES[LOSSES[weights.loss].assumes].described} gives the probabilities"


def _origin(weights: Weights, named: Callable[[str], str]) -> str:
    """Describes where the weights are from."""
    decay = weights.config.ema_decay if weights.averaged and weights.config else 0
    average = f", averaged over the steps with decay {decay}" if decay else ""
    address = f", {PUBLISHED[weights.source]}" if weights.published_as else ""
    return f"`{named(weights.source)}`{average}{address}"


def _training(weights: Weights, named: Callable[[str], str]) -> dict[str, str]:
    """Describes data, recipe and duration, from the run's config or as published."""
    config = weights.config
    if config is None:
        unknown = dict.fromkeys(("Data", "Started from", "Recipe", "Steps"), _UNKNOWN)
        data = {"Data": lineage.PUBLISHED_DATA[weights.published_as]} if weights.published_as else {}
        return unknown | data | _AS_PUBLISHED.get(weights.published_as, {})
    return {
        "Data": f"{config.input.dataset}, split {config.input.train_split}",
        "Started from": named(config.init_from) if config.init_from else _beginning(config),
        **({"Lineage": lineage.lineage(config.init_from, weights.workdir, named)} if config.init_from else {}),
        **_recipe(config),
        "Steps": f"{weights.step:,} taken; planned: {lineage.duration(config, 'total')}",
    }


def _beginning(config: FrozenConfigDict) -> str:
    """Describes the parameters before the first step of a run that starts from no others."""
    whitens = ", but for a stem that whitens patches" if config.stem_init == "whitening" else ""
    return f"random parameters{whitens}{'; each block begins as the identity' if config.model.identity_init else ''}"


def _recipe(config: FrozenConfigDict) -> dict[str, str]:
    """Describes loss, optimizer and regularisation, from the run's config."""
    optimizer, model = config.optimizer, config.model
    flips, *others = (one.described(config.input) for one in AUGMENTATIONS.values())
    smoothed = f", labels smoothed by {config.label_smoothing:g}" if config.label_smoothing else ""
    clipped = f"clipped to norm {optimizer.clip_norm:g}" if optimizer.clip_norm else "not clipped"
    multiplied = f", learning rate multiplied by {optimizer.multipliers}" if optimizer.multipliers else ""
    dropped = {"dropout": model.dropout, "stochastic depth": model.stochastic_depth}
    regularisers = [f"{name} {share:g}" for name, share in dropped.items() if share]
    return {
        "Loss": LOSSES[config.loss].described + smoothed,
        "Optimizer": f"{optimizer.name}, weight decay {optimizer.weight_decay:g}, gradient {clipped}{multiplied}",
        "Learning rate": f"{optimizer.learning_rate:g}, {optimizer.decay} schedule after "
        f"{lineage.duration(config, 'warmup')} of warm-up",
        "Batch size": f"{config.batch_size:,}",
        "Augmentation": ", ".join([crops.CROPS[config.input.crop].described, flips, mixing.described(config), *others]),
        **({"Permutation": permuted} if (permuted := permutation.described(config.input)) else {}),
        "Regularisation": ", ".join(regularisers) or "no dropout, no stochastic depth",
    }


def _accuracy(weights: Weights, measured: dict[str, float]) -> str:
    config: Any = weights.config
    if weights.published_as == "i1k":  # for the others the paper has only the accuracy after fine-tuning
        accuracy = paper.find(weights.source.removesuffix("-i1k"), "i1k", 224).imagenet
        return (
            f"{accuracy}% on the validation split of ImageNet, as published (arXiv 2105.01601, Table 3), not measured "
            "here."
        )
    if measured.get("labelled") == 0:
        of_split = f"{config.input.dataset}, split {config.input.eval_split}"
        return f"{_UNKNOWN.capitalize()}: no image of {of_split}, has a label."
    if config is None or "accuracy" not in measured:
        when = "" if config is None else f": the run was not evaluated at step {weights.step:,}"
        return f"{_UNKNOWN.capitalize()}{when}."
    images = config.input
    resize = crops.eval_resize(images)
    resized = crops.EVAL_CROPS[images.eval_crop].described.format(size=resize)
    return (
        f"{_headline(measured)} of {measured.get('labelled', measured['count']):,} images of {images.dataset}, split "
        f"{images.eval_split}, {resized} and the central {images.image_size}x{images.image_size} taken "
        f"(eval_crop={images.eval_crop}, eval_resize={resize}). Measured by the run at step {weights.step:,}, "
        f"in {config.model.dtype}."
    )


def _headline(measured: dict[str, float]) -> str:
    """Returns the metric by which models are compared, with what a model that sees nothing would have."""
    if "mean_average_precision" not in measured:
        return f"**{measured['accuracy']:.2%}**"

    def beside(name: str, said: str) -> str:
        """Returns the baseline in brackets; nothing for a run of an earlier version, which has none."""
        return f" ({said} {measured[name]:.2%})" if name in measured else ""

    return (
        f"**{measured['mean_average_precision']:.2%}** mean average precision over the classes"
        f"{beside('baseline_mean_average_precision', 'equal scores for all images:')}; the first guess is among the "
        f"labels of {measured['accuracy']:.2%}{beside('baseline_accuracy', 'the commonest label for all images:')}"
    )
