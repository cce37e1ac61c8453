"""The meshes of these tests."""

import jax
import pytest


@pytest.fixture(scope="session")
def mesh():
    """A mesh of all eight virtual devices."""
    from mixer.runtime import devices  # here, because jaxtyping's import hook is not yet installed above

    return devices.make_mesh()


@pytest.fixture(scope="session")
def one_device():
    """A mesh of one device."""
    from mixer.runtime import devices

    return devices.make_mesh(jax.devices()[:1])
