"""Every test sees eight virtual CPU devices, no rank promotion, and TensorFlow without its start-up chatter.

Half of their time was compiling the same small programs. What one test has compiled is therefore there for all, and
pytest-xdist's workers inherit the folder from the process that started them; and LLVM does not optimise (a third of the
time of tests/training and tests/models). jaxlib up to 0.10 can compile fusions in an old way that takes half the time.
Commands whose bits are compared with a test's own run are compiled so too.
"""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"

import jaxlib.version

if jaxlib.version.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

import pathlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import beartype  # noqa: F401 (as the libraries below)
import hypothesis
import jax
import pytest
from etils.epy import lazy_imports_utils

from mixer.runtime import environment

environment.prepare()

# What a module of ours imports while jaxtyping's hook loads it is compiled from source, all of TensorFlow too
# (findings/jaxtyping_hook_recompiles.sh). A worker of xdist needs the libraries anyway.
if "PYTEST_XDIST_WORKER" in os.environ:
    import tests.libraries  # noqa: F401

if TYPE_CHECKING:
    from tests.bucket.fake_bucket import FakeBucket

jax.config.update("jax_numpy_rank_promotion", "raise")

# If the tests are started in the background or by nohup, these signals are ignored, and the commands that the tests
# interrupt would ignore them too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine is no reason to fail, and a failure should be the same when it is looked into.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def _setattr(self: pytest.MonkeyPatch, target: object, *name_and_value: Any, **raising: bool) -> None:
    """As pytest's, but not of a lazily imported module, which loses the attribute when the test ends.

    `findings/lazy_imports_patch.sh` shows it. A later test then fails, or none, by their order.
    """
    assert not isinstance(target, lazy_imports_utils.LazyModule), "import the module itself, and patch that"
    _SETATTR(self, target, *name_and_value, **raising)


_SETATTR = pytest.MonkeyPatch.setattr
pytest.MonkeyPatch.setattr = _setattr  # type: ignore[method-assign]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest test, so that no worker waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_learning.py")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real images that may lie beside the checkout; tests that need them skip where they do not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real images in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def mesh() -> jax.sharding.Mesh:
    """All eight virtual devices."""
    from mixer.runtime import devices  # here, because jaxtyping's import hook is not yet installed above

    return devices.make_mesh()


@pytest.fixture(scope="session")
def one_device() -> jax.sharding.Mesh:
    """The first device alone."""
    from mixer.runtime import devices

    return devices.make_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def shared_bucket() -> Iterator["FakeBucket"]:
    """The fake bucket of this session, in a process of its own. Tests take `bucket`."""
    from tests.bucket.fake_bucket import FakeBucket

    with FakeBucket() as started:
        yield started


@pytest.fixture
def bucket(shared_bucket: "FakeBucket") -> "FakeBucket":
    """The fake bucket, empty and without faults."""
    shared_bucket.reset()
    return shared_bucket


@pytest.fixture
def bucket_here(bucket: "FakeBucket") -> Iterator["FakeBucket"]:
    """The fake bucket, which the clients of this process use."""
    from mixer.runtime import bucket as product
    from mixer.runtime import bucket_check

    for cached in (product.client, product.store, bucket_check._check_bucket):
        cached.cache_clear()
    with bucket.here():
        yield bucket


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window; a test that needs it is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: make install-dev")
    if BROWSER is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()
