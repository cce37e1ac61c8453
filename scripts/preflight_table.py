"""Prints pre-flight's table: the paper's eleven pre-training configs on 128 cores of each generation of TPUs.

    python scripts/preflight_table.py --results preflight.jsonl

The training step of each config is compiled for each slice. That takes minutes a cell, hours in all; each cell is
added to --results, and the same command continues there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etils import epath, epy

from mixer.runtime import files, json_text
from mixer.runtime.errors import UserError

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    import jax

    from mixer import preflight
    from mixer.config import checks, config_file
    from mixer.performance import data_facts, tpu_topology

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGS = (
    "b16_i21k", "s32_jft", "l16_i21k", "h14_jft", "s16_jft", "b32_jft", "l32_jft", "b16_i1k", "b16_jft", "l16_i1k",
    "l16_jft",
)  # fmt: skip
# 128 cores of each generation; a core is what JAX shows as a device.
SLICES = ("v3:8x8", "v5e:8x16", "v6e:8x16", "v4:4x4x8", "v5p:4x4x8", "tpu7x:4x4x4", "v2:8x8")


def missing(
    results: Sequence[dict[str, Any]], configs: Sequence[str], slices: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yields the cells, config and slice, that no result has, one config after the other."""
    done = {(found["config"], found["topology"]) for found in results}
    yield from ((config, name) for config in configs for name in slices if (config, name) not in done)


def check_compiler(results: Sequence[dict[str, Any]], libtpu: str) -> None:
    """Checks that no result is of another compiler: they would not be comparable.

    Raises:
      UserError: there is one.
    """
    if others := sorted({found["libtpu"] for found in results} - {libtpu}):
        raise UserError(
            f"there are results of libtpu {', '.join(others)}, and this is {libtpu}: give another file, or use the "
            "Python whose libtpu that is (make PYTHON=python3.11 ...)"
        )


def compiled(config_name: str, topology: str) -> dict[str, Any]:
    """Compiles the training step of a config for a slice and returns what pre-flight finds.

    Raises:
      UserError: libtpu is missing.
    """
    config = checks.checked(config_file.run(config_file.find(config_name)))
    mesh = tpu_topology.mesh_of(topology)
    memory = tpu_topology.memory_of(mesh)
    facts = data_facts.of(config, None, None)
    found = preflight.examine(config, mesh, facts, memory, largest=False, others=False)
    return {"config": config_name, "topology": topology, "libtpu": tpu_topology.libtpu_version(), **found}


def tables(results: Sequence[dict[str, Any]], configs: Sequence[str] = CONFIGS, slices: Sequence[str] = SLICES) -> str:
    """Returns two tables in Markdown, of time and of memory, with a row for each of the configs that has a result."""
    by_cell = {(found["config"], found["topology"]): found for found in results}
    rows = [name for name in configs if any((name, one) in by_cell for one in slices)]
    columns = sorted(slices, key=lambda name: (name.startswith("tpu"), name))
    parts = []
    for title, cell in (("ms a step, images/s/core", _time), ("GiB in training, core-days", _memory)):
        heads = [title, *columns]
        lines = [[f"`{name}.py`", *(cell(by_cell.get((name, one))) for one in columns)] for name in sorted(rows)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines]))
    return "\n\n".join(parts)


def _time(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    if not found["fits"]:
        return "does not fit"
    seconds = found["seconds_per_step"]
    return f"{_short(seconds * 1e3)}, {found['images_per_sec_per_core']:,.0f}" if seconds else "no estimate"


def _short(number: float) -> str:
    """Returns a number with three digits, or all before the point if they are more."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _memory(found: dict[str, Any] | None) -> str:
    if found is None or not found["fits"]:
        return _time(found)
    days = found.get("core_days")
    return f"{found['total'] / 2**30:.2f}" + (f", {_short(days)}" if days else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--results", required=True, metavar="FILE", help="JSON lines, a cell each; kept and continued")
    parser.add_argument("--configs", default=",".join(CONFIGS), metavar="NAMES", help="default: all eleven")
    parser.add_argument("--slices", default=",".join(SLICES), metavar="NAMES", help="default: one of each generation")
    parser.add_argument("--print", action="store_true", help="only print what FILE has")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv` (default: that of the process) and returns the exit status."""
    args = _parser().parse_args(argv)
    path, configs, slices = epath.Path(args.results), args.configs.split(","), args.slices.split(",")
    try:
        check_names(configs, slices)
        results = _read(path, must_be_there=args.print)
        for config, topology in [] if args.print else missing(results, configs, slices):
            jax.config.update("jax_platforms", "cpu")  # libtpu is here only for compiling
            print(f"{config} for {topology} ...", file=sys.stderr, flush=True)
            check_compiler(results, tpu_topology.libtpu_version())
            results.append(compiled(config, topology))
            _write(path, results)
    except (UserError, OSError) as error:
        print(f"preflight_table.py: {error}", file=sys.stderr)
        return 1
    print(tables(results, configs, slices))
    return 0


def check_names(configs: Sequence[str], slices: Sequence[str]) -> None:
    """Checks that there are such configs and generations of TPUs.

    Raises:
      UserError: there is none of a name.
    """
    for config in configs:
        config_file.run(config_file.find(config))
    for name in slices:
        if name.partition(":")[0] not in tpu_topology.KINDS:
            raise UserError(f"--slices: {name!r}: expected {', '.join(tpu_topology.KINDS)}, a colon and a shape")


def _read(path: epath.Path, *, must_be_there: bool) -> list[dict[str, Any]]:
    """Returns the results of a file; none if it is not there.

    Raises:
      UserError: the file is not there and must be, has a line that is no result, or cannot be written later.
    """
    if not files.exists(path):
        if must_be_there:
            raise UserError(f"--results={path} is not there")
        _write(path, [])
    found = []
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise UserError(f"{path}: line {number} is no JSON; take it out, and its cell is compiled again") from None
    return found


def _write(path: epath.Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes the file whole, so that an interruption leaves the one before."""
    files.write_text(path, "".join(json_text.dumps(one) + "\n" for one in results))


if __name__ == "__main__":
    sys.exit(main())
