"""The real step of a paper config, compiled for a TPU v3 slice that is not there (`make test-all` has the libtpu)."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra preflight (libtpu)"),
]

# In a process of its own: libtpu takes a lock for as long as its process lives.
COMPILE = """
import json, re, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from configs import b16_i21k
from mixer import models
from mixer.training import optimizer, sharding
from mixer.training.step import init_state, make_train_step

mesh = sharding.make_mesh(list(topologies.get_topology_desc(platform="tpu", topology_name="v3:2x2").devices))
config = b16_i21k.get_config()
config.batch_size, config.sharding = 64 * mesh.size, sys.argv[1]
model = models.create(num_classes=21843, **config.model)
schedule = optimizer.make_schedule(config.optimizer, 10_000, 1_000_000)
tx = optimizer.make_optimizer(config.optimizer, schedule)
state = jax.eval_shape(lambda: init_state(model, tx, config, 7))
place = sharding.state_sharding(state, mesh, config.sharding)
rows = lambda kind, *shape: jax.ShapeDtypeStruct((config.batch_size, *shape), kind)
batch = {"image": rows(jnp.uint8, 224, 224, 3), "labels": rows(jnp.int32, 1),
         "weight": rows(jnp.float32), "status": rows(jnp.int32)}
step = jax.jit(make_train_step(model, tx, schedule, config), in_shardings=(place, sharding.batch_sharding(mesh)),
               out_shardings=(place, sharding.replicated(mesh)), donate_argnums=0)
compiled = step.lower(state, batch).compile()
memory = compiled.memory_analysis()
operations = re.findall(r"= \\S+ ([a-z]+-[a-z-]+?)(?:-start)?\\(", compiled.as_text())
print("result", json.dumps({
    "flops": compiled.cost_analysis()["flops"], "temporaries": memory.temp_size_in_bytes,
    "arguments": memory.argument_size_in_bytes,
    "collectives": sorted({name for name in operations if re.match("all|collective-p|reduce-s", name)}),
}))
"""


def compiled(sharding: str) -> dict:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, sharding], env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("result "))[7:])


def test_b16_i21k_compiles_for_v3_data_parallel():
    result = compiled("data_parallel")
    # 6 x 12.6 GMAC an image, and the 21,843-way head; 64 images a core.
    assert result["flops"] == pytest.approx(64 * 6 * (12_602e6 + 768 * 20_843), rel=0.03)
    assert result["temporaries"] < 2.2e9
    assert result["arguments"] == pytest.approx(3 * 4 * 75.9e6 + 64 * 224 * 224 * 3, rel=0.02)  # parameters and moments
    assert result["collectives"] == ["all-reduce"]  # the gradients' and the metrics', none for mixup


def test_b16_i21k_fully_sharded_holds_an_eighth_of_the_state():
    result = compiled("fully_sharded")
    assert result["arguments"] < 0.2 * (3 * 4 * 75.9e6) + 64 * 224 * 224 * 3
