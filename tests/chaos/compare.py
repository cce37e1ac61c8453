"""Compares two runs: every bit of the state, and every line of the metrics."""

import pathlib
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp

from mixer.training.metrics import deterministic, read_metrics

_SHOWN = 3  # how many differences of one kind are listed

_reading = threading.Lock()  # two trials may end at the same time


def state(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Reads all arrays of a checkpoint by path: parameters, averages, optimizer state, counters and checksums."""
    folder = workdir.resolve() / "checkpoints" / str(step) / "default"
    with _reading, ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        saved = reader.restore(folder, restore_args=as_numpy)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}


def state_differences(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> list[str]:
    """Returns a line for each array that differs in any bit."""
    names = [name for name in sorted({*expected, *found}) if not _same_bits(expected.get(name), found.get(name))]
    return _shortened([f"array {name} differs" for name in names])


def _same_bits(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return False
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Reads the lines of the metrics without measured times."""
    return [deterministic(line) for line in read_metrics(workdir)]


def metrics_differences(expected: list[dict[str, float]], found: list[dict[str, float]]) -> list[str]:
    """Returns a line for each step whose metrics differ."""
    pairs = zip(expected, found, strict=False)
    problems = [f"metrics of step {one['step']} differ: {one} and {other}" for one, other in pairs if one != other]
    return _shortened(problems)


def order_differences(found: list[dict[str, float]], steps: int) -> list[str]:
    """Returns a line if the metrics do not have every step exactly once and in order."""
    numbers = [line["step"] for line in found]
    if numbers == list(range(1, steps + 1)):
        return []
    return [f"metrics.jsonl holds the steps {numbers}, not 1 to {steps}"]


def differences(expected: pathlib.Path, found: pathlib.Path, steps: int) -> list[str]:
    """Returns all differences between a disturbed run and the undisturbed one, one line each."""
    lines = metrics(found)
    return (
        order_differences(lines, steps)
        + metrics_differences(metrics(expected), lines)
        + state_differences(state(expected, steps), state(found, steps))
    )


def loss_differences(
    expected: pathlib.Path, found: pathlib.Path, steps: int, after: int, near: int, tight: float, loose: float
) -> list[str]:
    """Returns a line for each step whose losses differ too much.

    Args:
      expected: folder of the undisturbed run.
      found: folder of the disturbed run.
      steps: of both runs.
      after: the step after which the layout of the disturbed run changed. Until then the losses must be equal.
      near: how many steps after the change have the tight tolerance. Later steps have the loose one.
      tight: relative tolerance.
      loose: relative tolerance.
    """
    lines = metrics(found)
    problems = order_differences(lines, steps)
    for one, other in zip(metrics(expected), lines, strict=False):
        step, losses = one["step"], (one["train/loss"], other["train/loss"])
        tolerance = 0.0 if step <= after else tight if step <= after + near else loose
        if abs(losses[0] - losses[1]) > tolerance * abs(losses[0]):
            problems.append(f"loss of step {step}: {losses[0]} and {losses[1]}, apart by more than {tolerance:g}")
    return _shortened(problems)


def _shortened(lines: list[str]) -> list[str]:
    left = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"... and {left} more like it"] if left > 0 else lines
