"""What two runs that computed the same must have in common: every bit of the state, and every line of the metrics."""

import pathlib
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp

from mixer.training.metrics import read_metrics

_TIMED = ("images_per_sec_per_core", "device_wait_share", "seconds_left")
_SHOWN = 3  # differences of one kind that are listed

_reading = threading.Lock()  # two trials may end at once


def state(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by their paths: parameters, averages, optimizer state, counters and checksums."""
    folder = workdir.resolve() / "checkpoints" / str(step) / "default"
    with _reading, ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        saved = reader.restore(folder, restore_args=as_numpy)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}


def state_differences(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> list[str]:
    """Names the arrays that are not the same bit for bit."""
    names = [name for name in sorted({*expected, *found}) if not _same_bits(expected.get(name), found.get(name))]
    return _shortened([f"array {name} differs" for name in names])


def _same_bits(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return False
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The lines of the metrics without what depends on the clock."""
    return [{key: value for key, value in row.items() if not key.endswith(_TIMED)} for row in read_metrics(workdir)]


def metrics_differences(expected: list[dict[str, float]], found: list[dict[str, float]]) -> list[str]:
    """Names the steps whose lines are not the same."""
    pairs = zip(expected, found, strict=False)
    lines = [f"metrics of step {one['step']} differ: {one} and {other}" for one, other in pairs if one != other]
    return _shortened(lines)


def order_differences(found: list[dict[str, float]], steps: int) -> list[str]:
    """Says so if the metrics do not hold every step exactly once and in order."""
    numbers = [row["step"] for row in found]
    if numbers == list(range(1, steps + 1)):
        return []
    return [f"metrics.jsonl holds the steps {numbers}, not 1 to {steps}"]


def differences(expected: pathlib.Path, found: pathlib.Path, steps: int) -> list[str]:
    """All in which a disturbed run differs from the undisturbed one."""
    rows = metrics(found)
    return (
        order_differences(rows, steps)
        + metrics_differences(metrics(expected), rows)
        + state_differences(state(expected, steps), state(found, steps))
    )


def loss_differences(
    expected: pathlib.Path, found: pathlib.Path, steps: int, after: int, near: int, tight: float, loose: float
) -> list[str]:
    """Losses that differ by more than `tight` in the `near` steps behind step `after`, or than `loose` later on."""
    rows = metrics(found)
    problems = order_differences(rows, steps)
    for one, other in zip(metrics(expected), rows, strict=False):
        step, losses = one["step"], (one["train/loss"], other["train/loss"])
        tolerance = 0.0 if step <= after else tight if step <= after + near else loose
        if abs(losses[0] - losses[1]) > tolerance * abs(losses[0]):
            problems.append(f"loss of step {step}: {losses[0]} and {losses[1]}, apart by more than {tolerance:g}")
    return _shortened(problems)


def _shortened(lines: list[str]) -> list[str]:
    left = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"... and {left} more like it"] if left > 0 else lines
