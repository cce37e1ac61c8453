"""The meshes of these tests."""

import jax
import pytest

from mixer.runtime import devices


@pytest.fixture(scope="session")
def mesh():
    """A mesh of all eight virtual devices."""
    return devices.make_mesh()


@pytest.fixture(scope="session")
def one_device():
    """A mesh of one device."""
    return devices.make_mesh(jax.devices()[:1])
