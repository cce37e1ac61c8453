"""Appendix A.1's models against hand-written formulas, an independent float64 NumPy model, and the paper's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from float64 import ablated_mixer, pooled_tokens, slope
from parameters import in_float64, random_params, shapes_of

from mixer import models
from mixer.models import token_mixing
from mixer.models.mlp_mixer import MixerBlock

BLOCKS, C, D_S, D_C, PATCH, PIXELS = 2, 8, 6, 10, 4, 16
TOKENS, CLASSES = (PIXELS // PATCH) ** 2, 5
SMALL = {"num_blocks": BLOCKS, "hidden_dim": C, "tokens_mlp_dim": D_S, "channels_mlp_dim": D_C}
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, PIXELS, PIXELS, 3)), jnp.float32)

# Kind, groups, tokens after each block.
ABLATIONS = [
    ("untied", 4, None), ("untied", C, None), ("grouped", 4, None), ("views", 2, None), ("shared", 1, (16, 4)),
    ("shared", 1, (4, 1)), ("untied", 2, (16, 4)), ("grouped", 2, (4, 4)), ("views", 4, (4, 1)),
]  # fmt: skip
ablations = pytest.mark.parametrize(("kind", "groups", "pyramid"), ABLATIONS)


def make(kind="shared", groups=1, pyramid=None, **options):
    return models.create(
        f"Ti/{PATCH}", CLASSES, **SMALL, token_mixing=kind, token_groups=groups, pyramid=pyramid, **options
    )


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_a_pyramid_from_json_makes_the_same_model():
    """Models are the keys of caches; a list has no hash."""
    assert hash(make(pyramid=[16, 4])) == hash(make(pyramid=(16, 4)))
    assert make(pyramid=[16, 4]) == make(pyramid=(16, 4))


def lengths(pyramid):
    """Tokens before and after each block."""
    after = pyramid or (TOKENS,) * BLOCKS
    return list(zip((TOKENS, *after[:-1]), after, strict=True))


@ablations
def test_parameter_counts(kind, groups, pyramid):
    expected = (3 * PATCH**2 + 1) * C + 2 * C + (C + 1) * CLASSES
    for before, after in lengths(pyramid):
        together = groups if kind in ("grouped", "views") else 1  # channels in one vector
        one_mlp = (together * before + 1) * D_S + (D_S + 1) * together * after
        expected += one_mlp * (groups if kind == "untied" else 1) + (C * C if kind == "views" else 0)
        expected += (C + 1) * D_C + (D_C + 1) * C + 4 * C
    assert size_of(shapes_of(make(kind, groups, pyramid), PIXELS)) == expected


def test_untying_all_channels_multiplies_the_token_mixing_parameters_by_their_number():
    """As the paper says of C separate MLPs."""
    tied, untied = (shapes_of(make(*of), PIXELS)["MixerBlock_0"]["token_mixing"] for of in ((), ("untied", C)))
    assert size_of(untied) == C * size_of(tied)


def logits(model, params, images=IMAGES):
    return np.asarray(jax.jit(model.apply)({"params": params}, images))


@ablations
def test_equals_a_float64_model(kind, groups, pyramid):
    model = make(kind, groups, pyramid)
    params = random_params(model, PIXELS)
    expected = ablated_mixer(in_float64(params), np.float64(IMAGES), PATCH, BLOCKS, kind, groups, pyramid)
    np.testing.assert_allclose(logits(model, params), expected, rtol=1e-4, atol=1e-4)


@ablations
def test_the_gradient_is_the_slope_of_the_float64_model(kind, groups, pyramid):
    """Along a random direction of each array."""
    model = make(kind, groups, pyramid)
    params = random_params(model, PIXELS)
    weights = np.random.default_rng(1).normal(size=(len(IMAGES), CLASSES))
    gradient = jax.jit(
        jax.grad(lambda p: jnp.sum(jnp.asarray(weights, jnp.float32) * model.apply({"params": p}, IMAGES)))
    )
    leaves, tree = jax.tree.flatten(in_float64(params))
    found = jax.tree.leaves(in_float64(gradient(params)))
    rng = np.random.default_rng(2)
    for number, leaf in enumerate(leaves):
        direction = rng.normal(size=leaf.shape)

        def output(array, number=number):
            changed = jax.tree.unflatten(tree, [*leaves[:number], array, *leaves[number + 1 :]])
            return np.sum(weights * ablated_mixer(changed, np.float64(IMAGES), PATCH, BLOCKS, kind, groups, pyramid))

        expected = slope(output, leaf, direction)
        size = np.linalg.norm(found[number]) * np.linalg.norm(direction)
        assert np.sum(found[number] * direction) == pytest.approx(expected, abs=1e-4 * size + 1e-5), number


# -------------------------------------------------------------------------------- where they are the paper's own model


def stacked(params):
    """The parameters of untied token mixing in one group, from those of the paper's model."""
    return {
        name: {**part, "token_mixing": jax.tree.map(lambda leaf: leaf[None], part["token_mixing"])}
        if "token_mixing" in part else part
        for name, part in params.items()
    }  # fmt: skip


def seen_as_they_are(params):
    """Adds views that are the channels themselves."""
    views = {"token_views": {"kernel": jnp.eye(C)}}
    return {name: {**part, **views} if "token_mixing" in part else part for name, part in params.items()}


@pytest.mark.parametrize(
    ("kind", "pyramid", "changed"),
    [("untied", None, stacked), ("grouped", None, dict), ("views", None, seen_as_they_are), ("shared", (16, 16), dict)],
)
def test_one_group_or_a_pyramid_without_reduction_is_the_papers_model(kind, pyramid, changed):
    plain = make()
    params, other = random_params(plain, PIXELS), make(kind, 1, pyramid)
    assert jax.tree.map(jnp.shape, changed(params)) == jax.tree.map(jnp.shape, shapes_of(other, PIXELS))
    np.testing.assert_allclose(logits(other, changed(params)), logits(plain, params), rtol=1e-5, atol=1e-5)


def test_equal_groups_are_the_papers_model():
    plain, untied = make(), make("untied", 4)
    params = random_params(plain, PIXELS)
    equal = {
        name: {**part, "token_mixing": jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), part["token_mixing"])}
        if "token_mixing" in part else part
        for name, part in params.items()
    }  # fmt: skip
    np.testing.assert_allclose(logits(untied, equal), logits(plain, params), rtol=1e-5, atol=1e-5)


def test_views_of_the_channels_themselves_are_grouping():
    grouped, views = make("grouped", 4), make("views", 4)
    params = random_params(grouped, PIXELS)
    np.testing.assert_allclose(logits(views, seen_as_they_are(params)), logits(grouped, params), rtol=1e-5, atol=1e-5)


def test_the_default_is_the_papers_model():
    plain = models.create("B/16", 1000)
    assert plain == models.create("B/16", 1000, token_mixing="shared", token_groups=1, pyramid=None)
    assert (plain.ablation, models.name_of(plain), plain.tokens(224)) == ("", "Mixer-B/16", (196,) * 13)


# ---------------------------------------------------------------------------------------------------------------- cost


@ablations
def test_macs_are_counted_product_by_product(kind, groups, pyramid):
    macs = (PIXELS // PATCH) ** 2 * (3 * PATCH**2) * C
    for before, after in lengths(pyramid):
        if kind == "views":
            macs += before * groups * (C * (C // groups))  # each view of each token
        vectors, together = (C, 1) if kind in ("shared", "untied") else (C // groups, groups)
        macs += vectors * (together * before * D_S + D_S * together * after)
        macs += after * (C * D_C + D_C * C)
    assert make(kind, groups, pyramid).forward_macs(PIXELS) == macs + C * CLASSES


@pytest.mark.parametrize(("kind", "groups", "pyramid"), [("untied", 4, None), ("views", 4, (16, 16, 16, 4))])
def test_macs_agree_with_the_compiler(kind, groups, pyramid):
    model = models.create("Ti/8", 10, token_mixing=kind, token_groups=groups, pyramid=pyramid)
    params = random_params(model, 32)
    cost = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(params, jnp.zeros((4, 32, 32, 3))).cost_analysis()
    assert cost["flops"] == pytest.approx(4 * 2 * model.forward_macs(32), rel=0.06)  # the rest: GELU, norms, skips


# ------------------------------------------------------------------------------------------------------------- options


def loss_and_gradient(kind, groups, pyramid, **options):
    model = make(kind, groups, pyramid, dropout=0.2, stochastic_depth=0.3, **options)
    params = random_params(model, PIXELS)

    def loss(params):
        return jnp.mean(model.apply({"params": params}, IMAGES, train=True, rngs={"dropout": jax.random.key(1)}) ** 2)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    ("kind", "groups", "pyramid"),
    [*(pytest.param(*ABLATIONS[n], marks=pytest.mark.slow) for n in (0, 3)), ABLATIONS[7]],
)
@pytest.mark.parametrize("options", [pytest.param({"remat": True}, marks=pytest.mark.slow), {"scan": True}], ids=str)
def test_remat_and_scan_change_neither_value_nor_gradient_nor_draws(kind, groups, pyramid, options):
    if pyramid is not None and "scan" in options:
        with pytest.raises(
            ValueError, match=r"pyramid=\(.*\) has blocks of several shapes, over which scan=True cannot"
        ):
            make(kind, groups, pyramid, **options)
        return
    plain, other = (loss_and_gradient(kind, groups, pyramid, **of) for of in ({}, options))
    assert float(other[0]) == pytest.approx(float(plain[0]), rel=1e-5)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, other[1], plain[1]))
    assert difference <= 1e-5 * optax.tree.norm(plain[1])


def test_each_group_drops_units_of_its_own():
    block = MixerBlock(D_S, D_C, dropout=0.5, token_mixing="untied", token_groups=2)
    x = jax.random.normal(jax.random.key(0), (4, TOKENS, C))
    params = block.init(jax.random.key(1), x, None, None)
    _, captured = block.apply(params, x, jax.random.key(2), None, capture_intermediates=True, mutable=["intermediates"])
    dropped = np.asarray(
        captured["intermediates"]["token_mixing"]["__call__"][0] == 0
    )  # [group, batch, channel, token]
    assert dropped.shape == (2, 4, C // 2, TOKENS)
    assert 0.3 < dropped.mean() < 0.7
    assert np.any(dropped[0] != dropped[1])


def test_a_dropped_branch_of_a_pyramid_leaves_the_means_over_squares():
    block = MixerBlock(D_S, D_C, tokens_out=4)
    x = jax.random.normal(jax.random.key(0), (50, TOKENS, C))
    params = block.init(jax.random.key(1), x, None, None)
    found = np.asarray(block.apply(params, x, jax.random.key(2), jnp.float32(0.999)))
    expected = pooled_tokens(np.float64(x), 4)
    dropped = np.isclose(found, expected, atol=1e-6).all(axis=(1, 2))
    assert dropped.mean() > 0.9


def test_bfloat16_activations_have_float32_parameters():
    for kind, groups, pyramid in (ABLATIONS[0], ABLATIONS[-1]):
        model = make(kind, groups, pyramid, dtype=jnp.bfloat16)
        params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        apply = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
        _, captured = jax.eval_shape(apply, {"params": params}, IMAGES)
        outputs = captured["intermediates"]
        del outputs["head"], outputs["__call__"]
        assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("kind", ["untied", "views"])
def test_new_kernels_are_as_large_as_one_mlps(kind):
    """The fan-in of a group's kernel is the length of its vectors, not that of the stack."""
    model = models.create("Ti/2", 0, num_blocks=1, hidden_dim=64, token_mixing=kind, token_groups=8)
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]["MixerBlock_0"]
    kernels = {
        "untied": params["token_mixing"]["Dense_0"]["kernel"],
        "views": params.get("token_views", {}).get("kernel"),
    }
    assert float(jnp.std(kernels[kind])) == pytest.approx(64**-0.5, rel=0.05)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"kind": "tied"}, "token_mixing='tied': there are shared, untied, grouped, views"),
        ({"groups": 2}, "token_groups=2 would not be read with token_mixing=shared; leave it at 1"),
        ({"kind": "untied", "groups": 3}, "token_groups=3 does not divide the 8 channels of hidden_dim"),
        ({"kind": "views", "groups": 0}, "token_groups=0 does not divide the 8 channels of hidden_dim"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, wrong):
    with pytest.raises(ValueError, match=f"^{wrong}$"):
        make(**options)


@pytest.mark.parametrize(
    ("pyramid", "wrong"),
    [
        ((16,), r"pyramid=\(16,\) has 1 numbers for 2 blocks: give the tokens after each block"),
        ((16, 8), r"pyramid=\(16, 8\): MixerBlock_1 cannot make 8 tokens of 16, which can become 16, 4, 1"),
        ((64, 16), r"pyramid=\(64, 16\): MixerBlock_0 cannot make 64 tokens of 16, which can become 16, 4, 1"),
        ((4, 16), r"pyramid=\(4, 16\): MixerBlock_1 cannot make 16 tokens of 4, which can become 4, 1"),
        ((9, 9), r"pyramid=\(9, 9\): MixerBlock_0 cannot make 9 tokens of 16, which can become 16, 4, 1"),
    ],
)
def test_a_pyramid_that_cannot_be_is_refused(pyramid, wrong):
    for use in (lambda model: model.forward_macs(PIXELS), lambda model: shapes_of(model, PIXELS)):
        with pytest.raises(ValueError, match=f"^{wrong}\\b"):  # JAX adds lines of its own
            use(make(pyramid=pyramid))


def test_a_pyramid_needs_square_images():
    with pytest.raises(ValueError, match=r"pyramid=\(16, 4\) needs square images, not 8x32"):
        make(pyramid=(16, 4)).init(jax.random.key(0), jnp.zeros((1, 8, 32, 3)))


@pytest.mark.parametrize(
    ("kind", "groups", "pyramid", "name"),
    [
        ("untied", 4, None, "Mixer-2x8/4 (untied token mixing x4)"),
        ("shared", 1, (16, 4), "Mixer-2x8/4 (pyramid 16-4)"),
        ("views", 2, (4, 4), "Mixer-2x8/4 (views token mixing x2, pyramid 4)"),
    ],
)
def test_a_models_name_says_what_it_is(kind, groups, pyramid, name):
    assert models.name_of(make(kind, groups, pyramid)) == name


def test_every_kind_of_token_mixing_is_tested():
    assert {kind for kind, _, _ in ABLATIONS} == set(token_mixing.TOKEN_MIXINGS)
