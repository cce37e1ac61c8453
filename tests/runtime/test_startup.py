"""Memory that a step frees is there for the next, and what was compiled is there for the next process."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(code: str, **environment: str) -> list[str]:
    """Runs Python code in a process of its own; returns the lines it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


FAULTS = """
import resource
from mixer import startup
import jax, jax.numpy as jnp
if {keep}:
    cpu.keep_freed_memory()
step = jax.jit(lambda x: jnp.tanh(x @ x.T))
x = jnp.ones((4096, 256))  # of which the step makes 64 MiB or more
for _ in range(16):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    step(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 16)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_steps_leave_each_other_their_memory():
    (without,), (kept,) = run(FAULTS.format(keep=False)), run(FAULTS.format(keep=True))
    assert int(without) > 4000  # pages in each step
    assert int(kept) < int(without) / 4  # now and then a block still has to be found


COMPILED = """
from mixer import startup
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
compilation_cache.keep_compiled({folder!r})
jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(5)).block_until_ready()
print(len(hits))
"""


def test_what_was_compiled_is_not_compiled_again(tmp_path):
    folder = tmp_path / "compiled"
    (first,), (second,) = (run(COMPILED.format(folder=str(folder))) for _ in range(2))
    assert int(first) == 0
    assert int(second) > 0
    assert list(folder.iterdir())


def test_the_folder_of_jax_s_own_variable_is_kept_to(tmp_path):
    run(COMPILED.format(folder=str(tmp_path / "compiled")), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert not (tmp_path / "compiled").exists()


RESTART = """
import jax
from mixer import startup
from mixer.runtime import devices
from mixer.training.checkpoint import Checkpoints
from tests.training.test_checkpoint import make_state, placed

compilation_cache.keep_compiled({folder!r} + "/compiled")
state, shapes, shardings = placed(make_state(3), devices.make_mesh(), "data_parallel")
checkpoints = Checkpoints({folder!r}, 1, 0, 0)
asked = []
jax.monitoring.register_event_listener(lambda event, **_: asked.append(event))
restored = checkpoints.restore(shapes, shardings)
print(restored is not None, *(sum(event.endswith(kind) for event in asked) for kind in ("cache_hits", "cache_misses")))
if restored is None:
    checkpoints.save(state, {{}})
checkpoints.close()
"""


def test_restoring_compiles_what_saving_has_compiled_already(tmp_path):
    (first,), (second,) = (run(RESTART.format(folder=str(tmp_path))) for _ in range(2))
    assert first == "False 0 0"
    assert second == "True 1 0"  # the checksums
