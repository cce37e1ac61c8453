"""The reader for prepared TFDS datasets: its examples, its labels, and a one-line error for each fault."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from making import CLASSES, all_of, complaint, encode, input_config, labelled, photo, pictures, write_dataset

from mixer.data.pixels import image_status
from mixer.data.pixels.images import RAW, inspect
from mixer.data.readers import open_source
from mixer.data.sources import Example, Source, in_common
from mixer.runtime.errors import UserError


def open_pictures(data_dir, split="train", **fields) -> Source:
    return open_source(input_config(dataset="pictures", data_dir=str(data_dir), **fields), split, data_dir / "cache")


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


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("names", [CLASSES[:2], (*CLASSES, "dormouse")])
def test_names_that_are_not_as_many_as_the_classes_are_refused(tmp_path, several, names):
    one = tfds.features.ClassLabel(names=CLASSES)
    features = {"image": tfds.features.Image(), "label": tfds.features.Sequence(one) if several else one}
    examples = [(data, [label] if several else label) for data, label in labelled(pictures(3))]
    write_dataset(tmp_path, "tfrecord", {"train": examples}, features=features)
    (path,) = tmp_path.rglob("*.labels.txt")
    path.write_text("\n".join(names) + "\n")
    said = complaint(tmp_path, label_key="label", max_labels=2 if several else None)
    assert f"has 3 classes, but {len(names)} names in {path.name}" in said


def test_two_classes_of_one_name_are_refused(tmp_path):
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(3))})
    next(tmp_path.rglob("*.labels.txt")).write_text("\n".join([CLASSES[0], *CLASSES[:2]]) + "\n")
    assert f"has two classes called {CLASSES[0]!r} in label.labels.txt" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("features", "refusal"),
    [
        ({"photo": tfds.features.Image(), "mask": tfds.features.Image()}, "mask and photo: call one of them image"),
        (
            {kind: tfds.features.ClassLabel(names=CLASSES) for kind in ("species", "breed")},
            "kind ClassLabel, breed and species: name one as config.input.label_key",
        ),
    ],
)
def test_several_features_of_a_kind_are_refused_unless_one_has_the_usual_name(tmp_path, features, refusal):
    """Which is the first of them, TFDS forgets."""
    usual = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=CLASSES)}
    two = "image" if "photo" in features else "label"
    examples = [{"image": image, "label": label} for image, label in labelled(pictures(3))]

    def write(folder, names):
        all_features = {**{name: usual[name] for name in usual if name in names}, **features}
        rows = [
            {name: example["image" if isinstance(all_features[name], tfds.features.Image) else "label"]
             for name in all_features}
            for example in examples
        ]  # fmt: skip
        tfds.dataset_builders.store_as_tfds_dataset(
            name="pictures", version="1.0.0", features=tfds.features.FeaturesDict(all_features),
            split_datasets={"train": list(enumerate(rows))}, data_dir=folder,
        )  # fmt: skip
        return folder

    assert refusal in complaint(write(tmp_path / "without", set(usual) - {two}))
    assert open_pictures(write(tmp_path / "with", set(usual))).num_examples == 3


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ("train[:17]", "train[13:]", 4), ("train[:17]", "train[17:]", 0), ("train", "validation", 0),
        ("train[15:30]", "train", 15), ("train[:5]+validation", "validation[2:]", 5),
        ("train[:5]+train[3:8]", "train", 10),
    ],
)  # fmt: skip
def test_what_two_splits_have_in_common(prepared, one, other, common):
    opened = [open_pictures(prepared["tfrecord"], split) for split in (one, other)]
    assert in_common(*opened) == common
    assert in_common(opened[0], open_pictures(prepared["array_record"], other)) == 0  # another dataset


@pytest.mark.parametrize("several", [False, True])
def test_a_label_beyond_the_classes_is_refused(tmp_path, several):
    """The code of a dataset may have lost classes since it was prepared."""
    one = tfds.features.ClassLabel(names=CLASSES)
    features = {"image": tfds.features.Image(), "label": tfds.features.Sequence(one) if several else one}
    examples = [(data, [label] if several else label) for data, label in labelled(pictures(3))]
    write_dataset(tmp_path, "tfrecord", {"test": examples}, features=features)
    (names,) = tmp_path.rglob("*.labels.txt")
    names.unlink()
    info = names.with_name("features.json")
    info.write_text(info.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    source = open_pictures(tmp_path, "test", label_key="label", max_labels=2 if several else None)
    with pytest.raises(UserError, match="has the label 2; its 2 classes count from 0"):
        source.fetch(np.arange(3))


def test_images_without_a_class(tmp_path):
    """TFDS gives them the label -1, in the test splits of some competitions. Training refuses them: test_reading.py."""
    write_dataset(tmp_path, "tfrecord", {"test": [(data, -1) for data, _ in labelled(pictures(3))]})
    assert {labels for _, labels in all_of(open_pictures(tmp_path, "test"))} == {(-1,)}


def test_features_of_other_names(tmp_path):
    features = {"photo": tfds.features.Image(), "kind": tfds.features.ClassLabel(names=CLASSES)}
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(4))}, features=features)
    assert [labels for _, labels in all_of(open_pictures(tmp_path))] == [(0,), (1,), (2,), (0,)]


def test_a_feature_named_labels_that_holds_one_class(tmp_path):
    features = {"image": tfds.features.Image(), "labels": tfds.features.ClassLabel(names=CLASSES)}
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(4))}, features=features)
    source = open_pictures(tmp_path, max_labels=1)
    assert (source.max_labels, source.multi_label) == (1, False)
    assert "config.input.max_labels=2 would not be read: examples of " in complaint(tmp_path, max_labels=2)


def test_a_label_feature_by_its_name(tmp_path):
    """ImageNet ReaL is like this: its labels are a sequence with another name."""
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


def image_dataset(folder, dtype, images):
    """Prepares a dataset of images whose feature has this dtype."""
    shape = (None, None, images[0].shape[-1])
    features = {
        "image": tfds.features.Image(shape=shape, dtype=dtype),
        "label": tfds.features.ClassLabel(names=CLASSES),
    }
    write_dataset(folder, "tfrecord", {"train": labelled(images)}, shards=1, features=features)
    return folder


def test_images_of_float32_are_refused(tmp_path):
    """TFDS stores them as four bytes a pixel in a PNG: as colours, a dark and a bright one look alike."""
    said = complaint(image_dataset(tmp_path, np.float32, [np.full((9, 8, 1), grey, np.float32) for grey in (0.1, 0.9)]))
    assert said == (
        f"the feature 'image' of pictures in {tmp_path} holds images of float32, whose bytes TFDS stores as if they "
        "were colours: expected uint8 or uint16; prepare the dataset with values of 0 to 255 and "
        "tfds.features.Image(dtype=np.uint8)"
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_uint16_are_read_by_their_brightness(tmp_path, channels):
    images = [np.full((9, 8, channels), value, np.uint16) for value in (0, 100 * 257, 255 * 257)]
    source = open_pictures(image_dataset(tmp_path, np.uint16, images))
    for (data, _), value in zip(all_of(source), (0, 100, 255), strict=True):
        found = inspect(data, max_pixels=1000)
        assert (found.status, found.encoding, found.height, found.width) == (image_status.OK, RAW, 9, 8)
        assert set(found.data) == {value}


def test_wrong_names_and_splits(prepared):
    data_dir = prepared["tfrecord"]
    assert "'picturs'" in complaint(data_dir, dataset="picturs")
    for name in ("cifar10:9.9.9", "cifar10/nothing", "pictures/nothing", "pictures:9.9.9", "a b", ""):
        assert repr(name) in complaint(data_dir, dataset=name)
    for split in ("trian", "train[", "train[x:]", "train[60:70]", "train[200%:]"):
        said = complaint(data_dir, split)
        assert repr(split) in said
        assert said.count("['train', 'validation']") == 1
    assert "[-100, 100]" in complaint(data_dir, "train[200%:]")
    assert "does not support slice" in complaint(data_dir, "all[:10]")
    for split in ("train[:0]", "train[9:5]"):
        assert "is empty" in complaint(data_dir, split)


def test_a_dataset_that_is_not_prepared(tmp_path):
    said = complaint(tmp_path, dataset="cifar10")
    assert "not prepared" in said
    assert f"`tfds build cifar10` --data_dir={tmp_path}".replace("`", "") in said.replace("`", "")


@pytest.mark.parametrize("content", [b"", b'{"name": "pict', b"[]", b"\xff", None])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_dataset_with_a_damaged_file(tmp_path, name, content):
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(3))})
    (path,) = tmp_path.rglob(name)
    path.unlink() if content is None else path.write_bytes(content)
    assert str(tmp_path) in complaint(tmp_path)


def test_an_argument_that_the_builder_does_not_have(tmp_path):
    said = complaint(tmp_path, dataset="cifar10/nothing=1")
    assert f"config.input.dataset='cifar10/nothing=1', whose files are looked for in {tmp_path}" in said


def test_a_dataset_whose_code_is_not_there(tmp_path):
    """Another process writes the dataset with a builder class. This process reads it from its files."""
    code = f"""
import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parents[1])!r})
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


def test_a_folder_whose_name_tfds_takes_for_a_pattern_is_refused(tmp_path):
    config = input_config(dataset="cifar10", data_dir=str(tmp_path / "a[1]"))
    with pytest.raises(UserError, match=r"config.input.data_dir='.*a\[1\]': TFDS does not take \[ in the name"):
        open_source(config, "train", tmp_path)


def test_a_part_of_a_split_knows_the_places_of_its_records(tmp_path):
    write_dataset(tmp_path, "tfrecord", {"train": labelled(pictures(41))}, shards=3)
    whole, part = (open_pictures(tmp_path, split) for split in ("train", "train[10:]+train[:5]"))
    assert len({whole.place(number) for number in range(41)}) == 41
    assert [part.place(number) for number in range(36)] == [
        whole.place(number) for number in (*range(10, 41), *range(5))
    ]
    assert whole.place(0).startswith("record 0 of pictures-train.tfrecord-00000-of-0000")
