"""Labels become the model's class numbers by the names of the classes, where the data has a part of them."""

import io

import numpy as np
import pytest

from mixer import models
from mixer.config import recipe
from mixer.data import class_names
from mixer.data.sources import Example, Source
from mixer.evaluation import class_matching
from mixer.evaluation.evaluator import Context
from mixer.runtime.errors import OtherClassesError
from mixer.transfer import loading
from mixer.transfer.formats import FORMATS


def match(model_classes, data_classes, dataset="folder", num_classes=None):
    """Returns the matched data, which has one image of each class, the image being the name; and one without labels."""
    images = [*(Example(name.encode(), (n,)) for n, name in enumerate(data_classes)), Example(b"none", (-1,))]
    source = Source(len(images), list(data_classes), 1, False, lambda numbers: [images[n] for n in numbers])
    model = models.create("Ti/4", num_classes or len(model_classes))
    context = Context(model, model_classes, "softmax_xent", recipe.base().input, None, 1, "/nowhere")
    return class_matching.matched(source, context, dataset)


def labels(source):
    return {image.decode(): label for image, (label,) in source.fetch(np.arange(source.num_examples))}


def test_a_part_of_the_classes_in_any_order():
    found = match(["ant", "bee", "cow", "dog"], ["dog", "bee"])
    assert labels(found) == {"dog": 3, "bee": 1, "none": -1}
    assert found.class_names == ["ant", "bee", "cow", "dog"]
    assert found.report == ["  matched by name: 2 of the 4 classes of the model"]
    assert labels(match(["ant", "bee"], ["bee", "ant"])) == {"bee": 1, "ant": 0, "none": -1}


def test_the_same_classes_are_left_alone():
    assert match(["ant", "bee"], ["ant", "bee"]).report == ()
    in_order = match(None, ["x", "y"], num_classes=2)
    assert labels(in_order) == {"x": 0, "y": 1, "none": -1}
    assert in_order.report == ["  taken in order: 2 classes, of which the model does not give the names"]
    assert match(None, ["0", "1"], dataset="mnist", num_classes=2).report == ()


def test_wordnet_ids_name_the_classes_of_published_checkpoints():
    known = class_names.published(1000)
    found = match(None, ["n01440764", known[7]], num_classes=1000)
    assert labels(found) == {"n01440764": 0, known[7]: 7, "none": -1}


def test_a_published_checkpoint_has_names(monkeypatch, tmp_path):
    """Else images of as many other classes would be scored by number."""
    shapes = {"head": {"bias": np.zeros(1000, np.float32), "kernel": np.zeros((4, 1000), np.float32)}}
    form = FORMATS["npz"]._replace(load=lambda *_: shapes, load_carried=None, load_class_names=None)
    known = class_names.published(1000)
    assert loading._load_file(io.BytesIO(), "B/16-i1k", form).class_names == known
    assert loading._load_file(io.BytesIO(), "mine.npz", form).class_names is None
    shuffled = [known[1], known[0], *known[2:]]
    assert labels(match(known, shuffled, num_classes=1000))[known[1]] == 1
    with pytest.raises(OtherClassesError, match="class 0 is 'n01440764' there and 'tench' here"):
        match(known, ["tench", *known[1:]], num_classes=1000)


def test_numbers_are_names_in_a_folder_alone():
    assert labels(match(["0", "1", "2"], ["2", "1"])) == {"2": 2, "1": 1, "none": -1}
    with pytest.raises(OtherClassesError, match="tells 3 classes apart, the data has 2"):
        match(["0", "1", "2"], ["0", "1"], dataset="mnist")


def test_what_does_not_match_is_named():
    with pytest.raises(OtherClassesError) as caught:
        match(["blue", "red", "green"], ["Blue", "red", "pink", "green"])
    said = str(caught.value)
    assert "the model tells 3 classes apart, the data has 4" in said
    assert said.endswith(
        "; it does not know 2 of the data's classes: Blue (it differs from blue only in case or Unicode form), pink; "
        "those it knows: blue, red, green"
    )
    with pytest.raises(OtherClassesError, match=r"know 1 of the data's classes: tench; those it knows: n01440764, "):
        match(None, ["tench"], num_classes=1000)
    with pytest.raises(OtherClassesError, match="it does not know 1 of the data's classes: 1; those it knows: a, b"):
        match(["a", "b"], ["1", "a"])
