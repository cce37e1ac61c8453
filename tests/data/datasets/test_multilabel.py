import contextlib
import json
import os
import shutil

import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from mixer.config import recipe
from mixer.data import readers
from mixer.data.datasets import manifests
from mixer.data.datasets.manifests import BadLineError, parse_line
from mixer.data.datasets.multilabel import Multilabel
from mixer.runtime.errors import SeveralLabelsError

NAMES = ["cat", "dog", "old fish"]
CLASSES = {"cat": 0, "dog": 1, "old fish": 2}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg", "c.jpg"):
        (folder / name).write_bytes(b"\xff\xd8\xff" + name.encode())
    (tmp_path / "secret.jpg").write_bytes(b"\xff\xd8\xffsecret")
    (folder / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "s.jpg").write_bytes(b"\xff\xd8\xffsecret")
    (folder / "door").symlink_to(tmp_path / "secrets")
    (folder / "absent.jpg").symlink_to(tmp_path / "nothing")
    with (folder / "huge.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate((64 << 20) + 1)
    (folder / "page.jpg").write_bytes(b"<html>")
    (folder / "zero.jpg").write_bytes(b"")
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    return folder


def build(root, lines, **kwargs):
    manifest = root.parent / "m.jsonl"
    manifest.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    builder = Multilabel(
        manifest=str(manifest),
        classes=str(root.parent / "classes.txt"),
        images=str(root),
        data_dir=root.parent / "data",
        **kwargs,
    )
    builder.download_and_prepare()
    return tfds.builder(kwargs.get("name", "multilabel"), data_dir=root.parent / "data")


def contents(builder, split):
    examples = builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()}).as_numpy_iterator()
    return {e["image"]: e["labels"].tolist() for e in examples}


def test_images_and_labels_arrive(root):
    builder = build(
        root,
        [
            {"image": "a.jpg", "labels": ["old fish", "cat"]},
            "",
            {"image": "sub/b.jpg", "labels": [1, "dog"], "split": "validation"},
            {"image": "c.jpg", "labels": [], "split": "train"},
        ],
        name="jft",
    )
    assert contents(builder, "train") == {b"\xff\xd8\xffa.jpg": [0, 2], b"\xff\xd8\xffc.jpg": []}
    assert contents(builder, "validation") == {b"\xff\xd8\xffsub/b.jpg": [1]}
    assert builder.info.features["labels"].feature.names == NAMES
    assert dict(builder.info.metadata) == {"max_labels": 2, "skipped": {}}


@pytest.mark.parametrize("order", [1, -1])
def test_less_room_for_labels_than_the_data_have_is_told_when_they_are_opened(root, order):
    build(root, [{"image": "a.jpg", "labels": []}, {"image": "c.jpg", "labels": ["cat", "dog"]}][::order])
    config = recipe.base().input
    config.dataset, config.data_dir = "multilabel", str(root.parent / "data")
    assert readers.open_source(config, "train", "").max_labels == 2
    config.max_labels = 3
    assert readers.open_source(config, "train", "").max_labels == 3
    config.max_labels = 1
    with pytest.raises(SeveralLabelsError, match=r"config\.input\.max_labels=1: examples of .* have up to 2 labels"):
        readers.open_source(config, "train", "")


BAD = [
    ('{"image": "a.jpg", ', "malformed JSON"),
    ("[1]", "no image"),
    ({"labels": []}, "no image"),
    ({"image": "a.jpg", "labels": "cat"}, "no labels"),
    ({"image": "a.jpg", "labels": ["wolf"]}, "unknown label"),
    ({"image": "a.jpg", "labels": [3]}, "unknown label"),
    ({"image": "a.jpg", "labels": [-1]}, "unknown label"),
    ({"image": "a.jpg", "labels": [True]}, "unknown label"),
    ({"image": "a.jpg", "labels": [[0]]}, "unknown label"),
    ({"image": "a.jpg", "labels": [0], "split": "test"}, "unknown split"),
    ({"image": "a.jpg", "labels": [0], "split": ["train"]}, "unknown split"),
    ({"image": "../secret.jpg", "labels": [0]}, "image outside the root"),
    ({"image": "/etc/passwd", "labels": [0]}, "image outside the root"),
    ({"image": "out.jpg", "labels": [0]}, "image outside the root"),
    ({"image": "door/s.jpg", "labels": [0]}, "image outside the root"),
    ({"image": "absent.jpg", "labels": [0]}, "image outside the root"),
    ({"image": "huge.jpg", "labels": [0]}, "larger than 64 MiB"),
    ("[" * 100_000, "malformed JSON"),
    ({"image": "none.jpg", "labels": [0]}, "image cannot be read"),
    ({"image": "sub", "labels": [0]}, "image cannot be read"),
    ({"image": "pipe.jpg", "labels": [0]}, "image cannot be read"),
    ({"image": "a\0.jpg", "labels": [0]}, "image cannot be read"),
    ({"image": "page.jpg", "labels": [0]}, "not an image"),
    ({"image": "zero.jpg", "labels": [0]}, "not an image"),
]


@pytest.mark.parametrize(("line", "kind"), BAD)
def test_a_bad_line_is_named_with_its_number(root, line, kind):
    with pytest.raises(ValueError, match=rf"m\.jsonl, line 2: {kind}: .*--skip_bad") as caught:
        build(root, [{"image": "a.jpg", "labels": ["cat"]}, line])
    assert "\n" not in str(caught.value)


def test_bad_lines_can_be_skipped_and_are_counted_once(root):
    good = [
        {"image": "a.jpg", "labels": ["cat"]},
        {"image": "c.jpg", "labels": ["dog"], "split": "validation"},
    ]
    builder = build(root, [good[0], *(line for line, _ in BAD), good[1]], skip_bad=True)
    assert builder.info.splits["train"].num_examples == builder.info.splits["validation"].num_examples == 1
    expected = {kind: sum(k == kind for _, k in BAD) for _, kind in BAD}
    assert builder.info.metadata["skipped"] == expected


def test_a_tenth_is_for_validation_unless_the_manifest_names_lines_for_it(root):
    for n in range(60):
        shutil.copy(root / "a.jpg", root / f"a{n}.jpg")
    lines = [{"image": f"a{n}.jpg", "labels": [0]} for n in range(60)]
    by_share = build(root, lines, name="by_share", validation_share=None)
    assert 0 < by_share.info.splits["validation"].num_examples < 15
    named = [*lines, {"image": "c.jpg", "labels": [1], "split": "validation"}]
    builder = build(root, named, name="named", validation_share=None)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 60, "validation": 1}


def test_an_image_in_both_splits_is_a_bad_line(root):
    lines = [
        {"image": "a.jpg", "labels": ["cat"], "split": "train"},
        {"image": "c.jpg", "labels": ["cat"]},
        {"image": ".//a.jpg", "labels": ["dog"], "split": "validation"},
    ]
    with pytest.raises(ValueError, match=r"line 1: in both splits: 'a.jpg' is for train here and for validation in an"):
        build(root, lines)
    spelled = [lines[1]]
    for image, split in (("sub/b.jpg", "validation"), ("./sub//b.jpg", "train")):
        spelled.append({"image": image, "labels": [], "split": split})
    with pytest.raises(ValueError, match=r"line 3: in both splits: 'sub/b.jpg' is for train here"):
        build(root, spelled)
    builder = build(root, lines, skip_bad=True)
    assert contents(builder, "train") == {b"\xff\xd8\xffc.jpg": [0]}
    assert builder.info.splits["validation"].num_examples == 1
    assert builder.info.metadata["skipped"] == {"in both splits": 1}


def test_an_image_in_several_lines_is_a_bad_line(root):
    """A line for each label would make examples of one image in which each label denies the others."""
    lines = [{"image": "a.jpg", "labels": [label]} for label in ("cat", "dog")]
    other = {"image": "c.jpg", "labels": ["cat"]}
    with pytest.raises(ValueError, match=r"line 1: image in several lines: 'a.jpg': give all of its labels in one"):
        build(root, [*lines, other])
    with pytest.raises(ValueError, match=r"line 2: image in several lines"):
        build(root, [other, *({**line, "split": "validation"} for line in lines)])
    builder = build(root, [lines[0], other, {**lines[1], "image": "./a.jpg"}], skip_bad=True)
    assert contents(builder, "train") == {b"\xff\xd8\xffc.jpg": [0]}
    assert builder.info.metadata["skipped"] == {"image in several lines": 2}


def test_a_number_that_is_the_name_of_another_class_is_a_bad_line():
    classes = {"1": 0, "cat": 1, "dog": 2}
    assert manifests.parse_line('{"image": "a.jpg", "labels": ["1", 2]}', classes, 0.0).labels == [0, 2]
    with pytest.raises(manifests.BadLineError, match="1 is the number of a class and the name of another: write the"):
        manifests.parse_line('{"image": "a.jpg", "labels": [1]}', classes, 0.0)
    same = {"0": 0, "1": 1}
    assert manifests.parse_line('{"image": "a.jpg", "labels": [1]}', same, 0.0).labels == [1]


def test_hashes_that_differ_in_their_last_bit_are_two(root, monkeypatch):
    """A float64 holds 53 of their 64 bits."""
    names = ["a.jpg", "c.jpg", "sub/b.jpg"]
    monkeypatch.setattr(manifests, "hash_of", lambda name: 2**62 + names.index(name))
    lines = [{"image": name, "labels": ["dog"], "split": "validation"} for name in names]
    with pytest.raises(ValueError, match=r"line 4: in both splits: 'a.jpg' is for train here and for validation in an"):
        build(root, [*lines, {"image": "a.jpg", "labels": ["cat"], "split": "train"}])


def test_a_byte_order_mark_is_no_part_of_a_name_or_a_line(root):
    (root.parent / "classes.txt").write_text("\ufeffcat\ndog\nold fish\n")
    builder = build(root, ["\ufeff" + json.dumps({"image": "a.jpg", "labels": ["cat"]})])
    assert builder.info.features["labels"].feature.names == NAMES


def test_nothing_usable_is_an_error(root):
    with pytest.raises(ValueError, match="no usable line for the split train"):
        build(root, [{"image": "a.jpg", "labels": [], "split": "validation"}])
    with pytest.raises(ValueError, match="none of the 1 images for train"):
        build(root, [{"image": "none.jpg", "labels": []}], skip_bad=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_share": 1.0}, "validation_share is 1.0"),
        ({"manifest": "none.jsonl"}, "no manifest at none.jsonl"),
        ({"images": "none"}, "no folder of images at none"),
        ({"classes": "none.txt"}, "no class list at none.txt"),
    ],
)
def test_wrong_arguments_are_named(root, change, message):
    (root.parent / "m.jsonl").write_text("")
    arguments = {"manifest": root.parent / "m.jsonl", "classes": root.parent / "classes.txt", "images": root}
    arguments = {key: str(value) for key, value in arguments.items()} | change
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Multilabel(data_dir=root.parent / "data", **arguments)


@given(st.lists(st.sampled_from([*NAMES, 0, 1, 2])), st.floats(0, 0.99), st.text(min_size=1))
def test_parse_line_round_trip(labels, share, folder):
    image = f"x{folder}".replace("..", "")
    line = parse_line(json.dumps({"image": image, "labels": labels}), CLASSES, share)
    assert line.image == image
    assert line.labels == sorted({NAMES.index(label) if isinstance(label, str) else label for label in labels})


@given(st.text())
def test_parse_line_raises_one_error_only(text):
    with contextlib.suppress(BadLineError):
        parse_line(text, CLASSES, 0.5)


def test_validation_share_is_kept_and_only_grows():
    lines = [json.dumps({"image": f"folder/{i}.jpg", "labels": []}) for i in range(4000)]
    small, large = (
        {i for i, line in enumerate(lines) if parse_line(line, CLASSES, share).split == "validation"}
        for share in (0.1, 0.3)
    )
    # Five standard deviations of a binomial.
    assert abs(len(small) - 400) < 95
    assert abs(len(large) - 1200) < 145
    assert small < large
