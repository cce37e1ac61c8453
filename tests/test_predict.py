"""The command mixer.predict, compared with a computation with Pillow and NumPy."""

import json
import os
import re
import subprocess
import sys
import types

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import pytest
import random_models
from absl import flags
from etils import epath
from PIL import Image

from mixer import export, predict
from mixer.data.pixels import image_status
from mixer.runtime.errors import UserError
from mixer.transfer import loading
from mixer.transfer.weights import Weights
from tests import commands
from tests.bucket.faults import Fault

PIXELS, RESIZE = 16, 20  # images with a shorter side of 20 are cropped to 16 pixels and not resampled
NAMES = ["n01440764", "a b", "n99999999", "tabby", "0"]
SHOWN = ["tench (n01440764)", "a b", "n99999999", "tabby", "0"]


def make_model(classes):
    return random_models.make_model(classes, num_blocks=1)


def make_params(classes, seed):
    return random_models.make_params(make_model(classes), PIXELS, seed)


def write_run(folder, params, ema_params, **settings):
    """Makes a run's folder with one checkpoint."""
    given = {"input.image_size": PIXELS, "input.eval_resize": RESIZE, **settings}
    return random_models.write_run(folder, [random_models.make_state(params, ema_params, step=7)], NAMES, **given)


def write_npz(path, params):
    np.savez(path, **flax.traverse_util.flatten_dict(params, sep="/"))
    return path


@pytest.fixture(scope="module")
def params():
    return make_params(len(NAMES), seed=1)


@pytest.fixture(scope="module")
def ema_params():
    return make_params(len(NAMES), seed=2)


@pytest.fixture(scope="module")
def softmax_run(tmp_path_factory, params, ema_params):
    folder = tmp_path_factory.mktemp("runs") / "softmax"
    return write_run(folder, params, ema_params, **{"loss": "softmax_xent", "input.max_pixels": 2000})


def write_image(path, height, width, seed, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, "BMP" if path.suffix == ".bmp" else "PNG")
    return path


def logits_of(path, params):
    """Returns the logits of an image whose shorter side is RESIZE, float64 [classes]."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    top, left = (pixels.shape[0] - PIXELS) // 2, (pixels.shape[1] - PIXELS) // 2
    pixels = pixels[top : top + PIXELS, left : left + PIXELS].astype(np.float32) / 127.5 - 1.0
    classes = len(params["head"]["bias"])
    return np.asarray(make_model(classes).apply({"params": params}, jnp.asarray(pixels[None])), np.float64)[0]


def softmax(logits):
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def run(*arguments, cwd, devices=8):
    return commands.run("mixer.predict", *arguments, cwd=cwd, devices=devices)


def check_top(top, probabilities, names):
    """Checks that the named classes are the most probable ones, in order, with their probabilities."""
    order = np.argsort(-probabilities, kind="stable")[: len(top)]
    assert [item["class"] for item in top] == [names[number] for number in order]
    np.testing.assert_allclose([item["probability"] for item in top], probabilities[order], rtol=2e-5)


def write_broken(folder):
    """Makes files that cannot be used. Returns for each the reason, in the order in which they are given."""
    picture = write_image(folder / "picture.png", 20, 20, seed=0).read_bytes()
    picture_jpeg = folder / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(picture_jpeg)
    jpeg = picture_jpeg.read_bytes()
    picture_jpeg.write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "notes.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    # Its header and its end are right. Only decoding all of it shows the error.
    (folder / "flipped.png").write_bytes(picture[:200] + bytes([picture[200] ^ 255]) + picture[201:])
    write_image(folder / "huge.png", 50, 50, seed=0)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    return {
        "cut.jpg": "truncated", "notes.jpg": "unknown format", "empty.png": "empty", "flipped.png": "undecodable",
        "huge.png": "too large", "dangling.png": "missing", "nowhere.jpg": "missing",
    }  # fmt: skip


def test_good_images_among_broken_ones_are_classified(softmax_run, params, tmp_path):
    broken = write_broken(tmp_path)
    shapes = {
        "wide.png": (20, 27),
        "tall.png": (31, 20),
        "square.bmp": (20, 20),
        "grey.png": (20, 22),
        "last": (20, 20),
    }
    for number, (name, shape) in enumerate(shapes.items()):
        write_image(tmp_path / name, *shape, seed=number, mode="L" if name == "grey.png" else "RGB")
    given = [name for pair in zip(broken, [*shapes, "wide.png", "wide.png"], strict=True) for name in pair]
    done = run("--checkpoint", softmax_run, *given[:3], "--top", 3, "--json", *given[3:], cwd=tmp_path)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["image"] for line in lines] == given
    for line in lines:
        if line["image"] in broken:
            assert line == {"image": line["image"], "error": broken[line["image"]]}
        else:
            assert set(line) == {"image", "top"}
            assert len(line["top"]) == 3
            check_top(line["top"], softmax(logits_of(tmp_path / line["image"], params)), SHOWN)
    assert done.stderr.splitlines() == [
        *(f"skipped {name}: {reason}" for name, reason in broken.items()),
        "error: 7 of 14 images could not be used",
    ]


def test_the_output_for_people_has_paths_and_aligned_probabilities(softmax_run, ema_params, tmp_path):
    """With --top above the number of classes, averaged parameters, one device and relative paths."""
    write_image(tmp_path / "one.png", 20, 20, seed=1)
    write_image(tmp_path / "more" / "two.png", 20, 24, seed=2)
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    arguments = ("--checkpoint", softmax_run, "--ema", "--top=9", "one.png", "notes.jpg", "more", "empty/")
    done = run(*arguments, cwd=tmp_path, devices=1)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "skipped empty/: holds no images",
        "skipped notes.jpg: unknown format",
        "error: 2 of 4 images could not be used",
    ]
    expected = []
    for name in ("one.png", "more/two.png"):
        probabilities = softmax(logits_of(tmp_path / name, ema_params))
        order = np.argsort(-probabilities)
        expected += [name, *(f"{100 * probabilities[number]:9.2f}%  {SHOWN[number]}" for number in order)]
    assert done.stdout.splitlines() == expected


def test_folders_are_searched_recursively_and_the_sigmoid_loss_gives_sigmoids(params, tmp_path):
    workdir = write_run(tmp_path / "run", params, None, loss="sigmoid_xent")
    photos = tmp_path / "photos"
    places = ("", "a", "a/deep/er", "b.jpg")  # a folder may have the name of a picture
    paths = [photos / places[n % 4] / f"{n:03}.{('png', 'PNG', 'bmp')[n % 3]}" for n in range(150)]
    for number, path in enumerate(paths):
        write_image(path, 20, 20 + number % 3, seed=number)
    for hidden in (".hidden.png", ".git/picture.png", "a/.cache/deep/picture.png"):
        write_image(photos / hidden, 20, 20, seed=0)
    (photos / "readme.txt").write_text("no picture")
    done = run("--checkpoint", workdir, photos, "--json", "--batch_size=40", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["image"] for line in lines] == sorted(map(str, paths))
    for line in lines:
        assert len(line["top"]) == 5
        check_top(line["top"], sigmoid(logits_of(line["image"], params)), SHOWN)


def test_classes_whose_probabilities_are_equal_in_float32_are_ranked_by_logits(params, tmp_path):
    """Sigmoids of logits beyond 17 are 1. Accuracy counts the first guess by logits, too."""
    bias = np.zeros_like(params["head"]["bias"])
    bias[[1, 3, 4]] = 20, 30, 25
    certain = {**params, "head": {"kernel": 0 * params["head"]["kernel"], "bias": bias}}
    weights = loading.load(str(write_run(tmp_path / "run", certain, None, loss="sigmoid_xent")))
    ((found,),) = predict.predict(weights, [str(write_image(tmp_path / "a.png", 20, 20, seed=0))], top=4, batch_size=1)
    assert found.top == [(3, 1.0), (4, 1.0), (1, 1.0), (0, 0.5)]


def test_an_npz_has_no_class_names_and_output_may_be_closed_early(tmp_path):
    """`python -m mixer.predict ... | head -6` ends after the first image, without a message."""
    params = make_params(10, seed=3)
    file = write_npz(tmp_path / "mixer.npz", params)
    # Without a config the shorter side becomes 8/7 of the image size before the crop: 18 for 16.
    paths = [write_image(tmp_path / "photos" / f"{number:02}.png", 18, 19, seed=number) for number in range(40)]
    command = f"{sys.executable} -m mixer.predict --checkpoint {file} --batch_size=8 {paths[0].parent} | head -6"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=300, check=False,
        env=commands.environment(1),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    path, *top = done.stdout.splitlines()
    probabilities = softmax(logits_of(paths[0], params))
    order = np.argsort(-probabilities)[:5]
    assert path == str(paths[0])
    assert top == [f"{100 * probabilities[number]:9.2f}%  class {number}" for number in order]


@pytest.mark.parametrize(("to", "suffix"), [("npz", ".npz"), ("timm", ".safetensors")])
def test_an_export_names_the_classes(tmp_path, softmax_run, to, suffix):
    file = epath.Path(tmp_path) / f"m{suffix}"
    export.export(loading.load(str(softmax_run)), to, file, command="")
    picture = write_image(tmp_path / "a.png", 18, 19, seed=0)
    done = run("--checkpoint", file, picture, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(line.partition("%  ")[2] for line in done.stdout.splitlines()[1:]) == sorted(SHOWN)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "headless.npz has no head, so no classes to name: fine-tune it first"),
        ({"top": 0}, "--top=0: expected at least 1"),
        ({"batch_size": -1}, "--batch_size=-1: expected at least 1"),
        ({"checkpoint": None}, "--checkpoint is missing: give a run's folder, a file, or the name of"),
        ({"checkpoint": "nowhere"}, "'nowhere': no such file or folder"),
        ({"ema": True}, "headless.npz is not the folder of a run: it has no averaged parameters"),
    ],
)
def test_wrong_usage_is_refused(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "headless.npz", make_params(0, seed=0))
    defaults = {"checkpoint": "headless.npz", "top": 5, "ema": False, "json": False, "classes": None, "batch_size": 8}
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(**{**defaults, **given}))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        predict.main(["predict", "one.png"])
    assert "\n" not in str(caught.value)


def test_no_images_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no images given: name image files or folders"):
        predict.image_files([])
    (tmp_path / "notes.txt").write_text("no picture")
    write_image(tmp_path / ".hidden" / "one.png", 20, 20, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"no images in {tmp_path} and {tmp_path}/empty; looked for \.jpg, "):
        predict.image_files([str(tmp_path), str(tmp_path / "empty")])
    found, empty = predict.image_files([str(tmp_path), __file__, str(tmp_path / ".hidden")])
    assert found == [__file__, str(tmp_path / ".hidden/one.png")]
    assert empty == [predict.Prediction(str(tmp_path), [], "holds no images")]


def test_pictures_that_cannot_be_read_are_counted(tmp_path, capsys):
    """Links to folders are followed, and not in a circle."""
    write_image(tmp_path / "album/one.png", 20, 20, seed=0)
    write_image(tmp_path / "elsewhere/two.png", 20, 20, seed=0)
    for name in ("a.HEIC", "deep/b.heic", "deep/c.dng", "notes", "deep/d.txt"):
        (tmp_path / "album" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "album" / name).write_bytes(b"x")
    (tmp_path / "album/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "album/deep")
    (tmp_path / "album/deep/round").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "album/self").symlink_to(tmp_path / "album")
    found, empty = predict.image_files([str(tmp_path / "album")])
    assert [os.path.basename(path) for path in found] == ["two.png", "one.png"]
    assert empty == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/album: left out 3 files with another ending: 2 .heic (HEIC cannot be read: ")
    (tmp_path / "elsewhere/back").unlink()
    predict.image_files([str(tmp_path / "elsewhere")])
    assert capsys.readouterr().err == ""


def test_impossible_paths_are_skipped_and_other_images_classified(softmax_run, tmp_path):
    """The paths are on an unknown file system, with a NUL, a folder without images, and one image."""
    picture = str(write_image(tmp_path / "one.png", 20, 20, seed=1))
    given = ["ftp://host/b.jpg", f"{tmp_path}/a\0b.jpg", str(tmp_path / ".git"), picture]
    (tmp_path / ".git").mkdir()
    found, empty = predict.image_files(given)
    assert found == [given[0], given[1], picture]
    (answers,) = predict.predict(loading.load(str(softmax_run)), found, top=1, batch_size=8)
    assert [answer.error for answer in (*answers, *empty)] == ["unreadable", "missing", "", "holds no images"]


def test_images_in_a_bucket_are_found_and_classified(softmax_run, tmp_path, bucket_here):
    picture = write_image(tmp_path / "one.png", 20, 20, seed=1).read_bytes()
    for name in ("b/c.png", "a.png", ".hidden/d.png", "notes.txt"):
        bucket_here.put(f"photos/{name}", picture)
    place = bucket_here.path("photos")
    found, empty = predict.image_files([place, bucket_here.path("none.png")])
    assert (found, empty) == ([f"{place}/a.png", f"{place}/b/c.png", bucket_here.path("none.png")], [])
    weights = loading.load(str(softmax_run))
    (answers,) = predict.predict(weights, [*found, str(tmp_path / "one.png")], top=1, batch_size=8)
    assert [answer.error for answer in answers] == ["", "", "missing", ""]
    assert answers[0].top == answers[1].top == answers[3].top


def test_a_bucket_that_refuses_makes_an_image_unreadable(bucket_here):
    bucket_here.control(fail=[Fault(".", status=403)])
    path = bucket_here.path("a.jpg")
    assert predict.image_files([path]) == ([path], [])
    assert predict.reason(path, image_status.BAD_RECORD) == "unreadable"


def test_names_come_from_the_file_the_run_or_the_number_of_classes(softmax_run, params, tmp_path, capsys):
    weights = loading.load(str(softmax_run))
    file = tmp_path / "names.txt"
    file.write_text("n02123045\ntwo\nthree\nfour\nfive\n")
    assert predict.names_for(weights, None) == SHOWN
    assert predict.names_for(weights, str(file)) == ["tabby (n02123045)", "two", "three", "four", "five"]
    file.write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"names\.txt has 2 names, the model 5 classes: give one name a line"):
        predict.names_for(weights, str(file))
    assert capsys.readouterr().err == ""

    for classes, dataset, first, last in (
        (1000, "ImageNet-1k", "tench (n01440764)", "toilet tissue (n15075141)"),
        (21_843, "ImageNet-21k", "organism (n00004475)", "knothole (n15102894)"),
    ):
        names = predict.names_for(Weights(make_params(classes, seed=0), "weights.npz"), None)
        assert (len(names), names[0], names[-1]) == (classes, first, last)
        told = capsys.readouterr().err
        assert told.startswith(f"class names: those of {dataset}, chosen by the number of classes")
        assert told.count("\n") == 1


def test_images_are_cropped_as_in_the_runs_evaluation(tmp_path, params):
    settings = {"input.eval_crop": "resize_square", "input.eval_resize": 18, "input.max_pixels": 5000}
    config = loading.load(str(write_run(tmp_path / "run", params, None, **settings))).images()
    assert (config.image_size, config.eval_crop, config.eval_resize, config.max_pixels) == (
        16, "resize_square", 18, 5000,
    )  # fmt: skip
    config = Weights(params, "weights.npz").images()
    assert (config.image_size, config.eval_crop, config.eval_resize) == (16, "resize_small", None)


def test_photographs_are_classified_batch_by_batch(softmax_run, shared_data):
    weights = loading.load(str(softmax_run))
    weights = Weights(weights.params, "weights.npz")  # without a config, so that max_pixels is the default
    paths, _ = predict.image_files([str(shared_data / "imagenet_samples")])
    assert len(paths) == 200
    batches = list(predict.predict(weights, paths, top=5, batch_size=60))  # 64 on eight devices
    assert [len(batch) for batch in batches] == [64, 64, 64, 8]
    found = [prediction for batch in batches for prediction in batch]
    assert [prediction.path for prediction in found] == paths
    assert not any(prediction.error for prediction in found)
    for prediction in found:
        numbers, shares = zip(*prediction.top, strict=True)
        assert sorted(numbers) == list(range(5))
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert list(shares) == sorted(shares, reverse=True)
    assert len({prediction.top[0] for prediction in found}) > 150  # images have different predictions
    one = next(iter(predict.predict(weights, paths[130:131], top=5, batch_size=60)))[0]
    np.testing.assert_allclose([share for _, share in one.top], [share for _, share in found[130].top], rtol=1e-5)


def test_file_names_that_are_not_text_are_shown():
    prediction = predict.Prediction(os.fsdecode(b"na\xefve.png"), [(1, 0.25)], "")
    assert predict.text(prediction, ["a", "b"]) == "na\ufffdve.png\n    25.00%  b"
    assert json.loads(predict.json_line(prediction, ["a", "b"]))["image"] == prediction.path
