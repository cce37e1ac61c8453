"""The paper's results (arXiv 2105.01601v4, Tables 2 and 3), for comparison with one's own."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """The results of a pre-trained Mixer.

    Attributes:
      variant: such as "B/16".
      pretraining: a key of `DATA`.
      image_size: of fine-tuning, in pixels; pre-training was at 224.
      epochs: of pre-training.
      imagenet: accuracy after fine-tuning, per cent.
      real: the same with the ReaL labels.
      avg5: accuracy, per cent, on average over the five tasks of `mixer.config.tasks.AVG5`.
      images_per_sec_per_core: inference on TPU-v3, at the best batch size.
      thousand_core_days: of pre-training, in thousands of TPU-v3 core-days; extrapolated by the paper for i1k and i21k.
      table: a key of `EVAL_CROPS`.
      vtab: accuracy on VTAB-1k, per cent, on average over its 19 tasks; in Table 2 alone.
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
    vtab: float | None = None

    @property
    def model(self) -> str:
        """The model's name, such as "Mixer-B/16"."""
        return f"Mixer-{self.variant}"

    @property
    def eval_crop(self) -> str:
        """The evaluation crop of the row's table."""
        return EVAL_CROPS[self.table]


@dataclasses.dataclass(frozen=True)
class Other:
    """The results of another model, beside which the paper puts Mixer's. None is what the paper does not say.

    Attributes:
      model: such as "ViT-L/16".
      pretraining: a key of `GROUPS`.
      others: as of `Row`.
    """

    model: str
    pretraining: str
    image_size: int | None
    epochs: int | None
    imagenet: float
    real: float | None
    avg5: float | None
    images_per_sec_per_core: int | None
    thousand_core_days: float | None
    vtab: float | None = None


EVAL_CROPS = {3: "resize_small", 2: "resize_square"}  # by table

DATA = {"i1k": "ImageNet-1k", "i21k": "ImageNet-21k", "jft": "JFT-300M"}

GROUPS = DATA | {"weak": "weak labels"}  # MPL: unlabelled images; ALIGN: images with their texts

# In the paper's order.
TABLE_2: tuple[Row | Other, ...] = (
    Other("HaloNet-H4", "i21k", None, None, 85.8, None, None, 120, 0.10),
    Row("L/16", "i21k", 448, 300, 84.15, 87.86, 93.91, 105, 0.41, table=2, vtab=74.95),
    Other("ViT-L/16", "i21k", None, None, 85.30, 88.62, 94.39, 32, 0.18, 72.72),
    Other("BiT-R152x4", "i21k", None, None, 85.39, None, 94.04, 26, 0.94, 70.64),
    Other("NFNet-F4+", "jft", None, None, 89.2, None, None, 46, 1.86),
    Row("H/14", "jft", 448, 14, 87.94, 90.18, 95.71, 40, 1.01, table=2, vtab=75.33),
    Other("BiT-R152x4", "jft", None, None, 87.54, 90.54, 95.33, 26, 9.90, 76.29),
    Other("ViT-H/14", "jft", None, None, 88.55, 90.72, 95.97, 15, 2.30, 77.63),
    Other("MPL", "weak", None, None, 90.0, 91.12, None, None, 20.48),
    Other("ALIGN", "weak", None, None, 88.64, None, None, 15, 14.82, 79.99),
)

TABLE_3: tuple[Row | Other, ...] = (
    Row("B/16", "i1k", 224, 300, 76.44, 82.36, 88.33, 1384, 0.01),
    Other("ViT-B/16", "i1k", 224, 300, 79.67, 84.97, 90.79, 861, 0.02),
    Row("L/16", "i1k", 224, 300, 71.76, 77.08, 87.25, 419, 0.04),
    Other("ViT-L/16", "i1k", 224, 300, 76.11, 80.93, 89.66, 280, 0.05),
    Row("B/16", "i21k", 224, 300, 80.64, 85.80, 92.50, 1384, 0.15),
    Other("ViT-B/16", "i21k", 224, 300, 84.59, 88.93, 94.16, 861, 0.18),
    Row("L/16", "i21k", 224, 300, 82.89, 87.54, 93.63, 419, 0.41),
    Other("ViT-L/16", "i21k", 224, 300, 84.46, 88.35, 94.49, 280, 0.55),
    Row("L/16", "i21k", 448, 300, 83.91, 87.75, 93.86, 105, 0.41),
    Row("S/32", "jft", 224, 5, 68.70, 75.83, 87.13, 11489, 0.01),
    Row("B/32", "jft", 224, 7, 75.53, 81.94, 90.99, 4208, 0.05),
    Row("S/16", "jft", 224, 5, 73.83, 80.60, 89.50, 3994, 0.03),
    Other("BiT-R50x1", "jft", 224, 7, 73.69, 81.92, None, 2159, 0.08),
    Row("B/16", "jft", 224, 7, 80.00, 85.56, 92.60, 1384, 0.08),
    Row("L/32", "jft", 224, 7, 80.67, 85.62, 93.24, 1314, 0.12),
    Other("BiT-R152x1", "jft", 224, 7, 79.12, 86.12, None, 932, 0.14),
    Other("BiT-R50x2", "jft", 224, 7, 78.92, 86.06, None, 890, 0.14),
    Other("BiT-R152x2", "jft", 224, 14, 83.34, 88.90, None, 356, 0.58),
    Row("L/16", "jft", 224, 7, 84.05, 88.14, 94.51, 419, 0.23),
    Row("L/16", "jft", 224, 14, 84.82, 88.48, 94.77, 419, 0.45),
    Other("ViT-L/16", "jft", 224, 14, 85.63, 89.16, 95.21, 280, 0.65),
    Row("H/14", "jft", 224, 14, 86.32, 89.14, 95.49, 194, 1.01),
    Other("BiT-R200x3", "jft", 224, 14, 84.73, 89.58, None, 141, 1.78),
    Row("L/16", "jft", 448, 14, 86.78, 89.72, 95.13, 105, 0.45),
    Other("ViT-H/14", "jft", 224, 14, 86.65, 89.56, 95.57, 87, 2.30),
    Other("ViT-L/16", "jft", 512, 14, 87.76, 90.54, 95.63, 32, 0.65),
)

ROWS = tuple(row for row in (*TABLE_3, *TABLE_2) if isinstance(row, Row))


# Settings of a model: where one is set, it is not the paper's of that variant. tokens_mlp_dim grows with the image.
SIZES = ("num_blocks", "hidden_dim", "channels_mlp_dim")


def find(
    variant: str, pretraining: str, image_size: int, eval_crop: str = "resize_small", epochs: int | None = None
) -> Row:
    """Returns the paper's row for a model; the one evaluated with `eval_crop`, if there are two.

    Of two rows that differ in epochs alone (L/16, JFT-300M), it is the one with more epochs, if `epochs` is not given.

    Raises:
      ValueError: the paper has none; lists what it has for this data.
    """
    if pretraining not in DATA:
        raise ValueError(f"pre-training data {pretraining!r}: expected one of {', '.join(DATA)}")
    same_data = [row for row in ROWS if row.pretraining == pretraining]
    found = [
        row
        for row in same_data
        if (row.variant, row.image_size, row.epochs) == (variant, image_size, epochs or row.epochs)
    ]
    if not found:
        known = dict.fromkeys(f"{row.variant} at {row.image_size}" for row in same_data)
        raise ValueError(
            f"the paper has no Mixer-{variant} from {f'{epochs} epochs of ' if epochs else ''}{DATA[pretraining]} at "
            f"{image_size} pixels; it has {', '.join(known)}"
        )
    return max(found, key=lambda row: (row.eval_crop == eval_crop, row.epochs))
