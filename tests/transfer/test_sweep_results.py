"""The results of a sweep: mean, deviation and average, and the table beside the paper's."""

import numpy as np
import pytest

from mixer.config import paper, tasks
from mixer.transfer import sweep_results
from mixer.transfer.sweep_results import Outcome


def outcome(*seeds: float | None, **fields) -> Outcome:
    settings = {"grid": {0.01: 0.5, 0.03: None}, "dev_count": 1_000, "chosen": 0.01, "count": 10_000, **fields}
    return Outcome(seeds=list(seeds), **settings)


def test_mean_and_standard_deviation():
    three = outcome(0.90, 0.92, 0.97)
    assert three.mean == pytest.approx(0.93)
    assert three.std == pytest.approx(np.std([0.90, 0.92, 0.97], ddof=1))
    assert outcome(0.9).std is None


def test_seeds_that_diverged_are_left_out():
    two = outcome(0.90, None, 0.94)
    assert (two.mean, two.std) == (pytest.approx(0.92), pytest.approx(np.std([0.90, 0.94], ddof=1)))
    none = outcome(None, None, count=None)
    assert (none.mean, none.std) == (None, None)


FIVE = {name: outcome(0.90 + i / 100, 0.92 + i / 100) for i, name in enumerate(tasks.AVG5)}


def test_the_average_is_over_all_five_or_none():
    assert sweep_results.average(FIVE) == pytest.approx(0.93)
    assert sweep_results.average({name: FIVE[name] for name in list(FIVE)[1:]}) is None
    assert sweep_results.average({**FIVE, "beans": outcome(0.1)}) == pytest.approx(0.93)
    assert sweep_results.average({**FIVE, "cifar10": outcome(None)}) is None


def cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def test_the_table_has_the_papers_numbers_where_there_are_any():
    head, rule, *rows = cells(sweep_results.table(FIVE, paper.find("B/16", "i21k", 224)))
    assert {len(row) for row in rows} == {len(head)} == {len(rule)}
    assert [row[0] for row in rows] == [*tasks.AVG5, "average of the five"]
    assert [row[head.index("paper")] for row in rows] == ["80.64", "-", "-", "-", "-", "92.50"]
    assert rows[0] == [
        "imagenet2012", "91.00", "1.41", "2", "10,000", "80.64", "0.01", "0.01: 50.00, 0.03: diverged",
    ]  # fmt: skip
    assert rows[-1][1] == "93.00"


def test_the_table_of_one_task_and_one_seed_without_a_choice():
    rows = cells(
        sweep_results.table({"cifar10": outcome(0.5, grid={}, dev_count=None)}, paper.find("B/16", "i21k", 224))
    )
    assert rows[2:] == [["cifar10", "50.00", "-", "1", "10,000", "-", "0.01", "-"]]


def test_the_table_says_what_diverged():
    some, none = outcome(0.5, None, 0.5, grid={}), outcome(None, None, grid={}, count=None)
    rows = cells(sweep_results.table({**FIVE, "cifar10": some, "cifar100": none}, None))
    assert rows[3] == ["cifar10", "50.00", "0.00", "2 (1 diverged)", "10,000", "-", "0.01", "-"]
    assert rows[4] == ["cifar100", "-", "-", "0 (2 diverged)", "-", "-", "0.01", "-"]
    assert rows[-1] == ["average of the five", "-", "-", "-", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("key", "eval_crop", "line"),
    [
        (
            ("L/16", "i21k", 448), "resize_square",
            "Accuracies in per cent, evaluated with eval_crop=resize_square. The paper's are those of Mixer-L/16, "
            "ImageNet-21k, 448 px, 300 epochs, in its Table 2: evaluated with the same crop.",
        ),
        (
            ("H/14", "jft", 448), "resize_small",
            "Accuracies in per cent, evaluated with eval_crop=resize_small. The paper's are those of Mixer-H/14, "
            "JFT-300M, 448 px, 14 epochs, in its Table 2: evaluated with the other crop, resize_square.",
        ),
        (
            None, "resize_small",
            "Accuracies in per cent, evaluated with eval_crop=resize_small. The paper has no row for this model.",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_the_note_names_both_crops(key, eval_crop, line):
    assert sweep_results.note(key and paper.find(*key, eval_crop), eval_crop) == line
