"""Optimizers against float64 NumPy, and the paper's weight decay in the published code's units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from float64 import Optimizer, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import models
from mixer.config import recipe
from mixer.runtime import devices
from mixer.runtime.errors import UserError
from mixer.training.optimizer import DECAYS, OPTIMIZERS, kernels, make_optimizer, make_schedule

PEAK = 1e-3


def optimizer_config(**settings):
    config = recipe.base().optimizer
    config.learning_rate = PEAK
    config.update(settings)
    return config


@settings(max_examples=30, deadline=None)
@given(
    decay=st.sampled_from(sorted(DECAYS)),
    warmup=st.integers(0, 40),
    total=st.integers(1, 60),
    end_factor=st.sampled_from([0.0, 1e-5, 0.1]),
    from_zero=st.booleans(),
)
def test_schedule_is_its_definition(decay, warmup, total, end_factor, from_zero):
    config = optimizer_config(decay=decay, end_factor=end_factor, warmup_from_zero=from_zero)
    expected = [schedule(config, warmup, total, step) for step in range(64)]
    ours = np.broadcast_to(make_schedule(config, warmup, total)(jnp.arange(64)), 64)  # a constant stays a number
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=PEAK * 1e-6)


@pytest.mark.parametrize(
    ("decay", "values"),
    # At step 0, the end of warm-up, half of the rest and the end; warm-up 10 of 110 steps, end_factor 0.1.
    [("linear", (1e-4, 1e-3, 5.5e-4, 1e-4)), ("cosine", (1e-4, 1e-3, 5.5e-4, 1e-4)), ("constant", (1e-4, *[1e-3] * 3))],
)
def test_schedule_at_its_corners(decay, values):
    rate = make_schedule(optimizer_config(decay=decay, end_factor=0.1), 10, 110)
    np.testing.assert_allclose([rate(step) for step in (0, 10, 60, 110)], values, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warm_up_the_first_step_has_the_full_learning_rate(warmup):
    assert float(make_schedule(optimizer_config(), warmup, 100)(0)) == pytest.approx(PEAK)


@pytest.mark.parametrize(("warmup", "total"), [(1, 30), (10, 30), (29, 30), (0, 30)])
@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_warm_up_from_zero_is_the_published_schedule(decay, warmup, total):
    """big_vision's utils.create_learning_rate_schedule; its configs give `end` as a share of the learning rate."""
    end = 1e-5 if decay == "linear" else 0.0  # its cosine goes to 0

    def published(step):
        progress = np.clip((step - warmup) / (total - warmup), 0, 1)
        rate = end + (1 - end) * (1 - progress) if decay == "linear" else 0.5 * (1 + np.cos(np.pi * progress))
        return PEAK * (rate * np.minimum(1.0, step / warmup) if warmup else rate)

    rate = make_schedule(optimizer_config(decay=decay, end_factor=end, warmup_from_zero=True), warmup, total)
    steps = np.arange(total + 3)
    np.testing.assert_allclose([rate(step) for step in steps], published(steps), rtol=1e-5, atol=PEAK * 1e-7)
    assert (float(rate(0)) == 0) == (warmup > 0)


def test_a_warm_up_longer_than_the_run_is_cut_off():
    rate = make_schedule(optimizer_config(), 20, 10)
    np.testing.assert_allclose([rate(step) for step in (0, 9)], [PEAK / 20, PEAK / 2], rtol=1e-6)


def params_of_a_mixer(**options):
    return params_of("Ti/4", tokens_mlp_dim=4, **options)


def params_of(variant, **options):
    model = models.create(variant, 5, num_blocks=1, hidden_dim=8, channels_mlp_dim=8, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


def run_steps(config, rate, params, gradients):
    """The parameters after each step."""
    tx = make_optimizer(config, rate, devices.make_mesh())
    update = jax.jit(tx.update)
    opt_state, history = tx.init(params), []
    for grads in gradients:
        updates, opt_state = update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def leaves_by_name(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def test_weight_decay_is_for_kernels():
    names = {name.rpartition("[")[2] for name, is_one in leaves_by_name(kernels(params_of_a_mixer())).items() if is_one}
    others = {
        name.rpartition("[")[2] for name, is_one in leaves_by_name(kernels(params_of_a_mixer())).items() if not is_one
    }
    assert (names, others) == ({"'kernel']"}, {"'bias']", "'scale']"})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_papers_weight_decay_is_the_published_1e_4(name):
    """Table 4: 0.1 at learning rate 0.001. The published code: 1e-4, times the schedule's share of the peak."""
    config = optimizer_config(name=name, weight_decay=0.1)
    rate = make_schedule(config, 2, 6)
    params = params_of_a_mixer()
    before = leaves_by_name(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for step, after in enumerate(map(leaves_by_name, run_steps(config, rate, params, [zeros] * 6))):
        share_of_peak = schedule(config, 2, 6, step) / PEAK
        for leaf, value in after.items():
            shrunk = 1 - 1e-4 * share_of_peak if "kernel" in leaf else 1
            np.testing.assert_allclose(value, before[leaf] * shrunk, rtol=2e-7, err_msg=leaf)
            if "kernel" not in leaf:
                np.testing.assert_array_equal(value, before[leaf])
        before = after


OTHER_THAN_DEFAULT = {"beta1": 0.8, "beta2": 0.95, "epsilon": 0.01}


@pytest.mark.parametrize(
    ("clip_norm", "settings"), [(0.0, {}), (1.0, {}), (1e6, {}), (1.0, OTHER_THAN_DEFAULT)], ids=str
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_float64_numpy(name, clip_norm, settings):
    check_steps(optimizer_config(name=name, clip_norm=clip_norm, weight_decay=0.1, **settings), params_of_a_mixer())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_untied_token_mixing_equal_float64_numpy(name):
    """Its kernels are stacks of matrices, and its biases are no matrices, though they have two axes."""
    check_steps(optimizer_config(name=name), params_of_a_mixer(token_mixing="untied", token_groups=2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_attention_equal_float64_numpy(name):
    """Its kernels have an axis for the heads, and so have its biases."""
    check_steps(optimizer_config(name=name), params_of("ViT-Ti/4", num_heads=2))


def check_steps(config, params):
    name, rng = config.name, np.random.default_rng(1)
    gradients = [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, size, leaf.shape), jnp.float32), params)  # noqa: B023
        for size in (1.0, 0.001, 3.0, 0.01, 1.0)  # above and below the norm that is clipped to
    ]
    ours = run_steps(config, make_schedule(config, 2, 10), params, gradients)
    tolerance = 1e-3 if name == "muon" else 1e-4  # of what moved: small singular values grow 485-fold, as rounding does
    reference = {name: value.astype(np.float64) for name, value in leaves_by_name(params).items()}
    optimizer = Optimizer(config, 2, 10, reference)
    for step, (tree, grads) in enumerate(zip(ours, gradients, strict=True)):
        grads = {name: value.astype(np.float64) for name, value in leaves_by_name(grads).items()}
        reference = optimizer.update(reference, grads)
        for leaf, value in leaves_by_name(tree).items():
            moved = np.abs(reference[leaf] - leaves_by_name(params)[leaf]).max()
            np.testing.assert_allclose(
                value, reference[leaf], rtol=2e-6, atol=tolerance * moved, err_msg=f"{step} {leaf}"
            )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_multipliers_change_the_update_of_the_parameters_that_they_name(name):
    """The last that fits counts. Weight decay is multiplied too, so a parameter with 0 stays as it is."""
    params = params_of_a_mixer()
    rng = np.random.default_rng(1)
    grads = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    plain, text = {"name": name, "weight_decay": 0.5}, "stem=0,*/*_mixing/*/kernel=0.1,MixerBlock_0/channel_mixing=3"
    before = leaves_by_name(params)
    one, ours = (
        leaves_by_name(run_steps(optimizer_config(**plain, **more), lambda _: 0.01, params, [grads])[0])
        for more in ({}, {"multipliers": text})
    )
    for leaf in before:
        factor = 0 if "stem" in leaf else 3 if "channel_mixing" in leaf else 1
        factor = 0.1 if "token_mixing" in leaf and "kernel" in leaf else factor
        expected = factor * (one[leaf].astype(np.float64) - before[leaf])
        np.testing.assert_allclose(ours[leaf] - before[leaf], expected, rtol=1e-3, atol=3e-7, err_msg=leaf)
        assert factor or (ours[leaf] == before[leaf]).all()


def test_what_is_not_finite_does_not_move_a_parameter_that_stays():
    params = params_of_a_mixer()
    config = optimizer_config(name="momentum", clip_norm=0.0, multipliers="*=0")
    (after,) = run_steps(config, lambda _: 0.1, params, [jax.tree.map(lambda leaf: leaf * np.inf, params)])
    jax.tree.map(np.testing.assert_array_equal, after, params)


@pytest.mark.parametrize("part", ["stem", "stem=", "=1", "stem=-1", "stem=nan", "stem=inf", ""])
def test_a_multiplier_that_is_none_is_refused(part):
    with pytest.raises(UserError, match=r"multipliers: .*: expected NAME=FACTOR with a finite factor of at least 0"):
        make_optimizer(optimizer_config(multipliers=f"head=2,{part}"), lambda _: 0.1, devices.make_mesh())


def test_a_multiplier_of_no_parameter_is_refused():
    tx = make_optimizer(optimizer_config(multipliers="stem=0,blocks=1"), lambda _: 0.1, devices.make_mesh())
    known = "MixerBlock_0, head, pre_head_layer_norm, stem"
    with pytest.raises(UserError, match=rf"no parameter is called 'blocks'; they begin with {known}$"):
        tx.init(params_of_a_mixer())
