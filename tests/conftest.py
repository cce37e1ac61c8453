"""Every test sees eight virtual CPU devices, no rank promotion, and TensorFlow without its start-up chatter."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import pathlib

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# A busy machine is no reason to fail, and a failure should be the same when it is looked into.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real images that may lie beside the checkout; tests that need them skip where they do not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real images in {SHARED_DATA}")
    return SHARED_DATA
