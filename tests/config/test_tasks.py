"""The rows of mixer/tasks.py against the papers: Mixer, Section 3; ViT (arXiv 2010.11929), Appendix B.1.1."""

import pytest
import tensorflow_datasets as tfds

from mixer.config import config_file, recipe, tasks
from mixer.runtime.errors import UserError

# Steps and the share of the training data that the learning rate is chosen by.
PROTOCOL = {
    "imagenet2012": (20_000, 0.01),
    "cifar10": (10_000, 0.02),
    "cifar100": (10_000, 0.02),
    "oxford_iiit_pet": (500, 0.10),
    "oxford_flowers102": (500, 0.10),
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
    steps, dev_share = PROTOCOL[name]
    task = tasks.TASKS[name]
    assert (task.dataset, task.steps) == (name, steps)
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


def test_the_average_is_over_the_papers_five():
    assert list(tasks.AVG5) == list(PROTOCOL)


@pytest.mark.parametrize("name", [name for name in tasks.TASKS if name != "folder"])
def test_the_labels_are_where_tfds_has_them(name, tmp_path):
    task = tasks.TASKS[name]
    assert (task.label_key or "label") in tfds.builder(task.dataset, data_dir=tmp_path).info.features


def test_few_shot_evaluation_asks_for_no_more_images_than_there_are():
    counts = {"cifar10": 5_000, "cifar100": 500, "oxford_iiit_pet": 93, "oxford_flowers102": 20, "imagenet2012": 30}
    for name, count in counts.items():
        assert max(tasks.TASKS[name].shots) <= count


@pytest.mark.parametrize(
    ("name", "dataset", "test"),
    [("imagenet_real", "imagenet2012_real", "validation"), ("imagenet_v2", "imagenet_v2/matched-frequency", "test")],
)
def test_imagenets_other_tests_are_test_data_alone(name, dataset, test):
    task = tasks.TASKS[name]
    assert (task.dataset, task.test, task.train, task.few_shot_train) == (dataset, test, None, None)
    line = f"{dataset} is test data alone; tasks to fine-tune on are {', '.join([*tasks.AVG5, 'folder'])}"
    with pytest.raises(ValueError, match="test data alone") as caught:
        recipe.finetune("B/16", task, 224)
    assert str(caught.value) == line
    with pytest.raises(UserError) as from_file:
        config_file.run(f"configs/finetune.py:task={name}")
    assert str(from_file.value).endswith(f": {line}")
    assert "\n" not in str(from_file.value)


def test_a_row_of_ones_own_is_a_task_but_not_one_of_the_five(monkeypatch):
    mine = tasks.Task("beans", "test", "train", "train[:90%]", "train[90%:]", 500, 100)
    monkeypatch.setitem(tasks.TASKS, "beans", mine)
    assert tasks.find("beans") == ("beans", mine)
    assert recipe.finetune("B/16", mine, 224).input.train_split == "train"
    assert "beans" not in tasks.AVG5


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
    assert tasks.find(name) == (full, tasks.TASKS[full])


def test_an_unknown_task_is_told_with_those_there_are():
    with pytest.raises(ValueError, match=r"task 'mnist': expected one of imagenet2012, cifar10, .*, flowers"):
        tasks.find("mnist")
