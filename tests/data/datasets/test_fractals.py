import io
import random

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixer.data.datasets import fractals
from mixer.data.datasets import iterated_functions as ifs


def draw(category, instances, size=32, seed=0):
    return np.stack(list(ifs.draw(seed, category, range(*instances), size)))


@given(st.integers(0, 50), st.integers(0, 20), st.integers(1, 6))
@settings(deadline=None, max_examples=10)
def test_an_image_does_not_depend_on_what_is_drawn_with_it(category, first, count):
    together = draw(category, (first, first + count))
    alone = [draw(category, (i, i + 1))[0] for i in range(first, first + count)]
    np.testing.assert_array_equal(together, alone)


def test_an_image_does_not_depend_on_how_much_memory_is_used(monkeypatch):
    together = draw(3, (0, 20))
    monkeypatch.setattr(ifs, "_POINTS_AT_ONCE", 3 * 4 * 32**2)
    np.testing.assert_array_equal(draw(3, (0, 20)), together)


def test_seeds_categories_and_instances_differ():
    images = [*draw(0, (0, 3)), *draw(1, (0, 3)), *draw(0, (0, 3), seed=1)]
    assert len({image.tobytes() for image in images}) == 9


def test_orbit_of_sierpinskis_maps_stays_on_the_triangle():
    corners = [(0, 0), (1, 0), (0, 1)]
    maps = np.array([[[0.5, 0, 0, 0.5, x / 2, y / 2] for x, y in corners]])
    x, y = ifs.orbit(maps, np.full(3, 1 / 3), (0, 0), 64)
    assert x.shape[0] >= 4 * 64**2
    assert (x >= -1e-6).all()
    assert (y >= -1e-6).all()
    assert (x + y <= 1 + 1e-6).all()
    # The open triangle in the middle is empty, and so are the three of the next level.
    for scale, (left, bottom) in [(1.0, (0, 0)), *((0.5, (a / 2, b / 2)) for a, b in corners)]:
        u, v = (x - left) / scale, (y - bottom) / scale
        assert not ((u < 0.49) & (v < 0.49) & (u + v > 0.51)).any()
    # Each third of the triangle is visited equally often.
    assert np.mean(x > 0.5) == pytest.approx(1 / 3, abs=0.02)
    assert np.mean(y > 0.5) == pytest.approx(1 / 3, abs=0.02)


def chaos_game(system, points=8000):
    """Plays the chaos game as in textbooks, one point after the other."""
    rng = random.Random(0)
    x = y = 0.0
    found = []
    for a, b, c, d, e, f in rng.choices(system.maps.tolist(), system.probabilities.tolist(), k=points):
        x, y = a * x + b * y + e, c * x + d * y + f
        found.append((x, y))
    return np.array(found[50:])


@pytest.mark.parametrize("category", range(8))
def test_systems_are_those_of_the_paper(category):
    system = ifs.find_system(0, category)
    assert 2 <= len(system.maps) <= 8
    assert np.abs(system.maps).max() <= 1
    a, b, c, d = system.maps[:, :4].T
    np.testing.assert_allclose(system.probabilities, np.abs(a * d - b * c) / np.abs(a * d - b * c).sum())
    points = chaos_game(system)
    assert np.isfinite(points).all()
    counts = np.histogram2d(*((points - points.min(0)) / np.ptp(points, axis=0)).T, bins=32)[0]
    # The measured area depends a little on the points.
    assert np.mean(counts > 0) > 0.8 * ifs.MIN_FILLED


@pytest.mark.parametrize("category", range(4))
def test_points_fall_where_the_textbooks_game_puts_them(category):
    system = ifs.find_system(0, category)
    reference = chaos_game(system)
    x, y = ifs.orbit(system.maps[None], system.probabilities, (0, category), 32)
    np.testing.assert_allclose([x.mean(), y.mean()], reference.mean(0), atol=0.1)
    np.testing.assert_allclose([x.std(), y.std()], reference.std(0), rtol=0.15)


def test_count_points_is_a_histogram():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 500, 3)).astype(np.float32)
    counts = ifs.count_points(x, y, 16)
    for i in range(3):
        expected = np.histogram2d(y[:, i], x[:, i], bins=16, range=[[0, 1], [0, 1]])[0]
        np.testing.assert_array_equal(counts[i], expected)


def test_points_that_escaped_leave_an_empty_picture():
    x = np.array([[np.nan, 0.5], [np.inf, 0.1], [-np.inf, 0.9]], np.float32)
    counts = ifs.count_points(x, x, 8)
    assert np.count_nonzero(counts[0]) <= 2
    assert counts.sum(axis=(1, 2)).tolist() == [3, 3]


def test_every_picture_shows_something():
    for category in range(12):
        images = draw(category, (0, 20)).astype(np.float32)
        assert images.std(axis=(1, 2)).max(axis=-1).min() > 10


def test_shape_tells_the_category_and_colour_does_not():
    """With nearest class means, shapes are recognised far above chance (1/16), and mean colours hardly."""
    images = np.stack([draw(category, (0, 40)) for category in range(16)]).astype(np.float32)  # [class, instance, ...]
    border = np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], axis=2)
    ground = np.median(border, axis=2)[:, :, None, None]
    shapes = np.abs(images - ground).max(-1)
    shapes = (shapes / shapes.max((2, 3), keepdims=True)).reshape(16, 40, -1)
    colours = images.mean((2, 3))

    def accuracy(features):
        means = features[:, :20].mean(1)
        distances = np.linalg.norm(features[:, 20:, None] - means, axis=-1)
        return np.mean(distances.argmin(-1) == np.arange(16)[:, None])

    assert accuracy(shapes) > 0.25
    assert accuracy(colours) < 0.2


def test_dataset_reads_back(tmp_path):
    fractals.Fractals(config="3x10x16", data_dir=tmp_path).download_and_prepare()
    builder = tfds.builder("fractals/3x10x16", data_dir=tmp_path)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 27,
        "validation": 3,
    }
    assert builder.info.features["label"].num_classes == 3
    expected = {image.tobytes(): c for c in range(3) for image in draw(c, (0, 9), size=16)}
    found = {e["image"].tobytes(): int(e["label"]) for e in builder.as_dataset(split="train").as_numpy_iterator()}
    assert found == expected
    validation = [e["image"].tobytes() for e in builder.as_dataset(split="validation").as_numpy_iterator()]
    assert set(validation) == {draw(c, (9, 10), size=16)[0].tobytes() for c in range(3)}


def test_threads_hand_over_every_image_once_and_in_order(tmp_path, monkeypatch):
    """There are more chunks than are drawn ahead, and the last chunk of each category is shorter."""
    monkeypatch.setattr(fractals, "_CHUNK", 2)
    examples = list(fractals.Fractals(config="3x9x16", data_dir=tmp_path)._generate_examples(range(7)))
    assert [key for key, _ in examples] == [f"{category}/{instance}" for category in range(3) for instance in range(7)]
    for category in range(3):
        found = [example for key, example in examples if key.startswith(f"{category}/")]
        assert {example["label"] for example in found} == {category}
        pixels = [np.array(Image.open(io.BytesIO(example["image"]))) for example in found]
        np.testing.assert_array_equal(pixels, draw(category, (0, 7), size=16))


@pytest.mark.parametrize(
    "name", ["64", "64x200", "0x10x32", "4x1x32", "4x4x7", "4x4x5000", "4x4x32-seed0", "-3x2x32", "4x4x32 "]
)
def test_wrong_names_are_named(tmp_path, name):
    with pytest.raises(ValueError, match=r"^fractals/"):
        fractals.Fractals(config=name, data_dir=tmp_path)


@given(st.integers(1, 99999), st.integers(2, 99999), st.integers(8, 1024), st.integers(0, 10**9 - 1))
def test_name_round_trip(categories, instances, size, seed):
    shape = fractals.Shape(categories, instances, size, seed)
    assert fractals.Shape.parse(shape.name) == shape
