"""What the models share, where no model's own test looks closely enough."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import mlp
from parameters import in_float64, kept, primitives

from mixer.models import layers


class Head(nn.Module):
    dtype: object

    @nn.compact
    def __call__(self, x):
        return layers.head(x, 5, -2.0, self.dtype)


def head_and_gradients(dtype, x, kernel, weights):
    """Logits, and the gradients of their weighted sum with respect to x and the parameters."""
    params = {"head": {"kernel": kernel, "bias": jnp.zeros(5)}}

    def weighed(x, params):
        logits = Head(dtype).apply({"params": params}, x)
        return jnp.sum(logits * weights), logits

    (_, logits), gradients = jax.value_and_grad(weighed, (0, 1), has_aux=True)(x, params)
    return logits, gradients[0], gradients[1]["head"]["kernel"], gradients[1]["head"]["bias"]


def rounded(values):
    return np.asarray(jnp.asarray(values, jnp.bfloat16), np.float64)


@pytest.mark.parametrize(("dtype", "seen"), [(jnp.bfloat16, rounded), (jnp.float32, np.float64)], ids=["bf16", "f32"])
def test_the_head_adds_up_in_float32_what_it_multiplies_in_its_dtype(dtype, seen):
    rng = np.random.default_rng(0)
    x, kernel, weights = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(6, 700), (700, 5), (6, 5)])
    logits, x_gradient, kernel_gradient, bias_gradient = head_and_gradients(dtype, x, kernel, weights)
    assert {a.dtype for a in (logits, x_gradient, kernel_gradient, bias_gradient)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits, seen(x) @ seen(kernel), atol=1e-4)
    np.testing.assert_allclose(x_gradient, seen(weights) @ seen(kernel).T, atol=1e-4)
    np.testing.assert_allclose(kernel_gradient, seen(x).T @ seen(weights), atol=1e-4)
    np.testing.assert_allclose(bias_gradient, np.sum(weights, 0), atol=1e-5)


X = jnp.asarray(np.random.default_rng(2).normal(size=(6, 3, 4)), jnp.float32)


def random_mlp(**options):
    """An MlpBlock and random parameters."""
    block, rng = layers.MlpBlock(5, **options), np.random.default_rng(3)
    shapes = jax.eval_shape(block.init, jax.random.key(0), X, None)["params"]
    return block, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_an_mlp_drops_units_after_both_dense_layers_with_a_key_for_each():
    block, params = random_mlp(dropout=0.4)
    first, second = jax.random.split(jax.random.key(7))
    masks = kept(first, 0.4, (6, 3, 5)), kept(second, 0.4, (6, 3, 4))
    expected = mlp(np.float64(X), in_float64(params), masks)
    ours = block.apply({"params": params}, X, jax.random.key(7))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_an_mlp_drops_nothing_in_evaluation_nor_by_default():
    block, params = random_mlp(dropout=0.4)
    default, _ = random_mlp()
    expected = mlp(np.float64(X), in_float64(params))
    np.testing.assert_allclose(block.apply({"params": params}, X, None), expected, rtol=1e-5, atol=1e-5)
    ours = default.apply({"params": params}, X, jax.random.key(0))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_an_mlp_has_the_initial_values_dtype_and_product_that_it_is_given():
    products = []

    def dot_general(x, kernel, *arguments, **options):
        products.append((x.dtype, kernel.shape))  # it rounds to bfloat16 itself, if it wants to
        return jax.lax.dot_general(x, kernel, *arguments, **options)

    ones, twos = nn.initializers.ones, nn.initializers.constant(2.0)
    block = layers.MlpBlock(5, dtype=jnp.bfloat16, dot_general=dot_general, kernel_init=ones, bias_init=twos)
    y, variables = block.init_with_output(jax.random.key(0), X, None)
    assert y.dtype == jnp.bfloat16
    assert products == [(jnp.float32, (4, 5)), (jnp.float32, (5, 4))]
    for layer in variables["params"].values():
        assert {leaf.dtype for leaf in layer.values()} == {jnp.dtype("float32")}
        assert (set(np.unique(layer["kernel"])), set(np.unique(layer["bias"]))) == ({1.0}, {2.0})
    fresh = layers.MlpBlock(500).init(jax.random.key(0), X, None)["params"]
    assert np.std(fresh["Dense_0"]["kernel"]) == pytest.approx(1 / np.sqrt(4), rel=0.1)  # LeCun's, of four inputs
    assert not np.any(fresh["Dense_0"]["bias"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_patches_are_the_same_tokens_as_a_convolution_and_as_a_product(dtype):
    """In float64, and in both types: rows of patches first, then columns; 3 x 2 patches of 4 pixels."""
    rng = np.random.default_rng(3)
    images, kernel, bias = rng.normal(size=(2, 12, 8, 3)), rng.normal(size=(4, 4, 3, 5)), rng.normal(size=5)
    patches = images.reshape(2, 3, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 48)
    expected = patches @ kernel.reshape(48, 5) + bias

    class Tokens(nn.Module):
        dot_general: layers.DotGeneral | None

        @nn.compact
        def __call__(self, x):
            return layers.patch_tokens(x, 4, 5, jnp.dtype(dtype), "stem", self.dot_general)

    params = {"stem": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}
    atol = {"float32": 1e-4, "bfloat16": 0.2}[dtype]
    for dot_general in (None, jax.lax.dot_general):
        found = Tokens(dot_general).apply({"params": params}, jnp.float32(images))
        assert found.dtype == dtype
        np.testing.assert_allclose(np.float64(found), expected, atol=atol)


@pytest.mark.parametrize("rescale", [True, False])
def test_stochastic_depth_drops_whole_examples(rescale):
    rate, key = jnp.float32(0.4), jax.random.key(5)
    ours = layers.stochastic_depth(X, key, rate, rescale)
    mask = kept(key, 0.4, (6, 1, 1)) * (1 if rescale else 0.6)
    assert 0 < np.count_nonzero(mask) < 6
    np.testing.assert_allclose(ours, mask * np.float64(X), rtol=1e-6)
    assert layers.stochastic_depth(X, None, rate, rescale) is X
    assert layers.stochastic_depth(X, key, None, rescale) is X


def test_stochastic_depth_in_bfloat16_keeps_the_expectation():
    """1 - p and its inverse, rounded to bfloat16, would scale every kept branch by the same wrong number."""
    ones = jnp.ones((64, 1, 1), jnp.bfloat16)
    for rate in (0.0333, 0.1, 0.15):
        found = layers.stochastic_depth(ones, jax.random.key(0), jnp.float32(rate), True)
        assert found.dtype == jnp.bfloat16
        assert np.float64(found).max() == np.float64(jnp.bfloat16(1 / (1 - rate)))  # rounded once


class Teller(nn.Module):
    """A block that moves the rows of x up and writes its parameter, a draw from its key and its rate into the last."""

    dropout: float

    @nn.compact
    def __call__(self, x, key, drop_rate):
        number = self.param("number", nn.initializers.zeros, ())
        drawn = -1.0 if key is None else jax.random.uniform(key)
        row = jnp.stack([number, drawn, -1.0 if drop_rate is None else drop_rate])
        return jnp.concatenate([x[:, 1:], row[None, None]], axis=1)


class Parent(nn.Module):
    """Three tellers."""

    options: dict

    @nn.compact
    def __call__(self, x, train):
        options = {"dropout": 0.0, "stochastic_depth": 0.0, "remat": False, "scan": False, **self.options}
        return layers.apply_blocks(self, Teller, "block", x, train, num_blocks=3, **options)


@pytest.mark.parametrize(("dropout", "depth"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (0.3, 0.5)])
@pytest.mark.parametrize("train", [False, True])
def test_each_block_gets_a_key_and_a_drop_rate_of_its_own(train, dropout, depth):
    params = {f"block{number}": {"number": jnp.float32(10 * number)} for number in range(3)}
    needs_keys = train and (dropout or depth)
    rngs = {"dropout": jax.random.key(1)} if needs_keys else {}  # a key that is not needed must not be asked for
    told = []
    for remat, scan in [(False, False), (True, False), (False, True), (True, True)]:
        parent = Parent({"dropout": dropout, "stochastic_depth": depth, "remat": remat, "scan": scan})
        apply = functools.partial(parent.apply, {"params": params}, train=train, rngs=rngs)
        told.append(np.asarray(apply(jnp.zeros((1, 3, 3)))[0]))
        used = primitives(
            jax.make_jaxpr(jax.grad(lambda x, apply=apply: jnp.sum(apply(x))))(jnp.zeros((1, 3, 3))).jaxpr
        )
        assert ("checkpoint" in used or "remat2" in used, "scan" in used) == (remat, scan)
    numbers, drawn, rates = told[0].T
    np.testing.assert_array_equal(numbers, [0, 10, 20])
    np.testing.assert_allclose(rates, [0, depth / 2, depth] if depth else [-1] * 3)
    assert len(set(drawn)) == 3 and drawn.min() >= 0 if needs_keys else set(drawn) == {-1}
    for other in told[1:]:
        np.testing.assert_array_equal(other, told[0])


def test_blocks_are_named_and_created_in_order():
    created = Parent({}).init(jax.random.key(0), jnp.zeros((1, 3, 3)), False)["params"]
    assert list(created) == ["block0", "block1", "block2"]
    scanned = Parent({"scan": True}).init(jax.random.key(0), jnp.zeros((1, 3, 3)), False)["params"]
    assert list(scanned) == list(created)


@pytest.mark.parametrize(
    ("size", "patch", "nearest"),
    [((30, 32), 16, "32x32"), ((32, 33), 16, "32x32"), ((8, 15), 16, "16x16"), ((7, 41), 10, "10x40"),
     ((100, 227), 14, "98x224")],
)  # fmt: skip
def test_patches_that_do_not_tile_an_image_name_the_nearest_size(size, patch, nearest):
    wrong = (
        f"image size {size[0]}x{size[1]} is not a multiple of the patch size {patch}; the nearest that is: {nearest}$"
    )
    with pytest.raises(ValueError, match=wrong):
        layers.check_patches(*size, patch)
    layers.check_patches(*map(int, nearest.split("x")), patch)
