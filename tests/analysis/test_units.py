"""Numbers of token-mixing units, of patterns whose numbers are known."""

import jax
import numpy as np
import pytest

from mixer.analysis import units
from mixer.transfer import resolution

GRID = 8


def wave(cycles_down, cycles_across, phase=0.0):
    down, across = np.mgrid[:GRID, :GRID] / GRID
    return np.cos(2 * np.pi * (cycles_down * down + cycles_across * across) + phase).reshape(-1)


WAVES = np.stack([wave(3, 0), wave(1, 0), wave(2, 2), -2 * wave(1, 0), -wave(3, 0) + 5, -0.5 * wave(2, 2)])
"""Three waves, each with its negative at another scale or offset."""


def test_a_wave_has_the_frequency_it_was_made_with():
    found = units.mean_frequency(np.stack([wave(0, 0), wave(1, 0), wave(0, 3), wave(3, 4)]))
    np.testing.assert_allclose(found, [0, 1, 3, 5], atol=1e-9)


def test_every_wave_finds_its_negative():
    other, correlation = units.opposites(WAVES)
    assert other.tolist() == [4, 3, 5, 1, 0, 2]
    np.testing.assert_allclose(correlation, -1, atol=1e-9)


def test_pairs_stand_side_by_side_and_slow_ones_come_first():
    order = units.in_pairs(WAVES - np.mean(WAVES, axis=1, keepdims=True)).tolist()
    assert [set(order[i : i + 2]) for i in (0, 2, 4)] == [{1, 3}, {2, 5}, {0, 4}]


@pytest.mark.parametrize("number", [1, 2, 7])
def test_the_order_names_every_unit_once(number):
    order = units.in_pairs(np.random.default_rng(0).normal(size=(number, 16)))
    assert sorted(order.tolist()) == list(range(number))


def test_the_opposite_is_another_unit_where_all_are_alike():
    """A unit correlates by 0 with itself in the matrix, which is less than with any other here."""
    wave = np.sin(np.arange(16))
    other, correlation = units.opposites(np.stack([wave, 2 * wave + 0.1 * np.arange(16)]).astype(np.float32))
    assert other.tolist() == [1, 0]
    assert correlation.min() > 0.9
    other, correlation = units.opposites(wave[None].astype(np.float32))
    assert (other.tolist(), correlation.tolist()) == ([0], [0])


@pytest.mark.filterwarnings("error")
def test_a_unit_without_a_pattern_is_nobodys_opposite():
    constant = np.stack([np.full(16, 0.3), np.zeros(16), np.linspace(-1, 1, 16), np.linspace(1, -1, 16)])
    other, correlation = units.opposites(constant.astype(np.float32))
    assert other[2:].tolist() == [3, 2]
    np.testing.assert_allclose(correlation, [0, 0, -1, -1], atol=1e-6)
    assert units.mean_frequency(constant)[1] == 0


def test_half_of_the_energy_is_counted_by_tokens():
    local, even, two = np.zeros(64), np.ones(64), np.zeros(64)
    local[9], two[[5, 7]] = -3.0, (1.0, 0.9)
    assert units.half_energy_tokens(np.stack([local, even, two])).tolist() == [1, 32, 1]


@pytest.mark.parametrize(("shape", "expected"), [((48, 64), -0.27), ((384, 196), -0.21)])
def test_random_units_pair_up_by_chance_as_far_as_statistics_say(shape, expected):
    """The most negative of n correlations of random patterns, which vary by 1/sqrt(tokens)."""
    drawn = [units.structure(np.ones(shape, np.float32), seed).opposite_at_random for seed in range(5)]
    assert np.mean(drawn) == pytest.approx(expected, abs=0.02)
    own = units.structure(np.random.default_rng(0).normal(size=shape))
    assert own.opposite == pytest.approx(own.opposite_at_random, abs=0.04)
    assert own.half_energy_tokens == pytest.approx(own.half_energy_at_random, rel=0.25)


def test_very_many_units_are_measured_by_the_first_of_them():
    """All of untied token mixing with a group for each channel would take 128 GiB."""
    kernel = np.random.default_rng(0).normal(size=(512, 16, 256)).astype(np.float32)  # [groups, tokens, units]
    params = {"MixerBlock_0": {"token_mixing": {"Dense_0": {"kernel": kernel}}}}
    ((all_of_them, found),) = units.of_model(params, [16])
    assert len(all_of_them) == 131_072
    of_first_groups = all_of_them[: units.MAX_UNITS]
    assert (found.compared, found) == (units.MAX_UNITS, units.structure(of_first_groups))
    np.testing.assert_array_equal(of_first_groups.reshape(16, 256, 16), kernel[:16].swapaxes(1, 2))
    assert units.structure(WAVES).compared == len(WAVES)


def test_the_units_are_those_that_the_token_mixing_multiplies_with():
    kernel = np.arange(12.0).reshape(4, 3)  # [tokens, units]
    params = {"MixerBlock_1": {"token_mixing": {"Dense_0": {"kernel": kernel}}}}
    tokens = np.array([1.0, -2.0, 0.5, 3.0])
    for number in (None, 4):
        np.testing.assert_allclose(units.of_block(params, 1, number) @ tokens, tokens @ kernel)


def test_the_units_of_groups_are_images_too():
    """Two MLPs of their own for a group each; and one MLP over the concatenated tokens of two channels."""
    kernel = np.arange(24.0).reshape(2, 4, 3)
    one, other = np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.0, 1.0, 5.0, -1.0])
    untied = units.of_block({"MixerBlock_0": {"token_mixing": {"Dense_0": {"kernel": kernel}}}}, 0, 4)
    np.testing.assert_allclose(untied @ one, np.concatenate([one @ kernel[0], one @ kernel[1]]))
    grouped = kernel.reshape(8, 3)
    found = units.of_block({"MixerBlock_0": {"token_mixing": {"Dense_0": {"kernel": grouped}}}}, 0, 4)
    np.testing.assert_allclose(found[:3] @ one + found[3:] @ other, np.concatenate([one, other]) @ grouped)


def test_the_numbers_of_a_block_say_its_size_too():
    found = units.numbers(2, np.ones((3, 4)), units.Structure(-1.0, -0.5, 2.0, 3.0, 3))
    assert found == {
        "block": 2, "units": 3, "tokens": 4, "opposite": -1.0, "opposite_at_random": -0.5, "half_energy_tokens": 2.0,
        "half_energy_at_random": 3.0, "compared": 3, "extended": 1,
    }  # fmt: skip


def new_kernel(rows, columns, seed):
    return np.asarray(jax.nn.initializers.lecun_normal()(jax.random.key(seed), (rows, columns)))


def new_params(blocks=2, tokens=64, width=48, seed=100):
    """Token mixing as a new model has it."""
    layers = {"Dense_0": (tokens, width), "Dense_1": (width, tokens)}
    return {
        f"MixerBlock_{block}": {
            "token_mixing": {
                name: {"kernel": new_kernel(*shape, seed + block), "bias": np.zeros(shape[1], np.float32)}
                for name, shape in layers.items()
            }
        }
        for block in range(blocks)
    }


def test_random_units_are_extended_as_the_model_was():
    """Three quarters of its weights are zero then, which would look like pairs and like locality."""
    params = new_params()
    small = [structure for _, structure in units.of_model(params, [64, 64])]
    large = [structure for _, structure in units.of_model(resolution.extend(params, 16), [256, 256])]
    assert [one.extended for one in small + large] == [1, 1, 2, 2]
    for one, other in zip(small, large, strict=True):
        assert other.opposite == pytest.approx(one.opposite, abs=0.01)
        assert other.half_energy_tokens == one.half_energy_tokens
        assert other.opposite_at_random == pytest.approx(other.opposite, abs=0.03)
        assert other.half_energy_at_random == pytest.approx(other.half_energy_tokens, abs=1)
    of_shape = units.structure(np.ones((192, 256), np.float32))
    assert of_shape.opposite_at_random > -0.18, "of units that see the whole grid"
    assert of_shape.half_energy_at_random > 35


@pytest.mark.parametrize("steps", [(16,), (32,), (24,), (16, 32)])
@pytest.mark.parametrize("filled", [0, 0.5, 0.8])
def test_random_units_are_as_far_in_one_part_once_training_has_filled_the_rest(steps, filled):
    """Filled with weights of this share of a unit's energy, that are without order too."""
    params = new_params()
    for grid in steps:
        params = resolution.extend(params, grid)
    extended = units.of_block(params, 0)
    noise = new_kernel(*extended.T.shape, seed=7).T * np.sqrt(extended.shape[1] / 64)
    found = units.structure(np.sqrt(1 - filled) * extended + np.sqrt(filled) * noise)
    assert found.extended == steps[-1] // 8
    assert found.opposite == pytest.approx(found.opposite_at_random, abs=0.03)
    assert found.half_energy_tokens == pytest.approx(found.half_energy_at_random, rel=0.1)


def test_local_units_are_not_taken_for_extended_ones():
    """Each sees one place, which its number does not tell."""
    down, across = np.mgrid[:16, :16]
    for seed in range(50):
        places = np.random.default_rng(seed).uniform(0, 16, (96, 2, 1, 1))
        blobs = np.exp(-((down - places[:, 0]) ** 2) - (across - places[:, 1]) ** 2).reshape(96, 256)
        assert units.extended_by(blobs) == 1
        assert units.extended_by(units.of_block(new_params(1, 256, 192, seed), 0)) == 1
    assert units.extended_by(WAVES) == units.extended_by(np.zeros((16, 16))) == 1


def test_interpolated_units_have_no_random_ones_beside_them():
    params = resolution.interpolate(new_params(), 16)
    for _, found in units.of_model(params, [256, 256], interpolated=True):
        assert (found.opposite_at_random, found.half_energy_at_random, found.extended) == (None, None, 1)
        assert -1 < found.opposite < 0
