"""The training step as every run takes it, from `setup.build`: against float64, in parts, on one and eight devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from float64 import LOSS_GRADIENTS, LOSSES, Optimizer, global_norm, mixer, mixer_gradient, schedule, slope, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import BLOCKS, CLASSES, PATCH, TOTAL_STEPS, WARMUP_STEPS, make_batch, make_run

from mixer import models
from mixer.config.settings import SETTINGS
from mixer.runtime import devices
from mixer.training import sharding
from mixer.training.step import exact_outputs, normalize, split_batch

ALL_CHANCE = {"mixup.p": 0.5, "mixup.cutmix": 0.5, "model.dropout": 0.1, "model.stochastic_depth": 0.5}
GRADIENT_IS_KEPT = {  # plain momentum: after one step its trace is the gradient
    "optimizer.name": "momentum", "optimizer.clip_norm": 0.0, "optimizer.weight_decay": 0.0,
}  # fmt: skip


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def relative_difference(one, other):
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, one, other)) / optax.tree.norm(other))


# --------------------------------------------------------------------------------------------------------------- parts


def test_outputs_that_are_said_to_be_exact_ask_for_float32_products():
    """On a CPU all products of float32 are; TPUs and GPUs round their factors unless they are asked not to."""
    model = models.create("Ti/4", 3, num_blocks=1, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    text = jax.jit(exact_outputs, static_argnums=0).lower(model, params, images).as_text()
    products = [line for line in text.splitlines() if re.search("dot_general|convolution", line)]
    assert len(products) == 6  # stem, four layers, head
    assert all("HIGHEST" in line for line in products)


def test_normalize_maps_bytes_to_minus_one_and_one():
    images = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 1, 1, 3))
    normal = np.asarray(normalize(jnp.asarray(images)))[:, 0, 0, 0]
    np.testing.assert_allclose(normal, np.linspace(-1, 1, 256), atol=2e-7)
    assert (normal[0], normal[255]) == (-1, 1)


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

# By default Adam's first step is the sign of the gradient, even of a gradient that is rounding alone. So large an
# epsilon makes it smooth.
SMOOTH = {"optimizer.learning_rate": 0.01, "optimizer.epsilon": 0.1, "optimizer.clip_norm": 0.2}
STEPS = 3
UNUSABLE = (1, 6)  # rows of weight zero


def small_batch(rows, seed=0, unusable=UNUSABLE, **columns):
    """A batch with unusable rows."""
    weight = np.ones(rows, np.float32)
    weight[list(unusable)] = 0
    return make_batch(rows, seed, weight=weight, **columns)


def by_name(tree):
    """The arrays of a tree in float64, by their path."""
    return {jax.tree_util.keystr(path): np.array(leaf, np.float64) for path, leaf in jax.tree.leaves_with_path(tree)}


def nested(tree, arrays):
    """The tree again, with these arrays."""
    return jax.tree.unflatten(jax.tree.structure(tree), list(arrays.values()))


def mixed(config, step, batch):
    """Images and targets of a batch in float64. Lambda comes from the step's key."""
    images, labels = batch["image"] / 127.5 - 1, targets(batch["labels"], CLASSES)
    if config.loss == "softmax_xent":  # the labels of an image share its part of a mixed one
        labels = labels / np.maximum(labels.sum(1, keepdims=True), 1)
    labels = labels + config.label_smoothing * (labels.sum(1, keepdims=True) / CLASSES - labels)
    if not config.mixup.p:
        return images, labels
    key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))[0]
    lam = float(jax.random.beta(key, config.mixup.p, config.mixup.p))
    rows = np.arange(len(images))
    neighbour = np.where(rows % 2, rows - 1, rows + 1)  # groups are pairs
    lam = np.where(batch["weight"][neighbour] > 0, max(lam, 1 - lam), 1.0)
    of_images, of_labels = lam[:, None, None, None], lam[:, None]
    images = of_images * images + (1 - of_images) * images[neighbour]
    return images, of_labels * labels + (1 - of_labels) * labels[neighbour]


def loss_and_gradient(loss, params, images, wanted):
    """Of the mean over the rows, in float64."""
    logits, _ = mixer(params, images, PATCH, BLOCKS)
    value = np.sum(LOSSES[loss](logits, wanted)) / len(images)
    return value, mixer_gradient(params, images, PATCH, BLOCKS, LOSS_GRADIENTS[loss](logits, wanted) / len(images))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_float64_gradient_is_the_slope_of_the_float64_loss(loss, one_device):
    """Of each array along a random direction: so the reference below needs no trust."""
    tree = jax.device_get(make_run(one_device).state().params)
    batch, rng = make_batch(4), np.random.default_rng(0)
    images, wanted = batch["image"] / 127.5 - 1, targets(batch["labels"], CLASSES)
    params = by_name(tree)
    _, grads = loss_and_gradient(loss, nested(tree, params), images, wanted)
    for name, grad in by_name(grads).items():

        def loss_at(array, name=name):
            return loss_and_gradient(loss, nested(tree, {**params, name: array}), images, wanted)[0]

        direction = rng.normal(size=grad.shape)
        assert np.sum(grad * direction) == pytest.approx(slope(loss_at, params[name], direction), rel=1e-6, abs=1e-8)


SMOOTHING = {"sigmoid_xent": 0.0, "softmax_xent": 0.1}


@functools.cache
def reference(loss, mixup_p):
    """The first steps in float64: of each the loss, the gradient's norm, the parameters, their average and moments."""
    settings = {"ema_decay": 0.9, "mixup.p": mixup_p, "label_smoothing": SMOOTHING[loss]}
    run = make_run(devices.make_mesh(jax.devices()[:1]), **SMOOTH, loss=loss, **settings)
    tree = jax.device_get(run.state().params)
    params = average = by_name(tree)
    optimizer = Optimizer(run.config.optimizer, WARMUP_STEPS, TOTAL_STEPS, params)
    steps = []
    for step in range(STEPS):
        batch = small_batch(32, seed=step)
        images, wanted = mixed(run.config, step, batch)
        used = batch["weight"] > 0
        value, grads = loss_and_gradient(loss, nested(tree, params), images[used], wanted[used])
        grads = by_name(grads)
        params = optimizer.update(params, grads)
        average = {name: 0.9 * average[name] + 0.1 * array for name, array in params.items()}
        moments = [dict(optimizer.first), dict(optimizer.second)]
        steps.append((value, global_norm(grads), params, average, moments))
    return steps


LAYOUTS = [(1, "data_parallel"), (8, "data_parallel"), (8, "fully_sharded")]  # one device cannot split an array
STEP_SETTINGS = [  # loss, mixup.p, accumulate_steps: each value of one with each of another
    ("sigmoid_xent", 0.0, 1), ("sigmoid_xent", 0.5, 2), ("softmax_xent", 0.0, 2), ("softmax_xent", 0.5, 1),
]  # fmt: skip


def in_short(num_devices, kind, mixup_p, parts):
    """Of eight devices two settings, with both losses, with mixup and without; of one device one."""
    return (kind == "data_parallel") == (parts == 1) and (mixup_p > 0 or num_devices == 8)


@pytest.mark.parametrize(
    ("num_devices", "kind", "loss", "mixup_p", "parts"),
    [
        pytest.param(
            devices,
            kind,
            loss,
            mixup_p,
            parts,
            marks=[] if in_short(devices, kind, mixup_p, parts) else pytest.mark.slow,
        )
        for devices, kind in LAYOUTS
        for loss, mixup_p, parts in STEP_SETTINGS
    ],
)
def test_the_first_steps_equal_float64(monkeypatch, num_devices, kind, loss, mixup_p, parts):
    monkeypatch.setattr(sharding, "_SMALLEST_SHARDED", 16)
    settings = {
        "ema_decay": 0.9, "mixup.p": mixup_p, "accumulate_steps": parts, "label_smoothing": SMOOTHING[loss],
    }  # fmt: skip
    run = make_run(devices.make_mesh(jax.devices()[:num_devices]), **SMOOTH, loss=loss, sharding=kind, **settings)
    state = run.state()
    is_split = not state.params["head"]["kernel"].is_fully_replicated
    assert is_split == (num_devices == 8 and kind == "fully_sharded")
    for step, (value, norm, params, average, moments) in enumerate(reference(loss, mixup_p)):
        given_away, (state, metrics) = state, run.step(state, small_batch(32, seed=step))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given_away))  # it was donated
        assert norm > 0.2  # clipping has something to do
        assert float(metrics["loss"]) == pytest.approx(value, rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
        assert float(metrics["learning_rate"]) == pytest.approx(
            schedule(run.config.optimizer, WARMUP_STEPS, TOTAL_STEPS, step), rel=1e-6
        )
        assert float(metrics["param_norm"]) == pytest.approx(global_norm(params), rel=1e-6)
        assert (int(state.step), int(metrics["step"]), int(metrics["nonfinite_steps"])) == (step + 1, step + 1, 0)
        (adam,) = (part for part in state.opt_state if isinstance(part, optax.ScaleByAdamState))
        for ours, theirs in zip((adam.mu, adam.nu), moments, strict=True):
            for name, array in by_name(ours).items():  # moments of the gradient, which clipping brought to norm 0.2
                np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-7, err_msg=f"{step} {name}")
        for ours, theirs in ((state.params, params), (state.ema_params, average)):
            for name, array in by_name(ours).items():  # a step is 1e-3 in size
                np.testing.assert_allclose(array, theirs[name], rtol=1e-6, atol=3e-7, err_msg=f"{step} {name}")


@pytest.mark.parametrize(("parts", "keys"), [(1, "threefry"), (2, "threefry"), (2, "rbg")])
def test_the_model_is_trained_with_a_dropout_key_of_each_step_and_part(one_device, parts, keys):
    run = make_run(one_device, **{"model.dropout": 0.5, "accumulate_steps": parts, "dropout_keys": keys})
    state, batch = run.state(), small_batch(8)

    @jax.jit
    def apply(params, images, key):
        return run.model.apply({"params": params}, images, train=True, rngs={"dropout": key})

    for step in range(2):
        key = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), step))[1]
        if keys == "rbg":
            key = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2), impl="rbg")
        total = 0.0
        for part in range(parts):  # of every `parts` rows one goes to each part
            rows = slice(part, None, parts)
            part_key = key if parts == 1 else jax.random.fold_in(key, part)
            images = jnp.asarray(batch["image"][rows] / 127.5 - 1, jnp.float32)
            logits = np.float64(apply(state.params, images, part_key))
            losses = LOSSES["sigmoid_xent"](logits, targets(batch["labels"][rows], CLASSES))
            total += np.sum(losses * batch["weight"][rows])
        saved = jax.device_get(state)
        state, metrics = run.step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(total / np.sum(batch["weight"]), rel=1e-5)
    assert_same_bits(run.step(run.copy(saved), batch)[0], state)  # so a run that continues draws the same again


def test_the_loss_of_a_batch_with_one_usable_row_is_that_rows(plain):
    batch = small_batch(8, unusable=(0, 1, 2, 4, 5, 6, 7))
    params = jax.tree.map(np.float64, jax.device_get(plain.state().params))
    value, _ = loss_and_gradient(
        "sigmoid_xent", params, batch["image"][3:4] / 127.5 - 1, targets(batch["labels"][3:4], CLASSES)
    )
    assert float(plain.step(plain.state(), batch)[1]["loss"]) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(("mixup_p", "parts"), [(0.0, 1), (0.5, 2)])
def test_an_image_without_a_label_is_not_in_the_mean_of_a_softmax(one_device, mixup_p, parts):
    """With mixup, what its neighbour gives it counts, and what it takes from its neighbour does not."""
    run = make_run(
        one_device, **{"loss": "softmax_xent", "mixup.p": mixup_p, "mixup.group": 2, "accumulate_steps": parts}
    )
    batch = small_batch(8, unusable=())
    batch["labels"][[1, 2, 3]] = -1
    images, wanted = mixed(run.config, 0, batch)
    params = jax.tree.map(np.float64, jax.device_get(run.state().params))
    logits, _ = mixer(params, images, PATCH, BLOCKS)
    expected = np.sum(LOSSES["softmax_xent"](logits, wanted)) / 5
    assert float(run.step(run.state(), batch)[1]["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def plain(one_device):
    """A run without chance, with a moving average, on one device."""
    return make_run(one_device, **SMOOTH, ema_decay=0.9, max_nonfinite_steps=1)


def test_a_fresh_state_can_be_donated(plain):
    """The average starts as a copy of the parameters. One buffer for both could not be donated twice."""
    state = plain.setup.init()
    assert_same_bits(state.ema_params, state.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    after, _ = jax.block_until_ready(plain.step(state, make_batch(8)))
    assert int(after.step) == 1


def test_the_same_step_twice_has_the_same_bits(plain):
    batch = make_batch(8)
    assert_same_bits(plain.step(plain.state(), batch), plain.step(plain.state(), batch))


def test_rows_of_weight_zero_have_no_influence(plain):
    batch, other = (small_batch(8, seed, unusable=(0, 4)) for seed in (0, 1))
    used = batch["weight"] > 0
    other["image"][used], other["labels"][used] = batch["image"][used], batch["labels"][used]
    assert not np.array_equal(batch["image"], other["image"])
    assert_same_bits(plain.step(plain.state(), batch), plain.step(plain.state(), other))


def test_a_batch_of_weight_zero_moves_nothing_but_decay(plain):
    before = plain.state()
    after, metrics = plain.step(plain.copy(before), make_batch(8, weight=np.zeros(8, np.float32)))
    assert (float(metrics["loss"]), float(metrics["grad_norm"]), int(metrics["nonfinite_steps"])) == (0, 0, 0)
    assert_same_bits(after.params["head"]["bias"], before.params["head"]["bias"])


@pytest.mark.parametrize("place", ["params", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(plain, place):
    batch = make_batch(8, status=np.array([0, 2, 0, 0, 0, 0, 0, 0], np.int32))
    state = plain.step(plain.state(), batch)[0]
    head = state.params["head"]
    if place == "params":
        broken = {**head, "bias": head["bias"] + jnp.inf}
    else:  # a loss of about 1e38, which is finite, while the square of its gradient is not
        broken = {**head, "kernel": 0 * head["kernel"] + 1e37}
    state = state.replace(params={**state.params, "head": broken})
    after, metrics = plain.step(plain.copy(state), batch)
    assert (int(metrics["nonfinite_steps"]), bool(metrics["diverged"])) == (1, False)
    assert np.isfinite(metrics["loss"]) == (place == "gradient")
    for field in ("params", "opt_state", "ema_params"):
        assert_same_bits(getattr(after, field), getattr(state, field))
    assert int(after.step) == int(state.step) + 1
    np.testing.assert_array_equal(after.bad_images, [0, 0, 2, 0, 0, 0, 0])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_least_epsilon_makes_no_nan_of_a_zero_gradient(one_device, optimizer):
    """The head begins at zero, so all gradients behind it do: with epsilon 0 the update would be 0/0."""
    run = make_run(one_device, **{"optimizer.name": optimizer, "optimizer.epsilon": SETTINGS["optimizer.epsilon"].low})
    after, metrics = run.step(run.setup.init(), make_batch(8))
    assert int(metrics["nonfinite_steps"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.params, after.opt_state)))


def test_no_parameter_waits_for_the_update_of_another(plain):
    """A check of all new parameters before one is kept has taken a TPU up to two fifths of a step (docs/lab/tpu.md).

    So a NaN in the optimizer's average for the head's bias spoils that bias, and all others are as without it. The norm
    of the parameters tells the loop, which then does not save.
    """
    state, batch = plain.state(), make_batch(8)
    spoiled = jax.tree.map_with_path(
        lambda path, leaf: leaf * np.nan if "mu['head']['bias']" in jax.tree_util.keystr(path) else leaf,
        plain.copy(state).opt_state,
    )
    after, metrics = plain.step(plain.copy(state.replace(opt_state=spoiled)), batch)
    expected = jax.device_get(plain.step(state, batch)[0].params)
    assert np.isfinite(expected["head"].pop("bias")).all()
    found = jax.device_get(after.params)
    assert np.isnan(found["head"].pop("bias")).all()
    assert_same_bits(found, expected)
    assert np.isnan(metrics["param_norm"])


def test_beyond_what_may_be_left_out_the_state_stands_still(plain):
    """Two steps that are not finite where one may be: neither they nor later batches move anything."""
    good = make_batch(8, status=np.array([0, 2, 0, 0, 0, 0, 0, 0], np.int32))
    broken = {**good, "weight": np.full(8, np.inf, np.float32)}
    once = plain.step(plain.step(plain.state(), good)[0], broken)[0]
    going_on, metrics = plain.step(plain.copy(once), good)
    assert (int(going_on.step), int(metrics["nonfinite_steps"]), bool(metrics["diverged"])) == (3, 1, False)
    assert not np.array_equal(going_on.params["head"]["bias"], once.params["head"]["bias"])
    # This is step 3 of the run, for which the optimizer has taken two. So its rate is that of step 2.
    _, later = plain.step(plain.copy(going_on), good)
    of_step = functools.partial(schedule, plain.config.optimizer, WARMUP_STEPS, TOTAL_STEPS)
    assert float(later["learning_rate"]) == pytest.approx(of_step(2), rel=1e-6)
    assert of_step(3) < 0.9 * of_step(2)
    ended, metrics = plain.step(plain.copy(once), broken)
    for _ in range(2):
        assert (int(metrics["step"]), bool(metrics["diverged"])) == (2, True)
        for field in ("step", "params", "opt_state", "ema_params", "bad_images"):
            assert_same_bits(getattr(ended, field), getattr(once, field))
        ended, metrics = plain.step(ended, good)


def test_bad_images_are_counted_by_status(plain):
    state = plain.state()
    for status in ([1, 0, 3, 3, 6, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 2]):
        state, metrics = plain.step(state, make_batch(8, status=np.array(status, np.int32)))
    np.testing.assert_array_equal(state.bad_images, [0, 1, 1, 3, 0, 0, 1])
    np.testing.assert_array_equal(metrics["bad_images"], state.bad_images)


# ------------------------------------------------------------------------------------------------- parts and devices


def gradient_of(state):
    (trace,) = (part.trace for part in state.opt_state if isinstance(part, optax.TraceState))
    return jax.device_get(trace)


COLLECTIVE = re.compile(r"= .*? (all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(?:-start)?\(")


def collectives(compiled):
    found = COLLECTIVE.findall(compiled.as_text())
    assert "all-reduce" in found  # of the gradients: so the pattern is that of the compiler's text
    return set(found)


@pytest.mark.parametrize(
    ("mixup_p", "num_devices"),
    [pytest.param(0.0, 1, id="plain", marks=pytest.mark.slow), pytest.param(0.5, 8, id="mixed on 8 devices")],
)
def test_gradients_of_four_parts_are_those_of_the_whole(one_device, mixup_p, num_devices):
    settings = {**GRADIENT_IS_KEPT, "mixup.p": mixup_p, "mixup.cutmix": mixup_p}
    batch = small_batch(64)
    run = make_run(one_device, **settings)
    whole, whole_metrics = run.step(run.state(), batch)
    mesh = devices.make_mesh(jax.devices()[:num_devices])
    run = make_run(mesh, **settings, accumulate_steps=4)
    batch = devices.to_devices(batch, mesh)
    compiled = run.step.lower(run.setup.abstract_state, batch).compile()
    parts, parts_metrics = compiled(run.state(), batch)
    assert relative_difference(gradient_of(parts), gradient_of(whole)) < 1e-5
    assert float(parts_metrics["loss"]) == pytest.approx(float(whole_metrics["loss"]), rel=1e-5)
    if num_devices == 8:
        assert collectives(compiled) == {"all-reduce"}  # no row changes device


@pytest.fixture(scope="module")
def losses_on_one_device(one_device):
    return five_losses(one_device, "data_parallel")[0]


def five_losses(mesh, kind):
    """With everything that draws at random, and unusable rows."""
    run = make_run(mesh, **ALL_CHANCE, sharding=kind)
    batches = [devices.to_devices(small_batch(16, seed), mesh) for seed in range(5)]
    compiled = run.step.lower(run.setup.abstract_state, batches[0]).compile()
    state, found = run.state(), []
    for batch in batches:
        state, metrics = compiled(state, batch)
        found.append(float(metrics["loss"]))
    return found, compiled


@pytest.mark.parametrize("kind", sharding.SHARDINGS)
def test_eight_devices_compute_what_one_does(mesh, monkeypatch, losses_on_one_device, kind):
    monkeypatch.setattr(sharding, "_SMALLEST_SHARDED", 16)
    found, compiled = five_losses(mesh, kind)
    np.testing.assert_allclose(found, losses_on_one_device, rtol=1e-5)
    assert len(set(found)) == 5
    if kind == "data_parallel":
        assert collectives(compiled) == {"all-reduce"}
    else:
        assert "all-gather" in collectives(compiled)  # of parameters, where they are used
