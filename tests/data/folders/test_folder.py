"""The reader for a folder of class folders: which files are images, and how they are divided into splits."""

import os
import pathlib
import unicodedata
import zlib

import pytest
from making import all_of, complaint, encode, input_config, photo

from mixer.config.settings import SETTINGS
from mixer.data.folders import folder_layout, in_both_splits
from mixer.data.folders.image_files import files_bytes
from mixer.data.readers import open_source
from mixer.data.sources import Source, in_common


def fill(root: pathlib.Path, counts: dict[str, int], seed: int = 0) -> None:
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / name / f"{name.rpartition('/')[2]}{seed}_{i}.png").write_bytes(
                encode(photo(3, 4, zlib.crc32(f"{name} {seed} {i}".encode())))
            )


def open_folder(root: pathlib.Path, split: str, **fields) -> Source:
    return open_source(input_config(dataset="folder", data_dir=str(root), **fields), split, root / "cache")


def reported(root: pathlib.Path) -> list[str]:
    """Returns the report, which is the same for each split."""
    found = {tuple(open_folder(root, split).report) for split in ("train", "validation")}
    (report,) = found
    return list(report)


def names_in(source: Source, root: pathlib.Path) -> set[tuple[str, str]]:
    """Returns (class, file name) of each example. Each file gets its own content first, which identifies it."""
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


def test_a_share_that_is_not_used_is_told(tmp_path):
    fill(tmp_path, {"train/cat": 4, "train/dog": 4, "val/cat": 2})
    assert SETTINGS["input.validation_share"].default == folder_layout.DEFAULT_SHARE

    def told(share: float) -> list[str]:
        report = open_folder(tmp_path, "train", validation_share=share).report
        return [line for line in report if "validation_share=" in line]

    assert not told(0.0)
    assert not told(folder_layout.DEFAULT_SHARE)
    assert told(0.25) == ["  WARNING: validation_share=0.25 is not used: a folder is for validation"]


@pytest.mark.parametrize("name", ["validation", "valid", "val", "Val", "dev"])
def test_split_folders_are_taken_as_they_are(tmp_path, name):
    fill(tmp_path, {"train/cat": 5, "train/dog": 4, f"{name}/cat": 2, f"{name}/dog": 1, f"{name}/extra": 3})
    assert names_in(open_folder(tmp_path, "train"), tmp_path / "train") == {
        *(("cat", f"cat0_{i}.png") for i in range(5)),
        *(("dog", f"dog0_{i}.png") for i in range(4)),
    }
    validation = open_folder(tmp_path, "validation")
    assert validation.num_examples == 3
    assert [labels for _, labels in all_of(validation)] == [(0,), (0,), (1,)]
    assert reported(tmp_path)[2:] == [
        f"  validation: 3 images of 2 classes, in {name}/",
        "  left out: 3 validation images of 1 class that training does not have: extra",
    ]


def test_a_test_folder_is_never_validation(tmp_path):
    fill(tmp_path, {f"{split}/{cls}": n for split, n in (("train", 6), ("test", 3)) for cls in ("cat", "dog")})
    assert [open_folder(tmp_path, split).num_examples for split in ("train", "validation", "test", "all")] == [
        10, 2, 6, 18,
    ]  # fmt: skip
    assert reported(tmp_path) == [
        f"{tmp_path}: 2 classes: cat, dog",
        "  train: 10 images of 2 classes, in train/, without those kept for validation",
        "  validation: 2 images of 2 classes, the share 0.1 of each class in train/",
        "  test: 6 images of 2 classes, in test/, not used in training",
    ]
    fill(tmp_path, {"valid/cat": 2, "valid/dog": 1})
    assert [open_folder(tmp_path, split).num_examples for split in ("train", "validation", "test")] == [12, 3, 6]


def test_all_is_every_image_once(tmp_path):
    fill(tmp_path, {"cat": 40, "dog": 20})
    whole, parts = open_folder(tmp_path, "all"), [open_folder(tmp_path, split) for split in ("train", "validation")]
    assert whole.num_examples == 60
    assert names_in(whole, tmp_path) == set.union(*(names_in(part, tmp_path) for part in parts))
    assert [in_common(part, whole) for part in parts] == [part.num_examples for part in parts]
    assert (in_common(whole, parts[1]), in_common(*parts)) == (parts[1].num_examples, 0)


def test_held_out_folders_need_no_training_and_no_second_class(tmp_path):
    fill(tmp_path, {"one/cat": 3, "splits/test/cat": 2, "splits/test/dog": 1, "splits/val/eel": 1})
    assert open_folder(tmp_path / "one", "all").class_names == ["cat"]
    assert open_folder(tmp_path / "splits", "test").num_examples == 3
    assert open_folder(tmp_path / "splits", "all").class_names == ["cat", "dog", "eel"]
    said = complaint(tmp_path / "splits", "train", dataset="folder")
    assert said.endswith("splits has no images for split 'train'; it has validation and test")


def test_a_train_folder_alone_is_divided(tmp_path):
    fill(tmp_path, {"train/cat": 10, "train/dog": 10})
    assert open_folder(tmp_path, "train").num_examples == 18
    validation = open_folder(tmp_path, "validation")
    assert validation.num_examples == 2
    assert None not in [image for image, _ in all_of(validation)]


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"car": 5, "train": 5, "test": 5})
    assert open_folder(tmp_path, "train").class_names == ["car", "test", "train"]
    assert reported(tmp_path)[-1] == "  taken as classes, since they hold images and no class folders: test, train"


FLAT = "holds 3 images and no class folders, so their classes are not known; sort them into class folders"
MISTAKEN = {  # what the folder holds; what is said
    "val/ beside classes": ({"cat": 4, "dog": 4, "val": 3}, f"val/ {FLAT}, as in train/CLASS/IMAGE, or rename it"),
    "flat splits": ({"train": 3, "test": 3}, f"test/ {FLAT}, as in train/CLASS/IMAGE, or rename it"),
    "ImageNet": ({"train/cat": 4, "train/dog": 4, "val": 3}, f"val/ {FLAT} of the names that training has, or move it"),
    "flat train/": ({"train": 3, "val/cat": 4}, f"train/ {FLAT} of the names that training has"),
    "val/images": (
        {"train/cat": 4, "train/dog": 4, "val/images": 3},
        "no folder in val/ (images) is a class of training (cat, dog); sort its images into folders named as the",
    ),
    "test/ of others": ({"train/cat": 4, "train/dog": 4, "test/unknown": 3}, "no folder in test/ (unknown) is a class"),
    "an empty val/": (
        {"train/cat": 4, "train/dog": 4, "val": 0},
        "val/ stands for the validation split, and no folder",
    ),
    "two of a kind": (
        {"train/cat": 4, "train/dog": 4, "val/cat": 3, "valid/cat": 3},
        "val/ and valid/ are both for validation; keep one, or rename the other",
    ),
    "an unknown split": (
        {"train/cat": 4, "train/dog": 4, "holdout/cat": 3},
        "holdout/ holds class folders and is not used; name it as a split (train, validation, test), or move it away",
    ),
    "no train/": (
        {"cat": 4, "dog": 4, "val/cat": 3},
        "val/ and the class folders cat, dog stand side by side; move the class folders into train/",
    ),
}


@pytest.mark.parametrize("case", MISTAKEN)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_folder_that_stands_beside_and_cannot_be_used_is_an_error(tmp_path, case, split):
    counts, said = MISTAKEN[case]
    fill(tmp_path, counts)
    assert said in complaint(tmp_path, split, dataset="folder")


def test_what_is_left_out_is_said_by_reason_and_number(tmp_path):
    nothing = {"train/empty": 0, "train/.git": 2, "val/fox": 1}
    fill(tmp_path, {"train/cat": 3, "train/dog": 3, "train/eel/2020/a": 6, "train/eel/b": 1, **nothing, "notes/x": 2})
    fill(tmp_path, {"val/cat": 2, "val/Dog": 3})
    others = (
        "cat/a.heic",
        "cat/b.HEIC",
        "cat/c",
        "dog/notes.txt",
        "dog/.hidden.jpg",
        "dog/d.jfif",
        "top.png",
        "eel/e.md",
    )
    for name in others:
        (tmp_path / "train" / name).write_bytes(b"x")
    assert reported(tmp_path) == [
        f"{tmp_path}: 2 classes: cat, dog",
        "  train: 7 images of 2 classes, in train/",
        "  validation: 2 images of 1 class, in val/",
        "  left out: 7 images in folders within class folders, which are not read: train/eel/2020/a/ (6), "
        "train/eel/b/ (1)",
        "  left out: 5 files with another ending: 2 .heic (HEIC cannot be read: convert to JPEG), 1 without (give it "
        "its ending, such as .jpg), 1 .txt, 1 .md",
        "  left out: 2 hidden files or folders, whose names begin with a dot",
        "  left out: 1 image outside the class folders: train/ (1)",
        "  left out: 1 folder without images: train/empty/",
        "  left out: 4 validation images of 2 classes that training does not have: Dog (it differs from dog only in "
        "case or Unicode form), fox",
        "  without validation images: 1 class: dog",
    ]


def test_images_in_two_splits_are_counted_with_an_example(tmp_path):
    fill(tmp_path, {f"{split}/{name}": 5 for split in ("train", "val", "test") for name in ("cat", "dog")})
    assert "too" not in "".join(reported(tmp_path))
    for number, split in ((1, "val"), (3, "val"), (4, "test")):
        same = (tmp_path / "train/cat" / f"cat0_{number}.png").read_bytes()
        (tmp_path / split / "cat" / f"cat0_{number}.png").write_bytes(same)
    one = (tmp_path / "train/dog/dog0_2.png").read_bytes()
    (tmp_path / "val/dog/dog0_2.png").write_bytes(one[:-1] + b"x")  # of the same size
    for split in ("train", "test"):
        (tmp_path / split / "dog/dog0_4.png").write_bytes(b"")
    assert reported(tmp_path)[4:] == [
        "  WARNING: 2 images of train are in validation too, to the byte, such as cat/cat0_1.png",
        "  WARNING: 1 image of train is in test too, to the byte, such as cat/cat0_4.png",
    ]


def test_of_many_images_of_the_same_name_some_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(in_both_splits, "_COMPARED", 7)
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(20):
            (tmp_path / name / f"{number}.png").write_text(f"{number}")
    compared = []
    monkeypatch.setattr(
        in_both_splits.filecmp, "cmp", lambda one, other, shallow: compared.append((one, other)) or True
    )
    assert "WARNING: at least 7 images of train are in validation too" in open_folder(tmp_path, "train").report[-1]
    assert open_folder(tmp_path, "train").report[-1].endswith("(7 of 40 of the same class and name were compared)")
    assert {os.path.dirname(one) for one, _ in compared} == {f"{tmp_path}/train/cat", f"{tmp_path}/train/dog"}
    assert all(other == one.replace("/train/", "/val/") for one, other in compared)
    assert len(set(compared)) == 7


def test_the_report_of_all_has_one_line_for_it(tmp_path):
    fill(tmp_path, {"cat": 10, "dog": 1})
    assert open_folder(tmp_path, "all").report == [
        f"{tmp_path}: 2 classes: cat, dog",
        "  all: 11 images of 2 classes, in its class folders",
    ]
    fill(tmp_path / "split", {"train/cat": 4, "train/dog": 3, "val/cat": 2, "test/dog": 1})
    assert open_folder(tmp_path / "split", "all").report[1:] == [
        "  all: 10 images of 2 classes, in train/ and val/ and test/"
    ]


def test_classes_whose_names_look_alike_are_named(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "k\u00f6ter") for form in ("NFC", "NFD"))
    fill(tmp_path, {"Blue": 3, "blue": 3, composed: 2, decomposed: 2})
    assert reported(tmp_path)[3:] == [
        "  Blue and blue differ only in case or Unicode form, and are 2 classes",
        f"  {decomposed} and {composed} differ only in case or Unicode form, and are 2 classes",
    ]


def test_a_class_with_one_image_has_none_for_validation(tmp_path):
    fill(tmp_path, {"cat": 10, "dog": 1})
    assert reported(tmp_path)[-1] == "  without validation images: 1 class: dog"
    fill(tmp_path / "few", {"cat": 1, "dog": 1})
    said = complaint(tmp_path / "few", "validation", dataset="folder")
    assert "each class has one image, which training keeps; add images or a folder validation/" in said


def test_names_are_bytes_which_can_be_printed(tmp_path):
    strange = {b"caf\xe9": "caf\\xe9", b"a\nb": "a\\x0ab", "\u72d7 #1 (50%)".encode(): "\u72d7 #1 (50%)", b" x ": " x "}
    for name in strange:
        folder = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(folder)
        for file in (b"\xff.png", b"a\nb.png", b"-f.png", b"[1].png"):
            pathlib.Path(os.fsdecode(folder + b"/" + file)).write_bytes(encode(photo(3, 4)) + name + file)
    source = open_folder(tmp_path, "train")
    assert set(source.class_names) == set(strange.values())
    "\n".join([*source.class_names, *source.report]).encode()  # so they can be written
    whole = all_of(open_folder(tmp_path, "all"))
    assert len({image for image, _ in whole if image is not None}) == 16
    by_content = {image: source.class_names[labels[0]] for image, labels in whole}
    assert all(by_content[encode(photo(3, 4)) + name + b"\xff.png"] == text for name, text in strange.items())


def test_links(tmp_path):
    fill(tmp_path, {"own/cat": 3, "own/dog": 3, "elsewhere/fox": 4})
    (tmp_path / "own" / "fox").symlink_to(tmp_path / "elsewhere" / "fox")
    (tmp_path / "own" / "cat" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "own" / "cat" / "up").symlink_to("..")
    source = open_folder(tmp_path / "own", "all")
    assert (source.class_names, source.num_examples) == (["cat", "dog", "fox"], 11)
    assert [image is None for image, _ in all_of(source)].count(True) == 1


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
def test_a_file_that_cannot_be_read_is_none_after_any_exception(tmp_path, path):
    assert files_bytes([path if "://" in path else f"{tmp_path}/{path}"]) == [None]


def test_a_pipe_or_a_device_is_no_image_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    assert files_bytes([f"{tmp_path}/{name}.png" for name in ("pipe", "endless")]) == [None, None]


def test_folders_that_cannot_be_used(tmp_path):
    assert "is not a folder" in complaint(tmp_path / "nothing", dataset="folder")
    assert "config.input.data_dir is not set" in complaint(tmp_path, dataset="folder", data_dir=None)
    assert "config.input.label_key='kind' would not be read" in complaint(tmp_path, dataset="folder", label_key="kind")
    assert "config.input.max_labels=3 would not be read" in complaint(tmp_path, dataset="folder", max_labels=3)
    assert "config.input.dataset='folder/pets': write folder, and where it is as" in complaint(
        tmp_path, dataset="folder/pets"
    )
    assert "holds 0 class folders" in complaint(tmp_path, dataset="folder")
    fill(tmp_path, {"cat": 3, "dog": 0})
    assert "holds 1 class folders" in complaint(tmp_path, dataset="folder")
    fill(tmp_path, {"eel/deep": 2})
    assert "are needed (left out: 2 images in folders within class folders" in complaint(tmp_path, dataset="folder")
    fill(tmp_path, {"dog": 1})
    assert "has no images for split 'test'; it has train" in complaint(tmp_path, "test", dataset="folder")
    said = complaint(tmp_path, "train[:99%]", dataset="folder")
    assert "expected all or train or validation or test, as in configs/folder.py" in said


def test_the_report_in_the_docs_is_what_is_said(tmp_path, monkeypatch):
    counts = {
        "train/bird": 200, "train/cat": 210, "train/dog": 210, "train/dog/2020": 24, "train/empty": 0,
        "val/cat": 19, "val/dog": 19, "val/Bird": 9, "test/bird": 20, "test/cat": 20, "test/dog": 20,
    }  # fmt: skip
    for name, count in counts.items():
        (tmp_path / "my_images" / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (tmp_path / "my_images" / name / f"{number}.jpg").touch()
    others = [
        "cat/1.heic",
        "cat/2.heic",
        "dog/3.HEIC",
        "bird/4.heic",
        "cat/a.txt",
        "b.txt",
        "cat/scan",
        ".x",
        "cat/._1.jpg",
    ]
    for name in [*others, "top.png"]:
        (tmp_path / "my_images/train" / name).touch()
    for split in ("train", "val"):
        for number in range(3):
            (tmp_path / "my_images" / split / "cat" / f"{number}.jpg").write_text(f"picture {number}")
    monkeypatch.chdir(tmp_path)
    report = open_source(input_config(dataset="folder", data_dir="my_images"), "train", tmp_path / "cache").report
    docs = pathlib.Path(__file__).parents[3] / "docs" / "data.md"
    assert "```\n" + "\n".join(report) + "\n```" in docs.read_text()
