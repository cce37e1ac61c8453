"""What a line of metrics says of the steps since the line before, against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import make_batch, make_run

from mixer.runtime import devices
from mixer.training import health, line_metrics


def counted(logits, labels, weight=None):
    weight = np.ones(len(labels)) if weight is None else weight
    found = line_metrics.guesses(jnp.float32(logits), jnp.int32(labels), jnp.float32(weight))
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("ties", [False, True])
def test_guesses_equal_a_sort(ties):
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, (64, 9)) if ties else rng.normal(size=(64, 9))
    labels, weight = rng.integers(-1, 9, (64, 1)), rng.integers(0, 2, 64)
    order = np.argsort(-logits, axis=1, kind="stable")
    counts = (weight > 0) & (labels[:, 0] >= 0)
    assert counted(logits, labels, weight) == {
        "labelled": counts.sum(),
        "correct": (counts & (order[:, 0] == labels[:, 0])).sum(),
        "top5": (counts & (order[:, :5] == labels).any(axis=1)).sum(),
    }


def test_equal_logits_are_not_all_correct():
    assert counted(np.zeros((9, 9)), np.arange(9)[:, None]) == {"labelled": 9, "correct": 1, "top5": 5}


def test_a_guess_among_several_labels_is_correct():
    logits = np.float32([[0, 1, 2, 3, 4, 5, 6]] * 5)
    labels = [[6, 0], [0, 6], [5, 4], [-1, -1], [6, -1]]
    assert counted(logits, labels) == {"labelled": 4, "correct": 3}  # no top-5, which means little for several labels


def test_five_classes_have_no_top5():
    assert "top5" not in counted(np.zeros((2, 5)), [[0], [1]])


def test_means_of_a_line():
    sums = {"steps": 4.0, "loss": 6.0, "labelled": 8.0, "correct": 2.0, "top5": 6.0}
    assert line_metrics.means(sums, mixed=False) == {"loss": 1.5, "accuracy": 0.25, "top5_accuracy": 0.75}
    assert line_metrics.means(sums, mixed=True) == {"loss": 1.5, "mixed_accuracy": 0.25, "mixed_top5_accuracy": 0.75}
    assert line_metrics.means({"steps": 2.0, "loss": 3.0}, mixed=False) == {"loss": 1.5}
    nothing = line_metrics.means(dict.fromkeys(sums, 0.0), mixed=False)
    assert set(nothing) == {"loss", "accuracy", "top5_accuracy"}
    assert all(math.isnan(value) for value in nothing.values())


def steps(run, batches, state=None):
    """Takes steps; returns the state and the line of metrics after each."""
    state, lines = run.state() if state is None else state, []
    for number, batch in enumerate(batches):
        state, metrics = run.step(state, jax.device_put(batch, devices.batch_sharding(run.mesh)))
        lines.append((metrics, health.checked_metrics(number + 1, 8, metrics, run.config)))
    return state, lines


@pytest.mark.parametrize("parts", [1, 2])
def test_a_line_has_the_means_since_the_line_before(one_device, parts):
    run = make_run(one_device, max_nonfinite_steps=1, accumulate_steps=parts)
    batches = [make_batch(8, seed) for seed in range(4)]
    batches[1]["weight"][:2] = 0
    state, lines = steps(run, batches)
    losses = [float(metrics["loss"]) for metrics, _ in lines]
    for number, (_, line) in enumerate(lines):
        assert line["loss"] == pytest.approx(np.mean(losses[: number + 1]), rel=1e-6)
    correct = labelled = 0
    state = run.state()
    for batch in batches:
        logits = run.model.apply({"params": state.params}, jnp.asarray(batch["image"]) / 127.5 - 1)
        right = (np.argmax(logits, axis=1)[:, None] == batch["labels"]).any(axis=1)
        correct, labelled = correct + np.sum(right * batch["weight"]), labelled + np.sum(batch["weight"])
        state = run.step(state, jax.device_put(batch, devices.batch_sharding(run.mesh)))[0]
    assert lines[-1][1]["accuracy"] == pytest.approx(float(correct / labelled), rel=1e-6)
    assert float(state.line_sums[0]) == 4
    # The loop empties the sums after a line.
    _, later = steps(run, batches[:1], state.replace(line_sums=run.setup.no_sums()))
    assert later[0][1]["loss"] == pytest.approx(float(later[0][0]["loss"]), rel=1e-6)


def test_a_step_that_is_skipped_counts_in_no_mean(one_device):
    run = make_run(one_device, max_nonfinite_steps=2)
    good, bad = make_batch(4), make_batch(4, weight=np.full(4, np.nan, np.float32))
    _, ((first, _), (_, after_bad)) = steps(run, [good, bad])
    assert after_bad["nonfinite_steps"] == 1
    assert after_bad["loss"] == float(first["loss"])
    _, ((_, only_bad),) = steps(run, [bad])
    assert math.isnan(only_bad["loss"])
    assert math.isnan(only_bad["accuracy"])


def test_accuracy_can_be_left_out_and_has_another_name_with_mixup(one_device):
    batches = [make_batch(4)]
    assert "accuracy" not in steps(make_run(one_device, **{"metrics.train_accuracy": False}), batches)[1][0][1]
    _, ((_, line),) = steps(make_run(one_device, **{"mixup.p": 0.5}), batches)
    assert "mixed_accuracy" in line
    assert "accuracy" not in line


def without_last_biases(params):
    """Without those of token mixing: they have no effect, and what changes them is rounding."""
    for name in params:
        if name.startswith("MixerBlock_"):
            del params[name]["token_mixing"]["Dense_1"]["bias"]
    return params


def test_norms_as_the_config_asks(one_device):
    batch = make_batch(4)
    found = {}
    for which in ("total", "updates", "layers"):
        run = make_run(one_device, **{"metrics.norms": which})
        before = jax.device_get(run.state().params)
        state, ((_, found[which]),) = steps(run, [batch])
    after = jax.device_get(state.params)
    assert "update_ratio" not in found["total"]
    added = set(found["updates"]) - set(found["total"])
    assert added == {"update_ratio"}
    assert {name for name in found["layers"] if "/" in name} == {
        f"{kind}/{layer}" for kind in ("grad_norm", "param_norm", "update_ratio") for layer in before
    }

    def norm(tree):
        return math.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(tree)))

    assert found["layers"]["param_norm"] == pytest.approx(norm(after), rel=1e-5)
    for layer in before:
        assert found["layers"][f"param_norm/{layer}"] == pytest.approx(norm(after[layer]), rel=1e-5)
    after, before = without_last_biases(after), without_last_biases(before)
    for name, new, old in [("", after, before), *((f"/{layer}", after[layer], before[layer]) for layer in before)]:
        change = norm(jax.tree.map(np.subtract, new, old))
        assert found["layers"][f"update_ratio{name}"] == pytest.approx(change / norm(old), rel=1e-4)
    layers = [found["layers"][f"grad_norm/{layer}"] for layer in before]
    assert found["layers"]["grad_norm"] == pytest.approx(math.hypot(*layers), rel=1e-5)


@pytest.mark.parametrize(
    "settings", [pytest.param({}, marks=pytest.mark.slow), {"mixup.p": 0.5, "accumulate_steps": 2}]
)
def test_what_is_measured_changes_no_bit_of_the_parameters(mesh, settings):
    measured = [{"metrics.train_accuracy": False}, {"metrics.train_accuracy": True, "metrics.norms": "layers"}]
    states = [
        steps(make_run(mesh, **settings, **each), [make_batch(32, seed) for seed in range(3)])[0] for each in measured
    ]
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    jax.tree.map(np.testing.assert_array_equal, states[0].opt_state, states[1].opt_state)
