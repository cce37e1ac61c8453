"""Every source is numbers to files with labels; what is wrong with it is one line."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from making import CLASSES, encode, input_config, labelled, photo, pictures, write_dataset

from mixer.data import sources
from mixer.data.sources import Example, Source, file_bytes, open_source
from mixer.runtime.errors import UserError


def open_pictures(data_dir, split="train", **fields) -> Source:
    return open_source(input_config(dataset="pictures", data_dir=str(data_dir), **fields), split, data_dir / "cache")


def all_of(source: Source) -> list[Example]:
    return [Example(image, tuple(labels)) for image, labels in source.fetch(np.arange(source.num_examples))]


def complaint(folder, split="train", **fields) -> str:
    config = input_config(**{"dataset": "pictures", "data_dir": str(folder)} | fields)
    with pytest.raises(UserError) as caught:
        open_source(config, split, folder / "cache")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- TFDS


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("split", ["train", "train[25%:50%]+validation"])
def test_a_prepared_dataset(prepared, file_format, split):
    source = open_pictures(prepared[file_format], split)
    expected = set(labelled(pictures(48)[:41]) + labelled(pictures(48)[41:]))
    found = {(image, label) for image, (label,) in all_of(source)}
    assert len(found) == source.num_examples == {"train": 41}.get(split, 17)
    assert found <= expected
    assert tuple(source.class_names) == CLASSES
    assert (source.max_labels, source.multi_label) == (1, False)


def test_both_formats_hold_the_same_in_the_same_order(prepared):
    one, other = (all_of(open_pictures(prepared[file_format])) for file_format in ("tfrecord", "array_record"))
    assert one == other


def test_examples_with_several_labels(prepared_multilabel):
    source = open_pictures(prepared_multilabel, max_labels=3)
    assert (source.max_labels, source.multi_label) == (3, True)
    assert [labels for _, labels in all_of(source)] == [tuple(range(i % 4)) for i in range(12)]


def test_more_labels_than_there_is_room_for(prepared_multilabel):
    source = open_pictures(prepared_multilabel, max_labels=2)
    assert len(source.fetch(np.arange(3))) == 3
    with pytest.raises(UserError, match=r"3 labels, more than config\.input\.max_labels=2"):
        source.fetch(np.array([3]))
    assert "set config.input.max_labels" in complaint(prepared_multilabel)


def test_features_of_other_names(tmp_path):
    features = {"photo": tfds.features.Image(), "kind": tfds.features.ClassLabel(names=CLASSES)}
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(4))}, features=features)
    assert [labels for _, labels in all_of(open_pictures(tmp_path))] == [(0,), (1,), (2,), (0,)]


def test_a_feature_named_labels_that_holds_one_class(tmp_path):
    features = {"image": tfds.features.Image(), "labels": tfds.features.ClassLabel(names=CLASSES)}
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(4))}, features=features)
    source = open_pictures(tmp_path)
    assert (source.max_labels, source.multi_label) == (1, False)


def test_a_label_feature_by_its_name(tmp_path):
    """As ImageNet ReaL has it, whose labels are a sequence of another name."""
    features = {
        "image": tfds.features.Image(),
        "real_label": tfds.features.Sequence(tfds.features.ClassLabel(names=CLASSES)),
    }
    examples = [(data, [label] * (label != 1)) for data, label in labelled(pictures(4))]
    write_dataset(tmp_path, "tfrecord", {"train": examples}, features=features)
    source = open_pictures(tmp_path, label_key="real_label", max_labels=2)
    assert (source.max_labels, source.multi_label, tuple(source.class_names)) == (2, True, CLASSES)
    assert [labels for _, labels in all_of(source)] == [(0,), (), (2,), (0,)]
    for wrong in ("image", "kind"):
        said = complaint(tmp_path, label_key=wrong)
        assert f"config.input.label_key={wrong!r} is no class label" in said
        assert "its features: image, real_label" in said


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"picture": tfds.features.Text(), "label": tfds.features.ClassLabel(names=CLASSES)}, "has no Image feature"),
        ({"image": tfds.features.Image(), "text": tfds.features.Scalar(np.int64)}, "has no ClassLabel feature"),
        ({"image": tfds.features.Image(), "labels": tfds.features.Scalar(np.int64)}, "has no ClassLabel feature"),
    ],
)
def test_features_that_are_missing(tmp_path, features, message):
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(3))}, features=features)
    said = complaint(tmp_path)
    assert message in said
    assert set(said.partition("its features: ")[2].split(", ")) == set(features)


def test_wrong_names_and_splits(prepared):
    data_dir = prepared["tfrecord"]
    assert "'picturs'" in complaint(data_dir, dataset="picturs")
    for name in ("cifar10:9.9.9", "cifar10/nothing", "pictures/nothing", "pictures:9.9.9", "a b", ""):
        assert repr(name) in complaint(data_dir, dataset=name)
    for split in ("trian", "train[", "train[x:]", "train[60:70]", "train[200%:]"):
        said = complaint(data_dir, split)
        assert repr(split) in said
        assert "Its splits: ['train', 'validation']" in said
    for split in ("train[:0]", "train[9:5]"):
        assert "is empty" in complaint(data_dir, split)


def test_a_dataset_that_is_not_prepared(tmp_path):
    said = complaint(tmp_path, dataset="cifar10")
    assert "not prepared" in said
    assert f"`tfds build cifar10` --data_dir={tmp_path}".replace("`", "") in said.replace("`", "")


def test_a_dataset_whose_code_is_not_there(tmp_path):
    """Written by a builder class of another process, read from its files alone."""
    code = f"""
import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import tensorflow_datasets as tfds
from making import encode, photo

class Strangers(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small")]
    url_infos = None
    def _info(self):
        features = {{"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=5)}}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, dl_manager):
        return {{"train": ((i, {{"image": encode(photo(9, 9, i)), "label": i % 5}}) for i in range(6))}}
    def _generate_examples(self): pass

Strangers(config="small", data_dir={str(tmp_path)!r}).download_and_prepare()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    config = input_config(dataset="strangers/small", data_dir=str(tmp_path))
    source = open_source(config, "train", tmp_path)
    assert list(source.class_names) == ["0", "1", "2", "3", "4"]
    assert {image for image, _ in all_of(source)} == {encode(photo(9, 9, i)) for i in range(6)}


def test_an_embedded_dataset_is_made_where_the_cache_is(tmp_path):
    source = open_source(input_config(dataset="fractals/3x4x8"), "train", tmp_path)
    assert source.num_examples == 9
    assert (tmp_path / "datasets" / "fractals").is_dir()
    assert len(source.class_names) == 3


def test_damaged_records_have_no_image(prepared, tmp_path):
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(6))}, shards=1)
    (shard,) = tmp_path.rglob("*.tfrecord*")
    content = bytearray(shard.read_bytes())
    content[content.index(pictures(6)[2]) + 9] ^= 1
    shard.write_bytes(content)
    expected = [Example(image, (label,)) for image, label in labelled(pictures(6))]
    expected[2] = Example(None, ())
    assert all_of(open_pictures(tmp_path)) == expected


# -------------------------------------------------------------------------------------------------------------- folder


def fill(root: pathlib.Path, counts: dict[str, int], seed: int = 0) -> None:
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / name / f"{name.rpartition('/')[2]}{seed}_{i}.png").write_bytes(encode(photo(3, 4, i)))


def open_folder(root: pathlib.Path, split: str, **fields) -> Source:
    return open_source(input_config(dataset="folder", data_dir=str(root), **fields), split, root / "cache")


def names_in(source: Source, root: pathlib.Path) -> set[tuple[str, str]]:
    """(class, file name) of each example, found by the file's content being unique."""
    by_content = {}
    for path in root.rglob("*.png"):
        path.write_bytes(encode(photo(3, 4)) + path.name.encode())
        by_content[path.read_bytes()] = path.name
    return {(source.class_names[labels[0]], by_content[image]) for image, labels in all_of(source)}


def test_a_folder_of_class_folders_is_divided(tmp_path):
    fill(tmp_path, {"cat": 40, "dog": 20, "eel": 1, "fox": 2})
    train, validation = (open_folder(tmp_path, split) for split in ("train", "validation"))
    assert train.class_names == validation.class_names == ["cat", "dog", "eel", "fox"]
    seen, kept = names_in(train, tmp_path), names_in(validation, tmp_path)
    assert not seen & kept
    assert len(seen | kept) == 63
    assert all(file.startswith(name) for name, file in seen | kept)
    counts = {name: sum(1 for cls, _ in kept if cls == name) for name in train.class_names}
    assert counts == {"cat": 4, "dog": 2, "eel": 0, "fox": 1}
    assert all_of(open_folder(tmp_path, "train")) == all_of(train)


def test_a_new_image_moves_no_other_but_one_at_the_margin(tmp_path):
    fill(tmp_path, {"cat": 40, "dog": 20})
    before = names_in(open_folder(tmp_path, "validation"), tmp_path)
    for i in range(6):
        fill(tmp_path, {"cat": 1}, seed=i + 1)
        after = names_in(open_folder(tmp_path, "validation"), tmp_path)
        assert len(before - after) <= 1
        assert len(after - before) <= 1
        before = after


def test_the_share_of_validation(tmp_path):
    fill(tmp_path, {"cat": 40, "dog": 20})
    assert open_folder(tmp_path, "validation", validation_share=0.5).num_examples == 30
    assert open_folder(tmp_path, "train", validation_share=0.0).num_examples == 60
    said = complaint(tmp_path, "validation", dataset="folder", validation_share=0.0)
    assert "no images for split 'validation': set config.input.validation_share above zero" in said


@pytest.mark.parametrize("name", ["validation", "val", "test"])
def test_split_folders_are_taken_as_they_are(tmp_path, name):
    fill(tmp_path, {"train/cat": 5, "train/dog": 4, f"{name}/cat": 2, f"{name}/dog": 1, f"{name}/extra": 3})
    assert names_in(open_folder(tmp_path, "train"), tmp_path / "train") == {
        *(("cat", f"cat0_{i}.png") for i in range(5)),
        *(("dog", f"dog0_{i}.png") for i in range(4)),
    }
    validation = open_folder(tmp_path, "validation")
    assert validation.num_examples == 3
    assert [labels for _, labels in all_of(validation)] == [(0,), (0,), (1,)]


def test_a_train_folder_alone_is_divided(tmp_path):
    fill(tmp_path, {"train/cat": 10, "train/dog": 10})
    assert open_folder(tmp_path, "train").num_examples == 18
    validation = open_folder(tmp_path, "validation")
    assert validation.num_examples == 2
    assert None not in [image for image, _ in all_of(validation)]


def test_a_validation_folder_alone_is_left_aside(tmp_path):
    fill(tmp_path, {"cat": 10, "dog": 10, "val/cat": 3, "val/dog": 3})
    validation = open_folder(tmp_path, "validation")
    assert validation.class_names == ["cat", "dog"]
    assert validation.num_examples == 2
    assert None not in [image for image, _ in all_of(validation)]


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"car": 5, "train": 5, "test": 5})
    assert open_folder(tmp_path, "train").class_names == ["car", "test", "train"]


def test_hidden_and_other_files_do_not_count(tmp_path):
    fill(tmp_path, {"cat": 3, "dog": 3, ".git": 2, "cat/nested": 2, "empty": 0})
    for name in ("cat/._cat0_0.png", "cat/.hidden.jpg", "cat/notes.txt", "readme.md", "cat/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dog" / "LOUD.JPEG").write_bytes(b"y")
    source = open_folder(tmp_path, "train", validation_share=0.0)
    assert source.class_names == ["cat", "dog"]
    assert source.num_examples == 7


def test_a_wrong_ending_or_a_vanished_file_stops_nothing(tmp_path):
    fill(tmp_path, {"cat": 3, "dog": 3})
    (tmp_path / "cat" / "cat0_0.png").write_bytes(encode(photo(5, 5), "JPEG"))
    source = open_folder(tmp_path, "train", validation_share=0.0)
    (tmp_path / "cat" / "cat0_1.png").unlink()
    images = [image for image, _ in all_of(source)]
    assert images[0] == encode(photo(5, 5), "JPEG")
    assert [image is None for image in images] == [False, True, False, False, False, False]


@pytest.mark.parametrize("path", ["nothing.png", "", "a\0b.png", "ftp://host/b.png"])
def test_a_file_that_cannot_be_read_is_none_whatever_is_raised(tmp_path, path):
    assert file_bytes(path if "://" in path else f"{tmp_path}/{path}") is None


def test_a_pipe_or_a_device_is_no_image_and_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    assert [file_bytes(f"{tmp_path}/{name}.png") for name in ("pipe", "endless")] == [None, None]


@pytest.mark.parametrize("error", [tf.errors.PermissionDeniedError, tf.errors.UnavailableError])
def test_an_error_of_tensorflows_file_systems_is_an_unreadable_file(monkeypatch, error):
    def fail(path):
        raise error(None, None, "no")

    monkeypatch.setattr(sources.epath, "Path", fail)
    assert file_bytes("gs://bucket/a.png") is None


def test_folders_that_will_not_do(tmp_path):
    assert "is not a folder" in complaint(tmp_path / "nothing", dataset="folder")
    assert "is not a folder" in complaint(tmp_path, dataset="folder", data_dir=None)
    assert "holds 0 class folders" in complaint(tmp_path, dataset="folder")
    fill(tmp_path, {"cat": 3, "dog": 0})
    assert "holds 1 class folders" in complaint(tmp_path, dataset="folder")
    fill(tmp_path, {"dog": 1})
    assert "expected train or validation" in complaint(tmp_path, "test", dataset="folder")
