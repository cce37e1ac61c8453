"""The rows of mixer/tasks.py against the papers: Mixer, Section 3; ViT (arXiv 2010.11929), Appendix B.1.1."""

import pytest
import tensorflow_datasets as tfds

from mixer import tasks

# Steps, classes, and the share of the training data that the learning rate is chosen by.
PROTOCOL = {
    "imagenet2012": (20_000, 1000, 0.01),
    "cifar10": (10_000, 10, 0.02),
    "cifar100": (10_000, 100, 0.02),
    "oxford_iiit_pet": (500, 37, 0.10),
    "oxford_flowers102": (500, 102, 0.10),
}

# Examples in the splits, as TFDS has them.
SPLITS = {
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "oxford_iiit_pet": {"train": 3_680, "test": 3_669},
    "oxford_flowers102": {"train": 1_020, "validation": 1_020, "test": 6_149},
}


def records(name, split):
    """The records that a split such as train[:99%]+validation consists of, as (split, number)."""
    found = []
    for one in split.split("+"):
        whole, _, bounds = one.rstrip("]").partition("[")
        start, _, stop = bounds.partition(":")
        count = SPLITS[name][whole]
        lower, upper = (round(float(edge.rstrip("%")) / 100 * count) if edge else None for edge in (start, stop))
        found += [(whole, number) for number in range(count)[lower:upper]]
    return found


@pytest.mark.parametrize("name", PROTOCOL)
def test_the_five_are_the_papers(name):
    steps, classes, dev_share = PROTOCOL[name]
    task = tasks.FIVE[name]
    assert (task.dataset, task.steps, task.num_classes) == (name, steps, classes)
    # The papers do not say; those of the published transfer configs.
    assert task.warmup_steps == (500 if steps > 500 else 100)
    # ViT's grid for ImageNet; for the other four Mixer drops 0.001 of ViT's and adds 0.06.
    assert task.learning_rates == (0.003, 0.01, 0.03, 0.06)
    train, test, sweep_train, sweep_dev = (
        records(name, split) for split in (task.train, task.test, task.sweep_train, task.sweep_dev)
    )
    assert sorted(sweep_train + sweep_dev) == sorted(train)
    assert not set(sweep_train) & set(sweep_dev)
    assert not set(train) & set(test)
    assert len(sweep_dev) / len(train) == pytest.approx(dev_share, abs=1 / len(train))


def test_there_are_five():
    assert list(tasks.FIVE) == list(PROTOCOL)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "oxford_iiit_pet", "oxford_flowers102", "imagenet2012"])
def test_the_classes_are_those_of_tfds(name, tmp_path):
    labels = tfds.builder(name, data_dir=tmp_path).info.features["label"]
    assert labels.num_classes == tasks.FIVE[name].num_classes


def test_imagenets_other_tests_train_on_imagenet():
    for task in tasks.IMAGENET_TESTS.values():
        assert (task.train, task.num_classes, task.steps) == ("train", 1000, 20_000)
    real = tasks.IMAGENET_TESTS["imagenet_real"]
    assert (real.dataset, real.test, real.label_key) == ("imagenet2012_real", "validation", "real_label")
    assert tasks.IMAGENET_TESTS["imagenet_v2"].test == "test"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("pets", "oxford_iiit_pet"),
        ("flowers", "oxford_flowers102"),
        ("imagenet", "imagenet2012"),
        ("cifar10", "cifar10"),
    ],
)
def test_names_and_their_short_forms(name, full):
    assert tasks.find(name) == (full, tasks.FIVE[full])


def test_an_unknown_task_is_told_with_those_there_are():
    with pytest.raises(ValueError, match=r"task 'mnist': expected one of imagenet2012, cifar10, .*, flowers"):
        tasks.find("mnist")
