"""What an evaluation found, in lines for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mixer.data.class_names import readable

if TYPE_CHECKING:
    from mixer.evaluation.accuracy import Evaluation

_NAMED_CLASSES = 5  # of the best and of the worst, in the table

# What the metrics of multi-label data are called in the table.
_OF_SEVERAL_LABELS = {
    "baseline_mean_average_precision": "  equal scores for all would have",
    "accuracy": "first guess is among the labels",
    "baseline_accuracy": "  the commonest label would be",
}


def summary(described: dict[str, Any], metrics: dict[str, float]) -> list[str]:
    """Returns lines that say what was evaluated, how, and with what result."""
    lines = [
        f"{described['model']} ({described['checkpoint']}) on {described['dataset']} {described['split']}, "
        f"{described['image_size']} px, {described['eval_crop']} from {described['eval_resize']} px"
    ]
    said = _OF_SEVERAL_LABELS if "mean_average_precision" in metrics else {}
    for name, value in metrics.items():
        is_share = "accuracy" in name or "precision" in name or name.startswith("fewshot/")
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.2%}" if is_share else f"{value:.4f}"
        lines.append(f"  {said.get(name, name.replace('_', ' ')):36} {shown:>9}")
    if metrics.get("labelled") == 0:
        lines.append(f"  no accuracy: {described['dataset']} {described['split']} has no labels")
    return lines


def by_class(found: Evaluation, class_names: Any) -> list[str]:
    """Returns lines with the most and the least accurate classes; none for multi-label data."""
    if found.class_accuracy is None:
        return []
    order = np.argsort(-found.class_accuracy, kind="stable")
    order = order[~np.isnan(found.class_accuracy[order])]
    best, worst = order[:_NAMED_CLASSES], order[max(len(order) - _NAMED_CLASSES, _NAMED_CLASSES) :]
    names, lines = readable(class_names), []
    for title, classes in (("best classes", best), ("worst classes", worst)):
        if len(classes):
            lines.append(f"  {title}")
            lines += [f"    {names[c]:34} {found.class_accuracy[c]:>9.2%}" for c in classes]
    return lines
