"""The training step: against NumPy, against itself in parts, and on eight devices against one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.runtime import devices
from mixer.training import sharding
from mixer.training.step import init_state, mixup, normalize, split_batch

ALL_CHANCE = {"mixup.p": 0.5, "model.dropout": 0.1, "model.stochastic_depth": 0.5}
GRADIENT_IS_KEPT = {  # plain momentum: after one step its trace is the gradient
    "optimizer.name": "momentum", "optimizer.clip_norm": 0.0, "optimizer.weight_decay": 0.0,
}  # fmt: skip


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def relative_difference(one, other):
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, one, other)) / optax.tree.norm(other))


# --------------------------------------------------------------------------------------------------------------- parts


def test_normalize_maps_bytes_to_minus_one_and_one():
    images = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 1, 1, 3))
    normal = np.asarray(normalize(jnp.asarray(images)))[:, 0, 0, 0]
    np.testing.assert_allclose(normal, np.linspace(-1, 1, 256), atol=2e-7)
    assert (normal[0], normal[255]) == (-1, 1)


@settings(max_examples=25, deadline=None)
@given(
    group=st.sampled_from([2, 4, 8]),
    p=st.sampled_from([0.2, 0.5, 0.8]),
    seed=st.integers(0, 9),
    unreadable=st.sets(st.integers(0, 7)),
)
def test_mixup_equals_numpy(group, p, seed, unreadable):
    rng = np.random.default_rng(seed)
    pictures, targets = rng.integers(0, 256, (8, 2, 2, 3), np.uint8), rng.uniform(size=(8, 5))
    images = pictures / 127.5 - 1
    weight = np.array([row not in unreadable for row in range(8)], np.float32)
    mixed_images, mixed_targets = mixup(
        jnp.asarray(pictures), jnp.asarray(targets, jnp.float32), jnp.asarray(weight),
        jax.random.key(seed), p, group,
    )  # fmt: skip
    neighbour = np.array([row - 1 if row % group else row + group - 1 for row in range(8)])
    alone = weight[neighbour] == 0
    np.testing.assert_allclose(np.asarray(mixed_images)[alone], images[alone], atol=1e-6)
    np.testing.assert_array_equal(np.asarray(mixed_targets)[alone], np.float32(targets)[alone])
    if alone.all():
        return
    # One lambda explains every row: solve for it in the first, and expect it everywhere.
    row = np.flatnonzero(~alone)[0]
    difference = (targets - targets[neighbour])[row]
    lam = float(np.dot(np.asarray(mixed_targets)[row] - targets[neighbour][row], difference) / np.sum(difference**2))
    assert 0.5 - 1e-6 <= lam <= 1 + 1e-6
    lam = np.where(alone, 1, lam)
    expected = lam[:, None] * targets + (1 - lam)[:, None] * targets[neighbour]
    np.testing.assert_allclose(mixed_targets, expected, atol=1e-5)
    lam = lam[:, None, None, None]
    np.testing.assert_allclose(mixed_images, lam * images + (1 - lam) * images[neighbour], atol=1e-5)


def test_lambda_is_the_larger_part_of_a_beta_draw():
    """Beta(0.5, 0.5), folded at 1/2, has the distribution function 4/pi asin(sqrt(x)) - 1."""
    images = jnp.zeros((2, 1, 1, 3), jnp.uint8)
    draw = jax.vmap(lambda key: mixup(images, jnp.eye(2), jnp.ones(2), key, 0.5, 2)[1][0, 0])
    lam = np.sort(draw(jax.random.split(jax.random.key(0), 2000)))
    expected = 4 / np.pi * np.arcsin(np.sqrt(lam)) - 1
    # Kolmogorov-Smirnov: the largest gap exceeds 1.95/sqrt(n) once in a thousand seeds.
    assert np.abs(expected - np.arange(2000) / 2000).max() < 1.95 / np.sqrt(2000)


@settings(max_examples=25, deadline=None)
@given(
    devices=st.sampled_from([1, 2, 4]),
    parts=st.sampled_from([1, 2, 4]),
    group=st.sampled_from([1, 2, 4]),
    groups=st.integers(1, 2),
)
def test_split_batch_keeps_groups_whole_and_rows_on_their_device(devices, parts, group, groups):
    per_device = parts * group * groups
    rows = jnp.arange(devices * per_device)
    split = np.asarray(split_batch({"row": rows}, parts, group)["row"])
    assert split.shape == (parts, devices * group * groups)
    np.testing.assert_array_equal(np.sort(split.ravel()), rows)
    # A device holds consecutive rows before, and consecutive places of each part after.
    places = np.arange(devices * group * groups) // (group * groups)
    np.testing.assert_array_equal(split // per_device, np.broadcast_to(places, split.shape))
    grouped = split.reshape(-1, group)
    np.testing.assert_array_equal(grouped, grouped[:, :1] // group * group + np.arange(group))


# ------------------------------------------------------------------------------------------------------- one whole step


@pytest.fixture(scope="module")
def plain(small, one_device):
    """A run without chance, with a moving average, on one device."""
    # So large an epsilon makes Adam's first step smooth: by default it is the gradient's sign, even of rounding.
    settings = {"ema_decay": 0.9, "optimizer.learning_rate": 0.01, "optimizer.epsilon": 0.1, "max_nonfinite_steps": 1}
    run = small.make_run(**settings)
    state, _, step = small.on_mesh(run, one_device)
    return run, state, step


def test_a_step_equals_one_written_out(plain, small):
    """Loss and gradient by the definition, update and moving average in float64 NumPy."""
    run, state, step = plain
    batch = small.make_batch(8, weight=np.array([1, 1, 0, 1, 1, 1, 1, 0], np.float32))
    used = batch["weight"] > 0
    targets = np.zeros((6, small.classes), np.float32)
    for row, labels in zip(targets, batch["labels"][used], strict=True):
        row[labels] = 1

    def mean_loss(params):
        logits = run.model.apply({"params": params}, jnp.asarray(batch["image"][used] / 127.5 - 1, jnp.float32))
        log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return -jnp.sum(targets * log_p + (1 - targets) * log_not_p) / 6

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    grads = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), grads)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(grads)))
    assert norm > 1  # clipping has something to do

    def adam(path, param, grad):
        param, grad = np.asarray(param, np.float64), grad / norm
        mean, spread = (0.1 * grad) / (1 - 0.9), np.sqrt(0.001 * grad**2 / (1 - 0.999))
        decay = 0.1 * param if path[-1].key == "kernel" else 0
        return param - 0.005 * (mean / (spread + 0.1) + decay)  # the first of two warm-up steps

    expected = jax.tree_util.tree_map_with_path(adam, state.params, grads)
    after, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(metrics["learning_rate"]) == pytest.approx(0.005)
    assert (int(after.step), int(metrics["nonfinite_steps"])) == (1, 0)
    for ours, theirs in zip(*map(jax.tree.leaves, (after.params, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=2e-7)  # a step is 1e-3 in size
    assert float(metrics["param_norm"]) == pytest.approx(float(optax.tree.norm(after.params)), rel=1e-6)
    for average, old, new in zip(*map(jax.tree.leaves, (after.ema_params, state.params, after.params)), strict=True):
        np.testing.assert_allclose(average, 0.9 * np.float64(old) + 0.1 * np.float64(new), rtol=1e-6, atol=1e-7)


def test_a_fresh_state_can_be_donated(plain, small):
    """The average starts as a copy: given away twice, one buffer for both would be an error."""
    run, _, _ = plain
    state = jax.jit(lambda: init_state(run.model, run.tx, run.config, small.statuses))()
    assert_same_bits(state.ema_params, state.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 1, s), donate_argnums=0)(state))


def test_the_same_step_twice_has_the_same_bits(plain, small):
    _, state, step = plain
    batch = small.make_batch(8)
    assert_same_bits(step(state, batch), step(state, batch))


def test_rows_of_weight_zero_have_no_influence(plain, small):
    _, state, step = plain
    weight = np.array([0, 1, 1, 1, 0, 1, 1, 1], np.float32)
    batch, other = (small.make_batch(8, seed=seed, weight=weight) for seed in (0, 1))
    used = weight > 0
    other["image"][used], other["labels"][used] = batch["image"][used], batch["labels"][used]
    assert not np.array_equal(batch["image"], other["image"])
    assert_same_bits(step(state, batch), step(state, other))


def test_a_batch_of_weight_zero_moves_nothing_but_decay(plain, small):
    _, state, step = plain
    after, metrics = step(state, small.make_batch(8, weight=np.zeros(8, np.float32)))
    assert (float(metrics["loss"]), float(metrics["grad_norm"]), int(metrics["nonfinite_steps"])) == (0, 0, 0)
    assert_same_bits(after.params["head"]["bias"], state.params["head"]["bias"])


@pytest.mark.parametrize("place", ["params", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(plain, small, place):
    _, state, step = plain
    batch = small.make_batch(8, status=np.array([0, 2, 0, 0, 0, 0, 0, 0], np.int32))
    state = step(state, batch)[0]
    head = state.params["head"]
    if place == "params":
        broken = {**head, "bias": head["bias"] + jnp.inf}
    else:  # a loss of about 1e38, which is finite, while the square of its gradient is not
        broken = {**head, "kernel": 0 * head["kernel"] + 1e37}
    state = state.replace(params={**state.params, "head": broken})
    after, metrics = step(state, batch)
    assert (int(metrics["nonfinite_steps"]), bool(metrics["diverged"])) == (1, False)
    assert np.isfinite(metrics["loss"]) == (place == "gradient")
    for field in ("params", "opt_state", "ema_params"):
        assert_same_bits(getattr(after, field), getattr(state, field))
    assert int(after.step) == int(state.step) + 1
    np.testing.assert_array_equal(after.bad_images, [0, 0, 2, 0, 0, 0, 0])


def test_beyond_what_may_be_left_out_the_state_stands_still(plain, small):
    """Two steps that are not finite where one may be: neither of them, nor any good batch behind, moves anything."""
    _, state, step = plain
    good = small.make_batch(8, status=np.array([0, 2, 0, 0, 0, 0, 0, 0], np.int32))
    broken = {**good, "weight": np.full(8, np.inf, np.float32)}
    once = step(step(state, good)[0], broken)[0]
    going_on, metrics = step(once, good)
    assert (int(going_on.step), int(metrics["nonfinite_steps"]), bool(metrics["diverged"])) == (3, 1, False)
    assert not np.array_equal(going_on.params["head"]["bias"], once.params["head"]["bias"])
    ended, metrics = step(once, broken)
    for _ in range(2):
        assert (int(metrics["step"]), bool(metrics["diverged"])) == (2, True)
        for field in ("step", "params", "opt_state", "ema_params", "bad_images"):
            assert_same_bits(getattr(ended, field), getattr(once, field))
        ended, metrics = step(ended, good)


def test_bad_images_are_counted_by_status(plain, small):
    _, state, step = plain
    for status in ([1, 0, 3, 3, 6, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 2]):
        state, metrics = step(state, small.make_batch(8, status=np.array(status, np.int32)))
    np.testing.assert_array_equal(state.bad_images, [0, 1, 1, 3, 0, 0, 1])
    np.testing.assert_array_equal(metrics["bad_images"], state.bad_images)


# ------------------------------------------------------------------------------------------------- parts and devices


def gradient_of(state):
    (trace,) = (part.trace for part in state.opt_state if isinstance(part, optax.TraceState))
    return trace


COLLECTIVE = re.compile(r"= .*? (all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(?:-start)?\(")


def collectives(compiled):
    found = COLLECTIVE.findall(compiled.as_text())
    assert "all-reduce" in found  # of the gradients: so the pattern is that of the compiler's text
    return set(found)


def unreadable_rows(rows):
    weight = np.ones(rows, np.float32)
    weight[[1, 6]] = 0
    return weight


@pytest.mark.parametrize(("mixup_p", "devices"), [(0.0, 1), (0.5, 8)], ids=["plain", "mixup on 8 devices"])
def test_gradients_of_four_parts_are_those_of_the_whole(small, one_device, mesh, mixup_p, devices):
    settings = {**GRADIENT_IS_KEPT, "mixup.p": mixup_p, "mixup.group": 2}
    batch = small.make_batch(64, weight=unreadable_rows(64))
    whole, _, step = small.on_mesh(small.make_run(**settings), one_device)
    whole, whole_metrics = step(whole, batch)
    parts_mesh = mesh if devices == 8 else one_device
    parts, _, step = small.on_mesh(small.make_run(**settings, accumulate_steps=4), parts_mesh)
    batch = devices.to_devices(batch, parts_mesh)
    compiled = step.lower(parts, batch).compile()
    parts, parts_metrics = compiled(parts, batch)
    assert relative_difference(gradient_of(jax.device_get(parts)), gradient_of(jax.device_get(whole))) < 1e-5
    assert float(parts_metrics["loss"]) == pytest.approx(float(whole_metrics["loss"]), rel=1e-5)
    if devices == 8:
        assert collectives(compiled) == {"all-reduce"}  # no row changes device


@pytest.fixture(scope="module")
def losses_on_one_device(small, one_device):
    return five_losses(small, one_device, "data_parallel")[0]


def five_losses(small, mesh, kind):
    """With everything that draws at random, and rows that cannot be read."""
    state, _, step = small.on_mesh(small.make_run(**ALL_CHANCE), mesh, kind)
    batches = [devices.to_devices(small.make_batch(16, seed, weight=unreadable_rows(16)), mesh) for seed in range(5)]
    compiled = step.lower(state, batches[0]).compile()
    found = []
    for batch in batches:
        state, metrics = compiled(state, batch)
        found.append(float(metrics["loss"]))
    return found, compiled


@pytest.mark.parametrize("kind", sharding.SHARDINGS)
def test_eight_devices_compute_what_one_does(small, mesh, monkeypatch, losses_on_one_device, kind):
    monkeypatch.setattr(sharding, "_SMALLEST_SHARDED", 16)
    found, compiled = five_losses(small, mesh, kind)
    np.testing.assert_allclose(found, losses_on_one_device, rtol=1e-5)
    assert len(set(found)) == 5
    if kind == "data_parallel":
        assert collectives(compiled) == {"all-reduce"}
    else:
        assert "all-gather" in collectives(compiled)  # of parameters, where they are used
