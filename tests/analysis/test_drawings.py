"""How pictures are put side by side, and the scale that they share."""

import numpy as np
import pytest

from mixer.analysis import drawings, units


def test_pictures_stand_row_by_row_with_gaps_and_wider_ones_between_pairs():
    images = np.arange(1.0, 6.0)[:, None, None] * np.ones((5, 8, 8))
    whole = drawings._mosaic(images, 4, pairs=True)
    top, left = [np.argwhere(whole == number).min(axis=0) for number in (1, 2, 3, 4, 5)], [0, 9, 20, 29, 0]
    assert [tuple(place) for place in top] == [(0, left[0]), (0, left[1]), (0, left[2]), (0, left[3]), (9, left[4])]
    assert np.sum(~np.isnan(whole)) == 5 * 64
    assert whole.shape == (17, 37)


def test_all_units_share_one_scale_around_zero():
    random = np.random.default_rng(0).normal(size=(6, 16))
    random[2] *= 5
    figure = drawings.units_figure("units", random, units.structure(random))
    (shown,) = figure.axes[0].images
    assert shown.get_clim() == (-np.max(np.abs(random)), np.max(np.abs(random)))
    drawn = shown.get_array().compressed() if np.ma.isMaskedArray(shown.get_array()) else shown.get_array()
    assert set(np.round(drawn[~np.isnan(drawn)], 9)) == set(np.round(random.ravel(), 9))
    text = " ".join(figure.get_supxlabel().split())
    assert f"{units.structure(random).opposite:.2f}" in text
    assert text.startswith(
        "Low frequency first; to the right of a unit stands, of those that are left, the one closest"
    )
    assert "A unit's most negative correlation with any other, median:" in text


def test_of_very_many_units_the_first_are_drawn():
    many = np.random.default_rng(0).normal(size=(units.MAX_UNITS + 10, 4))
    many[units.MAX_UNITS :] *= 100
    figure = drawings.units_figure("units", many, units.structure(many))
    (shown,) = figure.axes[0].images
    assert shown.get_clim()[1] == np.max(np.abs(many[: units.MAX_UNITS]))
    assert figure.get_supxlabel().startswith("The first 4,096 of 4,106 units.")
    assert len(drawings.png(figure)) > 1000


def test_a_caption_says_of_which_random_units_its_numbers_are():
    random = np.random.default_rng(0).normal(size=(16, 16))
    found = units.structure(random)
    for structure, said in (
        (found, f"(random weights: {found.opposite_at_random:.2f}). Half"),
        (
            found._replace(extended=2),
            f"(random weights, as much of them in one part of the image: {found.opposite_at_random:.2f}",
        ),
        (found._replace(opposite_at_random=None, half_energy_at_random=None), f"median: {found.opposite:.2f}. Half of"),
    ):
        text = " ".join(drawings.units_figure("units", random, structure).get_supxlabel().split())
        assert said in text
        assert ("random" in text) == (structure.opposite_at_random is not None)
        assert "None" not in text


def test_a_title_may_hold_what_looks_like_mathematics():
    """Such as the path /tmp/$a_$b^/w."""
    title, random = "Mixer (/tmp/$a_$b^/w)", np.random.default_rng(0).normal(size=(6, 16))
    for figure in (
        drawings.lens_figure(title, [0.3, 0.4], None),
        drawings.units_figure(title, random, units.structure(random)),
        drawings.stem_figure(title, np.ones((4, 4, 3, 2))),
    ):
        assert len(drawings.png(figure)) > 1000


def test_chance_is_drawn_where_it_is_known():
    for chance, lines in ((0.25, ["chance: 25.00%"]), (None, [])):
        (axes,) = drawings.lens_figure("a model", [0.3, 0.4], chance).axes
        assert [line.get_label() for line in axes.get_lines()] == ["the head after this block", *lines]


@pytest.mark.parametrize("accuracy", [[0.5, 0.5, 0.5], [0.801, 0.8, 0.8012], [0.0, 0.001, 1.0], [0.0, 0.0]])
@pytest.mark.parametrize("chance", [None, 0.1])
def test_the_marker_of_each_block_is_whole(accuracy, chance):
    figure = drawings.lens_figure("a model", accuracy, chance)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    points = axes.transData.transform(axes.get_lines()[0].get_xydata())
    radius = 0.5 * axes.get_lines()[0].get_markersize() * figure.dpi / 72
    inside = axes.get_window_extent()
    assert np.all(points - radius - 1 > inside.min)
    assert np.all(points + radius + 1 < inside.max)


def test_a_zero_weight_of_the_stem_is_grey():
    kernel = np.zeros((4, 4, 3, 2), np.float32)
    kernel[0, 0, 0, 0] = -2.0
    (shown,) = drawings.stem_figure("stem", kernel).axes[0].images
    colours = {tuple(colour) for colour in np.round(np.asarray(shown.get_array())[:4].reshape(-1, 3), 3)}
    assert (0.5, 0.5, 0.5) in colours
    assert (0.0, 0.5, 0.5) in colours
