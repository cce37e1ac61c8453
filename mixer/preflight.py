"""Compiles a config for a TPU slice that this machine does not have: does it fit in memory, and what does it cost?

    python -m mixer.preflight --config configs/b16_i21k.py --topology v3:8x8

The training and evaluation steps are those of a run. libtpu compiles them ahead of time, without a TPU; in a clone,
`make install-preflight` installs it into .venv-preflight. Times are estimates of the compiler, and optimistic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags
from etils import epy

from mixer.config import command_line, durations, help_text
from mixer.runtime import json_text
from mixer.runtime.errors import UserError

with epy.lazy_imports():  # they import JAX, for which --help does not wait
    import jax

    from mixer import models
    from mixer.evaluation import classification
    from mixer.models import mlp_mixer
    from mixer.performance import charges, compiling, data_facts, memory_fit, tpu_topology
    from mixer.runtime import cpu, devices
    from mixer.training import setup, sharding
    from mixer.transfer import init_from

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from mixer.performance.data_facts import DataFacts

_RECOMPUTED = 0.005  # a smaller share of extra work is rounding and not reported
_FASTEST_CLOCK = 2.1  # GHz; more than any of v2 to v6e has. docs/preflight.md has what the configs imply

# --------------------------------------------------------------------------------------------------------- examination


def examine(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    facts: DataFacts,
    memory: float,
    largest: bool = True,
    others: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compiles a checked config's steps for a mesh and returns what was found, ready for JSON.

    Args:
      config: of the run.
      mesh: of the slice.
      facts: of the config's dataset.
      memory: bytes of a core that a program may use.
      largest: whether to search for the largest and the fastest batch.
      others: whether to compile the evaluation step too or, if the training step does not fit, what may make it fit.
      tell: called with a line after each compilation, which takes minutes.

    Raises:
      UserError: the devices, accumulation steps or mixup groups do not divide the batch, or warm-up is longer than the
        run.
    """
    sharding.check_divides(config, mesh)
    total_steps = durations.all_steps(config, facts.num_examples).total
    built = setup.build(config, mesh, num_classes=facts.num_classes)
    found = _described(config, mesh, facts, built) | {"memory": memory}
    fitting = memory_fit.Fitting(config, mesh, facts.num_classes, facts.max_labels, memory, tell)
    train = fitting.train()
    if train is None:
        found |= {"fits": False, "needed": fitting.needed}
        return found | {"remedies": fitting.remedies() if others else []}
    found["memory_by_kind"] |= {"temporaries (activations, gradients)": train.temporaries, "code": train.code}
    evaluation_fits = fitting.evaluate() is not None if others else None
    fits = evaluation_fits is not False
    found |= {
        "fits": fits,
        "total": train.total,
        "evaluation_fits": evaluation_fits,
        "evaluation_total": fitting.needed if others else None,
        "batches": [batch._asdict() for batch in fitting.batches(train)] if largest and fits else [],
        "batch_too_large": fitting.too_large,
    }
    found["paper_core_days"] = data_facts.paper_core_days(config, facts.num_examples)
    return found | _costs(config, mesh, total_steps, built, train)


def _described(config: ml_collections.ConfigDict, mesh: Mesh, facts: DataFacts, built: setup.Setup) -> dict[str, Any]:
    """Returns what is known before anything is compiled: the model, the slice, and the memory of state and batch."""
    trees = {
        "parameters": built.abstract_state.params,
        "optimizer state": built.abstract_state.opt_state,
        "moving average": built.abstract_state.ema_params,
        "batch": setup.batch_shapes(config, mesh, facts.max_labels),
    }
    kinds = {name: tpu_topology.bytes_on_a_core(tree) for name, tree in trees.items() if jax.tree.leaves(tree)}
    return {
        "model": models.name_of(built.model),
        "image_size": config.input.image_size,
        "dtype": cpu.dtype(config.model.dtype, mesh),
        "sharding": config.sharding,
        "parameters": models.num_parameters(built.shapes.params),
        **facts._asdict(),
        "cores": mesh.size,
        "hosts": tpu_topology.num_hosts(mesh),
        "device_kind": mesh.devices.flat[0].device_kind,
        "batch_size": config.batch_size,
        "memory_by_kind": {**kinds, "batches ahead": devices.BATCHES_AHEAD * kinds["batch"]},
        "checkpoint_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(built.shapes)),
        "jax": jax.__version__,
        "notes": charges.notes(config),
    }


def _costs(
    config: ml_collections.ConfigDict, mesh: Mesh, total_steps: int, built: setup.Setup, train: compiling.Compiled
) -> dict[str, Any]:
    """Returns FLOPs, communication and, where the compiler has an estimate, time of a step and of the whole run."""
    per_core = config.batch_size / mesh.size
    costs = {
        "gflop_per_image": 6 * built.model.forward_macs(config.input.image_size) / 1e9,
        "compiler_gflop_per_image": train.flops / per_core / 1e9,
        "collectives": dict(train.collectives),
        "seconds_per_step": train.estimated_seconds,
        "cycles_per_step": train.estimated_cycles or None,
        "total_steps": total_steps,
        "compile_seconds": train.compile_seconds,
    }
    if seconds := train.estimated_seconds:
        costs["clock_ghz"] = train.estimated_cycles / seconds / 1e9
        costs["images_per_sec_per_core"] = per_core / seconds
        costs["core_days"] = total_steps * seconds * mesh.size / 86_400
        costs["input_images_per_sec_per_host"] = config.batch_size / seconds / tpu_topology.num_hosts(mesh)
    return costs


# -------------------------------------------------------------------------------------------------------------- report


def report(found: dict[str, Any]) -> str:
    """Returns a text for people from the result of `examine`, with the keys "topology" and "libtpu" added."""
    labels = "one label" if found["max_labels"] == 1 else f"up to {found['max_labels']} labels"
    lines = [
        f"{found['model']} at {found['image_size']} px, {found['num_classes']:,} classes, {labels} an image, "
        f"{found['parameters']:,} parameters; {found['dtype']}, {found['sharding']}",
        f"{found['topology']}: {found['cores']} cores ({found['device_kind']}) in {found['hosts']} hosts; a batch of "
        f"{found['batch_size']:,} is {found['batch_size'] / found['cores']:g} images a core; jax {found['jax']}, "
        f"libtpu {found['libtpu']}",
        "",
        f"memory on each core, of {_gib(found['memory'])} that the compiler may use",
        *(f"  {name:38}{_gib(size):>10}" for name, size in found["memory_by_kind"].items()),
    ]
    notes = [f"note      {note}" for note in found["notes"]]
    if "remedies" in found:
        return "\n".join([*lines, *_remedy_lines(found), *notes])
    return "\n".join([*lines, *_memory_lines(found), "", *_cost_lines(found), *notes])


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _remedy_lines(found: dict[str, Any]) -> list[str]:
    needed = "" if found["needed"] is None else f": {_gib(found['needed'])} and more are needed"
    lines = [f"  does NOT fit{needed}"]
    width = max((len(remedy["change"]) for remedy in found["remedies"]), default=0)
    for remedy in found["remedies"]:
        total = "" if remedy["total"] is None else f", {_gib(remedy['total'])}"
        lines.append(f"  with {remedy['change']:{width}}  {'fits' if remedy['fits'] else 'does not fit'}{total}")
    return lines


def _memory_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"  {'all, in training':38}{_gib(found['total']):>10}  fits",
        _evaluation_line(found),
    ]
    batches = found["batches"]
    if not batches:
        return [*lines, "  largest and fastest batch: not looked for"]
    of_all = "" if found["batch_too_large"] else ", the most that is tried"
    lines.append(_batch_line("largest batch", batches[-1]) + of_all)
    if timed := [batch for batch in batches if batch["images_per_sec_per_core"]]:
        lines.append(_batch_line("fastest batch", max(timed, key=lambda batch: batch["images_per_sec_per_core"])))
    return lines


def _evaluation_line(found: dict[str, Any]) -> str:
    size = "" if found["evaluation_total"] is None else _gib(found["evaluation_total"])
    fits = "does NOT fit: it holds batch_size / accumulate_steps images at a time; try fewer"
    return f"  {'all, in evaluation':38}{size:>10}  {'fits' if found['evaluation_fits'] else fits}"


def _batch_line(name: str, batch: dict[str, Any]) -> str:
    more, rate = batch["extra_work"], batch["images_per_sec_per_core"]
    speed = f", {rate:,.0f} images/s/core" if rate else ""
    recomputed = f", {more:.1%} more work where XLA recomputes" if more > _RECOMPUTED else ""
    return f"  {name:38}{_gib(batch['total']):>10}  {batch['per_core']} images a core{speed}{recomputed}"


def _cost_lines(found: dict[str, Any]) -> list[str]:
    by_kind = ", ".join(f"{kind} {size / 2**20:,.0f} MiB" for kind, size in found["collectives"].items()) or "none"
    twice = " (each all-reduced byte crosses the wires about twice)" if "all-reduce" in found["collectives"] else ""
    lines = [
        f"work      {found['gflop_per_image']:.4g} GFLOP an image by the formula, "
        f"{found['compiler_gflop_per_image']:.4g} by the compiler",
        f"sent      of each core and step: {by_kind}{twice}",
        *_time_lines(found),
    ]
    if found["max_labels"] > 1:
        kept = found["num_classes"] * classification.LOGIT_BYTES
        lines.append(
            f"host      {_gib(10_000 * kept)} of each host's memory for every 10,000 images of an evaluation, whose "
            "outputs average precision needs at once"
        )
    return [*lines, f"checkpoint  {_gib(found['checkpoint_bytes'])}"]


def _time_lines(found: dict[str, Any]) -> list[str]:
    if not found["seconds_per_step"]:
        return ["time      the compiler has no estimate"]
    of_paper = f"; the paper's {found['paper_core_days']:g} on v3" if found["paper_core_days"] else ""
    lines = [
        f"time      {found['seconds_per_step'] * 1e3:.3g} ms a step, {found['images_per_sec_per_core']:,.0f} "
        "images/s/core: the compiler's estimate, optimistic, and the same at any precision of products"
    ]
    if found["cycles_per_step"]:
        lines.append(
            f"cycles    {found['cycles_per_step'] / 1e6:,.1f} million a step: {found['clock_ghz']:.2f} GHz by that time"
            + ("; no TPU is that fast, so trust it less" if found["clock_ghz"] > _FASTEST_CLOCK else "")
        )
    return [
        *lines,
        f"recipe    {found['total_steps']:,} steps: {found['core_days']:,.3g} core-days by that estimate, without "
        f"evaluation{of_paper}",
        f"input     {found['input_images_per_sec_per_host']:,.0f} images/s for each host to make at that rate",
    ]


# -------------------------------------------------------------------------------------------------------- command line


def with_width_of_weights(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config with the model.tokens_mlp_dim that a run has which starts from config.init_from.

    Weights that are extended to a larger image size have wider token-mixing MLPs than their variant. Those of another
    family change no shapes, and are not read.

    Raises:
      UserError: the weights cannot be read, not be brought to the run's image size, or do not fit the run's model.
    """
    if not config.init_from or config.model.tokens_mlp_dim is not None:
        return config
    if not isinstance(models.create(num_classes=0, **config.model), mlp_mixer.MlpMixer):
        return config
    try:
        weights = init_from.loaded(config)
    except UserError as error:
        instead = "their token mixing's width is needed: without these weights, give --config.model.tokens_mlp_dim=N"
        raise UserError(f"{error} ({instead})") from None
    config = init_from.with_token_width(config, weights, before={})
    model = models.create(num_classes=1, **{**config.model, "dtype": "float32"})
    size = config.input.image_size
    shapes = models.shapes(model, size)
    init_from.fitted(weights, shapes, model=f"{models.name_of(model)} for images of {size} pixels", keep_head=False)
    return config


def define_flags() -> None:
    """Defines the command's flags."""
    with help_text.group("The run and the slice", "--config b16_i21k --topology v3:8x8"):
        command_line.define_config_flag()
        flags.DEFINE_string("topology", None, "The slice: v2 to tpu7x, and its chips along each side, such as v3:8x8.")
        flags.DEFINE_bool(
            "largest", True, "Also search for the largest and the fastest batch; up to eight compilations."
        )
        flags.DEFINE_bool("json", False, "Print one line of JSON.")
    with help_text.group(
        "A dataset that this command does not know",
        "--config b16_jft --topology v3:8x8 --num_classes 18291 --num_examples 300000000",
    ):
        flags.DEFINE_integer(
            "num_classes", None, "Its classes; if its images have several, also --config.input.max_labels.", 1
        )
        flags.DEFINE_integer("num_examples", None, "Examples in its training split.", 1)


def main(argv: list[str]) -> None:
    """Runs the command; exits with status 1 if the config does not fit."""
    given = flags.FLAGS
    # jax itself must not use a TPU of this machine: libtpu is here only for compiling.
    jax.config.update("jax_platforms", "cpu")
    if not given.topology:
        raise UserError("--topology is missing: the slice to compile for, such as v3:8x8 or v5e:4x8")
    config, _ = command_line.from_flags()
    dataset, split = config.input.dataset, config.input.train_split
    command_line.refuse_unread(data_facts.fixed(config), f"for {split} of {dataset}, which this command knows")
    facts = data_facts.of(config, given.num_classes, given.num_examples)
    config = with_width_of_weights(config)
    mesh = tpu_topology.mesh_of(given.topology)
    memory, libtpu = tpu_topology.memory_of(mesh), tpu_topology.libtpu_version()
    found = examine(
        config, mesh, facts, memory, given.largest, tell=lambda line: print(line, file=sys.stderr, flush=True)
    )
    found |= {"topology": given.topology, "libtpu": libtpu}
    print(json_text.dumps(found) if given.json else report(found))
    if not found["fits"]:
        sys.exit(1)


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags)


if __name__ == "__main__":
    run()
