"""Cost against the number of patches: Mixer's grows as a straight line (Section 1 of the paper), ViT's as a parabola.

Three models of S size with patches of 16 pixels, at growing image sizes: Mixer with the token width D_S it has at
224 pixels, Mixer whose D_S grows with the number of patches as in fine-tuning at higher resolution (Appendix C),
and ViT.
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from mixer.models import MIXER_VARIANTS
from mixer.performance import compiling, model_speed
from mixer.runtime.errors import UserError

_PATCH = 16
_GRIDS = (7, 14, 20, 28, 40, 56)  # patches of a side; 14 is the paper's 224 pixels
_STRAIGHT_FROM = 1  # in the picture: smaller images are too little work to begin a straight line with
_BATCH = 1  # images: at 56 x 56 patches one is work enough, and all sizes are measured alike


@dataclasses.dataclass(frozen=True)
class Curve:
    """One model's inference at several image sizes.

    Attributes:
      name: of the model.
      patches: of an image.
      gflop: of the forward pass of an image, by the formula.
      seconds: for an image, median of the blocks; least and most: of the fastest and the slowest block.
    """

    name: str
    patches: tuple[int, ...]
    gflop: tuple[float, ...]
    seconds: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    def exponent(self, values: Sequence[float]) -> float:
        """How values grow between the two largest sizes: 1 is a straight line through zero, 2 a parabola."""
        return math.log(values[-1] / values[-2]) / math.log(self.patches[-1] / self.patches[-2])


def _scaled(grid: int) -> dict[str, int]:
    return {"tokens_mlp_dim": max(MIXER_VARIANTS["S"].tokens_mlp_dim * grid**2 // 14**2, 1)}


# A curve's name, its variant, and the options that it has on a grid of so many patches.
_CURVES: dict[str, tuple[str, Callable[[int], dict[str, int]]]] = {
    "Mixer-S/16, D_S fixed": ("S/16", lambda grid: {}),
    "Mixer-S/16, D_S scaled": ("S/16", _scaled),
    "ViT-S/16": ("ViT-S/16", lambda grid: {}),
}


def measure(
    settings: model_speed.Settings, tell: Callable[[str], None] = lambda line: None, grids: Sequence[int] = _GRIDS
) -> list[Curve]:
    """Measures each model at each image size; settings.image_size is not looked at.

    Raises:
      UserError: a size does not fit in memory.
    """
    rows: dict[str, list[model_speed.Row]] = {name: [] for name in _CURVES}
    for grid in grids:
        at_size = dataclasses.replace(settings, image_size=grid * _PATCH)
        for name, (variant, options) in _CURVES.items():  # one after the other, so that the machine's moods hit all
            try:
                row = model_speed.measure(
                    variant, "inference", _BATCH, settings=at_size, peak_flops=None, **options(grid)
                )
            except compiling.DoesNotFitError as error:
                raise UserError(f"{name} at {grid}x{grid} patches: {error}") from None
            tell(f"{name}, {grid}x{grid} patches: {1e3 / row.images_per_sec_per_core:.4g} ms an image")
            rows[name].append(row)
    return [
        Curve(
            name=name,
            patches=tuple(grid**2 for grid in grids),
            gflop=tuple(row.gflop_per_image for row in found),
            seconds=tuple(1 / row.images_per_sec_per_core for row in found),
            least=tuple(1 / row.highest for row in found),
            most=tuple(1 / row.lowest for row in found),
        )
        for name, found in rows.items()
    ]


def table(curves: Sequence[Curve]) -> str:
    """GFLOP and milliseconds for an image, a line for each number of patches, and how they grow at the end."""
    columns = ("{:<9}" + "{:>34}" * len(curves)).format
    lines = [columns("patches", *(curve.name for curve in curves))]
    for i, patches in enumerate(curves[0].patches):
        cells = (f"{curve.gflop[i]:.4g} GFLOP {curve.seconds[i] * 1e3:>9.4g} ms" for curve in curves)
        lines.append(columns(patches, *cells))
    growth = (f"{curve.exponent(curve.gflop):.2f} {curve.exponent(curve.seconds):>12.2f}   " for curve in curves)
    lines.append(columns("exponent", *growth))
    return "\n".join([*lines, "exponent: of the number of patches, between the last two lines"])


def check_drawing() -> None:
    """Checks that there is something to draw with, before minutes are spent on measuring.

    Raises:
      UserError: there is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--scaling draws with matplotlib, which is missing: pip install 'mixer[quickstart]'")


def draw(curves: Sequence[Curve], path: epath.Path) -> None:
    """Draws FLOPs and times against the number of patches into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, unit, values in (
        (panels[0], "GFLOP for an image", lambda curve: curve.gflop),
        (panels[1], "seconds for an image", lambda curve: curve.seconds),
    ):
        for curve in curves:
            (line,) = panel.plot(curve.patches, values(curve), marker="o", label=curve.name)
            per_patch = values(curve)[_STRAIGHT_FROM] / curve.patches[_STRAIGHT_FROM]
            straight = [per_patch * count for count in curve.patches]
            panel.plot(curve.patches, straight, linestyle=":", color=line.get_color())
        panel.set(xlabel="patches of an image", ylabel=unit, ylim=(0, None), xlim=(0, None))
        panel.grid(alpha=0.3)
    for curve in curves:
        panels[1].fill_between(curve.patches, curve.least, curve.most, alpha=0.2)
    panels[0].legend(title=f"dotted: in proportion from {curves[0].patches[_STRAIGHT_FROM]} patches", frameon=False)
    figure.suptitle("Inference: cost against the number of patches")
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)
