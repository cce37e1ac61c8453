"""Mixer's cost is linear in the number of patches and ViT's is not: by the formula, in the table and the picture."""

import dataclasses

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mixer.performance import compiling, model_speed, scaling
from mixer.runtime.errors import UserError

SETTINGS = model_speed.Settings(blocks=1, seconds=0.0)
MEASUREMENT = model_speed.Measurement("", "inference", 1, 1.0, 1.0, 1.0, 0.0, 1, 1.0, 1.0, None, 1)


@pytest.fixture
def curves(monkeypatch):
    """Curves of models that take a nanosecond for each FLOP; their blocks differ by a factor of two each way."""

    def measure(variant, mode, batch_size, *, settings, peak_flops, **widths):
        from mixer import models

        gflop = 2 * models.create(variant, 1000, **widths).forward_macs(settings.image_size) / 1e9
        return dataclasses.replace(
            MEASUREMENT, gflop_per_image=gflop, images_per_sec_per_core=1 / gflop, lowest=0.5 / gflop, highest=2 / gflop
        )

    monkeypatch.setattr(model_speed, "measure", measure)
    return scaling.measure(SETTINGS)


def test_mixer_grows_as_a_straight_line_and_vit_faster(curves):
    fixed, scaled, vit = curves
    for curve in curves:
        assert curve.patches == (49, 196, 400, 784, 1600, 3136)
    # Except for the head (0.5 MMAC), the cost of Mixer with fixed widths is the same for every patch.
    each = np.array(fixed.gflop) / fixed.patches
    np.testing.assert_allclose(each, each[-1], rtol=5e-3)
    assert fixed.exponent(fixed.gflop) == pytest.approx(1, abs=1e-3)
    assert scaled.gflop[1] == fixed.gflop[1]  # they are the same model at 224 pixels
    assert scaled.exponent(scaled.gflop) > 1.5
    # ViT's cost has a quadratic part, the attention: two products of N x N x D in each of 12 blocks.
    n, d = 3137, 384
    straight = 12 * 12 * n * d**2 + 3136 * 768 * d + d * 1000
    assert vit.gflop[-1] == pytest.approx(2e-9 * (straight + 12 * 2 * n**2 * d), rel=1e-6)
    assert 1.3 < vit.exponent(vit.gflop) < 2
    assert vit.seconds == pytest.approx(vit.gflop)
    assert (vit.least[0], vit.most[0]) == pytest.approx((vit.gflop[0] / 2, vit.gflop[0] * 2))


def test_the_table_and_the_picture(curves, tmp_path):
    text = scaling.table(curves)
    assert "ViT-S/16" in text
    assert text.splitlines()[-3].startswith("3136")
    assert text.splitlines()[-2].split()[:2] == ["exponent", "1.00"]
    scaling.draw(curves, epath.Path(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 10


def test_a_size_that_does_not_fit_is_named(monkeypatch):
    def measure(*arguments, **widths):
        raise compiling.DoesNotFitError(None, "it needs more")

    monkeypatch.setattr(model_speed, "measure", measure)
    with pytest.raises(UserError, match="Mixer-S/16, D_S fixed at 7x7 patches: it needs more"):
        scaling.measure(SETTINGS)


@pytest.mark.slow  # compiles six programs
def test_real_models_are_measured_in_turn():
    told = []
    found = scaling.measure(SETTINGS, told.append, grids=(1, 2))
    assert [curve.name for curve in found] == ["Mixer-S/16, D_S fixed", "Mixer-S/16, D_S scaled", "ViT-S/16"]
    assert all(second > 0 for curve in found for second in curve.seconds)
    assert len(told) == 6


def test_a_token_by_the_number_of_patches():
    """Of a device that pads patches to a multiple of 64."""
    sizes = []

    def measure(variant, mode, batch_size, *, settings):
        sizes.append(settings.image_size)
        patches = (settings.image_size // 32) ** 2
        padded = -(-patches // 64) * 64
        return dataclasses.replace(
            MEASUREMENT, model="Mixer-S/32", images_per_sec_per_core=1e6 / padded, utilisation=patches / padded
        )

    found = scaling.tokens("S/32", "train", 8, measure, SETTINGS, grids=(7, 8, 14))
    assert sizes == [224, 256, 448]
    assert [one.patches for one in found] == [49, 64, 196]
    assert [one.nanoseconds for one in found] == pytest.approx([1000 * 64 / 49, 1000, 1000 * 256 / 196])
    lines = scaling.tokens_table(found).splitlines()
    assert lines[1].split() == ["Mixer-S/32", "train", "224", "49", "1306", "76.6%", "1.562e+04"]


def test_tokens_that_do_not_fit_are_said():
    def measure(variant, mode, batch_size, *, settings):
        raise compiling.DoesNotFitError(None)

    with pytest.raises(UserError, match=r"S/32, train, at 7x7 patches: out of memory; give a smaller --batch_sizes"):
        scaling.tokens("S/32", "train", 8, measure, SETTINGS)
