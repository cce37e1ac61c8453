"""Measures images per second and core, as in the paper: `python -m mixer.benchmark --models b16,vit_b16,bit_r50x1`.

--models ... --modes inference,train    models on the devices that JAX finds; needs no TensorFlow
--topology v3:2x2                       the compiler's estimate for a TPU slice that this machine does not have
--input --config configs/b16_i21k.py    the input pipeline alone, stage by stage
--scaling patches                       time and FLOPs against the number of patches, as a table and a picture
--scaling tokens --models s32,b16       what a token costs by the number of patches, also with --topology
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from absl import flags
from etils import epath, epy

from mixer.config import command_line, help_text
from mixer.runtime import files, json_text
from mixer.runtime.errors import UserError

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    import jax

    from mixer import models
    from mixer.models import layers
    from mixer.performance import batch_size_search, model_speed, scaling, target
    from mixer.runtime import cpu, devices, machine

if TYPE_CHECKING:
    from mixer.performance.model_speed import Measurement
    from mixer.performance.target import Target

DTYPES = ("float32", "bfloat16")
_MODES = ["inference", "train"]  # of model_speed.MODES, which is too slow to import for --help


def table(measurements: Sequence[Measurement]) -> str:
    """Returns a table with a line for each measurement."""
    columns = "{:<14}{:<11}{:>6}{:>11}{:>19}{:>9}{:>11}{:>10}{:>7}{:>9}{:>11}".format
    lines = [
        columns(
            "model", "mode", "batch", "images/s", "slowest-fastest", "", "GFLOP", "by XLA", "MFU", "peak", "compile"
        ),
        columns("", "", "/core", "/core", "block", "params", "/image", "/image", "", "GiB/core", "seconds"),
    ]
    for one in measurements:
        mfu = "?" if one.utilisation is None else f"{one.utilisation:.1%}"
        lines.append(columns(
            one.model, one.mode, one.batch_size, f"{one.images_per_sec_per_core:.4g}",
            f"{one.lowest:.4g}-{one.highest:.4g}", f"{one.parameters / 1e6:.1f}M", f"{one.gflop_per_image:.4g}",
            f"{one.compiler_gflop_per_image:.4g}", mfu, f"{one.peak_memory_bytes / 2**30:.2f}",
            f"{one.compile_seconds:.1f}",
        ))  # fmt: skip
    return "\n".join(lines)


def define_flags() -> None:
    """Defines the command's flags."""
    with help_text.group("Models", "--models b16,vit_b16,bit_r50x1 --modes inference,train"):
        flags.DEFINE_list("models", ["b16"], "Such as b16, vit_b16, bit_r50x1; or their variants, B/16, ViT-B/16, ...")
        flags.DEFINE_list("modes", _MODES, "Of inference and train.")
        flags.DEFINE_list(
            "batch_sizes", ["auto"],
            "Images on each core, such as 8,16; auto doubles while that helps, and is one size with --scaling tokens.",
        )  # fmt: skip
        flags.DEFINE_integer("image_size", 224, "Pixels.", 1)
        flags.DEFINE_enum("dtype", None, DTYPES, "Of activations; by default bfloat16, on a CPU or an old GPU float32.")
        flags.DEFINE_string("topology", None, "Print the compiler's estimate for a TPU slice, such as v3:2x2.")
    with help_text.group("The input pipeline", "--input --config b16_i21k --config.input.data_dir=DIR"):
        flags.DEFINE_bool("input", False, "Measure the input pipeline of --config instead of models.")
        command_line.define_config_flag()
        flags.DEFINE_float("accelerator_rate", None, "Images/s that this host must make.", 0.0)
    with help_text.group("The cost against the number of patches", "--scaling patches --output patches.png"):
        flags.DEFINE_enum(
            "scaling", None, ["patches", "tokens"],
            "patches: of three models, as a table and a picture; tokens: what a token costs in --models.",
        )  # fmt: skip
        flags.DEFINE_string("output", "scaling_patches.png", "The PNG file.")
    with help_text.group("The measurement", "--models b16 --blocks 5 --block_seconds 1.0 --json"):
        flags.DEFINE_integer("blocks", 5, "Timed blocks; their median counts.", 1)
        flags.DEFINE_float("block_seconds", 1.0, "Approximate length of a block; it has at least one call.", 0.0)
        flags.DEFINE_bool("json", False, "Print one line of JSON.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    kind = _KINDS["input" if given.input else given.scaling or "models"]
    all_read = set().union(*(other.reads for other in _KINDS.values()))
    command_line.refuse_unread(sorted(all_read - kind.reads), kind.when)
    if not math.isfinite(given.block_seconds):
        raise UserError(f"--block_seconds={given.block_seconds}: expected a finite number")
    kind.run()


def _models() -> None:
    given = flags.FLAGS
    settings, batch_sizes = _prepared(), _batch_sizes(given.batch_sizes)
    variants = _variants(given.models, settings.image_size)
    measured_on = _target(settings)
    smallest = 1 if measured_on.device["platform"] == "cpu" else 16
    measurements: list[Measurement] = []
    all_measured = True
    try:
        for variant, mode in itertools.product(variants, given.modes):
            try:
                found = batch_size_search.fastest(variant, mode, batch_sizes, measured_on.measure_at, smallest, _tell)
            except UserError as error:  # another model may fit
                _tell(f"error: {error}")
                all_measured = False
            else:
                measurements.append(found)
    finally:  # what one model has cost is not lost with the next
        if measurements:
            _report(measurements, measured_on, settings)
    if not all_measured:
        sys.exit(1)


def _report(measurements: Sequence[Measurement], measured_on: Target, settings: model_speed.Settings) -> None:
    if flags.FLAGS.json:
        print(json_text.dumps({
            "device": measured_on.device, "dtype": settings.dtype, "image_size": settings.image_size,
            "peak_flops_per_core": measured_on.peak, "peak_source": measured_on.peak_source,
            "rows": [one.as_dict() for one in measurements],
        }))  # fmt: skip
        return
    device, peak = target.described(measured_on.device), measured_on.peak_source
    about = f"{device}; {settings.dtype}, {settings.image_size} px; MFU against {peak}"
    print(f"{about}\n\n{table(measurements)}")


def _prepared() -> model_speed.Settings:
    """Checks --topology and --modes, and returns how to measure models."""
    given = flags.FLAGS
    if given.topology:
        command_line.refuse_unread(("blocks", "block_seconds"), "with --topology, where nothing is timed")
        jax.config.update("jax_platforms", "cpu")  # jax itself must not use a TPU of this machine
    for name, such in (("models", "b16,vit_b16"), ("modes", ",".join(model_speed.MODES))):
        if not any(word.strip() for word in given[name].value or ()):
            raise UserError(f"--{name} is empty: give for example {such}")
    if unknown := [mode for mode in given.modes if mode not in model_speed.MODES]:
        raise UserError(f"--modes={unknown[0]}: expected {' or '.join(model_speed.MODES)}")
    return _settings()


def _tokens() -> None:
    given = flags.FLAGS
    settings, sizes = _prepared(), _batch_sizes(given.batch_sizes)
    variants, measured_on = _variants(given.models, None), _target(settings)
    if sizes and len(sizes) > 1:
        raise UserError(f"--batch_sizes={','.join(given.batch_sizes)}: expected one number with --scaling tokens")
    batch_size = sizes[0] if sizes else 8 if measured_on.device["platform"] == "cpu" else 64
    found = [
        one
        for variant in variants
        for mode in given.modes
        for one in scaling.tokens(variant, mode, batch_size, measured_on.measure_at, settings, _tell)
    ]
    if given.json:
        rows = [one._asdict() for one in found]
        print(json_text.dumps({
            "device": measured_on.device, "dtype": settings.dtype, "batch": batch_size, "rows": rows,
        }))  # fmt: skip
        return
    device, peak = target.described(measured_on.device), measured_on.peak_source
    about = f"{device}; {settings.dtype}, {batch_size} images a core; MFU against {peak}"
    print(f"{about}\n\n{scaling.tokens_table(found)}")


def _target(settings: model_speed.Settings) -> Target:
    topology = flags.FLAGS.topology
    return target.of_topology(topology, settings) if topology else target.here(settings)


def _patches() -> None:
    given = flags.FLAGS
    settings, path = _settings(), epath.Path(given.output)
    if files.is_folder(path):
        raise UserError(f"--output={given.output}: that is a folder; give the name of a file to write")
    if not files.is_folder(path.parent):
        raise UserError(f"--output={given.output}: there is no folder {path.parent}")
    curves = scaling.measure(settings, _tell)
    device = target.device()
    if given.json:
        print(json_text.dumps({"device": device, "dtype": settings.dtype, "curves": [c.as_dict() for c in curves]}))
    else:
        print(f"{target.described(device)}; {settings.dtype}\n\n{scaling.table(curves)}")
    scaling.draw(curves, path)
    _tell(f"the picture is {path}")


def _input() -> None:
    from mixer.performance import input_speed  # it imports TensorFlow, which the other kinds do not need

    given = flags.FLAGS
    rate = given.accelerator_rate
    if rate is not None and not 0 < rate < math.inf:
        raise UserError(f"--accelerator_rate={rate:g}: expected a finite number above 0, in images/s")
    config, name = command_line.from_flags()
    found = input_speed.measure(
        config, epath.Path("runs") / name / "cache", machine.processors(),
        seconds=given.block_seconds, blocks=given.blocks,
    )  # fmt: skip
    needed = None if rate is None else found.cores_needed(rate)
    if given.json:
        print(json_text.dumps({**found.as_dict(), "accelerator_rate": rate, "host_cores_needed": needed}))
        return
    print(found.table())
    if needed is None:
        print("\nfor the host cores that an accelerator needs, give the rate it takes: --accelerator_rate IMAGES/S")
    else:
        print(f"\nan accelerator that takes {rate:,.0f} images/s needs {needed} such host cores")


class _Kind(NamedTuple):
    """A kind of measurement.

    Attributes:
      run: measures and prints.
      reads: the flags that it reads.
      when: ends the error about any other flag.
    """

    run: Callable[[], None]
    reads: set[str]
    when: str


_COMMON = {"input", "blocks", "block_seconds", "json"}
_KINDS = {
    "models": _Kind(
        _models,
        _COMMON | {"models", "modes", "batch_sizes", "image_size", "dtype", "topology"},
        "where models are measured",
    ),
    "input": _Kind(_input, _COMMON | {"config", "accelerator_rate"}, "with --input"),
    "patches": _Kind(_patches, _COMMON | {"scaling", "dtype", "output"}, "with --scaling patches"),
    "tokens": _Kind(
        _tokens,
        _COMMON | {"scaling", "models", "modes", "batch_sizes", "dtype", "topology"},
        "with --scaling tokens",
    ),
}


def _settings() -> model_speed.Settings:
    given = flags.FLAGS
    if given.dtype or given.topology:
        dtype = given.dtype or "bfloat16"
    else:
        dtype = "float32" if jax.devices()[0].platform == "cpu" else cpu.dtype("auto", devices.make_mesh())
    return model_speed.Settings(given.image_size, dtype, given.blocks, given.block_seconds)


def _variants(names: Sequence[str], size: int | None) -> list[str]:
    """Returns the variants of short names. All are checked here, before the first is measured, for images of a size."""
    variants = [models.variant(name.strip()) for name in names]
    for variant in variants:
        try:
            patch_size = getattr(models.create(variant, 0), "patch_size", 1)
        except ValueError as error:
            raise UserError(f"--models: {error}") from None
        if size is None:
            continue
        try:
            layers.check_patches(size, size, patch_size)
        except ValueError:
            raise UserError(
                f"--image_size={size} is not a multiple of the patch size of {variant}; the nearest that is: "
                f"{layers.nearest_multiple(size, patch_size)}"
            ) from None
    return variants


def _batch_sizes(texts: Sequence[str]) -> list[int] | None:
    if list(texts) == ["auto"]:
        return None
    if not texts or not all(text.strip().isdecimal() and int(text) for text in texts):
        raise UserError(f"--batch_sizes={','.join(texts)}: expected auto, or numbers above 0, such as 8,16")
    return [int(text) for text in texts]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags)


if __name__ == "__main__":
    run()
