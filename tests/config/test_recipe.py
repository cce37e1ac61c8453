"""Every config in configs/ is valid, and those of the paper hold the paper's numbers."""

import math
import pathlib
import runpy

import pytest
from ml_collections import ConfigDict

from mixer import models
from mixer.config import checks, config_file, durations, recipe, settings, tasks
from mixer.runtime.errors import UserError
from mixer.training import losses, setup

CONFIGS = {path.stem: path for path in sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))}

# Table 4 of the paper: epochs, learning rate, weight decay, RandAugment magnitude (None: not used), mixup strength,
# dropout, stochastic depth. The epochs of single JFT-300M models are Table 3's.
TABLE_4 = {
    "b16_i1k": ("B/16", 300, 0.001, 0.1, 15, 0.5, 0.0, 0.1),
    "l16_i1k": ("L/16", 300, 0.001, 0.1, 15, 0.5, 0.0, 0.1),
    "b16_i21k": ("B/16", 300, 0.001, 0.1, 10, 0.2, 0.0, 0.1),
    "l16_i21k": ("L/16", 300, 0.001, 0.1, 20, 0.5, 0.0, 0.1),
    "s32_jft": ("S/32", 5, 0.003, 0.03, None, 0.0, 0.0, 0.0),
    "s16_jft": ("S/16", 5, 0.003, 0.03, None, 0.0, 0.0, 0.0),
    "b32_jft": ("B/32", 7, 0.003, 0.03, None, 0.0, 0.0, 0.0),
    "b16_jft": ("B/16", 7, 0.003, 0.03, None, 0.0, 0.0, 0.0),
    "l32_jft": ("L/32", 7, 0.001, 0.03, None, 0.0, 0.0, 0.0),
    "l16_jft": ("L/16", 14, 0.001, 0.03, None, 0.0, 0.0, 0.0),
    "h14_jft": ("H/14", 14, 0.001, 0.03, None, 0.0, 0.0, 0.0),
}


def load(name):
    return runpy.run_path(str(CONFIGS[name]))["get_config"]()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid(name):
    config = checks.checked(load(name))
    assert config.is_locked
    for duration in settings.DURATIONS:
        assert durations.steps(config, duration, 1_281_167) >= (duration != "warmup")


@pytest.mark.parametrize("name", TABLE_4)
def test_pre_training_is_the_papers(name):
    config = load(name)
    magnitude = config.input.randaugment.magnitude if config.input.randaugment.layers else None
    assert TABLE_4[name] == (
        config.model.variant, config.total_epochs, config.optimizer.learning_rate, config.optimizer.weight_decay,
        magnitude, config.mixup.p, config.model.dropout, config.model.stochastic_depth,
    )  # fmt: skip
    # Section 3: what all of them share.
    assert (config.batch_size, config.warmup_steps, config.input.image_size) == (4096, 10_000, 224)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.decay) == ("adam", "linear")
    assert (optimizer.beta1, optimizer.beta2, optimizer.clip_norm) == (0.9, 0.999, 1.0)
    assert (config.input.crop, config.input.flip) == ("inception", True)
    assert (config.input.eval_crop, config.input.eval_resize) == ("resize_small", None)
    if magnitude is not None:
        assert (config.input.randaugment.layers, config.input.randaugment.contrast) == (2, "published")
    # The published model does not divide kept branches by 1 - p.
    assert config.model.stochastic_depth_rescale == (magnitude is None)


def test_the_config_for_muon_is_the_papers_but_for_what_it_names():
    papers, ours = (checks.flat(checks.checked(load(name))) for name in ("b16_i1k", "b16_i1k_muon"))
    assert {name: ours[name] for name in ours if ours[name] != papers[name]} == {
        "optimizer.name": "muon", "optimizer.learning_rate": 3e-3, "optimizer.weight_decay": 0.05,
        "stem_init": "whitening", "model.identity_init": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "examples", "classes", "dataset"),
    [
        ("b16_i1k", 1_281_167 * 99 // 100, 1000, "imagenet2012"),
        ("l16_i21k", 14_197_122, 21_843, "imagenet21k"),
        ("l16_jft", 300_000_000, 18_291, "multilabel"),
    ],
)
def test_steps_and_head_bias_fit_the_dataset(name, examples, classes, dataset):
    """ImageNet-1k is 93k steps, ImageNet-21k and JFT-300M at 14 epochs a million."""
    config = load(name)
    expected = {"b16_i1k": 92_900, "l16_i21k": 1_040_000, "l16_jft": 1_025_000}[name]
    assert durations.steps(config, "total", examples) == pytest.approx(expected, rel=0.001)
    assert setup.head_bias(config, classes) == pytest.approx(-math.log(classes), rel=0.002)
    assert (config.loss, config.input.dataset) == ("sigmoid_xent", dataset)


# Images of the smallest class of the training split: datasets' papers and, of cars196, its cars_train_annos.mat.
_SMALLEST = {"caltech101": 30, "cars196": 24, "cifar100": 500, "dtd": 40}


@pytest.mark.parametrize("name", ["b16_i1k", "l16_i1k", "b16_i1k_muon", "vit_b16_i1k"])
def test_few_shot_evaluators_ask_for_no_more_images_than_a_class_has(name):
    evaluators = [one for one in load(name).evaluators.values() if one.kind == "few_shot"]
    assert len(evaluators) == 6
    for one in evaluators:
        assert max(one.shots) <= _SMALLEST.get(one.dataset, 25)


def test_the_published_weight_decay_and_end_of_the_learning_rate():
    """The published ImageNet-1k config writes weight decay times learning rate: 1e-4."""
    optimizer = load("b16_i1k").optimizer
    assert optimizer.weight_decay * optimizer.learning_rate == pytest.approx(1e-4)
    assert optimizer.end_factor == 1e-5


def finetune(arguments=""):
    """The config of configs/finetune.py under these arguments, as the command line makes it."""
    spec = f"{CONFIGS['finetune']}:{arguments}" if arguments else str(CONFIGS["finetune"])
    return checks.checked(config_file.run(spec))


@pytest.mark.parametrize("task", ["imagenet", "cifar10", "cifar100", "pets", "flowers"])
@pytest.mark.parametrize("size", [224, 448])
def test_fine_tuning_is_the_papers(task, size):
    """Section 3 and A.2: momentum (0.9, ViT's), 512, clipping at 1, no weight decay, cosine to 0, new head 0."""
    config, row = finetune(f"model=l16,task={task},size={size}"), tasks.find(task)[1]
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.beta1, optimizer.clip_norm, optimizer.weight_decay) == ("momentum", 0.9, 1.0, 0.0)
    assert (optimizer.decay, optimizer.end_factor) == ("cosine", 0.0)
    assert optimizer.learning_rate in row.learning_rates
    assert (config.batch_size, config.accumulate_steps, config.total_steps) == (512, 1, row.steps)
    assert 0 < config.warmup_steps == row.warmup_steps < row.steps
    assert (config.loss, setup.head_bias(config, 10), config.ema_decay) == ("softmax_xent", 0.0, 0.0)
    assert (config.model.variant, config.resize) == ("L/16", "extend")
    # What it was tried without: mixup, RandAugment, Inception crops, dropout, stochastic depth.
    assert (config.mixup.p, config.input.randaugment.layers, config.input.crop) == (0.0, 0, "random")
    assert (config.model.dropout, config.model.stochastic_depth) == (0.0, 0.0)
    assert (config.input.dataset, config.input.train_split, config.input.eval_split) == (
        row.dataset, row.train, row.test,
    )  # fmt: skip
    # Table 3: the shorter side to 256 (512 at 448), then the centre.
    assert (config.input.image_size, config.input.eval_crop, config.input.eval_resize) == (size, "resize_small", None)
    assert durations.steps(config, "eval", 50_000) == min(row.steps, 1_000)


def test_fine_tuning_without_arguments():
    config = finetune()
    assert (config.model.variant, config.input.dataset, config.input.image_size) == ("B/16", "cifar10", 224)


@pytest.mark.parametrize("model", ["s32", "s16", "b32", "b16", "l32", "l16", "h14"])
def test_every_model_of_the_paper_can_be_fine_tuned(model):
    config = finetune(f"model={model}")
    assert config.model.variant == f"{model[0].upper()}/{model[1:]}"
    models.create(config.model.variant, 10)


@pytest.mark.parametrize(
    ("ablation", "changed"),
    [
        ("untied", {"model.token_mixing": "untied", "model.token_groups": 4}),
        ("grouped", {"model.token_mixing": "grouped", "model.token_groups": 4}),
        ("views", {"model.token_mixing": "views", "model.token_groups": 4}),
        ("pyramid", {"model.pyramid": [64, 16, 16, 16]}),
    ],
)
def test_the_ablations_differ_from_cifar10_in_the_model_alone(ablation, changed):
    ours = checks.flat(checks.checked(config_file.run(f"{CONFIGS['cifar10_ablation']}:{ablation}")))
    plain = checks.flat(load("cifar10_plain"))
    assert {name: value for name, value in ours.items() if value != plain[name]} == changed


@pytest.mark.parametrize(("name", "at_most"), [("cifar10", 0.08), ("cifar10_long", 0.25), ("cifar10_record", 0.5)])
def test_cifar10_costs_what_it_may(name, at_most):
    """In PFLOP, 6 x MACs x images, by the widths."""
    config = load(name)
    model, tokens = config.model, (32 // 4) ** 2
    assert model.variant.endswith("/4")
    block = 2 * tokens * model.hidden_dim * (model.tokens_mlp_dim + model.channels_mlp_dim)
    macs = tokens * 3 * 4**2 * model.hidden_dim + model.num_blocks * block + 10 * model.hidden_dim
    spent = 6 * macs * 50_000 * config.total_epochs / 1e15
    assert 0.94 * at_most < spent <= at_most


def test_an_unknown_ablation_is_refused():
    with pytest.raises(UserError, match="'tied': expected untied or grouped or views or pyramid"):
        config_file.run(f"{CONFIGS['cifar10_ablation']}:tied")


def folder(arguments=""):
    return checks.checked(config_file.run(f"{CONFIGS['folder']}:{arguments}" if arguments else str(CONFIGS["folder"])))


def test_a_folder_of_photographs_and_one_of_small_pictures():
    photographs, small = folder(), folder("model=ti4,size=32")
    assert (photographs.model.variant, photographs.input.image_size, photographs.input.crop) == (
        "Ti/16",
        224,
        "inception",
    )
    assert photographs.input.crop_area == (0.35, 1.0)
    assert (small.model.variant, small.input.image_size, small.input.crop, small.input.eval_resize) == (
        "Ti/4",
        32,
        "pad",
        32,
    )
    for config in (photographs, small):
        assert (config.optimizer.name, config.optimizer.learning_rate, config.mixup.p) == ("muon", 4e-3, 0.5)
        assert (config.input.dataset, config.batch_size, config.model.dtype) == ("folder", 64, "auto")


@pytest.mark.parametrize("examples", [1_000, 50_000])
def test_a_folder_is_passed_over_a_fixed_number_of_times_whatever_its_size(examples):
    for config, epochs in ((folder(), 60), (finetune("task=folder"), 30)):
        total = durations.steps(config, "total", examples)
        assert total == pytest.approx(epochs * examples / 64, abs=1)
        assert durations.steps(config, "warmup", examples) == pytest.approx(total / 20, abs=1)


def test_fine_tuning_on_a_folder():
    config = finetune("model=s16,task=folder,size=448")
    assert (config.input.dataset, config.input.train_split, config.input.eval_split) == (
        "folder",
        "train",
        "validation",
    )
    assert (config.batch_size, config.optimizer.name, config.optimizer.learning_rate) == (64, "momentum", 0.01)
    small = checks.checked(config_file.run(f"{CONFIGS['finetune_small']}:task=folder"))
    assert (small.total_epochs, small.input.image_size, small.optimizer.learning_rate) == (30, 32, 0.01)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("modle=b16", ": 'modle=b16': expected model=NAME, task=NAME or size=PIXELS, joined by commas"),
        ("b16", ": 'b16': expected model=NAME, task=NAME or size=PIXELS"),
        ("model=", ": 'model=': expected model=NAME"),
        ("task=mnist", ": task 'mnist': expected one of imagenet2012, cifar10, cifar100, oxford_iiit_pet"),
        ("size=big", ": size='big': expected a number of pixels"),
        ("model=b", "config.model.variant: model variant 'b': expected one of"),
        ("model=x16", "config.model.variant: model variant 'X/16': expected one of"),
        ("size=0", "config.input.image_size=0: expected at least 1"),
        ("model=h14,size=230", "config.input.image_size=230 is not a multiple of the patch size of"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, line):
    with pytest.raises(UserError) as caught:
        finetune(arguments)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("folder:modl=s16", "'modl=s16': expected model=NAME or size=PIXELS, joined by commas"),
        ("folder:size=big", "size='big': expected a number of pixels"),
        ("finetune:task=mnist", "task 'mnist': expected one of imagenet2012, "),
        ("finetune_small:pets", "'pets': expected task=NAME"),
        ("finetune_small:task=imagenet_v2", "imagenet_v2/matched-frequency is test data alone; tasks to "),
        ("quickstart:digit", "'digit': expected fractals or digits"),
        ("b16_i1k:size=448", "this config takes no arguments; leave out :size=448"),
        ("cifar10:task=pets", "this config takes no arguments; leave out :task=pets"),
    ],
)
def test_a_wrong_argument_of_any_config_is_told_without_a_place_in_the_code(spec, line):
    name, argument = spec.split(":")
    with pytest.raises(UserError) as caught:
        config_file.run(f"{CONFIGS[name]}:{argument}")
    assert str(caught.value).startswith(f"--config {CONFIGS[name]}:{argument}: {line}")
    assert "\n" not in str(caught.value)


def test_a_duration_replaces_its_other_units():
    config = recipe.base()
    recipe.duration(config, "total", steps=5)
    assert (config.total_steps, config.total_examples, config.total_epochs) == (5, None, None)
    recipe.duration(config, "total", examples=2_000)
    assert (config.total_steps, config.total_examples, config.total_epochs) == (None, 2_000, None)
    recipe.duration(config, "total", epochs=7)
    assert (config.total_steps, config.total_examples, config.total_epochs) == (None, None, 7.0)


def test_defaults_are_not_shared_between_configs():
    one, other = recipe.base(), recipe.base()
    one.optimizer.learning_rate = 1.0
    one.input.randaugment.layers = 2
    assert (other.optimizer.learning_rate, other.input.randaugment.layers) == (1e-3, 0)


def test_base_is_plain_data():
    """Strings, numbers, truth values, None and tuples of them: all of it can be written as JSON and read back."""

    def check(value):
        if isinstance(value, ConfigDict):
            for key in value:
                check(value[key])
        elif isinstance(value, tuple):
            for item in value:
                check(item)
        else:
            assert value is None or isinstance(value, str | int | float | bool)

    check(recipe.base())


def test_logits_begin_by_what_the_loss_assumes(monkeypatch):
    monkeypatch.setitem(losses.LOSSES, "of_sigmoids", losses.LOSSES["sigmoid_xent"]._replace(described="another"))
    expected = {"sigmoid_xent": -math.log(1000), "of_sigmoids": -math.log(1000), "softmax_xent": 0.0}
    config = recipe.base()
    for config.loss in losses.LOSSES:
        assert setup.head_bias(config, 1000) == expected[config.loss]
