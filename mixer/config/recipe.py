"""The defaults of a run, and the paper's recipes. The files in `configs/` are calls of these functions.

Every default is declared in `settings.py`; `mixer.recipe` is another name of this module, for config files.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mixer.config.durations import set_duration
from mixer.config.evaluator_settings import EVALUATOR
from mixer.config.schema import Setting
from mixer.config.settings import SETTINGS
from mixer.config.tasks import TASKS, Task
from mixer.runtime.errors import ArgumentError

duration = set_duration  # the name by which config files call it


def base() -> ConfigDict:
    """Makes a config of all defaults: Adam, linear warm-up and decay, Inception crops and flips."""
    config = _with_defaults(SETTINGS)
    config.evaluators = ConfigDict()  # besides val: evaluator_settings() by name
    return config


def arguments(text: str, **defaults: Any) -> dict[str, Any]:
    """Reads the arguments of a config file, what follows its name and a colon: "model=b16,size=448".

    Args:
      text: names and values, joined by commas; may be empty.
      **defaults: the value of each argument that is not given. Where it is a number, the argument is one of pixels.

    Raises:
      ArgumentError: an argument is none of these or has no such value.
    """
    given = dict(defaults)
    for argument in text.split(",") if text else []:
        name, _, value = argument.partition("=")
        if name not in given or not value:
            kinds = {key: "PIXELS" if isinstance(default, int) else "NAME" for key, default in defaults.items()}
            *names, last = (f"{key}={kind}" for key, kind in kinds.items())
            expected = f"{', '.join(names)} or {last}, joined by commas" if names else last
            raise ArgumentError(f"{argument!r}: expected {expected}")
        if isinstance(defaults[name], int):
            if not value.isdigit():
                raise ArgumentError(f"{name}={value!r}: expected a number of pixels")
            given[name] = int(value)
        else:
            given[name] = value
    return given


def one_of(argument: str, *expected: str) -> None:
    """Checks an argument of a config file that is one word.

    Raises:
      ArgumentError: it is none of these.
    """
    if argument not in expected:
        raise ArgumentError(f"{argument!r}: expected {' or '.join(expected)}")


def evaluator_settings(kind: str, **settings: Any) -> ConfigDict:
    """Makes the settings of an evaluator, for config.evaluators.NAME.

    For example: config.evaluators.v2 = evaluator_settings("classification", dataset="imagenet_v2", split="test").

    Args:
      kind: a key of `evaluators.KINDS`.
      **settings: those of `evaluator_settings.EVALUATOR` that are not to have their default.
    """
    config = _with_defaults(EVALUATOR)
    config.update({"kind": kind, **settings})
    return config


def _with_defaults(settings: dict[str, Setting]) -> ConfigDict:
    config = ConfigDict()
    for path, setting in settings.items():
        *groups, name = path.split(".")
        group = config
        for part in groups:
            if part not in group:
                group[part] = ConfigDict()
            group = group[part]
        if setting.kind is not None:
            group[name] = placeholder(setting.kind)  # it may be None
        if setting.default is not None:
            group[name] = setting.default
    return config


def pretrain(variant: str, *, dataset: str, epochs: float, learning_rate: float, weight_decay: float) -> ConfigDict:
    """Makes the settings that all pre-training runs of the paper share (Section 3, Table 4)."""
    config = base()
    config.model.variant = variant
    config.input.dataset = dataset
    config.input.crop_aspect = (0.75, 1.33)  # as published
    duration(config, "total", epochs=epochs)
    config.optimizer.learning_rate = learning_rate
    config.optimizer.weight_decay = weight_decay
    return config


def imagenet1k(variant: str) -> ConfigDict:
    """Pre-training on ImageNet-1k, 300 epochs (Table 4), with evaluators of the published config.

    All of its evaluators but accuracy on `train[:2%]`. There minival, v2 and real run every 2,500 steps, here at the
    run's interval; and there 25 shots of Cars are 24 of one class.
    """
    config = pretrain(variant, dataset="imagenet2012", epochs=300, learning_rate=1e-3, weight_decay=0.1)
    config.input.train_split = "train[:99%]"
    _regularise(config, magnitude=15.0, mixup=0.5)
    config.model.head_bias_init = -6.9  # -ln 1000, as published
    # minival is the last per cent of train, on which the paper's settings were tuned.
    # Each names its dataset, and is left out where the config is used for other data.
    minival = Task("imagenet2012", "train[99%:]")
    for name, task in (("minival", minival), ("v2", TASKS["imagenet_v2"]), ("real", TASKS["imagenet_real"])):
        config.evaluators[name] = evaluator_settings(
            "classification", dataset=task.dataset, split=task.test, label_key=task.label_key,
            max_labels=task.max_labels, optional=True,
        )  # fmt: skip
    for name, (dataset, train_split, split) in _FEW_SHOT.items():
        config.evaluators[f"fewshot_{name}"] = evaluator_settings(
            "few_shot", dataset=dataset, train_split=train_split, split=split, eval_crop="resize_square",
            every_steps=25_000, optional=True,
        )  # fmt: skip
    config.evaluators.fewshot_cars.shots = (1, 5, 10)  # a class of it has 24 training images
    return config


# The few-shot datasets of the published config: TFDS name, training and test split.
_FEW_SHOT = {
    "caltech": ("caltech101", "train", "test"),
    "cars": ("cars196", "train", "test"),
    "cifar100": ("cifar100", "train", "test"),
    "dtd": ("dtd", "train", "test"),
    "pets": ("oxford_iiit_pet", "train", "test"),
    "uc_merced": ("uc_merced", "train[:1000]", "train[1000:]"),
}


def imagenet21k(variant: str, *, magnitude: float, mixup: float) -> ConfigDict:
    """Pre-training on ImageNet-21k as scripts/prepare.py prepares it, 300 epochs (Table 4)."""
    config = pretrain(variant, dataset="imagenet21k", epochs=300, learning_rate=1e-3, weight_decay=0.1)
    config.input.train_split, config.input.eval_split = "train[:99%]", "train[99%:]"  # the archive has no validation
    _regularise(config, magnitude, mixup)
    config.model.head_bias_init = -10.0  # -ln 21843, from the published ViT config for this data; the paper gives none
    duration(config, "eval", epochs=10)
    return config


def jft(variant: str, *, epochs: float, learning_rate: float) -> ConfigDict:
    """Pre-training on a multi-label collection such as JFT-300M: crops and flips are the only augmentation (Section 3).

    scripts/prepare.py prepares the data.
    """
    config = pretrain(variant, dataset="multilabel", epochs=epochs, learning_rate=learning_rate, weight_decay=0.03)
    # The head's bias is -ln(classes) of the data; the paper gives neither this nor the loss.
    duration(config, "eval", epochs=0.5)
    return config


def finetune(variant: str, task: Task, image_size: int) -> ConfigDict:
    """Fine-tuning of a pre-trained model (Section 3, Appendix A.2; ViT, arXiv 2010.11929, Appendix B.1.1)."""
    task.check_trainable()
    config = base()
    config.batch_size = task.batch_size
    if task.epochs is not None:
        for name, share in {"total": 1, "warmup": 1 / 20, "eval": 1 / 10}.items():
            duration(config, name, epochs=task.epochs * share)
    else:
        duration(config, "total", steps=task.steps)
        duration(config, "warmup", steps=task.warmup_steps)
        duration(config, "eval", steps=min(task.steps, 1_000))
    duration(config, "checkpoint", steps=500)
    config.eval_at_start = True  # what the weights are worth before any step
    config.loss = "softmax_xent"
    config.model.variant = variant
    config.optimizer.name = "momentum"
    config.optimizer.learning_rate = task.learning_rates[len(task.learning_rates) // 2]  # 0.03
    config.optimizer.decay = "cosine"
    config.optimizer.end_factor = 0.0
    config.optimizer.weight_decay = 0.0
    config.input.dataset = task.dataset
    config.input.train_split, config.input.eval_split = task.train, task.test
    config.input.label_key, config.input.max_labels = task.label_key, task.max_labels
    config.input.image_size = image_size
    # The paper does not give the crop in training; it found that Inception crops did not help (Appendix A.2). This is
    # resmall_crop, the default of big_vision's fine-tuning: a random part of the image as evaluation resizes it.
    config.input.crop = "random"
    return config


def small_model(config: ConfigDict) -> None:
    """Sets a model of four blocks of width 96 with the usual ratios. 32-pixel images make 64 patches of 4 pixels."""
    config.model.variant = "Ti/4"
    config.model.hidden_dim, config.model.tokens_mlp_dim, config.model.channels_mlp_dim = 96, 48, 384
    config.model.dtype = "auto"  # on a CPU, what is faster there


def small_cifar10() -> ConfigDict:
    """CIFAR-10 from scratch with `small_model`, for two CPU cores; the paper has no such run."""
    config = base()
    small_model(config)
    config.loss = "softmax_xent"
    config.batch_size = 64
    duration(config, "total", epochs=12)
    duration(config, "warmup", epochs=0.5)
    duration(config, "eval", epochs=1)
    duration(config, "checkpoint", epochs=1)
    config.optimizer.name = "muon"  # learns much faster than Adam here: docs/results.md
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.beta2 = 0.99
    config.input.dataset = "cifar10"
    config.input.eval_split = "test"
    config.input.image_size = 32
    config.input.eval_resize = 32  # the images are of that size
    config.input.crop = "pad"
    return config


def cifar10(epochs: float, num_blocks: int = 6, hidden_dim: int = 64) -> ConfigDict:
    """CIFAR-10 from scratch for the least compute, with token mixing untied in four groups (docs/learning.md)."""
    config = small_cifar10()
    model = config.model
    model.num_blocks, model.hidden_dim = num_blocks, hidden_dim
    model.tokens_mlp_dim, model.channels_mlp_dim = 64, 2 * hidden_dim
    model.token_mixing, model.token_groups = "untied", 4  # an option of the paper's Appendix A.1
    model.identity_init = True
    config.stem_init = "whitening"
    config.label_smoothing = 0.1
    config.mixup.cutmix = 0.5
    config.batch_size = 128
    duration(config, "total", epochs=epochs)
    duration(config, "warmup", epochs=epochs / 25)
    config.optimizer.learning_rate = 6e-3
    return config


def leaves(pictures: int, examples: int) -> ConfigDict:
    """Pre-training of the model of `cifar10` on pictures each of which is a category (docs/learning.md).

    Args:
      pictures: how many there are.
      examples: how many augmented ones are seen.
    """
    config = cifar10(epochs=1)
    config.mixup.cutmix = 0.0
    config.input.dataset = f"leaves/{pictures}x48"
    config.input.eval_split = f"train[:{min(pictures, 500)}]"  # there is no other; here without augmentation
    config.input.crop = "inception"
    config.input.crop_area = (0.15, 1.0)
    config.input.color_jitter = 1.0
    duration(config, "total", examples=examples)
    duration(config, "warmup", examples=examples // 25)
    duration(config, "eval", examples=examples)
    duration(config, "checkpoint", examples=examples)
    return config


def _regularise(config: ConfigDict, magnitude: float, mixup: float) -> None:
    config.input.randaugment = ConfigDict({"layers": 2, "magnitude": magnitude, "contrast": "published"})
    config.mixup.p = mixup
    config.model.stochastic_depth = 0.1
    config.model.stochastic_depth_rescale = False  # as published, see docs/fidelity.md
