"""A bad image changes only its own row of a batch, and an error in reading arrives as what it is."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from batches import BAD, assert_same_but, host_rows, joined, statuses_of, train, with_bad
from making import (
    BATCH,
    evaluate,
    examples_of,
    input_config,
    labelled,
    pictures,
    source_of,
    write_dataset,
)

from mixer.data import order, pipeline
from mixer.data.pixels import image_status
from mixer.data.pixels.image_status import STATUSES
from mixer.data.readers import open_source
from mixer.data.sources import Example, Source
from mixer.runtime.errors import UserError


@pytest.mark.parametrize("randaugment", [0, 1])
def test_bad_images_keep_their_slots(randaugment):
    config = input_config(max_pixels=10**6, randaugment=randaugment)
    examples = examples_of(40)
    bad = dict(zip(range(3, 40, 5), BAD, strict=False))
    numbers = order.record_numbers(np.arange(3 * BATCH), 40, 5).reshape(3, BATCH)
    statuses = statuses_of(bad, numbers)
    assert set(statuses.ravel()) == {STATUSES.index(status) for status in ("ok", *(s for _, s in BAD.values()))}
    expected = train(source_of(examples), config, range(3))
    source = source_of(with_bad(examples, bad))
    assert_same_but(train(source, config, range(3)), expected, statuses)
    halves = joined([train(source, config, range(1, 3), rows) for rows in host_rows(2)])
    assert_same_but(halves, expected[1:], statuses[1:])


@pytest.mark.parametrize("at", [{0}, {3}, {1, 2}, {0, 1, 2, 3}])
def test_an_image_that_fails_in_the_decoder_keeps_its_slot(at, monkeypatch):
    """Such images are in the first batch, the last, two consecutive ones, or all. Each batch gives a warning."""
    warned = []
    monkeypatch.setattr(pipeline._log, "warning", lambda *of: warned.append(of[1]))
    config = input_config()
    examples = examples_of(4 * BATCH)
    numbers = order.record_numbers(np.arange(4 * BATCH), 4 * BATCH, 5).reshape(4, BATCH)
    bad = {int(numbers[step, row]): name
           for step, (row, name) in zip(sorted(at), itertools.cycle([(3, "broken Huffman table"), (23, "wrong checksum")]))}  # fmt: skip # noqa: E501
    found = train(source_of(with_bad(examples, bad)), config, range(4))
    assert_same_but(found, train(source_of(examples), config, range(4)), statuses_of(bad, numbers))
    assert warned == sorted(at)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_damaged_record_keeps_its_slot(file_format, tmp_path):
    files = pictures(30)
    write_dataset(tmp_path, file_format, {"train": labelled(files)}, shards=2)
    config = input_config(dataset="pictures", data_dir=str(tmp_path))
    expected = train(open_source(config, "train", tmp_path), config, range(2))
    for shard in (tmp_path / "pictures").rglob("pictures-train*"):
        content = bytearray(shard.read_bytes())
        if files[13] in content:
            content[content.index(files[13]) + 50] ^= 1
            shard.write_bytes(content)
    numbers = order.record_numbers(np.arange(2 * BATCH), 30, 5).reshape(2, BATCH)
    statuses = np.where(numbers == 13, image_status.BAD_RECORD, image_status.OK)
    assert statuses.any()
    assert_same_but(train(open_source(config, "train", tmp_path), config, range(2)), expected, statuses)


def test_bad_images_keep_their_slots_in_evaluation():
    config = input_config(max_pixels=10**6)
    examples = examples_of(60)
    bad = dict(zip(range(1, 60, 8), BAD, strict=False))
    numbers = np.arange(72).reshape(3, BATCH)
    expected = evaluate(source_of(examples), config, BATCH, slice(0, BATCH))
    found = evaluate(source_of(with_bad(examples, bad)), config, BATCH, slice(0, BATCH))
    assert_same_but(found, expected, statuses_of(bad, numbers))
    assert sum(batch["weight"].sum() for batch in found) == 60 - len(bad)


# ------------------------------------------------------------------------------------------------------ errors


def test_a_user_s_error_arrives_as_one():
    def fetch(numbers: np.ndarray) -> list[Example]:
        raise UserError("an example has 9 labels: set config.input.max_labels; or not")

    source = Source(30, ("a", "b"), 1, False, fetch)
    for batches in (
        pipeline.train_batches(source, input_config(), seed=0, batch_size=8, rows=slice(0, 8), steps=range(3)),
        pipeline.eval_batches(source, input_config(), batch_size=8, rows=slice(0, 8)),
    ):
        with pytest.raises(UserError) as caught:
            next(iter(batches))
        assert str(caught.value) == "an example has 9 labels: set config.input.max_labels; or not"


def test_a_user_s_error_beside_a_bad_image_arrives_too():
    """The example with too many labels comes when the images of the batch are decoded one by one."""
    tried = []

    def fetch(numbers: np.ndarray) -> list[Example]:
        tried.append(numbers)
        if len(tried) > 1:
            raise UserError("too many labels")
        return [Example(BAD["broken Huffman table"][0], (0,)) for _ in numbers]

    source = Source(8, ("a", "b"), 1, False, fetch)
    batches = pipeline.train_batches(source, input_config(), seed=0, batch_size=8, rows=slice(0, 8), steps=range(1))
    with pytest.raises(UserError, match=r"^too many labels$"):
        next(iter(batches))


def test_other_errors_arrive_as_they_are():
    def fetch(numbers: np.ndarray) -> list[Example]:
        raise ValueError("a mistake in the program")

    source = Source(30, ("a", "b"), 1, False, fetch)
    batches = pipeline.train_batches(source, input_config(), seed=0, batch_size=8, rows=slice(0, 8), steps=range(3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="a mistake in the program"):
        next(iter(batches))
