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
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_chips_by_the_name_that_jax_gives_them(kind, tera):
    assert chips.find(kind).bfloat16 / 1e12 == pytest.approx(tera)


def test_a_longer_name_comes_before_its_beginning():
    names = list(chips.CHIPS)
    for i, name in enumerate(names):
        assert not any(name.startswith(earlier) for earlier in names[:i]), name
    assert chips.find("NVIDIA A100-SXM4-80GB").bfloat16 == 312e12
    assert chips.find("NVIDIA H200").bfloat16 == 989e12
    assert chips.find("cpu") is None


def test_every_topology_has_a_chip():
    assert set(tpu_topology.KINDS.values()) <= chips.CHIPS.keys()


def test_a_measured_peak_is_plausible():
    found = chips.measured_peak(jnp.dtype("float32"), products=1, attempts=2)
    assert 1e9 < found < 1e13  # from one core of an old laptop to a large server
    assert jax.devices()[0].platform == "cpu"
