"""BiT against published counts, the traced program and an independent float64 NumPy ResNet-v2."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import shapes_of

from mixer import models
from mixer.models.bit import UNITS, BiT, StandardisedConv

# With 1000 classes, as timm 1.0.31 counts them. R152x1 is not among its BiT models: it is torchvision's ResNet-152
# (60,192,808) less the 7,680 parameters by which every ResNet's norms (v1) outnumber those of its v2. R200x1 is timm's
# resnet200 (64,673,832) less as many, and R26x1 its resnet26 (15,995,176). R200x3, R14x0.5 and R26x0.5 are the sum over
# layers below alone.
PARAMETERS = {
    "R14x0.5": 3_032_328,
    "R26x0.5": 4_517_768,
    "R26x1": 15_987_496,
    "R50x1": 25_549_352,
    "R101x1": 44_541_480,
    "R152x1": 60_185_128,
    "R152x2": 236_335_208,
    "R152x4": 936_533_224,
    "R200x1": 64_666_152,
    "R200x3": 568_633_000,
}
GMAC = {  # of timm's benchmark-infer-amp-nchw-pt113-cu117-rtx3090.csv: image size, GMAC
    "R50x1": (448, 16.62), "R152x2": (224, 46.95), "R50x3": (448, 145.70),
}  # fmt: skip


def parameters_by_hand(units, width, num_classes):
    """Adds up layer by layer what the paper describes; a norm has a scale and a bias for each channel."""
    channels = 64 * width
    total = 7 * 7 * 3 * channels
    for features, count in zip((256 * width, 512 * width, 1024 * width, 2048 * width), units, strict=True):
        narrow = features // 4
        rest = 2 * narrow + 9 * narrow**2 + 2 * narrow + narrow * features  # norm, 3x3, norm, 1x1
        total += 2 * channels + channels * narrow + rest + channels * features  # the first unit has a projection
        total += (count - 1) * (2 * features + features * narrow + rest)
        channels = features
    return total + 2 * channels + channels * num_classes + num_classes


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts_are_the_published_ones(variant):
    model = models.create(f"BiT-{variant}", 1000)
    assert parameters_by_hand(model.units, model.width, 1000) == PARAMETERS[variant]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model))) == PARAMETERS[variant]


@cache
def traced(variant, size):
    """The convolutions of a forward pass (image side, kernel, stride, padding, output) and how much the norms see."""
    model = models.create(f"BiT-{variant}", 1000)

    def forward(params, images):
        norms = lambda module, _: isinstance(module, nn.GroupNorm)  # noqa: E731
        return model.apply({"params": params}, images, capture_intermediates=norms)  # and what the norms gave

    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    jaxpr, outputs = jax.make_jaxpr(forward, return_shape=True)(shapes_of(model), image)
    convolutions = [
        (images.aval.shape[1], kernel.aval.shape, eqn.params["window_strides"][0], eqn.params["padding"][0], out)
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "conv_general_dilated"
        for images, kernel in [eqn.invars]
        for out in [eqn.outvars[0].aval.shape]
    ]
    assert len(convolutions) == 1 + 3 * sum(model.units) + 4  # root, units, projections
    return model, convolutions, sum(leaf.size for leaf in jax.tree.leaves(outputs[1]["intermediates"]))


def macs_with_padding(model, convolutions):
    head = 2048 * model.width * model.num_classes
    return head + sum(int(np.prod(kernel[:3]) * np.prod(out)) for _, kernel, _, _, out in convolutions)


@pytest.mark.parametrize("variant", GMAC)
def test_macs_with_padding_are_the_published_ones(variant):
    """To the last digit: timm's count also has five for each normalised activation and four for each weight."""
    size, published = GMAC[variant]
    model, convolutions, normalised = traced(variant, size)
    weights = sum(int(np.prod(kernel)) for _, kernel, _, _, _ in convolutions)
    assert round((macs_with_padding(model, convolutions) + 5 * normalised + 4 * weights) / 1e9, 2) == published


def test_macs_of_r50x1_at_224_are_the_published_4_1_billion():
    model, convolutions, _ = traced("R50x1", 224)
    assert round(macs_with_padding(model, convolutions) / 1e9, 1) == 4.1
    assert macs_with_padding(model, convolutions) / model.forward_macs(224) == pytest.approx(1.036, abs=5e-4)


@pytest.mark.parametrize("size", [224, 37, 1])
def test_macs_leave_out_exactly_the_products_with_padding(size):
    model, convolutions, _ = traced("R50x1", size)
    expected = 2048 * 1000
    for side, (taps, _, inputs, outputs), stride, padding, out in convolutions:
        pixels = np.pad(np.ones(side, int), padding)
        products = sum(pixels[row * stride : row * stride + taps].sum() for row in range(out[1]))
        expected += int(products) ** 2 * inputs * outputs
    assert model.forward_macs(size) == expected


def test_macs_agree_with_the_compiler():
    model = models.create("BiT-R50x1", 1000)
    image = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
    cost: Any = jax.jit(model.apply).lower({"params": shapes_of(model)}, image).cost_analysis()
    # The rest is norms and standardisation; with padding the count would be 2.4% too high.
    assert cost["flops"] == pytest.approx(8 * 2 * model.forward_macs(224), rel=0.02)


def test_names_and_shapes_follow_the_published_structure():
    shapes = jax.tree.map(lambda leaf: leaf.shape, shapes_of(BiT(10, (2, 1, 1, 1), 3), 32))
    assert set(shapes) == {
        "root", "block1_unit1", "block1_unit2", "block2_unit1", "block3_unit1", "block4_unit1", "pre_head_norm", "head"
    }  # fmt: skip
    norm = lambda width: {"scale": (width,), "bias": (width,)}  # noqa: E731
    unit = {
        "norm_a": norm(768), "conv_a": {"kernel": (1, 1, 768, 192)},
        "norm_b": norm(192), "conv_b": {"kernel": (3, 3, 192, 192)},
        "norm_c": norm(192), "conv_c": {"kernel": (1, 1, 192, 768)},
    }  # fmt: skip
    assert shapes["block1_unit2"] == unit
    assert shapes["block2_unit1"]["projection"] == {"kernel": (1, 1, 768, 1536)}
    assert shapes["root"] == {"kernel": (7, 7, 3, 192)}
    assert shapes["head"] == {"kernel": (6144, 10), "bias": (10,)}


def numpy_conv(x, kernel, stride=1):
    """Each output channel's weights standardised, then the taps one by one over a padded image."""
    mean, variance = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2))
    kernel, taps = (kernel - mean) / np.sqrt(variance + 1e-10), kernel.shape[0]
    pad = {1: 0, 3: 1, 7: 3}[taps]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = ((side - taps) // stride + 1 for side in x.shape[1:3])
    return sum(
        x[:, i : i + stride * rows : stride, j : j + stride * columns : stride][:, :rows, :columns] @ kernel[i, j]
        for i in range(taps)
        for j in range(taps)
    )


def numpy_norm_relu(x, q):
    groups = x.reshape(*x.shape[:3], 32, -1)
    mean, variance = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
    x = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    return np.maximum(x * q["scale"] + q["bias"], 0)


def numpy_bit(params, images, units):
    """The published structure in float64; params' leaves are float64 already."""
    x = numpy_conv(images, params["root"]["kernel"], 2)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = ((side - 3) // 2 + 1 for side in x.shape[1:3])
    shifted = [x[:, i::2, j::2][:, :rows, :columns] for i in range(3) for j in range(3)]
    x = np.max(shifted, axis=0)
    for block, count in enumerate(units, start=1):
        for unit in range(1, count + 1):
            q, stride = params[f"block{block}_unit{unit}"], 2 if unit == 1 and block in (2, 3, 4) else 1
            y = numpy_norm_relu(x, q["norm_a"])
            shortcut = numpy_conv(y, q["projection"]["kernel"], stride) if unit == 1 else x
            y = numpy_norm_relu(numpy_conv(y, q["conv_a"]["kernel"]), q["norm_b"])
            y = numpy_norm_relu(numpy_conv(y, q["conv_b"]["kernel"], stride), q["norm_c"])
            x = shortcut + numpy_conv(y, q["conv_c"]["kernel"])
    x = numpy_norm_relu(x, params["pre_head_norm"]).mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"]


TINY = (2, 1, 1, 1)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 37, 50, 3)), jnp.float32)


@cache
def random_params(units=TINY):
    """Parameters without zeros or ones, kernels with a mean: the head starts at zero and would hide the rest."""
    shapes, rng = shapes_of(BiT(7, units, 1), 32), np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.2, 0.3, leaf.shape), jnp.float32), shapes)


@cache
def forward(dtype):
    return jax.jit(lambda params, images: BiT(7, TINY, 1, dtype=dtype).apply({"params": params}, images))


# Pixels of 3e-4 leave the root with a variance near the norm's epsilon.
@pytest.mark.parametrize("scale", [1.0, 3e-4])
def test_equals_a_float64_resnet(scale):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_params())
    images = scale * IMAGES
    expected = numpy_bit(params, np.asarray(images, np.float64), TINY)
    np.testing.assert_allclose(forward(jnp.float32)(random_params(), images), expected, rtol=2e-4, atol=2e-4)


def test_half_the_width_equals_float64():
    model, images = BiT(7, TINY, 0.5), np.asarray(IMAGES, np.float64)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: rng.normal(0.2, 0.3, leaf.shape), shapes_of(model, 32))
    assert params["head"]["kernel"].shape == (1024, 7)
    found = jax.jit(model.apply)({"params": jax.tree.map(jnp.float32, params)}, IMAGES)
    np.testing.assert_allclose(found, numpy_bit(params, images, TINY), rtol=2e-4, atol=2e-4)


# Weights of 1e-5 have the variance of the standardisation's epsilon.
@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize(("taps", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_a_standardised_convolution_equals_float64(taps, stride, scale):
    rng = np.random.default_rng(2)
    kernel = jnp.asarray(scale * rng.normal(0.5, 1, (taps, taps, 4, 5)), jnp.float32)
    x = jnp.asarray(rng.normal(0, 1, (2, 8, 9, 4)), jnp.float32)
    ours: Any = StandardisedConv(5, taps, stride).apply({"params": {"kernel": kernel}}, x)
    expected = numpy_conv(np.asarray(x, np.float64), np.asarray(kernel, np.float64), stride)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(BiT(7, TINY, 1, dtype=jnp.bfloat16), 32))} == {
        jnp.dtype("float32")
    }
    logits, exact = (forward(dtype)(random_params(), IMAGES) for dtype in (jnp.bfloat16, jnp.float32))
    assert logits.dtype == jnp.float32
    assert 0 < float(jnp.max(jnp.abs(logits - exact))) < 0.05 * float(jnp.max(jnp.abs(exact)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_gradients_are_finite_and_reach_every_parameter(dtype):
    units = (1, 1)  # all kinds of layers; the others would double the time to compile
    model = BiT(7, units, 1, dtype=dtype)

    def loss(params):
        logits: Any = model.apply({"params": params}, IMAGES, train=True)
        return jnp.mean(logits**2)

    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(random_params(units))):
        assert gradient.dtype == jnp.float32
        assert 0 < float(jnp.linalg.norm(gradient)) < np.inf, jax.tree_util.keystr(path)


def test_a_fresh_model_predicts_its_head_bias_and_without_a_head_gives_the_mean_over_pixels():
    model = BiT(5, (1,), 1, head_bias_init=-6.9)
    np.testing.assert_allclose(jax.jit(model.init_with_output)(jax.random.key(0), IMAGES)[0], -6.9)
    headless = models.create("BiT-R50x2", 0, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(headless.init, jax.random.key(0), IMAGES)
    assert "head" not in shapes["params"]
    output = jax.eval_shape(headless.apply, shapes, IMAGES)
    assert (output.shape, output.dtype) == ((2, 4096), jnp.float32)


def test_depths_are_those_of_their_names():
    for depth, units in UNITS.items():
        assert 3 * sum(units) + 2 == depth
