"""What both pipelines ask of an image before it is decoded: a label in training, a size that fits, an opaque ground."""

import numpy as np
import pytest
from making import BATCH, encode, evaluate, examples_of, input_config, photo, source_of

from mixer.data import pipeline
from mixer.data.pixels import crops, image_status
from mixer.data.sources import Example, Source
from mixer.runtime.errors import UserError

# -------------------------------------------------------------------------------------------------------------- labels


def test_training_refuses_images_without_a_label():
    """As a test split has them (-1). To a sigmoid loss they would be examples of no class."""
    examples = examples_of(60)
    examples[41] = Example(examples[41].image, (-1,))
    config = input_config(max_pixels=10**6)
    batches = pipeline.train_batches(
        source_of(examples), config, seed=0, batch_size=BATCH, rows=slice(0, BATCH), steps=range(3)
    )
    with pytest.raises(UserError, match="training example 41 has no label: leave the unlabelled images"):
        list(batches)
    assert sum(batch["weight"].sum() for batch in evaluate(source_of(examples), config, BATCH, slice(0, BATCH))) == 60


def test_an_empty_set_of_labels_is_trained_on():
    source = source_of([Example(encode(photo(20, 20)), ())] * BATCH, max_labels=2)
    batches = pipeline.train_batches(
        source, input_config(), seed=0, batch_size=BATCH, rows=slice(0, BATCH), steps=range(1)
    )
    assert (next(batches)["labels"] == -1).all()


# ---------------------------------------------------------------------------------------------- narrow and transparent


def one_picture(data: bytes) -> Source:
    return source_of([Example(data, (0,))] * BATCH)


def test_a_narrow_picture_is_cut_before_it_is_resized(monkeypatch):
    """With a resize that cannot be cut, the picture is counted, which shows that both pipelines look at it."""
    config = input_config(max_pixels=1000, crop="random")
    source = one_picture(encode(photo(1, 500)))
    (whole,) = evaluate(source, config, BATCH, slice(0, BATCH))
    assert (whole["status"] == image_status.OK).all()
    monkeypatch.setitem(crops.EVAL_CROPS, "resize_small", crops.EVAL_CROPS["resize_small"]._replace(method="bilinear"))
    (evaluated,) = evaluate(source, config, BATCH, slice(0, BATCH))
    (trained,) = pipeline.train_batches(source, config, seed=0, batch_size=BATCH, rows=slice(0, BATCH), steps=range(1))
    for batch in (evaluated, trained):
        assert (batch["status"] == image_status.TOO_LARGE).all()


def test_transparent_pixels_are_white_by_option():
    clear = np.zeros((20, 20, 4), np.uint8)
    for option, value in (("drop", 0), ("white", 255)):
        (batch,) = evaluate(one_picture(encode(clear)), input_config(transparent=option), BATCH, slice(0, BATCH))
        assert (batch["image"] == value).all()
