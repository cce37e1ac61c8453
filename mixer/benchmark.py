"""Images per second and core, as the paper counts them: `python -m mixer.benchmark --models b16,vit_b16,bit_r50x1`.

--models ... --modes inference,train    models, on whatever device JAX has; needs no TensorFlow
--topology v3:2x2                       the compiler's estimate instead, for a TPU slice that is not there
--input --config configs/b16_i21k.py    the input pipeline alone, stage by stage
--scaling patches                       time and FLOPs against the number of patches, and a picture of it
"""

import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from mixer import models
from mixer.config import command_line
from mixer.performance import chips, model_speed, scaling, tpu_topology
from mixer.runtime import cpu
from mixer.runtime.errors import UserError

DTYPES = ("float32", "bfloat16")


def device() -> dict[str, Any]:
    """What JAX computes on, and how many processors of the host stand behind it."""
    first = jax.devices()[0]
    return {
        "kind": first.device_kind,
        "platform": first.platform,
        "cores": jax.device_count(),
        "host_processors": cpu.processors(),
        "jax": jax.__version__,
    }


def described(found: dict[str, Any]) -> str:
    """The device in words."""
    words = f"{found['cores']} x {found['kind']} with jax {found['jax']}"
    behind = f": a core is all of this machine's {found['host_processors']} processors, shared by the devices"
    return words + (behind if found["platform"] == "cpu" else "")


def table(rows: Sequence[model_speed.Row]) -> str:
    """The rows, aligned."""
    columns = "{:<14}{:<11}{:>6}{:>11}{:>19}{:>9}{:>11}{:>10}{:>7}{:>9}{:>11}".format
    lines = [
        columns(
            "model", "mode", "batch", "images/s", "slowest-fastest", "", "GFLOP", "by XLA", "MFU", "peak", "compile"
        ),
        columns("", "", "/core", "/core", "block", "params", "/image", "/image", "", "GiB/core", "seconds"),
    ]
    for row in rows:
        mfu = "?" if row.utilisation is None else f"{row.utilisation:.1%}"
        lines.append(columns(
            row.model, row.mode, row.batch_size, f"{row.images_per_sec_per_core:.4g}",
            f"{row.lowest:.4g}-{row.highest:.4g}", f"{row.parameters / 1e6:.1f}M", f"{row.gflop_per_image:.4g}",
            f"{row.compiler_gflop_per_image:.4g}", mfu, f"{row.peak_memory_bytes / 2**30:.2f}",
            f"{row.compile_seconds:.1f}",
        ))  # fmt: skip
    return "\n".join(lines)


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "With --input: the run's config file.")
    flags.DEFINE_list("models", ["b16"], "Such as b16, vit_b16, bit_r50x1; or their variants, B/16, ViT-B/16, ...")
    flags.DEFINE_list("modes", list(model_speed.MODES), "Of " + " and ".join(model_speed.MODES) + ".")
    flags.DEFINE_list("batch_sizes", ["auto"], "Images on each core, such as 8,16; auto doubles while that helps.")
    flags.DEFINE_integer("image_size", 224, "Pixels.", 1)
    flags.DEFINE_enum("dtype", None, DTYPES, "Of activations and products; by default bfloat16, on a CPU float32.")
    flags.DEFINE_integer("blocks", 5, "Timed blocks, of which the median counts.", 1)
    flags.DEFINE_float("block_seconds", 1.0, "Length of a block, about; at least one call.", 0.0)
    flags.DEFINE_string("topology", None, "The compiler's estimate for a TPU slice that is not there, such as v3:2x2.")
    flags.DEFINE_bool("json", False, "Print one line of JSON.")
    flags.DEFINE_bool("input", False, "Measure the input pipeline of --config instead of models.")
    flags.DEFINE_float("accelerator_rate", None, "With --input: images/s that have to be fed by this host.", 0.0)
    flags.DEFINE_enum("scaling", None, ["patches"], "Measure models against the number of patches instead.")
    flags.DEFINE_string("output", "scaling_patches.png", "With --scaling: where the picture goes.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    what = "--input" if given.input else "--scaling" if given.scaling else "models"
    run, wanted = _MEASURES[what]
    others = {name for _, names in _MEASURES.values() for name in names} - wanted
    if out_of_place := sorted(name for name in others if given[name].present):
        raise UserError(f"--{out_of_place[0]} has nothing to do with measuring {what.lstrip('-')}")
    run()


def _models() -> None:
    given = flags.FLAGS
    if unknown := [mode for mode in given.modes if mode not in model_speed.MODES]:
        raise UserError(f"--modes={unknown[0]}: expected {' or '.join(model_speed.MODES)}")
    if given.topology:
        jax.config.update("jax_platforms", "cpu")  # of a TPU that is there nothing is wanted
    settings, batch_sizes = _settings(), _batch_sizes(given.batch_sizes)
    variants = _variants(given.models, settings.image_size)
    if given.topology:
        found, one, peak, source = _estimating(given.topology, settings)
    else:
        found, (peak, source) = device(), model_speed.peak(settings.dtype)
        one = functools.partial(model_speed.measure, settings=settings, peak_flops=peak)
    smallest = 1 if found["platform"] == "cpu" else 16
    cases = [(variant, mode) for variant in variants for mode in given.modes]
    rows = [model_speed.best(*case, batch_sizes, one, smallest, _tell) for case in cases]
    if given.json:
        print(json.dumps({
            "device": found, "dtype": settings.dtype, "image_size": settings.image_size, "peak_flops_per_core": peak,
            "peak_source": source, "rows": [row.as_dict() for row in rows],
        }))  # fmt: skip
        return
    print(f"{described(found)}; {settings.dtype}, {settings.image_size} px; MFU against {source}\n")
    print(table(rows))


def _estimating(topology: str, settings: model_speed.Settings) -> tuple[dict[str, Any], Any, float | None, str]:
    """What is measured on a machine that is there, of a TPU slice that is not."""
    mesh = tpu_topology.mesh_of(topology)
    kind = mesh.devices.flat[0].device_kind
    peak = getattr(chips.CHIPS[tpu_topology.KINDS[topology.partition(":")[0]]], settings.dtype)
    found = {"kind": kind, "platform": "tpu", "cores": mesh.size, "host_processors": None, "jax": jax.__version__}
    one = functools.partial(model_speed.estimate, settings=settings, peak_flops=peak, mesh=mesh)
    source = f"the peak of a {kind}; NOT measured, but the compiler's optimistic estimate for {topology}"
    return found, one, peak, source


def _scaling() -> None:
    given = flags.FLAGS
    settings, path = _settings(), epath.Path(given.output)
    if not path.parent.is_dir():
        raise UserError(f"--output={given.output}: there is no folder {path.parent}")
    scaling.check_drawing()
    curves = scaling.measure(settings, _tell)
    if given.json:
        print(json.dumps({"device": device(), "dtype": settings.dtype, "curves": [c.as_dict() for c in curves]}))
    else:
        print(f"{described(device())}; {settings.dtype}\n\n{scaling.table(curves)}")
    scaling.draw(curves, path)
    _tell(f"the picture is {path}")


def _input() -> None:
    from mixer.performance import input_speed  # it needs TensorFlow, which the rest does without

    given = flags.FLAGS
    config, name = command_line.from_flags()
    found = input_speed.measure(
        config, epath.Path("runs") / name / "cache", cpu.processors(),
        seconds=given.block_seconds, blocks=given.blocks,
    )  # fmt: skip
    needed = found.cores_needed(given.accelerator_rate) if given.accelerator_rate else None
    if given.json:
        print(json.dumps({**found.as_dict(), "accelerator_rate": given.accelerator_rate, "host_cores_needed": needed}))
        return
    print(found.table())
    if needed is None:
        print("\nfor the host cores that an accelerator needs, give the rate it takes: --accelerator_rate IMAGES/S")
    else:
        print(f"\nan accelerator that takes {given.accelerator_rate:,.0f} images/s needs {needed} such host cores")


# What is measured, by which function, and the flags that it heeds.
_TIMED = {"blocks", "block_seconds", "json"}
_MEASURES: dict[str, tuple[Callable[[], None], set[str]]] = {
    "models": (_models, _TIMED | {"models", "modes", "batch_sizes", "image_size", "dtype", "topology"}),
    "--input": (_input, _TIMED | {"config", "accelerator_rate"}),
    "--scaling": (_scaling, _TIMED | {"dtype", "output"}),
}


def _settings() -> model_speed.Settings:
    given = flags.FLAGS
    on_cpu = not given.topology and jax.devices()[0].platform == "cpu"
    dtype = given.dtype or ("float32" if on_cpu else "bfloat16")
    return model_speed.Settings(given.image_size, dtype, given.blocks, given.block_seconds)


def _variants(names: Sequence[str], size: int) -> list[str]:
    """The variants of short names; all are checked before anything is measured."""
    variants = [models.variant(name.strip()) for name in names]
    for variant in variants:
        try:
            patch_size = getattr(models.create(variant, 0), "patch_size", 1)
        except ValueError as error:
            raise UserError(f"--models: {error}") from None
        if size % patch_size:
            raise UserError(f"--image_size={size} is not a multiple of the patch size of {variant}")
    return variants


def _batch_sizes(texts: Sequence[str]) -> list[int] | None:
    if list(texts) == ["auto"]:
        return None
    if not texts or not all(text.strip().isdigit() and int(text) for text in texts):
        raise UserError(f"--batch_sizes={','.join(texts)}: expected auto, or numbers above 0, such as 8,16")
    return [int(text) for text in texts]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main, define_flags)
