"""What fits in a core's memory, by compilers that say what the tests want. test_preflight.py compiles real programs."""

import pytest

from mixer.config import checks, recipe
from mixer.performance import compiling, memory_fit, tpu_topology


def small(**changes):
    config = recipe.imagenet1k("Ti/8")  # its mixup keeps eight images together
    settings = {"input.image_size": 32, "batch_size": 64, "model.dtype": "float32", **changes}
    config.update_from_flattened_dict(settings)
    return checks.checked(config)


def fake(slope, fixed, recomputes_from, limit):
    """Makes a compiler for which memory is linear in the batch size, until it starts to recompute."""

    def compile_train(config, mesh, num_classes, max_labels):
        images = config.batch_size // mesh.size
        needed = min(fixed + slope * images, limit if images >= recomputes_from else 1e30)
        if images > 600:
            raise compiling.DoesNotFitError(None)
        work = 1.1 if images >= recomputes_from else 1.0
        seconds = 1 + work * images
        return compiling.Compiled(None, fixed, 0, int(needed) - fixed, 0, work * images, seconds, 0, {}, 0.0)

    return compile_train


def refusing(compiled):
    """Makes a compiler for which nothing fits; it adds what each config has to a list."""

    def compile_train(config, *_):
        compiled.append((config.model.remat, config.sharding, config.accumulate_steps))
        raise compiling.DoesNotFitError(None)

    return compile_train


def test_each_remedy_changes_the_config_as_it_is(monkeypatch, mesh):
    """And leaves it so: no change of one remedy is there for the next."""
    compiled = []
    monkeypatch.setattr(tpu_topology, "compile_train", refusing(compiled))
    config = small(batch_size=512)
    before = config.to_dict()
    fitting = memory_fit.Fitting(config, mesh, 10, 1, memory=1)
    tried = [remedy["change"] for remedy in fitting.remedies()]
    assert compiled == [
        (True, "data_parallel", 1),
        (False, "fully_sharded", 1),
        (False, "data_parallel", 2),
        (False, "data_parallel", 4),
        (True, "fully_sharded", 1),
        (True, "fully_sharded", 4),
    ]
    assert tried[-1] == "--config.model.remat=True --config.sharding=fully_sharded --config.accumulate_steps=4"
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("recomputes_from", "memory", "largest", "fastest"),
    [
        (10_000, 1000 + 10 * 243, (240, 3400, 0.0), 240),  # on the line, in groups of eight
        (200, 1000 + 10 * 243, (600, 3430, 0.1), 64),  # XLA recomputes, and more than on the line fit
        (100, 1000 + 10 * 103, (576, 2030, 0.1), 96),  # a little slower than without recomputing
        (10_000, 1000 + 10 * 703, (536, 6360, 0.0), 536),  # the size on the line does not compile
        (10_000, 1000 + 10 * 60, (56, 1560, 0.0), 56),  # 64 images do not fit
        (10_000, 1000 + 10 * 65, (64, 1640, 0.0), 64),  # 64 fit, and few more
    ],
)
def test_the_largest_and_the_fastest_batch(monkeypatch, mesh, recomputes_from, memory, largest, fastest):
    monkeypatch.setattr(tpu_topology, "compile_train", fake(10, 1000, recomputes_from, memory))
    fit = memory_fit.Fitting(small(), mesh, 10, 1, memory)
    found = fit.batches(fit.train())
    assert (found[-1].per_core, found[-1].total, pytest.approx(found[-1].extra_work)) == largest
    assert max(found, key=lambda batch: batch.images_per_sec_per_core).per_core == fastest


def limited_to(most, mesh):
    """Makes a compiler for which as many images fit on a core, and the list of those that it was given."""
    tried = []

    def compile_train(config, *_):
        images = config.batch_size // mesh.size
        tried.append(images)
        return compiling.Compiled(None, 1000, 0, 10 * images, 0, images, 1 + images, 0, {}, 0.0)

    return compile_train, 1000 + 10 * most, tried


@pytest.mark.parametrize(
    ("most", "own", "largest", "too_large"),
    [
        (20_000, 8, 8192, None),  # on the line, which the limit cuts
        (8192, 8, 8192, None),
        (10_905, 8, 8192, None),
        (7000, 8, 7000, 8192),
        (20_000, 4096, 8192, None),
        (20_000, 6000, 8192, None),
        (20_000, 9600, 9600, None),  # the config's own, and nothing else is tried
    ],
)
def test_no_batch_above_the_limit_is_tried(monkeypatch, mesh, most, own, largest, too_large):
    compile_train, memory, tried = limited_to(most, mesh)
    monkeypatch.setattr(tpu_topology, "compile_train", compile_train)
    fit = memory_fit.Fitting(small(batch_size=own * mesh.size), mesh, 10, 1, memory)
    found = fit.batches(fit.train())
    assert (found[-1].per_core, fit.too_large) == (largest, too_large)
    assert max(tried[1:], default=0) <= 8192


@pytest.mark.parametrize(
    ("now", "tried"),
    [
        (
            {"model.remat": True},
            [
                (True, "fully_sharded", 1),
                (True, "data_parallel", 2),
                (True, "data_parallel", 4),
                (True, "fully_sharded", 4),
            ],
        ),
        (
            {"accumulate_steps": 2},  # the change is to more of them
            [
                (True, "data_parallel", 2),
                (False, "fully_sharded", 2),
                (False, "data_parallel", 4),
                (False, "data_parallel", 8),
                (True, "fully_sharded", 2),
                (True, "fully_sharded", 8),
            ],
        ),
        (
            {"model.remat": True, "sharding": "fully_sharded"},
            [(True, "fully_sharded", 2), (True, "fully_sharded", 4)],
        ),
    ],
    ids=str,
)
def test_a_remedy_adds_to_what_the_config_has(monkeypatch, mesh, now, tried):
    compiled = []
    monkeypatch.setattr(tpu_topology, "compile_train", refusing(compiled))
    memory_fit.Fitting(small(batch_size=512, **now), mesh, 10, 1, memory=1).remedies()
    assert compiled == tried


def evaluating(limit, mesh):
    """Makes a compiler of evaluation for which as many images fit on a core, and the list of those it was given."""
    tried = []

    def compile_eval(config, *_):
        tried.append(config.batch_size // mesh.size)
        if tried[-1] // config.accumulate_steps > limit:
            raise compiling.DoesNotFitError(5000)
        return compiling.Compiled(None, 1, 0, 0, 0, 1, 1, 0, {}, 0.0)

    return compile_eval, tried


@pytest.mark.parametrize(("max_labels", "largest"), [(1, 240), (8, 128)])
def test_the_largest_batch_of_several_labels_fits_in_evaluation_too(monkeypatch, mesh, max_labels, largest):
    """There each core has the logits of the whole batch."""
    compile_eval, tried = evaluating(150, mesh)
    monkeypatch.setattr(tpu_topology, "compile_train", fake(10, 1000, 10_000, 3430))
    monkeypatch.setattr(tpu_topology, "compile_eval", compile_eval)
    fit = memory_fit.Fitting(small(), mesh, 10, max_labels, 3430)
    found = fit.batches(fit.train())
    assert found[-1].per_core == largest
    assert bool(tried) == (max_labels > 1)


def test_a_remedy_of_several_labels_fits_in_evaluation_too(monkeypatch, mesh):
    monkeypatch.setattr(tpu_topology, "compile_train", fake(10, 1000, 10_000, 3430))
    monkeypatch.setattr(tpu_topology, "compile_eval", evaluating(32, mesh)[0])
    for max_labels, fits in ((1, [True, True, True, True]), (8, [False, False, True, True])):
        found = memory_fit.Fitting(small(batch_size=512), mesh, 10, max_labels, 3430).remedies()
        assert [remedy["fits"] for remedy in found[:4]] == fits
        assert [remedy["total"] for remedy in found[:4]] == [1640 if fit else 5000 for fit in fits]


def test_evaluation_may_not_fit_where_training_accumulates(monkeypatch, mesh):
    """The compiler refuses it, or says that it needs more than there is."""
    told = []

    def refuses(*_):
        raise compiling.DoesNotFitError(3000)

    fit = memory_fit.Fitting(small(), mesh, 10, 1, 2000, told.append)
    monkeypatch.setattr(tpu_topology, "compile_eval", refuses)
    assert (fit.evaluate(), fit.needed) == (None, 3000)
    monkeypatch.setattr(tpu_topology, "compile_eval", limited_to(0, mesh)[0])
    assert (fit.evaluate() is not None, fit.needed) == (True, 1080)
    fit.memory = 1000
    assert (fit.evaluate(), fit.needed) == (None, 1080)
    assert told[0] == "compiled the evaluation step: does not fit"
