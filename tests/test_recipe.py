"""Every config in configs/ is valid, and those of the paper hold the paper's numbers."""

import math
import pathlib
import runpy

import pytest
from ml_collections import ConfigDict

from mixer import config as configuration
from mixer import recipe

CONFIGS = {path.stem: path for path in sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))}

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
    config = configuration.checked(load(name))
    assert config.is_locked
    for duration in configuration.DURATIONS:
        assert configuration.steps(config, duration, 1_281_167) >= (duration != "warmup")


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
        assert config.input.randaugment.layers == 2


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
    assert configuration.steps(config, "total", examples) == pytest.approx(expected, rel=0.001)
    assert config.model.head_bias_init == pytest.approx(-math.log(classes), rel=0.002)
    assert (config.loss, config.input.dataset) == ("sigmoid_xent", dataset)


def test_the_published_weight_decay_and_end_of_the_learning_rate():
    """The published ImageNet-1k config writes weight decay times learning rate: 1e-4."""
    optimizer = load("b16_i1k").optimizer
    assert optimizer.weight_decay * optimizer.learning_rate == pytest.approx(1e-4)
    assert optimizer.end_factor == 1e-5


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
