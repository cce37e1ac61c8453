"""The paper's numbers, and what relates them."""

import pytest

from mixer import models
from mixer.config import paper, tasks


@pytest.mark.parametrize(
    ("key", "epochs", "numbers"),
    [
        (("B/16", "i1k", 224), 300, (76.44, 82.36, 88.33, 1384, 0.01)),
        (("B/16", "i21k", 224), 300, (80.64, 85.80, 92.50, 1384, 0.15)),
        (("L/16", "i21k", 448), 300, (83.91, 87.75, 93.86, 105, 0.41)),
        (("S/32", "jft", 224), 5, (68.70, 75.83, 87.13, 11489, 0.01)),
        (("L/16", "jft", 224), 14, (84.82, 88.48, 94.77, 419, 0.45)),  # not the one of 7 epochs
        (("H/14", "jft", 448), 14, (87.94, 90.18, 95.71, 40, 1.01)),  # Table 2
    ],
    ids=str,
)
def test_rows(key, epochs, numbers):
    row = paper.find(*key)
    assert (row.variant, row.pretraining, row.image_size, row.epochs) == (*key, epochs)
    assert numbers == (row.imagenet, row.real, row.avg5, row.images_per_sec_per_core, row.thousand_core_days)


def test_table_3_has_fourteen_mixers_and_each_is_a_model_of_ours():
    assert [row.table for row in paper.ROWS].count(3) == 14
    assert len({(row.variant, row.pretraining, row.image_size, row.epochs, row.table) for row in paper.ROWS}) == 16
    for row in paper.ROWS:
        assert row.image_size % models.create(row.variant, 0).patch_size == 0


def test_what_relates_the_numbers():
    """A typing error in a row would break one of these."""
    for row in paper.ROWS:
        assert row.imagenet < row.real < row.avg5 < 100
    # Speed is a matter of model and resolution alone; more computation is more slowness.
    speeds = {(row.variant, row.image_size): row.images_per_sec_per_core for row in paper.ROWS}
    assert all(speeds[row.variant, row.image_size] == row.images_per_sec_per_core for row in paper.ROWS)
    order = [("S/32", 224), ("B/32", 224), ("S/16", 224), ("B/16", 224), ("L/32", 224), ("L/16", 224), ("H/14", 224),
             ("L/16", 448), ("H/14", 448)]  # fmt: skip
    assert sorted(speeds, key=speeds.get, reverse=True) == order
    # More parameters help on JFT-300M, at the same patch size; on ImageNet-1k they hurt.
    for smaller, larger, data, better in (
        ("S/32", "B/32", "jft", True),
        ("B/32", "L/32", "jft", True),
        ("S/16", "B/16", "jft", True),
        ("B/16", "L/16", "jft", True),
        ("B/16", "L/16", "i21k", True),
        ("B/16", "L/16", "i1k", False),
    ):
        one, other = paper.find(smaller, data, 224), paper.find(larger, data, 224)
        assert (one.imagenet < other.imagenet, one.real < other.real, one.avg5 < other.avg5) == (better,) * 3
    # Twice the resolution is a better model, and no more pre-training.
    for variant, data in (("L/16", "i21k"), ("L/16", "jft"), ("H/14", "jft")):
        small, large = paper.find(variant, data, 224), paper.find(variant, data, 448)
        assert small.imagenet < large.imagenet
        assert (small.thousand_core_days, small.epochs) == (large.thousand_core_days, large.epochs)


@pytest.mark.parametrize(
    ("key", "eval_crop", "imagenet", "table"),
    [
        (("L/16", "i21k", 448), "resize_small", 83.91, 3),
        (("L/16", "i21k", 448), "resize_square", 84.15, 2),
        (("H/14", "jft", 448), "resize_small", 87.94, 2),  # in Table 2 alone
        (("B/16", "i21k", 224), "resize_square", 80.64, 3),  # in Table 3 alone
        (("L/16", "jft", 224), "resize_square", 84.82, 3),
    ],
    ids=str,
)
def test_the_table_with_the_same_crop_comes_first(key, eval_crop, imagenet, table):
    row = paper.find(*key, eval_crop)
    assert (row.imagenet, row.table, row.eval_crop) == (imagenet, table, paper.EVAL_CROPS[table])


def test_table_2s_row_of_l16():
    row = paper.find("L/16", "i21k", 448, "resize_square")
    numbers = (row.imagenet, row.real, row.avg5, row.images_per_sec_per_core, row.thousand_core_days)
    assert numbers == (84.15, 87.86, 93.91, 105, 0.41)


def test_avg5_is_over_five_tasks():
    assert len(tasks.AVG5) == 5


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("B/16", "imagenet", 224), "pre-training data 'imagenet': expected one of i1k, i21k, jft"),
        (
            ("B/16", "i21k", 448),
            "the paper has no Mixer-B/16 from ImageNet-21k at 448 pixels; it has B/16 at 224, L/16 at 224, L/16 at 448",
        ),
    ],
    ids=str,
)
def test_what_the_paper_does_not_have(key, line):
    with pytest.raises(ValueError, match=r"no Mixer|expected one of") as caught:
        paper.find(*key)
    assert str(caught.value) == line
