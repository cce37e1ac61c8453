"""The table of chips, and the peak that is measured where the table has no entry."""

import jax
import jax.numpy as jnp
import pytest

from mixer.performance import chips, tpu_topology


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v3", 61.5),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v5e", 197),
        ("TPU v6e", 918),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_chips_by_the_name_that_jax_gives_them(kind, tera):
    assert chips.find(kind).bfloat16 / 1e12 == pytest.approx(tera)


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 156),
        ("NVIDIA L4", 121, 60),
        ("NVIDIA L40", 181.05, 90.5),
        ("NVIDIA L40S", 362.05, 183),
        ("NVIDIA H100 80GB HBM3", 989, 494),
        ("NVIDIA H100 NVL", 835.5, 417.5),
        ("NVIDIA H100 PCIe", 756, 378),
        ("NVIDIA H200", 989, 494),
        ("NVIDIA H200 NVL", 835.5, 417.5),
        ("Tesla V100-SXM2-16GB", 15.7, 15.7),
        ("Tesla V100-PCIE-16GB", 14, 14),
        ("Tesla V100S-PCIE-32GB", 16.4, 16.4),
        ("Tesla T4", 8.1, 8.1),
    ],
)
def test_gpus_by_the_name_that_their_driver_gives_them(kind, bfloat16, float32):
    found = chips.find(kind)
    assert (found.bfloat16 / 1e12, found.float32 / 1e12) == pytest.approx((bfloat16, float32))


@pytest.mark.parametrize(
    "kind", ["cpu", "TPU v4 lite", "TPU v9", "NVIDIA L400", "NVIDIA A100X", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"]
)
def test_a_relative_of_a_chip_is_not_that_chip(kind):
    """No utilisation is told of it."""
    assert chips.find(kind) is None


def test_a_longer_name_comes_before_its_beginning():
    names = list(chips.CHIPS)
    for i, name in enumerate(names):
        assert not any(name.startswith((f"{earlier} ", f"{earlier}-")) for earlier in names[:i]), name


def test_every_topology_has_a_chip():
    assert set(tpu_topology.KINDS.values()) <= chips.CHIPS.keys()


def test_a_measured_peak_is_plausible():
    found = chips.measured_peak(jnp.dtype("float32"), products=1, attempts=2)
    assert 1e9 < found < 1e13  # from one core of an old laptop to a large server
    assert jax.devices()[0].platform == "cpu"
