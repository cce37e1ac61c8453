"""Datasets in a bucket give the same bits as on a local disk, with few requests, or one line if they cannot."""

import logging
import pathlib
import re
import time
import types
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from making import CLASSES, all_of, encode, input_config, labelled, pictures, write_dataset
from ml_collections import ConfigDict

from mixer.data import pipeline
from mixer.data.folders import folder
from mixer.data.readers import open_source
from mixer.data.records import records, tfrecord_index
from mixer.data.sources import Source
from mixer.runtime import distributed
from mixer.runtime.errors import MissingDataError, UserError
from tests.bucket.fake_bucket import FakeBucket
from tests.bucket.faults import Fault
from tests.bucket.log import Entry

BATCH = 128


@pytest.fixture
def there(bucket: FakeBucket) -> Iterator[FakeBucket]:
    """Returns the fake bucket, with this process's clients brought to it."""
    with bucket.here():
        yield bucket


@pytest.fixture(scope="session")
def noise(tmp_path_factory) -> pathlib.Path:
    """Returns the `data_dir` of 640 images of about 12 kB in two shards."""
    data_dir, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    files = [encode(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(640)]
    write_dataset(data_dir, "tfrecord", {"train": labelled(files)}, shards=2, shuffled=True)
    records.write_index(data_dir / "pictures/1.0.0")
    return data_dir


def config_of(data_dir: object, **fields) -> ConfigDict:
    return input_config(**{"dataset": "pictures", "data_dir": str(data_dir)} | fields)


def opened(data_dir: object, cache: object, split: str = "train", **fields) -> Source:
    return open_source(config_of(data_dir, **fields), split, str(cache))


def batches(source: Source, config: ConfigDict, steps: range, rows: slice = slice(0, BATCH)) -> list[pipeline.Batch]:
    return list(pipeline.train_batches(source, config, seed=3, batch_size=BATCH, rows=rows, steps=steps))


def without_index(bucket: FakeBucket, data_dir: pathlib.Path, prefix: str) -> None:
    """Uploads a dataset. An index that another test has made is left out."""
    bucket.upload(data_dir, prefix)
    for name in bucket.objects(prefix):
        if "/index-" in name:
            bucket.delete(name)


def data_reads(bucket: FakeBucket) -> list[Entry]:
    return [entry for entry in bucket.log() if entry.operation == "read" and ".tfrecord-" in entry.name]


def refusal(data_dir: object, cache: object, **fields) -> str:
    with pytest.raises(UserError) as caught:
        opened(data_dir, cache, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------- budget


def test_an_image_costs_a_tenth_of_a_request_and_its_own_bytes(there, noise, tmp_path):
    there.upload(noise, "noise")
    source = opened(there.path("noise"), tmp_path)
    there.clear_log()
    there.control(latency_ms=300)  # on a busy machine too, requests come faster than the first is answered
    steps = range(3, 9)  # an epoch ends after step 4
    batches(source, config_of(there.path("noise")), steps)
    reads = data_reads(there)
    images = len(steps) * BATCH
    own = sum(path.stat().st_size for path in noise.rglob("*.tfrecord-*")) / source.num_examples
    assert 0.05 < len(reads) / images <= 0.1
    assert sum(entry.sent for entry in reads) / images <= 1.2 * own
    assert len(reads) == len(there.log())  # nothing else is asked for
    assert max(entry.in_flight for entry in reads) >= 20


def test_the_batches_are_those_of_a_local_disk(there, noise, tmp_path):
    there.upload(noise, "noise")
    local, remote = opened(noise, tmp_path), opened(there.path("noise"), tmp_path)
    assert (local.remote, local.shuffle_block, remote.remote, remote.shuffle_block) == (False, 1, True, 16)
    steps, rows = range(4, 6), slice(32, 96)  # over the end of an epoch, one of two hosts
    found = batches(remote, config_of(there.path("noise")), steps, rows)
    expected = batches(local, config_of(noise, shuffle_block=16), steps, rows)
    for mine, other in zip(found, expected, strict=True):
        for name in other:
            np.testing.assert_array_equal(mine[name], other[name])
    assert len(np.unique(found[0]["image"], axis=0)) == 64


def test_records_that_were_not_shuffled_are_drawn_one_by_one(there, tmp_path):
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(5))}, shards=1)
    there.upload(tmp_path, "sorted")
    assert opened(there.path("sorted"), tmp_path / "cache").shuffle_block == 1


def test_evaluation_reads_each_record_once(there, noise, tmp_path):
    there.upload(noise, "noise")
    source = opened(there.path("noise"), tmp_path)
    there.clear_log()
    found = pipeline.eval_batches(source, config_of(noise), batch_size=BATCH, rows=slice(0, BATCH))
    assert sum(batch["weight"].sum() for batch in found) == 640
    assert len(data_reads(there)) <= 640 / 64 + 2


def test_a_thousand_shards_are_opened_within_seconds(there, tmp_path):
    files = [encode(np.full((1, 1, 3), i % 256, np.uint8)) for i in range(1024)]
    write_dataset(tmp_path, "tfrecord", {"train": labelled(files)}, shards=1024)
    there.upload(tmp_path, "many")
    there.control(latency_ms=30)
    start = time.monotonic()
    opened(there.path("many"), tmp_path / "cache")  # makes the index
    assert len(data_reads(there)) == 1024
    there.clear_log()
    start = time.monotonic()
    assert opened(there.path("many"), tmp_path / "cache").num_examples == 1024
    assert time.monotonic() - start < 10
    assert len(there.log()) <= 25


# --------------------------------------------------------------------------------------------------------------- index


def test_the_index_is_made_once_in_large_reads(there, noise, tmp_path, caplog):
    there.upload(noise, "noise")
    expected = there.content("noise/pictures/1.0.0/index-train.npy")
    there.delete("noise/pictures/1.0.0/index-train.npy")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(tfrecord_index, "_REQUEST_BYTES", 100_000)
    monkey.setattr(tfrecord_index, "_PROGRESS_SECONDS", 0.0)
    with monkey.context(), caplog.at_level(logging.WARNING, "mixer"):
        opened(there.path("noise"), tmp_path)
    monkey.undo()
    assert there.content("noise/pictures/1.0.0/index-train.npy") == expected
    reads = data_reads(there)
    size = sum(path.stat().st_size for path in noise.rglob("*.tfrecord-*"))
    assert size * 0.95 < sum(entry.sent for entry in reads) <= size
    assert len(reads) <= size / 80_000
    assert "scripts/prepare.py index" in caplog.text
    assert re.findall(r"index: (\d+)%", caplog.text)[-1] == "100"
    there.clear_log()
    opened(there.path("noise"), tmp_path)
    assert not data_reads(there)
    assert not list(tmp_path.iterdir())


def test_write_index_is_the_same_in_a_bucket(there, noise):
    there.upload(noise, "noise")
    expected = there.content("noise/pictures/1.0.0/index-train.npy")
    there.put("noise/pictures/1.0.0/index-train.npy", b"")
    records.write_index(there.path("noise/pictures/1.0.0"))
    assert there.content("noise/pictures/1.0.0/index-train.npy") == expected


def test_an_index_that_may_not_lie_beside_the_data_goes_below_the_run(there, prepared, tmp_path):
    without_index(there, prepared["tfrecord"], "bare")
    there.control(fail=[Fault("^POST", 403)])
    assert opened(there.path("bare"), tmp_path / "cache").num_examples == 41
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["pictures-1.0.0-index-train.npy"]
    there.clear_log()
    opened(there.path("bare"), tmp_path / "cache")
    assert not data_reads(there)


def test_an_index_below_a_run_in_the_bucket_is_found_again(there, prepared):
    without_index(there, prepared["tfrecord"], "bare")
    opened(there.path("bare"), there.path("run/cache"))
    index = there.content("bare/pictures/1.0.0/index-train.npy")
    there.delete("bare/pictures/1.0.0/index-train.npy")
    there.put("run/cache/pictures-1.0.0-index-train.npy", index)
    there.clear_log()
    opened(there.path("bare"), there.path("run/cache"))
    assert not data_reads(there)


def test_an_index_that_may_lie_nowhere_is_an_error_for_several_processes(there, prepared, monkeypatch, caplog):
    without_index(there, prepared["tfrecord"], "nowhere")
    there.control(fail=[Fault("^POST", 403)])
    assert opened(there.path("nowhere"), there.path("run/cache")).num_examples == 41  # one process does without
    assert "next start makes it again" in caplog.text
    there.clear_log()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert "prepare.py index --dataset gs://" in refusal(there.path("nowhere"), there.path("run/cache"))
    assert not data_reads(there)  # said before all of it is read


def test_the_other_processes_wait_for_the_index(there, noise, tmp_path, monkeypatch, caplog):
    there.upload(noise, "noise")
    name = "noise/pictures/1.0.0/index-train.npy"
    index = there.content(name)
    there.delete(name)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:  # process 0 has made it meanwhile
            there.put(name, index)

    monkeypatch.setattr(tfrecord_index, "time", types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    assert opened(there.path("noise"), tmp_path).num_examples == 640
    assert len(waits) == 2
    assert not data_reads(there)
    assert "Waiting for process 0" in caplog.text


def test_a_process_whose_copy_of_the_data_has_no_index_does_not_wait_for_that_of_process_0(
    there, prepared, tmp_path, monkeypatch
):
    without_index(there, prepared["tfrecord"], "first")
    without_index(there, prepared["tfrecord"], "second")
    told = {}
    store = types.SimpleNamespace(
        key_value_set=lambda key, value, allow_overwrite: told.update({key: value}),
        blocking_key_value_get=lambda key, within: told[key],
    )
    monkeypatch.setattr(distributed, "processes", lambda: distributed.Processes(store, 0, 2))
    assert opened(there.path("first"), tmp_path / "0").num_examples == 41
    monkeypatch.setattr(distributed, "processes", lambda: distributed.Processes(store, 1, 2))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    line = refusal(there.path("second"), tmp_path / "1")
    where = r"gs://\S+/second/\S+ has no index, and process 0, which makes one, reads gs://\S+/first/\S+: run `python "
    assert re.search(where + r"scripts/prepare.py index --dataset gs://\S+/second/\S+` first", line)


@pytest.mark.parametrize("cut", [1, 5, 300])
def test_a_shard_cut_short_is_an_error(there, prepared, tmp_path, cut):
    prefix = f"cut{cut}"
    without_index(there, prepared["tfrecord"], prefix)
    name = next(name for name in there.objects(prefix) if "train.tfrecord-00001" in name)
    there.put(name, there.content(name)[:-cut])
    assert "cut short" in refusal(there.path(prefix), tmp_path)


# -------------------------------------------------------------------------------------------------------------- errors


def test_what_cannot_be_opened_is_one_line(there, prepared, tmp_path):
    there.upload(prepared["array_record"], "array")
    assert "array_record files cannot be read from a bucket" in refusal(there.path("array"), tmp_path)
    assert "no such bucket" in refusal("gs://mixer-tset/tfds", tmp_path)
    assert "only local paths and gs://" in refusal("s3://bucket/tfds", tmp_path)
    with pytest.raises(MissingDataError):
        opened(there.path("nothing"), tmp_path, dataset="imagenet2012")
    there.upload(prepared["tfrecord"], "gone")
    there.delete(next(name for name in there.objects("gone") if "train.tfrecord-00002" in name))
    assert "1 of the dataset's 4 shards are missing" in refusal(there.path("gone"), tmp_path)
    there.upload(prepared["tfrecord"], "secret")
    there.control(fail=[Fault("dataset_info", 403)])
    assert "dataset_info.json" in refusal(there.path("secret"), tmp_path)


@pytest.mark.parametrize("fault", [Fault("tfrecord", 403), Fault("tfrecord", 404)], ids=["forbidden", "deleted"])
def test_a_file_that_is_lost_during_training_is_one_line(there, noise, tmp_path, fault):
    there.upload(noise, "noise")
    source = opened(there.path("noise"), tmp_path)
    there.control(fail=[fault])
    with pytest.raises(
        UserError, match=r"^gs://.*tfrecord-0000\d-of-00002 can no longer be read \(.+\).*again$"
    ) as caught:
        batches(source, config_of(there.path("noise")), range(2))
    assert "\n" not in str(caught.value)


def test_a_short_outage_changes_no_bit(there, noise, tmp_path):
    there.upload(noise, "noise")
    source, config = opened(there.path("noise"), tmp_path), config_of(there.path("noise"))
    expected = batches(source, config, range(2))
    there.control(fail=[
        Fault("tfrecord", 503, times=3), Fault("tfrecord", 429, times=3), Fault("tfrecord", cut_after=500, times=2),
    ])  # fmt: skip
    for mine, other in zip(batches(source, config, range(2)), expected, strict=True):
        np.testing.assert_array_equal(mine["image"], other["image"])
        assert mine["weight"].all()


# -------------------------------------------------------------------------------------------------------------- folder


def test_a_folder_of_images(there, tmp_path, caplog):
    folder._warn_of_requests.cache_clear()  # another test may have opened a folder of this name
    for number, data in enumerate(pictures(60)):
        path = tmp_path / "own" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "own" / CLASSES[0] / ".hidden.png").write_bytes(b"")
    there.upload(tmp_path / "own", "own")
    for split in ("train", "validation"):
        local = opened(tmp_path / "own", tmp_path, split, dataset="folder")
        there.clear_log()
        remote = opened(there.path("own"), tmp_path, split, dataset="folder")
        assert remote.class_names == local.class_names
        assert len(there.log()) < 20
        assert all_of(remote) == all_of(local)
    assert (remote.remote, remote.shuffle_block) == (True, 1)
    assert caplog.text.count("scripts/prepare.py folder") == 1

    train = opened(there.path("own"), tmp_path, dataset="folder")
    there.clear_log()
    there.control(latency_ms=300)
    train.fetch(np.arange(40))
    assert max(entry.in_flight for entry in there.log()) >= 10
    there.control(latency_ms=0)
    lost = next(name for name in there.objects("own") if all_of(train)[0].image == there.content(name))
    there.delete(lost)
    assert [image is None for image, _ in all_of(train)] == [n == 0 for n in range(train.num_examples)]
    there.control(fail=[Fault("own.*png", 403)])
    with pytest.raises(UserError, match=r"own/.*png cannot be read"):
        batches(train, config_of(there.path("own"), dataset="folder"), range(1))
    assert "is not a folder" in refusal(there.path("nothing"), tmp_path, dataset="folder")
