"""The code of a model card as it is pasted, beside `mixer.predict`; and what a card says of a run's way."""

import ast
import dataclasses
import io
import json
import pathlib
import re

import numpy as np
import pytest
import simplejpeg
from etils import epath
from ml_collections import FrozenConfigDict
from PIL import Image
from random_models import make_model, make_params

from mixer import predict
from mixer.config import recipe, run_folder
from mixer.data import plain_images
from mixer.data.pixels import crops, image_status, images
from mixer.runtime.errors import UserError
from mixer.training import history
from mixer.transfer import hub, lineage, model_card
from mixer.transfer.format import Program, quoted
from mixer.transfer.formats import FORMATS
from mixer.transfer.weights import Weights

NAMES = ["cat", "dog", 'a "third"', "köter", "狗"]


def weights_of(**settings) -> Weights:
    config = recipe.base()
    config.update_from_flattened_dict({"model.variant": "Ti/4", "input.image_size": 8, **settings})
    params = make_params(make_model())
    params["head"]["kernel"] *= 6  # a model that is sure of what it sees
    return Weights(params, "runs/pets", FrozenConfigDict(config), NAMES, step=7)


def card(weights, to="stablehlo", file="pets.stablehlo", measured=None):
    return model_card.card(weights, to=to, file=file, command="python -m mixer.export", measured=measured or {})


def pasted(text: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def picture(path, size=(61, 43)):
    """A picture with edges, of which resizing makes something else with every filter."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(size, Image.Resampling.NEAREST)
    coarse.save(path)
    return pathlib.Path(path)


@pytest.mark.filterwarnings("ignore:.*pets.stablehlo")  # the card's code leaves it to Python to close the file
@pytest.mark.parametrize("loss", ["softmax_xent", "sigmoid_xent"])
@pytest.mark.parametrize(
    "crop", [{"input.eval_crop": "resize_small"}, {"input.eval_crop": "resize_square", "input.eval_resize": 11}]
)
def test_the_code_of_a_card_gives_the_probabilities_of_predict(loss, crop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = weights_of(loss=loss, **crop)
    picture("cat.png").replace("cat.jpg")  # a PNG: another decoder of JPEG moves the colours of such edges by 15 levels
    with open("pets.stablehlo", "wb") as file:
        FORMATS["stablehlo"].save(file, weights.exported())
    scope = {}
    exec(pasted(card(weights)), scope)
    ((expected,),) = predict.predict(weights, ["cat.jpg"], top=5, batch_size=1)
    found = np.asarray(scope["probabilities"])[0]
    assert np.ptp(found) > 0.2
    for number, probability in expected.top:
        assert found[number] == pytest.approx(probability, abs=0.008)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[1] for line in printed] == [NAMES[number] for number, _ in expected.top[:3]]


@pytest.mark.filterwarnings("ignore:.*pets.stablehlo")
def test_the_code_of_a_card_ranks_classes_whose_probabilities_are_equal(tmp_path, monkeypatch, capsys):
    """Of logits of a sigmoid beyond 17, float32 makes a probability of one."""
    monkeypatch.chdir(tmp_path)
    weights = weights_of(loss="sigmoid_xent")
    weights.params["head"]["bias"] = weights.params["head"]["bias"] * 0 + np.float32([60, 70, 90, 80, -9])
    picture("cat.png").replace("cat.jpg")
    with open("pets.stablehlo", "wb") as file:
        FORMATS["stablehlo"].save(file, weights.exported())
    exec(pasted(card(weights)), {})
    assert [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()] == [
        ["100.00%", NAMES[2]], ["100.00%", NAMES[3]], ["100.00%", NAMES[1]],
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*pets.stablehlo")
def test_the_code_of_a_card_refuses_more_pictures_than_the_program_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, program = weights_of(), Program(3, ("cpu",))
    picture("cat.png").replace("cat.jpg")
    with open("pets.stablehlo", "wb") as file:
        FORMATS["stablehlo"].save(file, weights.exported()._replace(program=program))
    text = model_card.card(
        weights, to="stablehlo", file="pets.stablehlo", command="", measured={}, program=program
    ).split("iree-compile")[0]
    for pictures in (1, 2, 3):
        scope = {}
        exec(pasted(text).replace('["cat.jpg"]', str(["cat.jpg"] * pictures)), scope)
        assert len(scope["logits"]) == 3
    with pytest.raises(ValueError, match=r"^the program takes 3 pictures at a time$"):
        exec(pasted(text).replace('["cat.jpg"]', str(["cat.jpg"] * 4)), {})


def test_the_code_of_a_card_rounds_sides_as_the_run_does(tmp_path, monkeypatch):
    """56 x 91 pixels for a shorter side of 36: 58.5, up in the run's arithmetic and down in another order of it."""
    monkeypatch.chdir(tmp_path)
    picture("cat.png", (91, 56)).replace("cat.jpg")
    weights = weights_of(**{"input.eval_resize": 36, "input.image_size": 8})
    scope = {}
    exec(pasted(card(weights)).split("images = ")[0] + 'images = numpy.stack([prepared("cat.jpg")])', scope)
    expected, _ = plain_images.eval_image(pathlib.Path("cat.jpg").read_bytes(), weights.images())
    assert np.abs(scope["images"][0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("exif", list(images.EXIF))
@pytest.mark.parametrize("transparent", list(images.TRANSPARENT))
def test_the_code_of_a_card_reads_pictures_as_the_run_does(exif, transparent, tmp_path, monkeypatch):
    """A drawing whose upper part is transparent, stored turned."""
    monkeypatch.chdir(tmp_path)
    drawing = np.full((60, 44, 4), (40, 90, 200, 255), np.uint8)
    drawing[:25] = 0
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(drawing).save("cat.png", exif=tag)
    pathlib.Path("cat.png").replace("cat.jpg")
    weights = weights_of(**{"input.exif": exif, "input.transparent": transparent})
    text = card(weights)
    assert ("on white" in text) == (transparent == "white")
    scope = {}
    exec(pasted(text).split("images = ")[0] + 'images = numpy.stack([prepared("cat.jpg")])', scope)
    expected, status = plain_images.eval_image(pathlib.Path("cat.jpg").read_bytes(), weights.images())
    assert status == image_status.OK
    assert np.ptp(expected.astype(int)) > 100
    assert np.abs(scope["images"][0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("values", [np.uint16([[0, 60_000]]), np.float32([[0, 1]])], ids=["16 bits", "floats"])
def test_the_code_of_a_card_does_not_clip_what_the_run_scales(values, tmp_path):
    """Pillow's conversion to RGB clips such values at 255, and a picture would be white, or black."""
    path = tmp_path / "ramp.tiff"
    Image.fromarray(np.repeat(np.repeat(values, 20, axis=0), 20, axis=1)).save(path)
    weights, scope = weights_of(), {}
    expected, status = plain_images.eval_image(path.read_bytes(), weights.images())
    assert status == image_status.OK
    assert np.ptp(expected.astype(int)) > 200
    exec(pasted(card(weights)).split("images = ")[0], scope)
    with path.open("rb") as file, pytest.raises(ValueError, match="has more than 8 bits a pixel: scale it to 8"):
        scope["prepared"](file)


@pytest.mark.parametrize("crop", crops.EVAL_CROPS)
@pytest.mark.parametrize("rounding", crops.RESIZE_ROUNDINGS)
def test_the_code_of_a_card_rounds_as_the_run_does(rounding, crop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture("cat.png").replace("cat.jpg")
    weights = weights_of(**{"input.resize_rounding": rounding, "input.eval_crop": crop})
    text = card(weights)
    assert f"{rounding.removesuffix('e')}ed to uint8" in text
    scope = {}
    exec(pasted(text).split("images = ")[0] + 'images = numpy.stack([prepared("cat.jpg")])', scope)
    expected, _ = plain_images.eval_image(pathlib.Path("cat.jpg").read_bytes(), weights.images())
    difference = scope["images"][0].astype(int) - expected
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 0.05


@pytest.mark.parametrize("kind", [{"permutation": "patches", "permutation_patch": 4}, {"permutation": "pixels"}])
def test_the_code_of_a_card_permutes_pixels_as_the_run_does(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture("cat.png").replace("cat.jpg")
    settings = {f"input.{name}": value for name, value in {**kind, "permutation_seed": 5}.items()}
    weights = weights_of(**settings)
    text = card(weights)
    assert "shuffled" in text
    assert "shuffled" not in card(weights_of())
    scope = {}
    exec(pasted(text).split("images = ")[0] + 'images = numpy.stack([prepared("cat.jpg")])', scope)
    expected, _ = plain_images.eval_image(pathlib.Path("cat.jpg").read_bytes(), weights.images())
    plain, _ = plain_images.eval_image(pathlib.Path("cat.jpg").read_bytes(), weights_of().images())
    assert np.abs(scope["images"][0].astype(int) - expected).max() <= 1
    assert np.abs(scope["images"][0].astype(int) - plain).max() > 50
    with pytest.raises(UserError, match="timm cannot permute pixels, as the model was trained"):
        hub.timm_config(weights.exported())


def test_a_card_names_all_its_classes_and_timms_code_is_python():
    text = card(weights_of(), to="timm", file="pets.safetensors")
    assert f"class_names = {json.dumps(NAMES, ensure_ascii=False)}\n" in text
    compile(pasted(text), "card", "exec")
    assert "    logits = model(torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1)\n" in text
    assert "\nprobabilities = logits.sigmoid().numpy()\n" in text


def test_multi_label_data_is_judged_by_mean_average_precision_beside_what_a_blind_model_has():
    measured = {
        "accuracy": 0.668, "baseline_accuracy": 0.668, "mean_average_precision": 0.203,
        "baseline_mean_average_precision": 0.201, "count": 400,
    }  # fmt: skip
    text = card(weights_of(), measured=measured)
    assert (
        "**20.30%** mean average precision over the classes (equal scores for all images: 20.10%); the first guess is "
        "among the labels of 66.80% (the commonest label for all images: 66.80%) of 400 images of " in text
    )


def run_at(folder, **settings):
    config = recipe.base()
    recipe.duration(config, "total", epochs=8)
    config.update_from_flattened_dict(settings)
    run_folder.make(folder)
    run_folder.save(config, NAMES, folder)
    return str(folder)


def test_the_lineage_of_a_run_is_followed_to_its_beginning(tmp_path):
    first = run_at(tmp_path / "fractals", **{"input.dataset": "fractals/64x200x32"})
    second = run_at(tmp_path / "cifar", **{"input.dataset": "cifar10", "init_from": f"{first}/checkpoints/90"})
    noted = {"source": f"{first}/checkpoints/90", "step": 90, "digest": "0"}
    history.add(second, history.Start(0, "", "", {}, {}, 8, {}, {}, {}, weights=noted))
    text = card(weights_of(init_from=second))
    said = (
        f"`{second}`, trained on cifar10, split train, for a number of steps that is not known (planned: 8 epochs); "
        f"`{first}/checkpoints/90`, trained on fractals/64x200x32, split train, for 90 steps (planned: 8 epochs); "
        "random parameters"
    )
    assert f"- **Started from:** {second}\n- **Lineage:** {said}\n" in text


def test_it_is_known_whether_weights_were_once_interpolated(tmp_path):
    first = run_at(tmp_path / "first", **{"input.image_size": 224})
    ask = {"init_from": f"{first}/checkpoints/90", "resize": "interpolate"}
    resampled = run_at(tmp_path / "resampled", **ask, **{"input.image_size": 256})
    for source, known in (
        (first, False), (resampled, True), (run_at(tmp_path / "later", init_from=resampled), True),
        (run_at(tmp_path / "same", **ask, **{"input.image_size": 224}), False),
        (run_at(tmp_path / "extended", init_from=first, **{"input.image_size": 448}), False),
        (run_at(tmp_path / "published", init_from="B/16-i1k"), False),
        (run_at(tmp_path / "circle", init_from=str(tmp_path / "circle")), False),
    ):  # fmt: skip
        assert lineage.interpolated(run_folder.load_config(source)) == known
    assert not lineage.interpolated(None)


def test_a_card_without_paths_knows_the_lineage_all_the_same(tmp_path):
    first = run_at(tmp_path / "first", **{"input.dataset": "fractals/64x200x32"})
    second = run_at(tmp_path / "second", init_from=first)
    changes = [f"init_from: None before, {first!r} now", f"input.data_dir: {first!r} before, None now"]
    changes.append("input.dataset: 'digits/8' before, 'cifar10' now")
    history.add(second, history.Start(1, "", "", {}, {}, 8, {}, {}, {}, config_changes=changes))
    weights = dataclasses.replace(weights_of(init_from=first), workdir=epath.Path(second), step=7, source=second)
    text = model_card.card(
        weights, to="npz", file="m.npz", command="", measured={}, named=lambda path: path.rpartition("/")[2]
    )
    assert str(tmp_path) not in text
    assert "- **Weights:** `second`\n" in text
    assert "- **Started from:** first\n- **Lineage:** `first`, trained on fractals/64x200x32, split train, for " in text
    assert (
        "- from step 1: init_from: None before, 'first' now; input.data_dir: 'first' before, None now; "
        "input.dataset: 'digits/8' before, 'cifar10' now\n" in text
    )


def test_the_code_for_another_method_of_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(crops.EVAL_CROPS, "cubic", crops.EVAL_CROPS["resize_small"]._replace(method="bicubic"))
    text = card(weights_of(**{"input.eval_crop": "cubic"}))
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(pasted(text).split("images = ")[0], scope)
    path = picture("cat.png")
    expected, status = plain_images.eval_image(path.read_bytes(), weights_of(**{"input.eval_crop": "cubic"}).images())
    assert status == image_status.OK
    difference = scope["prepared"](str(path)).astype(int) - expected
    assert np.abs(difference[(expected > 0) & (expected < 255)]).max() <= 1


def test_a_name_in_code_is_a_text_of_python():
    for name in ("a.npz", 'a"b.npz', "köter \U0001f600.npz", "a\\b", "\udcff.npz", "a\nb"):
        assert ast.literal_eval(quoted(name)).encode("utf-16", "surrogatepass") == name.encode(
            "utf-16", "surrogatepass"
        )
        assert quoted(name).isprintable()


def test_the_lineage_ends_where_nothing_is_known(tmp_path):
    assert lineage.lineage("B/16-i21k") == "B/16-i21k, trained on ImageNet-21k as published"
    gone = str(tmp_path / "gone")
    assert lineage.lineage(gone) == f"`{gone}`, of which nothing is known: it is no run's folder here"
    circle = run_at(tmp_path / "circle", init_from=str(tmp_path / "circle"))
    assert lineage.lineage(circle).count("trained on") == 10


def test_every_card_names_the_decoder_and_what_another_one_changes(shared_data):
    said = re.search(
        r"differ by ([\d.]+) levels of 255 on average, and have this cast: red \+([\d.]+), green ([\d.]+), blue "
        r"\+([\d.]+)\.", card(weights_of()),
    )  # fmt: skip
    for to in FORMATS:
        assert said[0] in card(weights_of(), to=to)
    photographs = [path.read_bytes() for path in sorted((shared_data / "imagenet_samples").glob("*.JPEG"))[:40]]
    differences = [
        np.asarray(opened, float) - simplejpeg.decode_jpeg(data, fastdct=True)
        for data in photographs
        if (opened := Image.open(io.BytesIO(data))).mode == "RGB"
    ]
    found = [
        np.mean([np.abs(one).mean() for one in differences]),
        *np.mean([one.mean((0, 1)) for one in differences], 0),
    ]
    np.testing.assert_allclose(found, [float(number) for number in said.groups()], atol=0.1)
