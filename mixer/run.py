"""A run: put together before it trains (data, step, evaluators, earlier starts), and evaluated where that is due."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import ml_collections
import numpy as np
from etils import epath, epy
from jax.experimental import multihost_utils

from mixer import models
from mixer.config import checks, durations, run_folder
from mixer.evaluation import evaluator, evaluators
from mixer.runtime import cpu, devices, preemption
from mixer.runtime.errors import UserError
from mixer.training import description, facts, health, history, setup, sharding, whitening, writers
from mixer.training.console import Console
from mixer.training.metrics import read_metrics
from mixer.training.step import TrainState
from mixer.transfer import init_from
from mixer.transfer.weights import Weights

with epy.lazy_imports():  # it imports TensorFlow; --help and an error in the command line do not wait for it
    from mixer.data import pipeline, readers, sources

if TYPE_CHECKING:
    from mixer.data.sources import Source


_WHITENED_AT_ONCE = 64  # images


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that do not change while it trains."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    console: Console
    stop: preemption.Stop
    check_lock: Callable[[], None]
    mesh: jax.sharding.Mesh
    rows: slice  # this host's rows of a batch
    source: "Source"
    built: setup.Setup
    evaluators: Sequence[evaluators.Scheduled]
    steps: durations.Steps
    before: Sequence[history.Start]  # the starts before this one
    start: history.Start  # this one, as if it were at step 0

    def sources(self) -> Iterator["Source"]:
        """Yields all splits."""
        yield self.source
        for one in self.evaluators:
            yield from one.evaluate.sources

    @property
    def metric(self) -> str:
        """The metric by which `checkpoint.keep_best` ranks."""
        return best_metric(self.config, multi_label=self.source.multi_label)

    def offset(self, first_step: int) -> int:
        """Returns the position of the first image of step 0, counted back from a step with this batch size."""
        seen = history.images_seen(self.before, first_step, self.start.begun["batch_size"])
        return seen - first_step * int(self.config.batch_size)

    def evaluates_otherwise(self) -> bool:
        """Returns whether accuracies of before, by which checkpoints are kept, are of other images or pixels."""
        differs = map(run_folder.changes_evaluation, self.start.config_changes)
        of_val = re.compile(rf"{facts.of_evaluator('val')}( \(|:)")  # not of an evaluator "valid"
        return any(differs) or any(map(of_val.search, self.start.data_changes))

    def repeats(self) -> bool:
        """Returns whether steps that are taken again have the metrics that they had before."""
        return not self.start.data_changes and all(map(run_folder.changes_no_metric, self.start.config_changes))


def prepare(
    config: ml_collections.ConfigDict, workdir: epath.Path, console: Console, stop: preemption.Stop,
    check_lock: Callable[[], None], weights: Weights | None, *, continues: bool, allow_config_change: bool,
    allow_data_change: bool,
) -> Run:  # fmt: skip
    """Opens the data, builds the step and the evaluators, and compares all with the earlier starts of the run.

    Args:
      config: from `init_from.with_token_width`.
      workdir: the run's folder.
      console: where to report progress.
      stop: tells when to save and leave.
      check_lock: raises UserError if another process has taken the folder.
      weights: that the run starts from; None if it starts from random ones, or continues.
      continues: whether the folder has checkpoints.
      allow_config_change: continue a run that had another config.
      allow_data_change: continue a run that had other data.

    Raises:
      UserError: the data cannot be opened, what the config asks for is not possible with them or with these devices, or
        the run had another config or other data.
    """
    mesh = devices.make_mesh()
    if jax.process_index() == 0:
        writers.check_installed(config.metrics.writers)
    stop.agree(mesh)
    sharding.check_divides(config, mesh)
    rows = devices.host_rows(mesh, config.batch_size)
    source = readers.open_source(config.input, config.input.train_split, workdir / "cache")
    of_new = {"input.shuffle_block": source.shuffle_block, "model.dtype": cpu.dtype("auto", mesh)}
    config = run_folder.decided(config, history.settings(workdir) if continues else {}, of_new)
    before = history.since_it_began(history.read(workdir))
    names = history.class_names(workdir) if continues else None
    config_changes: list[str] = []
    if continues:
        config_changes = run_folder.check_same(config, workdir, allow_config_change)
        history.check_classes(names, source.class_names, workdir)
    elif before:
        console.keep(f"{workdir} has no checkpoint: the run begins anew")
    new = history.Begun(source.num_examples, config.batch_size)
    begun = history.begun(workdir, before, new) if continues else new
    timed = checks.unlocked_copy(config)
    timed.batch_size = begun.batch_size  # the durations stay those with which the run began
    steps = durations.all_steps(timed, begun.num_examples)
    built = setup.build(
        config, mesh, num_classes=len(source.class_names), warmup_steps=steps.warmup, total_steps=steps.total
    )
    context = evaluator.Context(
        built.model, source.class_names, config.loss, config.input, mesh, evaluator.batch_size(config),
        workdir / "cache", reading=functools.partial(console.counted, "few-shot evaluation: reading labels"),
    )  # fmt: skip
    scheduled = evaluators.build(timed, context, begun.num_examples, console.keep)
    _tell_what_is_trained_on(scheduled, source, console)
    data = facts.of_data(source, {one.name: one.evaluate.sources for one in scheduled})
    data_changes = history.data_changes(before, names, data, source.class_names) if continues else []
    history.check_data(data_changes, workdir, allow_data_change)
    start = history.Start(
        step=0, **history.now(), software=facts.of_software() | facts.of_version(), machine=facts.of_machine(mesh),
        batch_size=config.batch_size, begun=begun._asdict(), steps=dataclasses.asdict(steps), data=data,
        config_changes=config_changes, data_changes=data_changes,
        class_names=history.other_names(workdir, names, source.class_names) if continues else None,
        weights=init_from.noted(weights) if weights else None,
        decided={name: checks.flat(config)[name] for name in run_folder.DECIDED},
    )  # fmt: skip
    return Run(config, workdir, console, stop, check_lock, mesh, rows, source, built, scheduled, steps, before, start)


def _tell_what_is_trained_on(scheduled: Sequence[evaluators.Scheduled], source: "Source", console: Console) -> None:
    """Reports the evaluators whose accuracy is, in part or in all, that of training images."""
    for one in scheduled:
        for scored in one.evaluate.sources[:1]:
            if common := sources.in_common(scored, source):
                count = "all" if common == scored.num_examples else f"{common:,}"
                console.keep(f"evaluator {one.name}: {count} of its {scored.num_examples:,} images are trained on")


def best_metric(config: ml_collections.ConfigDict, *, multi_label: bool) -> str:
    """Returns the metric by which runs and checkpoints are compared: of the averaged parameters, if there are any.

    Args:
      config: of the run.
      multi_label: whether an example of its data has a set of labels.
    """
    metric = "mean_average_precision" if multi_label else "accuracy"
    return f"{'val_ema' if config.ema_decay else 'val'}/{metric}"


def say_last(run: Run, line: dict[str, float], best: epath.Path | None, step: int) -> None:
    """Reports at the end of a run the images that could not be used, and the best checkpoint if it is not the last.

    Args:
      run: that has ended.
      line: the metrics of its last step.
      best: the most accurate checkpoint, if it is known.
      step: the last.
    """
    if unusable := health.unusable_images(line):
        run.console.keep(f"images that could not be used: {unusable}")
    if best is not None and best.name != str(step):
        ema = ", with --ema" if run.config.ema_decay else ""
        run.console.keep(f"the most accurate checkpoint is {best}, not the last; --checkpoint takes its path{ema}")


def owed(run: Run, step: int) -> list[evaluators.Scheduled]:
    """Returns the evaluators that are due at a step and missing in the log: a stop may have cut them short."""
    due = evaluators.due(run.evaluators, step, run.steps.total, run.config.eval_at_start)
    lines = read_metrics(run.workdir) if step else []  # a run that begins anew has no use for what there is
    last = next((line for line in reversed(lines) if line["step"] == step), {})
    return [one for one in due if not any(name.startswith(f"{one.name}/") for name in last)]


def check_stop(run: Run, step: int) -> None:
    """Checks that a run which stands at `step` comes past the step after which it is asked to stop.

    Raises:
      UserError: its last step is before that.
      PreemptedError: it stands there already.
    """
    after, total = run.stop.after, run.steps.total
    if after is not None and after > total:
        raise UserError(f"--stop_after={after}: the run has only {total} steps; give fewer, or leave it out")
    if after is not None and after <= step < total:
        raise preemption.PreemptedError(f"--stop_after={after}: the run stands at step {step} of {total}")


def evaluate(run: Run, due: Sequence[evaluators.Scheduled], state: TrainState, step: int) -> dict[str, float]:
    """Runs the evaluators that are due at a step, and reports what they found.

    Raises:
      AbandonedError: the run was asked to stop.
      UserError: too many images cannot be used.
    """
    metrics = evaluators.run(
        due, state, lambda batches: run.stop.unless_asked(run.console.counted(f"step {step}  evaluating", batches))
    )
    for one in due:
        images = one.evaluate.num_examples
        health.check_images(metrics, f"{one.name}/bad_images/", images, images, run.config)
        if metrics.get(f"{one.name}/labelled") == 0:
            run.console.keep(f"no accuracy of {one.name}: its images have no labels")
    shown = (
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics.items()
    )
    run.console.keep(f"step {step}  " + "  ".join(shown))
    return metrics


def _with_whitening_stem(run: Run, state: TrainState) -> TrainState:
    """Returns the state with a stem that whitens patches of training images, which evaluation crops."""
    count = min(whitening.NUM_IMAGES, run.source.num_examples)
    records = np.linspace(0, run.source.num_examples - 1, count).astype(int)  # of all classes, if they are in order
    rows = slice(0, _WHITENED_AT_ONCE)  # every host reads all of them
    batches = pipeline.eval_batches(
        run.source, run.config.input, batch_size=_WHITENED_AT_ONCE, rows=rows, records=records
    )
    (kernel,) = devices.to_host(run.mesh, state.params["stem"]["kernel"])
    kernel = whitening.whitening(kernel, (batch["image"][batch["weight"] > 0] for batch in batches))
    if jax.process_count() > 1:  # on processors of another kind, others may round otherwise
        kernel = multihost_utils.broadcast_one_to_all(kernel)
    run.console.keep(f"the stem whitens patches, as {count:,} training images have them")
    params = {**state.params, "stem": {**state.params["stem"], "kernel": kernel}}
    return init_from.with_params(state, params, run.built.shardings)


def first_state(run: Run, weights: Weights | None) -> TrainState:
    """Makes the state before the first step, and reports what its parameters are."""
    state = run.built.init()
    if weights is None:
        run.console.keep("starting from random parameters: config.init_from is not set")
        return _with_whitening_stem(run, state) if run.config.stem_init == "whitening" else state
    head = init_from.head_of(weights, run.source.class_names)
    resized = ""
    if weights.resized_from is not None:
        resized = f", whose weights are brought from {weights.resized_from} to {run.config.input.image_size} pixels"
    average = ""
    if weights.config is not None and weights.config.ema_decay:
        average = " (their average)" if run.config.init_ema else " (not their average: config.init_ema is not set)"
    other = init_from.other_function(weights, run.built.model) + init_from.other_pixels(weights, run.config)
    if head.kept and run.config.model.head_bias_init is not None:
        other = f"; config.model.head_bias_init={run.config.model.head_bias_init} is not read{other}"
    run.console.keep(f"starting from {run.config.init_from}{average}{resized}; {head.said}{other}")
    model = f"{models.name_of(run.built.model)} for images of {run.config.input.image_size} pixels"
    return init_from.with_weights(state, weights, run.source.class_names, run.built.shardings, model=model)


def describe(run: Run, step: int) -> None:
    """Reports what is about to run."""
    config, total = run.config, run.steps.total
    eval_images = next(one.evaluate.num_examples for one in run.evaluators if one.name == "val")
    epochs = (run.offset(step) + total * config.batch_size) / run.start.begun["num_examples"]
    run.console.keep(description.of_model(config, run.built))
    resized_at = step if run.offset(step) else 0
    run.console.keep(
        description.of_training(config, run.mesh, run.built, run.source, eval_images, total, resized_at, epochs)
    )
    for said in description.of_data(run.sources()):
        run.console.keep(said)
    if best := config.checkpoint.keep_best:
        run.console.keep(f"each evaluation of val is saved, and the best {best} kept, by {run.metric}")
