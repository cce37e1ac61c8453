"""Starts two processes that differ in one thing. Both must say so before the first step, and start well without it."""

import pathlib
import shutil
import time

from tests.chaos import compare, pairs
from tests.chaos.trials import Trial

_WITHIN = 60  # seconds in which both must have ended
_ELSEWHERE = "another folder"
_OTHER_DATA = "other data"
_STOPS = "stop_after"

# What one process has: a setting, another folder, data whose records have another order, or a flag.
_DIFFERENCES: dict[str, object] = {
    "optimizer.learning_rate": 0.0123, "seed": 77, "total_steps": 30, "batch_size": 32, "ema_decay": 0.8,
    "mixup.p": 0.4, "model.hidden_dim": 32,
    _STOPS: 7, _ELSEWHERE: "", _OTHER_DATA: "",
}  # fmt: skip
_SAID = {
    _ELSEWHERE: "the folder .* of process 1 is not that of process 0",
    _OTHER_DATA: "process 1 differs from process 0: the digest of some records of the training data is",
}


def mismatch(trial: Trial) -> None:
    """Starts two processes of which one differs, and then the same two alike."""
    expected = pairs.undisturbed(trial)
    what, odd = trial.rng.choice(list(_DIFFERENCES)), trial.rng.randrange(2)
    value = _DIFFERENCES[what]
    folders, changes, arguments = [trial.workdir] * 2, [{}, {}], [(), ()]
    if what == _ELSEWHERE:
        folders[odd] = trial.folder / "elsewhere"
    elif what == _OTHER_DATA:
        changes[odd] = {"input.data_dir": str(_reversed(pathlib.Path(trial.bench.data_dir), trial.folder / "data"))}
    elif what == _STOPS:
        arguments[odd] = (f"--stop_after={value}",)
    else:
        changes[odd] = {what: value}
    since = time.monotonic()
    pair = pairs.start(trial, trial.workdir, folders, changes, arguments)
    for run in pair:
        trial.one_error(run, _SAID.get(what, f"process 1 differs from process 0: {what} is .*start all with the same"))
        trial.expect(not run.last_step(), f"it trained to step {run.last_step()}")
    seconds = time.monotonic() - since
    trial.did(f"process {odd} of two had {what}{f' {value}' if value else ''}; both ended after {seconds:.0f} s")
    trial.expect(seconds < _WITHIN, f"they ended only after {seconds:.0f} s")
    pairs.whole(trial, trial.workdir)
    for problem in compare.differences(expected, trial.workdir, trial.total):
        trial.expect(False, problem)


def _reversed(data_dir: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """Copies data with the training records in reverse order. Names, sizes and numbers of examples stay the same."""
    shutil.copytree(data_dir, copy)
    for index in copy.rglob("index-train.npy"):
        index.unlink()
    for path in copy.rglob("*-train.tfrecord-*"):
        data, records = path.read_bytes(), []
        while data:
            size = 16 + int.from_bytes(data[:8], "little")  # a length, two checksums, and the record
            records.append(data[:size])
            data = data[size:]
        path.write_bytes(b"".join(records[::-1]))
    return copy
