"""Cost against the number of patches: linear for Mixer (Section 1 of the paper), quadratic for ViT.

`tokens` compares what a token costs in any model as its images grow. `measure` compares three models of size S with
patches of 16 pixels:

- Mixer with the token width D_S that it has at 224 pixels;
- Mixer with a D_S that grows with the number of patches, as in fine-tuning at higher resolution (Appendix C);
- ViT.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple, cast

from etils import epath
from matplotlib.figure import Figure

from mixer import models
from mixer.models.mlp_mixer import VARIANTS as MIXER_VARIANTS
from mixer.performance import compiling, model_speed
from mixer.runtime import files
from mixer.runtime.errors import UserError

_PATCH = 16  # pixels
_GRIDS = (7, 14, 20, 28, 40, 56)  # patches along one side; 14 is the paper's 224 pixels
TOKEN_GRIDS = (7, 8, 12, 14, 16)  # the same for `tokens`: S/32 at 224 and 256 pixels, and S/16
_LINE_THROUGH = 1  # index of the size that fixes the dotted lines; the smallest is dominated by fixed costs
_BATCH = 1  # image: enough work at 56 x 56 patches, and all sizes are measured alike


@dataclasses.dataclass(frozen=True)
class Curve:
    """The inference cost of one model at several image sizes.

    Attributes:
      name: of the model.
      patches: of an image, for each size.
      gflop: of the forward pass of one image, by the formula.
      seconds: for one image, median of the blocks.
      least: the same for the fastest block.
      most: the same for the slowest block.
    """

    name: str
    patches: tuple[int, ...]
    gflop: tuple[float, ...]
    seconds: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns all attributes, for JSON."""
        return dataclasses.asdict(self)

    def exponent(self, values: Sequence[float]) -> float:
        """Returns the p of values ~ patches^p between the two largest sizes: 1 is linear, 2 is quadratic."""
        return math.log(values[-1] / values[-2]) / math.log(self.patches[-1] / self.patches[-2])


def _scaled(grid: int) -> dict[str, int]:
    return {"tokens_mlp_dim": max(MIXER_VARIANTS["S"].tokens_mlp_dim * grid**2 // 14**2, 1)}


# From the name of a curve to its variant, and to its settings of the model on a grid of grid x grid patches.
_CURVES: dict[str, tuple[str, Callable[[int], dict[str, int]]]] = {
    "Mixer-S/16, D_S fixed": ("S/16", lambda grid: {}),
    "Mixer-S/16, D_S scaled": ("S/16", _scaled),
    "ViT-S/16": ("ViT-S/16", lambda grid: {}),
}


def measure(
    settings: model_speed.Settings, tell: Callable[[str], None] = lambda line: None, grids: Sequence[int] = _GRIDS
) -> list[Curve]:
    """Measures each model at each image size.

    Args:
      settings: how to measure; its image_size is replaced.
      tell: called with a line for each measurement.
      grids: patches along one side of the image.

    Raises:
      UserError: a size does not fit in memory.
    """
    found: dict[str, list[model_speed.Measurement]] = {name: [] for name in _CURVES}
    for grid in grids:
        at_size = dataclasses.replace(settings, image_size=grid * _PATCH)
        for name, (variant, widths) in _CURVES.items():  # in turns: if the machine's speed drifts, it drifts for all
            try:
                one = model_speed.measure(
                    variant, "inference", _BATCH, settings=at_size, peak_flops=None, **widths(grid)
                )
            except compiling.DoesNotFitError as error:
                raise UserError(f"{name} at {grid}x{grid} patches: {error}") from None
            tell(f"{name}, {grid}x{grid} patches: {1e3 / one.images_per_sec_per_core:.4g} ms an image")
            found[name].append(one)
    patches = tuple(grid**2 for grid in grids)
    return [_curve(name, patches, measurements) for name, measurements in found.items()]


def _curve(name: str, patches: tuple[int, ...], found: Sequence[model_speed.Measurement]) -> Curve:
    return Curve(
        name=name,
        patches=patches,
        gflop=tuple(one.gflop_per_image for one in found),
        seconds=tuple(1 / one.images_per_sec_per_core for one in found),
        least=tuple(1 / one.highest for one in found),
        most=tuple(1 / one.lowest for one in found),
    )


def table(curves: Sequence[Curve]) -> str:
    """Returns a table of GFLOP and milliseconds for one image, a line for each number of patches."""
    columns = ("{:<9}" + "{:>34}" * len(curves)).format
    lines = [columns("patches", *(curve.name for curve in curves))]
    for i, patches in enumerate(curves[0].patches):
        cells = (f"{curve.gflop[i]:.4g} GFLOP {curve.seconds[i] * 1e3:>9.4g} ms" for curve in curves)
        lines.append(columns(patches, *cells))
    growth = (f"{curve.exponent(curve.gflop):.2f} {curve.exponent(curve.seconds):>12.2f}   " for curve in curves)
    lines.append(columns("exponent", *growth))
    return "\n".join([*lines, "exponent: of the number of patches, between the last two lines"])


class Tokens(NamedTuple):
    """What a token costs in one model at one image size. The work for a token is the same at all sizes for Mixer.

    Attributes:
      model: its name.
      mode: one of `model_speed.MODES`.
      image_size: in pixels.
      patches: of an image.
      nanoseconds: for a token, on a core.
      utilisation: share of the peak; None where the peak is not known.
      images_per_sec_per_core: at this image size.
    """

    model: str
    mode: str
    image_size: int
    patches: int
    nanoseconds: float
    utilisation: float | None
    images_per_sec_per_core: float


def tokens(
    variant: str,
    mode: str,
    batch_size: int,
    measure_at: Callable[..., model_speed.Measurement],
    settings: model_speed.Settings,
    tell: Callable[[str], None] = lambda line: None,
    grids: Sequence[int] = TOKEN_GRIDS,
) -> list[Tokens]:
    """Measures what a token of a model costs at several numbers of patches; the widths stay those of the variant.

    Args:
      variant: of the model.
      mode: one of `model_speed.MODES`.
      batch_size: images on each core.
      measure_at: `model_speed.measure` or `estimate`, with their arguments but the settings bound.
      settings: how to measure; its image_size is replaced.
      tell: called with a line for each measurement.
      grids: patches along one side of the image.

    Raises:
      UserError: the model has no patches, or a size does not fit in memory.
    """
    patch_size = getattr(models.create(variant, 0), "patch_size", None)
    if patch_size is None:
        raise UserError(f"--models: {variant} has no patches; give a Mixer or a ViT")
    found = []
    for grid in grids:
        at_size = dataclasses.replace(settings, image_size=grid * patch_size)
        try:
            one = measure_at(variant, mode, batch_size, settings=at_size)
        except compiling.DoesNotFitError as error:
            where = f"{variant}, {mode}, at {grid}x{grid} patches"
            raise UserError(f"{where}: {error}; give a smaller --batch_sizes") from None
        rate = one.images_per_sec_per_core
        found.append(Tokens(one.model, mode, at_size.image_size, grid**2, 1e9 / rate / grid**2, one.utilisation, rate))
        tell(f"{variant} {mode}, {grid}x{grid} patches: {found[-1].nanoseconds:.4g} ns a token")
    return found


def tokens_table(found: Sequence[Tokens]) -> str:
    """Returns a table with a line for each measurement."""
    columns = "{:<14}{:<11}{:>8}{:>9}{:>12}{:>10}{:>12}".format
    lines = [columns("model", "mode", "pixels", "patches", "ns a token", "MFU", "images/s")]
    for one in found:
        mfu = "?" if one.utilisation is None else f"{one.utilisation:.1%}"
        lines.append(columns(
            one.model, one.mode, one.image_size, one.patches, f"{one.nanoseconds:.4g}", mfu,
            f"{one.images_per_sec_per_core:.4g}",
        ))  # fmt: skip
    return "\n".join(lines)


def draw(curves: Sequence[Curve], path: epath.Path) -> None:
    """Draws FLOPs and times against the number of patches, into a PNG file."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, unit, values in (
        (panels[0], "GFLOP for an image", [curve.gflop for curve in curves]),
        (panels[1], "seconds for an image", [curve.seconds for curve in curves]),
    ):
        for curve, of_curve in zip(curves, values, strict=True):
            (line,) = panel.plot(curve.patches, of_curve, marker="o", label=curve.name)
            per_patch = of_curve[_LINE_THROUGH] / curve.patches[_LINE_THROUGH]
            straight = [per_patch * count for count in curve.patches]
            panel.plot(curve.patches, straight, linestyle=":", color=line.get_color())
        panel.set(xlabel="patches of an image", ylabel=unit, ylim=(0, None), xlim=(0, None))
        panel.grid(alpha=0.3)
    for curve in curves:
        panels[1].fill_between(curve.patches, curve.least, curve.most, alpha=0.2)
    panels[0].legend(title=f"dotted: proportional to {curves[0].patches[_LINE_THROUGH]} patches", frameon=False)
    figure.suptitle("Inference: cost against the number of patches")
    with files.opened_to_write(path) as file:
        figure.savefig(cast("IO[bytes]", file), format="png", dpi=120)
