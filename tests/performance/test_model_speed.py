"""What a row says: its arithmetic against a clock that is known, its FLOPs against the compiler's for real models."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mixer import models
from mixer.performance import compiling, model_speed, timing
from mixer.runtime.errors import UserError

SETTINGS = model_speed.Settings(image_size=32, blocks=2, seconds=0.01)


@pytest.mark.parametrize("variant", ["S/16", "B/16", "ViT-B/16", "BiT-R50x1"])
@pytest.mark.parametrize("mode", model_speed.MODES)
def test_the_formula_and_the_compiler_agree_within_3_percent(variant, mode):
    macs = models.create(variant, num_classes=1000).forward_macs(224)
    flops = model_speed.xla_flops(variant, mode, model_speed.Settings())
    assert {"inference": 2, "train": 6}[mode] * macs == pytest.approx(flops, rel=0.03)


@pytest.mark.parametrize("mode", model_speed.MODES)
def test_a_row_follows_from_its_seconds(monkeypatch, mode):
    calls = []

    def timed(call, *, blocks, seconds):
        calls.extend([call(), call()])
        return timing.Timing(0.5, 0.4, 0.8)

    monkeypatch.setattr(timing, "timed", timed)
    row = model_speed.measure("Ti/8", mode, 4, settings=SETTINGS, peak_flops=1e9)
    assert (row.images_per_sec_per_core, row.lowest, row.highest) == (8, 5, 10)
    times = {"inference": 2, "train": 6}[mode]
    assert row.gflop_per_image == pytest.approx(times * row_macs() / 1e9)
    assert row.compiler_gflop_per_image == model_speed.xla_flops("Ti/8", mode, SETTINGS) / 1e9
    assert row.utilisation == pytest.approx(8 * times * row_macs() / 1e9)
    assert row.parameters == 4 * (2 * 16 * 64 + 64 + 16 + 2 * 128 * 512 + 512 + 128 + 4 * 128) + (
        3 * 64 * 128 + 128 + 2 * 128 + 128 * 1000 + 1000
    )
    copies = {"inference": 1, "train": 3}[mode]  # of the parameters: Adam keeps two moments
    assert row.peak_memory_bytes > copies * 4 * row.parameters
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(calls) if leaf.dtype == jnp.float32)


def row_macs():
    tokens = 16
    return tokens * 3 * 64 * 128 + 4 * 2 * tokens * 128 * (64 + 512) + 128 * 1000


def fake(rates):
    """A `measure` that knows the rate of each batch size, and of others that they do not fit."""

    def measure(variant, mode, batch_size):
        if batch_size not in rates:
            raise compiling.DoesNotFitError(None)
        return dataclasses.replace(ROW, batch_size=batch_size, images_per_sec_per_core=rates[batch_size])

    return measure


ROW = model_speed.Row("Mixer-Ti/8", "train", 1, 1.0, 1.0, 1.0, 0.0, 1, 1.0, 1.0, None, 1)


@pytest.mark.parametrize(
    ("rates", "batch_size", "swept"),
    [
        ({1: 5, 2: 8, 4: 9, 8: 9.05, 16: 9.04, 32: 99}, 8, [1, 2, 4, 8, 16]),  # two that hardly help are the end
        ({1: 5, 2: 8, 4: 7, 8: 12, 16: 11, 32: 10, 64: 99}, 8, [1, 2, 4, 8, 16, 32]),  # one that does not is not
        ({1: 5, 2: 8}, 2, [1, 2]),  # memory is
    ],
)
def test_the_batch_is_doubled_for_as_long_as_that_helps(rates, batch_size, swept):
    row = model_speed.best("Ti/8", "train", None, fake(rates))
    assert (row.batch_size, list(row.swept)) == (batch_size, swept)


def test_given_batch_sizes_are_all_measured_and_the_best_kept():
    row = model_speed.best("Ti/8", "train", [3, 5, 7], fake({3: 9, 5: 2, 7: 4}))
    assert (row.batch_size, row.swept) == (3, {3: 9, 5: 2, 7: 4})


def test_a_batch_that_does_not_fit_at_all_is_an_error():
    with pytest.raises(UserError, match="Ti/8, train, 64 images on a core: more memory is needed"):
        model_speed.best("Ti/8", "train", [64], fake({}))


def test_what_the_devices_memory_refuses_is_told_from_other_failures(monkeypatch):
    def fail(message):
        def runs(*arguments):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(model_speed, "_runs", runs)

    fail("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes")
    with pytest.raises(compiling.DoesNotFitError):
        model_speed.measure("Ti/8", "train", 4, settings=SETTINGS, peak_flops=None)
    fail("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        model_speed.measure("Ti/8", "train", 4, settings=SETTINGS, peak_flops=None)


def test_a_program_larger_than_the_hosts_memory_is_not_run(monkeypatch):
    monkeypatch.setattr(model_speed.os, "sysconf", lambda name: 10)  # a hundred bytes are free
    with pytest.raises(compiling.DoesNotFitError, match=r"it needs .* and 0\.0 GiB are free"):
        model_speed.measure("Ti/8", "train", 4, settings=SETTINGS, peak_flops=None)
