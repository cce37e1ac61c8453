"""The registries of crops. What each crop does is tested in test_augment.py."""

import pytest
from making import input_config

from mixer.data.crops import CROPS, EVAL_CROPS, eval_resize


@pytest.mark.parametrize("crop", [*CROPS.values(), *EVAL_CROPS.values()], ids=[*CROPS, *EVAL_CROPS])
def test_every_crop_is_described(crop):
    described = crop.described.format(size=256)
    assert described.strip()
    assert "{" not in described


@pytest.mark.parametrize(("image_size", "size"), [(224, 256), (32, 37), (16, 18), (448, 512)])
def test_evaluation_resizes_to_eight_sevenths_unless_told_otherwise(image_size, size):
    assert eval_resize(input_config(image_size=image_size)) == size
    assert eval_resize(input_config(image_size=image_size, eval_resize=300)) == 300
