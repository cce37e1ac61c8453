"""Trains a Mixer: `python -m mixer.train --config configs/b16_i21k.py --workdir gs://bucket/b16_i21k`.

Pre-training, fine-tuning, the quickstart and the tests are this one loop under different configs. The same command
given again continues from the newest whole checkpoint, and ends at the same bits as a run that was never stopped.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

import ml_collections
from absl import flags
from etils import epath, epy

from mixer.config import command_line, durations, help_text
from mixer.runtime import streams
from mixer.runtime.errors import UserError, first_line, library_logs_silenced
from mixer.training.console import Console
from mixer.training.metrics import MetricsLog, read_metrics
from mixer.training.progress import Progress

with epy.lazy_imports():  # they import JAX or TensorFlow, for which --help does not wait
    import jax

    import mixer.run
    from mixer.config import describe, run_folder
    from mixer.data import pipeline
    from mixer.evaluation import evaluators
    from mixer.runtime import agreement, compilation_cache, devices, distributed, lock, preemption
    from mixer.training import checkpoint, checkpoint_reader, facts, first_batch, health, history, layer_norms, profile
    from mixer.transfer import init_from, loading

if TYPE_CHECKING:
    from mixer.training.checkpoint import Checkpoints
    from mixer.training.step import Metrics, TrainState
    from mixer.transfer.weights import Weights

_log = logging.getLogger(__name__)

_OPENED_WITHIN = 6 * 3600  # seconds; a host may have to read all its data for an index


def train(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    console: Console | None = None,
    stop: preemption.Stop | None = None,
    allow_config_change: bool = False,
    allow_data_change: bool = False,
) -> dict[str, float]:
    """Runs the training that a checked config describes, from the start or from the newest checkpoint in `workdir`.

    Args:
      config: from `checks.checked`.
      workdir: the run's folder, local or gs://; made if missing.
      console: where to report progress; standard output if not given.
      stop: tells when to save and leave; never, if not given.
      allow_config_change: continue a run that had another config.
      allow_data_change: continue a run that had other data.

    Returns:
      The metrics of the last evaluation.

    Raises:
      UserError: the config, the data or the folder does not allow it, or the loss is no longer finite.
      PreemptedError: the run was asked to stop, and its state is saved.
    """
    console, stop, meeting, weights = console or Console(), stop or preemption.Stop(), agreement.meeting(), None
    with ExitStack() as stack:
        stack.enter_context(library_logs_silenced())
        stack.callback(console.end)
        with meeting.failures_told():
            workdir = run_folder.make(workdir)
            check_lock = stack.enter_context(lock.held(workdir, console.keep))
            allowed = {"allow_config_change": allow_config_change, "allow_data_change": allow_data_change}
            number = distributed.processes().count
            command = facts.of_command(config, stop_after=stop.after, num_processes=number, **allowed)
            continues = checkpoint_reader.has_checkpoints(workdir)
            begins_from = config.init_from if not continues else None
            data = {"what init_from holds": loading.held(begins_from)} if begins_from else {}
            meeting.compare({"command": command, "software": facts.of_software(), "data": data}, workdir)
            if begins_from:
                weights = loading.load(config.init_from, config.init_ema)  # a run's is read by all processes together
                digest = facts.digest_of_weights(weights.params)
                # To bring them to another size needs devices, in looking for which all processes wait for each other.
                meeting.compare({"data": {"the digest of the weights of init_from": digest}}, within=_OPENED_WITHIN)
                weights = weights.at_image_size(config.input.image_size, config.resize)
            before = history.settings(workdir) if continues and config.init_from else {}
            config = init_from.with_token_width(config, weights, before)
            run = mixer.run.prepare(config, workdir, console, stop, check_lock, weights, continues=continues, **allowed)
            meeting.compare(_alike(run), within=_OPENED_WITHIN)
            begun = _begin(run, weights, meeting)
        if begun:
            _loop(run, *begun)
    evaluations = [line for line in read_metrics(workdir) if "val/count" in line]
    return evaluations[-1] if evaluations else {}


def _alike(run: mixer.run.Run) -> agreement.Facts:
    """Returns what all processes must have alike before the first step."""
    return {
        "settings": {
            "input.shuffle_block": str(run.config.input.shuffle_block), "model.dtype": run.config.model.dtype,
        },
        "data": run.start.data,
        "devices": {"the number of its devices": str(jax.local_device_count())},
    }  # fmt: skip


def _begin(
    run: mixer.run.Run, weights: Weights | None, meeting: agreement.Meeting
) -> tuple[TrainState, Checkpoints, MetricsLog, Sequence[evaluators.Scheduled]] | None:
    """Restores or makes the state, and notes the start in the run's folder. Returns what `_loop` needs.

    Returns None if the run is done.
    """
    config, console, workdir = run.config, run.console, run.workdir
    checkpoints = checkpoint.Checkpoints(workdir, **config.checkpoint, best_metric=run.metric)
    try:
        state = checkpoints.restore(run.built.shapes, run.built.shardings)
        step = 0 if state is None else int(state.step)
        mixer.run.describe(run, step)
        if state is not None:
            changes = [*run.start.config_changes, *run.start.data_changes]
            console.keep(f"continuing from step {step}" + "".join(f"; {change}" for change in changes))
        else:
            state = mixer.run.first_state(run, weights)
        owed = mixer.run.owed(run, step)
        mixer.run.check_stop(run, step)
        if step >= run.steps.total and not owed:  # nothing is written to the folder of a run that is done
            console.keep(f"the run in {workdir} is done: it stands at step {step} of {run.steps.total}")
            checkpoints.close()
            return None
        # All this is written only now: if the weights had not fitted, another attempt could use the same folder.
        if jax.process_index() == 0:
            for warning in history.warnings(run.before[-1], run.start) if run.before and step else ():
                _log.warning("%s", warning)
            history.add(workdir, dataclasses.replace(run.start, step=step))
        if step and run.evaluates_otherwise():
            console.keep("the accuracies of earlier checkpoints do not count any more: they are of another evaluation")
            checkpoints.forget_accuracies()
        run_folder.save(config, run.source.class_names, workdir, anew=step == 0)
        log = MetricsLog(workdir, step, config.checkpoint.on_error, config.metrics.writers, repeats=run.repeats())
        meeting.compare({}, within=_OPENED_WITHIN)  # process 0 alone has written, or failed to
    except (UserError, OSError, preemption.PreemptedError):
        checkpoints.close()  # its threads complain if the interpreter ends before them
        raise
    return state, checkpoints, log, owed


def _keep(state: TrainState, checkpoints: Checkpoints, log: MetricsLog) -> None:
    """Saves what was learned before an error ends the run, if no other process waits for this one."""
    log.flush()
    if jax.process_count() == 1:
        checkpoints.save(state, {})


def _loop(
    run: mixer.run.Run, state: TrainState, checkpoints: Checkpoints, log: MetricsLog,
    owed: Sequence[evaluators.Scheduled],
) -> None:  # fmt: skip
    """Trains from the state's step to the last step. A save in the background is completed, whatever ends the loop."""
    config, steps, stop = run.config, run.steps, run.stop
    first_step = int(state.step)
    offset = run.offset(first_step)
    batches = pipeline.train_batches(
        run.source, config.input, seed=config.seed, batch_size=config.batch_size,
        rows=run.rows, steps=range(first_step, steps.total), offset=offset,
    )  # fmt: skip
    feed = devices.device_batches(batches, run.mesh)
    progress = Progress(first_step, steps.total, config.batch_size)
    trace = profile.Profile(run.workdir, first_step, config.profile_steps, steps.total)
    previous: Metrics = {}

    with ExitStack() as closing:
        for one in (checkpoints, log, progress, trace):  # from the last to the first, also if one cannot be closed
            closing.callback(one.close)
        # Evaluations that are due here and missing in the log: at the start, or where a stop cut them short.
        if owed:
            made_up_for = mixer.run.evaluate(run, owed, state, first_step)
            checkpoints.evaluated(first_step, made_up_for)  # before the log: what the log has is not owed any more
            log.write(first_step, made_up_for)
            log.flush()
            if first_step == steps.total:
                mixer.run.say_last(run, made_up_for, checkpoints.most_accurate(), first_step)
        for step in range(first_step + 1, steps.total + 1):
            try:
                batch = next(feed)
            except UserError:  # the data cannot be read any more
                if step > first_step + 1 and math.isfinite(previous["param_norm"]):
                    _keep(state, checkpoints, log)
                raise
            if step == first_step + 1:
                picture = functools.partial(first_batch.sheet, batch, run.source.class_names, first_step, config)
                log.describe(step, config, picture)
            compiling = run.console.timed("compiling the training step") if step == first_step + 1 else nullcontext()
            with compiling, trace.step(step):
                state, metrics = run.built.train_step(state, batch)
            if step == first_step + 1:  # measure the speed from here
                jax.block_until_ready(metrics)
                stop.work_begins()
                progress.restart(step)
            progress.dispatched(metrics)
            # Wait for the previous step, not for this one. So the devices always have a next step, and only one.
            jax.block_until_ready(previous)
            previous = metrics
            trace.at(step, metrics)

            last = step == steps.total
            leaving = not last and (stop.asked() or step == stop.after)
            due = evaluators.due(run.evaluators, step, steps.total, config.eval_at_start)
            logs, saves = (last or durations.ends_at(step, every) for every in (steps.log, steps.checkpoint))
            if not (logs or due or saves or leaving):
                continue  # most steps end here: reading metrics would make the devices wait
            # First the checks, so that nothing is written of a run that must not go on.
            run.check_lock()
            seen = offset + step * config.batch_size
            try:
                values = health.checked_metrics(seen, run.source.num_examples, metrics, config)
            except UserError:
                log.flush()
                raise
            checkpoints.check()
            line: dict[str, float] = {}
            if logs:
                position = {"images_seen": seen, "epoch": seen / run.start.begun["num_examples"]}
                scalars = values | position | progress.measure(step)
                state = state.replace(line_sums=run.built.no_sums())
                line |= {f"train/{name}": value for name, value in scalars.items()}
                run.console.show(step, steps.total, scalars)
            if due:
                try:
                    with progress.pause():
                        ratio = layer_norms.measured(run.built.model, run.mesh, state.params, batch)
                        line |= {f"train/{name}": value for name, value in ratio.items()}
                        line |= mixer.run.evaluate(run, due, state, step)
                except preemption.AbandonedError:
                    leaving = True
                except UserError:  # its images cannot be read
                    if line:
                        log.write(step, line)
                    _keep(state, checkpoints, log)
                    raise
            # What is evaluated may be one of the best, which only a saved step can be.
            saves = saves or (config.checkpoint.keep_best > 0 and run.metric in line)
            # Metrics before the checkpoint: a run that continues from it has all lines of metrics up to it.
            if line:
                log.write(step, line)
            if saves or leaving:
                log.flush()
                checkpoints.save(state, line)
            if last or leaving:
                checkpoints.settle()  # no later save can make up for this one
            if last:
                mixer.run.say_last(run, line, checkpoints.most_accurate(), step)
            if leaving:
                raise preemption.PreemptedError(f"asked to stop: saved at step {step} of {steps.total}")


# ------------------------------------------------------------------------------------------------------- command line


def define_flags() -> None:
    """Defines the command's flags."""
    with help_text.group("The run", "--config cifar10 --workdir runs/cifar10 --config.input.data_dir=DIR"):
        command_line.define_config_flag()
        flags.DEFINE_string("workdir", None, "The run's folder, local or gs://; runs/NAME if not given.")
        flags.DEFINE_bool("allow_config_change", False, "Continue the run in --workdir though its config was another.")
        flags.DEFINE_bool("allow_data_change", False, "Continue the run in --workdir though its data were others.")
        flags.DEFINE_integer("stop_after", None, "Save after this step and leave, as if asked to stop.", 1)
    with help_text.group("To look and leave", "--config cifar10 --print_config"):
        flags.DEFINE_bool("print_config", False, "Print every setting of the run, grouped and explained.")
        flags.DEFINE_bool("inspect", False, "Write a picture of the first augmented batch with its labels.")
    with help_text.group("Several hosts", "--config b16_i21k --workdir gs://BUCKET/b16_i21k --distributed"):
        flags.DEFINE_bool("distributed", False, "Start jax.distributed first.")
        flags.DEFINE_string("coordinator", None, "Address and port of the first host; TPU slices and SLURM know it.")
        flags.DEFINE_integer("num_processes", None, "How many processes there are; TPU slices and SLURM know it.")
        flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; TPU slices and SLURM know it.")


# The command reads these only if it trains.
_TRAINING_FLAGS = (
    "allow_config_change", "allow_data_change", "stop_after", "distributed", "coordinator", "num_processes",
    "process_id",
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs the command."""
    given = flags.FLAGS
    if given.print_config:
        command_line.refuse_unread(("workdir", "inspect", *_TRAINING_FLAGS), "with --print_config")
    elif given.inspect:
        command_line.refuse_unread(_TRAINING_FLAGS, "with --inspect")
    elif not given.distributed:
        command_line.refuse_unread(("coordinator", "num_processes", "process_id"), "without --distributed")
    if not given.print_config:
        streams.outlast()
    atexit.register(preemption.ignore)
    if given.distributed:
        if name := command_line.config_name():  # that it is missing is told to all processes
            lock.refuse_if_held(command_line.workdir(name), functools.partial(print, file=sys.stderr, flush=True))
        distributed.start(given.coordinator, given.num_processes, given.process_id)
    with agreement.meeting().failures_told():
        config, name = command_line.from_flags()
    if given.print_config:
        print(describe.values(config))
        return
    workdir = command_line.workdir(name)
    compilation_cache.keep_compiled(epath.Path(workdir) / "compiled")
    if given.inspect:
        print(f"the first batch is in {first_batch.write_picture(config, workdir)}")
        return
    stop = preemption.Stop(given.stop_after)
    stop.listen()
    asked_to_stop = ""
    try:
        train(
            config, workdir, stop=stop, allow_config_change=given.allow_config_change,
            allow_data_change=given.allow_data_change,
        )  # fmt: skip
    except preemption.PreemptedError as preempted:
        asked_to_stop = str(preempted)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise UserError(
            f"process {jax.process_index()} cannot go on ({first_line(error)}): if it has lost another, see that one's "
            "log, then start all again, and they continue"
        ) from None
    if asked_to_stop:
        print(asked_to_stop, flush=True)
    agreement.meeting().end_together()
    # Outside the handler, whose traceback holds the input and its threads: TensorFlow's may abort a process that ends.
    if asked_to_stop:
        sys.exit(preemption.EXIT_STATUS)
    if jax.process_index() == 0:
        print(f"done: checkpoints and metrics are in {workdir}")


def run() -> None:
    """Runs the command and exits."""
    command_line.run(main, define_flags)


if __name__ == "__main__":
    run()
