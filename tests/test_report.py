"""`mixer.report`: the page in a real browser, and the model that runs in it beside NumPy's."""

import base64
import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image, ImageCms, features

from mixer import report
from mixer.analysis import samples
from mixer.data import datasets, readers
from mixer.training import losses
from mixer.training.metrics import read_metrics
from mixer.transfer import loading
from tests import commands, float64
from tests.trained_run import make_run

DATASET = "fractals/4x250x16"  # 900 training and 100 validation images of four classes, 16 pixels
PICTURES = 100


def command(*arguments):
    return commands.run("mixer.report", *arguments)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    datasets.prepare_embedded(DATASET, str(folder))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir):
    """Two runs side by side; the first learns."""
    parent = tmp_path_factory.mktemp("runs")
    of_both = {
        "input.dataset": DATASET,
        "model.tokens_mlp_dim": 8,
        "total_steps": 100,
        "eval_steps": 50,
        "log_steps": 10,
    }
    return [
        make_run(parent / "first", data_dir, **of_both),
        make_run(parent / "second", data_dir, **of_both, **{"optimizer.learning_rate": 1e-4, "seed": 7}),
    ]


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):
    """The page of both runs."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    done = command("--workdir", *runs, f"--output={out}")
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    return out


@pytest.fixture
def page(browser, file):
    """The page, open. Errors and requests to a network fail the test at its end."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    problems = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: request.url.startswith(("data:", "blob:")) or problems.append(request.url))
    opened.goto(file.as_uri())
    opened.wait_for_selector("#answer li")
    assert problems.pop(0) == file.as_uri()
    yield opened
    opened.close()
    assert problems == []


def held(file):
    """The data that the page holds."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text())[1])


def rounded_to_float16(params):
    return jax.tree.map(lambda array: array.astype(np.float16).astype(np.float64), params)


def test_the_page_computes_what_numpy_computes(page, file, runs):
    """On a hundred images of the evaluation, with weights in float16, to 2e-5."""
    pictures = held(file)["samples"]["pictures"]
    assert len(pictures) == PICTURES
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in pictures]
    weights = loading.load(str(runs[0]))
    exact, _ = float64.mixer(rounded_to_float16(weights.params), np.stack(pixels) / 127.5 - 1, 4, 2)
    found = [page.evaluate(f"view.logitsOf({number})") for number in range(PICTURES)]
    np.testing.assert_allclose(found, exact, atol=2e-5)
    np.testing.assert_allclose(held(file)["model"]["logits"], exact, atol=1e-4)
    assert np.std(exact) > 0.3  # it has learnt something


def test_the_pictures_are_those_of_the_evaluation(file, data_dir, runs):
    config = loading.load(str(runs[0])).config.input
    source = readers.open_source(config, "validation", data_dir)
    known = {np.asarray(Image.open(io.BytesIO(example.image))).tobytes(): example.labels
             for example in source.fetch(np.arange(source.num_examples))}  # fmt: skip
    samples = held(file)["samples"]
    for url, label in zip(samples["pictures"], samples["labels"], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
        assert [source.class_names[n] for n in known[pixels.tobytes()] if n >= 0] == [label]


def test_the_page_tells_what_the_runs_did(file, runs):
    text = file.read_text()
    last = read_metrics(runs[0])[-1]
    correct = round(last["val/accuracy"] * last["val/count"])
    assert f"{last['val/accuracy']:.2%} ({correct} of {last['val/count']})" in text
    assert "optimizer.learning_rate</th><td>0.01</td><td>0.0001</td>" in text
    charts = {chart["title"]: chart for chart in held(file)["charts"]}
    assert {"Loss", "Accuracy", "Learning rate", "Gradient norm", "Accuracy of the head after each block"} <= set(
        charts
    )
    loss = {curve["name"]: curve for curve in charts["Loss"]["curves"]}
    assert loss["first: train"]["x"] == list(range(10, 101, 10))
    assert loss["second: val"]["x"] == [50, 100]
    assert loss["first: val"]["y"][-1] == pytest.approx(last["val/loss"], rel=1e-4)
    blocks = {curve["name"]: curve["y"] for curve in charts["Accuracy of the head after each block"]["curves"]}
    assert blocks["first"][-1] == pytest.approx(last["val/accuracy"], abs=1e-4)


def test_every_control_does_what_it_says(page, tmp_path):
    answer = lambda: page.inner_text("#answer")  # noqa: E731
    picture = lambda: page.evaluate("document.getElementById('picture').toDataURL()")  # noqa: E731
    grid = lambda: page.evaluate("document.getElementById('map').toDataURL()")  # noqa: E731
    seen = picture()
    page.click(".thumbnail:nth-child(3)")
    page.wait_for_selector(".thumbnail:nth-child(3)[aria-pressed=true]")
    assert picture() != seen
    assert "Picture 3 of 100" in page.inner_text("#label")

    assert page.inner_text("#step-name") == "block 1, channels mixed"
    assert page.is_disabled("#forward")
    before = grid()
    page.click("#back")
    assert page.inner_text("#step-name") == "block 1, tokens mixed"
    assert grid() != before
    page.focus("#step")
    page.keyboard.press("Home")
    assert page.inner_text("#step-name") == "after the stem"
    assert page.is_disabled("#back")
    assert "stem" in page.inner_text("#guesses [aria-current]")
    page.select_option("#what", "channel")
    page.focus("#channel")
    before = grid()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#channel-number") == "1"
    assert grid() != before

    overlay = lambda: page.evaluate("document.getElementById('overlay').toDataURL()")  # noqa: E731
    before = overlay()
    page.hover(".unit:nth-child(2)")
    assert overlay() != before
    assert re.match(r"Unit \d of block 0 ", page.inner_text("#unit-name"))

    drawn = tmp_path / "own.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(drawn)
    before = answer()
    page.set_input_files("#file", drawn)
    page.wait_for_selector("#label:has-text('own.png')")
    assert answer() != before
    assert "resized by the browser; the evaluation's own resizing differs a little" in page.inner_text("#label")
    Image.open(drawn).resize((15, 20)).save(tmp_path / "small.png")
    page.set_input_files("#file", tmp_path / "small.png")
    page.wait_for_selector("#label:has-text('small.png')")
    assert "enlarged by the browser, more smoothly than by the evaluation" in page.inner_text("#label")
    page.set_input_files("#file", drawn)
    page.wait_for_selector("#label:has-text('own.png')")
    (tmp_path / "no.png").write_text("no picture")
    page.set_input_files("#file", tmp_path / "no.png")
    page.wait_for_selector("#label:has-text('no.png is not a picture')")
    assert "The picture and the answer are still those of before." in page.inner_text("#label")

    before = answer()
    for place, name in (("#picture", "one.png"), ("footer", "two.png")):
        bytes_of_file = list((tmp_path / "own.png").read_bytes())
        dropped = page.evaluate_handle(
            """([bytes, name]) => {
              const dropped = new DataTransfer();
              dropped.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
              return dropped;
            }""",
            [bytes_of_file, name],
        )
        page.dispatch_event(place, "dragover", {"dataTransfer": dropped})
        page.dispatch_event(place, "drop", {"dataTransfer": dropped})
        page.wait_for_selector(f"#label:has-text('{name}')")
    assert answer() == before


def test_a_picture_is_cropped_at_whole_pixels_as_in_the_evaluation(page, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 33, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    page.set_input_files("#file", tmp_path / "wide.png")
    page.wait_for_selector("#label:has-text('wide.png')")
    np.testing.assert_array_equal(page.evaluate("[...view.picture]"), pixels[:, 8:24].ravel())


def test_a_colour_profile_changes_no_pixel_as_in_the_evaluation(page, tmp_path):
    """The profile is sRGB with red and blue exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")
    Image.new("RGB", (16, 16), (200, 30, 90)).save(tmp_path / "own.png", icc_profile=exchanged)
    page.set_input_files("#file", tmp_path / "own.png")
    page.wait_for_selector("#label:has-text('own.png')")
    assert page.evaluate("[...view.picture.slice(0, 3)]") == [200, 30, 90]


def test_guesses_are_ranked_by_logits(page):
    """Sigmoids near 1 are equal in float32."""
    found = page.evaluate("ranked(new Float32Array([40, 41, -3, 60, 50]), 'sigmoid')")
    assert [guess["number"] for guess in found] == [3, 4, 1, 0, 2]
    assert [guess["share"] for guess in found] == pytest.approx([1, 1, 1, 1, 1 / (1 + np.exp(3))])


def opened_with(browser, file, changed, **settings):
    """The page of a run with other settings of `live_model.packed`."""
    text = file.read_text()
    for name, value in settings.items():
        text = text.replace(f'"{name}": "{held(file)["model"][name]}"', f'"{name}": "{value}"')
    changed.write_text(text)
    assert all(held(changed)["model"][name] == value for name, value in settings.items())
    opened = browser.new_page()
    opened.goto(changed.as_uri())
    opened.wait_for_selector("#answer li")
    return opened


def test_a_picture_that_the_run_would_turn_otherwise_has_a_note(browser, file, tmp_path):
    """By the browser at hand: the note is right for what it does with files of each type."""
    turned = Image.Exif()
    turned[0x0112] = 6
    types = ["jpg", "png", "webp", *(["avif"] if features.check("avif") else [])]
    for ending in (*types, "gif", "bmp"):
        tag = {"exif": turned} if ending in types else {}
        Image.new("RGB", (60, 40), "red").save(tmp_path / f"own.{ending}", **tag)
    turns = "createImageBitmap(document.getElementById('file').files[0]).then((bitmap) => bitmap.width < bitmap.height)"
    for exif in ("rotate", "ignore"):
        opened = opened_with(browser, file, tmp_path / "page.html", exif=exif)
        for ending in (*types, "gif", "bmp"):
            opened.set_input_files("#file", tmp_path / f"own.{ending}")
            opened.wait_for_selector(f"#label:has-text('own.{ending}')")
            otherwise = ending in types and opened.evaluate(turns) != (exif == "rotate")
            assert ("EXIF" in opened.inner_text("#label")) == otherwise, ending
        opened.close()


@pytest.mark.parametrize("background", ["black", "white"])
def test_a_transparent_picture_has_a_note_where_the_run_keeps_the_colours_under_it(browser, file, tmp_path, background):
    assert held(file)["model"]["background"] == "black"
    opened = opened_with(browser, file, tmp_path / "page.html", background=background)
    pixels = np.full((40, 60, 4), (200, 30, 90, 255), np.uint8)
    for name, alpha in (("opaque.png", 255), ("veiled.png", 254), ("clear.png", 0)):
        pixels[:20, :, 3] = alpha
        Image.fromarray(pixels).save(tmp_path / name)
        opened.set_input_files("#file", tmp_path / name)
        opened.wait_for_selector(f"#label:has-text('{name}')")
        noted = "here those are black, while the run keeps the colours" in opened.inner_text("#label")
        assert noted == (background == "black" and alpha < 255)
    corner = [0, 0, 0] if background == "black" else [255, 255, 255]
    assert opened.evaluate("[...view.picture.slice(0, 3), ...view.picture.slice(-3)]") == [*corner, 200, 30, 90]
    opened.close()


def test_shuffled_patches_change_the_answer_and_shuffled_weights_bring_it_back(page):
    before = page.evaluate("[...view.result.guesses.at(-1)]")
    page.click("#move-patches")
    moved = page.evaluate("[...view.result.guesses.at(-1)]")
    assert np.max(np.abs(np.subtract(moved, before))) > 1e-2
    assert "The patches are shuffled" in page.inner_text("#moves")
    page.click("#move-weights")
    np.testing.assert_allclose(page.evaluate("[...view.result.guesses.at(-1)]"), before, atol=1e-5)
    assert "again" in page.inner_text("#moves")
    page.click("#put-back")
    assert page.evaluate("[...view.result.guesses.at(-1)]") == before


def test_the_page_compares_itself_with_jax(page):
    page.click("#check")
    page.wait_for_selector("#check:enabled")
    text = page.inner_text("#checked")
    assert float(re.search(r"On 100 pictures, the logits differ from JAX's by about (\S+) at most\.$", text)[1]) < 1e-4


def test_charts_follow_the_pointer_and_the_arrow_keys(page):
    chart = page.locator(".chart").first
    chart.hover()
    legend = chart.locator(".u-legend .u-value").first
    assert legend.inner_text() not in ("", "--")
    chart.focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert legend.inner_text() == "10"
    names, values = (chart.locator(f".u-legend .u-{what}").all_inner_texts() for what in ("label", "value"))
    assert len(names) == 5
    for name, value in zip(names[1:], values[1:], strict=True):
        assert bool(value) == name.endswith("train"), "nothing was evaluated at this step"
    page.keyboard.press("ArrowRight")
    assert legend.inner_text() == "20"


@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser, file, width, scheme):
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.goto(file.as_uri())
    opened.wait_for_selector("#answer li")
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    heights = opened.evaluate("[...document.querySelectorAll('tr:has(th[scope=row])')].map((row) => row.clientHeight)")
    assert len(heights) > 100
    assert max(heights) <= 4 * 24 + 7, "a column may be narrow, but not of single letters"
    colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
    opened.close()


def test_everything_to_operate_has_a_name(page):
    """By which a screen reader announces it."""
    operable = "button, input, select, summary, [tabindex], [role=img], img:not(button img)"
    names = "e.ariaLabel || e.alt || e.innerText || e.labels?.length"
    unnamed = page.evaluate(
        f"[...document.querySelectorAll('{operable}')].filter(e => !({names})).map(e => e.outerHTML.slice(0, 80))"
    )
    assert unnamed == []


def test_first_guesses_are_by_logits():
    """Sigmoids near 1 are equal in float32."""
    logits = np.array([[40, 41, -3, 60]], np.float32)
    drawn = samples.Samples(np.zeros((1, 4, 4, 3), np.uint8), np.array([[3, -1]]), logits)
    [found] = report._predictions(drawn, losses.LOSSES["sigmoid_xent"], ["cat", "dog", "cow", "hen"])
    assert (found["guess"], found["label"], found["right"]) == ("hen", "hen", True)


def test_a_guess_without_a_label_is_neither_right_nor_wrong_and_nan_is_no_guess():
    logits = np.array([[0, 1], [1, 0], [0, 1], [np.nan, np.nan]], np.float32)
    drawn = samples.Samples(np.zeros((4, 4, 4, 3), np.uint8), np.array([[1], [1], [-1], [0]]), logits)
    found = report._predictions(drawn, losses.LOSSES["softmax_xent"], ["cat", "dog"])
    assert [one["right"] for one in found] == [True, False, None, False]


def test_the_page_is_small(file):
    assert file.stat().st_size < 1e6


def test_runs_that_cannot_be_evaluated_are_shown_without_predictions(runs, tmp_path):
    done = command("--workdir", runs[1], f"--output={tmp_path / 'r.html'}", "--noevaluate")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "r.html").read_text()
    assert "--noevaluate was given" in text
    assert "The model is not part of this page" in text
    assert "Token-mixing units of block 0" in text


MISTAKES = [
    ([], "error: --workdir is missing"),
    (["--workdir=/nowhere"], "/nowhere"),
    (["--workdir=RUN", "--output=/proc/report.html"], "error: --output=/proc/report.html cannot be written"),
    (["--workdir=RUN", "--output=RUN"], "cannot be written ([Errno 21] Is a directory"),
    (["--workdir=RUN", "--ema"], "holds no ema_params at step 100: it was trained with config.ema_decay=0"),
    (["--workdir=RUN", "--data_dir=/dev/null"], "--data_dir"),
    (["--workdir=RUN", "--noevaluate", "--data_dir=x"], "--data_dir would not be read with --noevaluate"),
]


def test_what_cannot_be_done_is_said_in_one_line(runs):
    for arguments, message in MISTAKES:
        done = command(*(argument.replace("RUN", str(runs[0])) for argument in arguments))
        assert done.returncode == 1
        assert message in done.stderr
        assert "config.input" not in done.stderr  # this command takes no settings
        assert done.stderr.count("\n") == 1, done.stderr
