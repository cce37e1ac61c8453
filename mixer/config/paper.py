"""The paper's results for Mixer (arXiv 2105.01601v4, Tables 2 and 3), for comparison with one's own."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """A pre-trained model's results.

    Attributes:
      variant: such as "B/16".
      pretraining: a key of `DATA`.
      image_size: of fine-tuning, in pixels; pre-training was at 224.
      epochs: of pre-training.
      imagenet: accuracy after fine-tuning, per cent.
      real: the same with the ReaL labels.
      avg5: accuracy, per cent, on average over the five tasks of `mixer.tasks.AVG5`.
      images_per_sec_per_core: inference on TPU-v3, at the best batch size.
      thousand_core_days: of pre-training, in thousands of TPU-v3 core-days; extrapolated by the paper for i1k and i21k.
      table: a key of `EVAL_CROPS`.
    """

    variant: str
    pretraining: str
    image_size: int
    epochs: int
    imagenet: float
    real: float
    avg5: float
    images_per_sec_per_core: int
    thousand_core_days: float
    table: int = 3

    @property
    def eval_crop(self) -> str:
        """The evaluation crop of the row's table."""
        return EVAL_CROPS[self.table]


EVAL_CROPS = {3: "resize_small", 2: "resize_square"}  # by table

DATA = {"i1k": "ImageNet-1k", "i21k": "ImageNet-21k", "jft": "JFT-300M"}

ROWS = (
    Row("B/16", "i1k", 224, 300, 76.44, 82.36, 88.33, 1384, 0.01),
    Row("L/16", "i1k", 224, 300, 71.76, 77.08, 87.25, 419, 0.04),
    Row("B/16", "i21k", 224, 300, 80.64, 85.80, 92.50, 1384, 0.15),
    Row("L/16", "i21k", 224, 300, 82.89, 87.54, 93.63, 419, 0.41),
    Row("L/16", "i21k", 448, 300, 83.91, 87.75, 93.86, 105, 0.41),
    Row("S/32", "jft", 224, 5, 68.70, 75.83, 87.13, 11489, 0.01),
    Row("B/32", "jft", 224, 7, 75.53, 81.94, 90.99, 4208, 0.05),
    Row("S/16", "jft", 224, 5, 73.83, 80.60, 89.50, 3994, 0.03),
    Row("B/16", "jft", 224, 7, 80.00, 85.56, 92.60, 1384, 0.08),
    Row("L/32", "jft", 224, 7, 80.67, 85.62, 93.24, 1314, 0.12),
    Row("L/16", "jft", 224, 7, 84.05, 88.14, 94.51, 419, 0.23),
    Row("L/16", "jft", 224, 14, 84.82, 88.48, 94.77, 419, 0.45),
    Row("H/14", "jft", 224, 14, 86.32, 89.14, 95.49, 194, 1.01),
    Row("L/16", "jft", 448, 14, 86.78, 89.72, 95.13, 105, 0.45),
    Row("H/14", "jft", 448, 14, 87.94, 90.18, 95.71, 40, 1.01, table=2),
    Row("L/16", "i21k", 448, 300, 84.15, 87.86, 93.91, 105, 0.41, table=2),
)


def find(variant: str, pretraining: str, image_size: int, eval_crop: str = "resize_small") -> Row:
    """Returns the paper's row for a model; the one evaluated with `eval_crop`, if there are two.

    Of two rows that differ in epochs alone (L/16, JFT-300M), it is the one with more epochs.

    Raises:
      ValueError: the paper has none; lists what it has for this data.
    """
    if pretraining not in DATA:
        raise ValueError(f"pre-training data {pretraining!r}: expected one of {', '.join(DATA)}")
    same_data = [row for row in ROWS if row.pretraining == pretraining]
    found = [row for row in same_data if (row.variant, row.image_size) == (variant, image_size)]
    if not found:
        known = dict.fromkeys(f"{row.variant} at {row.image_size}" for row in same_data)
        raise ValueError(
            f"the paper has no Mixer-{variant} from {DATA[pretraining]} at {image_size} pixels; it has "
            f"{', '.join(known)}"
        )
    return max(found, key=lambda row: (row.eval_crop == eval_crop, row.epochs))
