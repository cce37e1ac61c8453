"""Records fetched by number are those that TFDS reads in order. Damage costs one record, or is an error at once."""

import json
import os
import pathlib
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mixer.data.records import array_records, records, tfrecord_index, tfrecords
from mixer.runtime.errors import UserError

FORMATS = ("tfrecord", "array_record")
SPLITS = (
    "train", "validation", "train[10%:55%]", "train[5:9]+validation", "validation+train[:3]", "train[-4:]", "all",
    "train[:3]+train[5:]", "train+validation+train[2:]",
)  # fmt: skip
VERSION = "pictures/1.0.0"


def open_builder(data_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    return tfds.builder_from_directory(data_dir / VERSION)


@pytest.fixture(params=FORMATS)
def own(request, prepared, tmp_path) -> pathlib.Path:
    """Returns a copy of the dataset. The test may damage it."""
    shutil.copytree(prepared[request.param], tmp_path / "own", ignore=shutil.ignore_patterns("index-*"))
    return tmp_path / "own"


@pytest.fixture
def own_tfrecord(prepared, tmp_path) -> pathlib.Path:
    shutil.copytree(prepared["tfrecord"], tmp_path / "own", ignore=shutil.ignore_patterns("index-*"))
    return tmp_path / "own"


def shards(data_dir: pathlib.Path, split: str = "train") -> list[pathlib.Path]:
    return sorted((data_dir / VERSION).glob(f"pictures-{split}.*-of-*"))


def flip(path: pathlib.Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def image_of(record: bytes | None) -> bytes:
    assert record is not None
    return tf.train.Example.FromString(record).features.feature["image"].bytes_list.value[0]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("file_format", FORMATS)
def test_records_are_what_tfds_reads(prepared, file_format, split, tmp_path):
    builder = open_builder(prepared[file_format])
    raw = {"image": tfds.decode.SkipDecoding()}
    if file_format == "array_record":
        expected = [bytes(e["image"]) for e in builder.as_data_source(split, decoders=raw)]
    else:
        config = tfds.ReadConfig(interleave_cycle_length=1)  # in the order of the files
        dataset = builder.as_dataset(split, decoders=raw, read_config=config)
        expected = [e["image"] for e in dataset.as_numpy_iterator()]
    count, read = records.open_records(builder, split, tmp_path)
    assert count == len(expected) == builder.info.splits[split].num_examples
    assert [image_of(record) for record in read(np.arange(count))] == expected
    numbers = np.random.default_rng(0).integers(0, count, 60)
    assert [image_of(record) for record in read(numbers)] == [expected[n] for n in numbers]
    assert read(np.array([], np.int64)) == []


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_empty_split_has_no_records(prepared, file_format, tmp_path):
    count, read = records.open_records(open_builder(prepared[file_format]), "train[:0]", tmp_path)
    assert count == 0
    assert read(np.array([], np.int64)) == []


def test_many_threads_read_at_once(own):
    count, read = records.open_records(open_builder(own), "train", own)
    expected = read(np.arange(count))
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            numbers = rng.integers(0, count, 16)
            if read(numbers) != [expected[n] for n in numbers]:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -------------------------------------------------------------------------------------------------------------- damage


def test_a_flipped_byte_costs_one_record(own):
    whole = records.open_records(open_builder(own), "train", own)[1](np.arange(41))
    for shard in shards(own):
        content = shard.read_bytes()
        inside = [n for n, record in enumerate(whole) if image_of(record) in content]
        assert len(inside) > 3
        victim = inside[len(inside) // 2]
        flip(shard, content.index(image_of(whole[victim])) + 40)
        count, read = records.open_records(open_builder(own), "train", own)
        expected = [None if n == victim else record for n, record in enumerate(whole)]
        for numbers in (np.arange(count), np.arange(count)[::-1], np.array([victim]), np.array([victim + 1, victim])):
            assert read(numbers) == [expected[n] for n in numbers]
        flip(shard, content.index(image_of(whole[victim])) + 40)


@pytest.mark.parametrize("part", ["length", "checksum of the length", "checksum"])
def test_a_tfrecord_s_frame_may_be_damaged_too(own_tfrecord, part):
    count, read = records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)
    whole = read(np.arange(count))
    shard = shards(own_tfrecord)[0]
    second = 12 + len(whole[0]) + 4
    flip(shard, {"length": second, "checksum of the length": second + 8, "checksum": second - 4}[part])
    # The start of each record is in the index now, so the header before a record is no longer read.
    expected = [None, *whole[1:]] if part == "checksum" else whole
    assert records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)[1](np.arange(count)) == expected


def test_a_missing_shard_is_an_error(own):
    shards(own)[2].unlink()
    with pytest.raises(UserError, match=r"1 of the dataset's 4 shards are missing, the first is .*-00002-of-00004"):
        records.open_records(open_builder(own), "train", own)
    assert records.open_records(open_builder(own), "validation", own)[0] == 7


def test_a_shard_that_goes_away_while_it_is_read_is_an_error(own_tfrecord):
    count, read = records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)
    shards(own_tfrecord)[0].unlink()
    with pytest.raises(UserError, match=r"-00000-of-00004 can no longer be read \(No such file or directory\): see"):
        read(np.arange(count))


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("cut", [1, 5, 300])
def test_a_tfrecord_shard_cut_short_is_an_error(own_tfrecord, indexed, cut):
    if indexed:
        records.write_index(own_tfrecord / VERSION)
    shard = shards(own_tfrecord)[1]
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"-00001-of-00004.* cut short") as caught:
        records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [1, 5, 300])
def test_an_array_record_shard_cut_short_is_an_error(prepared, tmp_path, cut):
    shutil.copytree(prepared["array_record"], tmp_path / "own")
    shard = shards(tmp_path / "own")[1]
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"-00001-of-00004 holds 0 records .* cut short"):
        records.open_records(open_builder(tmp_path / "own"), "train", tmp_path)


def test_an_array_record_shard_of_another_dataset_is_an_error(prepared, tmp_path):
    shutil.copytree(prepared["array_record"], tmp_path / "own")
    info = next((tmp_path / "own").rglob("dataset_info.json"))
    found = json.loads(info.read_text())
    train = next(split for split in found["splits"] if split["name"] == "train")
    train["shardLengths"][1] = str(int(train["shardLengths"][1]) - 1)
    info.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"-00001-of-00004 holds \d+ records where \d+ are expected: it is of another"):
        records.open_records(open_builder(tmp_path / "own"), "train", tmp_path)


def test_a_shard_with_more_records_than_known_is_an_error(own_tfrecord):
    first, second = shards(own_tfrecord)[:2]
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(UserError, match="more than the"):
        records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)


@pytest.mark.parametrize(
    "damage", ["another dataset's", "half", "empty", "text", "pickle", "archive", "half an archive", "fractions"]
)
def test_an_index_that_does_not_fit_is_an_error(own_tfrecord, damage):
    records.write_index(own_tfrecord / VERSION)
    index = own_tfrecord / VERSION / "index-train.npy"
    content = index.read_bytes()
    if damage == "another dataset's":
        np.save(index, np.arange(10))
    elif damage == "pickle":
        np.save(index, np.array([pathlib.Path()] * len(np.load(index)), object), allow_pickle=True)
    elif damage == "archive":
        with index.open("wb") as file:
            np.savez(file, np.arange(10))
    elif damage == "fractions":
        np.save(index, np.load(index).astype(np.float64))
    else:
        index.write_bytes({"half": content[: len(content) // 2], "empty": b"", "text": b"nothing",
                           "half an archive": b"PK\x03\x04"}[damage])  # fmt: skip
    with pytest.raises(UserError, match=r"index-train\.npy is not the index.*delete it"):
        records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)
    index.unlink()
    assert records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)[0] == 41


def test_formats_without_random_access_are_errors(own_tfrecord):
    info = own_tfrecord / VERSION / "dataset_info.json"
    info.write_text(info.read_text().replace("tfrecord", "riegeli"))
    for shard in shards(own_tfrecord):
        shard.rename(str(shard).replace("tfrecord", "riegeli"))
    with pytest.raises(UserError, match="'riegeli' has no random access"):
        records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)


# --------------------------------------------------------------------------------------------------------------- index


def test_the_index_is_made_once(own_tfrecord, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    count, read = records.open_records(open_builder(own_tfrecord), "train", cache)
    expected = read(np.arange(count))
    assert not cache.exists()
    assert [path.name for path in (own_tfrecord / VERSION).glob("index*")] == ["index-train.npy"]
    monkeypatch.setattr(tfrecord_index, "make", lambda *_: pytest.fail("made again"))
    assert records.open_records(open_builder(own_tfrecord), "train[3:20]", cache)[1](np.arange(17)) == expected[3:20]


def test_write_index_makes_them_all_beforehand(own, monkeypatch):
    before = os.listdir(own / VERSION)
    records.write_index(own / VERSION)
    made = set(os.listdir(own / VERSION)) - set(before)
    is_tfrecord = ".tfrecord" in shards(own)[0].name
    assert made == ({"index-train.npy", "index-validation.npy"} if is_tfrecord else set())
    monkeypatch.setattr(tfrecord_index, "make", lambda *_: pytest.fail("made again"))
    assert records.open_records(open_builder(own), "train+validation", own)[0] == 48


def test_the_index_goes_to_the_cache_where_the_dataset_s_folder_cannot_be_written_to(
    own_tfrecord, tmp_path, monkeypatch
):
    save = tfrecord_index.save

    def read_only(path, offsets):
        if "own" in str(path):
            raise PermissionError("read-only file system")
        save(path, offsets)

    monkeypatch.setattr(tfrecord_index, "save", read_only)
    count, read = records.open_records(open_builder(own_tfrecord), "train", tmp_path / "cache")
    expected = read(np.arange(count))
    (index,) = (tmp_path / "cache").iterdir()
    assert index.name == "pictures-1.0.0-index-train.npy"
    monkeypatch.setattr(tfrecord_index, "make", lambda *_: pytest.fail("made again"))
    assert (
        records.open_records(open_builder(own_tfrecord), "train", tmp_path / "cache")[1](np.arange(count)) == expected
    )
    assert not list((own_tfrecord / VERSION).glob("index*"))


def test_the_records_are_there_even_where_no_index_can_be_kept(own_tfrecord, monkeypatch):
    def full(path, offsets):
        raise OSError("no space left on device")

    monkeypatch.setattr(tfrecord_index, "save", full)
    count, read = records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)
    assert None not in read(np.arange(count))


def test_half_an_index_is_never_used(own_tfrecord, tmp_path, monkeypatch):
    """A process that ends too early may leave a file with another name, which is not used as an index."""
    save = np.save

    def interrupted(file, offsets):
        save(file, offsets)
        file.seek(100)
        file.truncate()
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        records.open_records(open_builder(own_tfrecord), "train", tmp_path / "cache")
    monkeypatch.setattr(np, "save", save)
    assert not list((own_tfrecord / VERSION).glob("index-*.npy"))
    assert None not in records.open_records(open_builder(own_tfrecord), "train", tmp_path / "cache")[1](np.arange(41))


def test_a_full_disk_leaves_nothing_behind(own_tfrecord, tmp_path, monkeypatch):
    def full(file, offsets):
        file.write(b"\x93NUMPY")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full)
    records.open_records(open_builder(own_tfrecord), "train", tmp_path / "cache")
    assert not list((own_tfrecord / VERSION).glob("index*"))
    assert not list((tmp_path / "cache").iterdir())


def test_processes_that_make_the_same_index_do_not_meet(own_tfrecord):
    """Processes on several hosts may share a folder, and may have the same process number."""
    failures = []

    def work() -> None:
        try:
            assert None not in records.open_records(open_builder(own_tfrecord), "train", own_tfrecord)[1](np.arange(41))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.name for path in (own_tfrecord / VERSION).glob("index*")] == ["index-train.npy"]


# ---------------------------------------------------------------------------------------------------------------- runs


def test_neighbours_are_fetched_with_one_read(own_tfrecord, monkeypatch):
    builder = open_builder(own_tfrecord)
    lengths = builder.info.splits["train"].shard_lengths
    _, read = records.open_records(builder, "train", own_tfrecord)
    read_bytes, reads = tfrecords._read_bytes, []
    monkeypatch.setattr(tfrecords, "_read_bytes", lambda *of: (reads.append(of), read_bytes(*of))[1])
    read(np.array([5, 3, 4, 7]))
    assert len(reads) == 2
    reads.clear()
    read(np.arange(41))
    assert [stop - start for _, start, stop in reads] == [path.stat().st_size for path in shards(own_tfrecord)]
    reads.clear()
    read(np.array([lengths[0] - 1, lengths[0]]))  # neighbours in different files
    assert len(reads) == 2


def test_neighbours_are_fetched_with_one_read_of_an_array_record(prepared, tmp_path, monkeypatch):
    reader, reads = array_records.array_record_module.ArrayRecordReader, []

    class Counting(reader):
        def read(self, first, stop):
            reads.append((first, stop))
            return super().read(first, stop)

    monkeypatch.setattr(array_records.array_record_module, "ArrayRecordReader", Counting)
    _, read = records.open_records(open_builder(prepared["array_record"]), "train", tmp_path)
    read(np.array([5, 3, 4, 7]))
    assert reads == [(3, 6), (7, 8)]
