"""The table of an evaluation."""

import numpy as np

from mixer.evaluation import accuracy, table


def test_the_table_names_wordnet_ids():
    found = accuracy.Evaluation({}, np.array([0.5, 1.0, np.nan]))
    lines = table.by_class(found, ["n01440764", "own name", "n01443537"])
    assert [" ".join(line.split()) for line in lines] == [
        "best classes", "own name 100.00%", "tench (n01440764) 50.00%",
    ]  # fmt: skip


def test_counts_are_no_shares():
    described = {"model": "B/16", "checkpoint": "runs/b16", "dataset": "cifar10", "split": "test", "image_size": 224}
    metrics = {"fewshot/cifar10_5shot": 0.5, "fewshot/cifar10_unreadable": 5, "accuracy": 0.25, "loss": 2.0}
    lines = table.summary({**described, "eval_crop": "resize_small", "eval_resize": 256}, metrics)
    assert lines[0] == "B/16 (runs/b16) on cifar10 test, 224 px, resize_small from 256 px"
    assert [line.split()[-1] for line in lines[1:]] == ["50.00%", "5", "25.00%", "2.0000"]


def test_metrics_of_several_labels_are_called_what_they_are():
    described = {"model": "B/16", "checkpoint": "runs/b16", "dataset": "jft", "split": "test", "image_size": 224}
    metrics = {
        "mean_average_precision": 0.203, "baseline_mean_average_precision": 0.2,
        "accuracy": 0.668, "baseline_accuracy": 0.668,
    }  # fmt: skip
    lines = table.summary({**described, "eval_crop": "resize_small", "eval_resize": 256}, metrics)
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "mean average precision 20.30%",
        "equal scores for all would have 20.00%",
        "first guess is among the labels 66.80%",
        "the commonest label would be 66.80%",
    ]
    assert len({len(line) for line in lines[1:]}) == 1
