"""Pre-flight on a mesh of this machine's devices. For TPU slices see training/test_tpu_compile.py."""

import importlib.metadata
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mixer import models, preflight
from mixer.config import checks, recipe
from mixer.performance import charges, compiling, tpu_topology
from mixer.performance.data_facts import DataFacts
from mixer.runtime.errors import UserError
from mixer.training import line_metrics, setup
from tests import commands

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
    assert kinds["batches ahead"] == 2 * kinds["batch"]
    assert found["checkpoint_bytes"] - 12 * parameters() - 4 * len(line_metrics.SUMS) in range(64)
    assert found["fits"]
    counted = ("parameters", "optimizer state", "batch", "batches ahead")
    assert found["total"] > sum(kinds[name] for name in (*counted, "temporaries (activations, gradients)"))
    assert found["evaluation_total"] > sum(kinds[name] for name in (*counted, "batch"))
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

    def recorded_compile(*arguments, **options):
        compiled.append(arguments)
        return compile_step(*arguments, **options)

    monkeypatch.setattr(setup, "build", recorded_build)
    monkeypatch.setattr(compiling, "compile_step", recorded_compile)
    tpu_topology.compile_train(small(), mesh, 10, 1)
    ((step, state, batch),) = compiled
    assert step is built[0].train_step
    assert (state, batch) == (built[0].abstract_state, setup.batch_shapes(small(), mesh, 1))


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
    assert "note      float32 products are one bfloat16 pass" in text


def test_remedies_stand_in_columns_however_long_they_are():
    both = "--config.model.remat=True --config.sharding=fully_sharded --config.accumulate_steps=4"
    remedies = [{"change": "--config.model.remat=True", "fits": False, "total": None},
                {"change": both, "fits": True, "total": 2**30}]  # fmt: skip
    _, one, other = preflight._remedy_lines({"needed": None, "remedies": remedies})
    assert (one.split()[-3:], one.index("does")) == (["does", "not", "fit"], other.index("fits"))
    assert other == f"  with {both}  fits, 1.00 GiB"


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
        "max_labels": 1, "batch_size": 512, "jax": "0", "libtpu": "0",
        "memory": 15.48 * 2**30, "memory_by_kind": {"code": 2**20},
        "fits": True, "total": 2**30, "evaluation_fits": True, "evaluation_total": 2**29, "batch_too_large": 2048,
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


def test_the_report_says_how_many_labels_were_taken_for_granted():
    assert found_on_a_tpu().startswith(
        "Mixer-B/16 at 224 px, 1,000 classes, one label an image, 59,880,472 parameters;"
    )
    assert found_on_a_tpu(max_labels=8).startswith("Mixer-B/16 at 224 px, 1,000 classes, up to 8 labels an image, 59,8")


def test_the_report_says_what_evaluation_of_several_labels_takes_of_a_host():
    assert "\nhost " not in found_on_a_tpu()
    said = "host      0.68 GiB of each host's memory for every 10,000 images of an evaluation"  # of float32
    assert said in found_on_a_tpu(max_labels=8, num_classes=18_291)


def test_the_report_says_where_evaluation_and_the_search_end():
    assert re.search(r"all, in evaluation +0.50 GiB  fits\n", found_on_a_tpu())
    text = found_on_a_tpu(fits=False, evaluation_fits=False, batch_too_large=None)
    assert re.search(r"all, in training +1.00 GiB  fits\n", text)
    assert re.search(r"all, in evaluation +0.50 GiB  does NOT fit: it holds batch_size / accumulate_steps images", text)
    assert re.search(r"all, in evaluation +does NOT", found_on_a_tpu(evaluation_fits=False, evaluation_total=None))
    assert "16.0% more work where XLA recomputes, the most that is tried\n" in text
    assert "time      " in text


def test_evaluation_is_compiled_for_as_many_images_as_a_run_evaluates_at_a_time(monkeypatch, mesh):
    shapes = []

    def compiled(step, params, batch, beside):
        shapes.append(batch["image"].shape)
        return compiling.Compiled(None, 0, 0, 0, 0, 1, 1, 0, {}, 0.0)

    monkeypatch.setattr(compiling, "compile_step", compiled)
    for parts in (4, 1):
        tpu_topology.compile_eval(small(accumulate_steps=parts), mesh, 10, 1)
    assert shapes == [(16, 32, 32, 3), (64, 32, 32, 3)]


def test_what_stays_on_a_core_beside_a_step_counts(monkeypatch, mesh):
    """Whether the compiler plans the step, or refuses it."""

    def compiled(step, *arguments, beside):
        return compiling.Compiled(None, 0, 0, 0, 0, 1, 1, 0, {}, 0.0, beside)

    monkeypatch.setattr(compiling, "compile_step", compiled)
    for parts, average in ((1, 0.0), (4, 0.999)):
        config = small(accumulate_steps=parts, ema_decay=average)
        beside = [
            step(config, mesh, 10, 1).total for step in (tpu_topology.compile_train, tpu_topology.compile_eval)
        ]  # fmt: skip
        batch = 64 // 8 * (32 * 32 * 3 + 3 * 4)
        assert beside[0] == 2 * batch
        arrays = 3 if average else 2  # Adam's two moments, and the moving average
        assert beside[1] - (arrays * 4 * parameters() + 2 * batch + batch // parts) in range(128)
    with pytest.raises(compiling.DoesNotFitError) as refused, compiling.memory_errors(1000):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 2.00K of 1.00K hbm.")
    assert refused.value.needed == 2048 + 1000


def test_a_run_that_mixer_train_refuses_does_not_fit(monkeypatch, mesh):
    monkeypatch.delattr(tpu_topology, "compile_train")
    with pytest.raises(UserError, match="warm-up takes 10,000 steps and the run 5,"):
        preflight.examine(small(total_epochs=None, total_steps=5), mesh, FACTS, memory=2**30)


@pytest.mark.parametrize("refuses", [True, False])
def test_no_batch_is_looked_for_where_evaluation_does_not_fit(monkeypatch, mesh, refuses):
    """The largest would be one that pre-flight refuses."""

    def compile_eval(*_):
        if refuses:
            raise compiling.DoesNotFitError(None)
        return compiling.Compiled(None, 1, 0, 0, 0, 1, 1, 0, {}, 0.0)

    def compile_train(config, *_):
        return compiling.Compiled(None, 1, 0, config.batch_size, 0, config.batch_size, 1, 0, {}, 0.0)

    monkeypatch.setattr(tpu_topology, "compile_eval", compile_eval)
    monkeypatch.setattr(tpu_topology, "compile_train", compile_train)
    found = preflight.examine(small(), mesh, FACTS, memory=2**30)
    assert bool(found["batches"]) == found["fits"] == (not refuses)


def test_the_version_of_libtpu_or_which_it_is(monkeypatch, tmp_path):
    """JAX takes the file that TPU_LIBRARY_PATH names, if there is one. It may be that of the package, which sets it."""
    package, others = tmp_path / "libtpu" / "libtpu.so", tmp_path / "libtpu.so"
    package.parent.mkdir()
    package.write_bytes(b"")
    (tmp_path / "libtpu-1.2.dist-info").mkdir()
    (tmp_path / "libtpu-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: libtpu\nVersion: 1.2\n")
    with monkeypatch.context() as installed:
        installed.syspath_prepend(tmp_path)
        installed.delenv("TPU_LIBRARY_PATH", raising=False)
        assert tpu_topology.libtpu_version() == "1.2"
        installed.setenv("TPU_LIBRARY_PATH", str(package))
        assert tpu_topology.libtpu_version() == "1.2"
        installed.setenv("TPU_LIBRARY_PATH", str(others))
        assert tpu_topology.libtpu_version() == "1.2"
        others.write_bytes(b"")
        assert tpu_topology.libtpu_version() == "of TPU_LIBRARY_PATH"

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(others))
    assert tpu_topology.libtpu_version() == "of TPU_LIBRARY_PATH"
    monkeypatch.delenv("TPU_LIBRARY_PATH")
    with pytest.raises(UserError, match=r"^libtpu is missing: run make install-preflight"):
        tpu_topology.libtpu_version()


@pytest.mark.parametrize("refused", [True, False])
def test_a_config_fits_only_if_its_evaluation_does(monkeypatch, mesh, refused):
    """Whether the compiler refuses its evaluation, or plans more memory than there is."""

    def compile_eval(*arguments):
        if refused:
            raise compiling.DoesNotFitError(None)
        return compiling.Compiled(None, 2**40, 0, 0, 0, 1, 1, 0, {}, 0.0)

    monkeypatch.setattr(tpu_topology, "compile_eval", compile_eval)
    found = preflight.examine(small(), mesh, FACTS, memory=2**30, largest=False)
    assert (found["fits"], found["evaluation_fits"]) == (False, False)
    assert found["evaluation_total"] == (None if refused else 2**40)
    assert "core_days" in found or found["seconds_per_step"] is None  # the rest is told all the same


def test_extended_weights_widen_token_mixing_as_in_a_run(tmp_path):
    """S/16-like weights for 32 px, at 64 px: D_S is four times as wide (Appendix C)."""
    model = models.create("Ti/8", num_classes=10, num_blocks=2, hidden_dim=256)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    np.savez(tmp_path / "ti8.npz", **flat)
    config = small(**{"input.image_size": 64, "init_from": str(tmp_path / "ti8.npz"), "model.tokens_mlp_dim": None})
    assert preflight.with_width_of_weights(config).model.tokens_mlp_dim == 4 * 64
    other = small(**{"init_from": str(tmp_path / "ti8.npz"), "model.tokens_mlp_dim": None, "model.hidden_dim": 64})
    with pytest.raises(UserError, match=r"ti8.npz' does not fit this model: it is Mixer-.*, the model is Mixer-.*x64/"):
        preflight.with_width_of_weights(other)
    given = small(**{"init_from": "nowhere.npz", "model.tokens_mlp_dim": 32})
    assert preflight.with_width_of_weights(given) is given
    vit = {**dict.fromkeys(("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")), "variant": "ViT-Ti/8"}
    vit = small(init_from="no.npz", **{f"model.{name}": value for name, value in vit.items()})
    assert preflight.with_width_of_weights(vit) is vit  # no width of theirs is needed
    lost = small(**{"init_from": str(tmp_path / "no.npz"), "model.tokens_mlp_dim": None})
    with pytest.raises(UserError, match=r"no.npz.*without these weights, give --config.model.tokens_mlp_dim=N"):
        preflight.with_width_of_weights(lost)


def run(*arguments):
    return commands.run("mixer.preflight", *arguments)


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
            ["--config=configs/b16_i1k.py", "--topology=v3:2x2", "--num_classes=3"],
            "error: --num_classes would not be read for train[:99%] of imagenet2012, which this command knows; leave",
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
    with pytest.raises(UserError, match="v3:2x2: libtpu is missing: run make install-preflight"):
        tpu_topology.mesh_of("v3:2x2")
