"""The CPU's tricks: they save time, change no result, and leave other devices alone."""

import sys
import types
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_python import run_python

from mixer import models
from mixer.runtime import cpu, devices

FAULTS = """
import resource
from mixer.runtime import cpu
import jax, jax.numpy as jnp
if {keep}:
    cpu.keep_freed_memory()
step = jax.jit(lambda x: jnp.tanh(x @ x.T))
x = jnp.ones((4096, 16))  # the step allocates 64 MiB or more
for _ in range(16):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    step(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 16)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is a function of glibc")
def test_a_step_reuses_the_memory_of_the_step_before():
    (without,), (kept,) = run_python(FAULTS.format(keep=False)), run_python(FAULTS.format(keep=True))
    assert int(without) > 4000  # page faults in each step
    assert int(kept) < int(without) / 4  # now and then malloc still needs a new block


PLUGIN = "jax_plugins/other/__init__.py", ""
ENTRY_POINT = "other-1.dist-info/entry_points.txt", "[jax_plugins]\nother = other_plugin\n"


@pytest.mark.parametrize(
    ("installed", "variables", "expected"),
    [
        (None, {}, True),
        (None, {"JAX_PLATFORMS": "cpu"}, True),
        (None, {"JAX_PLATFORMS": "tpu,cpu"}, False),
        (None, {"TPU_LIBRARY_PATH": "libtpu.so"}, False),
        (("libtpu/__init__.py", ""), {}, False),
        (("libtpu/__init__.py", ""), {"JAX_PLATFORMS": "cpu"}, True),
        (PLUGIN, {}, False),
        (PLUGIN, {"JAX_PLATFORMS": "cpu"}, True),
        (ENTRY_POINT, {}, False),
    ],
)
def test_memory_is_kept_where_no_other_device_can_be(installed, variables, expected, monkeypatch, tmp_path):
    if installed:
        file, text = installed
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
    for name in ("JAX_PLATFORMS", "TPU_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options = []
    glibc = types.SimpleNamespace(mallopt=lambda *option: options.append(option))
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: glibc)
    cpu.keep_freed_memory()
    assert bool(options) == expected


@pytest.fixture
def tpu_mesh(monkeypatch):
    """A stand-in for a mesh of TPU devices, which the functions of `cpu` accept without their run-time type check."""
    for name in ("suited", "dtype", "options", "init_options", "_is_cpu"):
        function = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, getattr(function, "__wrapped__", function))
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="tpu")]))


@pytest.mark.parametrize("variant", ["Ti/8", "ViT-Ti/16", "BiT-R50x1"])
def test_other_devices_get_the_model_as_it_is(tpu_mesh, variant):
    model = models.create(variant, 10)
    assert cpu.suited(model, tpu_mesh) is model
    assert cpu.options(model, tpu_mesh) is None
    assert cpu.init_options(tpu_mesh) is None
    assert cpu.dtype("auto", tpu_mesh) == "bfloat16"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("7.0", "float32"), ("7.5", "float32"), ("8.0", "bfloat16"), ("10.0", "bfloat16"), ("gfx942", "bfloat16")],
)
def test_auto_is_bfloat16_where_a_gpu_has_units_for_it(tpu_mesh, capability, expected):
    tpu_mesh.devices[0] = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    assert cpu.dtype("auto", tpu_mesh) == expected
    assert [cpu.dtype(given, tpu_mesh) for given in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("vendor", "flags", "version", "expected"),
    [
        ("AuthenticAMD", "fma avx512_bf16", (0, 12, 0), "bfloat16"),
        ("GenuineIntel", "fma avx512_bf16", (0, 12, 0), "float32"),  # slower: docs/lab/cpu.md
        ("GenuineIntel", "fma avx512_bf16 amx_bf16", (0, 13, 1), "bfloat16"),
        ("AuthenticAMD", "fma avx512_bf16", (0, 11, 9), "float32"),  # it multiplies bfloat16 as float32
        ("AuthenticAMD", "fma avx512f", (0, 12, 0), "float32"),
        (None, None, (0, 12, 0), "float32"),
    ],
)
def test_auto_is_bfloat16_where_a_cpu_and_jax_multiply_it_faster(
    vendor, flags, version, expected, monkeypatch, tmp_path
):
    if vendor is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id\t: {vendor}\nflags : fpu {flags} adx\n")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu.jax, "__version_info__", version)
    mesh = devices.make_mesh()
    assert cpu.dtype("auto", mesh) == expected
    assert [cpu.dtype(given, mesh) for given in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_cpu_devices_get_the_dense_product_where_a_model_has_one():
    mesh = devices.make_mesh()
    assert cpu.suited(models.create("Ti/8", 10), mesh).dot_general is cpu.dense_dot
    rounding = models.create("Ti/8", 10, dtype="bfloat16")
    assert cpu.suited(rounding, mesh).dot_general is cpu.rounded_dot
    assert cpu.options(rounding, mesh) == {"xla_cpu_prefer_vector_width": 512}
    assert cpu.options(models.create("Ti/8", 10), mesh) is None
    without = models.create("BiT-R50x1", 10)
    assert cpu.suited(without, mesh) is without
    assert cpu.init_options(mesh) == {"xla_backend_optimization_level": 1}


def results(product, x, kernel, dx, dkernel):
    """The value of a function of the product, its gradient, and a derivative of the gradient (forward over reverse)."""

    def value(x, kernel):
        return jnp.sum(jnp.sin(product(x, kernel)))

    gradient = jax.grad(value, (0, 1))
    return value(x, kernel), gradient(x, kernel), jax.jvp(gradient, (x, kernel), (dx, dkernel))[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_dense_product_differentiates_in_every_mode_as_matmul_does(compiled):
    rng = np.random.default_rng(1)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(3, 4, 6), (6, 5), (3, 4, 6), (6, 5)]]
    ours, theirs = partial(results, lambda x, kernel: cpu.dense_dot(x, kernel, None)), partial(results, jnp.matmul)
    if compiled:
        ours, theirs = jax.jit(ours), jax.jit(theirs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours(*arrays), theirs(*arrays))


def test_a_model_that_rounds_its_products_is_the_float32_model_within_rounding():
    """Its gradient is as far from float32's as that of the model which also rounds bias and GELU: 1%."""
    rng, mesh = np.random.default_rng(3), devices.make_mesh()
    images, targets = jnp.asarray(rng.normal(size=(4, 16, 16, 3)), jnp.float32), jnp.arange(4)
    exact = models.create("Ti/4", 5, num_blocks=2, hidden_dim=32, tokens_mlp_dim=16, channels_mlp_dim=64)
    params = exact.init(jax.random.key(0), images)["params"]
    params["head"]["kernel"] = jnp.asarray(rng.normal(size=(32, 5)), jnp.float32)

    def gradient(model):
        def loss(params):
            return -jnp.mean(jax.nn.log_softmax(model.apply({"params": params}, images))[jnp.arange(4), targets])

        return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params))])

    expected = gradient(exact)
    plain = exact.clone(dtype=jnp.bfloat16)
    ours = cpu.suited(plain, mesh)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, ours.init(jax.random.key(0), images)["params"]["stem"],
                                     exact.init(jax.random.key(0), images)["params"]["stem"]))  # fmt: skip
    away = [np.linalg.norm(gradient(model) - expected) / np.linalg.norm(expected) for model in (ours, plain)]
    assert 1e-3 < away[0] < 1.2 * away[1] < 0.05


def test_a_dense_layer_takes_the_product():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4, 6)), jnp.float32)
    plain, ours = nn.Dense(5), nn.Dense(5, dot_general=cpu.dense_dot)
    variables = plain.init(jax.random.key(0), x)

    def loss(layer, variables, x):
        return jnp.sum(jnp.sin(layer.apply(variables, x)))

    for found, expected in zip(
        jax.tree.leaves(jax.value_and_grad(partial(loss, ours), (0, 1))(variables, x)),
        jax.tree.leaves(jax.value_and_grad(partial(loss, plain), (0, 1))(variables, x)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
