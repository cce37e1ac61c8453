"""ViT against published counts and an independent float64 NumPy ViT."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from float64 import vit
from parameters import in_float64, random_params, shapes_of

from mixer import models

# At 224 pixels with 1000 classes: parameters as timm 1.0.31 has them, GMAC as timm's and DeiT's tables say.
PUBLISHED = {
    "Ti/16": (5_717_416, 1.3),
    "S/32": (22_878_952, None),
    "S/16": (22_050_664, 4.6),
    "B/32": (88_224_232, 4.4),
    "B/16": (86_567_656, 17.6),
    "L/32": (306_535_400, None),
    "L/16": (304_326_632, 61.6),
    "H/14": (632_045_800, 167.4),
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameter_counts_are_the_published_ones(variant):
    shapes = shapes_of(models.create(f"ViT-{variant}", 1000))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PUBLISHED[variant][0]


@pytest.mark.parametrize("variant", [variant for variant, (_, gmac) in PUBLISHED.items() if gmac])
def test_macs_are_the_published_ones(variant):
    macs = models.create(f"ViT-{variant}", 1000).forward_macs(224)
    assert macs / 1e9 == pytest.approx(PUBLISHED[variant][1], abs=0.11)  # they are given to a tenth


def test_macs_agree_with_the_compiler():
    model = models.create("ViT-S/16", 1000)
    shapes, image = shapes_of(model), jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    cost = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(shapes, image).cost_analysis()
    assert cost["flops"] == pytest.approx(2 * 2 * model.forward_macs(224), rel=0.03)  # the rest: GELU, softmax, norms


def test_names_and_shapes_are_the_published_checkpoints():
    shapes = jax.tree.map(lambda leaf: leaf.shape, shapes_of(models.create("ViT-B/16", 1000)))
    norm = {"scale": (768,), "bias": (768,)}
    projection = {"kernel": (768, 12, 64), "bias": (12, 64)}
    block = {
        "LayerNorm_0": norm,
        "MultiHeadDotProductAttention_1": {
            "query": projection, "key": projection, "value": projection,
            "out": {"kernel": (12, 64, 768), "bias": (768,)},
        },
        "LayerNorm_2": norm,
        "MlpBlock_3": {
            "Dense_0": {"kernel": (768, 3072), "bias": (3072,)}, "Dense_1": {"kernel": (3072, 768), "bias": (768,)}
        },
    }  # fmt: skip
    assert shapes == {
        "cls": (1, 1, 768),
        "embedding": {"kernel": (16, 16, 3, 768), "bias": (768,)},
        "Transformer": {
            "posembed_input": {"pos_embedding": (1, 197, 768)},
            **{f"encoderblock_{i}": block for i in range(12)},
            "encoder_norm": norm,
        },
        "head": {"kernel": (768, 1000), "bias": (1000,)},
    }


SMALL = {"num_blocks": 2, "hidden_dim": 12, "channels_mlp_dim": 24}
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 12, 3)), jnp.float32)


def test_logits_and_intermediate_outputs_equal_a_float64_vit():
    model = models.create("ViT-Ti/4", 7, **SMALL)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)
    logits, captured = model.apply({"params": params}, IMAGES, capture_intermediates=True, mutable=["intermediates"])
    expected, outputs = vit(in_float64(params), np.asarray(IMAGES, np.float64), 4, 2, 3)
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)
    for block, of_block in outputs.items():  # attention and MLP can be looked at without a change to the model
        for name, output in of_block.items():
            (ours,) = captured["intermediates"]["Transformer"][block][name]["__call__"]
            np.testing.assert_allclose(ours, output, rtol=2e-4, atol=2e-4, err_msg=f"{block} {name}")


def loss_and_gradient(**options):
    model = models.create("ViT-Ti/4", 5, **{**SMALL, "dropout": 0.1, "stochastic_depth": 0.5, **options})
    images = IMAGES[:, :, :8]
    params = random_params(model, 8)

    def loss(params):
        logits = model.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.mean(logits**2)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "options",
    # test_mlp_mixer.py has each alone; layers.apply_blocks does both for both models
    [pytest.param({"remat": True}, marks=pytest.mark.slow), pytest.param({"scan": True}, marks=pytest.mark.slow),
     {"remat": True, "scan": True}],
    ids=str,
)  # fmt: skip
def test_remat_and_scan_change_neither_value_nor_gradient_nor_draws(options):
    plain, other = loss_and_gradient(), loss_and_gradient(**options)
    assert float(other[0]) == pytest.approx(float(plain[0]), rel=1e-5)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, other[1], plain[1]))
    assert difference <= 1e-5 * optax.tree.norm(plain[1])
    assert loss_and_gradient(dropout=0.0, stochastic_depth=0.0)[0] != plain[0]


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    model = models.create("ViT-Ti/4", 5, **SMALL, dtype=jnp.bfloat16)
    images = IMAGES[:, :, :8]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(model, 8))} == {jnp.dtype("float32")}
    params = random_params(model, 8)
    logits = model.apply({"params": params}, images)
    assert logits.dtype == jnp.float32
    exact = models.create("ViT-Ti/4", 5, **SMALL).apply({"params": params}, images)
    assert 0 < float(jnp.max(jnp.abs(logits - exact))) < 0.1 * float(jnp.max(jnp.abs(exact)))


def test_a_fresh_model_predicts_its_head_bias_and_without_a_head_gives_the_class_token():
    model = models.create("ViT-Ti/4", 5, **SMALL, head_bias_init=-6.9)
    np.testing.assert_allclose(model.apply(model.init(jax.random.key(0), IMAGES), IMAGES), -6.9)
    headless = models.create("ViT-Ti/4", 0, **SMALL)
    assert headless.apply(headless.init(jax.random.key(0), IMAGES), IMAGES).shape == (4, 12)
