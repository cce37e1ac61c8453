"""Pre-flight on a mesh of this machine's devices. For TPU slices see training/test_tpu_compile.py."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest
from tensorflow_datasets.core import splits

from mixer import preflight
from mixer.config import checks, recipe
from mixer.config.tasks import TASKS
from mixer.performance import charges, compiling, data_facts, memory_fit, tpu_topology
from mixer.performance.data_facts import DataFacts
from mixer.runtime.errors import UserError
from mixer.training import line_metrics, setup

ROOT = pathlib.Path(__file__).resolve().parents[1]
FACTS = DataFacts(num_classes=10, num_examples=50_000)


def small(**changes):
    config = recipe.imagenet1k("Ti/8")
    settings = {
        "input.image_size": 32, "batch_size": 64, "model.num_blocks": 2, "model.hidden_dim": 256,
        "model.tokens_mlp_dim": 32, "model.channels_mlp_dim": 512, "model.dtype": "float32", **changes,
    }  # fmt: skip
    config.update_from_flattened_dict(settings)
    return checks.checked(config)


def parameters(hidden=256, tokens=16, tokens_mlp=32, channels_mlp=512, classes=10):
    block = 2 * tokens * tokens_mlp + tokens_mlp + tokens + 2 * hidden * channels_mlp + channels_mlp + hidden
    return 3 * 64 * hidden + hidden + 2 * (block + 4 * hidden) + 2 * hidden + hidden * classes + classes


def test_memory_and_work_agree_with_arithmetic(mesh):
    told = []
    found = preflight.examine(small(), mesh, FACTS, memory=2**30, largest=False, tell=told.append)
    assert found["parameters"] == parameters()
    kinds = found["memory_by_kind"]
    assert kinds["parameters"] == 4 * parameters()
    assert kinds["optimizer state"] - 8 * parameters() in range(16)  # two moments, and Adam's and the schedule's counts
    assert kinds["batch"] == 64 // 8 * (32 * 32 * 3 + 3 * 4)
    assert found["checkpoint_bytes"] - 12 * parameters() - 4 * len(line_metrics.SUMS) in range(64)
    assert found["fits"]
    assert found["total"] > sum(kinds[name] for name in ("parameters", "optimizer state", "batch"))
    assert found["compiler_gflop_per_image"] == pytest.approx(
        found["gflop_per_image"], rel=0.2
    )  # the model is so small that Adam's work counts
    assert found["collectives"]["all-reduce"] == pytest.approx(4 * parameters(), rel=0.01)  # gradients, and metrics
    assert found["total_steps"] == round(300 * 50_000 / 64)
    assert len(told) == 2


def test_what_is_compiled_is_the_production_step(monkeypatch, mesh):
    built, compiled = [], []
    build, compile_step = setup.build, compiling.compile_step

    def recorded_build(*arguments, **options):
        built.append(build(*arguments, **options))
        return built[-1]

    def recorded_compile(*arguments):
        compiled.append(arguments)
        return compile_step(*arguments)

    monkeypatch.setattr(setup, "build", recorded_build)
    monkeypatch.setattr(compiling, "compile_step", recorded_compile)
    tpu_topology.compile_train(small(), mesh, 10, 1)
    ((step, state, batch),) = compiled
    assert step is built[0].train_step
    assert (state, batch) == (built[0].state, setup.batch_shapes(small(), mesh, 1))


def test_fully_sharded_gathers_parameters_and_holds_an_eighth(mesh):
    found = preflight.examine(small(sharding="fully_sharded"), mesh, FACTS, 2**30, largest=False)
    kinds = found["memory_by_kind"]
    assert kinds["parameters"] == pytest.approx(4 * parameters() / 8, rel=0.15)  # small arrays are copied
    assert found["checkpoint_bytes"] - 12 * parameters() - 4 * len(line_metrics.SUMS) in range(64)
    assert found["collectives"]["all-gather"] >= 0.9 * 4 * parameters()


@pytest.mark.slow  # five programs
def test_what_does_not_fit_is_compiled_with_each_remedy(mesh):
    """The core has 80% of the memory that the config needs. Fully sharded, the config fits; the text says so."""
    whole = preflight.examine(small(), mesh, FACTS, 2**30, largest=False)["total"]
    found = preflight.examine(small(), mesh, FACTS, 0.8 * whole)
    assert not found["fits"]
    assert found["needed"] == whole
    changes = {remedy["change"]: remedy["fits"] for remedy in found["remedies"]}
    assert list(changes)[:2] == ["--config.model.remat=True", "--config.sharding=fully_sharded"]
    assert changes["--config.sharding=fully_sharded"]
    assert not any(" " in change for change in changes)  # one setting suffices, so none are changed together
    assert "--config.accumulate_steps=2" not in changes  # mixup keeps 8 rows together, and a core has 8
    text = preflight.report({**found, "topology": "here", "libtpu": "none"})
    assert "does NOT fit" in text
    assert re.search(r"with --config.sharding=fully_sharded +fits, 0\.\d\d GiB", text)


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


def test_each_remedy_changes_the_config_as_it_is(monkeypatch, mesh):
    """And leaves it so: no change of one remedy is there for the next."""
    compiled = []

    def compile_train(config, *arguments):
        compiled.append((config.model.remat, config.sharding, config.accumulate_steps))
        raise compiling.DoesNotFitError(None)

    monkeypatch.setattr(tpu_topology, "compile_train", compile_train)
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


def test_no_batch_above_the_limit_is_tried(monkeypatch, mesh):
    """All fit, so doubling ends at the last power below 8,192, and nothing is said to be too large."""
    always, tried = fake(10, 1000, 10_000, 10_000)(small(), mesh, 10, 1), []
    monkeypatch.setattr(tpu_topology, "compile_train", lambda config, *_: tried.append(config.batch_size) or always)
    fit = memory_fit.Fitting(small(), mesh, 10, 1, 10_000)
    found = fit.batches(fit.train())
    assert found[-1].per_core == max(tried) // mesh.size
    assert 4096 <= found[-1].per_core < 8192


def test_the_facts_of_a_dataset():
    assert data_facts.of(recipe.imagenet1k("B/16"), None, None) == (1000, 1_268_355, 1)
    assert data_facts.of(recipe.jft("B/16", epochs=7, learning_rate=1e-3), None, 7) == (18_291, 7, 8)
    assert data_facts.of(recipe.finetune("B/16", TASKS["oxford_flowers102"], 224), None, None) == (102, 2_040, 1)
    config = recipe.base()
    config.input.dataset = "mine"
    assert data_facts.of(config, 3, 50) == (3, 50, 1)
    config.input.dataset, config.input.train_split = "imagenet2012", "train[5%:]"
    with pytest.raises(UserError, match=r"train_split='train\[5%:\]': give its --num_examples"):
        data_facts.of(config, None, None)
    assert data_facts.of(config, None, 9).num_examples == 9
    config.input.dataset = "mine"
    with pytest.raises(UserError, match="'mine' is not known here: give --num_classes and --num_examples"):
        data_facts.of(config, 3, None)


@pytest.mark.parametrize(
    ("num_examples", "per_cent"), [(2_040, 99), (1_281_167, 99), (14_197_122, 98), (50, 1), (150, 1)]
)
def test_per_cents_are_rounded_as_tensorflow_datasets_rounds_them(monkeypatch, num_examples, per_cent):
    """2,020 of 2,040, and ties to even."""
    whole = splits.SplitInfo(name="train", shard_lengths=[num_examples], num_bytes=0, filename_template=None)
    (part,) = splits.ReadInstruction.from_spec(f"train[:{per_cent}%]").to_absolute({"train": whole})
    config = recipe.finetune("B/16", TASKS["oxford_flowers102"], 224)
    config.input.train_split = f"train[:{per_cent}%]"
    monkeypatch.setitem(data_facts.KNOWN, config.input.dataset, DataFacts(102, num_examples))
    assert data_facts.of(config, None, None).num_examples == part.to


@pytest.mark.parametrize(
    ("dataset", "split", "fixed"),
    [
        ("imagenet2012", "train[:99%]", ["num_classes", "num_examples"]),
        ("oxford_flowers102", "train+validation", ["num_classes", "num_examples"]),
        ("imagenet2012", "train[5%:]", ["num_classes"]),  # the number of examples is not known
        ("multilabel", "train", []),  # a collection of the user's own
        ("mine", "train", []),
    ],
)
def test_which_facts_are_certain(dataset, split, fixed):
    config = recipe.base()
    config.input.dataset, config.input.train_split = dataset, split
    assert data_facts.fixed(config) == fixed


def ablated(**options):
    config = recipe.imagenet1k("B/16")
    config.model.update(options)
    return config


@pytest.mark.parametrize(
    ("config", "days"),
    [
        (recipe.imagenet1k("B/16"), 10),
        (recipe.imagenet21k("L/16", magnitude=15, mixup=0.5), 410),
        (recipe.jft("L/16", epochs=7, learning_rate=1e-3), 230),
        (recipe.jft("L/16", epochs=14, learning_rate=1e-3), 450),
        (recipe.jft("L/16", epochs=8, learning_rate=1e-3), None),
        (recipe.imagenet1k("ViT-B/16"), None),
        (ablated(token_mixing="untied", token_groups=4), None),
        (ablated(pyramid=(196,) * 11 + (49,)), None),
    ],
)
def test_the_papers_core_days(config, days):
    assert data_facts.paper_core_days(config) == days


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.dtype": "bfloat16"}, []),
        ({}, ["float32 products are one bfloat16 pass"]),
        ({"model.dtype": "bfloat16", "model.dropout": 0.1}, ["dropout with threefry keys"]),
        ({"model.dtype": "bfloat16", "model.dropout": 0.1, "dropout_keys": "rbg"}, ["rbg keys draw other bits"]),
        ({"model.dtype": "bfloat16", "model.stochastic_depth": 0.1, "dropout_keys": "rbg"}, ["rbg keys draw other"]),
        ({"model.dtype": "bfloat16", "model.remat": True, "model.scan": True}, ["remat takes"]),
        ({"model.dtype": "bfloat16", "model.scan": True}, ["scan without remat"]),
    ],
)
def test_what_costs_more_than_one_would_guess_is_told(changes, said):
    found = charges.notes(small(**changes))
    assert len(found) == len(said)
    assert all(line.startswith(begin) for line, begin in zip(found, said, strict=True))


def found_on_a_tpu(**changes):
    """What `examine` and the command find, in the essentials."""
    batch = {"per_core": 64, "total": 2**30, "extra_work": 0.0, "images_per_sec_per_core": 690.0}
    found = {
        "model": "Mixer-B/16", "image_size": 224, "num_classes": 1000, "parameters": 59_880_472, "dtype": "float32",
        "sharding": "data_parallel", "topology": "v3:2x2", "cores": 8, "device_kind": "TPU v3", "hosts": 1,
        "batch_size": 512, "jax": "0", "libtpu": "0", "memory": 15.48 * 2**30, "memory_by_kind": {"code": 2**20},
        "fits": True, "total": 2**30, "evaluation_total": 2**29,
        "batches": [batch, {**batch, "per_core": 1024, "extra_work": 0.16, "images_per_sec_per_core": 597.0}],
        "gflop_per_image": 75.6, "compiler_gflop_per_image": 76.3, "collectives": {"all-reduce": 2**27},
        "seconds_per_step": 0.0926, "cycles_per_step": 109_000_000, "clock_ghz": 1.18, "images_per_sec_per_core": 691.0,
        "total_steps": 9, "core_days": 1.0, "paper_core_days": None, "input_images_per_sec_per_host": 5528.0,
        "checkpoint_bytes": 2**30, "notes": ["float32 products are ..."],
    }  # fmt: skip
    return preflight.report({**found, **changes})


def test_the_report_says_what_the_time_is_worth():
    text = found_on_a_tpu()
    assert "memory on each core, of 15.48 GiB that the compiler may use" in text
    assert re.search(r"largest batch +1.00 GiB  1024 images a core, 597 images/s/core, 16.0% more work where XLA", text)
    assert re.search(r"fastest batch +1.00 GiB  64 images a core, 690 images/s/core\n", text)
    assert "estimate, optimistic, and the same at any precision of products\n" in text
    assert "cycles    109.0 million a step: 1.18 GHz by that time\n" in text
    assert text.endswith("note      float32 products are ...")
    assert "no TPU is that fast, so trust it less" in found_on_a_tpu(clock_ghz=2.37)
    assert "time      the compiler has no estimate\n" in found_on_a_tpu(seconds_per_step=None)


def run(*arguments):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "mixer.preflight", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=configs/b16_i1k.py"], "error: --topology is missing: the slice to compile for"),
        (["--topology=v3:8x8"], "error: --config is missing"),
        (
            ["--config=configs/b16_i1k.py", "--topology=v7:8x8"],
            "error: --topology=v7:8x8: expected one of v2, v3, v4, v5e",
        ),
        (
            ["--config=configs/b16_i1k.py", "--topology=v3"],
            "error: --topology=v3: expected one of v2, v3, v4, v5e, v5p,",
        ),
        (["--config=configs/b16_i1k.py", "--topology=v3:1x1x1x1"], "error: --topology=v3:1x1x1x1: expected one of v2"),
        (
            ["--config=configs/b16_i21k.py", "--topology=v3:2x2", "--num_classes=3"],
            "error: --num_classes would not be read for train[:99%] of imagenet21k, which this command knows; leave it",
        ),
        (["--config=configs/quickstart.py", "--topology=v3:2x2"], "error: config.input.dataset='fractals/"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, said):
    done = run(*arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(said)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_where_to_get_it():
    with pytest.raises(UserError, match=r"v3:2x2: libtpu is missing: pip install 'mixer-jax\[preflight\]'"):
        tpu_topology.mesh_of("v3:2x2")
