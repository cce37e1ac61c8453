"""Runs that start from given weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import make_model, make_state, write_run
from random_models import make_params as random_params

from mixer import models
from mixer.config import checks, recipe
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training import history, sharding
from mixer.transfer import init_from
from mixer.transfer.init_from import head_of, with_token_width
from mixer.transfer.weights import Weights

NAMES = ["ant", "bee", "cat", "dog", "elk"]


def make_params(classes, seed, pixels=8, **widths):
    """Returns random parameters of a small Mixer."""
    return random_params(make_model(classes, **{"num_blocks": 1, **widths}), pixels, seed)


def make_weights(params, class_names=None):
    return Weights(params, "runs/b16", class_names=class_names)


def on_devices(params, ema=False):
    """Returns a new state with these parameters on all devices, and its shardings."""
    state = make_state(params, params if ema else None)
    shardings = sharding.state_sharding(jax.eval_shape(lambda: state), devices.make_mesh(), "data_parallel")
    return jax.device_put(state, shardings), shardings


def fitted(weights, params):
    """Fits weights to the model of these parameters."""
    return init_from.fitted(weights, params, model=make_weights(params).described())


def with_weights(*arguments):
    return init_from.with_weights(*arguments, model="Mixer-1x16/4 for images of 8 pixels")


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (NAMES, NAMES, "the head is kept: the same 5 classes"),
        (list("01234"), list("01234"), "the head is kept: 5 classes there and here, which are only numbered"),
        (None, NAMES, "the head is kept: the weights do not name their 5 classes, which are as many as here"),
        (NAMES, NAMES[:3], "a new head: 5 classes there, 3 here"),
        (None, NAMES[:3], "a new head: 5 classes there, 3 here"),
        (NAMES, [*NAMES[:4], "fly"], "a new head: the classes differ (class 4 is 'elk' there, 'fly' here)"),
        (NAMES, NAMES[::-1], "a new head: the classes are in another order"),
    ],
)
def test_what_becomes_of_the_head_is_said(theirs, ours, said):
    assert head_of(make_weights(make_params(5, seed=1), theirs), ours).said == said


def test_that_the_weights_have_no_head_is_said():
    said = head_of(make_weights(make_params(0, seed=1)), NAMES).said
    assert said == "a new head for 5 classes: the weights have none"


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours", "keeps_head"),
    [
        (NAMES, NAMES, True),
        (None, NAMES, True),  # no names, so only their number counts
        (NAMES, NAMES[:3], False),
        (None, NAMES[:3], False),
        (NAMES, ["ant", "bee", "cat", "dog", "fly"], False),  # the same number of classes, but others
        (NAMES, NAMES[::-1], False),  # the same classes in another order
    ],
)
def test_a_run_starts_from_weights_and_keeps_the_head_of_the_same_classes(theirs, ours, keeps_head, ema):
    before = make_params(5, seed=1)
    fresh, shardings = on_devices(make_params(len(ours), seed=2), ema)
    state = with_weights(fresh, make_weights(before, theirs), ours, shardings)
    expected = before if keeps_head else {**before, "head": fresh.params["head"]}
    assert same(state.params, expected)
    assert (state.ema_params is None) if not ema else same(state.ema_params, expected)
    assert int(state.step) == 0
    assert same(state.opt_state, fresh.opt_state)
    for leaf, place in zip(jax.tree.leaves(state.params), jax.tree.leaves(shardings.params), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_weights_without_a_head_get_a_new_one():
    before, (fresh, shardings) = make_params(0, seed=1), on_devices(make_params(5, seed=2))
    state = with_weights(fresh, make_weights(before), NAMES, shardings)
    assert same(state.params, {**before, "head": fresh.params["head"]})


def test_the_state_can_be_donated():
    """The step donates the state, so parameters and their average must not share a buffer."""
    fresh, shardings = on_devices(make_params(3, seed=2), ema=True)
    state = with_weights(fresh, make_weights(make_params(5, seed=1)), NAMES[:3], shardings)
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)(state))


def make_config(**settings):
    config = recipe.base()
    config.model.variant, config.input.image_size = "Ti/4", 8
    config.update_from_flattened_dict(settings)
    return checks.checked(config)


def test_an_unset_token_mixing_width_is_that_of_the_weights():
    weights = make_weights(make_params(5, seed=1, tokens_mlp_dim=20))
    found = with_token_width(make_config(init_from="runs/b16"), weights, {})
    assert found.model.tokens_mlp_dim == 20
    assert found.is_locked


@pytest.mark.parametrize("settings", [{}, {"init_from": "runs/b16", "model.tokens_mlp_dim": 7}])
def test_a_given_width_and_a_run_from_scratch_are_left_alone(settings):
    config = make_config(**settings)
    weights = make_weights(make_params(5, seed=1, tokens_mlp_dim=20)) if settings else None
    assert with_token_width(config, weights, {}) == config


def test_a_continued_run_knows_its_width_without_the_weights(tmp_path):
    folder = write_run(tmp_path / "run", [make_state(make_params(5, seed=1, num_blocks=2))], NAMES)
    config = make_config(init_from="deleted.npz")
    assert with_token_width(config, None, history.settings(folder)).model.tokens_mlp_dim == 12
    assert with_token_width(config, None, {}) == config


def test_every_mismatch_is_named_in_one_line():
    loaded = make_params(5, seed=1, num_blocks=3, tokens_mlp_dim=6)
    params = make_params(3, seed=2, pixels=16)
    with pytest.raises(UserError) as caught:
        fitted(make_weights(loaded), params)
    start, listed = str(caught.value).split("pixels: ")
    assert start == (
        "config.init_from='runs/b16' does not fit this model: it is Mixer-3x16/4 for images of 8 pixels, the model is "
        "Mixer-1x16/4 for images of 16 "
    )
    block = "MixerBlock_0/token_mixing"
    assert sorted(listed.split("; ")) == [
        f"{block}/Dense_0/bias: (6,) there, (12,) here",
        f"{block}/Dense_0/kernel: (4, 6) there, (16, 12) here",
        f"{block}/Dense_1/bias: (4,) there, (16,) here",
        f"{block}/Dense_1/kernel: (6, 4) there, (12, 16) here",
        "MixerBlock_1..2: not in this model",
    ]


def test_weights_that_were_extended_name_the_width_that_fits_them():
    """A config that sets D_S itself, as configs/finetune_small.py does, has to be told."""
    weights = make_weights(make_params(5, seed=1)).at_image_size(16, "extend")
    with pytest.raises(
        UserError,
        match=r"for images of 16 pixels \(brought from 8, which makes config.model.tokens_mlp_dim=48\), the model is",
    ):
        fitted(weights, make_params(5, seed=2, pixels=16))


def shapes_of(variant, classes):
    """Returns parameters at 224 pixels that take no memory."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(models.create(variant, classes).init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)


def test_weights_of_another_variant_are_one_short_line_with_its_name():
    with pytest.raises(UserError) as caught:
        fitted(make_weights(shapes_of("L/16", 1000)), shapes_of("B/16", 10))
    line = str(caught.value)
    assert line.startswith(
        "config.init_from='runs/b16' does not fit this model: it is Mixer-L/16 for images of 224 pixels, the model is "
        "Mixer-B/16 for images of 224 pixels: MixerBlock_12..23: not in this model; "
    )
    assert "MixerBlock_0..11/token_mixing/Dense_0/kernel: (196, 512) there, (196, 384) here" in line
    assert len(line.split("; ")) == 1 + 11 + 4  # missing blocks, arrays of the other blocks, arrays outside
    assert "; head/" not in line


def test_missing_parameters_are_named_except_the_head():
    params = make_params(5, seed=1)
    loaded = {key: value for key, value in params.items() if key not in ("stem", "head")}
    with pytest.raises(
        UserError, match=r"is not a Mixer's parameters: stem/bias: missing there; stem/kernel: missing \w+$"
    ):
        fitted(make_weights(loaded), params)


def test_a_head_for_a_model_without_one_is_named():
    with_head, without = make_params(5, seed=1), make_params(0, seed=1)
    with pytest.raises(UserError, match="head/bias: not in this model; head/kernel: not in this model"):
        fitted(make_weights(with_head), without)


def test_weights_that_fit_replace_all_parameters():
    loaded, params = make_params(5, seed=1), make_params(5, seed=2)
    assert same(fitted(make_weights(loaded), params), loaded)
    assert same(fitted(make_weights(jax.tree.map(jnp.asarray, loaded)), params), loaded)
