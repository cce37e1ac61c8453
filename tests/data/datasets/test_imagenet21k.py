import io
import tarfile

import pytest
import tensorflow_datasets as tfds

from mixer.data.datasets import archives
from mixer.data.datasets.archives import BrokenArchiveError
from mixer.data.datasets.imagenet21k import Imagenet21k

CAT, DOG, FISH = "n02121808", "n02084071", "n01440764"


def jpeg(text):
    return b"\xff\xd8\xff\xe0" + text.encode()


def add(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def class_tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            add(tar, name, data)
    return buffer.getvalue()


def build(tmp_path, archive, classes=(DOG, CAT, FISH), **kwargs):
    (tmp_path / "classes.txt").write_text("\n".join(classes) + "\n")
    builder = Imagenet21k(
        archive=str(archive), classes=str(tmp_path / "classes.txt"), data_dir=tmp_path / "data", **kwargs
    )
    builder.download_and_prepare()
    return tfds.builder(kwargs.get("name", "imagenet21k"), data_dir=tmp_path / "data")


def contents(builder):
    decoders = {"image": tfds.decode.SkipDecoding()}
    examples = builder.as_dataset(split="train", decoders=decoders).as_numpy_iterator()
    names = builder.info.features["label"].names
    return {e["file_name"].decode(): (names[e["label"]], e["image"]) for e in examples}


@pytest.fixture
def images():
    return {wnid: {f"{wnid}_{i}.JPEG": jpeg(f"{wnid} {i}" * 50) for i in range(3)} for wnid in (CAT, DOG)}


@pytest.mark.parametrize(("mode", "folder"), [("w:gz", "winter21_whole/"), ("w", "")])
def test_images_arrive_untouched_under_their_class(tmp_path, images, mode, folder):
    archive = tmp_path / "archive"
    with tarfile.open(archive, mode) as tar:
        if folder:
            add(tar, folder, type=tarfile.DIRTYPE)
        for wnid, files in images.items():
            add(tar, f"{folder}{wnid}.tar", class_tar(files))
    builder = build(tmp_path, archive)
    assert contents(builder) == {name: (wnid, data) for wnid in images for name, data in images[wnid].items()}
    assert builder.info.features["label"].names == [DOG, CAT, FISH]
    assert dict(builder.info.metadata) == {
        "skipped": {},
        "classes_not_listed": [],
        "classes_without_images": [FISH],
        "truncated": "",
    }
    # The folder has nothing but the dataset.
    assert {path.suffix for path in (tmp_path / "data").rglob("*") if path.is_file()} <= {
        ".json",
        ".txt",
        "",
    } | {".tfrecord-00000-of-00001"}


def test_array_records_can_be_asked_for(tmp_path, images):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        add(tar, f"{CAT}.tar", class_tar(images[CAT]))
    builder = build(tmp_path, archive, file_format="array_record")
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    examples = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert {examples[i]["image"] for i in range(len(examples))} == set(images[CAT].values())


def test_every_kind_of_bad_member_is_counted_and_left_out(tmp_path, images):
    good = dict(list(images[CAT].items())[:1])
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "empty.JPEG")
        add(tar, "page.JPEG", b"<html>not found</html>")
        add(tar, "/etc/absolute.JPEG", jpeg("1"))
        add(tar, "../../above.JPEG", jpeg("2"))
        add(tar, "link.JPEG", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.JPEG", type=tarfile.LNKTYPE, linkname="empty.JPEG")
        add(tar, "pipe.JPEG", type=tarfile.FIFOTYPE)
        for name, data in good.items():
            add(tar, name, data)
            add(tar, name, data)
        add(tar, "huge.JPEG", jpeg("3") + bytes(65 << 20))
        add(tar, "after.JPEG", jpeg("after"))
    cut = class_tar(images[DOG])
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        add(tar, f"x/{CAT}.tar", inner.getvalue())
        add(tar, f"x/{DOG}.tar", cut[: 2 * 512 + 1024])
        add(tar, f"y/{CAT}.tar", inner.getvalue())
        add(tar, "README", b"hello")
        add(tar, "n09999999.tar", cut)
        add(tar, f"{FISH}.tar")
        add(tar, f"../{FISH}.tar", cut)
        add(tar, f"z/{FISH}.tar", type=tarfile.SYMTYPE, linkname=f"{CAT}.tar")
    builder = build(tmp_path, archive)
    kept = {name: (CAT, data) for name, data in good.items()} | {"after.JPEG": (CAT, jpeg("after"))}
    first_dog = next(iter(images[DOG]))
    assert contents(builder) == kept | {first_dog: (DOG, images[DOG][first_dog])}
    assert builder.info.metadata["skipped"] == {
        "image: empty": 1,
        "image: not an image": 1,
        "image: unsafe path": 2,
        "image: link": 2,
        "image: not a regular file": 1,
        "image: repeated": 1,
        "image: larger than 64 MiB": 1,
        "class tar: damaged": 1,
        "class tar: repeated": 1,
        "class tar: not in the class list": 1,
        "class tar: empty": 1,
        "class tar: unsafe path": 1,
        "class tar: link": 1,
        "not a class tar": 1,
    }
    assert builder.info.metadata["classes_not_listed"] == ["n09999999"]
    assert builder.info.metadata["classes_without_images"] == [FISH]


def test_an_image_named_by_another_class_than_its_tar_is_left_out_and_counted(tmp_path, images):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        add(tar, f"{CAT}.tar", class_tar({**images[CAT], f"{DOG}_7.JPEG": jpeg("dog"), "7.JPEG": jpeg("no id")}))
    builder = build(tmp_path, archive)
    assert contents(builder).keys() == images[CAT].keys() | {"7.JPEG"}
    assert builder.info.metadata["skipped"] == {"image: named by another class than its tar": 1}


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_the_classes_may_be_those_of_the_archive(tmp_path, images, mode):
    archive, said = tmp_path / "archive", []
    with tarfile.open(archive, mode) as tar:
        add(tar, "README", b"hello")
        for wnid in (CAT, DOG):
            add(tar, f"x/{wnid}.tar", class_tar(images[wnid]))
    builder = Imagenet21k(archive=str(archive), classes=None, data_dir=tmp_path / "data", report=said.append)
    builder.download_and_prepare()
    assert builder.info.features["label"].names == [DOG, CAT]
    assert contents(tfds.builder("imagenet21k", data_dir=tmp_path / "data")).keys() == images[CAT].keys() | images[DOG]
    assert said == [f"Reading the classes of {archive}; a compressed archive is decompressed once for this."]
    archive.write_bytes(b"<html>" * 1000)
    with pytest.raises(ValueError, match="is no tar of class tars: none is named by a WordNet id"):
        Imagenet21k(archive=str(archive), classes=None, data_dir=tmp_path / "data")


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_truncated_archive_stops_with_one_line_or_keeps_what_it_gave(tmp_path, images, mode):
    archive = tmp_path / "archive"
    with tarfile.open(archive, mode) as tar:
        for wnid, files in images.items():
            add(tar, f"{wnid}.tar", class_tar(files))
    data = archive.read_bytes()
    # The plain archive ends in the second class, after its first image. The compressed one lacks a few bytes.
    archive.write_bytes(data[: 512 + len(class_tar(images[CAT])) + 512 + 1024 + 700] if mode == "w" else data[:-20])
    with pytest.raises(BrokenArchiveError, match=r"archive .* is damaged.*--allow_truncated") as caught:
        build(tmp_path, archive)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "data").rglob("*tfrecord*"))
    builder = build(tmp_path, archive, allow_truncated=True)
    assert set(images[CAT]) <= set(contents(builder))
    assert "is damaged" in builder.info.metadata["truncated"]


def test_a_bomb_of_images_ends_early_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_ALWAYS_READ", 1 << 20)
    archive, bomb = tmp_path / "a.tar.bz2", {f"{CAT}_{i}.JPEG": jpeg("") + bytes(300_000) for i in range(100)}
    with tarfile.open(archive, "w:bz2") as tar:
        add(tar, f"{CAT}.tar", class_tar(bomb))
    with pytest.raises(BrokenArchiveError, match=r"archive .* is damaged: its first .* a decompression bomb") as caught:
        build(tmp_path, archive)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    builder = build(tmp_path, archive, allow_truncated=True)
    assert builder.info.splits["train"].num_examples <= 4  # of a hundred


def test_nothing_is_written_outside_the_dataset(tmp_path, images):
    """Such names have `..` or are absolute, or are links or files below links, in class tars and outside them."""
    outside, inner = tmp_path / "outside", io.BytesIO()
    outside.mkdir()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        add(tar, "door", type=tarfile.SYMTYPE, linkname=str(outside))
        add(tar, "door/through.JPEG", jpeg("through"))
        add(tar, str(outside / "absolute.JPEG"), jpeg("absolute"))
        add(tar, "../../outside/climbs.JPEG", jpeg("climbs"))
        add(tar, "hard.JPEG", type=tarfile.LNKTYPE, linkname=str(tmp_path / "classes.txt"))
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        add(tar, "door", type=tarfile.SYMTYPE, linkname=str(outside))
        add(tar, f"door/{DOG}.tar", class_tar(images[DOG]))
        add(tar, f"{CAT}.tar", inner.getvalue())
    builder = build(tmp_path, archive)
    assert contents(builder).keys() == images[DOG].keys() | {"through.JPEG"}  # the dataset has a name without a path
    assert list(outside.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "a.tar", "classes.txt", "data"}


def test_a_file_that_is_no_archive_is_named(tmp_path):
    archive = tmp_path / "page.tar"
    archive.write_bytes(b"<html>" * 1000)
    with pytest.raises(ValueError, match=r"page\.tar is no tar of class tars"):
        build(tmp_path, archive, allow_truncated=True)


def test_a_class_list_of_another_archive_is_an_error(tmp_path, images):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        add(tar, f"{CAT}.tar", class_tar(images[CAT]))
    with pytest.raises(ValueError, match=f"no image of any of the 1 listed classes.*{CAT}"):
        build(tmp_path, archive, classes=[FISH])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01440764\nn0144\n", "line 2: 'n0144' is not a WordNet id"),
        ("n01440764\n\nn01440764\n", "line 3: 'n01440764' is already in line 1"),
        ("\n \n", "is empty"),
        ("n01440764,tench\n", "line 1"),
    ],
)
def test_class_list_errors_name_the_line(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        Imagenet21k(archive="a.tar", classes=str(tmp_path / "classes.txt"), data_dir=tmp_path)
