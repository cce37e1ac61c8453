"""The names of ImageNet's classes: their order, their number, and the name of each class."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

from mixer.data import class_names
from mixer.runtime.errors import UserError


def test_the_order_of_imagenet_1k_is_that_of_tfds():
    package = pathlib.Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
    labels = (package / "datasets" / "imagenet2012" / "labels.txt").read_text().split()
    assert class_names.published(1000) == labels


def test_the_order_of_imagenet_21k_is_that_of_the_published_heads():
    """The ids are sorted. Users of the published checkpoints have reported the positions of two of them."""
    ids = class_names.published(21_843)
    assert len(ids) == len(set(ids)) == 21_843
    assert ids == sorted(ids)
    assert ids[21_839] == "n15093298"  # google-research/vision_transformer, issue 237
    assert class_names.readable([ids[2037]]) == ["sea swallow (n02043333)"]  # abhimanyudubey/GeoYFCC, issue 5
    # ImageNet-21k has all classes of ImageNet-1k, except the teddy bear.
    assert set(class_names.published(1000)) - set(ids) == {"n04399382"}


def test_other_numbers_of_classes_have_no_published_head():
    assert class_names.published(1001) is None
    assert class_names.published(0) is None


def test_known_wordnet_ids_become_readable_and_other_names_stay():
    names = ["n01440764", "n04399382", "n00004475", "n02012849", "n03126707", "n99999999", "n0144076", "tench", ""]
    assert class_names.readable(names) == [
        "tench (n01440764)", "teddy (n04399382)", "organism (n00004475)", "crane bird (n02012849)", "crane (n03126707)",
        "n99999999", "n0144076", "tench", "",
    ]  # fmt: skip


def test_every_published_class_has_a_name():
    for num_classes in (1000, 21_843):
        ids = class_names.published(num_classes)
        names = class_names.readable(ids)
        assert len(set(names)) == num_classes
        for wordnet_id, name in zip(ids, names, strict=True):
            assert name.endswith(f" ({wordnet_id})")
            assert name.isascii()
            assert len(name) > len(" (n00000000)")
            assert name == name.strip()
    assert len({name.rpartition(" (")[0] for name in class_names.readable(class_names.published(1000))}) == 1000


@pytest.mark.parametrize("text", ["a\nb c\n", "a\r\nb c\r\n", "\ufeffa\nb c", "a\n  b c \n\n\n"])
def test_a_file_of_names_is_read(tmp_path, text):
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert class_names.read_names(str(tmp_path / "names.txt")) == ["a", "b c"]


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"picture\.png: it is not UTF-8 text; give a text file with one name a line"):
        class_names.read_names(str(tmp_path / "picture.png"))
    with pytest.raises(UserError, match=r"nowhere: No such file or directory; give"):
        class_names.read_names(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="Is a directory"):
        class_names.read_names(str(tmp_path))


def test_names_need_no_tensorflow():
    code = "import sys; from mixer.data import class_names; class_names.readable(['n01440764'])"
    code += "; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
