import collections
import io
import itertools
import json
import os
import pathlib
import shutil

import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from making import all_of, encode, input_config, photo
from PIL import Image

from mixer.data.datasets import checked_images, class_folders, dataset_files, shard_plan
from mixer.data.pixels import images
from mixer.data.pixels.image_status import OK
from mixer.data.readers import open_source
from mixer.runtime.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SHARD = 8_000  # bytes: several shards, several images in each


@pytest.fixture
def root(tmp_path):
    """Three classes with 36 images of all formats, and three files that are no images."""
    for n in range(36):
        file = tmp_path / "photos" / ("cat", "dog", "old fish")[n % 3] / f"{n}.{FORMATS[n // 3 % 6].lower()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(photo(20 + n, 40 - n, seed=n), FORMATS[n // 3 % 6]))
    whole = encode(photo(40, 40), "JPEG")
    (tmp_path / "photos/cat/cut.jpg").write_bytes(whole[:-200])
    (tmp_path / "photos/dog/empty.png").write_bytes(b"")
    (tmp_path / "photos/dog/text.jpg").write_bytes(b"hello")
    return tmp_path / "photos"


def prepare(root, data_dir, **options):
    """Returns what is said after what was found, if that is said at all."""
    said = []
    options = {"shard_bytes": SHARD, "report": said.append} | options
    class_folders.prepare(str(root), str(data_dir), "mine", **options)
    return said[1:]


def contents(data_dir):
    folder = pathlib.Path(class_folders.dataset_folder(str(data_dir), "mine"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decoded(examples):
    """Returns size, pixels and labels of the usable images of a source."""
    usable = [(image, labels) for image, labels in examples if images.inspect(image, 10**6).status == OK]
    opened = [(Image.open(io.BytesIO(image)).convert("RGB"), labels) for image, labels in usable]
    return sorted((image.size, image.tobytes(), labels) for image, labels in opened)


def test_every_image_of_the_folder_reader_is_in_the_records(root, tmp_path):
    prepare(root, tmp_path / "d")
    for split in ("train", "validation"):
        folder = open_source(input_config(dataset="folder", data_dir=str(root)), split, tmp_path)
        records = open_source(input_config(dataset="mine", data_dir=str(tmp_path / "d")), split, tmp_path / "cache")
        assert records.class_names == folder.class_names == ["cat", "dog", "old fish"]
        found = all_of(records)
        assert decoded(found) == decoded(all_of(folder))
        kept = {image for image, _ in all_of(folder)} & {image for image, _ in found}
        assert len(kept) > len(found) / 4  # a third are JPEG or PNG, which stay as they are
    assert not (tmp_path / "cache").exists()  # the index came with the records


def test_tfds_reads_it(root, tmp_path):
    prepare(root, tmp_path / "d", validation_share=0.25)
    builder = tfds.builder("mine", data_dir=tmp_path / "d")
    assert builder.info.features["label"].names == ["cat", "dog", "old fish"]
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 27, "validation": 9}
    assert builder.info.splits["train"].num_shards > 2
    for split, count in (("train", 27), ("validation", 9)):
        examples = list(builder.as_dataset(split=split).as_numpy_iterator())  # decoded by TFDS
        assert len(examples) == count
        assert all(example["image"].shape[2] == 3 for example in examples)


def test_folders_for_the_splits(root, tmp_path):
    (root / "val").mkdir()
    for name in ("cat", "dog", "old fish"):
        shutil.move(root / name, root / "train" / name)
    shutil.copytree(root / "train" / "dog", root / "val" / "dog")
    prepare(root, tmp_path / "d", validation_share=0.0)
    sizes = {
        name: split.num_examples for name, split in tfds.builder("mine", data_dir=tmp_path / "d").info.splits.items()
    }
    assert sizes == {"train": 36, "validation": 12}


def test_a_folder_for_tests_and_what_was_found(root, tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            shutil.copytree(root / name, tmp_path / "own" / split / name)
    (tmp_path / "own" / "train" / "cat" / "a.heic").write_bytes(b"x")
    said = []
    prepare(tmp_path / "own", tmp_path / "d", report=said.append)
    infos = tfds.builder("mine", data_dir=tmp_path / "d").info.splits
    assert {name: split.num_examples for name, split in infos.items()} == {"train": 22, "validation": 2, "test": 24}
    reader = open_source(input_config(dataset="folder", data_dir=str(tmp_path / "own")), "train", tmp_path)
    assert said[0].splitlines() == reader.report
    assert "1 .heic" in said[0]


def test_without_validation(root, tmp_path):
    prepare(root, tmp_path / "d", validation_share=0.0)
    assert list(tfds.builder("mine", data_dir=tmp_path / "d").info.splits) == ["train"]


def test_unusable_images_are_counted_and_listed(root, tmp_path):
    prepare(root, tmp_path / "d")
    metadata = tfds.builder("mine", data_dir=tmp_path / "d").info.metadata
    assert metadata["skipped"] == {"truncated": 1, "empty": 1, "unknown_format": 1}
    lines = [json.loads(line) for line in contents(tmp_path / "d")["rejects.jsonl"].splitlines()]
    assert {line["image"]: line["problem"] for line in lines} == {
        "cat/cut.jpg": "truncated",
        "dog/empty.png": "empty",
        "dog/text.jpg": "unknown_format",
    }


def test_neighbours_are_of_random_classes_and_the_same_everywhere(root, tmp_path):
    prepare(root, tmp_path / "d")
    shutil.copytree(root, tmp_path / "elsewhere" / "p")
    prepare(tmp_path / "elsewhere" / "p", tmp_path / "e")
    assert contents(tmp_path / "d") == contents(tmp_path / "e")
    source = open_source(input_config(dataset="mine", data_dir=str(tmp_path / "d")), "train", tmp_path)
    labels = [example.labels[0] for example in all_of(source)]
    same = sum(a == b for a, b in itertools.pairwise(labels)) / len(labels)
    assert same < 0.6  # a third by chance; nearly all in the order of the folders


class KilledError(BaseException):
    """Stands for a signal: nothing catches it."""


def test_interrupted_at_any_write_it_ends_with_the_same_bytes(root, tmp_path, monkeypatch):
    prepare(root, tmp_path / "whole")
    whole, write, check = contents(tmp_path / "whole"), dataset_files.write, checked_images.check
    checked = collections.Counter()
    monkeypatch.setattr(checked_images, "check", lambda file, *rest: checked.update([file.path]) or check(file, *rest))
    for last in itertools.count():
        left = iter([True] * last)

        def write_or_die(target, name, content, left=left):
            if not next(left, False):
                raise KilledError
            write(target, name, content)

        data_dir = tmp_path / str(last)
        monkeypatch.setattr(dataset_files, "write", write_or_die)
        try:
            prepare(root, data_dir)
            break
        except KilledError:
            written = os.listdir(data_dir / "mine/1.0.0") if last else []
            shards = sum(name.endswith(".progress.json") for name in written)
            with pytest.raises(tfds.core.DatasetNotFoundError):
                tfds.builder("mine", data_dir=data_dir)  # it is no dataset yet
        monkeypatch.setattr(dataset_files, "write", write)
        checked.clear()
        said = prepare(root, data_dir)
        assert contents(data_dir) == whole
        total = sum(".tfrecord-" in name for name in whole)
        assert said == ([f"Continues: {shards} of {total} shards are there."] if shards else [])
        assert (shards < total) == bool(checked)
        assert not checked or max(checked.values()) == 1
    assert last == len(whole) + total - 2  # two indices are not written by it, and each shard has a record


@pytest.mark.parametrize("change", ["more", "other", "fewer", "option"])
def test_other_images_or_options_begin_anew(root, tmp_path, monkeypatch, change):
    _interrupt(root, tmp_path / "d", monkeypatch)
    options = {}
    if change == "more":
        (root / "cat" / "new.jpg").write_bytes(encode(photo(30, 30, seed=77), "JPEG"))
    elif change == "other":
        data = (root / "cat" / "0.jpeg").read_bytes()
        (root / "cat" / "0.jpeg").write_bytes(
            encode(photo(20, 40, seed=5), "JPEG").ljust(len(data), b"\0")[: len(data)]
        )
        os.utime(root / "cat" / "0.jpeg", ns=(1, 1))
    elif change == "fewer":
        (root / "cat" / "0.jpeg").unlink()
    else:
        options = {"shard_bytes": SHARD // 2}
    (said,) = prepare(root, tmp_path / "d", **options)
    assert "begins anew" in said
    prepare(root, tmp_path / "e", **options)
    assert contents(tmp_path / "d") == contents(tmp_path / "e")  # and nothing of the old shards is left


def test_a_shard_that_is_not_as_noted_is_written_again(root, tmp_path, monkeypatch):
    _interrupt(root, tmp_path / "d", monkeypatch)
    shard = min((tmp_path / "d/mine/1.0.0").glob("*.tfrecord-*[0-9]"))
    shard.write_bytes(shard.read_bytes()[:-1])
    prepare(root, tmp_path / "d")
    prepare(root, tmp_path / "e")
    assert contents(tmp_path / "d") == contents(tmp_path / "e")


def _interrupt(root, data_dir, monkeypatch):
    """Prepares two shards and a part of the third."""
    write, left = dataset_files.write, iter([True] * 5)

    def write_or_die(target, name, content):
        if not next(left, False):
            pathlib.Path(target, f".{name}.1234abcd.partial").write_bytes(content[:100])
            raise KilledError
        write(target, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(dataset_files, "write", write_or_die)
        with pytest.raises(KilledError):
            prepare(root, data_dir)


def test_only_one_process_prepares_a_dataset(root, tmp_path):
    with dataset_files.lock(str(tmp_path / "d"), "mine"):
        with pytest.raises(UserError, match=r"/d/mine is being prepared by another process: wait until it is done"):
            prepare(root, tmp_path / "d")
        prepare(root, tmp_path / "e")
    prepare(root, tmp_path / "d")
    assert contents(tmp_path / "d") == contents(tmp_path / "e")


def test_what_another_process_has_finished_meanwhile_stays(root, tmp_path, monkeypatch):
    make_plan = shard_plan.make_plan

    def plan_while_another_prepares(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(shard_plan, "make_plan", make_plan)
            prepare(root, tmp_path / "d")
        finished.update({path: path.stat().st_mtime_ns for path in (tmp_path / "d/mine/1.0.0").iterdir()})
        return make_plan(*arguments)

    finished: dict[pathlib.Path, int] = {}
    monkeypatch.setattr(shard_plan, "make_plan", plan_while_another_prepares)
    prepare(root, tmp_path / "d")
    assert finished
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "d/mine/1.0.0").iterdir()} == finished


@pytest.mark.parametrize("change", [lambda shard: shard.unlink(), lambda shard: shard.write_bytes(b"x")])
def test_a_shard_that_another_process_takes_away_is_missed(root, tmp_path, monkeypatch, change):
    """In a bucket nothing keeps a second process out."""
    write_missing = class_folders._write_missing

    def write_and_lose(target, *arguments):
        written = write_missing(target, *arguments)
        change(pathlib.Path(target, min(written)))
        return written

    monkeypatch.setattr(class_folders, "_write_missing", write_and_lose)
    with pytest.raises(UserError, match=r"1 of \d+ shards are gone or changed, the first is mine-"):
        prepare(root, tmp_path / "d")
    assert not class_folders.is_prepared(class_folders.dataset_folder(str(tmp_path / "d"), "mine"))


def test_a_finished_dataset_stays_as_it_is(root, tmp_path):
    prepare(root, tmp_path / "d")
    folder = tmp_path / "d/mine/1.0.0"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "mine-train.tfrecord-00000-of-00009.progress.json").write_text("{}")  # killed before it was deleted
    (root / "cat" / "new.jpg").write_bytes(encode(photo(30, 30)))
    prepare(root, tmp_path / "d")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_cannot_be_prepared_is_said(root, tmp_path):
    with pytest.raises(UserError, match=r"--images .*none: there is no such folder"):
        prepare(tmp_path / "none", tmp_path / "d")
    with pytest.raises(UserError, match="holds 0 class folders"):
        prepare(root / "cat", tmp_path / "d")
    (root / " dog").mkdir()
    shutil.copy(root / "dog" / "1.jpeg", root / " dog" / "1.jpeg")
    with pytest.raises(UserError, match="class folder ' dog': TFDS cannot keep"):
        prepare(root, tmp_path / "d")
    for name in ("cat", "dog"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the images for train can be used; .*rejects.jsonl says why"):
        prepare(tmp_path / "bad", tmp_path / "d")
    assert len((tmp_path / "d/mine/1.0.0/rejects.jsonl").read_text().splitlines()) == 2


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 3000))
def test_shards_hold_all_files_in_order_and_are_of_about_equal_size(sizes, shard_bytes):
    files = [checked_images.File(str(n), 0, size, "") for n, size in enumerate(sizes)]
    shards = shard_plan._shards("x", "train", files, shard_bytes)
    assert [file for shard in shards for file in shard.files] == files
    assert all(shard.files for shard in shards)
    assert [shard.name for shard in shards] == [
        f"x-train.tfrecord-{n:05d}-of-{len(shards):05d}" for n in range(len(shards))
    ]
    total = sum(sizes)
    target = total / max(1, round(total / shard_bytes))
    assert max(sum(file.size for file in shard.files) for shard in shards) <= target + max(sizes)


def test_shards_of_images_of_one_size_are_of_one_size():
    files = [checked_images.File(str(n), 0, 100, "") for n in range(10)]
    assert [len(shard.files) for shard in shard_plan._shards("x", "train", files, 200)] == [2] * 5


def test_photographs(shared_data, tmp_path):
    photographs = sorted((shared_data / "imagenet_samples").iterdir())
    for n, path in enumerate(photographs):
        (tmp_path / "p" / str(n % 4)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / str(n % 4) / path.name).symlink_to(path)
    prepare(tmp_path / "p", tmp_path / "d", shard_bytes=2 << 20)
    found = collections.Counter()
    for split in ("train", "validation"):
        source = open_source(input_config(dataset="mine", data_dir=str(tmp_path / "d")), split, tmp_path)
        found.update(image for image, _ in all_of(source))
    assert found == collections.Counter(path.read_bytes() for path in photographs)
