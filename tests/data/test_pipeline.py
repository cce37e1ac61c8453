"""The batch at a step has the same bytes in every way of making it."""

import time
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from batches import KEYS, assert_same, host_rows, joined, train, with_bad
from making import (
    BATCH,
    encode,
    evaluate,
    examples_of,
    input_config,
    photo,
    source_of,
)

from mixer.data import order, pipeline
from mixer.data.pixels import augment, augmentations, crops, image_status, images
from mixer.data.readers import open_source
from mixer.data.sources import Example

CONFIGS = {
    "plain": {},
    "blocks": {"shuffle_block": 5, "shuffle_window": 2},
    "randaugment": {"randaugment": 2},
}


# ------------------------------------------------------------------------------------------------------ same bytes


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_is_a_function_of_its_step(prepared, name, tmp_path):
    config = input_config(dataset="pictures", data_dir=str(prepared["tfrecord"]), **CONFIGS[name])
    source = open_source(config, "train", tmp_path)
    expected = train(source, config, range(4))  # into the third epoch
    assert [batch["image"].shape for batch in expected] == [(BATCH, 16, 16, 3)] * 4
    assert {key: value.dtype for key, value in expected[0].items()} == {
        "image": np.uint8, "labels": np.int32, "weight": np.float32, "status": np.int32,
    }  # fmt: skip
    for batch in expected:
        assert (batch["weight"] == 1).all()
        assert (batch["status"] == image_status.OK).all()
        assert batch["labels"].shape == (BATCH, 1)
    assert_same(train(source, config, range(4)), expected)
    assert_same(train(source, config, range(3, 4)), expected[3:])
    assert_same(joined([train(source, config, range(2, 4), rows) for rows in host_rows(2)]), expected[2:])
    assert_same(joined([train(source, config, range(1), rows) for rows in host_rows(8)]), expected[:1])

    config.data_dir = str(prepared["array_record"])
    assert_same(train(open_source(config, "train", tmp_path), config, range(4)), expected)
    other = train(source, config, range(1), seed=6)[0]
    assert (other["image"] != expected[0]["image"]).any(axis=(1, 2, 3)).mean() > 0.9


def test_large_batches_are_read_in_chunks_that_do_not_show():
    config = input_config(image_size=4)
    source = source_of(examples_of(30))
    rows = [slice(0, 192), slice(192, 198), slice(198, 199), slice(199, 200)]
    parts = [
        list(pipeline.train_batches(source, config, seed=0, batch_size=200, rows=part, steps=range(1))) for part in rows
    ]
    whole = list(pipeline.train_batches(source, config, seed=0, batch_size=200, rows=slice(0, 200), steps=range(1)))
    assert_same(joined(parts), whole)


@pytest.mark.parametrize("crop", crops.CROPS)
def test_the_order_the_draws_and_the_pixels_are_their_functions(crop):
    """Computes each row with the functions that have their own tests."""
    config = input_config(crop=crop, shuffle_block=3, shuffle_window=2)
    files = examples_of(31)
    for step, batch in zip((1, 2), train(source_of(files), config, range(1, 3)), strict=True):
        positions = step * BATCH + np.arange(BATCH)
        numbers = order.record_numbers(positions, 31, 5, block=3, window=2)
        draws = order.uniform(5, positions, augmentations.num_draws(config))
        np.testing.assert_array_equal(batch["labels"][:, 0], numbers % 3)
        for row, number in enumerate(numbers):
            image = images.inspect(files[number].image, 10**6)
            size = np.array([[image.height, image.width]], np.int32)
            window = augment.crop_windows(size, draws[row : row + 1], config)
            of = (image.data, np.int32(image.encoding), size[0], window[0])
            pixels = augment.train_pixels(*map(tf.constant, of), config).numpy()
            expected = augment.train_image(pixels, draws[row], augmentations.draw_slices(config), config)
            np.testing.assert_array_equal(batch["image"][row], expected)


def test_every_epoch_meets_every_example_once_and_augments_it_anew():
    config = input_config()
    colours = [np.full((8, 8, 3), 7 * i, np.uint8) for i in range(BATCH)]
    flat = source_of([Example(encode(colour), (0,)) for colour in colours])
    for batch in train(flat, config, range(3)):
        assert sorted(batch["image"][:, 0, 0, 0].tolist()) == [7 * i for i in range(BATCH)]
        assert (batch["image"] == batch["image"][:, :1, :1, :1]).all()
    first, second = train(source_of(examples_of(BATCH)), config, range(2))
    images_of = [{row.tobytes() for row in batch["image"]} for batch in (first, second)]
    assert len(images_of[0] & images_of[1]) <= 1


def test_labels_are_padded(prepared_multilabel, tmp_path):
    config = input_config(dataset="pictures", data_dir=str(prepared_multilabel), max_labels=4)
    source = open_source(config, "train", tmp_path)
    (batch,) = evaluate(source, config, 12, slice(0, 12))
    expected = [[j if j < i % 4 else -1 for j in range(4)] for i in range(12)]
    np.testing.assert_array_equal(batch["labels"], expected)


# ------------------------------------------------------------------------------------------------------ registries


def test_a_new_augmentation_works(monkeypatch):
    """It is applied after all others, and changes neither the crops nor the other augmentations."""
    source, config = source_of(examples_of(30)), input_config(randaugment=1)
    before = train(source, config, range(2))

    def dim(image: np.ndarray, draws: np.ndarray, config: Any) -> np.ndarray:
        return image // 2 if draws[0] < 0.5 else image

    dimmed = augmentations.Augmentation(lambda config: 1, dim, lambda config: "dimmed")
    monkeypatch.setitem(augmentations.AUGMENTATIONS, "dim", dimmed)
    found = train(source, config, range(2))
    for step, (one, other) in enumerate(zip(found, before, strict=True)):
        last = order.uniform(5, step * BATCH + np.arange(BATCH), augmentations.num_draws(config))[:, -1]
        expected = np.where((last < 0.5)[:, None, None, None], other["image"] // 2, other["image"])
        np.testing.assert_array_equal(one["image"], expected)


def test_a_new_crop_works(monkeypatch):
    def top_half(sizes: np.ndarray, draws: np.ndarray, config: Any) -> np.ndarray:
        windows = crops.whole(sizes, draws, config)
        windows[:, 2] = np.maximum(windows[:, 2] // 2, 1)
        return windows

    monkeypatch.setitem(crops.CROPS, "top_half", crops.Crop("top halves", top_half, crops.resize))
    halves = [photo(40, 30, seed=i) for i in range(BATCH)]
    source = source_of([Example(encode(half), (0,)) for half in halves])
    (found,) = train(source, input_config(crop="top_half", flip=False), range(1))
    alone = source_of([Example(encode(half[:20]), (0,)) for half in halves])
    (expected,) = train(alone, input_config(crop="resize", flip=False), range(1))
    assert_same([found], [expected])


# ------------------------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("count", [1, 23, 24, 25, 48])
@pytest.mark.parametrize("hosts", [1, 2, 8])
def test_evaluation_meets_every_example_once(count, hosts):
    config = input_config(image_size=4)
    files = [Example(encode(np.full((9, 9, 3), i, np.uint8)), (i,)) for i in range(count)]
    source = source_of(files)
    shares = [evaluate(source, config, BATCH, rows) for rows in host_rows(hosts)]
    assert {len(share) for share in shares} == {-(-count // BATCH)}
    batches = joined(shares)
    rows = {key: np.concatenate([batch[key] for batch in batches]) for key in KEYS}
    np.testing.assert_array_equal(rows["weight"], np.arange(len(rows["weight"])) < count)
    np.testing.assert_array_equal(rows["labels"][:count, 0], np.arange(count))
    np.testing.assert_array_equal(rows["image"][:count, 0, 0, 0], np.arange(count))
    assert (rows["labels"][count:] == -1).all()
    assert (rows["status"] == image_status.OK).all()
    assert {batch["image"].shape for share in shares for batch in share} == {(BATCH // hosts, 4, 4, 3)}


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("records", [[7], [30, 3, 3, 59, 0], [*range(59, 10, -1)]], ids=len)
def test_evaluation_of_chosen_examples_in_their_order(records, hosts):
    config = input_config(max_pixels=10**6)
    examples = with_bad(examples_of(60), {30: "zeros", 25: "broken Huffman table"})
    whole = evaluate(source_of(examples), config, 60, slice(0, 60))[0]
    shares = [
        list(pipeline.eval_batches(source_of(examples), config, batch_size=BATCH, rows=rows, records=np.array(records)))
        for rows in host_rows(hosts)
    ]
    batches = joined(shares)
    assert len(batches) == -(-len(records) // BATCH)
    for key in KEYS:
        rows = np.concatenate([batch[key] for batch in batches])
        np.testing.assert_array_equal(rows[: len(records)], whole[key][records])
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert not weight[len(records) :].any()


# ------------------------------------------------------------------------------------------------------ the dataset


def test_a_dataset_ends_at_once():
    """With autotuning, about one close in three waited, for up to as long as the dataset had been read."""
    source, waited = source_of(examples_of(9)), []
    for _ in range(8):
        batches = pipeline.train_batches(
            source, input_config(), seed=5, batch_size=BATCH, rows=slice(0, BATCH), steps=range(10**6)
        )
        since = time.monotonic()
        while time.monotonic() < since + 0.5:
            next(batches)
        since = time.monotonic()
        batches.close()
        waited.append(time.monotonic() - since)
    assert sorted(waited)[-2] < 0.2  # on a busy machine, one may take longer


def test_autograph_logs_nothing(caplog):
    logging.set_verbosity(logging.INFO)
    train(source_of(examples_of(5)), input_config(randaugment=1), range(1))
    assert "AutoGraph" not in caplog.text


# ------------------------------------------------------------------------------------------------------ real images


def test_cifar10_is_what_tfds_decodes(shared_data, tmp_path):
    data_dir = str(shared_data / "tfds")
    config = input_config(
        dataset="cifar10", data_dir=data_dir, image_size=32, eval_crop="resize_square", eval_resize=32
    )
    source = open_source(config, "test[:100]", tmp_path)
    assert list(source.class_names)[:3] == ["airplane", "automobile", "bird"]
    expected = list(tfds.load("cifar10", split="test[:100]", data_dir=data_dir, download=False).as_numpy_iterator())
    batches = evaluate(source, config, 50, slice(0, 50))
    np.testing.assert_array_equal(
        np.concatenate([batch["image"] for batch in batches]), [example["image"] for example in expected]
    )
    np.testing.assert_array_equal(
        np.concatenate([batch["labels"][:, 0] for batch in batches]), [example["label"] for example in expected]
    )


def test_photographs_of_many_sizes(shared_data, tmp_path):
    """All of these files of ImageNet can be decoded, in training and in evaluation."""
    paths = sorted((shared_data / "imagenet_samples").glob("*.JPEG"))[:BATCH]
    examples = [Example(path.read_bytes(), (0,)) for path in paths]
    (batch,) = train(source_of(examples), input_config(image_size=64), range(1))
    (whole,) = evaluate(source_of(examples), input_config(image_size=64), BATCH, slice(0, BATCH))
    for found in (batch, whole):
        assert (found["weight"] == 1).all()
        assert (found["image"].std(axis=(1, 2, 3)) > 5).all()
