"""The model against the paper's numbers and an independent float64 NumPy Mixer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from float64 import mixer, mlp, norm
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import in_float64, kept, primitives, random_params, shapes_of

from mixer import models
from mixer.config.settings import SETTINGS
from mixer.models import mlp_mixer
from mixer.models.mlp_mixer import MixerBlock

# Table 1 of the paper, counted to the unit from its specification; no head, 10, 1000 and 21843 classes.
PARAMETERS = {
    "S/32": (18_591_624, 18_596_754, 19_104_624, 29_797_083),
    "S/16": (18_015_264, 18_020_394, 18_528_264, 29_220_723),
    "B/32": (59_524_428, 59_532_118, 60_293_428, 76_321_695),
    "B/16": (59_111_472, 59_119_162, 59_880_472, 75_908_739),
    "L/32": (205_914_264, 205_924_514, 206_939_264, 228_303_339),
    "L/16": (207_171_168, 207_181_418, 208_196_168, 229_560_243),
    "H/14": (431_069_952, 431_082_762, 432_350_952, 459_050_835),
}
MILLION_MACS = {  # at 224 pixels with 1000 classes
    "S/32": 1_002, "S/16": 3_777, "B/32": 3_238, "B/16": 12_602, "L/32": 11_253, "L/16": 44_548, "H/14": 120_990,
}  # fmt: skip


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts_are_the_papers(variant):
    counts = [
        models.num_parameters(models.shapes(models.create(variant, num_classes), 224))
        for num_classes in (0, 10, 1000, 21843)
    ]
    assert tuple(counts) == PARAMETERS[variant]


@pytest.mark.parametrize("variant", MILLION_MACS)
def test_macs_are_the_specifications(variant):
    assert round(models.create(variant, 1000).forward_macs(224) / 1e6) == MILLION_MACS[variant]


def test_macs_agree_with_the_compiler():
    model = models.create("Ti/8", 10)
    params = random_params(model, 64)
    cost = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(params, jnp.zeros((4, 64, 64, 3))).cost_analysis()
    assert cost["flops"] == pytest.approx(4 * 2 * model.forward_macs(64), rel=0.06)  # the rest: GELU, norms, skips


def test_names_and_shapes_are_the_published_checkpoints():
    shapes = jax.tree.map(lambda leaf: leaf.shape, shapes_of(models.create("B/16", 1000)))
    mlp = lambda rows, hidden: {  # noqa: E731
        "Dense_0": {"kernel": (rows, hidden), "bias": (hidden,)},
        "Dense_1": {"kernel": (hidden, rows), "bias": (rows,)},
    }
    norm = {"scale": (768,), "bias": (768,)}
    block = {"LayerNorm_0": norm, "LayerNorm_1": norm, "token_mixing": mlp(196, 384), "channel_mixing": mlp(768, 3072)}
    expected = {f"MixerBlock_{i}": block for i in range(12)}
    expected["stem"] = {"kernel": (16, 16, 3, 768), "bias": (768,)}
    expected["pre_head_layer_norm"] = norm
    expected["head"] = {"kernel": (768, 1000), "bias": (1000,)}
    assert shapes == expected


SMALL = {"num_blocks": 2, "hidden_dim": 16, "tokens_mlp_dim": 12, "channels_mlp_dim": 24}


@settings(max_examples=8, deadline=None)
@given(patch=st.sampled_from([2, 4]), rows=st.integers(1, 3), columns=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_a_float64_mixer(patch, rows, columns, seed):
    model = models.create(f"Ti/{patch}", 7, **SMALL)
    images = np.random.default_rng(seed).uniform(-1, 1, (2, rows * patch, columns * patch, 3))
    images = jnp.asarray(images, jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)
    ours = model.apply({"params": params}, images)
    expected, _ = mixer(in_float64(params), np.asarray(images, np.float64), patch, 2)
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("mixing", [{}, {"token_mixing": "untied", "token_groups": 2}], ids=["shared", "untied"])
def test_blocks_that_start_as_the_identity(mixing):
    """Only the second kernels differ from the published initialisation, and are zero."""
    published, ours = (models.create("Ti/4", 7, **SMALL, **mixing, identity_init=on) for on in (False, True))
    before, after = (
        flatten_dict(model.init(jax.random.key(0), IMAGES)["params"], sep="/") for model in (published, ours)
    )
    for name, leaf in after.items():
        second = name.endswith("mixing/Dense_1/kernel")
        np.testing.assert_array_equal(leaf, jnp.zeros_like(leaf) if second else before[name], err_msg=name)
    assert any(np.any(before[name]) for name in before if name.endswith("mixing/Dense_1/kernel"))
    block = MixerBlock(12, 24, identity_init=True)
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 16)), jnp.float32)
    out, _ = block.init_with_output(jax.random.key(0), tokens, None, None)
    np.testing.assert_array_equal(out, tokens)


def test_the_outputs_of_both_mlps_of_each_block_can_be_captured():
    """As the module's docstring says. No change to the model is needed to look at its activations."""
    model = models.create("Ti/4", 7, **SMALL)
    params = random_params(model, 8)
    _, captured = model.apply({"params": params}, IMAGES, capture_intermediates=True, mutable=["intermediates"])
    _, outputs = mixer(in_float64(params), np.asarray(IMAGES, np.float64), 4, 2)
    for block, of_block in outputs.items():
        for name, expected in of_block.items():
            (ours,) = captured["intermediates"][block][name]["__call__"]
            np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-4, err_msg=f"{block} {name}")
    tokens = captured["intermediates"]["MixerBlock_0"]["token_mixing"]["__call__"][0]
    assert tokens.shape == (8, 16, 4)  # [batch, channels, tokens]


DROPPING = {**SMALL, "dropout": 0.1, "stochastic_depth": 0.5}
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3)), jnp.float32)


def loss_and_gradient(**options):
    model = models.create("Ti/4", 5, **{**DROPPING, **options})
    params = random_params(model, 8)

    def loss(params):
        logits = model.apply({"params": params}, IMAGES, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.mean(logits**2)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # bfloat16 has 8 bits of mantissa; recomputing and stacking let XLA round at other places.
    [(jnp.float32, 1e-5), pytest.param(jnp.bfloat16, 4e-2, marks=pytest.mark.slow)],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize(
    "options",
    [pytest.param({"remat": True}, marks=pytest.mark.slow), {"scan": True}, {"remat": True, "scan": True}],
    ids=str,
)
def test_remat_and_scan_change_neither_value_nor_gradient_nor_draws(options, dtype, tolerance):
    plain = loss_and_gradient(dtype=dtype)
    other = loss_and_gradient(dtype=dtype, **options)
    assert float(other[0]) == pytest.approx(float(plain[0]), rel=tolerance)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, other[1], plain[1]))
    assert difference <= tolerance * optax.tree.norm(plain[1])


@pytest.mark.parametrize("options", [{"remat": True}, {"scan": True}], ids=str)
def test_remat_and_scan_have_the_plain_models_parameters(options):
    init = lambda **kw: models.create("Ti/4", 5, **SMALL, **kw).init(jax.random.key(3), IMAGES)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, init(**options), init())


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    model = models.create("Ti/4", 5, **SMALL, dtype=jnp.bfloat16)
    params = model.init(jax.random.key(0), IMAGES)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits = model.apply({"params": random_params(model, 8)}, IMAGES)
    assert logits.dtype == jnp.float32
    exact = models.create("Ti/4", 5, **SMALL).apply({"params": random_params(model, 8)}, IMAGES)
    assert 0 < float(jnp.max(jnp.abs(logits - exact))) < 0.05 * float(jnp.max(jnp.abs(exact)))


def test_all_activations_before_the_mean_over_tokens_are_bfloat16():
    model = models.create("Ti/4", 5, **SMALL, dtype=jnp.bfloat16)
    variables = {"params": random_params(model, 8)}
    _, captured = model.apply(variables, IMAGES, capture_intermediates=True, mutable=["intermediates"])
    outputs = captured["intermediates"]
    assert outputs.pop("head")["__call__"][0].dtype == jnp.float32
    assert outputs.pop("__call__")[0].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}
    headless = models.create("Ti/4", 0, **SMALL, dtype=jnp.bfloat16)
    pre_logits = headless.apply(variables, IMAGES)
    assert pre_logits.dtype == jnp.float32
    last = np.float64(outputs["pre_head_layer_norm"]["__call__"][0])
    np.testing.assert_allclose(pre_logits, last.mean(1), rtol=1e-5, atol=1e-6)  # added up in float32


def test_a_fresh_model_predicts_its_head_bias():
    model = models.create("Ti/4", 5, **SMALL, head_bias_init=-6.9)
    logits = model.apply(model.init(jax.random.key(0), IMAGES), IMAGES)
    np.testing.assert_allclose(logits, -6.9)


def block_branches(rate, rescale, draws=4000):
    """What one block adds to each of many copies of an example, in training at this rate and in evaluation."""
    block = MixerBlock(tokens_mlp_dim=4, channels_mlp_dim=8, stochastic_depth_rescale=rescale)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 3, 6)), (draws, 3, 6))
    params = block.init(jax.random.key(1), x[:1], None, None)
    # Without the channel branch the block is x + token branch: linear in what is dropped.
    params["params"]["channel_mixing"]["Dense_1"] = jax.tree.map(
        jnp.zeros_like, params["params"]["channel_mixing"]["Dense_1"]
    )
    train = block.apply(params, x, jax.random.key(2), jnp.float32(rate)) - x
    return np.asarray(train), np.asarray(block.apply(params, x[:1], None, None) - x[:1])


def test_stochastic_depth_keeps_the_expectation_when_rescaled():
    train, evaluation = block_branches(0.3, rescale=True)
    # The share kept has a standard deviation of sqrt(0.3 * 0.7 / 4000) = 0.7%; the bound is five of them.
    np.testing.assert_allclose(train.mean(0), evaluation[0], rtol=0.05, atol=1e-6)
    dropped = np.all(train == 0, axis=(1, 2))
    assert dropped.mean() == pytest.approx(0.3, abs=0.036)
    np.testing.assert_allclose(train[~dropped][0], evaluation[0] / 0.7, rtol=1e-5, atol=1e-6)


def test_stochastic_depth_in_the_published_form_does_not_rescale():
    train, evaluation = block_branches(0.3, rescale=False)
    kept = np.any(train != 0, axis=(1, 2))
    np.testing.assert_allclose(train[kept], np.broadcast_to(evaluation, train[kept].shape), rtol=1e-5)
    np.testing.assert_allclose(train.mean(0), 0.7 * evaluation[0], rtol=0.05, atol=1e-6)


def test_stochastic_depth_grows_linearly_and_spares_the_first_block():
    """At probability 0.999 the last block adds nothing and the first everything."""
    model = models.create("Ti/4", 0, **{**SMALL, "num_blocks": 2}, stochastic_depth=0.999)
    params = random_params(model, 8)
    one = models.create("Ti/4", 0, **{**SMALL, "num_blocks": 1})
    first = {key: value for key, value in params.items() if key != "MixerBlock_1"}
    trained = model.apply({"params": params}, IMAGES, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(trained, one.apply({"params": first}, IMAGES), rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_expectation():
    """Of the token branch: behind its GELU, where both dropouts are, everything is linear."""
    block = MixerBlock(tokens_mlp_dim=12, channels_mlp_dim=24, dropout=0.25)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 4, 16)), (4000, 4, 16))
    params = block.init(jax.random.key(1), x[:1], None, None)
    params["params"]["channel_mixing"]["Dense_1"] = jax.tree.map(
        jnp.zeros_like, params["params"]["channel_mixing"]["Dense_1"]
    )
    train = block.apply(params, x, jax.random.key(2), None) - x
    evaluation = block.apply(params, x[:1], None, None) - x[:1]
    error = np.abs(np.asarray(train.mean(0) - evaluation[0]))
    standard_error = np.asarray(train.std(0)) / np.sqrt(4000)
    assert np.all(error < 5 * standard_error + 1e-6)
    assert np.all(standard_error > 0)


@pytest.mark.parametrize("size", [(30, 32), (32, 33), (8, 15)])
def test_an_image_that_the_patch_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=r"image size \d+x\d+ is not a multiple of the patch size 16; the nearest"):
        models.create("S/16", 10).init(jax.random.key(0), jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize(
    "variant",
    [
        "M/16",
        "B",
        "B/",
        "B/x",
        "B/0",
        "b/16",
        "",
        "ViT-M/16",
        "ViT/16",
        "BiT-R50",
        "BiT-R51x1",
        "BiT-R50x0",
        "BiT-R50x0.25",
    ],
)
def test_an_unknown_variant_is_refused(variant):
    with pytest.raises(ValueError, match="expected one of Ti, S, B, L, H"):
        models.create(variant, 10)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("b16", "B/16"),
        ("ti16", "Ti/16"),
        ("vit_l16", "ViT-L/16"),
        ("bit_r152x4", "BiT-R152x4"),
        ("B/16", "B/16"),
        ("bit_r26x0.5", "BiT-R26x0.5"),
    ],
)
def test_short_names(short, full):
    assert models.variant(short) == full


@pytest.mark.parametrize(
    ("variant", "options", "wrong"),
    [
        ("ViT-B/16", {"tokens_mlp_dim": 384}, "'ViT-B/16' has no tokens_mlp_dim, which was set to 384"),
        ("BiT-R50x1", {"stochastic_depth": 0.1}, "'BiT-R50x1' has no stochastic_depth, which was set to 0.1"),
        ("BiT-R50x1", {"remat": True}, "'BiT-R50x1' has no remat, which was set to True"),
    ],
)
def test_an_option_that_a_model_does_not_have_is_refused_unless_it_is_off(variant, options, wrong):
    off = {"tokens_mlp_dim": None, "dropout": 0.0, "stochastic_depth": 0.0, "remat": False, "scan": False}
    models.create(variant, 10, **off)
    with pytest.raises(ValueError, match=wrong):
        models.create(variant, 10, **{**off, **options})


# ------------------------------------------------------------------------------------------------- options and defaults


@pytest.mark.parametrize("rescale", [True, False])
def test_a_block_in_training_equals_float64_with_the_draws_of_its_key(rescale):
    """One key for each MLP and each branch, in this order: tokens, their branch, channels, their branch."""
    block = MixerBlock(5, 6, dropout=0.3, stochastic_depth_rescale=rescale)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3, 4)), jnp.float32)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, None, None)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes)
    keys, q = jax.random.split(jax.random.key(2), 4), in_float64(params)

    def branch(y, q, mlp_key, branch_key, hidden):
        first, second = jax.random.split(mlp_key)
        y = mlp(y, q, (kept(first, 0.3, (*y.shape[:2], hidden)), kept(second, 0.3, y.shape)))
        return y * kept(branch_key, 0.4, (8, 1, 1)) * (1 if rescale else 0.6)

    normal = np.swapaxes(norm(np.float64(x), q["LayerNorm_0"]), 1, 2)
    expected = np.float64(x) + np.swapaxes(branch(normal, q["token_mixing"], keys[0], keys[1], 5), 1, 2)
    expected = expected + branch(norm(expected, q["LayerNorm_1"]), q["channel_mixing"], keys[2], keys[3], 6)
    ours = block.apply({"params": params}, x, jax.random.key(2), jnp.float32(0.4))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_by_default_nothing_is_dropped_recomputed_or_looped_over():
    model = models.create("Ti/4", 5, **SMALL)
    params = {"params": random_params(model, 8)}
    np.testing.assert_array_equal(model.apply(params, IMAGES, train=True), model.apply(params, IMAGES))
    gradient = jax.grad(lambda params: jnp.sum(model.apply(params, IMAGES)))
    assert not primitives(jax.make_jaxpr(gradient)(params).jaxpr) & {"checkpoint", "remat2", "scan"}
    assert (model.stochastic_depth_rescale, MixerBlock(4, 8).stochastic_depth_rescale) == (True, True)
    assert not np.any(model.init_with_output(jax.random.key(0), IMAGES)[0])  # the bias of a new head
    dropping = models.create("Ti/4", 5, **DROPPING)  # evaluates unless told otherwise, and needs no key for it
    np.testing.assert_array_equal(dropping.apply(params, IMAGES), model.apply(params, IMAGES))


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"stochastic_depth": 0.5}], ids=str)
def test_each_kind_of_dropping_works_without_the_other(options):
    model = models.create("Ti/4", 5, **SMALL, **options)
    params = {"params": random_params(model, 8)}
    one, other = (model.apply(params, IMAGES, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert not np.allclose(one, model.apply(params, IMAGES))
    assert not np.allclose(one, other)


def test_the_form_of_stochastic_depth_reaches_the_blocks():
    outputs = []
    for rescale in (True, False):
        model = models.create("Ti/4", 5, **SMALL, stochastic_depth=0.5, stochastic_depth_rescale=rescale)
        params = {"params": random_params(model, 8)}
        outputs.append(model.apply(params, IMAGES, train=True, rngs={"dropout": jax.random.key(0)}))
    assert not np.allclose(*outputs)


def test_the_stem_and_every_dense_layer_of_the_blocks_compute_with_the_given_product():
    kernels = []

    def dot_general(x, kernel, *arguments, **options):
        kernels.append(kernel.shape)
        return jax.lax.dot_general(x, kernel, *arguments, **options)

    model = models.create("Ti/4", 5, **SMALL, dot_general=dot_general)
    params = {"params": random_params(model, 8)}
    kernels.clear()
    model.apply(params, IMAGES)
    assert kernels == [(48, 16), *[(4, 12), (12, 4), (16, 24), (24, 16)] * 2]


def test_the_smallest_variant_has_the_ratios_of_table_1():
    model = models.create("Ti/8", 10)
    assert (model.num_blocks, model.hidden_dim, model.tokens_mlp_dim, model.channels_mlp_dim) == (4, 128, 64, 512)


@pytest.mark.parametrize("name", ["Ti/4", "B/16", "H/14", "ViT-S/16", "BiT-R50x1", "BiT-R200x3", "BiT-R14x0.5"])
def test_a_model_has_the_name_of_its_variant(name):
    assert models.name_of(models.create(name, 5)).removeprefix("Mixer-") == name


@pytest.mark.parametrize(
    ("variant", "widths", "name"),
    [
        ("Ti/4", {"hidden_dim": 96, "tokens_mlp_dim": 48, "channels_mlp_dim": 384}, "Mixer-4x96/4"),
        ("B/16", {"tokens_mlp_dim": 1536}, "Mixer-B/16"),  # for larger images
        ("B/16", {"channels_mlp_dim": 1536}, "Mixer-12x768/16"),
        ("ViT-Ti/4", {"num_blocks": 2}, "ViT-2x192/4"),
        ("ViT-B/16", {"num_heads": 6}, "ViT-12x768/16"),
        ("BiT-R50x1", {"units": (2, 1, 1, 1)}, "BiT-R2-1-1-1x1"),
    ],
)
def test_a_model_whose_widths_are_no_variants_has_the_name_of_its_widths(variant, widths, name):
    assert models.name_of(models.create(variant, 5, **widths)) == name


@pytest.mark.parametrize("kind", ["shared", "untied", "grouped", "views"])
def test_what_has_no_effect_is_what_has_no_gradient(kind):
    """The last bias of token mixing adds one number to all channels, unless groups of channels differ."""
    model = models.create("Ti/4", 5, **SMALL, token_mixing=kind, token_groups=1 if kind == "shared" else 2)
    params = random_params(model, 8)

    def loss(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, IMAGES)))

    gradients = flatten_dict(jax.tree.map(lambda leaf: float(jnp.max(jnp.abs(leaf))), jax.grad(loss)(params)))
    idle = set(gradients) - set(flatten_dict(model.with_effect(params)))
    blocks = {f"MixerBlock_{number}" for number in range(model.num_blocks)}
    assert idle == ({(block, "token_mixing", "Dense_1", "bias") for block in blocks} if kind == "shared" else set())
    for path, largest in gradients.items():
        assert (largest < 1e-5) == (path in idle), (path, largest)
    drops = model.clone(dropout=0.1)  # which drops single channels of what the bias was added to
    assert jax.tree.structure(drops.with_effect(params)) == jax.tree.structure(params)


def test_an_attribute_makes_another_function_unless_it_is_known_not_to():
    """A new setting counts as one of those, so that no command computes another function than the run's."""
    widths = {"variant", *mlp_mixer.Variant.__dataclass_fields__}
    settings = {name.removeprefix("model.") for name in SETTINGS if name.startswith("model.")}
    model = models.create("S/16", 10)
    assert settings - widths - set(mlp_mixer.SAME_FUNCTION) == model.options.keys()
    assert model.options == {"token_mixing": "shared", "token_groups": 1, "pyramid": None}
    assert model.beyond_paper == ""
    assert set(mlp_mixer.SAME_FUNCTION) < {field.name for field in dataclasses.fields(model)}
