"""Compiles a config for a TPU slice without owning one: does it fit, what does it take?

    python -m mixer.preflight --config configs/b16_i21k.py --topology v3:8x8

The training and evaluation steps are the real ones, compiled ahead of time by the libtpu that pip installs
(`pip install 'mixer[preflight]'`, in an environment of its own). Times are the compiler's estimates: optimistic.
"""

import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from mixer import models
from mixer.config import command_line, durations, paper
from mixer.performance import chips, memory_fit, tpu_topology
from mixer.runtime.errors import UserError
from mixer.training import setup, sharding

# Datasets by name: classes, training examples, the most labels on an example, and how the paper calls it.
DATA = {
    "imagenet2012": (1000, 1_281_167, 1, "i1k"),
    "imagenet21k": (21_843, 14_197_122, 1, "i21k"),
    "multilabel": (18_291, 300_000_000, 8, "jft"),  # as JFT-300M is: the paper's sizes; labels are 1.26 on average
    "cifar10": (10, 50_000, 1, ""),
    "cifar100": (100, 50_000, 1, ""),
    "oxford_iiit_pet": (37, 3_680, 1, ""),
    "oxford_flowers102": (102, 2_040, 1, ""),
}


_RECOMPUTED = 0.005  # more work for an image, by rounding


def facts(config: ml_collections.ConfigDict, num_classes: int | None, num_examples: int | None) -> dict[str, int]:
    """What the programs depend on and the config does not say: classes, examples and labels of its data.

    Raises:
      UserError: the dataset is not in the table, and they were not given.
    """
    if config.input.dataset in DATA:
        classes, examples, labels, _ = DATA[config.input.dataset]
        if share := re.fullmatch(r"\w+\[:(\d+)%\]", config.input.train_split):
            examples = examples * int(share[1]) // 100
        elif "[" in config.input.train_split and not num_examples:
            raise UserError(f"config.input.train_split={config.input.train_split!r}: give its --num_examples")
    elif num_classes and num_examples:
        classes, examples, labels = num_classes, num_examples, 1
    else:
        raise UserError(
            f"config.input.dataset={config.input.dataset!r} is not known here: give --num_classes and --num_examples "
            f"(known are {', '.join(DATA)})"
        )
    return {
        "num_classes": num_classes or classes,
        "num_examples": num_examples or examples,
        "max_labels": config.input.max_labels or labels,
    }


def paper_core_days(config: ml_collections.ConfigDict) -> float | None:
    """TPU-v3 core-days of the paper's pre-training of this model on this data for these epochs, if it has them."""
    changed = [config.model[width] for width in ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")]
    if any(changed):
        return None
    data = DATA.get(config.input.dataset, (0, 0, 0, ""))[3]
    for row in paper.ROWS:
        same = (row.variant, row.pretraining, row.epochs) == (config.model.variant, data, config.total_epochs)
        if same and row.image_size == config.input.image_size:
            return row.thousand_core_days * 1000
    return None


def report(found: dict[str, Any]) -> str:
    """What was found, for a person."""
    gib = lambda size: f"{size / 2**30:.2f} GiB"  # noqa: E731
    per_core = found["batch_size"] / found["cores"]
    lines = [
        f"{found['model']} at {found['image_size']} px, {found['num_classes']:,} classes, {found['parameters']:,} "
        f"parameters; {found['dtype']}, {found['sharding']}",
        f"{found['topology']}: {found['cores']} cores ({found['device_kind']}) in {found['hosts']} hosts; a batch of "
        f"{found['batch_size']:,} is {per_core:g} images a core; jax {found['jax']}, libtpu {found['libtpu']}",
        "",
        f"memory on each core, of {gib(found['memory'])}",
    ]
    lines += [f"  {name:38}{gib(size):>10}" for name, size in found["memory_by_kind"].items()]
    if not found["fits"]:
        needed = "" if found["needed"] is None else f": {gib(found['needed'])} and more are needed"
        lines.append(f"  does NOT fit{needed}")
        for remedy in found["remedies"]:
            total = "" if remedy["total"] is None else f", {gib(remedy['total'])}"
            lines.append(f"  with {remedy['change']:48}{'fits' if remedy['fits'] else 'does not fit'}{total}")
        return "\n".join(lines)
    lines.append(f"  {'all, in training':38}{gib(found['total']):>10}  fits")
    lines.append(f"  {'all, in evaluation':38}{gib(found['evaluation_total']):>10}  fits")
    if largest := found["largest"]:
        again = largest["extra_work"]
        recomputed = f", {again:.1%} more work where XLA recomputes" if again > _RECOMPUTED else ""
        lines.append(
            f"  {'largest batch':38}{gib(largest['total']):>10}  {largest['per_core']} images a core{recomputed}"
        )
    else:
        lines.append("  largest batch: not looked for, or little larger than this one")
    by_kind = ", ".join(f"{kind} {size / 2**20:,.0f} MiB" for kind, size in found["collectives"].items()) or "none"
    lines += [
        "",
        f"work      {found['gflop_per_image']:.4g} GFLOP an image by the formula, "
        f"{found['compiler_gflop_per_image']:.4g} by the compiler",
        f"sent      on each core and step: {by_kind}",
    ]
    if found["seconds_per_step"]:
        lines += [
            f"time      {found['seconds_per_step'] * 1e3:.3g} ms a step, {found['images_per_sec_per_core']:,.0f} "
            "images/s/core: the compiler's estimate, optimistic",
            f"recipe    {found['total_steps']:,} steps: {found['core_days']:,.3g} core-days by that estimate, without "
            "evaluation" + (f"; the paper's {found['paper_core_days']:g} on v3" if found["paper_core_days"] else ""),
            f"input     {found['input_images_per_sec_per_host']:,.0f} images/s for each host to make at that rate",
        ]
    lines.append(f"checkpoint  {gib(found['checkpoint_bytes'])}")
    return "\n".join(lines)


def examine(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    known: dict[str, int],
    memory: float,
    largest: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compiles a checked config's programs for a mesh; returns what was found, ready for JSON.

    Args:
      config: of the run.
      mesh: of the slice.
      known: from `facts`.
      memory: bytes that a core has.
      largest: whether to look for the largest batch.
      tell: called with a line now and then; compiling takes minutes.

    Raises:
      UserError: the batch does not divide.
    """
    sharding.check_divides(config, mesh)
    classes, labels = known["num_classes"], known["max_labels"]
    built = setup.build(config, mesh, num_classes=classes)
    given = {
        "parameters": built.state.params,
        "optimizer state": built.state.opt_state,
        "moving average": built.state.ema_params,
        "batch": setup.batch_shapes(config, mesh, labels),
    }
    found: dict[str, Any] = {
        "model": models.full_name(config.model.variant),
        "image_size": config.input.image_size,
        "dtype": config.model.dtype,
        "sharding": config.sharding,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(built.shapes.params)),
        **known,
        "cores": mesh.size,
        "hosts": tpu_topology.hosts(mesh),
        "device_kind": mesh.devices.flat[0].device_kind,
        "batch_size": config.batch_size,
        "memory": memory,
        "memory_by_kind": {
            name: tpu_topology.bytes_on_a_core(tree) for name, tree in given.items() if jax.tree.leaves(tree)
        },
        "checkpoint_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(built.shapes)),
        "jax": jax.__version__,
    }
    fit = memory_fit.Fitting(config, mesh, classes, labels, memory, tell)
    train = fit.train()
    found["fits"] = train is not None
    if train is None:
        return {**found, "needed": fit.needed, "remedies": fit.remedies()}
    evaluation = fit.evaluate()
    macs = built.model.forward_macs(config.input.image_size)
    per_core = config.batch_size / mesh.size
    total_steps = durations.steps(config, "total", known["num_examples"])
    found |= {
        "memory_by_kind": {
            **found["memory_by_kind"], "temporaries (activations, gradients)": train.temporaries, "code": train.code
        },
        "total": train.total,
        "evaluation_total": evaluation.total,
        "largest": fit.largest(train) if largest else None,
        "gflop_per_image": 6 * macs / 1e9,
        "compiler_gflop_per_image": train.flops / per_core / 1e9,
        "collectives": dict(train.collectives),
        "seconds_per_step": train.estimated_seconds,
        "total_steps": total_steps,
        "paper_core_days": paper_core_days(config),
        "compile_seconds": train.compile_seconds,
    }  # fmt: skip
    if seconds := train.estimated_seconds:
        found["images_per_sec_per_core"] = per_core / seconds
        found["core_days"] = total_steps * seconds * mesh.size / 86_400
        found["input_images_per_sec_per_host"] = config.batch_size / seconds / found["hosts"]
    return found


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "The run's config file; --config.NAME=VALUE changes a value.")
    flags.DEFINE_string("topology", None, "The slice: v2 to v6e, and its chips along each side, such as v3:8x8.")
    flags.DEFINE_integer("num_classes", None, "Of data that this command does not know.", 1)
    flags.DEFINE_integer("num_examples", None, "Of its training split.", 1)
    flags.DEFINE_bool("largest", True, "Also look for the largest batch that fits, by two more compilations.")
    flags.DEFINE_bool("json", False, "Print one line of JSON.")


def main(argv: list[str]) -> None:
    """Runs the command; exits with status 1 where the config does not fit."""
    given = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")  # of a TPU that is there nothing is wanted
    if not given.topology:
        raise UserError("--topology is missing: the slice to compile for, such as v3:8x8 or v5e:4x8")
    config, _ = command_line.from_flags()
    known = facts(config, given.num_classes, given.num_examples)
    mesh = tpu_topology.mesh_of(given.topology)
    memory = chips.CHIPS[tpu_topology.KINDS[given.topology.partition(":")[0]]].memory
    found = examine(config, mesh, known, memory, given.largest, lambda line: print(line, file=sys.stderr, flush=True))
    found |= {"topology": given.topology, "libtpu": importlib.metadata.version("libtpu")}
    print(json.dumps(found) if given.json else report(found))
    if not found["fits"]:
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main, define_flags)
