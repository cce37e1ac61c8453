"""The steps of the paper's configs, compiled by `mixer.preflight` for TPU slices (`make test-all`). Needs no TPU."""

import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

from mixer.config import config_file, recipe
from mixer.config.checks import checked
from mixer.performance import hlo, tpu_topology
from mixer.training import setup

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra preflight (libtpu)"),
]


def preflight(*arguments, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "mixer.preflight", "--json", *arguments],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    return json.loads(line)


B16 = ("--config=configs/b16_i21k.py", "--topology=v3:2x2", "--config.batch_size=512", "--nolargest")


def test_b16_i21k_compiles_for_v3_data_parallel():
    found = preflight(*B16)
    assert (found["cores"], found["hosts"], found["fits"]) == (8, 1, True)
    assert found["libtpu"] == importlib.metadata.version("libtpu")  # though JAX has set TPU_LIBRARY_PATH
    # 6 FLOPs for each of 12.6 GMAC an image, with a head of 21,843 classes.
    work = 6 * (12_602e6 + 768 * 20_843) / 1e9
    assert found["gflop_per_image"] == pytest.approx(work, rel=1e-3)
    assert found["compiler_gflop_per_image"] == pytest.approx(work, rel=0.03)
    assert found["memory_by_kind"]["temporaries (activations, gradients)"] < 2.2e9
    assert found["memory_by_kind"]["parameters"] + found["memory_by_kind"]["optimizer state"] == pytest.approx(
        3 * 4 * 75.9e6, rel=0.01
    )
    assert set(found["collectives"]) == {"all-reduce"}  # of the gradients and the metrics, and none for mixup
    # Gradients of bfloat16 layers travel in bfloat16, those of the head and of the normalisations in float32.
    assert 2 * 75.9e6 < found["collectives"]["all-reduce"] < 4 * 75.9e6
    assert found["paper_core_days"] == 150


def test_the_bfloat16_step_multiplies_no_float32_and_moves_no_activations():
    """This holds in the compiled program of two blocks, except at the stem: its input, its output and its gradient."""
    config = config_file.run(str(ROOT / "configs/b16_i21k.py"))
    config.batch_size, config.model.num_blocks = 512, 2
    text = tpu_topology.compile_train(checked(config), tpu_topology.mesh_of("v3:2x2"), 21_843, 1).run.as_text()
    defined = dict(re.findall(r"%?([\w.\-]+) = (\w+\[[\d,]*\])", text))
    products = re.findall(r" convolution\(([^)]*)\)", text)
    operands = [defined[operand.split("%")[-1]] for product in products for operand in product.split(", ")]
    assert len(products) >= 2 * 12 + 3
    assert {operand.split("[")[0] for operand in operands} == {"bf16"}
    moved = re.findall(r" = \w+\[([\d,]+)\][^ ]* (?:copy|transpose)\(.*op_name=\"([^\"]*)\"", text)
    large = {name for shape, name in moved if math.prod(map(int, shape.split(","))) >= 64 * 196 * 768}
    assert all("MixerBlock_" not in name or "MixerBlock_0/LayerNorm_0/add_any" in name for name in large), large


def test_b16_i21k_fully_sharded_holds_an_eighth_of_the_state():
    found = preflight(*B16, "--config.sharding=fully_sharded")
    assert found["memory_by_kind"]["parameters"] < 0.2 * 4 * 75.9e6
    # Gradients are reduced and parameters are gathered, in bfloat16 except for the head. On v3, XLA implements some of
    # the gatherings as all-reduces.
    assert set(found["collectives"]) == {"all-reduce", "all-gather"}
    assert sum(found["collectives"].values()) > 2 * 2 * 75.9e6


def test_what_does_not_fit_is_reported_with_remedies():
    found = preflight(
        "--config=configs/l16_jft.py", "--topology=v2:2x2", "--config.batch_size=12288", "--config.model.num_blocks=4",
        "--config.model.dtype=float32", status=1,
    )  # fmt: skip
    assert not found["fits"]
    assert found["needed"] > 6e9  # the compiler's own number
    assert any(remedy["fits"] for remedy in found["remedies"])
    assert {remedy["change"] for remedy in found["remedies"]} >= {
        "--config.model.remat=True", "--config.sharding=fully_sharded", "--config.accumulate_steps=2"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("topology", "cores"),
    [
        ("v2:2x2", 8), ("v3:4x4", 32), ("v4:2x2x2", 8), ("v5e:4x4", 16), ("v5p:2x2x2", 8), ("v6e:2x4", 8),
        ("tpu7x:2x2x1", 8),
    ],
)  # fmt: skip
def test_every_generation_compiles_and_has_an_estimate(topology, cores):
    # One block in a batch of 512 images a core has 5.4 GHz on tpu7x, whose time is worth less (libtpu 0.0.42.1).
    size = "--config.batch_size=256" if topology.startswith("tpu7x") else "--config.model.num_blocks=1"
    found = preflight("--config=configs/s32_jft.py", f"--topology={topology}", size, "--nolargest")
    assert (found["fits"], found["cores"]) == (True, cores)
    assert 0 < found["seconds_per_step"] < 0.1
    assert 0.5 < found["clock_ghz"] < 4


@pytest.mark.parametrize(
    ("topology", "cores", "gib"),
    [
        ("v2:2x2", 8, 7.48), ("v3:2x2", 8, 15.48), ("v4:2x2x1", 4, 30.75), ("v5e:2x2", 4, 15.75),
        ("v5p:2x2x1", 4, 95.74), ("v6e:2x2", 4, 31.25), ("tpu7x:2x2x1", 8, 94.75),
    ],
)  # fmt: skip
def test_cores_and_the_memory_that_the_compiler_allows(topology, cores, gib):
    mesh = tpu_topology.mesh_of(topology)
    assert mesh.size == cores
    assert tpu_topology.memory_of(mesh) / 2**30 == pytest.approx(gib, abs=0.02)


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"),
    [("v5e:1x1", 1, 1), ("v5e:2x4", 8, 1), ("v6e:1x1", 1, 1), ("v6e:2x4", 8, 1), ("v6e:4x4", 16, 4)],
)
def test_slices_have_the_hosts_that_docs_tpu_says(topology, chips, hosts):
    mesh = tpu_topology.mesh_of(topology)
    assert (mesh.size, tpu_topology.num_hosts(mesh)) == (chips, hosts)


def test_a_loop_over_blocks_is_counted_with_all_its_iterations():
    written_out, loop = (
        preflight(*B16, "--config.model.num_blocks=3", f"--config.model.scan={scan}") for scan in (False, True)
    )
    assert loop["compiler_gflop_per_image"] == pytest.approx(written_out["compiler_gflop_per_image"], rel=0.02)
    assert loop["collectives"]["all-reduce"] == pytest.approx(written_out["collectives"]["all-reduce"], rel=0.25)
    assert loop["seconds_per_step"] > written_out["seconds_per_step"]


@pytest.mark.parametrize(
    ("variant", "settings"),
    [("ViT-S/16", {}), ("S/16", {"model.token_mixing": "untied", "model.token_groups": 8}), ("S/16", {})],
)
def test_the_products_of_a_program_are_those_of_the_formula(variant, settings):
    """Those of heads and of groups are convolutions with many taps, of which one meets an element."""
    config = recipe.imagenet1k(variant)
    size = {"input.image_size": 64, "batch_size": 512, "model.num_blocks": 2, "model.dtype": "bfloat16"}
    config.update_from_flattened_dict(size | settings)
    config, mesh = checked(config), tpu_topology.mesh_of("v3:2x2")
    model = setup.build(config, mesh, num_classes=10).model
    computations, entry = hlo._parse(tpu_topology.compile_train(config, mesh, 10, 1).run.as_text())
    products = hlo._total(computations, entry, loops=True)["products"]
    of_images = 3 * 64**2 * model.hidden_dim  # nobody needs the gradient of the images
    assert products == 64 * 2 * (3 * model.forward_macs(64) - of_images)


def test_gradients_of_split_weights_are_not_added_whole_on_v6e():
    """On v3 they are. On v6e a core's part goes round the ring, or is scattered."""
    found = preflight(
        "--config=configs/b16_i1k.py", "--topology=v6e:2x4", "--config.batch_size=512", "--nolargest",
        "--config.sharding=fully_sharded", "--config.model.num_blocks=1", "--config.model.stochastic_depth=0",
    )  # fmt: skip
    sent = found["collectives"]
    assert sent.get("reduce-scatter", 0) + sent.get("collective-permute", 0) > 10 * 2**20 > sent["all-reduce"]
    assert found["compiler_gflop_per_image"] == pytest.approx(found["gflop_per_image"], rel=0.05)
