"""What the evaluator of a split takes from its own settings and from the run's, and which classes it accepts."""

import types

import pytest

from mixer.config import recipe
from mixer.evaluation import class_matching, classification
from mixer.runtime.errors import UserError

OF_RUN = {"dataset": "imagenet2012", "label_key": "label", "max_labels": 3, "data_dir": "here", "eval_resize": 99}


def test_an_evaluator_without_settings_reads_the_runs_input():
    config = recipe.base().input
    config.update(OF_RUN)
    found = classification.input_of(recipe.evaluator_settings("classification", split="test"), config)
    assert found.to_dict() == config.to_dict()


def test_an_evaluators_own_settings_count_before_the_runs():
    config = recipe.base().input
    config.update(OF_RUN)
    own = {"dataset": "cifar10", "data_dir": "there", "eval_crop": "resize_square", "eval_resize": 40}
    found = classification.input_of(recipe.evaluator_settings("classification", split="test", **own), config)
    assert {name: found[name] for name in own} == own
    assert (found.label_key, found.max_labels) == (None, None)  # of imagenet2012 alone
    assert found.image_size == config.image_size
    assert config.dataset == "imagenet2012"  # the run's own input is left as it is


def context(num_classes, class_names=None):
    return types.SimpleNamespace(
        source="the model", class_names=class_names, model=types.SimpleNamespace(num_classes=num_classes)
    )


def test_the_classes_of_data_and_model_are_compared_by_number_and_name():
    check = getattr(class_matching.check, "__wrapped__", class_matching.check)
    check(context(2), ["cat", "dog"])
    check(context(2, ["cat", "dog"]), ["cat", "dog"])
    with pytest.raises(UserError, match="the model tells 1,000 classes apart, the data has 2: fine-tune it first"):
        check(context(1000), ["cat", "dog"])
    with pytest.raises(UserError, match="not those of the data: class 1 is 'dog' there and 'cow' here"):
        check(context(2, ["cat", "dog"]), ["cat", "cow"])
