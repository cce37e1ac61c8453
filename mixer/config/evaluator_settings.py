"""The settings of each evaluator in config.evaluators, as evaluators.NAME.kind and so on."""

from mixer.config.schema import Needs, Registry, Setting
from mixer.config.settings import EVAL_CROPS, SETTINGS, UNITS

EVALUATOR: dict[str, Setting] = {
    "kind": Setting(
        "classification", "kind of evaluation", "evaluation/evaluators.py",
        choices=Registry("mixer.evaluation.evaluators:KINDS"),
    ),
    "optional": Setting(
        False, "whether to leave it out, with a message, if its data is not there or has other classes than the model",
        "evaluation/evaluators.py",
    ),
    **{
        f"every_{unit}": Setting(
            None, "interval between evaluations; the run's if not set", "config/durations.py", kind=kind, unit=unit,
            positive=True,
        )
        for unit, kind in UNITS.items()
    },
    "dataset": Setting(None, "dataset; input.dataset if not set", "evaluation/classification.py", kind=str),
    "data_dir": Setting(
        None, "folder of the dataset; input.data_dir if not set", "evaluation/classification.py", kind=str,
    ),
    "split": Setting("test", "split on which the metrics are measured", "evaluation/classification.py"),
    "label_key": Setting(
        None, "input.label_key of its own dataset", "evaluation/classification.py", kind=str, needs=(Needs("dataset"),),
    ),
    "max_labels": Setting(
        None, "input.max_labels of its own dataset", "evaluation/classification.py", kind=int, low=1,
        needs=(Needs("dataset"),),
    ),
    "eval_crop": Setting(
        None, "crop; if not set, input.eval_crop for classification and fewshot.eval_crop's default for few_shot",
        "evaluation/classification.py", kind=str, choices=EVAL_CROPS,
    ),
    "eval_resize": Setting(
        None, "size before that crop; if not set, input.eval_resize for classification and 8/7 of image_size for "
        "few_shot", "evaluation/classification.py", kind=int, unit="pixels", low=1,
    ),
    **{
        name: Setting(of.default, of.meaning, of.read_by, low=of.low, needs=(Needs("kind", ("few_shot",)),))
        for name, of in ((name, SETTINGS[f"fewshot.{name}"]) for name in ("train_split", "shots", "seeds", "l2"))
    },
}  # fmt: skip
