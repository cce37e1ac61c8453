"""The costs of a text are compared with a count by hand, and those of small programs with known traffic and work."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mixer.performance import compiling, hlo
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
    assert hlo.costs(TEXT).collectives == {
        "all-gather": 64 * 4,
        "all-reduce": 10 * 4 + 4 + 5 * 16 * 4 * 2,  # the one in the loop counts five times, two bytes an element
        "collective-permute": 2 * 4,
    }


# As libtpu writes it: a loop without a known trip count, whose counter grows by 2 until it is 24; gradients that are
# scattered inside a computation of that name; cycles beside instructions; and what the cost model counts as -1 second.
OF_A_TPU = """\
HloModule jit_step

%body.2 (p: (s32[], bf16[64,196,768])) -> (s32[], bf16[64,196,768]) {
  %x.1 = bf16[64,196,768]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %kernel.1 = bf16[768,3072,1]{1,0,2:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=2
  %hidden.1 = bf16[64,196,3072]{2,1,0:T(8,128)(2,1)} convolution(%x.1, %kernel.1), window={size=1}, dim_labels=0bf_io0->0bf, backend_config={"estimated_cycles":"700"}
  %all-reduce.8 = bf16[10]{0:T(256)} all-reduce(%y.1), channel_id=1, to_apply=%add
  %i.1 = s32[]{:T(256)} get-tuple-element(%p), index=0
  %two = s32[]{:T(256)} constant(2)
  %i.2 = s32[]{:T(256)} add(%i.1, %two)
  ROOT %t = (s32[]{:T(256)}, bf16[64,196,768]) tuple(%i.2, %x.1)
}

%cond.2 (p: (s32[], bf16[64,196,768])) -> pred[] {
  %constant.5 = s32[]{:T(256)} constant(24)
  %gte.5 = s32[]{:T(256)} get-tuple-element(%p), index=0
  ROOT %lt.5 = pred[]{:T(1024)} compare(%gte.5, %constant.5), direction=LT
}

%until.2 (p: (f32[1])) -> pred[] {
  %constant.6 = f32[1]{0:T(256)} constant({0})
  %gte.6 = f32[1]{0:T(256)} get-tuple-element(%p), index=0
  ROOT %le.6 = pred[]{:T(1024)} compare(%gte.6, %constant.6), direction=LE
}

%draws (p: (f32[1])) -> (f32[1]) {
  %drawn = f32[1]{0:T(256)} fusion(%p), kind=kLoop, calls=%drawing, backend_config={"estimated_cycles":"30"}
  ROOT %t.2 = (f32[1]) tuple(%drawn)
}

%all-reduce-scatter.3 (input_0: f32[4096,512]) -> f32[512,512] {
  %whole = f32[4096,512]{1,0:T(8,128)} all-reduce(%input_0), channel_id=3, to_apply=%add
  ROOT %part = f32[512,512]{1,0:T(8,128)} dynamic-slice(%whole, %offset, %zero), dynamic_slice_sizes={512,512}
}

ENTRY %main (x: bf16[64,196,768]) -> bf16[64,196,768] {
  %x = bf16[64,196,768]{2,1,0:T(8,128)(2,1)} parameter(0)
  %kernel = bf16[768,768,1]{1,0,2:T(8,128)(2,1)S(1)} custom-call(%slice.1, %slice.2), custom_call_target="ConcatBitcast"
  %image = bf16[64,196,768]{2,1,0:T(8,128)(2,1)} convolution(%x, %kernel), window={size=1}, dim_labels=0bf_io0->0bf, backend_config={"estimated_cycles":"300"}
  %bits = (u64[2]{0}, u32[64]{0}) rng-bit-generator(%key), algorithm=rng_default
  %long = u64[2]{0} custom-call(%low, %high), custom_call_target="X64Combine"
  %buffer = f32[8]{0:T(256)} custom-call(), custom_call_target="AllocateBuffer"
  %while.1 = (s32[], bf16[64,196,768]) while(%init), condition=%cond.2, body=%body.2
  %while.2 = (f32[1]) while(%start), condition=%until.2, body=%draws
  %gradient = f32[512,512]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %out = bf16[64,196,768]{2,1,0:T(8,128)(2,1)} copy(%image)
}
"""  # noqa: E501


def test_a_program_of_a_tpu_counted_by_hand():
    found = hlo.costs(OF_A_TPU)
    assert found.collectives == {"all-reduce": 12 * 10 * 2, "reduce-scatter": 4096 * 512 * 4}
    assert found.cycles == 300 + 12 * 700 + 30  # a loop until something happens counts once
    assert found.repeated_cycles == (300 + 12 * 700 + 30) / (300 + 700 + 30)
    assert found.repeated_work == (768 + 12 * 3072) / (768 + 3072)
    assert found.missing_seconds == 2  # and none for the buffer and the bits


# Convolutions of a ViT-S/16 on a v3, 64 images a core, and what each multiplies: [batch, heads, rows, inner, columns].
# Images and heads are axes of a window, of which one tap meets an element.
@pytest.mark.parametrize(
    ("written", "multiplies"),
    [
        (
            "bf16[64,6,196,196] convolution(bf16[64,6,64,196] %q, bf16[64,6,64,196] %k), "
            "window={size=64x6 stride=63x5 lhs_dilate=64x6}, dim_labels=01fb_01io->01bf",
            64 * 6 * 196 * 64 * 196,
        ),
        (
            "bf16[64,6,196,64] convolution(bf16[64,1,384,196] %x, bf16[1,6,384,64] %w), "
            "window={size=1x6 pad=0_0x5_5 rhs_reversal=0x1}, dim_labels=01fb_01io->01bf",
            64 * 6 * 196 * 384 * 64,
        ),
        (  # the sum over heads is over taps that all meet an element
            "bf16[64,1,196,384] convolution(bf16[64,6,64,196] %x, bf16[1,6,64,384] %w), "
            "window={size=1x6}, dim_labels=01fb_01io->01bf",
            64 * 6 * 196 * 64 * 384,
        ),
        (  # the gradient of a stem: its taps are as far from each other as patches
            "bf16[16,16,3,384] convolution(bf16[64,224,224,3] %x, bf16[64,14,14,384] %g), "
            "window={size=14x14 rhs_dilate=16x16}, dim_labels=f01b_i01o->01bf",
            64 * 16 * 16 * 3 * 14 * 14 * 384,
        ),
        (  # three taps, of which one at each end meets padding
            "f32[2,8,5] convolution(f32[2,8,4] %x, f32[3,4,5] %w), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * (8 * 3 - 2) * 4 * 5,
        ),
        ("f32[2,5] convolution(f32[2,4] %x, f32[4,5] %w), dim_labels=bf_io->bf", 2 * 4 * 5),
    ],
)
def test_only_taps_that_meet_an_element_are_work(written, multiplies):
    result, operands = written.split(" convolution(")
    first, second = operands.split(")")[0].split(", ")
    types = [operand.split(" ")[0] for operand in (first, second)]
    assert hlo._product_flops(written, "convolution", result, types) == 2 * multiplies


@pytest.mark.parametrize(
    ("optimal_seconds", "missing", "cycles", "repeated", "expected"),
    [
        (0.0166, 0, 20_856_384, 1.0, 0.0166),  # v3, as it was compiled
        (-20.9966, 21, 6_817_946, 1.0, 0.0034),  # v6e
        (-13.99835, 14, 5_814_621, 1.0, 0.00165),  # tpu7x
        (0.014279, 0, 67_120_346, 3.680687, 0.014279 * 3.680687),  # a loop on v3
        (-20.9966, 20, 6_817_946, 1.0, None),  # something else is missing: no estimate
        (-20.9966, 22, 6_817_946, 1.0, None),  # one too many would be a second of 7 MHz
        (0.5, 0, 0, 1.0, 0.5),  # no cycles to compare with
        (0.0, 0, 0, 1.0, None),  # a CPU
    ],
)
def test_seconds_that_the_cost_model_misses(optimal_seconds, missing, cycles, repeated, expected):
    in_text = hlo.Costs({}, cycles, 1.0, repeated, missing)
    found = compiling.estimated_seconds(optimal_seconds, in_text)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-2))


def test_the_work_of_a_loop_is_that_of_its_blocks_written_out():
    """XLA's cost analysis has one of the five products of the loop."""

    def looped(x, kernels):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

    def written_out(x, kernels):
        for i in range(5):
            x = x @ kernels[i]
        return x

    shapes = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
    loop, plain = (compiling.compile_step(jax.jit(step), *shapes) for step in (looped, written_out))
    assert plain.flops == pytest.approx(5 * 2 * 8 * 16 * 16)
    assert loop.flops == pytest.approx(plain.flops, rel=0.02)


def test_what_is_scattered_counts_as_a_whole(mesh):
    """8 devices add [8, 16] and each keeps a row: 512 bytes are scattered."""
    scattered = jax.shard_map(
        lambda x: jax.lax.psum_scatter(x, "data", tiled=True), mesh=mesh, in_specs=PartitionSpec(),
        out_specs=PartitionSpec("data"), check_vma=False,
    )  # fmt: skip
    array = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=devices.replicated(mesh))
    text = jax.jit(scattered).lower(array).compile().as_text()
    assert hlo.costs(text).collectives == {"reduce-scatter": 8 * 16 * 4}


def compiled(function, spec, mesh):
    out = jax.sharding.NamedSharding(mesh, spec)
    rows = jax.ShapeDtypeStruct((16, 6), jnp.float32, sharding=devices.batch_sharding(mesh))
    return hlo.costs(jax.jit(function, out_shardings=out).lower(rows).compile().as_text()).collectives


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
