"""The collectives of a text are compared with a count by hand, and those of small programs with known traffic."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mixer.performance import hlo
from mixer.runtime import devices

TEXT = """\
HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body.1 (p: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {
  %x = bf16[16,4]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all-reduce.7 = bf16[16,4]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=1, to_apply=%add
  ROOT %t = (s32[], f32[16,4]) tuple(%i, %all-reduce.7)
}

%cond.1 (p: (s32[], f32[16,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.9 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %all-gather-start.1 = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), dimensions={0}
  %all-gather-done.1 = f32[64]{0} all-gather-done(%all-gather-start.1)
  %all-reduce-start.2 = (f32[10]{0}, f32[]) all-reduce-start(%y, %z), to_apply=%add
  %all-reduce-done.2 = (f32[10]{0}, f32[]) all-reduce-done(%all-reduce-start.2)
  %permuted = (u32[2]{0}, u32[2]{0}, u32[], u32[]) collective-permute-start(%k), source_target_pairs={{0,1}}
  %while.3 = (s32[]) while(%init), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8]{0} slice(%all-gather-done.1), slice={[0:8]}
}
"""


def test_a_program_counted_by_hand():
    assert hlo.collectives(TEXT) == {
        "all-gather": 64 * 4,
        "all-reduce": 10 * 4 + 4 + 5 * 16 * 4 * 2,  # the one in the loop counts five times, two bytes an element
        "collective-permute": 2 * 4,
    }


def compiled(function, spec, mesh):
    out = jax.sharding.NamedSharding(mesh, spec)
    rows = jax.ShapeDtypeStruct((16, 6), jnp.float32, sharding=devices.batch_sharding(mesh))
    return hlo.collectives(jax.jit(function, out_shardings=out).lower(rows).compile().as_text())


@pytest.mark.parametrize(
    ("function", "spec", "expected"),
    [
        (lambda x: x + 1, PartitionSpec("data"), {}),
        (lambda x: x.sum(0), PartitionSpec(), {"all-reduce": 6 * 4}),
        (lambda x: x + 1, PartitionSpec(), {"all-gather": 16 * 6 * 4}),
        (
            lambda x: jax.lax.fori_loop(0, 7, lambda _, y: jnp.tanh(y + (x + y[None]).sum(0)), jnp.zeros(6)),
            PartitionSpec(), {"all-reduce": 7 * 6 * 4},
        ),
    ],
    ids=["none", "a sum over devices", "gathering", "in a loop"],
)  # fmt: skip
def test_programs_whose_traffic_is_known(function, spec, expected, mesh):
    assert compiled(function, spec, mesh) == expected
