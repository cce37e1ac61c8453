"""What ends a run that must not go on: a loss that is not finite, or too many unusable images."""

import math
from collections.abc import Mapping

import jax
import ml_collections

from mixer.data.pixels import image_status
from mixer.runtime.errors import DivergedError, UserError
from mixer.training import line_metrics, mixing
from mixer.training.step import Metrics

_FEWEST = 1000  # images; among fewer, a single unusable image would be a large share


def checked_metrics(
    seen: int, num_examples: int, metrics: Metrics, config: ml_collections.ConfigDict
) -> dict[str, float]:
    """Reads the metrics of a step from the devices, and checks that the run may go on.

    Args:
      seen: images that the run has taken in.
      num_examples: of an epoch.
      metrics: of its last step.
      config: of the run.

    Returns:
      Metrics by name. Loss and accuracy are means over the steps since the last line, the others are of the last
      step. Counts of unusable images and of skipped steps only where they are not zero.

    Raises:
      DivergedError: loss, gradient or parameters are no longer finite.
      UserError: too many images cannot be used.
    """
    values = jax.device_get(metrics)
    diverged = bool(values.pop("diverged"))
    if diverged or not math.isfinite(values["param_norm"]):
        raise DivergedError(
            f"loss, gradient or parameters are not finite at step {values['step'] + diverged}, with "
            f"config.max_nonfinite_steps={config.max_nonfinite_steps}: the run stops; start again with a "
            "lower optimizer.learning_rate, in another --workdir and, if this run has checkpoints, with "
            "config.init_from: they are sound"
        )
    bad = zip(image_status.STATUSES[1:], values.pop("bad_images")[1:].tolist(), strict=True)
    counts = {f"bad_images/{status}": count for status, count in bad if count}
    if skipped := int(values.pop("nonfinite_steps")):
        counts["nonfinite_steps"] = skipped
    del values["step"]
    means = line_metrics.means(values.pop("line_sums"), mixed=mixing.is_on(config))
    check_images(counts, "bad_images/", seen, num_examples, config)
    return {name: float(value) for name, value in values.items()} | means | counts


def check_images(
    metrics: Mapping[str, float], prefix: str, seen: int, num_examples: int, config: ml_collections.ConfigDict
) -> None:
    """Checks the share of images that cannot be used. Each counts once, however often it was seen.

    Args:
      metrics: the counts of unusable images have names that begin with `prefix`.
      prefix: followed by the kind of damage.
      seen: number of images, each as often as it was seen.
      num_examples: of an epoch.
      config: of the run.

    Raises:
      UserError: it is larger than config.input.max_bad_share.
    """
    bad = {name.removeprefix(prefix): count for name, count in metrics.items() if name.startswith(prefix)}
    epochs = max(seen / max(num_examples, 1), 1.0)
    if sum(bad.values()) / epochs > config.input.max_bad_share * max(min(seen, num_examples), _FEWEST):
        kinds = ", ".join(f"{count} {status}" for status, count in bad.items())
        raise UserError(
            f"{sum(bad.values()) / seen:.2%} of {seen:,} images cannot be used ({kinds}), more than "
            f"config.input.max_bad_share={config.input.max_bad_share:.2%}: mend the data, or raise the share"
        )


def unusable_images(row: Mapping[str, float]) -> str:
    """Returns the counts in a line of metrics, such as "in the last evaluation 1 truncated, 2 empty"."""
    counts: dict[str, list[str]] = {}
    for metric, count in row.items():
        name, found, kind = metric.partition("/bad_images/")
        if found and not name.endswith("_ema"):  # its images are those of the evaluator without average
            counts.setdefault(name, []).append(f"{count:g} {kind}")
    known = {"train": "in training, as often as met,", "val": "in the last evaluation"}
    where = {name: known.get(name, f"in the last evaluation of {name}") for name in counts}
    return "; ".join(f"{where[name]} {', '.join(of_name)}" for name, of_name in counts.items())
