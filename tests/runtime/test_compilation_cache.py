"""A program that one process compiles is not compiled again by the next process."""

import pytest
from run_python import run_python

COMPILED = """
from mixer.runtime import compilation_cache
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
compilation_cache.keep_compiled({folder!r})
jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(5)).block_until_ready()
print(len(hits))
"""


def test_the_next_process_finds_the_compiled_program(tmp_path):
    folder = tmp_path / "compiled"
    (first,), (second,) = (run_python(COMPILED.format(folder=str(folder))) for _ in range(2))
    assert int(first) == 0
    assert int(second) > 0
    assert list(folder.iterdir())


def test_the_folder_of_jax_s_own_variable_wins(tmp_path):
    run_python(COMPILED.format(folder=str(tmp_path / "compiled")), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert (tmp_path / "own").is_dir()
    assert not (tmp_path / "compiled").exists()


REMOTE = """
import jax
from mixer.runtime import compilation_cache
compilation_cache.keep_compiled({folder!r})
print(jax.config.jax_persistent_cache_enable_xla_caches)
"""


@pytest.mark.parametrize(
    ("folder", "own", "kept"),
    [
        ("gs://bucket/run/compiled", "", "none"),
        ("compiled", "gs://bucket/own", "none"),
        ("compiled", "", "xla_gpu_per_fusion_autotune_cache_dir"),
    ],
)
def test_xla_keeps_nothing_in_a_bucket(folder, own, kept):
    """It cannot write there."""
    assert run_python(REMOTE.format(folder=folder), JAX_COMPILATION_CACHE_DIR=own) == [kept]


RESTART = """
import jax
from mixer.runtime import compilation_cache, devices
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


def test_restoring_uses_the_program_that_saving_compiled(tmp_path):
    (first,), (second,) = (run_python(RESTART.format(folder=str(tmp_path))) for _ in range(2))
    assert first == "False 0 0"
    assert second == "True 1 0"  # the one program computes the checksums
