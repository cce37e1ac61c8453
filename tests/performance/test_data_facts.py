"""What pre-flight knows of datasets without reading them."""

import pytest
from tensorflow_datasets.core import splits

from mixer.config import recipe
from mixer.config.tasks import TASKS
from mixer.performance import data_facts
from mixer.performance.data_facts import DataFacts
from mixer.runtime.errors import UserError


def test_the_facts_of_a_dataset():
    assert data_facts.of(recipe.imagenet1k("B/16"), None, None) == (1000, 1_268_355, 1)
    assert data_facts.of(recipe.imagenet21k("B/16", magnitude=10, mixup=0.2), 19_167, None)[0] == 19_167  # as prepared
    assert data_facts.of(recipe.jft("B/16", epochs=7, learning_rate=1e-3), None, 7) == (18_291, 7, 8)
    assert data_facts.of(recipe.finetune("B/16", TASKS["oxford_flowers102"], 224), None, None) == (102, 2_040, 1)
    config = recipe.base()
    config.input.dataset = "mine"
    assert data_facts.of(config, 3, 50) == (3, 50, 1)
    config.input.dataset, config.input.train_split = "imagenet2012", "train[5%:]"
    with pytest.raises(UserError, match=r"train_split='train\[5%:\]' is not known here: give its --num_examples"):
        data_facts.of(config, None, None)
    assert data_facts.of(config, None, 9).num_examples == 9
    config.input.dataset = "mine"
    needed = r"'mine' is not known here: give --num_classes and --num_examples and, if .* several labels, .*max_labels"
    with pytest.raises(UserError, match=needed):
        data_facts.of(config, 3, None)
    config.input.max_labels = 5
    assert data_facts.of(config, 3, 50).max_labels == 5


@pytest.mark.parametrize(
    ("num_examples", "per_cent"), [(2_040, 99), (1_281_167, 99), (14_197_122, 98), (50, 1), (150, 1)]
)
def test_per_cents_are_rounded_as_tensorflow_datasets_rounds_them(monkeypatch, num_examples, per_cent):
    """Ties to even."""
    whole = splits.SplitInfo(name="train", shard_lengths=[num_examples], num_bytes=0, filename_template=None)
    (part,) = splits.ReadInstruction.from_spec(f"train[:{per_cent}%]").to_absolute({"train": whole})
    config = recipe.finetune("B/16", TASKS["cifar10"], 224)
    config.input.train_split = f"train[:{per_cent}%]"
    monkeypatch.setitem(data_facts.KNOWN, "cifar10", DataFacts(10, num_examples))
    assert data_facts.of(config, None, None).num_examples == part.to


@pytest.mark.parametrize(
    ("dataset", "split", "fixed"),
    [
        ("imagenet2012", "train[:99%]", ["num_classes", "num_examples"]),
        ("oxford_flowers102", "train+validation", ["num_classes", "num_examples"]),
        ("imagenet2012", "train[5%:]", ["num_classes"]),  # the number of examples is not known
        ("imagenet2012", "validation", ["num_classes"]),
        ("cifar10", "train+test", ["num_classes"]),
        ("cifar10", "test[:50%]", ["num_classes"]),
        ("oxford_flowers102", "train", ["num_classes"]),  # the half of it
        ("oxford_flowers102", "train[:99%]", ["num_classes"]),
        ("multilabel", "train", []),  # a collection of the user's own
        ("mine", "train", []),
    ],
)
def test_which_facts_are_certain(dataset, split, fixed):
    config = recipe.base()
    config.input.dataset, config.input.train_split = dataset, split
    assert data_facts.fixed(config) == fixed
    if fixed == ["num_classes"]:
        assert data_facts.of(config, None, 1020).num_examples == 1020
        with pytest.raises(UserError, match="give its --num_examples"):
            data_facts.of(config, None, None)


def ablated(**options):
    config = recipe.imagenet1k("B/16")
    config.model.update(options)
    return config


@pytest.mark.parametrize(
    ("config", "days"),
    [
        (recipe.imagenet1k("B/16"), 10),
        (recipe.imagenet21k("L/16", magnitude=15, mixup=0.5), 410),
        (recipe.jft("L/16", epochs=7, learning_rate=1e-3), 230),
        (recipe.jft("L/16", epochs=14, learning_rate=1e-3), 450),
        (recipe.jft("L/16", epochs=8, learning_rate=1e-3), None),
        (recipe.imagenet1k("ViT-B/16"), None),
        (ablated(token_mixing="untied", token_groups=4), None),
        (ablated(pyramid=(196,) * 11 + (49,)), None),
    ],
)
def test_the_papers_core_days(config, days):
    assert data_facts.paper_core_days(config, None) == days
    assert data_facts.paper_core_days(config, data_facts.KNOWN[config.input.dataset].num_examples) == days


@pytest.mark.parametrize(("num_examples", "days"), [(13_151_276, 150), (12_000_000, None), (20_000_000, None)])
def test_other_data_by_the_name_of_the_papers_are_not_compared_with_it(num_examples, days):
    config = recipe.imagenet21k("B/16", magnitude=10, mixup=0.5)
    assert data_facts.paper_core_days(config, num_examples) == days


@pytest.mark.parametrize("split", ["train[:0%]", "train[:101%]", "train[:200%]", "train[:%]", "train[:099%]"])
def test_a_split_that_does_not_exist_has_no_size(split):
    config = recipe.imagenet1k("B/16")
    config.input.train_split = split
    with pytest.raises(UserError, match=r"train_split='train\[.*is not known here: give its --num_examples"):
        data_facts.of(config, None, None)
