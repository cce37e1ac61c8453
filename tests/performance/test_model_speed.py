"""A measurement's arithmetic is checked with a fake clock, and its FLOPs are compared with the compiler's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer.config import checks, recipe
from mixer.performance import batch_size_search, compiling, model_speed, timing
from mixer.runtime import machine
from mixer.runtime.errors import UserError
from mixer.training import setup

SETTINGS = model_speed.Settings(image_size=32, blocks=2, seconds=0.01)


@pytest.mark.parametrize(
    ("variant", "mode"),
    [
        pytest.param(variant, mode, marks=[] if mode == "inference" or variant == "B/16" else pytest.mark.slow)
        for variant in ("S/16", "B/16", "ViT-B/16", "BiT-R50x1")
        for mode in model_speed.MODES
    ],
)
def test_the_formula_and_the_compiler_agree_within_3_percent(variant, mode):
    macs = models.create(variant, num_classes=1000).forward_macs(224)
    flops = model_speed.xla_flops(variant, mode, model_speed.Settings())
    assert {"inference": 2, "train": 6}[mode] * macs == pytest.approx(flops, rel=0.03)


def test_the_compilers_count_asks_for_the_cpu(monkeypatch):
    """JAX has none for a program on a TPU or GPU before it is compiled."""
    asked, find = [], jax.devices
    monkeypatch.setattr(jax, "devices", lambda platform=None: asked.append(platform) or find(platform))
    assert model_speed.xla_flops.__wrapped__("Ti/8", "inference", SETTINGS) > 0
    assert set(asked) == {"cpu"}

    def no_cpu(platform=None):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "devices", no_cpu)
    assert math.isnan(model_speed.xla_flops.__wrapped__("Ti/8", "inference", SETTINGS))


@pytest.mark.parametrize("mode", model_speed.MODES)
def test_a_measurement_follows_from_its_seconds(monkeypatch, mode):
    calls = []

    def timed(call, *, blocks, seconds):
        calls.extend([call(), call()])
        return timing.Timing(0.5, 0.4, 0.8)

    monkeypatch.setattr(timing, "timed", timed)
    found = model_speed.measure("Ti/8", mode, 4, settings=SETTINGS, peak_flops=1e9)
    assert (found.images_per_sec_per_core, found.lowest, found.highest) == (8, 5, 10)
    times = {"inference": 2, "train": 6}[mode]
    assert found.gflop_per_image == pytest.approx(times * forward_macs() / 1e9)
    assert found.compiler_gflop_per_image == model_speed.xla_flops("Ti/8", mode, SETTINGS) / 1e9
    assert found.utilisation == pytest.approx(8 * times * forward_macs() / 1e9)
    assert found.parameters == 4 * (2 * 16 * 64 + 64 + 16 + 2 * 128 * 512 + 512 + 128 + 4 * 128) + (
        3 * 64 * 128 + 128 + 2 * 128 + 128 * 1000 + 1000
    )
    copies = {"inference": 1, "train": 3}[mode]  # of the parameters: Adam keeps two moments
    assert found.peak_memory_bytes > copies * 4 * found.parameters
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(calls) if leaf.dtype == jnp.float32)


def forward_macs():
    tokens = 16
    return tokens * 3 * 64 * 128 + 4 * 2 * tokens * 128 * (64 + 512) + 128 * 1000


def test_what_is_timed_in_training_is_the_production_step(monkeypatch, mesh):
    """The timed program is compiled from `setup.build`'s step, and gives the metrics of that step, bit by bit."""
    built, compiled, timed_metrics = [], [], []
    build, compile_step = setup.build, compiling.compile_step

    def recorded_build(*arguments, **options):
        built.append(build(*arguments, **options))
        return built[-1]

    def recorded_compile(*arguments):
        compiled.append(arguments)
        return compile_step(*arguments)

    def timed(call, *, blocks, seconds):
        timed_metrics.extend([call(), call()])
        return timing.Timing(1.0, 1.0, 1.0)

    monkeypatch.setattr(setup, "build", recorded_build)
    monkeypatch.setattr(compiling, "compile_step", recorded_compile)
    monkeypatch.setattr(timing, "timed", timed)
    model_speed.xla_flops("Ti/8", "train", SETTINGS)  # it builds too; here its result is cached
    built.clear()
    model_speed.measure("Ti/8", "train", 4, settings=SETTINGS, peak_flops=None)
    (one,) = built
    ((step, state, batch),) = compiled
    assert step is one.train_step
    assert (state, batch) == (one.abstract_state, setup.batch_shapes(run_config(), mesh, 1))

    production = build(run_config(), mesh, num_classes=1000)
    state, rows = production.init(), model_speed._random_batch(batch)
    for expected in timed_metrics:
        state, metrics = production.train_step(state, rows)
        jax.tree.map(np.testing.assert_array_equal, metrics, expected)


def run_config():
    config = recipe.base()
    config.model.variant, config.model.dtype = "Ti/8", "float32"
    config.input.image_size, config.batch_size = 32, 4 * jax.device_count()
    return checks.checked(config)


def fake(rates):
    """Makes a `measure` for which only the batch sizes in `rates` fit."""

    def measure(variant, mode, batch_size):
        if batch_size not in rates:
            raise compiling.DoesNotFitError(None)
        return dataclasses.replace(MEASUREMENT, batch_size=batch_size, images_per_sec_per_core=rates[batch_size])

    return measure


MEASUREMENT = model_speed.Measurement("Mixer-Ti/8", "train", 1, 1.0, 1.0, 1.0, 0.0, 1, 1.0, 1.0, None, 1)


@pytest.mark.parametrize(
    ("rates", "batch_size", "swept"),
    [
        ({1: 5, 2: 8, 4: 9, 8: 9.05, 16: 9.04, 32: 99}, 8, [1, 2, 4, 8, 16]),  # stops after two that hardly help
        ({1: 5, 2: 8, 4: 7, 8: 12, 16: 11, 32: 10, 64: 99}, 8, [1, 2, 4, 8, 16, 32]),  # but not after one
        ({1: 5, 2: 8}, 2, [1, 2]),  # or where memory ends
    ],
)
def test_the_batch_is_doubled_as_long_as_that_helps(rates, batch_size, swept):
    found = batch_size_search.fastest("Ti/8", "train", None, fake(rates))
    assert (found.batch_size, list(found.swept)) == (batch_size, swept)


def test_the_first_batch_is_halved_until_it_fits():
    """It is 16 on a GPU or TPU."""
    for fits, tried in ((4, [16, 8, 4]), (1, [16, 8, 4, 2, 1])):
        told = []
        found = batch_size_search.fastest("Ti/8", "train", None, fake({fits: 5}), smallest=16, tell=told.append)
        assert (found.batch_size, found.swept) == (fits, {fits: 5})
        assert [line.partition(":")[0] for line in told] == [f"Ti/8 train at {size}" for size in tried]


def test_given_batch_sizes_are_all_measured_and_the_best_kept():
    found = batch_size_search.fastest("Ti/8", "train", [3, 5, 7], fake({3: 9, 5: 2, 7: 4}))
    assert (found.batch_size, found.swept) == (3, {3: 9, 5: 2, 7: 4})
    found = batch_size_search.fastest("Ti/8", "train", [64, 5, 32, 3], fake({3: 9, 5: 2}))
    assert (found.batch_size, found.swept) == (3, {5: 2, 3: 9})


def test_a_batch_that_does_not_fit_at_all_is_an_error():
    with pytest.raises(UserError, match="Ti/8, train, 64, 32 images on a core: more memory is needed"):
        batch_size_search.fastest("Ti/8", "train", [64, 32], fake({}))
    with pytest.raises(UserError, match="Ti/8, train, 2, 1 images on a core: more memory is needed"):
        batch_size_search.fastest("Ti/8", "train", None, fake({}), smallest=2)


def test_only_a_lack_of_memory_raises_does_not_fit(monkeypatch):
    def fail(message):
        def call(program, compiled):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(model_speed._Program, "call", call)

    fail("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes")
    with pytest.raises(compiling.DoesNotFitError):
        model_speed.measure("Ti/8", "train", 4, settings=SETTINGS, peak_flops=None)
    fail("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        model_speed.measure("Ti/8", "train", 4, settings=SETTINGS, peak_flops=None)


def test_a_program_larger_than_the_hosts_memory_is_not_run(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 100)
    with pytest.raises(compiling.DoesNotFitError, match=r"it needs .* and 0\.0 GiB are available"):
        model_speed.measure("Ti/8", "train", 4, settings=SETTINGS, peak_flops=None)
