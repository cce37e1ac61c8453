"""Trains a Mixer: `python -m mixer.train --config configs/b16_i21k.py --workdir gs://bucket/b16_i21k`.

Pre-training, fine-tuning, the quickstart and the tests are this one loop under different configs. Run the same command
again and it continues from the newest checkpoint, to the same bits as if it had never stopped.
"""

import atexit
import sys

import jax
import jax.numpy as jnp
import ml_collections
from absl import flags
from etils import epath, epy
from ml_collections import config_flags

from mixer import command_line, distributed, models, preemption, startup, statuses
from mixer import config as configuration
from mixer.errors import DivergedError, UserError, first_line, quiet_libraries
from mixer.training import evaluation, programs, sharding
from mixer.training.checkpoint import Checkpoints, has_checkpoints
from mixer.training.metrics import Console, MetricsLog, Progress, read_metrics
from mixer.training.step import Metrics, TrainState, prepare
from mixer.transfer import load
from mixer.transfer.weights import read as read_weights

with epy.lazy_imports():  # they bring TensorFlow, for which neither --help nor an error in the command line waits
    from mixer.data import contact_sheet, pipeline, sources
    from mixer.transfer import fewshot_evaluator

_FEWEST_SEEN = 1000  # images; among fewer, a single bad one would be a large share


def train(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    console: Console | None = None,
    stop: preemption.Stop | None = None,
    allow_config_change: bool = False,
) -> dict[str, float]:
    """Runs the training that a checked config describes, from the start or from the newest checkpoint in `workdir`.

    Args:
      config: from `configuration.checked`.
      workdir: the run's folder, local or gs://; made if missing.
      console: where to say how it goes; standard output if not given.
      stop: tells when to save and leave; never if not given.
      allow_config_change: whether a run of another config may be continued with this one.

    Returns:
      The metrics of the last evaluation.

    Raises:
      UserError: the config, the data or the folder does not allow it, or the loss is no longer finite.
      PreemptedError: the run was asked to stop; its state is saved.
    """
    stop = stop or preemption.Stop()
    workdir = _make_workdir(workdir)
    console = console or Console()
    weights = None
    if config.init_from and not has_checkpoints(workdir):
        weights = read_weights(config.init_from).at_image_size(config.input.image_size, config.resize)
    config = load.with_token_width(config, weights, workdir)

    # ------------------------------------------------------------------------------------------------ mesh and input
    mesh = sharding.make_mesh()
    stop.agree(mesh)
    rows = sharding.host_rows(mesh, config.batch_size)
    sharding.check_parts(config, mesh)
    train_source = sources.open_source(config.input, config.input.train_split, workdir / "cache")
    eval_source = sources.open_source(config.input, config.input.eval_split, workdir / "cache")

    def every(name: str) -> int:
        return configuration.steps(config, name, train_source.num_examples)

    total_steps = every("total")
    changes = configuration.check_same(config, workdir, allow_config_change)

    # ----------------------------------------------------------------------------- model, optimizer and compiled steps
    built = programs.build(
        config, mesh, num_classes=len(train_source.class_names), multi_label=eval_source.multi_label,
        warmup_steps=every("warmup"), total_steps=total_steps,
    )  # fmt: skip
    _describe(console, config, mesh, built, train_source, eval_source, total_steps)
    few_shot = None
    if config.fewshot.dataset:
        few_shot = fewshot_evaluator.FewShot(
            config.fewshot, config.input, built.model, mesh, batch_size=config.batch_size, cache_dir=workdir / "cache"
        )

    # ------------------------------------------------------------------------------------------------- state, restored
    checkpoints = Checkpoints(workdir, **config.checkpoint)
    try:
        state = checkpoints.restore(built.shapes, built.shardings)
        if state is not None:
            console.keep(f"continuing from step {int(state.step)}" + "".join(f"; {change}" for change in changes))
        else:
            state = built.init()
            if weights is not None:
                state = load.initial_params(state, weights, train_source.class_names, built.shardings)
                console.keep(f"starting from {config.init_from}")
        configuration.save(config, train_source.class_names, workdir)
        first_step = int(state.step)
        log = MetricsLog(workdir, first_step, config.checkpoint.on_error)
    except (UserError, OSError):  # its threads would complain of an interpreter that ends
        checkpoints.close()
        raise

    # ------------------------------------------------------------------------------------------------------ evaluation
    def evaluate(state: TrainState) -> dict[str, float]:
        """Evaluates; raises preemption.AbandonedError where the run was asked to stop."""
        named = {"val": state.params} | ({"val_ema": state.ema_params} if config.ema_decay else {})
        metrics = {}
        for name, params in named.items():
            batches = pipeline.eval_batches(eval_source, config.input, batch_size=config.batch_size, rows=rows)
            found = evaluation.evaluate(
                built.eval_step, params, stop.unless_asked(batches), mesh, eval_source.num_examples, statuses.STATUSES
            )
            metrics.update({f"{name}/{key}": value for key, value in found.metrics.items()})
        _refuse_bad_images(metrics, "val/bad_images/", eval_source.num_examples, config)
        if few_shot:
            metrics.update(few_shot(state.params, stop.unless_asked))
        return metrics

    # ------------------------------------------------------------------------------------------------------------ loop
    batches = pipeline.train_batches(
        train_source, config.input, seed=config.seed, batch_size=config.batch_size, rows=rows,
        steps=range(first_step, total_steps),
    )  # fmt: skip
    feed = sharding.device_batches(batches, mesh)
    progress = Progress(first_step, total_steps, config.batch_size)
    traced = range(first_step + 10, min(first_step + 10 + config.profile_steps, total_steps))
    log_every, eval_every, checkpoint_every = every("log"), every("eval"), every("checkpoint")
    behind: Metrics = {}  # of the step before: the loop runs no further ahead of the devices than that

    try:
        owed = first_step and (first_step % eval_every == 0 or first_step == total_steps)
        if owed and not log.has(first_step, "val/count"):
            log.write(first_step, evaluate(state))  # it was abandoned when the run was asked to stop
        for step in range(first_step + 1, total_steps + 1):
            state, metrics = built.train_step(state, next(feed))
            if step == first_step + 1:  # it was compiled
                jax.block_until_ready(metrics)
                stop.work_begins()
                progress.restart(step)
            progress.dispatched(metrics)
            jax.block_until_ready(behind)
            behind = metrics
            if traced and step == traced.start:
                jax.profiler.start_trace(str(workdir))
            if traced and step == traced.stop:
                jax.profiler.stop_trace()

            last, leaving = step == total_steps, stop.asked() or step == stop.after
            logs, evaluates, saves = (last or step % every == 0 for every in (log_every, eval_every, checkpoint_every))
            if not (logs or evaluates or saves or leaving):
                continue
            values = _check(step, metrics, config)  # what is saved is finite
            checkpoints.check()
            row: dict[str, float] = {}
            if logs:
                scalars = values | progress.measure(step)
                row |= {f"train/{name}": value for name, value in scalars.items()}
                console.show(step, total_steps, scalars)
            if evaluates:
                try:
                    with progress.pause():
                        row |= (evaluated := evaluate(state))
                    console.keep(f"step {step}  " + "  ".join(_readable(evaluated)))
                except preemption.AbandonedError:
                    leaving = True
            if row:
                log.write(step, row)
            if last and any("/bad_images/" in name for name in row):
                console.keep(f"images that could not be used: {_bad_images(row)}")
            if saves or leaving:
                checkpoints.save(state, row)
            if last or leaving:
                checkpoints.settle()
            if leaving:
                raise preemption.PreemptedError(f"asked to stop: saved at step {step} of {total_steps}")
    finally:  # a save in the background is brought to its end, whatever ended the loop
        progress.close()
        log.close()
        checkpoints.close()

    if first_step >= total_steps:
        console.keep(f"the run in {workdir} is done: it stands at step {first_step} of {total_steps}")
    evaluations = [row for row in read_metrics(workdir) if "val/count" in row]
    return evaluations[-1] if evaluations else {}


# --------------------------------------------------------------------------------------------------------------- parts


def _make_workdir(workdir: epath.PathLike) -> epath.Path:
    path = epath.Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            probe = path / ".writable"
            probe.write_text("")
            probe.unlink()
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written to ({error}); give a folder of your own") from None
    return path


def _describe(
    console: Console,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    built: programs.Programs,
    source: "sources.Source",
    eval_source: "sources.Source",
    total_steps: int,
) -> None:
    """Says what is about to run: model, cost, devices and data."""
    macs = built.model.forward_macs(config.input.image_size)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(built.shapes.params))
    device = mesh.devices.flat[0]
    console.keep(
        f"{models.full_name(config.model.variant)} at {config.input.image_size} px: {parameters:,} parameters, "
        f"{2 * macs / 1e9:.3g} GFLOP/image forward, {6 * macs / 1e9:.3g} in training"
    )
    console.keep(
        f"{mesh.size} x {device.device_kind} in {jax.process_count()} process(es), {config.sharding}, "
        f"{config.model.dtype}; {config.input.dataset}: {source.num_examples:,} training and "
        f"{eval_source.num_examples:,} evaluation images, {len(source.class_names):,} classes; "
        f"{total_steps:,} steps of {config.batch_size}, "
        f"{total_steps * config.batch_size / source.num_examples:.4g} epochs"
    )


def _check(step: int, metrics: Metrics, config: ml_collections.ConfigDict) -> dict[str, float]:
    """Reads a step's metrics; raises UserError where the run must not go on."""
    values = jax.device_get(metrics)
    if values.pop("diverged"):
        raise DivergedError(
            f"loss or gradient is not finite at step {values['step'] + 1}, with config.max_nonfinite_steps="
            f"{config.max_nonfinite_steps}: the run stops, its checkpoints are sound; start from them with "
            "config.init_from in another --workdir and a lower optimizer.learning_rate"
        )
    bad = zip(statuses.STATUSES[1:], values.pop("bad_images")[1:].tolist(), strict=True)
    counts = {f"bad_images/{status}": count for status, count in bad if count}
    if skipped := int(values.pop("nonfinite_steps")):
        counts["nonfinite_steps"] = skipped
    del values["step"]
    _refuse_bad_images(counts, "bad_images/", step * config.batch_size, config)
    return {name: float(value) for name, value in values.items()} | counts


def _refuse_bad_images(metrics: dict[str, float], prefix: str, seen: int, config: ml_collections.ConfigDict) -> None:
    """Raises UserError where too many of the images seen could not be used, by their counts under `prefix`."""
    bad = {name.removeprefix(prefix): count for name, count in metrics.items() if name.startswith(prefix)}
    if sum(bad.values()) > config.input.max_bad_share * max(seen, _FEWEST_SEEN):
        kinds = ", ".join(f"{count} {status}" for status, count in bad.items())
        raise UserError(
            f"{sum(bad.values()) / seen:.2%} of {seen:,} images cannot be used ({kinds}), more than "
            f"config.input.max_bad_share={config.input.max_bad_share:.2%}: mend the data, or raise the share"
        )


def _bad_images(row: dict[str, float]) -> str:
    """The counts in a line of metrics, such as "in training 3 empty; in the last evaluation 1 truncated"."""
    said = []
    for prefix, where in (("train/bad_images/", "in training"), ("val/bad_images/", "in the last evaluation")):
        counts = [f"{row[name]:g} {name.removeprefix(prefix)}" for name in row if name.startswith(prefix)]
        said += [f"{where} {', '.join(counts)}"] if counts else []
    return "; ".join(said)


def _readable(metrics: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics.items()]


def write_inspection(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> epath.Path:
    """Writes a picture of the first training batch, as the model will see it, with its labels; returns its path."""
    workdir = _make_workdir(workdir)
    source = sources.open_source(config.input, config.input.train_split, workdir / "cache")
    batches = pipeline.train_batches(
        source, config.input, seed=config.seed, batch_size=config.batch_size,
        rows=slice(0, config.batch_size), steps=range(1),
    )  # fmt: skip
    batch = jax.tree.map(jnp.asarray, next(iter(batches)))
    key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))[0]
    pictures, targets = jax.device_get(prepare(batch, len(source.class_names), key, config))
    path = workdir / "inspect.png"
    contact_sheet.write(path, pictures, targets, source.class_names, [statuses.STATUSES[s] for s in batch["status"]])
    return path


# ------------------------------------------------------------------------------------------------------- command line


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "The run's config file; --config.NAME=VALUE changes a value.")
    flags.DEFINE_string("workdir", None, "The run's folder, local or gs://. By default runs/ and the config's name.")
    flags.DEFINE_bool("inspect", False, "Write a picture of the first augmented batch with its labels, and exit.")
    flags.DEFINE_bool("allow_config_change", False, "Continue the run in --workdir though its config was another.")
    flags.DEFINE_integer("stop_after", None, "Save behind this step and leave, as if asked to stop.", 1)
    flags.DEFINE_bool("distributed", False, "Several hosts: start jax.distributed first.")
    flags.DEFINE_string("coordinator", None, "Address and port of the first host; a TPU slice knows by itself.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are; a TPU slice knows by itself.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; a TPU slice knows by itself.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    quiet_libraries()
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; settings look like --config.NAME=VALUE")
    atexit.register(preemption.ignore)
    if flags.FLAGS.distributed:
        distributed.start(flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id)
    config, name = command_line.from_flags()
    workdir = flags.FLAGS.workdir or f"runs/{name}"
    startup.keep_compiled(epath.Path(workdir) / "compiled")
    if flags.FLAGS.inspect:
        print(f"the first batch is in {write_inspection(config, workdir)}")
        return
    stop = preemption.Stop(flags.FLAGS.stop_after)
    stop.listen()
    try:
        train(config, workdir, stop=stop, allow_config_change=flags.FLAGS.allow_config_change)
    except preemption.PreemptedError as preempted:
        print(preempted)
        sys.exit(preemption.EXIT_STATUS)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise UserError(
            f"process {jax.process_index()} has lost the others ({first_line(error)}): see their logs, then start all "
            "again, and they continue"
        ) from None
    if jax.process_index() == 0:
        print(f"done: checkpoints, TensorBoard logs and metrics.jsonl are in {workdir}")


if __name__ == "__main__":
    command_line.run(main, define_flags)
