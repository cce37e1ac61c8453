"""Metrics in Weights & Biases (https://wandb.ai). Its library is the extra `wandb`.

It reads its own variables: WANDB_MODE=offline keeps everything in the run's folder until `wandb sync`; WANDB_PROJECT,
WANDB_ENTITY and WANDB_NAME say where a run belongs and what it is called.
"""

import os
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

from mixer.runtime import bucket, files
from mixer.runtime.errors import UserError, first_line
from mixer.training.writer import Writer

ID_FILE = "wandb_id.txt"  # in the run's folder: the id of the run of W&B that the next start continues
_UPLOADED_WITHIN = 60.0  # seconds after the end; a host that is taken away must not wait for a network
_TO_DISK_EVERY = 1.0  # seconds, instead of 15: what a process that is killed has not written by then is lost


def open_writer(
    workdir: epath.PathLike, step: int, written: Mapping[int, Mapping[str, float]], repeats: bool
) -> Any:  # fmt: skip
    """Begins or continues a run's run of W&B; the arguments are those of `writers.Kind`.

    W&B never forgets a step. So a run that takes steps again in another way begins another one there.

    Raises:
      UserError: W&B does not allow it, as without an account.
    """
    import wandb

    path = epath.Path(workdir) / ID_FILE
    begins = not repeats or not files.exists(path)
    name = uuid.uuid4().hex[:12] if begins else files.read_text(path).strip()
    try:
        run = wandb.init(
            id=name,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "mixer"),
            name=os.environ.get("WANDB_NAME", epath.Path(workdir).name),
            dir=None if bucket.is_remote(workdir) else os.fspath(workdir),
            settings=wandb.Settings(
                console="off",  # our output stays as it is
                finish_timeout=_UPLOADED_WITHIN,
                x_transaction_log_flush_interval=_TO_DISK_EVERY,
            ),
        )
    except Exception as error:  # wandb's, and others of the network
        raise UserError(
            f"config.metrics.writers has wandb, which cannot begin ({first_line(error)}): see `wandb login`, set "
            "WANDB_MODE=offline, or leave it out"
        ) from None
    files.write_text(path, f"{name}\n")
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return continued(run, step, written, begins)


def continued(run: Any, step: int, written: Mapping[int, Mapping[str, float]], begins: bool) -> "WeightsAndBiases":
    """Returns a writer into an open run of W&B, after it has sent the lines up to `step` that W&B lacks.

    A run that is new there gets all of them, as when `wandb` is named later. Of another run the server says how far it
    has come: a killed process may not have uploaded its last lines. Offline nobody can say, and W&B is taken to have
    them all.
    """
    next_row = int(run.starting_step) if begins or run.resumed else max(written, default=-1) + 1
    has = {number: line for number, line in written.items() if number < next_row}
    writer = WeightsAndBiases(run, has, next_row, begins)
    for number in sorted(written):
        if next_row <= number <= step:
            writer.write_scalars(number, {name: value for name, value in written[number].items() if name != "step"})
    return writer


class WeightsAndBiases(Writer):
    """A writer into an open run of W&B, which shows the config by itself.

    W&B numbers its rows and never goes back. So what earlier starts wrote is left out, and each row names its step.
    """

    def __init__(self, run: Any, has: Mapping[int, Mapping[str, float]], next_row: int, begins: bool):
        """Takes an open run.

        Args:
          run: of W&B.
          has: the lines that are in it, by step.
          next_row: the lowest number that its next row may have.
          begins: whether it is new.
        """
        self._run, self._has, self._row, self._begins = run, has, next_row, begins

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes the metrics of a step that the run does not have."""
        if new := {name: value for name, value in scalars.items() if name not in self._has.get(step, ())}:
            self._log(step, new, commit=True)  # at once, or a kill would cost the row
            self._row += 1

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the config."""
        self._run.config.update(dict(hparams), allow_val_change=True)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes images when the run begins."""
        import wandb

        if self._begins:
            self._log(step, {name: wandb.Image(image[0]) for name, image in images.items()}, commit=False)

    def close(self) -> None:
        """Ends the run of W&B, which a later start continues."""
        self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any], commit: bool) -> None:
        self._row = max(step, self._row)
        self._run.log({"step": step, **values}, step=self._row, commit=commit)
