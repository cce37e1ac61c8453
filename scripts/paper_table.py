"""Prints the paper's Tables 2 and 3, and beside its numbers what your runs measured and what pre-flight estimates.

    python scripts/paper_table.py runs/b16_i21k runs/b16_imagenet --topology v3:8x8

A run of one of the paper's pre-training configs gives the speed and core-days of its rows; on ImageNet-1k also the
accuracy. Elsewhere the accuracy comes from a run that fine-tunes these weights on ImageNet, or from mixer.sweep.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epy

from mixer.config import paper
from mixer.runtime import files
from mixer.runtime.errors import UserError

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    import jax

    from mixer import preflight
    from mixer.config import checks, config_file
    from mixer.performance import data_facts, paper_runs, tpu_topology

if TYPE_CHECKING:
    from mixer.performance.paper_runs import Measured

Key = tuple[str, str, int]  # variant, pre-training data and epochs: a pre-training run, which several rows may share


class Estimate(NamedTuple):
    """What pre-flight says of a pre-training run; see `preflight.examine`. None: it does not fit, or is not timed."""

    images_per_sec_per_core: float | None
    core_days: float | None


_UNKNOWN = Estimate(None, None)

# ------------------------------------------------------------------------------------------------------------ estimate


def config_name(row: paper.Row) -> str:
    """Returns the name of a row's pre-training config, such as "b16_i21k"."""
    return f"{row.variant.replace('/', '').lower()}_{row.pretraining}"


def estimate(rows: Sequence[paper.Row], topology: str) -> dict[Key, Estimate]:
    """Compiles the pre-training configs of these rows for a slice; each takes minutes, of which a line is printed.

    Raises:
      UserError: libtpu is missing, or there is no such slice.
    """
    jax.config.update("jax_platforms", "cpu")  # libtpu is here only for compiling
    mesh = tpu_topology.mesh_of(topology)
    memory = tpu_topology.memory_of(mesh)
    found: dict[Key, Estimate] = {}
    by_config: dict[str, tuple[dict[str, Any], float]] = {}
    for row in rows:
        name = config_name(row)
        if name not in by_config:
            config = checks.checked(config_file.run(config_file.find(name)))
            print(f"pre-flight of {name} for {topology} ...", file=sys.stderr, flush=True)
            facts = data_facts.of(config, None, None)
            by_config[name] = preflight.examine(config, mesh, facts, memory, largest=False), config.total_epochs
        report, epochs = by_config[name]
        days = report.get("core_days")
        found[_key(row)] = Estimate(report.get("images_per_sec_per_core"), days and days * row.epochs / epochs)
    return found


def _key(row: paper.Row) -> Key:
    return row.variant, row.pretraining, row.epochs


# -------------------------------------------------------------------------------------------------------------- tables

_HEADS = [
    ("pre-training", ""), ("model", ""), ("px", ""), ("epochs", ""), ("config", ""),
    ("ImageNet", "paper"), ("ImageNet", "yours"), ("ReaL", "paper"), ("ReaL", "yours"), ("Avg 5", "paper"),
    ("Avg 5", "yours"), ("VTAB", "paper"), ("inference", "paper"), ("training", "yours"), ("training", "preflight"),
    ("core-days", "paper"), ("core-days", "yours"), ("core-days", "preflight"), ("run", ""),
]  # fmt: skip
_TEXTS = [("pre-training", ""), ("model", ""), ("config", ""), ("run", "")]  # columns that begin at the left


def cells(row: paper.Row | paper.Other, measured: Sequence[Measured], estimates: dict[Key, Estimate]) -> list[str]:
    """Returns the cells of a row, under `_HEADS`. Of two folders that say the same, the later one counts."""
    mixer = row if isinstance(row, paper.Row) else None
    mine = [one for one in measured if mixer and _key(one.row) == _key(mixer)]
    of_row = [one for one in mine if one.row == mixer]
    yours: dict[str, float | None] = {}
    for some, names in ((of_row, ("imagenet", "real", "avg5")), (mine, ("images_per_sec_per_core", "core_days"))):
        yours |= {name: getattr(one, name) for one in some for name in names if getattr(one, name) is not None}
    used = [one.folder for one in mine if one in of_row or one.core_days is not None]
    estimated = estimates.get(_key(mixer), _UNKNOWN) if mixer else _UNKNOWN
    days = row.thousand_core_days
    return [
        paper.GROUPS[row.pretraining], row.model, _number(row.image_size), _number(row.epochs),
        _config_cell(mixer) if mixer else "-",
        _percent(row.imagenet), _percent(yours.get("imagenet")), _percent(row.real), _percent(yours.get("real")),
        _percent(row.avg5), _percent(yours.get("avg5")), _percent(row.vtab),
        _number(row.images_per_sec_per_core), _number(yours.get("images_per_sec_per_core")),
        _number(estimated.images_per_sec_per_core),
        _number(days and round(1000 * days)), _number(yours.get("core_days")), _number(estimated.core_days),
        (", ".join(used) or "not run") if mixer else "-",
    ]  # fmt: skip


def _config_cell(row: paper.Row) -> str:
    """Returns the row's config, with the setting that makes it another run than the file says."""
    shared = [other.epochs for other in paper.ROWS if config_name(other) == config_name(row)]
    return config_name(row) + (f" total_epochs={row.epochs}" if row.epochs != max(shared) else "")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 100 and value != int(value) else f"{value:,.0f}"


def as_text(rows: list[list[str]]) -> str:
    """Returns a table in columns, under two lines of heads."""
    return "\n".join("  ".join(line).rstrip() for line in zip(*map(_padded, _columns(rows)), strict=True))


def _columns(rows: list[list[str]]) -> list[list[str]]:
    """Returns the columns that say anything, each with its two heads, from `cells` of each row."""
    columns = [[*head, *column] for head, column in zip(_HEADS, zip(*rows, strict=True), strict=True)]
    return [column for column in columns if set(column[2:]) != {"-"}]


def _is_text(column: list[str]) -> bool:
    return (column[0], column[1]) in _TEXTS


def _padded(column: list[str]) -> list[str]:
    width = max(map(len, column))
    return [text.ljust(width) if _is_text(column) else text.rjust(width) for text in column]


def as_markdown(rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    columns = [
        [", ".join(filter(None, column[:2])), "---" if _is_text(column) else "---:", *column[2:]]
        for column in _columns(rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


_NOTES = (
    "ImageNet, ReaL, Avg 5 (the five tasks), VTAB: accuracy, per cent. Speeds are images/s on each core: the paper's "
    "of inference, the others of training at 224 pixels.",
    "Core-days are of pre-training. The paper's are of TPU v3, those of ImageNet-1k and -21k in Table 3 extrapolated.",
    "Rows of ImageNet-21k and JFT-300M, and of 448 pixels, are fine-tuned on ImageNet: "
    "configs/finetune.py:model=b16,task=imagenet,size=448.",
)


def report(
    models: Sequence[str], measured: Sequence[Measured], estimates: dict[Key, Estimate], note: str, markdown: bool
) -> str:
    """Returns both tables and the notes below them.

    Args:
      models: variants to which the tables are restricted; all rows if empty.
      measured: of each folder.
      estimates: of each pre-training run.
      note: on the estimates; may be empty.
      markdown: rather than text.
    """
    parts = []
    for number, table in ((2, paper.TABLE_2), (3, paper.TABLE_3)):
        kept = [row for row in table if not models or (isinstance(row, paper.Row) and row.variant in models)]
        rows = [cells(row, measured, estimates) for row in kept]
        if not rows:
            continue
        title = f"Table {number}, evaluated with {paper.EVAL_CROPS[number]}"
        parts += [f"### {title}\n" if markdown else title, as_markdown(rows) if markdown else as_text(rows), ""]
    told = [*_NOTES, *filter(None, [note]), *dict.fromkeys(one.told for one in measured)]
    return "\n".join([*parts, *(f"- {line}" if markdown else line for line in told)])


# -------------------------------------------------------------------------------------------------------- command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of runs or of sweeps, local or gs://; of two "
                        "runs of a row the later one counts")  # fmt: skip
    parser.add_argument("--topology", metavar="SLICE", help="also show pre-flight's estimates for this slice, such as "
                        "v3:8x8; needs libtpu, and minutes for each config")  # fmt: skip
    parser.add_argument("--models", default="", metavar="NAMES", help="only these Mixers, such as B/16,L/16")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv` (default: that of the process) and returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        print(_report(args))
    except UserError as error:
        print(f"paper_table.py: {error}", file=sys.stderr)
        return 1
    return 0


def _report(args: argparse.Namespace) -> str:
    models = args.models.split(",") if args.models else []
    known = dict.fromkeys(row.variant for row in paper.ROWS)
    if wrong := [name for name in models if name not in known]:
        raise UserError(f"--models: the paper has no Mixer {wrong[0]!r}; it has {', '.join(known)}")
    measured = [paper_runs.measure(files.expanded(folder)) for folder in args.runs]
    if not args.topology:
        return report(models, measured, {}, "", args.markdown)
    try:
        note = f"pre-flight: the compiler's estimate for {args.topology}, optimistic"
        shown = [row for row in paper.ROWS if not models or row.variant in models]
        return report(models, measured, estimate(shown, args.topology), note, args.markdown)
    except UserError as error:
        if importlib.util.find_spec("libtpu"):
            raise
        return report(models, measured, {}, f"no estimates of pre-flight: {error}", args.markdown)


if __name__ == "__main__":
    sys.exit(main())
