"""Muon: optax's, on one device; and the work that devices share. Its formula: test_optimizer.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from mixer.training import muon, sharding

EPSILON = 1e-8


def kernels(**shapes):
    """Random gradients of kernels, by the path of each."""
    rng = np.random.default_rng(0)
    return {
        name: {"kernel": jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32)} for name, shape in shapes.items()
    }  # fmt: skip


# 12 of one shape, some transposed: eight devices share them as 4 x 2. 3 and 1: as 1 x 8, which does not divide columns.
TWELVE = {f"wide{i}": (16, 40) for i in range(5)} | {f"tall{i}": (40, 16) for i in range(7)}
MATRICES = kernels(**TWELVE, token_mixing=(3, 24, 30), head=(16, 10))


def directions(gradients, mesh, steps=3):
    tx = muon.scale_by_muon(EPSILON, mesh)
    state, update = tx.init(gradients), jax.jit(tx.update)
    for step in range(steps):
        found, state = update(jax.tree.map(lambda leaf: jnp.cos(100 * (step + 1) * leaf), gradients), state)  # noqa: B023
    return found


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


def test_five_iterations_bring_singular_values_near_one():
    x = np.linspace(0.01, 1, 100_001)
    a, b, c = muon._NEWTON_SCHULZ
    for _ in range(muon._ITERATIONS):
        x = a * x + b * x**3 + c * x**5
    assert (round(x.min(), 2), round(x.max(), 2)) == (0.68, 1.13)


def test_one_device_computes_what_optaxs_muon_computes(one_device):
    """A stack of matrices lies in token mixing."""
    axes = {name: {"kernel": optax.contrib.MuonDimensionNumbers(-2, -1)} for name in MATRICES}
    theirs = optax.contrib.muon(-1.0, eps=EPSILON, consistent_rms=0.2, muon_weight_dimension_numbers=axes)
    state, update = theirs.init(MATRICES), jax.jit(theirs.update)
    for step in range(3):
        gradients = jax.tree.map(lambda leaf: jnp.cos(100 * (step + 1) * leaf), MATRICES)  # noqa: B023
        expected, state = update(gradients, state, MATRICES)
    assert_close(directions(MATRICES, one_device), expected)


@pytest.mark.parametrize("kind", sharding.SHARDINGS)
def test_eight_devices_compute_what_one_computes(mesh, one_device, monkeypatch, kind):
    monkeypatch.setattr(sharding, "_SMALLEST_SHARDED", 0)
    monkeypatch.setattr(muon, "_WORTH_SHARING", 0)
    placed = jax.device_put(MATRICES, sharding.state_sharding(jax.eval_shape(lambda: MATRICES), mesh, kind))
    assert_close(directions(placed, mesh), directions(MATRICES, one_device))


def test_eight_devices_share_the_work(mesh, one_device):
    gradients = kernels(**{f"wide{i}": (64, 256) for i in range(12)}, **{f"tall{i}": (256, 64) for i in range(12)})

    def operations(of):
        tx = muon.scale_by_muon(EPSILON, of)
        compiled = jax.jit(tx.update).lower(gradients, tx.init(gradients)).compile()
        return compiled.cost_analysis()["flops"]

    products = 24 * 5 * 2 * (2 * 64 * 64 * 256 + 64**3)  # of all matrices
    assert operations(one_device) == pytest.approx(products, rel=0.05)
    assert operations(mesh) < operations(one_device) / 5
