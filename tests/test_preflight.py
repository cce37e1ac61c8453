"""Pre-flight on a mesh of this machine's devices; for slices that are not there see training/test_tpu_compile.py."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from mixer import preflight
from mixer.config import checks, recipe
from mixer.performance import compiling, memory_fit, tpu_topology
from mixer.runtime import devices
from mixer.runtime.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
KNOWN = {"num_classes": 10, "num_examples": 50_000, "max_labels": 1}


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


def test_what_a_config_takes_follows_from_its_arithmetic():
    told = []
    mesh = devices.make_mesh()
    found = preflight.examine(small(), mesh, KNOWN, memory=2**30, largest=False, tell=told.append)
    assert found["parameters"] == parameters()
    kinds = found["memory_by_kind"]
    assert kinds["parameters"] == 4 * parameters()
    assert kinds["optimizer state"] - 8 * parameters() in range(16)  # two moments, and Adam's and the schedule's counts
    assert kinds["batch"] == 64 // 8 * (32 * 32 * 3 + 3 * 4)
    assert found["checkpoint_bytes"] - 12 * parameters() in range(64)
    assert found["fits"]
    assert found["total"] > sum(kinds[name] for name in ("parameters", "optimizer state", "batch"))
    assert found["compiler_gflop_per_image"] == pytest.approx(found["gflop_per_image"], rel=0.2)  # tiny: Adam counts
    assert found["collectives"]["all-reduce"] == pytest.approx(4 * parameters(), rel=0.01)  # gradients, and metrics
    assert found["total_steps"] == round(300 * 50_000 / 64)
    assert len(told) == 2


def test_fully_sharded_gathers_parameters_and_holds_an_eighth():
    found = preflight.examine(small(sharding="fully_sharded"), devices.make_mesh(), KNOWN, 2**30, largest=False)
    kinds = found["memory_by_kind"]
    assert kinds["parameters"] == pytest.approx(4 * parameters() / 8, rel=0.15)  # small arrays are copied
    assert found["checkpoint_bytes"] - 12 * parameters() in range(64)
    assert found["collectives"]["all-gather"] >= 0.9 * 4 * parameters()


@pytest.mark.slow  # five programs
def test_what_does_not_fit_is_compiled_with_each_remedy():
    """Of a core that has a little less than the config needs, fully sharded is enough; the text says what was tried."""
    mesh = devices.make_mesh()
    whole = preflight.examine(small(), mesh, KNOWN, 2**30, largest=False)["total"]
    found = preflight.examine(small(), mesh, KNOWN, 0.8 * whole)
    assert not found["fits"]
    assert found["needed"] == whole
    changes = {remedy["change"]: remedy["fits"] for remedy in found["remedies"]}
    assert list(changes)[:2] == ["--config.model.remat=True", "--config.sharding=fully_sharded"]
    assert changes["--config.sharding=fully_sharded"]
    assert not any(" " in change for change in changes)  # one is enough, so that they are not tried together
    assert "--config.accumulate_steps=2" not in changes  # 8 rows on a core, of which mixup keeps 8 together
    text = preflight.report({**found, "topology": "here", "libtpu": "none"})
    assert "does NOT fit" in text
    assert re.search(r"with --config.sharding=fully_sharded +fits, 0\.\d\d GiB", text)


def fake(slope, fixed, recomputes_from, limit):
    """A compiler for which memory is a straight line, until it begins to recompute."""

    def compile_train(config, mesh, num_classes, max_labels):
        images = config.batch_size // mesh.size
        needed = min(fixed + slope * images, limit if images >= recomputes_from else 1e30)
        if images > 600:
            raise compiling.DoesNotFitError(None)
        work = 1.1 if images >= recomputes_from else 1.0
        return compiling.Compiled(None, fixed, 0, int(needed) - fixed, 0, work * images, None, {}, 0.0)

    return compile_train


@pytest.mark.parametrize(
    ("recomputes_from", "memory", "expected"),
    [
        (10_000, 1000 + 10 * 243, (240, 3400, 0.0)),  # as the straight line says, in groups of eight
        (200, 1000 + 10 * 243, (240, 3400, 0.1)),  # XLA recomputes: it is said
        (10_000, 1000 + 10 * 703, (560, 6600, 0.0)),  # the line promises what does not compile: a fifth less
        (10_000, 1000 + 10 * 60, None),  # 64 images are too much
        (10_000, 1000 + 10 * 65, (64, 1640, 0.0)),  # and just those are all
    ],
)
def test_the_largest_batch(monkeypatch, recomputes_from, memory, expected):
    monkeypatch.setattr(tpu_topology, "compile_train", fake(10, 1000, recomputes_from, memory))
    fit = memory_fit.Fitting(small(), devices.make_mesh(), 10, 1, memory)
    found = fit.largest(fit.train())
    assert (found and (found["per_core"], found["total"], pytest.approx(found["extra_work"]))) == expected


def test_known_data_needs_no_words():
    assert preflight.facts(recipe.imagenet1k("B/16"), None, None) == {
        "num_classes": 1000, "num_examples": 1_281_167 * 99 // 100, "max_labels": 1
    }  # fmt: skip
    assert preflight.facts(recipe.jft("B/16", epochs=7, learning_rate=1e-3), None, 7)["num_examples"] == 7
    config = recipe.base()
    config.input.dataset = "mine"
    assert preflight.facts(config, 3, 50) == {"num_classes": 3, "num_examples": 50, "max_labels": 1}
    config.input.dataset, config.input.train_split = "imagenet2012", "train[5%:]"
    with pytest.raises(UserError, match=r"train_split='train\[5%:\]': give its --num_examples"):
        preflight.facts(config, None, None)
    assert preflight.facts(config, None, 9)["num_examples"] == 9
    config.input.dataset = "mine"
    with pytest.raises(UserError, match="'mine' is not known here: give --num_classes and --num_examples"):
        preflight.facts(config, 3, None)


@pytest.mark.parametrize(
    ("config", "days"),
    [
        (recipe.imagenet1k("B/16"), 10),
        (recipe.imagenet21k("L/16", magnitude=15, mixup=0.5), 410),
        (recipe.jft("L/16", epochs=7, learning_rate=1e-3), 230),
        (recipe.jft("L/16", epochs=14, learning_rate=1e-3), 450),
        (recipe.jft("L/16", epochs=8, learning_rate=1e-3), None),
        (recipe.imagenet1k("ViT-B/16"), None),
    ],
)
def test_the_papers_core_days(config, days):
    assert preflight.paper_core_days(config) == days


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
    with pytest.raises(UserError, match=r"v3:2x2: libtpu is missing: pip install 'mixer\[preflight\]'"):
        tpu_topology.mesh_of("v3:2x2")
