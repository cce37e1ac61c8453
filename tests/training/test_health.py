"""When unusable images end a run: each counts once, in at least a thousand."""

import pytest

from mixer.config import recipe
from mixer.runtime.errors import UserError
from mixer.training import health


def check(bad, seen, num_examples):
    health.check_images({"bad_images/empty": bad}, "bad_images/", seen, num_examples, recipe.base())


@pytest.mark.parametrize(
    ("bad", "seen", "num_examples"),
    [
        (10, 100, 54),  # five images of 54, twice
        (30 * 10, 30 * 54, 54),  # ten of them, in each of thirty epochs
        (10, 100, 10_000),
        (100, 10_000, 10_000),
        (300, 30_000, 10_000),
    ],
)
def test_a_hundredth_of_at_least_a_thousand_images_may_be_unusable(bad, seen, num_examples):
    check(bad, seen, num_examples)
    with pytest.raises(UserError, match=r"cannot be used \(.* empty\), more than config.input.max_bad_share=1.00%"):
        check(2 * bad + 11, seen, num_examples)


def test_unusable_images_are_told_by_evaluator_and_kind():
    counts = {
        "train/loss": 0.5, "train/bad_images/empty": 3.0, "val/bad_images/empty": 1, "val_ema/bad_images/empty": 1,
        "val/accuracy": 0.5, "few/bad_images/truncated": 2, "few/bad_images/empty": 1,
    }  # fmt: skip
    assert health.unusable_images(counts) == (
        "in training, as often as met, 3 empty; in the last evaluation 1 empty; "
        "in the last evaluation of few 2 truncated, 1 empty"
    )
    assert health.unusable_images({"train/loss": 0.5}) == ""
