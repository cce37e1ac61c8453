"""Every stage is a part of the training pipeline, and a slow part shows as a cost of its stage."""

import dataclasses
import itertools
import json
import threading
import time

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mixer.config import checks, recipe
from mixer.data import order, pipeline, readers
from mixer.data.pixels import augment, augmentations
from mixer.performance import input_speed
from mixer.performance.input_speed import InputSpeed, Rate
from mixer.runtime import devices
from mixer.runtime.errors import UserError

BATCH = 16
STAGES = ["read", "decode and crop", "augment", "batch", "copy"]
SHORT = {"host_cores": 3, "seconds": 0.1, "blocks": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of two classes of twelve JPEGs each, 64 to 130 pixels a side."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(24):
        y, x = np.mgrid[: 64 + 6 * (number % 12), : 128 - 5 * (number % 7)]
        pixels = np.stack([x + 5 * number, 2 * y, 127 + 100 * np.sin(x * y / 500 + number)], axis=-1).astype(np.uint8)
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)
    return folder


def make_config(folder, layers=0, **settings):
    config = recipe.base()
    config.batch_size = BATCH
    config.input.update({"dataset": "folder", "data_dir": str(folder), "image_size": 32, **settings})
    config.input.randaugment.layers = layers
    return checks.checked(config)


def feeds_of(config, tmp_path):
    source = readers.open_source(config.input, "train", tmp_path)
    return source, input_speed._feeds(source, config, devices.make_mesh(), slice(0, BATCH))


@pytest.fixture
def few_kept(monkeypatch):
    monkeypatch.setattr(input_speed, "_KEPT", 20)


# ---------------------------------------------------------------------------------------------------- the real pipeline


@pytest.mark.parametrize("settings", [{"layers": 1}, {"crop": "random"}, {"crop": "pad", "flip": False}], ids=str)
def test_stages_compute_what_training_gets(photos, settings, tmp_path, few_kept):
    config = make_config(photos, **settings)
    steps = range(3, 5)
    source, feeds = feeds_of(config, tmp_path)
    arguments = {"seed": config.seed, "batch_size": BATCH, "rows": slice(0, BATCH), "steps": steps}
    expected = list(pipeline.train_batches(source, config.input, **arguments))
    plain = make_config(photos, **{**settings, "layers": 0, "flip": False}).input
    cropped = list(pipeline.train_batches(source, plain, **arguments))
    last = [{key: rows[-8:] for key, rows in batch.items()} for batch in expected]  # the last group
    found = {name: list(feed(steps)) for name, feed in feeds.items()}
    assert list(found) == [*STAGES, "decoding alone"]
    assert {len(batches) for batches in found.values()} == {len(steps)}
    for step in range(len(steps)):
        for key in ("labels", "weight", "status"):
            np.testing.assert_array_equal(found["read"][step][key], last[step][key])
        jax.tree.map(np.testing.assert_array_equal, found["augment"][step], last[step])
        jax.tree.map(np.testing.assert_array_equal, found["batch"][step], expected[step])
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found["copy"][step]), expected[step])
        np.testing.assert_array_equal(found["decode and crop"][step]["image"], cropped[step]["image"][-8:])
    assert config.to_dict() == make_config(photos, **settings).to_dict()  # unchanged by the stage that does not augment


def test_decoding_alone_has_the_windows_of_training(photos, tmp_path, few_kept):
    """Two batches, 32 images, are kept. After them the cycle starts again."""
    config = make_config(photos)
    source, feeds = feeds_of(config, tmp_path)
    positions = np.array([15, 31, 15])
    files = [example.image for example in source.fetch(order.record_numbers(positions, source.num_examples, 0))]
    sizes = np.array([tf.io.decode_jpeg(file).shape[:2] for file in files])
    draws = order.uniform(0, positions, augmentations.num_draws(config.input))
    windows = augment.crop_windows(sizes, draws, config.input)
    for file, (top, left, height, width), found in zip(files, windows, feeds["decoding alone"](range(3)), strict=True):
        whole = tf.io.decode_jpeg(file, channels=3).numpy()
        assert found.shape == (height, width, 3)
        np.testing.assert_array_equal(found, whole[top : top + height, left : left + width])


def test_decoding_alone_has_the_scale_of_training(photos, tmp_path, few_kept):
    config = make_config(photos, scaled_decoding=True, image_size=16, crop_area=(0.5, 1.0))
    source, feeds = feeds_of(config, tmp_path)
    steps = range(2)
    read = pipeline.train_examples(
        source, config.input, seed=config.seed, batch_size=BATCH, rows=slice(0, BATCH), steps=steps, verify=True
    )
    last = [{name: rows[-1] for name, rows in batch.items()} for batch in pipeline.batched(read, BATCH)]
    scaled = 0
    for example, found in zip(last, feeds["decoding alone"](steps), strict=True):
        arguments = (example[name] for name in ("data", "encoding", "size", "window"))
        expected = augment.train_pixels(*arguments, config.input)
        np.testing.assert_array_equal(found, expected)
        scaled += bool(found.shape[0] < int(example["window"][2]))
    assert scaled


# ---------------------------------------------------------------------------------------------------------- measurement


def test_a_measurement(photos, tmp_path, few_kept):
    found = input_speed.measure(make_config(photos), tmp_path, **SHORT)
    assert list(found.stages) == STAGES
    for rate in (*found.stages.values(), found.decoding_alone):
        assert 0 < rate.least <= rate.median <= rate.most
    assert (found.devices, found.device_kind, found.batch_rows) == (8, "cpu", BATCH)
    assert found.host_cores == 3
    assert found.images_per_block >= BATCH
    assert found.images_per_block % BATCH == 0


def test_a_block_has_at_least_one_batch(photos, tmp_path, few_kept):
    found = input_speed.measure(make_config(photos), tmp_path, host_cores=1, seconds=0.0, blocks=1)
    assert found.images_per_block == BATCH


def test_stages_take_turns_and_are_timed_after_they_have_warmed_up(photos, monkeypatch, tmp_path):
    """A batch takes its stage's seconds and one more in each block, the first one twice as many, on a clock by hand."""
    now, order = [0.0], []

    def feed_of(number):
        def feed(steps):
            block = sum(name == number for name in order)
            order.append(number)
            for batch in itertools.count():
                now[0] += (number + block) * (1 if batch else 2)
                yield batch

        return feed

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    feeds = {name: feed_of(number) for number, name in enumerate([*STAGES, "decoding alone"], start=6)}
    monkeypatch.setattr(input_speed, "_feeds", lambda *_: feeds)
    found = input_speed.measure(make_config(photos), tmp_path, 2, seconds=36, blocks=3)
    assert order == [6, 7, 8, 9, 10, 11] * 3
    expected = [Rate(BATCH / (stage + 1), BATCH / (stage + 2), BATCH / stage) for stage in range(6, 12)]
    assert [*found.stages.values(), found.decoding_alone] == expected
    assert found.images_per_block == 3 * BATCH  # 13 seconds a batch in the last block of the last stage


def slow_fetch(monkeypatch):
    """Slows reading. One thread at a time, since otherwise batches would come in bursts as long as a block."""
    opened, lock = readers.open_source, threading.Lock()

    def open_source(*arguments):
        source = opened(*arguments)

        def fetch(numbers):
            with lock:
                time.sleep(0.05)
            return source.fetch(numbers)

        return dataclasses.replace(source, fetch=fetch)

    monkeypatch.setattr(readers, "open_source", open_source)


def slow_augmentation(monkeypatch):
    augment, lock = augmentations.augment, threading.Lock()

    def slow(*arguments):
        with lock:
            time.sleep(0.01)
        return augment(*arguments)

    monkeypatch.setattr(augmentations, "augment", slow)


def slow_copy(monkeypatch):
    to_devices = devices.to_devices

    def slow(*arguments):
        time.sleep(0.2)
        return to_devices(*arguments)

    monkeypatch.setattr(devices, "to_devices", slow)


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "stage"), [(slow_fetch, "read"), (slow_augmentation, "augment"), (slow_copy, "copy")])
def test_a_slow_part_shows_in_its_stage(photos, slow, stage, monkeypatch, tmp_path, few_kept):
    slow(monkeypatch)
    # The median of three blocks: this machine may stand still for as long as one of them.
    found = input_speed.measure(make_config(photos), tmp_path, 2, seconds=0.3, blocks=3)
    costs = found.core_microseconds()
    assert max(costs, key=costs.get) == stage
    assert costs[stage] > 0.5 * sum(costs.values())
    assert found.decoding_alone.median > 2 * found.whole.median


def test_an_image_that_does_not_decode_is_skipped(photos, tmp_path, few_kept):
    for number, path in enumerate(sorted(photos.glob("*/*.jpg"))):
        data = path.read_bytes()
        at = data.index(b"\xff\xc4") + 5  # counts of the first Huffman table
        copied = tmp_path / "bad" / path.parent.name / path.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(data if number % 8 else data[:at] + b"\xff" * 16 + data[at + 16 :])
    _, feeds = feeds_of(make_config(tmp_path / "bad"), tmp_path)
    for feed in feeds.values():
        assert len(list(feed(range(2)))) == 2


def test_a_missing_dataset_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        input_speed.measure(make_config(tmp_path / "none"), tmp_path, **SHORT)


# -------------------------------------------------------------------------------------------------------------- report

FOUND = InputSpeed(
    host_cores=4,
    devices=2,
    device_kind="TPU v9",
    batch_rows=256,
    images_per_block=1024,
    stages=dict(
        zip(STAGES, [Rate(8000, 7900, 8100), *(Rate(rate, rate, rate) for rate in (2000, 1000, 900, 800))], strict=True)
    ),
    decoding_alone=Rate(2500, 2400, 2600),
)


def test_costs_are_differences_of_seconds_per_image():
    costs = FOUND.core_microseconds()
    assert costs == pytest.approx(dict(zip(STAGES, [500, 1500, 2000, 444.4, 555.6], strict=True)), abs=0.1)
    assert sum(costs.values()) == pytest.approx(4e6 / FOUND.whole.median)


def test_cores_needed():
    """Each of the four cores makes 200 images/s."""
    assert FOUND.whole == Rate(800, 800, 800)
    assert [FOUND.cores_needed(rate) for rate in (1, 200, 201, 1384, 10_000)] == [1, 1, 2, 7, 50]
    for rate in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite number above 0"):
            FOUND.cores_needed(rate)


def test_the_table():
    assert FOUND.table().splitlines() == [
        "4 host cores, 2 x TPU v9; 256 images a batch, 1,024 or more a block",
        "                   images/s  per host core   least-most  own core-us/image",
        "read                  8,000          2,000  7,900-8,100                500",
        "+ decode and crop     2,000            500  2,000-2,000              1,500",
        "+ augment             1,000            250  1,000-1,000              2,000",
        "+ batch                 900            225      900-900                444",
        "+ copy                  800            200      800-800                556",
        "decoding alone        2,500            625  2,400-2,600              1,600",
        "the whole pipeline: 32% of the rate of decoding alone",
    ]


def test_the_dict_is_for_json():
    found = json.loads(json.dumps(FOUND.as_dict()))
    assert found["stages"]["read"] == {"median": 8000, "least": 7900, "most": 8100}
    assert found["share_of_bound"] == 0.32
    assert list(found["core_microseconds"]) == STAGES
    assert (
        InputSpeed(
            **{field.name: found[field.name] for field in dataclasses.fields(InputSpeed)}
            | {"stages": {name: Rate(**rate) for name, rate in found["stages"].items()}}
            | {"decoding_alone": Rate(**found["decoding_alone"])}
        )
        == FOUND
    )
